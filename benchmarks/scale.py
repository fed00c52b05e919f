"""A layer whose experts are spread over workers, modelled from measured terms: `python -m benchmarks.scale MS CALL`.

MS is what a token takes of one thread in the layer of gpt-oss-20b, in milliseconds (`python -m benchmarks cluster`),
CALL what handing out one part takes, in milliseconds. What else the command's own process does is measured here: it
routes and adds up, and copies what it sends and gets. Three batches are under way, one with each of the three
terms, so that the longest of them decides. Prints tables as Markdown.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np

from runtime.hosting import Failure, Host, Rows

WORKERS = (1, 2, 8, 64, 256, 1024)
NETWORKS = {"1 Gbit/s": 1.25e8, "10 Gbit/s": 1.25e9, "100 Gbit/s": 1.25e10}
"""Bytes a second."""
TOKENS = 4096
"""In a batch."""
WAITED = 0.05 / 256
"""Seconds that a worker who only waits does so for each of its rows."""
SENT_ROWS = 256
"""Rows that a worker gets of such a batch when 64 share it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A layer: `weights` counts those of one expert."""

    name: str
    experts: int
    k: int
    hidden: int
    weights: int

    @property
    def sent(self) -> int:
        """Bytes for each token, there and back: float32, once for each choice."""
        return 2 * self.k * self.hidden * 4

    @property
    def packed(self) -> float:
        """Bytes of all weights, 4 bits in blocks of 32 with float32 scales."""
        return self.experts * self.weights * (0.5 + 4 / 32)


GPT_OSS = Shape("32 experts, 4 a token, hidden 2880 (gpt-oss-20b)", 32, 4, 2880, 3 * 2880 * 2880)
DEEPSEEK = Shape("256 experts, 8 a token, hidden 7168 (DeepSeek-V3)", 256, 8, 7168, 3 * 7168 * 2048)


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds: of a token on one thread, of handing out one part, and in the process that routes of each byte that is
    sent or received: `copying` it, and `routing` it."""

    token: float
    call: float
    copying: float
    routing: float

    def batch(self, shape: Shape, workers: int, speed: float) -> dict[str, float]:
        """What a batch takes, by what takes it."""
        used = min(workers, shape.experts)
        return {
            "kernels": TOKENS * self.token / used,
            "network": TOKENS * shape.sent / speed if workers > 1 else 0.0,
            "own process": TOKENS * shape.sent * (self.copying + self.routing) + self.call * used,
        }


def table(shape: Shape, terms: Terms) -> str:
    """A row for each number of workers."""
    lines = [
        f"**{shape.name}**: {shape.sent:,} bytes a token, {terms.token * 1e3:.2f} ms a token on one thread.\n",
        "| workers | weights each | kernels alone | " + " | ".join(NETWORKS) + " | most at 10 Gbit/s |",
        "|---|---|---|" + "---|" * (len(NETWORKS) + 1),
    ]
    for workers in WORKERS:
        used = min(workers, shape.experts)
        batches = [terms.batch(shape, workers, speed) for speed in NETWORKS.values()]
        ten = batches[list(NETWORKS).index("10 Gbit/s")]
        cells = [f"{TOKENS / max(batch.values()):,.0f}" for batch in batches]
        kernels = f"{TOKENS / ten['kernels']:,.0f}"
        row = [f"{workers:,}", f"{shape.packed / used / 1e6:,.0f} MB", kernels, *cells, max(ten, key=ten.__getitem__)]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def crossing(shape: Shape, terms: Terms, speed: float) -> float:
    """The number of workers from which on the network takes longer than the kernels."""
    return terms.token / (shape.sent / speed)


# -- measuring --------------------------------------------------------------------------------------------------------


def _median(work: Callable[[], object]) -> float:
    times = []
    for _ in range(9):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def measured_routing() -> float:
    """Seconds a byte of tokens that are routed, picked and added up, where the parts cost nothing."""
    from benchmarks.layers import layer
    from qmoe_node.sharding import shard
    from runtime.parts import PartedSession, parts_of

    graph = shard(layer(), 2)

    session = PartedSession(graph, parts_of(graph), threads=1)
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal((TOKENS, size), np.float32) for name, size in (("x", 2880), ("router", 32))}

    def batch() -> None:
        steps = session.steps(feeds)
        calls = next(steps)
        with suppress(StopIteration):
            steps.send([{"output": own["input"]} for _, own in calls])

    return _median(batch) / (TOKENS * GPT_OSS.sent)


def measured_copying() -> float:
    """Seconds a byte that goes to workers and comes back."""
    from runtime import Graph
    from runtime.cluster import Cluster, Task
    from runtime.hosting import Opening

    graph = Graph()
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["rows", GPT_OSS.hidden]})
    graph.add("Identity", "same")
    graph.add("Output", "y")
    graph.wire("x.value", "same.input")
    graph.wire("same.output", "y.value")
    rows = np.ones((SENT_ROWS, GPT_OSS.hidden), np.float32)
    count = TOKENS * GPT_OSS.k // SENT_ROWS
    pool = Cluster("local", 1, [{"graph": graph}], Opening(threads=1))

    def batch() -> None:
        got = [done.value["y"] for done in pool.map(Task(i, "run", ("graph", {"x": rows})) for i in range(count))]
        np.concatenate(got)  # as who adds them up reads them

    try:
        return _median(batch) / (2 * rows.nbytes * count)
    finally:
        pool.close()


class Waiting(Host):
    """A worker whose kernels take time, and nobody's processors: as on a machine of its own."""

    def run(self, key: str, feeds: Rows) -> dict[str, Any] | Failure:
        time.sleep(feeds["input"].size / GPT_OSS.hidden * WAITED)
        return {"output": feeds["input"]}


def measured_overlap(tokens: int, workers: int) -> tuple[float, float]:
    """Seconds for a batch of many, and for one alone, with workers that only wait."""
    from benchmarks.layers import layer
    from qmoe_node.sharding import shard
    from runtime.cluster import Task
    from runtime.hosting import Opening
    from runtime.parts import parts_of
    from runtime.spread import Spread

    graph = shard(layer(), workers)
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal((tokens, size), np.float32) for name, size in (("x", 2880), ("router", 32))}
    with patch("runtime.cluster.Host", Waiting):
        pool = Spread(graph, parts_of(graph), "local", workers, Opening(threads=1), {}, lambda event: None)
    try:
        list(pool.map(Task(index, "run", ("graph", feeds)) for index in range(6)))  # all workers are there
        start = time.perf_counter()
        list(pool.map(Task(index, "run", ("graph", feeds)) for index in range(40)))
        many = (time.perf_counter() - start) / 40
        return many, _median(lambda: list(pool.map([Task(0, "run", ("graph", feeds))])))
    finally:
        pool.close()


def main() -> None:
    """Prints the tables."""
    own, call = float(sys.argv[1]) / 1e3, float(sys.argv[2]) / 1e3
    copying, routing = measured_copying(), measured_routing()
    print(f"copying {copying * 1e9:.2f} s a GB, routing {routing * 1e9:.2f} s a GB\n")
    for shape in (GPT_OSS, DEEPSEEK):
        token = own * shape.k * shape.weights / (GPT_OSS.k * GPT_OSS.weights)
        terms = Terms(token, call, copying, routing)
        print(table(shape, terms))
        points = ", ".join(f"{crossing(shape, terms, speed):.1f} at {name}" for name, speed in NETWORKS.items())
        own_point = crossing(shape, terms, 1 / (copying + routing))
        print(f"\nThe network takes longer than the kernels from so many workers on: {points};")
        print(f"the process that routes, from {own_point:.1f} on.\n")
    # On one machine they use the same processors.
    parts = (128 * own + 128 * GPT_OSS.sent * (copying + routing) + 2 * call) / 2
    print(f"Two workers of one machine with two processors, 128 tokens: {parts * 1e3:.0f} ms.")
    for tokens in (128, 512):
        many, alone = measured_overlap(tokens, 8)
        kernels = tokens * GPT_OSS.k / 8 * WAITED
        print(f"Eight workers that wait {kernels * 1e3:.1f} ms for each batch of {tokens} tokens: {many * 1e3:.1f} ms")
        print(f"a batch, and {alone * 1e3:.1f} ms for one alone.")


if __name__ == "__main__":
    main()
