"""What `qmoe snippet` does: looks over pictures, and mutates them."""

from __future__ import annotations

import faulthandler
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from runtime.diff import diff
from runtime.drawing.picture import save_picture
from runtime.errors import FileError, GraphError
from runtime.files import PICTURES, YAML, load
from runtime.reports import console, errors, opened
from runtime.snippets.fuzz import SLOW, fuzz
from runtime.snippets.pictures import load_picture, read_picture


@dataclass(frozen=True, slots=True)
class Checked:
    """One picture: whether its graph loads, equals the snippet of the same name, and belongs to these pixels.

    `twin` and `picture` are None where that cannot be told. `problems` says in sentences what is wrong.
    """

    file: str
    loads: bool
    twin: bool | None
    picture: bool | None
    source: str
    problems: list[str]


def check(files: Sequence[Path], as_json: bool) -> bool:
    """Prints a line for each picture, also for those in folders; True if something is wrong with one."""
    checked = [_check(file) for file in _pictures(files)]
    if as_json:
        print(json.dumps([asdict(one) for one in checked], indent=2))
        return any(one.problems for one in checked)
    table = Table(box=None, pad_edge=False)
    for heading in ("picture", "graph", "snippet", "pixels"):
        table.add_column(heading, overflow="fold")  # names are cut in two, not off
    for one in checked:
        table.add_row(
            one.file,
            f"from the {one.source}" if one.loads else "none",
            {None: "", True: "equal", False: "different"}[one.twin],
            {None: "", True: "as saved", False: "changed"}[one.picture],
        )
    console.print(table)
    for one in checked:
        for problem in one.problems:
            console.print(f"  {one.file}: {problem}", markup=False, soft_wrap=True)
    return any(one.problems for one in checked)


def render(file: Path, destination: Path, theme: str, scale: float, nodes: Sequence[str] | None) -> None:
    """Draws a graph, or some of its nodes, into a .png file that carries it."""
    if destination.suffix.lower() != ".png":
        raise FileError(destination, "a picture is written as .png.", code="name")
    for note in save_picture(opened(file), destination, nodes=nodes or None, theme=theme, scale=scale):
        errors.print(f"{destination}: {note}", markup=False, soft_wrap=True)
    console.print(f"{file} -> {destination} ({destination.stat().st_size:,} bytes)", markup=False, soft_wrap=True)


def _pictures(files: Sequence[Path]) -> Iterator[Path]:
    """The files, and those in folders that may be snippets: a folder's other pictures do not count."""
    for file in files:
        if file.is_dir():
            found = sorted(path for path in file.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
            yield from (path for path in found if _twin(path) is not None or _has_graph(path))
        else:
            yield file


def _has_graph(path: Path) -> bool:
    """Whether there is a graph in a picture, be it damaged."""
    try:
        load_picture(path)
    except FileError as error:
        return error.code != "no-graph"
    except GraphError:
        return True
    return True


def _twin(path: Path) -> Path | None:
    """The snippet beside a picture that has its name."""
    return next((twin for end in YAML if (twin := path.with_suffix(end)).is_file()), None)


def _check(path: Path) -> Checked:
    try:
        loaded = load_picture(path)
    except (FileError, GraphError) as error:
        message = error.message if isinstance(error, FileError) else str(error)
        return Checked(str(path), False, None, None, "", [message])
    problems = [str(finding) for finding in loaded.findings]
    twin, equal = _twin(path), None
    if twin is not None:
        try:
            changes = diff(load(twin), loaded.graph)
        except (FileError, GraphError) as error:
            problems.append(f"{twin.name} cannot be compared: {error}")
        else:
            equal = not changes
            problems += [f"differs from {twin.name}: {change}" for change in changes]
    return Checked(str(path), True, equal, not loaded.changed, loaded.source, problems)


def fuzz_files(files: Sequence[Path], count: int, seed: int, keep: Path | None, as_json: bool) -> bool:
    """Mutates pictures and prints how loading them ended; True if one did not end well."""
    from rich.progress import Progress

    sources = [read_picture(file) for file in files]
    try:
        if errors.is_terminal:
            with Progress(console=errors, transient=True) as bar:
                task = bar.add_task("loading", total=count)

                def show(number: int) -> None:
                    _watch(number)
                    bar.update(task, completed=number + 1)

                report = fuzz(sources, count, seed, show)
        else:
            report = fuzz(sources, count, seed, _watch)
    finally:
        faulthandler.cancel_dump_traceback_later()
    if keep is not None and report.failures:
        keep.mkdir(parents=True, exist_ok=True)
        for failure in report.failures:
            (keep / f"{seed}-{failure.number}-{failure.mutation}.bin").write_bytes(failure.data)
    rate = count / report.seconds if report.seconds else 0.0
    loaded, refused = report.loaded.total(), report.refused.total()
    if as_json:
        facts = {
            "loaded": loaded,
            "refused": refused,
            "failures": [
                {"number": failure.number, "mutation": failure.mutation, "problem": failure.problem}
                for failure in report.failures
            ],
            "seconds": report.seconds,
            "slowest": report.slowest,
            "growth": report.growth,
        }
        print(json.dumps(facts, indent=2))
        return bool(report.failures)
    table = Table("mutation", "loaded", "refused", "failed", box=None, pad_edge=False)
    for name in sorted(report.loaded.keys() | report.refused.keys() | {one.mutation for one in report.failures}):
        failed = sum(failure.mutation == name for failure in report.failures)
        table.add_row(name, f"{report.loaded[name]:,}", f"{report.refused[name]:,}", f"{failed:,}")
    table.add_row("sum", f"{loaded:,}", f"{refused:,}", f"{len(report.failures):,}")
    console.print(table)
    console.print(
        f"{report.seconds:.0f} s, {rate:,.0f} a second; the slowest took {report.slowest:.2f} s; "
        f"memory grew by {report.growth >> 20:,} MiB at most"
    )
    for failure in report.failures[:20]:
        console.print(f"  {failure.number} ({failure.mutation}): {failure.problem}", markup=False, soft_wrap=True)
    return bool(report.failures)


def _watch(number: int) -> None:
    """Ends the process, and says where it was, if the next load never ends."""
    if number % 100 == 0 and sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(100 * SLOW, exit=True, file=sys.__stderr__)
