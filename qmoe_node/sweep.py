"""Many ways to quantize the same mixtures, side by side: sizes and errors, as a table, as JSON and as a plot."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isfinite, log10
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.table import Table

from qmoe_node.conversion import CALIBRATED, Converted, Method, Plan, convert, relative
from qmoe_node.quantizing import Source, calibration_of, layers_of, source_of
from runtime.atomic import replacing
from runtime.backends.control import Progress
from runtime.drawing.axes import decades, labels, ticks
from runtime.errors import Finding, GraphError
from runtime.files import check_destination
from runtime.reports import console, watched

SIZE = (900, 560)
MARGIN = (84, 30, 24, 60)  # left, top, right, bottom
LINE, FINENESS, DOT = 22, 3, 5
COLOURS = ("#1f77b4", "#d95f02", "#2a9d4a", "#8b4fb3", "#b3382c", "#6b6b6b")
GRID, INK = "#dddddd", "#333333"


@dataclass(frozen=True, slots=True)
class Trial:
    """One way, over all mixtures: mean bits of a weight with scales and zero points, errors, seconds.

    `weight_error` is the root of the mean square over experts and projections; `output_error` that of all calibration
    tokens' outputs together, None without. `is_best` says that no other way is both as small and as good.
    """

    plan: Plan
    bits_per_weight: float
    weight_error: float
    output_error: float | None
    seconds: float
    is_best: bool = False

    @property
    def error(self) -> float:
        """That of the outputs if it is known, else that of the weights."""
        return self.weight_error if self.output_error is None else self.output_error

    @property
    def name(self) -> str:
        """The method, and whether there are zero points."""
        return self.plan.method + (", asymmetric" if self.plan.asymmetric else "")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "bits": self.plan.bits,
            "block_size": self.plan.block_size,
            "asymmetric": self.plan.asymmetric,
            "method": self.plan.method,
            "bits_per_weight": self.bits_per_weight,
            "weight_error": self.weight_error,
            "output_error": self.output_error,
            "seconds": round(self.seconds, 3),
            "is_best": self.is_best,
        }


def plans(
    bits: Sequence[int], block_sizes: Sequence[int], methods: Sequence[Method], asymmetric: Sequence[bool]
) -> list[Plan]:
    """All ways that there are; those that a method does not know are left out. GraphError if none is left."""
    found: list[Plan] = []
    wrong: GraphError | None = None
    for width, size, method, zeros in product(bits, block_sizes, methods, asymmetric):
        if (method == "half-quadratic" and not zeros) or (method == "onnxruntime" and not size):
            continue
        try:
            found.append(Plan(width, size, zeros, method))
        except GraphError as error:
            wrong = error
            break
    if wrong is not None:
        raise wrong
    if not found:
        raise GraphError(Finding("No way to quantize is left: half-quadratic needs --asymmetric.", code="option"))
    return found


def sweep(
    source: Path,
    ways: Sequence[Plan],
    *,
    layers: str | None = None,
    experts: int | None = None,
    calibration: Sequence[Path] = (),
    picture: Path | None = None,
    as_json: bool = False,
) -> None:
    """Tries every way on the mixtures of `source`, prints what each gives, and draws it into `picture`."""
    if picture is not None:
        check_destination(picture, (".png",))
    calibrated = [plan.method for plan in ways if plan.method in CALIBRATED]
    if calibrated and not calibration:
        text = f"The method {calibrated[0]} needs calibration data."
        raise GraphError(Finding(text, remedy="Give it with --calibration.", code="option"))
    found = source_of(source, layers_of(layers))
    arrays = calibration_of(calibration)
    if arrays:
        found.check(arrays)

    def work(progress: Progress | None = None, cancel: threading.Event | None = None) -> list[Trial]:
        trials = []
        for number, plan in enumerate(ways):
            if progress is not None:
                size = plan.block_size or "a row"
                progress(number, len(ways), f"{plan.bits} bits, blocks of {size}, {plan.method}")
            trials.append(_trial(found, plan, arrays, experts, cancel))
        return trials

    trials = _marked(watched(work))
    if picture is not None:
        save_plot(picture, trials)
    if as_json:
        print(json.dumps({"source": str(source), "trials": [trial.as_dict() for trial in trials]}, indent=2))
        return
    _tell(trials)
    if picture is not None:
        console.print(f"Written to {picture}.", markup=False, soft_wrap=True)


def _trial(
    source: Source, plan: Plan, arrays: dict[str, np.ndarray], experts: int | None, cancel: threading.Event | None
) -> Trial:
    start = perf_counter()
    made: list[Converted] = []
    for name in source.names:
        samples = source.samples(name, arrays) if arrays else None
        made.append(convert(source.mixture(name), plan, samples, cancel=cancel, experts=experts))
    before, after = sum(one.before for one in made), sum(one.after for one in made)
    squares = [error**2 for one in made for report in one.experts for error in report.errors.values()]
    output_error = None
    if arrays:
        outputs = np.concatenate([one.outputs.ravel() for one in made if one.outputs is not None])
        output_error = relative(np.concatenate([one.found.ravel() for one in made if one.found is not None]), outputs)
    weight_error = float(np.sqrt(np.mean(squares)))
    return Trial(plan, 32 * after / before, weight_error, output_error, perf_counter() - start)


def _marked(trials: list[Trial]) -> list[Trial]:
    """The smallest first; with a mark on those that no other beats in size and error."""
    ordered = sorted(trials, key=lambda trial: (trial.bits_per_weight, trial.error))
    marked, least = [], np.inf
    for trial in ordered:
        is_best = trial.error < least
        least = min(least, trial.error)
        marked.append(replace(trial, is_best=is_best))
    return marked


def _tell(trials: Sequence[Trial]) -> None:
    has_output = trials[0].output_error is not None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("bits", "block size"):
        table.add_column(name, justify="right")
    table.add_column("method")
    for name in ("bits/weight", "weight error", *(("output error",) if has_output else ()), "seconds"):
        table.add_column(name, justify="right")
    for trial in trials:
        cells = ["*" if trial.is_best else "", str(trial.plan.bits), str(trial.plan.block_size or "row"), trial.name]
        cells += [f"{trial.bits_per_weight:.2f}", f"{trial.weight_error:.2%}"]
        cells += [f"{trial.output_error:.2%}"] if trial.output_error is not None else []
        table.add_row(*cells, f"{trial.seconds:.2f}", style="" if trial.is_best else "dim")
    console.print(table)
    console.print("* no other is both as small and as good")


def save_plot(path: Path, trials: Sequence[Trial]) -> None:
    """Writes a PNG of size against error, a colour for each method, a line through the best. FileError if it cannot."""
    from PIL import Image, ImageDraw, ImageFont

    shown = [trial for trial in trials if isfinite(trial.error) and trial.error > 0]
    sizes = [trial.bits_per_weight for trial in shown] or [0.0, 8.0]
    errors = [trial.error for trial in shown] or [0.01, 1.0]
    columns, rows = ticks(min(sizes), max(sizes)), decades(min(errors), max(errors))
    if len(rows) == 1:
        rows = [rows[0], rows[0] * 10]
    names = list(dict.fromkeys(trial.plan.method for trial in shown))
    has_zero_points = any(trial.plan.asymmetric for trial in shown)
    font: Any = ImageFont.load_default(15 * FINENESS)
    small: Any = ImageFont.load_default(12 * FINENESS)
    left, top, right, bottom = (FINENESS * margin for margin in MARGIN)
    top += FINENESS * LINE * (len(names) // 4 + 1)
    width, height = FINENESS * SIZE[0], FINENESS * SIZE[1]

    def across(size: float) -> float:
        return left + (width - left - right) * (size - columns[0]) / (columns[-1] - columns[0])

    def up(error: float) -> float:
        share = (log10(error) - log10(rows[0])) / (log10(rows[-1]) - log10(rows[0]))
        return height - bottom - (height - top - bottom) * share

    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for row in rows:
        for factor in range(1, 10):
            if (mark := row * factor) <= rows[-1]:
                draw.line((left, up(mark), width - right, up(mark)), GRID, FINENESS if factor == 1 else 1)
        draw.text((left - 10 * FINENESS, up(row)), f"{row * 100:g} %", INK, font, anchor="rm")
    for mark, text in zip(columns, labels(columns), strict=True):
        draw.line((across(mark), top, across(mark), height - bottom), GRID, FINENESS)
        draw.text((across(mark), height - bottom + 8 * FINENESS), text, INK, font, anchor="mt")
    what = "error of the outputs" if trials and trials[0].output_error is not None else "error of the weights"
    draw.text((left + (width - left - right) / 2, height - 22 * FINENESS), "bits per weight", INK, font, anchor="mt")
    draw.text((left, 8 * FINENESS), what, INK, font)
    best = [(across(trial.bits_per_weight), up(trial.error)) for trial in shown if trial.is_best]
    if len(best) > 1:
        draw.line(best, "#aaaaaa", 2 * FINENESS)
    taken: list[tuple[float, float, float, float]] = []
    for trial in shown:
        x, y = across(trial.bits_per_weight), up(trial.error)
        colour = COLOURS[names.index(trial.plan.method) % len(COLOURS)]
        _mark(draw, x, y, colour, trial.plan.asymmetric, trial.is_best)
        if trial.is_best:
            text = f"{trial.plan.bits} bits, {trial.plan.block_size or 'rows'}"
            box = draw.textbbox((x, y + 9 * FINENESS), text, small, anchor="mt")
            if not any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in taken):
                draw.text((x, y + 9 * FINENESS), text, INK, small, anchor="mt")
                taken.append(box)
    for index, name in enumerate([*names, *(("with zero points",) if has_zero_points else ())]):
        x = left + (index % 4) * (width - left - right) / 4
        y = FINENESS * (40 + LINE * (index // 4))
        is_method = index < len(names)
        _mark(
            draw, x + DOT * FINENESS, y, COLOURS[index % len(COLOURS)] if is_method else INK, not is_method, is_method
        )
        draw.text((x + 18 * FINENESS, y), name, INK, font, anchor="lm")
    with replacing(path) as file:
        image.resize(SIZE, Image.Resampling.LANCZOS).save(file, "PNG")


def _mark(draw: Any, x: float, y: float, colour: str, is_square: bool, is_full: bool) -> None:
    radius = DOT * FINENESS
    shape = draw.rectangle if is_square else draw.ellipse
    shape((x - radius, y - radius, x + radius, y + radius), colour if is_full else None, colour, 5)


def numbers(text: str, option: str) -> Iterator[int]:
    """The numbers in "2,4,8"."""
    for part in text.split(","):
        if not part.strip().isdecimal():
            raise GraphError(Finding(f"{option}: expected numbers such as 2,4,8; {text!r} came.", code="option"))
        yield int(part)
