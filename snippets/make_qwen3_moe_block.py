"""Writes qwen3_moe_block.yaml, its tensors and its data: the last mixture-of-experts block of a small Qwen3-MoE.

    python snippets/make_qwen3_moe_block.py QUANTIZED.npz CHECKPOINT.safetensors [FOLDER]

QUANTIZED.npz (tests/data/qmoe/qwen3_moe_int4_b32.npz) holds one QMoE node: `attrs` (JSON), its inputs as `in.<port>`, and
`expected_routed`, what torch's experts make of the same input with the dequantized weights. CHECKPOINT.safetensors is the
checkpoint in Hugging Face's layout that it was quantized from; the router's weight of its last layer is taken from it.
Nothing is written unless the block as a whole gives torch's numbers on both backends.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np

from runtime import Graph, Session, Tensor, save
from runtime.commands.arrays import write_arrays
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
    layers = [
        int(match[1]) for name in tensors if (match := re.match(r"model\.layers\.(\d+)\.mlp\.gate\.weight", name))
    ]
    weight = tensors[f"model.layers.{max(layers)}.mlp.gate.weight"].array()
    return np.ascontiguousarray(weight.astype(np.float32).T)


def block(quantized: np.lib.npyio.NpzFile, router: np.ndarray) -> Graph:
    """Input -> router -> QMoE -> Output."""
    from runtime.catalog import find

    node_type = find(QMOE)
    assert node_type is not None, "qmoe_node is not installed"
    attributes = json.loads(str(quantized["attrs"]))
    attributes["normalize_routing_weights"] = bool(attributes["normalize_routing_weights"])
    graph = Graph(NAME, opsets={"": 23, "com.microsoft": 1})
    graph.set("", "doc", DOC, section="info")
    graph.add(
        "Input",
        "x",
        parameters={"type": "tensor(float)", "shape": ["tokens", len(router)]},
        layout={"position": [0, 0]},
    )
    add_tensor(graph, "router_weight", router, "trainable weight", row=1)
    graph.add("MatMul", "router", layout={"position": [320, 80]})
    graph.wire("x.value", "router.A")
    graph.wire("router_weight.value", "router.B")
    graph.add(QMOE, "moe", parameters=node_type.to_parameters(attributes), layout={"position": [640, 0]})
    graph.wire("x.value", "moe.input")
    graph.wire("router.Y", "moe.router_probs")
    ports = [port.name for port in node_type.inputs if f"in.{port.name}" in quantized]
    for row, port in enumerate(ports[2:], 2):
        add_tensor(graph, port, quantized[f"in.{port}"], "frozen weight", row)
        graph.wire(f"{port}.value", f"moe.{port}")
    graph.add("Output", "y", layout={"position": [960, 0]})
    graph.wire("moe.output", "y.value")
    return graph


def add_tensor(graph: Graph, id: str, array: np.ndarray, training_type: str, row: int) -> None:
    parameters = {"tensor": Tensor.from_array(array), "training_type": training_type}
    graph.add("Initializer", id, parameters=parameters, layout={"position": [0, 160 * row]})


def main(quantized_path: str, checkpoint: str, folder: str = str(Path(__file__).parent)) -> None:
    with np.load(quantized_path) as quantized:
        graph = block(quantized, router_weight(Path(checkpoint)))
        tokens, expected = quantized["in.input"], quantized["expected_routed"]
    for backend in ("onnxruntime", "numpy"):
        found = Session(graph, backend).forward({"x": tokens})["y"]
        error = np.abs(found - expected).max() / np.abs(expected).max()
        print(f"{backend}: largest difference from torch {error:.1e} of the largest output")
        if error > LARGEST_ERROR:
            sys.exit(f"{backend} is further than {LARGEST_ERROR} from torch's output: nothing was written.")
    save(graph, Path(folder) / f"{NAME}.yaml")
    write_arrays(Path(folder) / f"{NAME}.data.npz", {"x": tokens, "y": expected})


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
