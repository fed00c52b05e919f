"""Forward and backward passes of the layer, and a training step of the classifier of digits, beside torch's."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.figures import THREADS, Figure, in_a_process
from benchmarks.layers import feeds, layer
from runtime import Graph, Session, load
from runtime.arrays import read_arrays

TORCH = "torch==2.13.0"
PEER = Path(__file__).with_name("torch_peer.py")
ENVIRONMENT = Path(__file__).parents[1] / "build" / "torch"
"""Where torch is installed for the peer alone; may be made beforehand, with another build of torch."""
WITHOUT = "torch could not be installed here"

PASSES = """
import json, statistics, sys, time
import numpy as np
from benchmarks.layers import feeds, layer
from qmoe_node import compiled_tiles
from runtime import Session
tokens, backend = int(sys.argv[1]), sys.argv[2]
if "plain" in sys.argv:
    compiled_tiles.is_installed = lambda: False
session, given = Session(layer(trained=True), backend, threads=2), feeds(tokens)
upstream = np.random.default_rng(1).standard_normal(given["x"].shape, np.float32)
times = []
for _ in range(4):
    start = time.perf_counter()
    y = session.forward(given)["y"]
    middle = time.perf_counter()
    gradients = session.backward({"y": upstream})
    times.append((middle - start, time.perf_counter() - middle))
print(json.dumps({"forward": statistics.median(t[0] for t in times[1:]),
                  "backward": statistics.median(t[1] for t in times[1:])}))
"""
STEP = """
import json, statistics, time
import numpy as np
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
FORMS = {
    "table": "torch, dequantizing by a table, checkpointed",
    "shifts": "torch, dequantizing by shifts, checkpointed",
    "resident": "torch, float weights resident and trained",
}
WAYS = (("onnxruntime",), ("numpy",), ("onnxruntime", "plain"), ("numpy", "plain"))
TARGETS = {"table": 4.0, "shifts": 4.0, "resident": 2.0}


def figures(quick: bool) -> Iterator[Figure]:
    """Seconds and memory, on both backends, beside torch in an environment of its own, with the same numbers."""
    torch = torch_python()
    folder = Path(tempfile.mkdtemp(prefix="qmoe-bench-"))
    try:
        yield from _passes(torch, folder, 128 if quick else 512, ("shifts",) if quick else tuple(FORMS))
        yield _step(torch, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def torch_python() -> Path | None:
    """A Python that has torch; None where it cannot be installed."""
    python = ENVIRONMENT / "bin" / "python"
    commands = [] if python.exists() else [[sys.executable, "-m", "venv", str(ENVIRONMENT)]]
    commands.append([str(python), "-c", "import numpy, torch"])
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", TORCH, "numpy"]
    for command in commands:
        if subprocess.run(command, capture_output=True).returncode:
            print(f"Installing {TORCH} into {ENVIRONMENT} ...", file=sys.stderr, flush=True)
            if subprocess.run(install, capture_output=True).returncode:
                return None
    return python


def _passes(torch: Path | None, folder: Path, tokens: int, forms: tuple[str, ...]) -> Iterator[Figure]:
    graph, given = layer(trained=True), feeds(tokens)
    upstream = np.random.default_rng(1).standard_normal(given["x"].shape, np.float32)
    peers = {}
    if torch is not None:
        _hand_over(graph, given | {"upstream": upstream}, folder)
        for form in forms:
            peers[form] = _run(torch, "layer", str(folder), form)
    session = Session(graph, "numpy")
    found = {"y": session.forward(given)["y"]} | session.backward({"y": upstream})
    apart = _apart(found, folder, forms[0]) if torch is not None else ""
    del session, graph
    for backend, *plain in WAYS if tokens == 512 else WAYS[:1]:
        ours = in_a_process(PASSES, str(tokens), backend, *plain)
        seconds = ours["forward"] + ours["backward"]
        label = f"{backend}{', without numba' if plain else ''}: forward and backward, {tokens} tokens"
        note = f"forward {ours['forward']:.2f} s"
        if not peers:
            yield Figure(label, seconds, "s", note=f"{note}; {WITHOUT}")
        for form, peer in peers.items():
            memory = f"peer: {FORMS[form]}, {peer['memory'] / 2**20:,.0f} MiB"
            about = "; ".join([note, memory, *([apart] if form == forms[0] else [])])
            yield Figure(label, seconds, "s", 0.0, peer["seconds"], "speed", TARGETS[form], about)
        limit = 1.2e9 / 2**20 if tokens == 512 else None
        yield Figure(f"{label}, most memory", ours["memory"] / 2**20, "MiB", compared="ours", target=limit)


def _hand_over(graph: Graph, arrays: dict[str, np.ndarray], folder: Path) -> None:
    """Writes what the peer reads."""
    names = {"experts_weights": "codes", "scales": "scales", "experts_bias": "bias"}
    for id, state in graph.nodes.items():
        if "tensor" in state.parameters:
            fc, _, what = id.partition("_")
            arrays[f"{fc}_{names[what]}"] = state.parameters["tensor"].array()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def _apart(found: dict[str, np.ndarray], folder: Path, form: str) -> str:
    """How far the numbers are from the peer's, at most: as parts of the largest number of each tensor."""
    worst = 0.0
    for name, array in found.items():
        peer = np.load(folder / f"{form} {name}.npy").reshape(array.shape)
        worst = max(worst, float(np.abs(array - peer).max() / np.abs(peer).max()))
    return f"all gradients apart by {worst:.0e} at most"


def _run(torch: Path, *words: str) -> dict[str, float]:
    return in_a_process("", str(PEER), str(THREADS), *words, python=torch)


def _step(torch: Path | None, folder: Path) -> Figure:
    label, seconds = "training step of the digits, batch 128", in_a_process(STEP)["step"]
    if torch is None:
        return Figure(label, 1e3 * seconds, "ms", note=WITHOUT)
    graph, data = load("snippets/digits_moe.yaml"), read_arrays("snippets/digits.npz")
    arrays = {"x": (data["images"][:1408] / 16).astype(np.float32), "y": data["digits"][:1408].astype(np.int64)}
    loss = float(Session(graph).forward({name: array[:128] for name, array in arrays.items()})["loss"])
    of = {id: state.parameters["tensor"].array() for id, state in graph.nodes.items() if "tensor" in state.parameters}
    given = {"images": arrays["x"], "labels": arrays["y"], "router": of["router_weight"]}
    given |= {"classifier": of["classifier_weight"], "bias": of["classifier_bias"]}
    for i in "12":
        packed, scales = of[f"fc{i}_experts_weights"], of[f"fc{i}_scales"]
        codes = np.stack([packed >> 2 * place & 3 for place in range(4)], -1).reshape(*packed.shape[:2], -1)
        zeros = np.stack([of[f"fc{i}_zero_points"] >> 2 * place & 3 for place in range(4)], -1)
        zeros = zeros.reshape(*packed.shape[:2], -1)[..., : scales.shape[2]]
        blocks = codes.reshape(*scales.shape, -1).astype(np.float32) - zeros[..., None]
        given |= {f"c{i}": blocks.reshape(codes.shape), f"s{i}": scales, f"b{i}": of[f"fc{i}_experts_bias"]}
    for name, array in given.items():
        np.save(folder / f"{name}.npy", array)
    peer = _run(torch, "digits", str(folder))
    forms = {"an expert at a time": peer["expert_by_expert"], "all experts on all tokens": peer["all_at_once"]}
    note = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in forms.items())
    note = f"peer: torch eager ({note}); losses {loss:.6f} and {peer['loss']:.6f}"
    return Figure(label, 1e3 * seconds, "ms", 0.0, 1e3 * min(forms.values()), "speed", 2.0, note)
