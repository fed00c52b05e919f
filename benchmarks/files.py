"""Export and import of a graph of 3 GB, beside copying the file."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, in_a_process, seconds, spread
from runtime import Graph, Tensor, save

WIDTH, COUNT, ROUNDS = 8192, 12, 5
"""Matrices of WIDTH x WIDTH float32, of which COUNT are 3.2 GB."""
EXPORT = """
import json, sys, time
import onnx, onnx_ir, onnx_shape_inference, sympy
from runtime import load, save
start = time.perf_counter()
save(load(sys.argv[1]), sys.argv[2])
print(json.dumps({"seconds": time.perf_counter() - start}))
"""


def figures(quick: bool) -> Iterator[Figure]:
    """YAML with tensors beside it to ONNX, and back; `quick` takes a tenth."""
    folder = Path(tempfile.mkdtemp(prefix="qmoe-bench-"))
    try:
        graph = Graph("large")
        graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["tokens", WIDTH]})
        previous = "x.value"
        random = np.random.default_rng(0)
        for number in range(COUNT // 6 if quick else COUNT):
            array = random.standard_normal((WIDTH, WIDTH), np.float32)
            graph.add("Initializer", f"w{number}", parameters={"tensor": Tensor.from_array(array)})
            graph.add("MatMul", f"product{number}")
            graph.wire(previous, f"product{number}.A")
            graph.wire(f"w{number}.value", f"product{number}.B")
            previous = f"product{number}.Y"
        graph.add("Output", "y")
        graph.wire(previous, "y.value")
        save(graph, folder / "large.yaml")
        del graph, array
        source = next(folder.glob("large*.safetensors"))
        size = source.stat().st_size
        for what, (first, second) in {
            "YAML to ONNX": ("large.yaml", "again.onnx"),
            "ONNX to YAML": ("again.onnx", "back.yaml"),
        }.items():
            runs, copies = [], []
            # In turn, and more than once: how fast new pages of memory are to be had differs from time to time.
            for turn in range(ROUNDS):
                for is_copy in (True, False) if turn % 2 else (False, True):
                    if is_copy:
                        copies.append(seconds(lambda: _copy(source, folder / "copy")))
                        (folder / "copy").unlink()
                        continue
                    for old in folder.glob(f"{Path(second).stem}*"):
                        old.unlink()
                    runs.append(in_a_process(EXPORT, str(folder / first), str(folder / second)))
            label = f"{size / 1e9:.1f} GB, {what}"
            ours, copy = statistics.median(run["seconds"] for run in runs), statistics.median(copies)
            around = spread([run["seconds"] for run in runs])
            yield Figure(label, ours, "s", around, copy, "speed", 0.5, "peer: a copy, flushed to the disk")
            memory = max(run["memory"] for run in runs) / 2**20
            yield Figure(f"{label}, most memory", memory, "MiB", compared="ours", target=500e6 / 2**20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(source: Path, destination: Path) -> None:
    shutil.copyfile(source, destination)
    with destination.open("rb+") as file:
        os.fsync(file.fileno())
