"""A graph over a data set: pieces of it through workers, results into a folder, whatever happens meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from runtime.cluster import Done, Pool, Task, Tell
from runtime.datasets import DataSet
from runtime.errors import Finding, GraphError, StudioError
from runtime.feeds import kept_type, retyped
from runtime.graph import Graph
from runtime.guard import input_names
from runtime.hosting import Failure, Opening, Piece, Places, Range, Scored, Sight, versions
from runtime.shards import Made, Results, Skipped
from runtime.spans import Source, sampled_digest
from runtime.types import TensorType, ValueType

BATCH = 256
"""Rows that run together if nothing else is said."""
BATCHES_IN_A_SHARD = 16
MOST_WRITING = 4
"""Results that wait in memory until they are written, before whoever makes them waits, too."""
TOGETHER = 0.02
"""Seconds in which files that workers have written are gathered, to be put in place together."""
WAITING = 64
"""Files that wait to be put in place, before workers wait, too; half as many are put there together."""


Result = tuple[Done, Scored]
"""A task that is done, and what it gave."""


@dataclass(frozen=True, slots=True)
class Job:
    """A data set and how it is cut: `batch` rows run together, and `shard_rows` rows are a file of results."""

    data: DataSet
    batch: int
    shard_rows: int
    inputs: Mapping[str, ValueType]
    fixed: Mapping[str, np.ndarray]
    skip_bad: bool

    @property
    def shards(self) -> int:
        """How many files of results there will be."""
        return -(-self.data.rows // self.shard_rows)

    def rows_of(self, index: int) -> tuple[int, int]:
        """The first row of a file of results, and the row after its last."""
        return index * self.shard_rows, min((index + 1) * self.shard_rows, self.data.rows)

    def source(self) -> Source | None:
        """Where the rows of the inputs lie, if they can be read there."""
        source = self.data.source()
        if source is None:
            return None
        spans = {name: source.spans[name] for name in self.inputs if name in source.spans}
        typed = {name: replace(span, dtype=kept_type(span.dtype, self.inputs[name])) for name, span in spans.items()}
        return replace(source, spans=typed)


def job_of(
    graph: Graph,
    data: DataSet,
    fixed: Mapping[str, np.ndarray],
    batch: int | None = None,
    shard_rows: int | None = None,
    skip_bad: bool = False,
) -> Job:
    """The job of running a graph on a data set; `fixed` are inputs that are the same for all rows.

    GraphError if there is no data for an input, or if the graph's inputs have a fixed number of rows that is not a
    batch's.
    """
    names = input_names(graph)
    inputs = {name: _type_at(graph, id) for id, name in names.items()}
    if len(inputs) == 1 and data.names == ("",):
        raise GraphError(Finding("The array of a .npy file must be named after its input.", code="input"))
    missing = [name for name in inputs if name not in data.names and name not in fixed]
    if missing:
        there = f"The data has {', '.join(data.names)}."
        raise GraphError(
            Finding("There is no data for this input.", name, remedy=there, code="missing-input") for name in missing
        )
    declared = {
        type.shape[0]
        for name, type in inputs.items()
        if name not in fixed and isinstance(type, TensorType) and type.shape and isinstance(type.shape[0], int)
    }
    if len(declared) == 1:
        rows = declared.pop()
        if batch not in (None, rows):
            raise GraphError(
                Finding(
                    f"The graph's inputs have {rows} rows; a batch has {batch}.",
                    remedy=f"Use --batch {rows}.",
                    code="shape",
                )
            )
        batch = rows
    batch = batch or BATCH
    shard_rows = shard_rows or batch * BATCHES_IN_A_SHARD
    return Job(data, batch, -(-shard_rows // batch) * batch, inputs, fixed, skip_bad)


def described(file: Path, job: Job, opening: Opening, replaced: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What must be the same for a job to be taken up again, as plain data."""
    fixed = {name: sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16] for name, a in sorted(job.fixed.items())}
    return {
        "graph": sampled_digest(file)[:32],
        "data": {name: digest[:32] for name, digest in job.data.fingerprint().items()},
        "rows": job.data.rows,
        "batch": job.batch,
        "shard_rows": job.shard_rows,
        "inputs": fixed,
        "backend": opening.backend,
        "precision": opening.precision,
        "versions": versions(),
        **(replaced or {}),
    }


def score(
    job: Job, results: Results, pool: Pool, tell: Tell, cancel: threading.Event | None = None
) -> tuple[int, list[Skipped]]:
    """Does what is not done yet; returns how many rows were done, and all rows that were skipped.

    `tell` is called with events, plain data, which the log gets too. GraphError with the rows at fault if a batch fails
    and bad ones are not to be skipped; what was done stays. Cancelled within a batch after `cancel` is set.
    """

    rows, there = 0, len(results.done)

    def say(*events: dict[str, Any]) -> None:
        if events:
            results.log(*events)
        for event in events:
            tell(event)

    def told(batch: list[Result]) -> None:
        nonlocal rows, there
        events: list[dict[str, Any]] = []
        for done, scored in batch:
            start, stop = job.rows_of(done.task.index)
            there, rows = there + 1, rows + stop - start
            events += [{"event": "skipped", **asdict(skipped)} for skipped in scored.skipped]
            if scored.not_written:
                text = f"Worker {done.worker} sends its results, which it could not write: {scored.not_written}"
                events.append({"event": "warning", "message": text})
            facts = {"index": done.task.index, "rows": stop - start, "seconds": round(scored.seconds, 4)}
            events.append({"event": "shard", **facts, "worker": done.worker, "done": there, "of": job.shards})
        say(*events)

    begun = perf_counter()
    say({"event": "started", "rows": job.data.rows, "shards": job.shards, "done": there, "workers": pool.workers})
    source = job.source()
    pool.show(Places(source, results.place.absolute()), job.data.why_not_in_place)
    with _Writer(job, results) as writer:
        try:
            for done in pool.map(_tasks(job, results, source), cancel, job.shards - there):
                told(writer.add(done, _scored(done, *job.rows_of(done.task.index), job.skip_bad)))
            told(writer.rest())
        except BaseException:
            with suppress(StudioError):  # what is done is not lost, and the first error is the one that counts
                told(writer.rest())
            raise
    results.finish()
    everything = [skipped for _, shard in sorted(results.done.items()) for skipped in shard.skipped]
    say({"event": "finished", "rows": rows, "seconds": round(perf_counter() - begun, 3), "skipped": len(everything)})
    return rows, everything


class _Writer:
    """Puts results in place, in a thread of its own: while they go to the disk, nobody shall wait for work.

    Files that workers have written within `TOGETHER` seconds, or while others are put in place, are put there together.
    They do not become many on a slow disk: progress is told of what is in place, and whoever stops waits for the rest.
    """

    def __init__(self, job: Job, results: Results) -> None:
        self._job, self._results = job, results
        self._thread = ThreadPoolExecutor(1)
        self._coming: deque[Result] = deque()
        self._placing: deque[Future[list[Result]]] = deque()
        self._in_memory = 0
        self._hurry = threading.Event()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._hurry.set()
        self._thread.shutdown()

    def add(self, done: Done, scored: Scored) -> list[Result]:
        """Takes results, and gives those that are in place now. FileError if some could not be put there."""
        self._in_memory += not scored.file
        self._coming.append((done, scored))
        self._placing.append(self._thread.submit(self._place))
        placed: list[Result] = []
        while self._placing and (self._placing[0].done() or self._is_full):
            placed += self._next()
        return placed

    def rest(self) -> list[Result]:
        """Gives all that are not given yet, when they are in place."""
        self._hurry.set()
        placed: list[Result] = []
        while self._placing:
            placed += self._next()
        return placed

    @property
    def _is_full(self) -> bool:
        return self._in_memory > MOST_WRITING or len(self._coming) > WAITING

    def _next(self) -> list[Result]:
        placed = self._placing.popleft().result()
        self._in_memory -= sum(not scored.file for _, scored in placed)
        return placed

    def _place(self) -> list[Result]:
        if 0 < len(self._coming) < WAITING // 2 and not self._in_memory:
            self._hurry.wait(TOGETHER)
        batch = [self._coming.popleft() for _ in range(min(len(self._coming), WAITING // 2))]
        made: list[Made] = []
        try:
            for done, scored in batch:
                index = done.task.index
                file = scored.file or self._results.place.write(index, scored.outputs)
                made.append(Made(index, *self._job.rows_of(index), file, scored.per, scored.skipped))
        finally:
            self._results.add(made)
        return batch


def _tasks(job: Job, results: Results, source: Source | None) -> Iterator[Task]:
    """A task for each shard that is not there; data that is not needed is passed over."""
    missing = [index for index in range(job.shards) if index not in results.done]
    if source is not None:
        for index in missing:
            yield Task(index, "score", partial(_in_place, job, source, index))
    elif missing:
        pieces = job.data.pieces(job.shard_rows, missing[0] * job.shard_rows)
        for index, rows in enumerate(pieces, missing[0]):
            if index not in results.done:
                yield Task(index, "score", (_piece(job, index, rows), index))


def _in_place(job: Job, source: Source, index: int, sight: Sight) -> tuple[Piece | Range, int]:
    """What to do for a shard: a range for who can read it, rows for others."""
    start, stop = job.rows_of(index)
    if sight.reads:
        return Range(start, stop, job.batch, job.skip_bad), index
    return _piece(job, index, source.read(start, stop)), index


def _piece(job: Job, index: int, rows: Mapping[str, np.ndarray]) -> Piece:
    wanted = {name: retyped(rows[name], type) for name, type in job.inputs.items() if name in rows}
    return Piece(job.rows_of(index)[0], wanted, job.batch, job.skip_bad)


def _scored(done: Done, start: int, stop: int, skip_bad: bool) -> Scored:
    """What a task gave; GraphError if it failed, and is not to be skipped."""
    if isinstance(done.value, Scored):
        return done.value
    failure: Failure = done.value
    if failure.rows is None and failure.findings[0].code == "crash":
        failure = Failure(failure.findings, (start, stop), failure.details)
        if skip_bad:
            reason = "\n".join(map(str, failure.findings))
            return Scored({}, {}, (Skipped(start, stop, reason),), 0.0)
    raise failure.error()


def _type_at(graph: Graph, id: str) -> ValueType:
    from runtime.graph import PortRef

    return graph.checker.type_of(PortRef(id, "value"))
