"""`qmoe demo`: a tuned 2-bit classifier on real images, and a block of a language model beside torch's numbers."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
from rich.table import Table

from runtime.arrays import read_arrays
from runtime.expert_map import save_map
from runtime.files import load
from runtime.graph import Graph
from runtime.reports import console, forward, times_table
from runtime.routing import Routing, given_to, mixtures, routing_of
from runtime.session import Session
from runtime.shipped import snippets_folder
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
    routing: Routing | None = None
    for stage, graph in graphs.items():
        shares = []
        # Float experts are ONNX Runtime's; there is no NumPy kernel for them.
        for backend in BACKENDS if stage != "trained" else BACKENDS[:1]:
            session = Session(graph, backend)
            probes = given_to(graph, "moe") if stage == "tuned" else []
            forward(session, feeds)  # the first run finds caches cold
            result = forward(session, feeds, probes=probes, times=stage == "tuned")
            shares.append(f"{accuracy(result['logits'], classes):6.1%} ({backend})")
            if stage == "tuned":
                times[backend] = session.last_run.times
                routing = routing_of(graph, "moe", session.last_run.probes)
        console.print(f"  {stage:<10} {WORDS[stage]:<30} {'  '.join(shares)}", markup=False)
    assert routing is not None
    _heading("Images per expert, two experts for each")
    _bars(routing)
    _heading("Time of every node")
    console.print(times_table(times))
    if picture is not None:
        counts = np.zeros((10, routing.count), int)
        np.add.at(counts, (np.repeat(classes, routing.experts.shape[1]), routing.experts.ravel()), 1)
        save_map(picture, counts, [f"digit {digit}" for digit in range(10)], "Which expert sees which digit")
        console.print(f"\n  Which expert sees which digit: {picture}", markup=False)


def block() -> None:
    """Runs the shipped block and prints where tokens go, how long nodes take, and how far the numbers are apart."""
    folder = snippets_folder()
    graph = load(folder / f"{SNIPPET}.yaml")
    data = read_arrays(folder / f"{SNIPPET}.data.npz")
    x, expected = data["x"], data["y"]
    moe = mixtures(graph)[0]
    console.print(f"[bold]{graph.name}[/bold]  {graph.section('info').get('doc', '')}", width=80)
    console.print(f"\n  {_chain(graph)}\n", markup=False)
    outputs: dict[str, np.ndarray] = {}
    times: dict[str, dict[str, float]] = {}
    routing: Routing | None = None
    for backend in BACKENDS:
        start = perf_counter()
        session = Session(graph, backend)
        opened = perf_counter() - start
        probes = given_to(graph, moe)
        forward(session, {"x": x}, times=True)  # the first run finds caches cold
        result = forward(session, {"x": x}, probes=probes, times=True)
        outputs[backend], times[backend] = result["y"], session.last_run.times
        routing = routing_of(graph, moe, session.last_run.probes)
        took = sum(times[backend].values())
        console.print(f"  {backend:<12} opened in {opened * 1e3:.0f} ms, {len(x)} tokens in {took * 1e3:.2f} ms")
    assert routing is not None
    _heading("Where the first tokens go: expert, and its weight")
    console.print(_routing_table(routing))
    _heading("Tokens per expert")
    _bars(routing)
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


def _routing_table(routing: Routing) -> Table:
    experts, weights = routing.experts, routing.weights
    table = Table("token", box=None)
    for number in range(experts.shape[1]):
        table.add_column(f"choice {number + 1}", justify="right", style="cyan" if number == 0 else "")
    for token in range(min(SHOWN_TOKENS, len(experts))):
        pairs = zip(experts[token], weights[token], strict=True)
        table.add_row(str(token), *(f"expert {expert}  {weight:5.1%}" for expert, weight in pairs))
    if len(experts) > SHOWN_TOKENS:
        table.add_row(f"and {len(experts) - SHOWN_TOKENS} more")
    return table


def _bars(routing: Routing) -> None:
    """Tokens per expert, as bars of text."""
    counts = routing.tokens_per_expert()
    full = "█" if _is_unicode() else "#"
    for expert, count in enumerate(counts):
        bar = full * max(int(count > 0), round(BAR_WIDTH * int(count) / max(1, int(counts.max()))))
        console.print(f"  expert {expert}  [cyan]{bar}[/cyan] {count}")
