"""The layer that is measured: a block of gpt-oss-20b, 32 experts of 2880 x 2880, k = 4, all numbers random."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir
import onnxruntime

from benchmarks.figures import THREADS
from runtime import Graph, Tensor
from runtime.compile import compile_graph

EXPERTS, HIDDEN, INTER, TOP, BLOCK = 32, 2880, 2880, 4, 32
ELEMENTS = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True, slots=True)
class Variant:
    """What is unusual about a layer. `block_size` 0 is a scale for each row; `fusion` as swiglu_fusion says."""

    bits: int = 4
    block_size: int = BLOCK
    zero_points: bool = False
    fusion: int = 1
    fc3: bool = False
    element: str = "float"
    experts: int = EXPERTS
    hidden: int = HIDDEN
    inter: int = INTER
    accuracy_level: int = 0


def layer(variant: Variant = Variant(), *, trained: bool = False) -> Graph:
    """Inputs x [tokens, hidden] and router [tokens, experts], output y. `trained`: scales and biases have gradients."""
    random = np.random.default_rng(0)
    graph = Graph("layer")
    for name, width in (("x", variant.hidden), ("router", variant.experts)):
        declared = {"type": f"tensor({variant.element})", "shape": ["tokens", width]}
        graph.add("Input", name, parameters=declared)
    parameters: dict[str, object] = {
        "k": TOP,
        "expert_weight_bits": variant.bits,
        "activation_type": "silu" if variant.fc3 else "swiglu",
        "normalize_routing_weights": True,
    }
    if not variant.fc3:
        parameters |= {"swiglu_fusion": variant.fusion, "activation_alpha": 1.702, "activation_beta": 1.0}
        parameters |= {"swiglu_limit": 7.0}
    if variant.block_size:
        parameters["block_size"] = variant.block_size
    if variant.accuracy_level:
        parameters["accuracy_level"] = variant.accuracy_level
    graph.add("com.microsoft.QMoE", "moe", parameters=parameters)
    graph.wire("x.value", "moe.input")
    graph.wire("router.value", "moe.router_probs")
    shapes = {
        "fc1": ((1 if variant.fc3 else 2) * variant.inter, variant.hidden),
        "fc2": (variant.hidden, variant.inter),
    }
    if variant.fc3:
        shapes["fc3"] = (variant.inter, variant.hidden)
    for name, (rows, columns) in shapes.items():
        blocks = columns // variant.block_size if variant.block_size else 1
        size = 0.5 / (2 ** (variant.bits - 1)) / columns**0.5
        scales = random.uniform(size / 2, 2 * size, (variant.experts, rows, blocks)).astype(np.float32)
        arrays = {
            "experts_weights": random.integers(0, 256, (variant.experts, rows, columns * variant.bits // 8), np.uint8),
            "scales": scales if variant.block_size else scales[..., 0],
        }
        if variant.zero_points:
            packed = -(-blocks * variant.bits // 8) if variant.block_size else -(-rows * variant.bits // 8)
            shape = (variant.experts, rows, packed) if variant.block_size else (variant.experts, packed)
            arrays["zero_points"] = random.integers(0, 256, shape, np.uint8)
        bias = random.standard_normal((variant.experts, rows), np.float32) / 10
        arrays["experts_bias"] = bias.astype(ELEMENTS[variant.element])
        for what, array in arrays.items():
            own: dict[str, object] = {"tensor": Tensor.from_array(array)}
            if trained and what in ("scales", "experts_bias"):
                own["training_type"] = "trainable weight"
            graph.add("Initializer", f"{name}_{what}", parameters=own)
            graph.wire(f"{name}_{what}.value", f"moe.{name}_{what}")
    graph.add("Output", "y")
    graph.wire("moe.output", "y.value")
    return graph


def feeds(tokens: int, variant: Variant = Variant(), seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens and logits."""
    random = np.random.default_rng((tokens, seed) if seed else tokens)
    shapes = {"x": (tokens, variant.hidden), "router": (tokens, variant.experts)}
    element = ELEMENTS[variant.element]
    return {name: random.standard_normal(shape, np.float32).astype(element) for name, shape in shapes.items()}


def raw_session(graph: Graph) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the graph as it is written, with nothing of ours in between."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 4
    folder = Path(tempfile.mkdtemp(prefix="qmoe-bench-"))
    try:
        onnx_ir.save(compile_graph(graph).model, folder / "model.onnx", external_data="model.data")
        return onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
