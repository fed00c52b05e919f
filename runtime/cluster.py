"""Workers on many machines, by Ray: work is done exactly once, in any order, whichever of them die meanwhile."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Protocol

from runtime.errors import Cancelled, Finding, GraphError
from runtime.graph import Graph
from runtime.hosting import Failure, Host, Opening, Rows, versions

LOCAL = "local"
"""The address that stands for a cluster on this machine, which is there as long as the job."""
AHEAD = 2
"""Tasks that a worker has at a time: one that it does, and one whose data is on its way."""
ATTEMPTS = 3
"""Workers that may die at a task before it is held to be the task's fault."""
PATIENCE = 60.0
"""Seconds after which a job ends that no worker is there for."""


@dataclass(slots=True)
class Task:
    """One call of a method of `Host`. `owner` is the worker who must do it, where not any may."""

    index: int
    method: str
    arguments: tuple[Any, ...] = field(repr=False)
    owner: int | None = None
    deaths: int = 0


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

    def map(self, tasks: Iterable[Task], cancel: threading.Event | None = None) -> Iterator[Done]:
        """Does tasks, which are taken one by one as there is room, and gives each result once, in any order."""

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

    def map(self, tasks: Iterable[Task], cancel: threading.Event | None = None) -> Iterator[Done]:
        """Does tasks one after the other."""
        if cancel is not None:
            self._host.cancel = cancel
        for task in tasks:
            if cancel is not None and cancel.is_set():
                raise Cancelled("cancelled")
            yield Done(task, getattr(self._host, task.method)(*task.arguments), 0)

    def share(self, value: Any) -> Any:
        """The value: nothing is sent."""
        return value

    def close(self) -> None:
        """There is nothing to end."""


@dataclass(slots=True)
class _Worker:
    """A worker as this side knows it. `ping` is a call that it answers when it is there (again)."""

    number: int
    actor: Any
    opening: Opening
    graphs: Any
    ping: Any = None
    called: float = 0.0
    under_way: deque[Any] = field(default_factory=deque)


class Cluster:
    """Workers on Ray, each a process with a `Host`.

    A worker that dies is started again by Ray, also on another machine; meanwhile the others do its tasks. `tell` is
    called with what happens to workers. GraphError if Ray is not installed or not reachable, if there are too few
    processors, or if a worker has other versions of what decides about numbers.
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
    ) -> None:
        """`graphs` has those of each worker, or those of all in one entry; `spare` processors are left for others.

        `workers` None are as many as there are processors. A worker uses `opening.threads` of them; None is an equal
        share of this machine's on a local cluster, and 1 on others.
        """
        if workers is not None and workers < 1:
            raise GraphError(Finding(f"expected 1 worker at least; {workers} came.", code="option"))
        self._tell = tell or (lambda event: None)
        own = _processors()
        threads = opening.threads or (max(1, own // (workers or own)) if address == LOCAL else 1)
        self._workers: list[_Worker] = []
        self._ray = connect(address, (workers or max(1, own // threads)) * threads + spare)
        try:
            there = int(self._ray.cluster_resources().get("CPU", 0)) - spare
            self.workers = workers or max(1, there // threads)
            self._check_room(address, threads, there)
            self._start(graphs, replace(opening, threads=threads), fixed)
            self._wait_for_one()
        except BaseException:
            self.close()
            raise

    def _start(self, graphs: Sequence[Mapping[str, Graph]], opening: Opening, fixed: Rows | None) -> None:
        ray, workers, threads = self._ray, self.workers, opening.threads
        gpus = self._gpus(workers)
        shared = [ray.put(dict(one)) for one in graphs]
        self._given = ray.put(dict(fixed or {}))
        actor_type = ray.remote(Host)
        for number in range(workers):
            own = replace(opening, use_gpu=number < gpus)
            options = {
                "num_cpus": threads,
                "num_gpus": 1 if own.use_gpu else 0,
                "max_restarts": -1,
                "scheduling_strategy": "SPREAD",
            }
            worker = _Worker(number, actor_type.options(**options).remote(), own, shared[number % len(shared)])
            self._workers.append(worker)
            self._call(worker)

    # -- tasks ----------------------------------------------------------------------------------------------------

    def map(self, tasks: Iterable[Task], cancel: threading.Event | None = None) -> Iterator[Done]:
        """Does tasks. One at which workers die again and again gives a `Failure`."""
        source = iter(tasks)
        again: deque[Task] = deque()
        under_way: dict[Any, tuple[_Worker, Task]] = {}
        try:
            more = True
            while True:
                more = self._hand_out(source, again, under_way, more)
                if not under_way and not more and not again:
                    return
                pings = {worker.ping: worker for worker in self._workers if worker.ping is not None}
                ready, _ = self._ray.wait([*under_way, *pings], num_returns=1, timeout=0.2)
                if cancel is not None and cancel.is_set():
                    raise Cancelled("cancelled")
                for reference in ready:
                    if reference in pings:
                        self._greet(pings[reference])
                        continue
                    worker, task = under_way.pop(reference)
                    yield from self._taken_in(worker, task, reference, under_way, again)
                self._check_presence(again)
        finally:
            for worker in self._workers:
                worker.under_way.clear()

    def share(self, value: Any) -> Any:
        """Puts a value where all workers can read it, for as long as a task has it."""
        return self._ray.put(value)

    def _hand_out(
        self,
        source: Iterator[Task],
        again: deque[Task],
        under_way: dict[Any, tuple[_Worker, Task]],
        more: bool,
    ) -> bool:
        """Gives tasks to workers with room for them, evenly; whether there may be more."""
        for ahead in range(AHEAD):
            for worker in self._workers:
                if worker.ping is not None or len(worker.under_way) > ahead:
                    continue
                task = next((one for one in again if one.owner in (None, worker.number)), None)
                if task is not None:
                    if task.deaths and worker.under_way:
                        continue  # it may kill the worker, and nothing else shall die with it
                    again.remove(task)
                elif more and not again:
                    task = next(source, None)
                    if task is None:
                        more = False
                        continue
                    if task.owner not in (None, worker.number):
                        again.append(task)
                        continue
                else:
                    continue
                reference = getattr(worker.actor, task.method).remote(*task.arguments)
                worker.under_way.append(reference)
                under_way[reference] = worker, task
        return more

    def _taken_in(
        self,
        worker: _Worker,
        task: Task,
        reference: Any,
        under_way: dict[Any, tuple[_Worker, Task]],
        again: deque[Task],
    ) -> Iterator[Done]:
        was_first = bool(worker.under_way) and worker.under_way[0] == reference
        with suppress(ValueError):
            worker.under_way.remove(reference)
        try:
            value = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # a mistake of ours in `Host`
            value = Failure((Finding(f"Something went wrong on a worker: {error.cause}", code="internal"),))
        except (self._ray.exceptions.RayError, OSError) as error:
            task.deaths += was_first
            self._tell({"event": "worker lost", "worker": worker.number, "task": task.index, "error": _first(error)})
            if worker.ping is None:
                self._call(worker)
            if task.deaths < ATTEMPTS:
                again.append(task)
                return
            text = f"{task.deaths} workers died at this: {_first(error)}"
            value = Failure((Finding(text, remedy="Look into Ray's logs for the reason.", code="crash"),))
        yield Done(task, value, worker.number)

    def _call(self, worker: _Worker) -> None:
        """Asks a worker to get ready: it answers when it has started, or started again."""
        worker.called = perf_counter()
        worker.ping = worker.actor.prepare.remote(worker.graphs, worker.opening, self._given)

    def _greet(self, worker: _Worker) -> None:
        """Lets a worker that has started take part; one that is gone for good is made anew by Ray, or given up."""
        reference, worker.ping = worker.ping, None
        try:
            facts = self._ray.get(reference)
        except self._ray.exceptions.ActorUnavailableError:
            self._call(worker)
            return
        except self._ray.exceptions.RayError as error:
            raise _no_start(error) from error
        self._check_versions(worker, facts)
        self._tell({"event": "worker", "worker": worker.number, "host": facts["host"], "process": facts["process"]})

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

    def _gpus(self, workers: int) -> int:
        return min(workers, int(self._ray.cluster_resources().get("GPU", 0)))

    def _check_versions(self, worker: _Worker, facts: Mapping[str, Any]) -> None:
        own, its = versions(), facts["versions"]
        for name in own:
            if own[name] != its.get(name):
                raise GraphError(
                    Finding(
                        f"The worker on {facts['host']} has {name} {its.get(name)}; here is {own[name]}, and numbers "
                        "must be the same everywhere.",
                        remedy="Install the same version on every machine.",
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


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def connect(address: str, processors: int) -> Any:
    """Ray, connected to the cluster at an address, or with one of its own on this machine for so many threads.

    GraphError if it is not installed or there is no such cluster.
    """
    if not address.strip():
        raise GraphError(Finding(f"expected an address, such as {LOCAL} or head:6379; none came.", code="cluster"))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Nobody else on this machine, or near it, gets into a local cluster. Ray looks when it is imported.
    if address == LOCAL and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
    except ModuleNotFoundError as error:
        raise GraphError(
            Finding(
                "Ray is not installed.",
                remedy="Install it with the product: pip install qmoe-studio[cluster].",
                code="cluster",
            )
        ) from error
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == LOCAL:
        options |= {"address": LOCAL, "num_cpus": processors, "include_dashboard": False}
    else:
        options["address"] = address
        _knock(address)
    if ray.is_initialized():
        if address == LOCAL:
            raise GraphError(Finding("This process is connected to a cluster already.", code="cluster"))
        return ray
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            raise GraphError(
                Finding(
                    f"There is no cluster to be had at {address}: {_first(error).rstrip('.')}.",
                    remedy="Start one (ray start --head), or use --cluster local.",
                    code="cluster",
                )
            ) from error
    # What befalls workers is told in our own words. Ray would print it to the standard output, between results.
    if hasattr(ray._private.worker, "_worker_logs_enabled"):
        ray._private.worker._worker_logs_enabled = False
    return ray


def _knock(address: str) -> None:
    """GraphError if nobody listens at host:port: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), 5).close()
    except (OSError, OverflowError) as error:
        raise GraphError(
            Finding(
                f"There is no cluster to be had at {address}: {error}.",
                remedy="Start one (ray start --head), or use --cluster local.",
                code="cluster",
            )
        ) from error


def _absent(message: str) -> GraphError:
    remedy = "Look whether the cluster's machines are up (ray status); then resume."
    return GraphError(Finding(message, remedy=remedy, code="cluster"))


def _no_start(error: Exception) -> GraphError:
    return GraphError(
        Finding(
            f"A worker does not start: {_first(error)}",
            remedy="Every machine needs the same version of this product and of what it is built on.",
            code="cluster",
        )
    )


def _first(error: BaseException) -> str:
    """What matters of an error of Ray's, which may be pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("ModuleNotFoundError", "ImportError", "The actor died"))]
    text = (told or lines or [type(error).__name__])[-1 if told else 0]
    return text if len(text) <= 300 else text[:297] + "..."
