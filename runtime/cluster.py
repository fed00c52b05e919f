"""Workers on many machines, by Ray: work is done exactly once, in any order, whichever of them die meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Protocol

from runtime.connecting import LOCAL, connect, first_line, processors
from runtime.errors import Cancelled, Finding, GraphError
from runtime.graph import Graph
from runtime.hosting import Failure, Host, NotPrepared, Opening, Places, Rows, Sight, versions

AHEAD = 2
"""Calls that a worker has at a time: one that it does, and one whose data is on its way."""
ATTEMPTS = 3
"""Workers that may die at a task before it is held to be the task's fault."""
AT_ONCE = 0.2
"""Seconds of work that make one call, and after which a worker gives back what it has not begun of it."""
WORTH_A_CALL = 0.02
"""Seconds of work from which on a call is worth its two milliseconds of everybody's processors."""
UNTRIED = 16
"""Tasks that a worker is given at once at most while nobody knows how long one takes."""
GROWTH = 5.0
"""Seconds between looks for machines that have joined the cluster."""
PATIENCE = 60.0
"""Seconds after which a job ends that no worker is there for."""


@dataclass(slots=True)
class Task:
    """One call of a method of `Host`. `owner` is the worker who must do it, where not any may.

    `arguments` may depend on what the worker sees.
    """

    index: int
    method: str
    arguments: tuple[Any, ...] | Callable[[Sight], tuple[Any, ...]] = field(repr=False)
    owner: int | None = None
    deaths: int = 0

    def arguments_for(self, sight: Sight) -> tuple[Any, ...]:
        """The arguments of the call to a worker."""
        return self.arguments(sight) if callable(self.arguments) else self.arguments


@dataclass(frozen=True, slots=True)
class Done:
    """What a task gave, and which worker did it."""

    task: Task
    value: Any = field(repr=False)
    worker: int


Tell = Callable[[dict[str, Any]], None]


class Pool(Protocol):
    """Whoever does tasks."""

    workers: int

    def map(self, tasks: Iterable[Task], cancel: threading.Event | None = None, count: int = 0) -> Iterator[Done]:
        """Does tasks, which are taken as there is room, and gives each result once, in any order.

        `count` is how many there are, 0 if nobody knows.
        """

    def show(self, places: Places, why_not_in_place: str = "") -> None:
        """Lets workers see a job's places for themselves; their tasks are made for what they see."""

    def share(self, value: Any) -> Any:
        """Stands for a value that several tasks have among their arguments, so that it is sent once."""

    def close(self) -> None:
        """Ends the workers."""


class Here:
    """One worker in this process: the pool of a job without a cluster."""

    workers = 1

    def __init__(self, graphs: Mapping[str, Graph], opening: Opening, fixed: Rows | None = None) -> None:
        self._host = Host()
        self._host.prepare(graphs, opening, fixed)
        self._sight = Sight()

    def map(self, tasks: Iterable[Task], cancel: threading.Event | None = None, count: int = 0) -> Iterator[Done]:
        """Does tasks one after the other."""
        if cancel is not None:
            self._host.cancel = cancel
        for task in tasks:
            if cancel is not None and cancel.is_set():
                raise Cancelled("cancelled")
            yield Done(task, getattr(self._host, task.method)(*task.arguments_for(self._sight)), 0)

    def show(self, places: Places, why_not_in_place: str = "") -> None:
        """Rows are read as they are needed; results are written beside the work, by whoever asked for it."""
        self._sight = self._host.look(Places(places.source, None))["sight"]

    def share(self, value: Any) -> Any:
        """The value: nothing is sent."""
        return value

    def close(self) -> None:
        """There is nothing to end."""


@dataclass(slots=True)
class _Worker:
    """A worker as this side knows it. `ping` is a call that it answers when it is there (again), `process` is where it
    was when it last did; 0 if it is known to be gone."""

    number: int
    actor: Any
    opening: Opening
    graphs: Any
    process: int = 0
    was_there: bool = False
    sight: Sight = field(default_factory=Sight)
    ping: Any = None
    called: float = 0.0
    under_way: deque[Any] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class _Call:
    """Tasks that a worker has; `is_timed` says that it may give some back, and tells how long the others took."""

    worker: _Worker
    tasks: list[Task]
    is_timed: bool


@dataclass(slots=True)
class _Work:
    """Where a round of tasks stands. `left` are those still to come, 0 or less if nobody knows; `more` says whether
    there was one when one was last looked for; `seconds` is how long one takes, as far as one knows."""

    source: Iterator[Task]
    left: int
    more: bool = True
    seconds: float = 0.0
    returned: deque[Task] = field(default_factory=deque)
    again: deque[Task] = field(default_factory=deque)
    under_way: dict[Any, _Call] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to do or to wait for."""
        return not (self.more or self.returned or self.again or self.under_way)

    def take(self) -> Task | None:
        """The next task; None if there is none now."""
        task = self.returned.popleft() if self.returned else next(self.source, None)
        self.more = task is not None
        if self.more:
            self.left -= 1
        return task

    def put_back(self, tasks: Sequence[Task]) -> None:
        """Takes back tasks that nobody has begun, to be done next."""
        self.returned.extendleft(reversed(tasks))
        self.left += len(tasks)


class Cluster:
    """Workers on Ray, each a process with a `Host`.

    A worker that dies is started again by Ray, also on another machine; meanwhile the others do its tasks. Where no
    number of workers was asked for, machines that join later get some, too. `tell` is called with what happens to
    workers. GraphError if Ray is not installed or not reachable, if there are too few processors, or if a worker has
    other versions of what decides about numbers; of one that joined later, that is only told.
    """

    def __init__(
        self,
        address: str,
        workers: int | None,
        graphs: Sequence[Mapping[str, Graph]],
        opening: Opening,
        fixed: Rows | None = None,
        tell: Tell | None = None,
        spare: int = 0,
        most: int | None = None,
    ) -> None:
        """`graphs` has those of each worker, or those of all in one entry; `spare` processors are left for others.

        No more workers than `most` are started: those for whom there is work. If more were asked for, that is told.

        `workers` None are as many as there are processors. A worker uses `opening.threads` of them; None is an equal
        share of this machine's on a local cluster, and 1 on others.
        """
        if workers is not None and workers < 1:
            raise GraphError(Finding(f"expected 1 worker at least; {workers} came.", code="option"))
        self._tell = tell or (lambda event: None)
        asked = workers
        workers = min(workers, most) if workers and most else workers
        own = processors()
        threads = opening.threads or (max(1, own // (asked or own)) if address == LOCAL else 1)
        self._workers: list[_Worker] = []
        self._places: Places | None = None
        self._spare, self._most = spare, most
        self._grows = asked is None and address != LOCAL and len(graphs) == 1
        self._looked = perf_counter()
        self._numbers = self._refused = 0
        self._told: set[str] = set()
        self._ray = connect(address, (workers or max(1, own // threads)) * threads + spare)
        try:
            there = int(self._ray.cluster_resources().get("CPU", 0)) - spare
            self.workers = workers or max(1, min(there // threads, most or there))
            if asked and self.workers < asked:
                self._tell({"event": "warning", "message": _fewer(self.workers)})
            self._first = self.workers
            self._check_room(address, threads, there)
            self._start(graphs, replace(opening, threads=threads), fixed)
            self._wait_for_one()
        except BaseException:
            self.close()
            raise

    def _start(self, graphs: Sequence[Mapping[str, Graph]], opening: Opening, fixed: Rows | None) -> None:
        ray = self._ray
        self._opening = opening
        self._shared = [ray.put(dict(one)) for one in graphs]
        self._given = ray.put(dict(fixed or {}))
        self._actor_type = ray.remote(Host)
        gpus = int(ray.cluster_resources().get("GPU", 0))
        for _ in range(self.workers):
            self._add(gpus)

    def _add(self, gpus: int) -> None:
        """Has Ray start one more worker, who takes part when it answers."""
        number, self._numbers = self._numbers, self._numbers + 1
        own = replace(self._opening, use_gpu=sum(one.opening.use_gpu for one in self._workers) < gpus)
        options = {
            "num_cpus": own.threads,
            "num_gpus": 1 if own.use_gpu else 0,
            "max_restarts": -1,
            "scheduling_strategy": "SPREAD",
        }
        actor = self._actor_type.options(**options).remote()
        worker = _Worker(number, actor, own, self._shared[number % len(self._shared)])
        self._workers.append(worker)
        self._call(worker)

    def _grow(self) -> None:
        """Adds workers for processors that have joined the cluster, and gives up those whose processors have left.

        None is added while one is still to come: others may have the processors that it waits for.
        """
        now = perf_counter()
        if not self._grows or now - self._looked < GROWTH:
            return
        self._looked = now
        resources = self._ray.cluster_resources()
        there = int(resources.get("CPU", 0)) - self._spare
        room = there // (self._opening.threads or 1) - self._refused
        more = min(room, self._most or room) - len(self._workers)
        if more > 0 and all(worker.process for worker in self._workers):
            for _ in range(more):
                self._add(int(resources.get("GPU", 0)))
        absent = [one for one in self._workers if one.number >= self._first and not one.process and not one.under_way]
        for worker in absent[: max(0, -more)]:  # it would take processors that somebody else works with
            self._remove(worker)

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        with suppress(Exception):  # it may be gone already
            self._ray.kill(worker.actor)

    # -- tasks ----------------------------------------------------------------------------------------------------

    def map(self, tasks: Iterable[Task], cancel: threading.Event | None = None, count: int = 0) -> Iterator[Done]:
        """Does tasks. One at which workers die again and again gives a `Failure`.

        Tasks may run out, and go on when a result was taken. Those who have an owner are taken also when that one has
        no room, to find one for another who has.
        """
        work = _Work(iter(tasks), count)
        try:
            while True:
                self._grow()
                self._hand_out(work)
                if work.is_done:
                    return
                pings = {worker.ping: worker for worker in self._workers if worker.ping is not None}
                ready, _ = self._ray.wait([*work.under_way, *pings], num_returns=1, timeout=0.2)
                if cancel is not None and cancel.is_set():
                    raise Cancelled("cancelled")
                for reference in ready:
                    if reference in pings:
                        self._greet(pings[reference])
                    else:
                        yield from self._taken_in(reference, work)
                self._check_presence(work.again)
        finally:
            for worker in self._workers:
                worker.under_way.clear()

    def show(self, places: Places, why_not_in_place: str = "") -> None:
        """Asks workers what they see of a job's places, and tells what they do not."""
        if places.source is None:
            text = f"Workers cannot read their rows themselves, and are sent them: {why_not_in_place}."
            self._tell({"event": "warning", "message": text})
        self._places = places
        for worker in self._workers:
            if worker.process and worker.ping is None:
                worker.called = perf_counter()
                worker.ping = worker.actor.look.remote(places)
            else:
                self._call(worker)

    def share(self, value: Any) -> Any:
        """Puts a value where all workers can read it, for as long as a task has it."""
        return self._ray.put(value)

    def _hand_out(self, work: _Work) -> None:
        """Gives tasks to workers with room for them, evenly."""
        for ahead in range(AHEAD):
            for worker in self._workers:
                if worker.ping is not None or len(worker.under_way) > ahead:
                    continue
                tasks = self._next(worker, work)
                if not tasks:
                    continue
                calls = [(task.method, task.arguments_for(worker.sight)) for task in tasks]
                if worker.sight.reads:
                    reference = worker.actor.several.remote(calls, AT_ONCE)
                else:  # arguments may be shared values, which Ray only finds at the top
                    ((method, arguments),) = calls
                    reference = getattr(worker.actor, method).remote(*arguments)
                worker.under_way.append(reference)
                work.under_way[reference] = _Call(worker, tasks, worker.sight.reads)

    def _next(self, worker: _Worker, work: _Work) -> list[Task]:
        """What a worker does next: what has to be done again, or the next tasks."""
        task = next((one for one in work.again if one.owner in (None, worker.number)), None)
        if task is not None:
            if task.deaths and worker.under_way:
                return []  # it may kill the worker, and nothing else shall die with it
            work.again.remove(task)
            return [task]
        tasks: list[Task] = []
        at_once = self._at_once(worker, work)
        while len(tasks) < at_once:
            task = work.take()
            if task is None:
                break
            if task.owner in (None, worker.number):
                tasks.append(task)
            else:
                work.again.append(task)
        return tasks

    def _at_once(self, worker: _Worker, work: _Work) -> int:
        """How many tasks make one call: several short ones, but fewer towards the end, so that nobody waits for one.

        They are not so few, though, that the call costs more than it is worth. A worker who is sent its rows gets one
        task, for memory's sake.
        """
        if not worker.sight.reads:
            return 1
        share = work.left // (AHEAD * self.workers)
        if not work.seconds:
            return max(1, min(UNTRIED, share))
        return max(1, min(int(AT_ONCE / work.seconds), max(int(WORTH_A_CALL / work.seconds), share)))

    def _taken_in(self, reference: Any, work: _Work) -> Iterator[Done]:
        call = work.under_way.pop(reference)
        worker, tasks = call.worker, call.tasks
        was_first = bool(worker.under_way) and worker.under_way[0] == reference
        with suppress(ValueError):
            worker.under_way.remove(reference)
        try:
            found = self._ray.get(reference)
            values = [found]
            if call.is_timed:
                values, seconds = found
                work.seconds = seconds / len(values)
                work.put_back(tasks[len(values) :])
                tasks = tasks[: len(values)]
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, NotPrepared):
                self._lose(worker, tasks, "it was started again")
                work.again.extend(tasks)
                return
            # a mistake of ours in `Host`
            failed = Failure((Finding(f"Something went wrong on a worker: {error.cause}", code="internal"),))
            values = [failed] * len(tasks)
        except (self._ray.exceptions.RayError, OSError) as error:
            self._lose(worker, tasks, first_line(error))
            for task in tasks:
                task.deaths += was_first
                if task.deaths < ATTEMPTS:
                    work.again.append(task)
                    continue
                text = f"{task.deaths} workers died at this: {first_line(error)}"
                remedy = "Look into Ray's logs for the reason."
                yield Done(task, Failure((Finding(text, remedy=remedy, code="crash"),)), worker.number)
            return
        for task, value in zip(tasks, values, strict=True):
            yield Done(task, value, worker.number)

    def _lose(self, worker: _Worker, tasks: Sequence[Task], error: str) -> None:
        """Tells that a worker died before some tasks were done, and waits for who is started in its place."""
        if worker.ping is None:
            worker.process = 0
            self._call(worker)
        facts = {"worker": worker.number, "task": tasks[0].index, "tasks": len(tasks), "error": error}
        self._tell({"event": "worker lost", **facts})

    def _call(self, worker: _Worker) -> None:
        """Asks a worker to get ready: it answers when it has started, or started again."""
        worker.called = perf_counter()
        worker.ping = worker.actor.prepare.remote(worker.graphs, worker.opening, self._given, self._places)

    def _greet(self, worker: _Worker) -> None:
        """Lets a worker that has started take part; one that is gone for good is made anew by Ray, or given up."""
        reference, worker.ping = worker.ping, None
        try:
            facts = self._ray.get(reference)
        except self._ray.exceptions.ActorUnavailableError:
            self._call(worker)
            return
        except self._ray.exceptions.RayError as error:
            if not worker.process:
                self._refuse(worker, _no_start(error))
                return
            worker.process = 0  # it was there when it was asked
            self._call(worker)
            return
        if "versions" in facts and (wrong := _other_version(facts)) is not None:
            self._refuse(worker, wrong)
            return
        if worker.process != facts["process"]:
            self._tell({"event": "worker", "worker": worker.number, "host": facts["host"], "process": facts["process"]})
        for trouble in facts["sight"].troubles:
            if trouble not in worker.sight.troubles:
                self._tell({"event": "warning", "message": f"Worker {worker.number} on {facts['host']} {trouble}."})
        worker.process, worker.sight, worker.was_there = facts["process"], facts["sight"], True
        self.workers = max(self.workers, sum(bool(one.process) for one in self._workers))

    def _refuse(self, worker: _Worker, error: GraphError) -> None:
        """Raises why a worker cannot take part. Where machines come and go, that is only told of one of them."""
        is_new = worker.number >= self._first or worker.was_there
        if not (self._grows and is_new and len(self._workers) > 1):
            raise error
        self._remove(worker)
        self._refused += 1
        text = f"A worker that joined is not taken: {error}"
        if text not in self._told:
            self._told.add(text)
            self._tell({"event": "warning", "message": text})

    def _check_presence(self, again: Iterable[Task]) -> None:
        """GraphError if nobody is there for too long, or not the worker who alone can do a task."""
        late = [worker.ping is not None and perf_counter() - worker.called > PATIENCE for worker in self._workers]
        if all(late):
            raise _absent(f"No worker has been there for {PATIENCE:.0f} seconds.")
        for task in again:
            if task.owner is not None and late[task.owner]:
                raise _absent(
                    f"Worker {task.owner}, who has a part of the graph, has been away for {PATIENCE:.0f} seconds."
                )

    # -- starting and ending ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends the workers, and with them a cluster that was only there for the job."""
        for worker in self._workers:
            with suppress(Exception):  # Ray may be gone already
                self._ray.kill(worker.actor)
        self._ray.shutdown()

    def _wait_for_one(self) -> None:
        """Waits until a worker is there; the others come when they come."""
        while all(worker.ping is not None for worker in self._workers):
            pings = {worker.ping: worker for worker in self._workers}
            ready, _ = self._ray.wait(list(pings), num_returns=1, timeout=1)
            for reference in ready:
                self._greet(pings[reference])
            self._check_presence(())

    def _check_room(self, address: str, threads: int, there: int) -> None:
        workers = self.workers
        if there < workers * threads:
            raise GraphError(
                Finding(
                    f"{workers} workers with {threads} threads each need {workers * threads} processors; the cluster "
                    f"at {address} has {max(0, there)} for them.",
                    remedy="Ask for fewer workers (--workers) or threads (--threads).",
                    code="cluster",
                )
            )


def sentence(event: Mapping[str, Any]) -> str:
    """What happened, for people."""
    match event["event"]:
        case "worker":
            return f"Worker {event['worker']} is there: {event['host']}, process {event['process']}."
        case "finished":
            return f"Finished: {event['rows']:,} rows in {event['seconds']:g} s, {event['skipped']} batches set aside."
        case "worker lost":
            return f"Worker {event['worker']} is lost ({event['error']}); its work is done again."
        case "skipped":
            return f"Rows {event['start']} to {event['stop'] - 1} are set aside: {event['reason']}"
    return str(event.get("message", event))


def _fewer(workers: int) -> str:
    there = "1 worker starts" if workers == 1 else f"{workers} workers start"
    return f"Only {there}: there is no work for more at the same time."


def _absent(message: str) -> GraphError:
    remedy = "Look whether the cluster's machines are up (ray status); then resume."
    return GraphError(Finding(message, remedy=remedy, code="cluster"))


def _other_version(facts: Mapping[str, Any]) -> GraphError | None:
    own, its = versions(), facts["versions"]
    for name in own:
        if own[name] != its.get(name):
            return GraphError(
                Finding(
                    f"The worker on {facts['host']} has {name} {its.get(name)}; here is {own[name]}, and numbers "
                    "must be the same everywhere.",
                    remedy="Install the same version on every machine.",
                    code="cluster",
                )
            )
    return None


def _no_start(error: Exception) -> GraphError:
    return GraphError(
        Finding(
            f"A worker does not start: {first_line(error)}",
            remedy="Every machine needs the same version of this product and of what it is built on.",
            code="cluster",
        )
    )
