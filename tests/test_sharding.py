"""Experts spread over parts: the same numbers, on one machine and cut apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmoe_node.sharding import shard
from runtime import load, save
from runtime.check import check
from runtime.drawing.scene import box_of
from runtime.editing import rename
from runtime.errors import GraphError
from runtime.graph import ABSENT, Graph, PortRef
from runtime.parts import PartedSession, alone, parts_of
from runtime.port_facts import ports_of
from runtime.session import Session
from runtime.tensors import Tensor
from runtime.types import ElementType
from tests.commands import ROOT, Qmoe, qmoe

__all__ = ["qmoe"]


def layered(
    layers: int = 1,
    *,
    experts: int = 6,
    k: int = 2,
    element: str = "float",
    bias: bool = True,
    router_weights: bool = False,
    three: bool = False,
    **parameters: Any,
) -> Graph:
    """QMoE layers behind each other, each with a residual; hidden 32, 16 rows inside, 4 bits in blocks of 16."""
    random = np.random.default_rng(layers)
    dtype = ElementType.parse(element).dtype
    graph = Graph("layers")
    graph.add(
        "Input", "x", parameters={"type": f"tensor({element})", "shape": [*(["batch"] if three else []), "n", 32]}
    )
    graph.add(
        "Input", "logits", parameters={"type": f"tensor({element})", "shape": ["tokens" if three else "n", experts]}
    )
    if router_weights:
        graph.add(
            "Input", "mix", parameters={"type": f"tensor({element})", "shape": ["tokens" if three else "n", experts]}
        )
    before = "x.value"
    for layer in range(layers):
        moe = graph.add(
            "com.microsoft.QMoE",
            f"moe{layer}",
            parameters={"k": k, "block_size": 16, "activation_type": "silu", **parameters},
        )
        tensors: dict[str, np.ndarray] = {
            "fc1_experts_weights": random.integers(0, 256, (experts, 16, 16), np.uint8),
            "fc1_scales": random.uniform(0.01, 0.1, (experts, 16, 2)).astype(dtype),
            "fc2_experts_weights": random.integers(0, 256, (experts, 32, 8), np.uint8),
            "fc2_scales": random.uniform(0.01, 0.1, (experts, 32, 1)).astype(dtype),
        }
        if bias:
            tensors["fc1_experts_bias"] = random.standard_normal((experts, 16)).astype(dtype)
            tensors["fc2_experts_bias"] = random.standard_normal((experts, 32)).astype(dtype)
        for port, array in tensors.items():
            graph.add("Initializer", f"{moe}_{port}", parameters={"tensor": Tensor.from_array(array)})
            graph.wire(f"{moe}_{port}.value", f"{moe}.{port}")
        graph.wire(before, f"{moe}.input")
        graph.wire("logits.value", f"{moe}.router_probs")
        if router_weights:
            graph.wire("mix.value", f"{moe}.router_weights")
        graph.add("Add", f"add{layer}")
        graph.wire(before, f"add{layer}.A")
        graph.wire(f"{moe}.output", f"add{layer}.B")
        before = f"add{layer}.C"
    graph.add("Output", "y")
    graph.wire(before, "y.value")
    return graph


def feeds_for(graph: Graph, tokens: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for id, state in graph.nodes.items():
        if state.type != "Input":
            continue
        dtype = ElementType.parse(str(state.parameters["type"])[7:-1]).dtype
        sizes = {"n": tokens, "batch": 2, "tokens": 2 * tokens}
        shape = [size if isinstance(size, int) else sizes[size] for size in state.parameters["shape"]]
        feeds[id] = random.standard_normal(shape, np.float32).astype(dtype)
    return feeds


class Apart:
    """The graph with every part in a session of its own."""

    def __init__(self, graph: Graph, backend: Any = "onnxruntime") -> None:
        parts = parts_of(graph)
        self.sessions = {node: Session(alone(graph, node), backend) for node in parts}
        self.between = PartedSession(graph, parts, backend)

    def forward(self, feeds: dict[str, Any]) -> dict[str, Any]:
        steps = self.between.steps(feeds)
        calls = next(steps)
        while True:
            try:
                calls = steps.send([self.sessions[node].forward(own) for node, own in calls])
            except StopIteration as end:
                outputs: dict[str, Any] = end.value
                return outputs


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


@settings(max_examples=25, deadline=None)
@given(
    parts=st.integers(1, 6),
    k=st.integers(1, 6),
    tokens=st.integers(0, 9),
    layers=st.integers(1, 2),
    bias=st.booleans(),
    router_weights=st.booleans(),
    normalize=st.booleans(),
    three=st.booleans(),
    backend=st.sampled_from(["onnxruntime", "numpy"]),
)
def test_a_spread_mixture_gives_the_numbers_of_the_whole(
    parts: int, k: int, tokens: int, layers: int, backend: Any, normalize: bool, **options: Any
) -> None:
    graph = layered(layers, k=k, normalize_routing_weights=normalize, **options)
    feeds = feeds_for(graph, tokens)
    whole = Session(graph, backend).forward(feeds)["y"]
    spread = shard(graph, parts)
    assert check(spread) == []
    for session in (Session(spread, backend), Apart(spread, backend)):
        found = session.forward(feeds)["y"]
        assert found.dtype == whole.dtype and found.shape == whole.shape
        np.testing.assert_allclose(found, whole, rtol=1e-6, atol=1e-6 * max(1.0, float(np.abs(whole).max(initial=0))))


@pytest.mark.parametrize("element", ["float16", "bfloat16"])
def test_parts_compute_in_float32_and_round_once(element: str) -> None:
    graph = layered(element=element)
    feeds = feeds_for(graph, 20)
    whole = wide(Session(graph).forward(feeds)["y"])
    found = Session(shard(graph, 3)).forward(feeds)["y"]
    assert found.dtype == feeds["x"].dtype
    unit = 2.0**-11 if element == "float16" else 2.0**-8
    assert np.abs(wide(found) - whole).max() <= unit * np.abs(whole).max()
    assert np.mean(wide(found) == whole) > 0.99


def test_the_sparse_mixer_and_unordered_logits_are_routed_as_before() -> None:
    graph = layered(use_sparse_mixer=True)
    feeds = feeds_for(graph, 20)
    np.testing.assert_allclose(
        Session(shard(graph, 2), "numpy").forward(feeds)["y"],
        Session(graph, "numpy").forward(feeds)["y"],
        rtol=1e-5,
        atol=1e-5,
    )
    graph = layered()
    feeds = feeds_for(graph, 5)
    feeds["logits"][2, 1] = np.nan
    whole, found = Session(graph).forward(feeds)["y"], Session(shard(graph, 2)).forward(feeds)["y"]
    assert np.isnan(whole[2]).all() and np.array_equal(np.isnan(found), np.isnan(whole))


def test_a_part_has_its_experts_and_no_others() -> None:
    graph = layered(experts=6)
    spread = shard(graph, 4)
    parts = parts_of(spread)
    assert sorted(parts.values()) == [0, 1, 2, 3]
    sizes = []
    for node in parts:
        part = alone(spread, node)
        tensors = {
            target.port: part.nodes[source.node].parameters["tensor"]
            for target, source in part.wires.items()
            if "tensor" in part.nodes[source.node].parameters
        }
        sizes.append(tensors["fc1_experts_weights"].shape[0])
        assert {tensor.shape[0] for tensor in tensors.values()} == {sizes[-1]}
    assert sizes == [1, 2, 1, 2]
    whole = graph.nodes["moe0_fc1_experts_weights"].parameters["tensor"].array()
    own = [spread.nodes[f"moe0_part_{part}_fc1_experts_weights"].parameters["tensor"].array() for part in range(4)]
    assert np.array_equal(np.concatenate(own), whole)
    assert "moe0_fc1_experts_weights" not in spread.nodes and "moe0_fc1_experts_weights" in graph.nodes


def test_layers_of_one_kind_share_their_functions_and_the_document_is_saved(tmp_path: Path) -> None:
    graph = shard(layered(2), 2)
    assert sorted(graph.section("functions")) == ["qmoe.parts::Collect", "qmoe.parts::Route", "qmoe.parts::Select"]
    feeds = feeds_for(graph, 7)
    expected = Session(graph).forward(feeds)["y"]
    for name in ("spread.yaml", "spread.onnx", "spread.png"):
        save(graph, tmp_path / name)
        read = load(tmp_path / name)
        np.testing.assert_allclose(Session(read).forward(feeds)["y"], expected, rtol=1e-6, atol=1e-6)
        assert parts_of(read) == parts_of(graph)


def test_what_cannot_be_spread_is_refused() -> None:
    def fails(graph: Graph, message: str, parts: int = 2, nodes: list[str] | None = None) -> None:
        with pytest.raises(GraphError, match=message):
            shard(graph, parts, nodes)

    fails(layered(experts=3), "moe0: 3 experts cannot be spread over 4 parts", 4)
    fails(layered(), "no QMoE node of this name. The QMoE nodes are moe0", nodes=["moe7"])
    fails(Graph(), "no QMoE node to spread")
    fails(layered(), "1 part at least; 0 came", 0)
    old = layered()
    old.set("", "", 13, section="opsets")
    fails(old, "version 13 of the standard operators; spreading experts needs 15")
    computed = layered()
    computed.add("Identity", "copy")
    computed.wire("moe0_fc1_scales.value", "copy.input")
    computed.wire("copy.output", "moe0.fc1_scales")
    fails(computed, "moe0.fc1_scales: is computed when the graph runs")
    wrong = layered()
    wrong.set("moe0", "k", 99)
    fails(wrong, "moe0")
    assert parts_of(layered()) == {}
    said = layered()
    said.set("", "parts", {"moe0": -1}, section="layout")
    with pytest.raises(GraphError, match="numbers of parts"):
        parts_of(said)
    said.set("", "parts", ABSENT, section="layout")


def test_values_are_brought_from_every_stage_to_those_that_need_them() -> None:
    """A graph that reads an input, an early value and a part's result late, and gives some of them out."""
    graph = layered(2)
    for id, source in (("early", "add0.C"), ("given", "x.value"), ("twice", "moe0.output")):
        graph.add("Output", id)
        graph.wire(source, f"{id}.value")
    graph.add("Mul", "late")
    graph.wire("add1.C", "late.A")
    graph.wire("add0.C", "late.B")
    graph.add("Output", "product")
    graph.wire("late.C", "product.value")
    spread = shard(graph, 2)
    feeds = feeds_for(graph, 6)
    whole, found = Session(graph).forward(feeds), Apart(spread).forward(feeds)
    assert list(found) == list(whole)
    for name in whole:
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-5, atol=1e-5)
    with pytest.raises(GraphError, match="logits"):
        Apart(spread).forward({"x": feeds["x"]})


def test_a_session_of_the_spread_layer_keeps_no_weights_of_other_parts() -> None:
    graph = shard(layered(experts=4), 4)
    part = alone(graph, "moe0_part_2")
    assert {state.type for state in part.nodes.values()} == {"Input", "Initializer", "Output", "com.microsoft.QMoE"}
    assert str(part.checker.type_of(PortRef("moe0_part_2", "output"))).startswith("tensor(float) [")


def test_the_command_shows_and_writes_a_spread_graph(qmoe: Qmoe, tmp_path: Path) -> None:
    source = ROOT / "snippets" / "digits_moe.yaml"
    shown = qmoe("shard", source, "--parts", 4, "--json")
    rows = json.loads(shown.out)["nodes"]
    assert [row["experts"] for row in rows] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert not list(tmp_path.iterdir())
    ended = qmoe("shard", source, "spread.yaml", "--parts", 2)
    assert ended.code == 0 and "Written to spread.yaml" in ended.out
    assert qmoe("check", "spread.yaml").code == 0
    assert qmoe("shard", source, "spread.txt").code in (1, 2)
    assert "8 experts cannot be spread over 9 parts" in qmoe("shard", source, "--parts", 9).err


def equal(whole: Graph, spread: Graph, tokens: int = 5) -> None:
    """Both graphs give the same, the spread one also cut apart."""
    assert check(spread) == []
    feeds = feeds_for(whole, tokens)
    expected = Session(whole).forward(feeds)
    for session in (Session(spread), Session(spread, "numpy"), Apart(spread)):
        found = session.forward(feeds)
        assert list(found) == list(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


def test_what_is_spread_already_is_left_as_it_is() -> None:
    whole = layered(2)
    first = shard(whole, 2, ["moe0"])
    for spread in (shard(first, 3), shard(first, 3, ["moe1"])):
        parts = parts_of(spread)
        assert sorted(parts.values()) == [0, 0, 1, 1, 2] and not any("part_0_part" in id for id in parts)
        equal(whole, spread)
    with pytest.raises(GraphError, match=r"^All QMoE nodes of the graph are parts already\. Spread the graph that"):
        shard(shard(whole, 2), 2)
    with pytest.raises(GraphError, match="^moe0_part_0: This node is a part already"):
        shard(first, 2, ["moe0_part_0"])


def sums_up(graph: Graph, value: str) -> Graph:
    """The graph with an If one of whose branches reads a value by its name."""
    body = Graph("body")
    body.add("Capture", "outer", parameters={"name": value})
    body.add("ReduceSum", "sum", parameters={"keepdims": 0})
    body.add("Output", "result")
    body.wire("outer.value", "sum.data")
    body.wire("sum.reduced", "result.value")
    graph.add("Initializer", "condition", parameters={"tensor": Tensor.from_array(np.array(True))})
    graph.add("If", "choice", parameters={"then_branch": body, "else_branch": body.copy()})
    graph.add("Output", "total")
    graph.wire("condition.value", "choice.cond")
    graph.wire("choice.outputs.0", "total.value")
    return graph


@pytest.mark.parametrize("value", ["moe0_fc1_scales", "moe0.output", "x"])
def test_subgraphs_read_what_they_read_before(value: str) -> None:
    graph = sums_up(layered(), value)
    equal(graph, shard(graph, 2))


def test_an_output_keeps_the_name_that_it_was_given() -> None:
    graph = sums_up(layered(), "mixed")
    graph.set("moe0", "specified_outputs_name", ["mixed"])
    equal(graph, shard(graph, 3))


def test_mixtures_inside_subgraphs_and_functions_are_named() -> None:
    graph = Graph()
    inner = layered()
    graph.add("Initializer", "condition", parameters={"tensor": Tensor.from_array(np.array(True))})
    for id in ("x", "logits"):
        graph.add("Input", id, parameters=dict(inner.nodes[id].parameters))
        targets = inner.targets(PortRef(id, "value"))
        inner.remove(id)
        inner.add("Capture", id, parameters={"name": id})
        for target in targets:
            inner.wire(PortRef(id, "value"), target)
    graph.add("If", "choice", parameters={"then_branch": inner, "else_branch": inner.copy()})
    graph.add("Output", "y")
    graph.wire("condition.value", "choice.cond")
    graph.wire("choice.outputs.0", "y.value")
    with pytest.raises(GraphError, match="QMoE nodes only inside choice; those of the graph itself can be spread"):
        shard(graph, 2)


def test_weights_that_a_run_may_replace_are_not_spread() -> None:
    graph = layered()
    graph.set("moe0_fc1_scales", "overridable", True)
    with pytest.raises(GraphError, match=r"moe0\.fc1_scales: moe0_fc1_scales may be given anew in every run"):
        shard(graph, 2)
    graph = layered()
    graph.add("Initializer", "factor", parameters={"tensor": Tensor.from_array(np.full(32, 2, np.float32))})
    graph.set("factor", "overridable", True)
    graph.add("Mul", "scaled")
    graph.wire("add0.C", "scaled.A")
    graph.wire("factor.value", "scaled.B")
    graph.wire("scaled.C", "y.value")
    spread = shard(graph, 2)
    equal(graph, spread)
    feeds = feeds_for(graph, 3) | {"factor": np.ones(32, np.float32)}
    whole, found = Session(graph).forward(feeds)["y"], Apart(spread).forward(feeds)["y"]
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)


def test_what_is_not_counted_by_experts_is_not_cut() -> None:
    graph = layered()
    graph.add("Initializer", "scale", parameters={"tensor": Tensor.from_array(np.ones(1, np.float32))})
    graph.wire("scale.value", "moe0.fc1_act_scale")
    spread = shard(graph, 2)
    feeds = feeds_for(graph, 4)
    np.testing.assert_allclose(
        Apart(spread).forward(feeds)["y"], Session(graph).forward(feeds)["y"], rtol=1e-5, atol=1e-5
    )


def test_a_mixture_that_nobody_reads_costs_nothing() -> None:
    graph = layered()
    graph.wire("x.value", "y.value")
    equal(graph, shard(graph, 2))


def test_only_operators_belong_to_parts() -> None:
    graph = layered()
    graph.set("", "parts", {"moe0": 0, "x": 1}, section="layout")
    with pytest.raises(GraphError, match=r"^x: layout\.parts says that a worker has it; it is an Input"):
        parts_of(graph)


def test_ports_of_the_functions_have_their_names(qmoe: Qmoe, tmp_path: Path) -> None:
    spread = shard(layered(router_weights=True), 2)

    def labels(id: str) -> tuple[list[str], list[str]]:
        box = box_of(spread, id)
        return [terminal.label for terminal in box.inputs], [terminal.label for terminal in box.outputs]

    assert labels("moe0_route") == (["input", "router_probs", "router_weights"], ["tokens", "experts", "weights"])
    selected = ["routed_tokens", "choice", "routed_weights", "places"]
    assert labels("moe0_select_1") == (["tokens", "experts", "weights"], selected)
    assert labels("moe0") == (["input", "places_0", "places_1", "results_0", "results_1"], ["output"])
    assert [facts.title for facts in ports_of(spread, "moe0_select_0", [])] == [*labels("moe0_select_0")[0], *selected]
    save(spread, tmp_path / "spread.yaml")
    assert "routed_weights: tensor(float)" in qmoe("info", "spread.yaml").out


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("element", ["float", "float16"])
def test_a_spread_graph_runs_in_a_plain_onnx_runtime(tmp_path: Path, target: Any, element: str) -> None:
    graph = layered(2, element=element)
    path = tmp_path / "spread.onnx"
    save(shard(graph, 3), path, target=target)
    onnx.checker.check_model(path, full_check=True)
    feeds = feeds_for(graph, 9)
    (found,) = onnxruntime.InferenceSession(path).run(None, feeds)
    expected = Session(graph).forward(feeds)["y"]
    unit = 1e-6 if element == "float" else 2.0**-10
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=unit * np.abs(wide(expected)).max())


def test_a_part_that_is_renamed_stays_a_part() -> None:
    spread = shard(layered(), 2)
    rename(spread, "moe0_part_1", "second")
    assert parts_of(spread) == {"moe0_part_0": 0, "second": 1}
    equal(layered(), spread)
    spread.undo()
    assert parts_of(spread) == {"moe0_part_0": 0, "moe0_part_1": 1}
