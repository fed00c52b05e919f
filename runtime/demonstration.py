"""`qmoe demo`: a tuned 2-bit classifier on real images, and a block of a language model beside torch's numbers."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
from rich.table import Table

from runtime.arrays import read_arrays
from runtime.errors import FileError
from runtime.expert_map import save_map
from runtime.files import load
from runtime.graph import Graph, PortRef
from runtime.reports import console, forward, times_table
from runtime.session import Session
from runtime.tensors import Tensor
from runtime.training.metrics import accuracy

BACKENDS: tuple[Literal["onnxruntime", "numpy"], ...] = ("onnxruntime", "numpy")
SNIPPET = "qwen3_moe_block"
DIGITS = "digits_moe"
STAGES = {"trained": "_float", "rounded": "_quantized", "tuned": ""}
WORDS = {
    "trained": "in float32",
    "rounded": "experts rounded to 2 bits",
    "tuned": "2 bits, through its gradient",
}
TEST = 360
"""The images at the end of digits.npz that no training saw."""
SHOWN_TOKENS = 6
BAR_WIDTH = 40


def show(picture: Path | None = None) -> None:
    """Runs both; a map of which expert sees which digit goes to `picture`, a PNG, if that is given."""
    digits(picture)
    console.print()
    block()


def digits(picture: Path | None) -> None:
    """Tells the digits of the test split, with the experts as they were trained, rounded and tuned."""
    folder = snippets_folder()
    graphs = {stage: load(folder / f"{DIGITS}{end}.yaml") for stage, end in STAGES.items()}
    tuned = graphs["tuned"]
    data = read_arrays(folder / "digits.npz")
    images, classes = data["images"][-TEST:].astype(np.float32) / 16, data["digits"][-TEST:].astype(np.int64)
    feeds = {"x": images, "y": classes}
    console.print(f"[bold]{tuned.name}[/bold]  {tuned.section('info').get('doc', '')}", width=80)
    _heading(f"Of {TEST} images that no training saw, right")
    times: dict[str, dict[str, float]] = {}
    arrays: dict[str, np.ndarray] = {}
    for stage, graph in graphs.items():
        shares = []
        # Float experts are ONNX Runtime's; there is no NumPy kernel for them.
        for backend in BACKENDS if stage != "trained" else BACKENDS[:1]:
            session = Session(graph, backend)
            probes = _given_to(graph, "moe") if stage == "tuned" else []
            forward(session, feeds)  # the first run finds caches cold
            result = forward(session, feeds, probes=probes, times=stage == "tuned")
            shares.append(f"{accuracy(result['logits'], classes):6.1%} ({backend})")
            if stage == "tuned":
                times[backend] = session.last_run.times
                arrays = arrays or _inputs_of(graph, "moe", session.last_run.probes)
        console.print(f"  {stage:<10} {WORDS[stage]:<30} {'  '.join(shares)}", markup=False)
    node_type = tuned.node_type("moe")
    routing = node_type.routing(arrays, node_type.to_attributes(tuned.nodes["moe"].parameters))  # type: ignore[union-attr]
    experts = arrays["router_probs"].shape[1]
    _heading("Images per expert, two experts for each")
    _bars(routing["experts"], experts)
    _heading("Time of every node")
    console.print(times_table(times))
    if picture is not None:
        counts = np.zeros((10, experts), int)
        np.add.at(counts, (np.repeat(classes, routing["experts"].shape[1]), routing["experts"].ravel()), 1)
        save_map(picture, counts, [f"digit {digit}" for digit in range(10)], "Which expert sees which digit")
        console.print(f"\n  Which expert sees which digit: {picture}", markup=False)


def block() -> None:
    """Runs the shipped block and prints where tokens go, how long nodes take, and how far the numbers are apart."""
    folder = snippets_folder()
    graph = load(folder / f"{SNIPPET}.yaml")
    data = read_arrays(folder / f"{SNIPPET}.data.npz")
    x, expected = data["x"], data["y"]
    moe = next(id for id, state in graph.nodes.items() if hasattr(graph.node_type(id), "routing"))
    console.print(f"[bold]{graph.name}[/bold]  {graph.section('info').get('doc', '')}", width=80)
    console.print(f"\n  {_chain(graph)}\n", markup=False)
    outputs: dict[str, np.ndarray] = {}
    times: dict[str, dict[str, float]] = {}
    arrays: dict[str, np.ndarray] = {}
    for backend in BACKENDS:
        start = perf_counter()
        session = Session(graph, backend)
        opened = perf_counter() - start
        probes = _given_to(graph, moe)
        forward(session, {"x": x}, times=True)  # the first run finds caches cold
        result = forward(session, {"x": x}, probes=probes, times=True)
        outputs[backend], times[backend] = result["y"], session.last_run.times
        arrays = arrays or _inputs_of(graph, moe, session.last_run.probes)
        took = sum(times[backend].values())
        console.print(f"  {backend:<12} opened in {opened * 1e3:.0f} ms, {len(x)} tokens in {took * 1e3:.2f} ms")
    node_type = graph.node_type(moe)
    routing = node_type.routing(arrays, node_type.to_attributes(graph.nodes[moe].parameters))  # type: ignore[union-attr]
    _heading("Where the first tokens go: expert, and its weight")
    console.print(_routing_table(routing))
    _heading("Tokens per expert")
    _bars(routing["experts"], arrays["router_probs"].shape[1])
    _heading("Time of every node")
    console.print(times_table(times))
    _heading("Largest difference, relative to the largest output")
    scale = np.abs(expected).max()
    pairs = {
        **{f"{backend} and torch": (outputs[backend], expected) for backend in BACKENDS},
        " and ".join(BACKENDS): tuple(outputs.values()),
    }
    for pair, (first, second) in pairs.items():
        console.print(f"  {pair:<24}{np.abs(first - second).max() / scale:.1e}")


def _heading(text: str) -> None:
    console.print()
    console.print(text, style="bold")


def _chain(graph: Graph) -> str:
    """The nodes in the order in which they run, tensors aside."""
    states = [graph.nodes[id] for id in graph.order() if graph.nodes[id].type != "Initializer"]
    names = [f"{state.id} ({operator})" if (operator := _operator(graph, state.id)) else state.id for state in states]
    return (" ─▶ " if _is_unicode() else " -> ").join(names)


def _operator(graph: Graph, id: str) -> str:
    node_type = graph.node_type(id)
    return node_type.operator if node_type is not None and node_type.is_operator else ""


def _is_unicode() -> bool:
    return (console.encoding or "").lower().startswith("utf")


def snippets_folder() -> Path:
    """Where the snippets are that come along: in the checkout, or inside the installed package."""
    checkout = Path(__file__).parent.parent / "snippets"
    if (checkout / f"{SNIPPET}.yaml").is_file():
        return checkout
    installed = Path(str(resources.files("qmoe_node") / "snippets"))
    if not (installed / f"{SNIPPET}.yaml").is_file():
        raise FileError(installed / f"{SNIPPET}.yaml", "is not there; the installation is incomplete.")
    return installed


def _given_to(graph: Graph, node: str) -> list[PortRef]:
    """What a node is given that is no tensor of the document."""
    return [source for source in graph.inputs_of(node).values() if graph.nodes[source.node].type != "Initializer"]


def _inputs_of(graph: Graph, node: str, probed: dict[str, Any]) -> dict[str, np.ndarray]:
    """A node's inputs as arrays: weights from the document, the others from a run's probes."""
    arrays: dict[str, np.ndarray] = {}
    for port, source in graph.inputs_of(node).items():
        tensor = graph.nodes[source.node].parameters.get("tensor")
        arrays[port] = tensor.array() if isinstance(tensor, Tensor) else probed[str(PortRef(*source))]
    return arrays


def _routing_table(routing: dict[str, np.ndarray]) -> Table:
    experts, weights = routing["experts"], routing["weights"]
    table = Table("token", box=None)
    for number in range(experts.shape[1]):
        table.add_column(f"choice {number + 1}", justify="right", style="cyan" if number == 0 else "")
    for token in range(min(SHOWN_TOKENS, len(experts))):
        pairs = zip(experts[token], weights[token], strict=True)
        table.add_row(str(token), *(f"expert {expert}  {weight:5.1%}" for expert, weight in pairs))
    if len(experts) > SHOWN_TOKENS:
        table.add_row(f"and {len(experts) - SHOWN_TOKENS} more")
    return table


def _bars(chosen: np.ndarray, experts: int) -> None:
    """Tokens per expert, as bars of text."""
    counts = np.bincount(chosen.ravel(), minlength=experts)
    full = "█" if _is_unicode() else "#"
    for expert, count in enumerate(counts):
        bar = full * max(int(count > 0), round(BAR_WIDTH * int(count) / max(1, int(counts.max()))))
        console.print(f"  expert {expert}  [cyan]{bar}[/cyan] {count}")
