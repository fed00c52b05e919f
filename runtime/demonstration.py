"""`qmoe demo`: a real mixture-of-experts block on real input, on both backends, beside torch's numbers."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.table import Table

from runtime.errors import FileError
from runtime.files import load
from runtime.graph import Graph, PortRef
from runtime.reports import console, forward, times_table
from runtime.session import Session
from runtime.tensors import Tensor

SNIPPET = "qwen3_moe_block"
SHOWN_TOKENS = 6
BAR_WIDTH = 40


def show() -> None:
    """Runs the shipped block and prints where tokens go, how long nodes take, and how far the numbers are apart."""
    folder = snippets_folder()
    graph = load(folder / f"{SNIPPET}.yaml")
    data = np.load(folder / f"{SNIPPET}.data.npz", allow_pickle=False)
    x, expected = data["x"], data["y"]
    moe = next(id for id, state in graph.nodes.items() if hasattr(graph.node_type(id), "routing"))
    console.print(f"{graph.name}: {len(graph.nodes)} nodes, {len(x)} tokens of {x.shape[1]} numbers")
    outputs: dict[str, np.ndarray] = {}
    times: dict[str, dict[str, float]] = {}
    arrays: dict[str, np.ndarray] = {}
    for backend in ("numpy", "onnxruntime"):
        start = perf_counter()
        session = Session(graph, backend)
        opened = perf_counter() - start
        probes = [source for source in graph.inputs_of(moe).values() if graph.nodes[source.node].type != "Initializer"]
        result = forward(session, {"x": x}, probes=probes, times=True)
        outputs[backend], times[backend] = result["y"], session.last_run.times
        arrays = arrays or _inputs_of(graph, moe, session.last_run.probes)
        console.print(
            f"  {backend}: opened in {opened * 1e3:.0f} ms, ran in {sum(times[backend].values()) * 1e3:.2f} ms"
        )
    node_type = graph.node_type(moe)
    routing = node_type.routing(arrays, node_type.to_attributes(graph.nodes[moe].parameters))  # type: ignore[union-attr]
    console.print()
    console.print(_routing_table(routing))
    console.print()
    _bars(routing["experts"], arrays["router_probs"].shape[1])
    console.print()
    console.print(times_table(times))
    console.print()
    scale = np.abs(expected).max()
    for backend, y in outputs.items():
        console.print(
            f"{backend} and torch differ by at most {np.abs(y - expected).max() / scale:.1e} of the largest output"
        )
    between = np.abs(outputs["numpy"] - outputs["onnxruntime"]).max() / scale
    console.print(f"numpy and onnxruntime differ by at most {between:.1e}")


def snippets_folder() -> Path:
    """Where the snippets are that come along: in the checkout, or inside the installed package."""
    checkout = Path(__file__).parent.parent / "snippets"
    if (checkout / f"{SNIPPET}.yaml").is_file():
        return checkout
    installed = Path(str(resources.files("qmoe_node") / "snippets"))
    if not (installed / f"{SNIPPET}.yaml").is_file():
        raise FileError(installed / f"{SNIPPET}.yaml", "is not there; the installation is incomplete.")
    return installed


def _inputs_of(graph: Graph, node: str, probed: dict[str, Any]) -> dict[str, np.ndarray]:
    """A node's inputs as arrays: weights from the document, the others from a run's probes."""
    arrays: dict[str, np.ndarray] = {}
    for port, source in graph.inputs_of(node).items():
        tensor = graph.nodes[source.node].parameters.get("tensor")
        arrays[port] = tensor.array() if isinstance(tensor, Tensor) else probed[str(PortRef(*source))]
    return arrays


def _routing_table(routing: dict[str, np.ndarray]) -> Table:
    experts, weights = routing["experts"], routing["weights"]
    table = Table("token", *(f"choice {number + 1}" for number in range(experts.shape[1])), box=None, title="Routing")
    for token in range(min(SHOWN_TOKENS, len(experts))):
        pairs = zip(experts[token], weights[token], strict=True)
        table.add_row(str(token), *(f"expert {expert} x {weight:.3f}" for expert, weight in pairs))
    if len(experts) > SHOWN_TOKENS:
        table.add_row(f"and {len(experts) - SHOWN_TOKENS} more")
    return table


def _bars(chosen: np.ndarray, experts: int) -> None:
    """Tokens per expert, as bars of text."""
    counts = np.bincount(chosen.ravel(), minlength=experts)
    console.print("Tokens per expert")
    full = "█" if (console.encoding or "").lower().startswith("utf") else "#"
    for expert, count in enumerate(counts):
        bar = full * max(int(count > 0), round(BAR_WIDTH * int(count) / max(1, int(counts.max()))))
        console.print(f"  expert {expert} {bar} {count}", markup=False)
