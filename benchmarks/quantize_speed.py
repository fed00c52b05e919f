"""How fast weights are quantized beside ONNX Runtime's own quantizer, and how much memory a large layer takes.

python -m benchmarks.quantize_speed            the same matrix, 5760 x 2880, through both quantizers
python -m benchmarks.quantize_speed --layer    a synthetic checkpoint of 3 GB on disk, through `qmoe quantize`
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import alternating
from qmoe_node.quantize import Scheme, quantized

ROWS, COLUMNS = 5760, 2880
HIDDEN, INTER, EXPERTS = 2880, 2880, 64
MEMORY = 1 << 30


def matrices() -> None:
    """Round to nearest, blocks of 32: medians of calls made in turn."""
    weights = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    theirs_layout = np.ascontiguousarray(weights.T)
    table = Table(
        "bits", "zero points", "here, ms", "ONNX Runtime, ms", "ratio", title=f"{ROWS} x {COLUMNS}, blocks of 32"
    )
    for bits in (2, 4, 8):
        for asymmetric in (False, True):
            scheme = Scheme(bits, 32, asymmetric)
            config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=not asymmetric, bits=bits)
            theirs = DefaultWeightOnlyQuantizer(config)
            ours_times, theirs_times = alternating(
                lambda scheme=scheme: quantized(weights, scheme).packed(),  # type: ignore[misc]
                lambda theirs=theirs: theirs.qbits_block_quant(theirs_layout),  # type: ignore[misc]
            )
            ours, other = statistics.median(ours_times), statistics.median(theirs_times)
            table.add_row(
                str(bits),
                "yes" if asymmetric else "no",
                f"{1e3 * ours:.1f}",
                f"{1e3 * other:.1f}",
                f"{other / ours:.2f}",
            )
    Console().print(table)


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


def layer() -> None:
    """The whole command in a process of its own; memory as the system counts it, twenty times a second."""
    folder = Path(tempfile.mkdtemp(prefix="qmoe-bench-"))
    try:
        size = write_checkpoint(folder / "model")
        command = [sys.executable, "-m", "runtime.cli", "quantize", str(folder / "model"), str(folder / "out.yaml")]
        start = time.perf_counter()
        process = subprocess.Popen(command)
        most = {"VmRSS": 0, "RssAnon": 0}

        def watch() -> None:
            while process.poll() is None:
                try:
                    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                except OSError:
                    return
                for line in lines:
                    name = line.partition(":")[0]
                    if name in most:
                        most[name] = max(most[name], int(line.split()[1]) << 10)
                time.sleep(0.05)

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        watcher.join()
        seconds = time.perf_counter() - start
        console = Console()
        console.print(f"{size / 1e9:.2f} GB of bfloat16, 4 bits, blocks of 32: {seconds:.0f} s, exit code {code}")
        console.print(
            f"memory at most {most['VmRSS'] / 2**20:.0f} MiB, of which not of files {most['RssAnon'] / 2**20:.0f} MiB"
        )
        if most["VmRSS"] > MEMORY:
            console.print("more than 1 GiB")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    layer() if "--layer" in sys.argv[1:] else matrices()
