"""A layer whose experts are spread over workers, modelled from measured terms: `python -m benchmarks.scale MS CALL`.

MS is what a token takes of one thread in the layer of gpt-oss-20b, in milliseconds (`python -m benchmarks cluster`),
CALL what handing out one part takes, in milliseconds. What else the command's own process does is measured here: it
routes and adds up, and copies what it sends and gets. It does one batch after the other, so that terms add up. Prints
tables as Markdown.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

WORKERS = (1, 2, 8, 64, 256, 1024)
NETWORKS = {"1 Gbit/s": 1.25e8, "10 Gbit/s": 1.25e9, "100 Gbit/s": 1.25e10}
"""Bytes a second."""
TOKENS = 4096
"""In a batch."""
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
        cells = [f"{TOKENS / sum(batch.values()):,.0f}" for batch in batches]
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

    def elsewhere(calls: Any) -> list[Mapping[str, Any]]:
        return [{"output": feeds["input"]} for _, feeds in calls]

    session = PartedSession(graph, parts_of(graph), elsewhere, threads=1)
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal((TOKENS, size), np.float32) for name, size in (("x", 2880), ("router", 32))}
    return _median(lambda: session.forward(feeds)) / (TOKENS * GPT_OSS.sent)


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
    parts = 128 * own / 2 + 128 * GPT_OSS.sent * (copying + routing) + 2 * call
    print(f"Two workers of one machine, 128 tokens: {parts * 1e3:.0f} ms.")


if __name__ == "__main__":
    main()
