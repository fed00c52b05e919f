"""A spread graph that runs with the workers of a cluster, who have a part of it each."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count as counting
from time import perf_counter
from typing import Any

from runtime.backends.control import Progress
from runtime.cluster import Cluster, Done, Task, Tell
from runtime.errors import Cancelled, FileError, Finding, GraphError
from runtime.graph import Graph
from runtime.hosting import Failure, Found, Host, Opening, Places, Sight, failure
from runtime.parts import PartedSession, Steps, alone, parts_of
from runtime.session import Run

DEEP = 2
"""Batches under way: one whose tokens are with the workers, and one that is routed or put together here."""


class SpreadSession:
    """A spread graph that runs with the workers of a cluster; what `qmoe run` needs of a `Session`."""

    def __init__(self, graph: Graph, cluster: str, workers: int | None, opening: Opening) -> None:
        """GraphError if the graph is not spread."""
        parts = parts_of(graph)
        if not parts:
            raise GraphError(
                Finding(
                    "A single run has nothing to spread: the graph has no parts.",
                    remedy="Spread its experts (qmoe shard), or give a data set (--data).",
                    code="cluster",
                )
            )
        self._pool = Spread(graph, parts, cluster, workers, opening, {}, lambda event: None)
        self.inputs = self._pool.inputs
        self.optional: frozenset[str] = frozenset()
        self.findings: list[Finding] = []
        self.last_run = Run()

    def forward(
        self, feeds: Mapping[str, Any], *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> dict[str, Any]:
        """Runs the graph once; `progress` is not called. GraphError names the node that failed."""
        (done,) = self._pool.map([Task(0, "run", ("graph", feeds))], cancel)
        if isinstance(done.value, Failure):
            raise GraphError(done.value.findings)
        return dict(done.value)

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()


class Spread:
    """A pool that runs a spread graph: this process what is between the parts, and workers a part each, or several.

    Several batches are under way at the same time, so that nobody waits for the slowest step of one.
    """

    def __init__(
        self,
        graph: Graph,
        parts: Mapping[str, int],
        cluster: str,
        workers: int | None,
        opening: Opening,
        fixed: Mapping[str, Any],
        tell: Tell,
        spare: int = 0,
    ) -> None:
        """`parts` gives for the nodes that workers have the number of their part; else as of `Cluster`."""
        numbers = sorted(set(parts.values()))
        self.workers = min(workers or len(numbers), len(numbers))
        owners = {part: index % self.workers for index, part in enumerate(numbers)}
        self._owners = {node: owners[part] for node, part in parts.items()}
        graphs = [
            {node: alone(graph, node) for node, owner in self._owners.items() if owner == number}
            for number in range(self.workers)
        ]
        self._host = Host()
        self._host.prepare({}, opening, fixed)
        self._sight = Sight()
        self._cluster = Cluster(cluster, self.workers, graphs, opening, tell=tell, spare=spare)
        try:
            self._session = PartedSession(graph, parts, opening.backend, opening.threads, opening.precision)
        except BaseException:
            self._cluster.close()
            raise
        self.inputs = self._session.inputs

    def map(self, tasks: Iterable[Task], cancel: threading.Event | None = None, count: int = 0) -> Iterator[Done]:
        """Does tasks of the methods "score" and "run"; see `Pool`."""
        flow = Flow(self._session, self._host, self._owners, tasks, self._sight)
        while not flow.is_done:
            for done in self._cluster.map(flow, cancel):
                flow.take(done)
                yield from flow.finished()
            yield from flow.finished()
            if cancel is not None and cancel.is_set():
                raise Cancelled("cancelled")

    def show(self, places: Places, why_not_in_place: str = "") -> None:
        """Rows are read as they are needed; results are written by whoever asked for them."""
        self._sight = self._host.look(Places(places.source, None))["sight"]

    def share(self, value: Any) -> Any:
        """The value: workers are sent what is made of it."""
        return value

    def close(self) -> None:
        """Ends the workers."""
        self._cluster.close()


class _Job:
    """A task that is done batch by batch. `is_read` says that there are no more batches, `under_way` how many run."""

    def __init__(self, task: Task, sight: Sight) -> None:
        self.task = task
        self.is_read = False
        self.under_way = 0
        self._arguments = task.arguments_for(sight)
        self._outputs: Mapping[str, Any] | Failure = {}
        self._found = Found(self._arguments[0]) if task.method == "score" else None

    @property
    def has_failed(self) -> bool:
        """Whether its other batches need not be run."""
        return (self._found.failure is not None) if self._found is not None else isinstance(self._outputs, Failure)

    def batches(self, host: Host) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Batches and the numbers of their first rows. FileError if the data cannot be read, or has changed."""
        if self._found is not None:
            yield from host.batches(self._arguments[0])
        else:
            yield 0, self._arguments[1]

    def add(self, start: int, outputs: Mapping[str, Any], seconds: float) -> None:
        """Takes what a batch gave, and the seconds that it took beside others."""
        if self._found is not None:
            self._found.add(start, outputs)
            self._found.seconds += seconds
        elif not self.has_failed:
            self._outputs = outputs

    def add_error(self, start: int, error: Exception) -> None:
        """Takes why a batch could not be run."""
        if self._found is not None:
            self._found.add_error(start, error, True)
        elif not self.has_failed:
            self._outputs = failure(error)

    def fail(self, error: Exception) -> None:
        """Takes why there are no more batches."""
        self._outputs, self._found = failure(error), None

    def value(self) -> Any:
        """The result of the task."""
        return self._outputs if self._found is None else self._found.scored()


@dataclass(slots=True)
class _Batch:
    """Rows of a job on their way through the graph; `missing` of the `results` of its last calls are still to come."""

    job: _Job
    start: int
    steps: Steps
    begun: float
    results: list[Mapping[str, Any]] = field(default_factory=list)
    missing: int = 0
    has_ended: bool = False


class Flow(Iterator[Task]):
    """Batches on their way through a spread graph, `DEEP` at a time: gives the calls of workers, and takes the results.

    Ends where there is nothing to call until a result is taken, and goes on after that.
    """

    def __init__(
        self, session: PartedSession, host: Host, owners: Mapping[str, int], tasks: Iterable[Task], sight: Sight
    ) -> None:
        """`owners` are the workers who have the nodes that run elsewhere; `sight` is what `host` sees."""
        self._session, self._host, self._owners = session, host, owners
        self._batches = self._read(tasks, sight)
        self._is_read = False
        self._calls: deque[Task] = deque()
        self._called: dict[int, tuple[_Batch, int]] = {}
        self._numbers = counting()
        self._under_way = 0
        self._done: list[Done] = []
        self._last = 0.0

    @property
    def is_done(self) -> bool:
        """Whether all tasks are done, and their results given."""
        return self._is_read and not self._under_way and not self._done

    def __next__(self) -> Task:
        while not self._calls:
            if self._under_way >= DEEP or self._done:
                raise StopIteration
            batch = next(self._batches, None)
            if batch is None:
                self._is_read = True
                raise StopIteration
            self._advance(batch)
        return self._calls.popleft()

    def take(self, done: Done) -> None:
        """Takes what a call gave."""
        batch, place = self._called.pop(done.task.index)
        if batch.has_ended:
            return
        if isinstance(done.value, Failure):
            self._end(batch, GraphError(done.value.findings))
            return
        batch.results[place] = done.value
        batch.missing -= 1
        if not batch.missing:
            self._advance(batch)

    def finished(self) -> Iterator[Done]:
        """The tasks that are done since this was asked last."""
        while self._done:
            yield self._done.pop(0)

    def _read(self, tasks: Iterable[Task], sight: Sight) -> Iterator[_Batch]:
        for task in tasks:
            job = _Job(task, sight)
            try:
                for start, feeds in job.batches(self._host):
                    job.under_way += 1
                    self._under_way += 1
                    yield _Batch(job, start, self._session.steps(feeds), perf_counter())
                    if job.has_failed:
                        break
            except FileError as error:
                job.fail(error)
            job.is_read = True
            self._finish(job)

    def _advance(self, batch: _Batch) -> None:
        """Runs a batch here as far as its next calls, or to its end."""
        try:
            calls = batch.steps.send(batch.results) if batch.results else next(batch.steps)
        except StopIteration as end:
            self._end(batch, None, end.value)
            return
        except Exception as error:
            self._end(batch, error)
            return
        batch.results, batch.missing = [{}] * len(calls), len(calls)
        for place, (node, feeds) in enumerate(calls):
            number = next(self._numbers)
            self._called[number] = batch, place
            self._calls.append(Task(number, "run", (node, feeds), self._owners[node]))

    def _end(self, batch: _Batch, error: Exception | None, outputs: Mapping[str, Any] | None = None) -> None:
        batch.has_ended = True
        self._under_way -= 1
        job, now = batch.job, perf_counter()
        job.under_way -= 1
        if error is not None:
            batch.steps.close()
            for task in [task for task in self._calls if self._called[task.index][0] is batch]:
                self._calls.remove(task)
                del self._called[task.index]
            job.add_error(batch.start, error)
        elif outputs is not None:
            job.add(batch.start, outputs, now - max(batch.begun, self._last))
        self._last = now
        self._finish(job)

    def _finish(self, job: _Job) -> None:
        if job.is_read and not job.under_way:
            self._done.append(Done(job.task, job.value(), 0))
