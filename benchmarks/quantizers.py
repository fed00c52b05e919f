"""How fast weights are quantized beside ONNX Runtime's own quantizer, and how much memory a large layer takes."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

from benchmarks.figures import Figure, beside, in_a_process
from qmoe_node.quantize import Scheme, quantized

ROWS, COLUMNS = 5760, 2880
HIDDEN, INTER, EXPERTS = 2880, 2880, 64
CONVERT = """
import sys
from runtime.cli import main
sys.argv[0] = "qmoe"
main()
"""


def figures(quick: bool) -> Iterator[Figure]:
    """Round to nearest on one matrix; and a checkpoint of 3.2 GB through the command, unless it is to be quick."""
    weights = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    theirs_layout = np.ascontiguousarray(weights.T)
    for bits in (2, 4, 8):
        for asymmetric in (False, True):
            scheme = Scheme(bits, 32, asymmetric)
            config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=not asymmetric, bits=bits)
            theirs = DefaultWeightOnlyQuantizer(config)
            yield beside(
                f"{bits} bits{', zero points' if asymmetric else ''}, {ROWS} x {COLUMNS}, blocks of 32",
                lambda scheme=scheme: quantized(weights, scheme).packed(),  # type: ignore[misc]
                lambda theirs=theirs: theirs.qbits_block_quant(theirs_layout),  # type: ignore[misc]
                compared="speed",
                target=2.0,
                note="peer: ONNX Runtime's quantizer",
            )
    if not quick:
        yield from _checkpoint()


def _checkpoint() -> Iterator[Figure]:
    folder = Path(tempfile.mkdtemp(prefix="qmoe-bench-"))
    try:
        size = write_checkpoint(folder / "model")
        start = time.perf_counter()
        words = ("quantize", str(folder / "model"), str(folder / "out.yaml"), "--report", str(folder / "report.json"))
        found = in_a_process(f"{CONVERT}", *words)
        label = f"{size / 1e9:.1f} GB of bfloat16 to 4 bits"
        yield Figure(label, time.perf_counter() - start, "s")
        yield Figure(f"{label}, most memory", found["memory"] / 2**20, "MiB", compared="ours", target=1024)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_checkpoint(folder: Path) -> int:
    """A Mixtral of one layer in bfloat16; its size in bytes."""
    folder.mkdir()
    configuration = {
        "model_type": "mixtral",
        "num_hidden_layers": 1,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
    }
    (folder / "config.json").write_text(json.dumps(configuration))
    prefix = "model.layers.0.block_sparse_moe"
    shapes = {f"{prefix}.gate.weight": (EXPERTS, HIDDEN)}
    for expert in range(EXPERTS):
        for name, shape in (("w1", (INTER, HIDDEN)), ("w3", (INTER, HIDDEN)), ("w2", (HIDDEN, INTER))):
            shapes[f"{prefix}.experts.{expert}.{name}.weight"] = shape
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            file.write((random.standard_normal(shape, np.float32) / 50).astype(ml_dtypes.bfloat16).tobytes())
    return offset
