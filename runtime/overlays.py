"""A run painted on the graph: how much of the time a node takes, how large the gradient at its outputs is."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal, TypeAlias

from runtime.drawing.words import seconds_text
from runtime.jobs import Result
from runtime.summaries import Summary

Overlay: TypeAlias = Literal["none", "time", "gradient"]


@dataclass(frozen=True, slots=True)
class Mark:
    """What stands at a node: a text, and how strong its tint is, 0 to 1; None for none."""

    text: str = ""
    tint: float | None = None


def marks(result: Result, overlay: Overlay) -> dict[str, Mark]:
    """The marks of nodes by id: gradients if those are wanted and there are any, else times; tinted by the overlay."""
    if overlay == "gradient" and result.gradient_probes:
        return _gradients(result)
    times: defaultdict[str, float] = defaultdict(float)
    texts: dict[str, str] = {}
    for id, seconds in result.times.items():
        times[id] += seconds
        texts[id] = seconds_text(seconds)
    for id, seconds in result.backward_times.items():
        times[id] += seconds
        texts[id] = ", ".join(part for part in (texts.get(id), f"back {seconds_text(seconds)}") if part)
    longest = max(times.values(), default=0.0)
    tinted = overlay == "time" and longest > 0
    return {id: Mark(texts[id], times[id] / longest if tinted else None) for id in times}


def root_mean_square(summary: Summary) -> float:
    """Of the finite elements; 0.0 if there are none."""
    if summary.mean is None or summary.deviation is None:
        return 0.0
    return math.hypot(summary.mean, summary.deviation)


def _gradients(result: Result) -> dict[str, Mark]:
    """By node, the largest root mean square of a gradient at its outputs; the tint is its logarithm."""
    largest: dict[str, float] = {}
    bad: dict[str, int] = {}
    for text in result.gradient_probes:
        summary, id = result.gradient_summaries[text], text.partition(".")[0]
        largest[id] = max(largest.get(id, 0.0), root_mean_square(summary))
        bad[id] = bad.get(id, 0) + summary.nans + summary.infinities
    powers = [math.log10(size) for size in largest.values() if size > 0]
    low, high = min(powers, default=0.0), max(powers, default=0.0)
    found: dict[str, Mark] = {}
    for id, size in largest.items():
        if bad[id]:
            found[id] = Mark(f"{bad[id]:,} of the gradient not finite", 1.0)
        elif size == 0:
            found[id] = Mark("gradient 0", 0.0)
        else:
            share = (math.log10(size) - low) / (high - low) if high > low else 1.0
            found[id] = Mark(f"gradient {size:.2g}", 0.08 + 0.92 * share)
    return found
