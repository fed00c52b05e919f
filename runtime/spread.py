"""A spread graph that runs with the workers of a cluster, who have a part of it each."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
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

DEEP = 3
"""Batches under way: one with the workers, one on its way, and one that is routed or put together here."""


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
        self._found = Found(self._arguments[0]) if task.method == "score" else None
        self._outputs: Mapping[str, Any] = {}
        self._failure: Failure | None = None

    @property
    def failure(self) -> Failure | None:
        """Why its other batches need not be run."""
        return self._failure or (self._found.failure if self._found is not None else None)

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come of it."""
        return self.is_read and not self.under_way

    def batches(self, host: Host) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Batches and the numbers of their first rows. FileError if the data cannot be read, or has changed."""
        if self._found is not None:
            yield from host.batches(self._arguments[0])
        else:
            yield 0, self._arguments[1]

    def add(self, start: int, outputs: Mapping[str, Any], seconds: float) -> None:
        """Takes what a batch gave, and the seconds that it took beside others."""
        if self._found is None:
            self._outputs = outputs
        else:
            self._found.add(start, outputs)
            self._found.seconds += seconds

    def add_failure(self, start: int, failed: Failure) -> None:
        """Takes why a batch could not be run."""
        if self._found is not None:
            self._found.add_failure(start, failed)
        else:
            self._failure = failed

    def stop(self, failed: Failure) -> None:
        """Takes why there are no more batches."""
        self._failure = failed

    def value(self) -> Any:
        """The result of the task."""
        return self.failure or (self._found.scored() if self._found is not None else self._outputs)


@dataclass(slots=True)
class _Batch:
    """Rows of a job on their way through the graph.

    `results` are those of its last calls, of which some are `missing`; there are none before it has begun. `called` are
    calls that workers have, also after it has ended.
    """

    job: _Job
    start: int
    steps: Steps
    begun: float
    results: list[Mapping[str, Any]] = field(default_factory=list)
    missing: int = 0
    called: int = 0
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
        self._calls: deque[tuple[_Batch, int, Task]] = deque()
        self._called: dict[int, tuple[_Batch, int]] = {}
        self._numbers = counting()
        self._under_way = 0
        self._jobs: list[_Job] = []
        self._last = 0.0

    @property
    def is_done(self) -> bool:
        """Whether all tasks are done, and their results given."""
        return self._is_read and not self._under_way and not self._jobs

    def __next__(self) -> Task:
        while not self._calls:
            if self._under_way >= DEEP or any(job.is_done for job in self._jobs):
                raise StopIteration
            batch = next(self._batches, None)
            if batch is None:
                self._is_read = True
                raise StopIteration
            self._advance(batch)
        batch, place, task = self._calls.popleft()
        batch.called += 1
        self._called[task.index] = batch, place
        return task

    def take(self, done: Done) -> None:
        """Takes what a call gave."""
        batch, place = self._called.pop(done.task.index)
        batch.called -= 1
        if batch.has_ended:
            self._leave(batch)
        elif isinstance(done.value, Failure):
            node = done.task.arguments_for(Sight())[0]
            findings = tuple(one if one.node else replace(one, node=node) for one in done.value.findings)
            self._end(batch, replace(done.value, findings=findings))
        else:
            batch.results[place] = done.value
            batch.missing -= 1
            if not batch.missing:
                self._advance(batch)

    def finished(self) -> Iterator[Done]:
        """The tasks that are done since this was asked last; one that failed not before those that come before it."""
        for job in list(self._jobs):
            if job.is_done and (job.failure is None or job is self._jobs[0]):
                self._jobs.remove(job)
                yield Done(job.task, job.value(), 0)

    def _read(self, tasks: Iterable[Task], sight: Sight) -> Iterator[_Batch]:
        for task in tasks:
            job = _Job(task, sight)
            self._jobs.append(job)
            try:
                for start, feeds in job.batches(self._host):
                    job.under_way += 1
                    self._under_way += 1
                    yield _Batch(job, start, self._session.steps(feeds), perf_counter())
                    if job.failure is not None:
                        break
            except FileError as error:
                job.stop(failure(error))
            job.is_read = True

    def _advance(self, batch: _Batch) -> None:
        """Runs a batch here as far as its next calls, or to its end."""
        try:
            calls = batch.steps.send(batch.results) if batch.results else next(batch.steps)
        except StopIteration as end:
            self._end(batch, end.value)
            return
        except Exception as error:
            self._end(batch, failure(error))
            return
        batch.results, batch.missing = [{}] * len(calls), len(calls)
        for place, (node, feeds) in enumerate(calls):
            self._calls.append((batch, place, Task(next(self._numbers), "run", (node, feeds), self._owners[node])))

    def _end(self, batch: _Batch, outputs: Mapping[str, Any] | Failure) -> None:
        batch.has_ended = True
        job, now = batch.job, perf_counter()
        if isinstance(outputs, Failure):
            batch.steps.close()
            self._calls = deque(call for call in self._calls if call[0] is not batch)
            job.add_failure(batch.start, outputs)
        else:
            job.add(batch.start, outputs, now - max(batch.begun, self._last))
        self._last = now
        job.under_way -= 1
        self._leave(batch)

    def _leave(self, batch: _Batch) -> None:
        """Makes room for another batch when no worker has anything of this one any more."""
        if not batch.called:
            self._under_way -= 1
