"""`make bench`: what counts in daily use, beside a raw ONNX Runtime session on the same machine in the same run.

Every figure is a median; the spread is the distance between the first and the third quartile.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from runtime import Graph, Session, Tensor
from runtime.check import check
from runtime.compile import compile_graph

EXPERTS, SIZE, TOP, BLOCK = 8, 1024, 4, 32
THREADS = 2


def timed(call: Callable[[], object], seconds: float = 2.0) -> list[float]:
    """Seconds of each call, repeated for about `seconds` (7 times at least), after one call to warm up."""
    call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 7:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def alternating(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Times of two calls made in turn, so that whatever else the machine does falls on both."""
    ours(), theirs()
    pairs: list[tuple[float, float]] = []
    while sum(map(sum, pairs)) < 3 or len(pairs) < 7:
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        theirs()
        pairs.append((middle - start, time.perf_counter() - middle))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def layer(bits: int, block_size: int) -> Graph:
    """A layer of random codes: SwiGLU with alternating gate and linear rows."""
    rng = np.random.default_rng(0)
    graph = Graph("layer")
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["tokens", SIZE]})
    graph.add("Input", "router", parameters={"type": "tensor(float)", "shape": ["tokens", EXPERTS]})
    parameters = {"k": TOP, "expert_weight_bits": bits, "activation_type": "swiglu", "swiglu_fusion": 1}
    parameters |= {"normalize_routing_weights": True} | ({"block_size": block_size} if block_size else {})
    graph.add("com.microsoft.QMoE", "moe", parameters=parameters)
    graph.wire("x.value", "moe.input")
    graph.wire("router.value", "moe.router_probs")
    for name, rows in (("fc1", 2 * SIZE), ("fc2", SIZE)):
        codes = rng.integers(0, 256, (EXPERTS, rows, SIZE * bits // 8), dtype=np.uint8)
        blocks = (SIZE // block_size,) if block_size else ()
        scales = rng.uniform(0.001, 0.01, (EXPERTS, rows, *blocks)).astype(np.float32)
        for port, array in ((f"{name}_experts_weights", codes), (f"{name}_scales", scales)):
            graph.add("Initializer", port, parameters={"tensor": Tensor.from_array(array)})
            graph.wire(f"{port}.value", f"moe.{port}")
    graph.add("Output", "y")
    graph.wire("moe.output", "y.value")
    return graph


def raw_session(graph: Graph) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the model as it is, with nothing of ours in between."""
    import onnx_ir

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    model = onnx_ir.to_proto(compile_graph(graph).model).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def forward_rows(table: Table) -> None:
    """Forward passes against ONNX Runtime running the same layer as it is."""
    rng = np.random.default_rng(1)
    for label, bits, block_size in (
        ("4-bit, blocks of 32", 4, BLOCK),
        ("4-bit, scales by row", 4, 0),
        ("2-bit, blocks of 32", 2, BLOCK),
        ("8-bit, scales by row", 8, 0),
    ):
        graph = layer(bits, block_size)
        session, raw = Session(graph, threads=THREADS), raw_session(graph)
        for tokens in (1, 16, 128):
            feeds = {
                "x": rng.standard_normal((tokens, SIZE), dtype=np.float32),
                "router": rng.standard_normal((tokens, EXPERTS), dtype=np.float32),
            }
            add(
                table,
                f"forward, {label}, {tokens} tokens",
                *alternating(
                    lambda session=session, feeds=feeds: session.forward(feeds),
                    lambda raw=raw, feeds=feeds: raw.run(None, feeds),
                ),
            )


def overhead_row(table: Table) -> None:
    """What a session adds to one call of a trivial graph."""
    graph = Graph("trivial")
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [4, 64]})
    graph.add("Relu", "relu")
    graph.add("Output", "y")
    graph.wire("x.value", "relu.X")
    graph.wire("relu.Y", "y.value")
    session, raw = Session(graph, threads=THREADS), raw_session(graph)
    feeds = {"x": np.zeros((4, 64), np.float32)}
    ours, theirs = alternating(lambda: session.forward(feeds), lambda: raw.run(None, feeds))
    add(table, "one call of a trivial graph", ours, theirs)


def chain_of(count: int) -> Graph:
    """A chain of `count` nodes of typed arithmetic, as wide as one layer of a transformer."""
    graph = Graph("chain")
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["tokens", 64]})
    graph.add("Initializer", "w", parameters={"tensor": Tensor.from_array(np.zeros((64, 64), np.float32))})
    previous = "x.value"
    for number in range(count):
        if number % 2:
            id = graph.add("Relu", f"relu_{number}")
            graph.wire(previous, f"{id}.X")
        else:
            id = graph.add("MatMul", f"matmul_{number}")
            graph.wire(previous, f"{id}.A")
            graph.wire("w.value", f"{id}.B")
        previous = f"{id}.Y"
    graph.add("Output", "y")
    graph.wire(previous, "y.value")
    return graph


def editing_rows(table: Table) -> None:
    """Checks: of 2,000 nodes, and after one edit of them."""
    graph = chain_of(2000)
    add(table, "check of 2,000 nodes", timed(lambda: check(graph.copy())))
    graph.checker.findings()

    def edit() -> None:
        graph.set("matmul_1000", "lda coeff", time.perf_counter())
        graph.checker.findings()

    add(table, "check after one edit of 2,000 nodes", timed(edit, 1.0))


def start_row(table: Table) -> None:
    """The command line's help, as a process."""
    command = [sys.executable, "-m", "runtime.cli", "--help"]
    add(
        table,
        "qmoe --help",
        timed(lambda: subprocess.run(command, check=True, capture_output=True)),
        timed(lambda: subprocess.run([sys.executable, "-c", ""], check=True)),
    )


def add(table: Table, label: str, ours: list[float], theirs: list[float] | None = None) -> None:
    """One line of the table: medians in milliseconds and their ratio."""

    def figure(times: list[float]) -> str:
        low, middle, high = statistics.quantiles(times, n=4)
        return f"{middle * 1e3:.3f} ± {(high - low) * 1e3 / 2:.3f}"

    ratio = f"{statistics.median(ours) / statistics.median(theirs):.2f}" if theirs else ""
    table.add_row(label, figure(ours), figure(theirs) if theirs else "", ratio)


def main() -> None:
    """Runs everything and prints one table."""
    console = Console()
    console.print(
        f"Layer: {EXPERTS} experts, hidden = inter = {SIZE}, k = {TOP}, SwiGLU; {THREADS} threads, "
        f"{os.cpu_count()} cores, ONNX Runtime {onnxruntime.__version__}, NumPy {np.__version__}"
    )
    table = Table("what", "ours, ms", "peer, ms", "ratio")
    for part in (forward_rows, overhead_row, editing_rows, start_row):
        part(table)
    console.print(table)


if __name__ == "__main__":
    main()
