"""Forward and backward passes of the layer, and a training step of the classifier of digits."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures import Figure, in_a_process

PASSES = """
import json, statistics, sys, time
import numpy as np
from benchmarks.layers import feeds, layer
from runtime import Session
tokens, backend = int(sys.argv[1]), sys.argv[2]
session, given = Session(layer(trained=True), backend, threads=2), feeds(tokens)
upstream = np.random.default_rng(1).standard_normal(given["x"].shape, np.float32)
times = []
for _ in range(4):
    start = time.perf_counter()
    session.forward(given)
    middle = time.perf_counter()
    session.backward({"y": upstream})
    times.append((middle - start, time.perf_counter() - middle))
print(json.dumps({"forward": statistics.median(t[0] for t in times[1:]),
                  "backward": statistics.median(t[1] for t in times[1:])}))
"""
STEP = """
import json, statistics, time
import numpy as np
from pathlib import Path
from runtime import load
from runtime.arrays import read_arrays
from runtime.training.trainer import Settings, Trainer
graph = load("snippets/digits_moe.yaml")
data = read_arrays("snippets/digits.npz")
arrays = {"x": (data["images"][:1408] / 16).astype(np.float32), "y": data["digits"][:1408].astype(np.int64)}
times, last = [], [time.perf_counter()]
def report(progress):
    now = time.perf_counter()
    times.append(now - last[0])
    last[0] = now
trainer = Trainer(graph, arrays, Settings({"loss": 1.0}, epochs=20, batch_size=128), threads=2)
last[0] = time.perf_counter()
trainer.run(report)
print(json.dumps({"step": statistics.median(times)}))
"""


def figures(quick: bool) -> Iterator[Figure]:
    """Seconds and memory; the peer, torch, is not run: it is no dependency."""
    without = "torch is not installed here"
    for backend in ("onnxruntime", "numpy"):
        for tokens in (128,) if quick else (128, 512):
            found = in_a_process(PASSES, str(tokens), backend)
            label = f"{backend}: forward and backward, {tokens} tokens"
            note = f"forward {found['forward']:.2f} s; {without}"
            yield Figure(label, found["forward"] + found["backward"], "s", note=note)
            limit = 1.2e9 / 2**20 if tokens == 512 else None
            yield Figure(f"{label}, most memory", found["memory"] / 2**20, "MiB", compared="ours", target=limit)
    yield Figure("training step of the digits, batch 128", 1e3 * in_a_process(STEP)["step"], "ms", note=without)
