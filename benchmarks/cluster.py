"""Workers on Ray: what a second one gains, what handing out work costs, what is sent for each token of a spread layer.

Workers have one thread each. Their start is not measured: a job is long.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, spread
from benchmarks.layers import layer
from runtime import Graph, load, save

ROWS = 200_000
TOKENS = 128
BATCHES = 12


def figures(quick: bool) -> Iterator[Figure]:
    if find_spec("ray") is None:
        yield Figure("workers", 0.0, "", note="skipped: Ray is not installed (the extra `cluster`)")
        return
    folder = Path(tempfile.mkdtemp(prefix="qmoe-bench-"))
    try:
        yield _of_tasks()
        yield from _of_digits(folder, 1 if quick else 5)
        save(layer(), folder / "layer.yaml")
        yield from _of_the_layer(load(folder / "layer.yaml"), folder, 12 if quick else 48)
        yield _of_long_tasks(load(folder / "layer.yaml"), folder, 50 if quick else 100)
        if not quick:
            yield from _of_parts(load(folder / "layer.yaml"), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _of_tasks() -> Figure:
    """Tasks in which there is next to nothing to do."""
    from runtime.cluster import Cluster, Task
    from runtime.hosting import Opening

    graph = Graph()
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [1]})
    graph.add("Output", "y")
    graph.wire("x.value", "y.value")
    pool = Cluster("local", 2, [{"graph": graph}], Opening(threads=1))
    feeds = {"x": np.zeros(1, np.float32)}
    count = 1000
    try:
        list(pool.map(Task(index, "run", ("graph", feeds)) for index in range(20)))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(Task(index, "run", ("graph", feeds)) for index in range(count)))
            times.append((time.perf_counter() - start) / count)
    finally:
        pool.close()
    return Figure("handing out a task with nothing to do", statistics.median(times) * 1e3, "ms", spread(times) * 1e3)


def _of_digits(folder: Path, times: int) -> Iterator[Figure]:
    """The digits that come along, again and again."""
    root = Path(__file__).resolve().parents[1] / "snippets"
    with np.load(root / "digits.npz") as archive:
        x, y = archive["images"].astype(np.float32) / 16, archive["digits"].astype(np.int64)
    repeat = -(-ROWS // len(x))
    np.savez(folder / "digits.npz", x=np.tile(x, (repeat, 1))[:ROWS], y=np.tile(y, repeat)[:ROWS])
    graph = load(root / "digits_moe.yaml")
    cores = sorted(os.sched_getaffinity(0))
    # The command, too, works on as many cores as there are workers; or one worker has the other core beside it.
    ways: dict[str, tuple[int, list[int]]] = {"one": (1, cores), "one core": (1, cores[:1]), "two": (2, cores)}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(times):
        for way, (workers, own) in ways.items():
            os.sched_setaffinity(0, own)
            try:
                with _workers(graph, folder / "digits.npz", folder, workers) as those:
                    taken[way] += [those.score(folder / "digits.npz")[0] for _ in range(3)]
            finally:
                os.sched_setaffinity(0, cores)
    found = {way: statistics.median(own) for way, own in taken.items()}
    what, rate = f"digits, {ROWS:,} rows: two workers beside one", f"{ROWS / found['two']:,.0f} rows a second"
    for peer, label, target in (("one", what, 1.8), ("one core", f"{what} that has one core with all else", None)):
        yield Figure(label, found["two"], "s", spread(taken["two"]), found[peer], "speed", target, rate)


def _of_the_layer(graph: Graph, folder: Path, batches: int) -> Iterator[Figure]:
    """Batches of tokens through the layer of 400 MB."""
    random = np.random.default_rng(0)
    x = random.standard_normal((batches * TOKENS, 2880), np.float32)
    router = random.standard_normal((batches * TOKENS, 32), np.float32)
    np.savez(folder / "tokens.npz", x=x, router=router)
    taken: dict[int, float] = {}
    memory: dict[int, int] = {}
    for workers in (1, 2):
        with _workers(graph, folder / "tokens.npz", folder, workers, TOKENS) as those:
            taken[workers], _ = those.score(folder / "tokens.npz", TOKENS, TOKENS)
            memory[workers] = _largest(those.events)
    yield Figure(
        f"the layer, {batches} batches of {TOKENS} tokens: two workers beside one",
        taken[2],
        "s",
        0.0,
        taken[1],
        "speed",
        1.8,
        f"{memory[1] >> 20} MiB a worker of one, {memory[2] >> 20} MiB of two (shared pages in equal parts)",
    )


def _of_long_tasks(graph: Graph, folder: Path, count: int) -> Figure:
    """Tasks that take the layer about 100 ms each, on this machine: how many tokens that is, is found out first."""
    random = np.random.default_rng(0)
    data, tokens, wall, busy = folder / "long.npz", 16, 0.0, 0.0

    def write(rows: int) -> None:
        x, router = (random.standard_normal((rows, width), np.float32) for width in (2880, 32))
        np.savez(data, x=x, router=router)

    write(10 * tokens)
    with _workers(graph, data, folder, 1) as those:
        for tasks in (10, 10, count):
            if busy:
                tokens = max(1, round(tokens * 0.1 / busy))
            write(tasks * tokens)
            wall, busy = (whole / tasks for whole in those.score(data, tokens, tokens))
    return Figure(
        f"handing out {count} tasks, {tokens} tokens of the layer each: all the time beside the graph's own, a task",
        wall * 1e3,
        "ms",
        0.0,
        busy * 1e3,
        "ratio",
        1.02,
    )


def _of_parts(graph: Graph, folder: Path) -> Iterator[Figure]:
    """The layer's experts spread over two workers, beside all of them in one."""
    from qmoe_node.sharding import shard
    from runtime.cluster import Cluster, Task
    from runtime.hosting import Opening
    from runtime.parts import parts_of
    from runtime.spread import Spread

    save(shard(graph, 2), folder / "spread.yaml")
    spread_graph = load(folder / "spread.yaml")
    random = np.random.default_rng(0)
    feeds = {
        "x": random.standard_normal((TOKENS, 2880), np.float32),
        "router": random.standard_normal((TOKENS, 32), np.float32),
    }
    opening = Opening(threads=1)

    def times(pool: Any) -> list[float]:
        """Seconds a batch, where several are to be done."""
        own: list[float] = []
        for _ in range(4):
            start = time.perf_counter()
            done = list(pool.map(Task(index, "run", ("graph", feeds)) for index in range(BATCHES)))
            assert all(isinstance(one.value, dict) for one in done), done[0].value
            own.append((time.perf_counter() - start) / BATCHES)
        return own[1:]

    events: list[Mapping[str, Any]] = []
    whole_pool = Cluster("local", 1, [{"graph": graph}], opening, tell=events.append)
    try:
        whole = times(whole_pool)
        in_one = _largest(events)
    finally:
        whole_pool.close()
    events.clear()
    pool = Spread(spread_graph, parts_of(spread_graph), "local", 2, opening, {}, events.append)
    try:
        apart = times(pool)
        in_each = _largest(events)
    finally:
        pool.close()
    sent = 2 * 2880 * 4 * 4 + 2 * 16 * 4 * 4
    yield Figure(
        f"the layer's experts over two workers, a batch of {TOKENS} tokens, beside one worker",
        statistics.median(apart) * 1e3,
        "ms",
        spread(apart) * 1e3,
        statistics.median(whole) * 1e3,
        "speed",
        None,
        f"{sent:,} bytes sent and received for each token; {in_each >> 20} MiB a worker, {in_one >> 20} MiB the one",
    )


@dataclass(slots=True)
class _Workers:
    """Workers that have opened a graph, and what they told."""

    graph: Graph
    folder: Path
    pool: Any
    events: list[Mapping[str, Any]]

    def score(self, data: Path, batch: int | None = None, shard_rows: int | None = None) -> tuple[float, float]:
        """Seconds for all rows, and seconds that the workers worked."""
        from runtime.datasets import open_data
        from runtime.scoring import job_of, score

        job = job_of(self.graph, open_data(data), {}, batch, shard_rows)
        job.data.fingerprint()  # the command takes it before there are workers
        told: list[Mapping[str, Any]] = []
        with _results(self.folder) as results:
            start = time.perf_counter()
            score(job, results, self.pool, told.append)
            taken = time.perf_counter() - start
        return taken, sum(event["seconds"] for event in told if event["event"] == "shard")


@contextmanager
def _workers(graph: Graph, data: Path, folder: Path, workers: int, batch: int | None = None) -> Iterator[_Workers]:
    """Workers of one thread each that are warm for a graph and the kind of rows that `data` has."""
    from runtime.cluster import Cluster
    from runtime.datasets import open_data
    from runtime.hosting import Opening
    from runtime.scoring import job_of, score

    rows = open_data(data)
    first = next(rows.pieces(min(rows.rows, 16 * TOKENS)))
    np.savez(folder / "first.npz", **first)  # enough for every worker to open the graph
    few = open_data(folder / "first.npz")
    events: list[Mapping[str, Any]] = []
    pool = Cluster("local", workers, [{"graph": graph}], Opening(threads=1), tell=events.append)
    try:
        warm: set[int] = set()
        while len(warm) < workers:  # the last worker comes seconds after the first, and would be missed
            warmed: list[Mapping[str, Any]] = []
            with _results(folder) as results:
                score(job_of(graph, few, {}, batch, 1), results, pool, warmed.append)
            warm |= {event["worker"] for event in warmed if event["event"] == "shard"}
        yield _Workers(graph, folder, pool, events)
    finally:
        pool.close()


@contextmanager
def _results(folder: Path) -> Iterator[Any]:
    from runtime.shards import Results

    out = folder / "out"
    results = Results(out, {}, False)
    try:
        yield results
    finally:
        results.close()
        shutil.rmtree(out)


def _largest(events: Sequence[Mapping[str, Any]]) -> int:
    """Memory of the largest of the workers that have told that they are there."""
    return max(_proportional(event["process"]) for event in events if event["event"] == "worker")


def _proportional(process: int) -> int:
    """Memory of a process, of what it shares its part."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
