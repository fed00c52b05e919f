"""What is felt every day: the start, the command's help, a call's overhead, checks, opening a file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path

import numpy as np
import onnx_ir

from benchmarks.figures import THREADS, Figure, beside, in_a_process
from benchmarks.layers import layer, raw_session
from benchmarks.transformer import transformer
from runtime import Graph, Session, save
from runtime.check import check
from runtime.compile import compile_graph
from runtime.search import search

OURS = """
import json, sys, time
from benchmarks.layers import feeds
from runtime import Graph, Session, load
given = feeds(1)
graph = Graph()  # what is imported late is so before the clock starts, here and there
graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [1]})
graph.add("Output", "y")
graph.wire("x.value", "y.value")
Session(graph).forward({"x": given["x"][0, :1]})
start = time.perf_counter()
Session(load(sys.argv[1]), threads=2).forward(given)
print(json.dumps({"seconds": time.perf_counter() - start}))
"""
THEIRS = """
import json, sys, time
import onnxruntime
from benchmarks.layers import feeds
given = feeds(1)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
start = time.perf_counter()
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"]).run(None, given)
print(json.dumps({"seconds": time.perf_counter() - start}))
"""


def figures(quick: bool) -> Iterator[Figure]:
    """All of them."""
    folder = Path(tempfile.mkdtemp(prefix="qmoe-bench-"))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    try:

        def run(*words: str) -> None:
            subprocess.run([sys.executable, *words], check=True, env=environment, capture_output=True)

        for what, words, target in (
            ("qmoe --help", ("-m", "runtime.cli", "--help"), 150.0),
            ("import runtime", ("-c", "import runtime"), 300.0),
            ("the same, Graph and Session used", ("-c", "import runtime; runtime.Graph, runtime.Session"), None),
        ):
            figure = beside(
                what,
                lambda words=words: run(*words),
                lambda: run("-c", ""),
                compared="ours",
                target=target,
                long=4.0,  # type: ignore[misc]
            )
            yield Figure(what, figure.ours, "ms", figure.spread, figure.peer, "ours", target, "peer: python -c ''")
        yield _overhead()
        yield from _checks()
        yield from _opening(folder, environment, quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _overhead() -> Figure:
    graph = Graph("trivial")
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [4, 64]})
    graph.add("Relu", "relu")
    graph.add("Output", "y")
    graph.wire("x.value", "relu.X")
    graph.wire("relu.Y", "y.value")
    session, raw = Session(graph, threads=THREADS), raw_session(graph)
    given = {"x": np.zeros((4, 64), np.float32)}
    found = beside("", lambda: session.forward(given), lambda: raw.run(None, given), unit="µs", least=2000)
    assert found.peer is not None
    note = f"{found.ours:.1f} µs and {found.peer:.1f} µs a call"
    return Figure(
        "a session's overhead over a raw one", found.ours - found.peer, "µs", found.spread, None, "ours", 15, note
    )


def _checks() -> Iterator[Figure]:
    graph = transformer()
    size = f"{len(graph.nodes):,} nodes"
    yield beside(f"check of {size}", lambda: check(graph.copy()), compared="ours", target=200)
    assert not graph.checker.findings()
    middle = [id for id, node in graph.nodes.items() if node.type == "Softmax"][20]
    numbers = count()

    def edit() -> None:
        graph.set(middle, "axis", -1 if next(numbers) % 2 else 3)
        graph.checker.findings()

    def cut_and_wire() -> None:
        target = next(target for target in graph.wires if target.node == middle)
        source = graph.wires[target]
        graph.cut(target)
        graph.checker.findings()
        graph.wire(source, target)
        graph.checker.findings()

    yield beside("check after a parameter", edit, compared="ours", target=20, least=20, long=1.0)
    yield beside("check after a cut, and after a wire", cut_and_wire, compared="ours", target=40, least=20, long=1.0)
    keys = cycle(("q", "qm", "qmo", "qmoe", "qmoe k", "qmoe k=4"))  # a tenth of a second is felt
    yield beside("a keystroke in the search for nodes", lambda: search(next(keys)), compared="ours", target=100)


def _opening(folder: Path, environment: dict[str, str], quick: bool) -> Iterator[Figure]:
    """From a file to the first result, each in a process of its own, in turn."""
    graph = layer()
    save(graph, folder / "layer.yaml")
    onnx_ir.save(compile_graph(graph).model, folder / "layer.onnx", external_data="layer.data")
    ours, theirs = [], []
    for _ in range(3 if quick else 9):
        ours.append(in_a_process(OURS, str(folder / "layer.yaml"), environment=environment))
        theirs.append(in_a_process(THEIRS, str(folder / "layer.onnx"), environment=environment))
    middle = len(ours) // 2
    times = [sorted(run["seconds"] for run in runs)[middle] * 1e3 for runs in (ours, theirs)]
    memory = [sorted(run["anonymous"] for run in runs)[middle] / 2**20 for runs in (ours, theirs)]
    yield Figure("opening the layer's snippet, to the first result", times[0], "ms", 0.0, times[1], "ratio", 1.15)
    yield Figure("the same, memory that is not of files", memory[0], "MiB", 0.0, memory[1], "ratio")
