"""Writes qwen3_moe_block.yaml, its tensors and its data: the last mixture-of-experts block of a small Qwen3-MoE.

    python snippets/make_qwen3_moe_block.py QUANTIZED.npz CHECKPOINT.safetensors [FOLDER]

QUANTIZED.npz (tests/data/qmoe/qwen3_moe_int4_b32.npz) holds one QMoE node: `attrs` (JSON), its inputs as `in.<port>`,
and `expected_routed`, what torch's experts make of the same input with the dequantized weights. CHECKPOINT.safetensors
is the checkpoint in Hugging Face's layout that it was quantized from; the router's weight of its last layer is taken
from it. Nothing is written unless the block as a whole gives torch's numbers on both backends.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from runtime import Graph, Session, Tensor, save
from runtime.atomic import replacing
from runtime.catalog import find
from runtime.snippets.tensor_files import read_tensors

NAME = "qwen3_moe_block"
DOC = (
    "One mixture-of-experts block of a small Qwen3-MoE with random weights: 8 experts, 3 for each token, SwiGLU, "
    "4-bit weights in blocks of 32. The data beside it are tokens, x, and what torch makes of them, y."
)
QMOE = "com.microsoft.QMoE"
LARGEST_ERROR = 1e-6  # relative to the largest number of torch's output


def router_weight(checkpoint: Path) -> np.ndarray:
    """The router's weight of the last layer, float32 [hidden, experts]."""
    tensors = read_tensors(checkpoint)
    routers = {int(match[1]): name for name in tensors if (match := re.search(r"\.(\d+)\.mlp\.gate\.weight$", name))}
    weight = tensors[routers[max(routers)]].array()
    return np.ascontiguousarray(weight.astype(np.float32).T)


def block(quantized: Any, router: np.ndarray) -> Graph:
    """Input -> router -> QMoE -> Output, from the arrays of QUANTIZED.npz and the router's weight."""
    node_type = find(QMOE)
    if node_type is None:
        sys.exit("The plug-in qmoe_node is not installed.")
    attributes = json.loads(str(quantized["attrs"]))
    attributes["normalize_routing_weights"] = bool(attributes["normalize_routing_weights"])
    graph = Graph(NAME, opsets={"": 23, "com.microsoft": 1})
    graph.set("", "doc", DOC, section="info")
    tokens = {"type": "tensor(float)", "shape": ["tokens", len(router)]}
    graph.add("Input", "x", parameters=tokens, layout={"source": {"file": f"{NAME}.data.npz"}})
    add_tensor(graph, "router_weight", router, "trainable weight")
    graph.add("MatMul", "router")
    graph.wire("x.value", "router.A")
    graph.wire("router_weight.value", "router.B")
    graph.add(QMOE, "moe", parameters=node_type.to_parameters(attributes))
    graph.wire("x.value", "moe.input")
    graph.wire("router.Y", "moe.router_probs")
    tensors = [port.name for port in node_type.inputs[2:] if f"in.{port.name}" in quantized]
    for port in tensors:
        add_tensor(graph, port, quantized[f"in.{port}"], "frozen weight")
        graph.wire(f"{port}.value", f"moe.{port}")
    graph.add("Output", "y")
    graph.wire("moe.output", "y.value")
    return graph


def add_tensor(graph: Graph, id: str, array: np.ndarray, training_type: str) -> None:
    """Adds an initializer."""
    parameters = {"tensor": Tensor.from_array(array), "training_type": training_type}
    graph.add("Initializer", id, parameters=parameters)


def write_data(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A .npz file that has the same bytes every time: NumPy's own would hold the hour at which it was written."""
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def main(quantized_path: str, checkpoint: str, folder: str = str(Path(__file__).parent)) -> None:
    """Makes the block, compares it with torch, writes it."""
    with np.load(quantized_path) as quantized:
        graph = block(quantized, router_weight(Path(checkpoint)))
        tokens, expected = quantized["in.input"], quantized["expected_routed"]
    for backend in ("onnxruntime", "numpy"):
        found = Session(graph, backend).forward({"x": tokens})["y"]
        error = np.abs(found - expected).max() / np.abs(expected).max()
        print(f"{backend}: largest difference from torch {error:.1e} of the largest output")
        if error > LARGEST_ERROR:
            sys.exit(f"{backend} is further than {LARGEST_ERROR} from torch's output: nothing was written.")
    for form in ("yaml", "png"):
        save(graph, Path(folder) / f"{NAME}.{form}")
    write_data(Path(folder) / f"{NAME}.data.npz", {"x": tokens, "y": expected})


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
