"""What `qmoe run --data` and `--cluster` do: a data set through workers, a spread graph over them."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runtime.cluster import LOCAL, Cluster, Here, Pool, Tell, sentence
from runtime.datasets import open_data
from runtime.errors import Finding, GraphError
from runtime.graph import Graph, PortRef
from runtime.guard import input_names
from runtime.hosting import Opening
from runtime.interrupts import in_a_thread
from runtime.parts import parts_of
from runtime.reports import console, errors, given_values, opened
from runtime.scoring import described, job_of, score
from runtime.shards import LOG, MANIFEST, Results, Skipped
from runtime.spread import Spread

MOST_NAMED = 4
"""Workers that are named one by one where there is little room."""


def over_data(
    file: Path,
    *,
    data: Path,
    out: Path,
    inputs: Sequence[str],
    cluster: str | None,
    workers: int | None,
    batch: int | None,
    shard_rows: int | None,
    resume: bool,
    skip_bad: bool,
    backend: Any,
    precision: Any,
    threads: int | None,
    as_json: bool,
) -> None:
    """Runs a graph on a data set and writes its outputs into a folder, in the order of the data."""
    graph = opened(file)
    names = list(input_names(graph).values())
    types = {name: graph.checker.type_of(PortRef(id, "value")) for id, name in input_names(graph).items()}
    fixed = given_values(inputs, SimpleNamespace(inputs=types, optional=frozenset())) if inputs else {}
    rest = [name for name in names if name not in fixed]
    job = job_of(graph, open_data(data, rest[0] if len(rest) == 1 else ""), fixed, batch, shard_rows, skip_bad)
    opening = Opening(backend, threads, precision)
    shower = _Shower(as_json, job.data.rows)
    was_there = out.exists()
    results = Results(out, described(file, job, opening), resume)
    with ExitStack() as ends:
        ends.callback(results.close)

        def tell(event: dict[str, Any]) -> None:
            results.log(event)
            shower.tell(event)

        try:
            most = max(1, job.shards - len(results.done))
            pool = _pool(graph, cluster, workers, opening, fixed, tell, job.data.processors, most)
        except BaseException:
            ends.close()
            if not resume:
                _take_back(out, was_there, results.place.token)
            raise
        ends.callback(pool.close)
        cancel = threading.Event()
        try:
            with shower:
                rows, skipped = in_a_thread(cancel, score, job, results, pool, shower.tell, cancel)
        except KeyboardInterrupt:
            text = f"{len(results.done)} of {job.shards} files of results are in {out}; go on with --resume."
            errors.print(text, markup=False, soft_wrap=True)
            raise
    if not as_json:
        _summary(out, rows, job.data.rows, skipped)


def _take_back(out: Path, was_there: bool, token: str) -> None:
    """Leaves a folder of results, for which nothing was done, as it was: the mended command shall find it empty."""
    with suppress(OSError):
        for name in (MANIFEST, LOG, ".lock", token):
            (out / name).unlink(missing_ok=True)
        if not was_there:
            out.rmdir()


# -- workers ----------------------------------------------------------------------------------------------------------


def _pool(
    graph: Graph,
    cluster: str | None,
    workers: int | None,
    opening: Opening,
    fixed: Mapping[str, Any],
    tell: Tell,
    spare: int,
    most: int,
) -> Pool:
    """Who does the work: this process; workers that have the whole graph each; or those that have a part each."""
    if cluster is None:
        if workers is not None:
            raise GraphError(
                Finding("--workers are of a cluster.", remedy=f"Say which: --cluster {LOCAL}.", code="option")
            )
        return Here({"graph": graph}, opening, fixed)
    parts = parts_of(graph)
    if not parts:
        return Cluster(cluster, workers, [{"graph": graph}], opening, fixed, tell, spare, most)
    return Spread(graph, parts, cluster, workers, opening, fixed, tell, spare)


# -- showing ----------------------------------------------------------------------------------------------------------


class _Shower:
    """Events as JSON lines, or as a bar with rate, time left and what each worker did."""

    def __init__(self, as_json: bool, rows: int) -> None:
        self._as_json = as_json
        self._rows = rows
        self._bar: Any = None
        self._by_worker: dict[int, int] = {}

    def __enter__(self) -> _Shower:
        if not self._as_json and errors.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=errors, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("starting", total=self._rows)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def tell(self, event: Mapping[str, Any]) -> None:
        """Shows one event."""
        if self._as_json:
            print(json.dumps(event), flush=True)
            return
        kind = event["event"]
        if kind in ("worker lost", "skipped", "warning"):
            errors.print(sentence(event), markup=False, soft_wrap=True)
        if kind == "shard" and self._bar is not None:
            worker = int(event["worker"])
            self._by_worker[worker] = self._by_worker.get(worker, 0) + int(event["rows"])
            total = sum(self._by_worker.values())
            task = self._bar.tasks[0]
            rate = total / task.elapsed if task.elapsed else 0.0
            done = f"{event['done']} of {event['of']} files, {rate:,.0f} rows/s ({shares(self._by_worker)})"
            self._bar.update(self._task, completed=min(self._rows, task.completed + event["rows"]), description=done)


def shares(rows: Mapping[int, int]) -> str:
    """How many rows each worker did, in a few words however many workers there are."""
    if len(rows) <= MOST_NAMED:
        return ", ".join(f"worker {number}: {count:,}" for number, count in sorted(rows.items()))
    return f"{len(rows)} workers, {min(rows.values()):,} to {max(rows.values()):,} rows each"


def _summary(out: Path, rows: int, all_rows: int, skipped: Collection[Skipped]) -> None:
    text = f"{rows:,} rows done" if rows == all_rows else f"{rows:,} of {all_rows:,} rows done, the others were there"
    console.print(f"{text}. Written to {out}.", markup=False, soft_wrap=True)
    lost = sum(one.stop - one.start for one in skipped)
    if lost:
        console.print(
            f"{lost:,} rows are set aside; {out / 'manifest.json'} says which and why.", markup=False, soft_wrap=True
        )
