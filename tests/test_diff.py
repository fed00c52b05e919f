"""Differences between graphs, as sentences about meaning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import load, save
from runtime.attributes import Typed
from runtime.diff import ChangeKind, diff
from runtime.graph import Graph, NodeState, PortRef
from runtime.tensors import Tensor
from tests.snippet_graphs import example, graphs


def sentences(a: Graph, b: Graph) -> list[str]:
    return [str(change) for change in diff(a, b)]


def shuffled(graph: Graph, names: dict[str, str] | None = None) -> Graph:
    """The same graph with nodes, wires and parameters listed backwards, elsewhere, and perhaps renamed."""
    names = names or {}
    nodes = [
        NodeState(
            names.get(state.id, state.id),
            state.type,
            dict(reversed(state.parameters.items())),
            {"position": [1, 2]},
            dict(reversed(state.extra.items())),
        )
        for state in reversed(graph.nodes.values())
    ]
    wires = [
        (
            PortRef(names.get(source.node, source.node), source.port),
            PortRef(names.get(target.node, target.node), target.port),
        )
        for target, source in reversed(graph.wires.items())
    ]
    sections = {key: graph.section(key) for key in ("info", "opsets", "functions", "extra")}
    return Graph.build(nodes, wires, {**sections, "layout": {"groups": []}})


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_order_and_layout_are_no_difference(graph: Graph) -> None:
    assert diff(graph, shuffled(graph)) == []


@settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
@given(graphs(0), graphs(0))
def test_what_differs_is_seen_from_both_sides(a: Graph, b: Graph) -> None:
    there, back = diff(a, b), diff(b, a)
    assert bool(there) == bool(back)
    opposite = {
        ChangeKind.NODE_ADDED: ChangeKind.NODE_REMOVED,
        ChangeKind.WIRE_ADDED: ChangeKind.WIRE_REMOVED,
        ChangeKind.FUNCTION_ADDED: ChangeKind.FUNCTION_REMOVED,
    }
    opposite |= {value: key for key, value in opposite.items()}
    kinds = sorted(change.kind for change in there)
    assert kinds == sorted(opposite.get(change.kind, change.kind) for change in back)
    for change in there:
        assert str(change).endswith(".")


@settings(deadline=None, max_examples=20)
@given(st.permutations(["x", "w", "codes", "b", "router", "sum", "y"]))
def test_renamed_nodes_are_found_by_what_feeds_them(order: list[str]) -> None:
    names = {old: f"new_{index}" for index, old in enumerate(order)}
    changes = diff(example(), shuffled(example(), names))
    assert {change.old: change.new for change in changes} == names
    assert {change.kind for change in changes} == {ChangeKind.NODE_RENAMED}


def test_a_renamed_node_that_changed_is_another_node() -> None:
    a, b = example(), shuffled(example(), {"router": "gate"})
    assert sentences(a, b) == ["router: renamed to gate."]
    b.set("gate", "name", "n")
    assert sentences(a, b) == [
        "router: removed (MatMul).",
        "gate: added (MatMul).",
        "router.A: wire from x.value removed.",
        "router.B: wire from w.value removed.",
        "sum.A: wire from router.Y removed.",
        "sum.A: wire from gate.Y added.",
        "gate.B: wire from w.value added.",
        "gate.A: wire from x.value added.",
    ]


def test_every_change_is_a_sentence() -> None:
    a, b = example(), example()
    b.set("x", "shape", ["tokens", 32])
    b.set("router", "lda coeff", 0.5)
    b.cut("sum.B")
    b.wire("x.value", "sum.B")
    b.add("Relu", "relu")
    b.remove("codes")
    b.set("", "", 24, section="opsets")
    b.set("", "name", "other", section="info")
    b.set("", "future", True, section="extra")
    b.set("sum", "note", "n", section="extra")
    b.set("", "", 24, section="opsets")
    assert sentences(a, b) == [
        "name: 'example' -> 'other'.",
        'opset "": 23 -> 24.',
        "x.shape: ['tokens', 64] -> ['tokens', 32].",
        "codes: removed (Initializer).",
        "router.lda coeff: not set -> 0.5.",
        "sum.note: not set -> 'n'.",
        "relu: added (Relu).",
        "sum.B: wire from b.value removed.",
        "sum.B: wire from x.value added.",
        "future: not set -> True.",
    ]


def test_a_retyped_node_is_one_change() -> None:
    a = example()
    nodes = [NodeState(s.id, "Sub" if s.id == "sum" else s.type, s.parameters) for s in a.nodes.values()]
    wires = [(source, target) for target, source in a.wires.items()]
    b = Graph.build(nodes, wires, {key: a.section(key) for key in ("info", "opsets")})
    assert sentences(a, b) == ["sum: type Add -> Sub."]


def test_a_default_is_no_change() -> None:
    a, b = example(), example()
    b.set("router", "training?", True)
    a.set("router", "training?", None)
    b.set("router", "lda coeff", 1)
    b.set("router", "specified_outputs_name", [])
    assert diff(a, b) == []
    b.set("router", "lda coeff", 2)
    assert sentences(a, b) == ["router.lda coeff: not set -> 2."]


def tensor_change(old: Any, new: Any) -> str:
    a, b = Graph(), Graph()
    a.add("Initializer", "t", parameters={"tensor": Tensor.from_array(np.asarray(old))})
    b.add("Initializer", "t", parameters={"tensor": Tensor.from_array(np.asarray(new))})
    (text,) = sentences(a, b)
    return text.partition(" (SHA-256 ")[0]


def test_tensors_tell_how_far_they_are_apart() -> None:
    old = np.zeros((3, 4), np.float32)
    new = old.copy()
    new[1, 2], new[2, 0] = -0.5, 0.25
    where = "t.tensor: tensor(float) [3, 4]: 2 of 12 elements differ, by up to 0.5 at [1, 2]"
    assert tensor_change(old, new) == where
    new[2, 3] = math.nan
    assert tensor_change(old, new) == "t.tensor: tensor(float) [3, 4]: 3 of 12 elements differ, by up to nan at [2, 3]"
    assert tensor_change(old, -old) == "t.tensor: tensor(float) [3, 4]: the same numbers in other bits"
    assert tensor_change(old, old.T) == "t.tensor: tensor(float) [3, 4] -> tensor(float) [4, 3]."
    assert tensor_change(old, old.astype(np.float64)) == "t.tensor: tensor(float) [3, 4] -> tensor(double) [3, 4]."
    texts = "t.tensor: tensor(string) [2]: 1 of 2 texts differ"
    assert tensor_change(np.array(["a", "b"], object), np.array(["a", "c"], object)) == texts
    assert "by up to 5 at [1]" in tensor_change([1 + 0j, 0], [1 + 0j, 3 + 4j])
    large = np.zeros((3 << 20) + 5, np.uint8)
    other = large.copy()
    other[[7, -1]] = 2, 255
    assert f"2 of {large.size} elements differ, by up to 255 at [{large.size - 1}]" in tensor_change(large, other)


def nested(value: float) -> Graph:
    inner = Graph(opsets={"": 23})
    inner.add("Constant", "c", parameters={"value_float": value})
    outer = Graph(opsets={"": 23})
    outer.add("If", "branch", parameters={"then_branch": inner})
    body = inner.copy()
    return Graph.build(outer.nodes.values(), [], {"opsets": {"": 23}, "functions": {"my::f": body}})


def test_nested_graphs_are_compared_too() -> None:
    assert diff(nested(1.0), nested(1.0)) == []
    assert sentences(nested(1.0), nested(2.0)) == [
        "my::f/c.value_float: 1.0 -> 2.0.",
        "branch.then_branch/c.value_float: 1.0 -> 2.0.",
    ]
    bare = nested(1.0)
    bare.set("", "my::f", Graph(), section="functions")
    assert sentences(bare, nested(1.0)) == ['my::f/opset "": not set -> 23.', "my::f/c: added (Constant)."]


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (1, 1.0, "n.p: 1 -> 1.0."),
        (0.0, -0.0, "n.p: 0.0 -> -0.0."),
        (math.nan, 1.0, "n.p: nan -> 1.0."),
        ([], Typed("floats", []), "n.p: [] -> floats []."),
        ("1", b"1", "n.p: '1' -> b'1'."),
        ("x" * 200, None, f"n.p: '{'x' * 76}... -> None."),
    ],
)
def test_values_that_only_look_alike_differ(old: Any, new: Any, text: str) -> None:
    a, b = Graph(), Graph()
    a.add("my.Op", "n", parameters={"p": old})
    b.add("my.Op", "n", parameters={"p": new})
    assert sentences(a, b) == [text]


def test_lists_and_tuples_and_nans_are_alike() -> None:
    a, b = Graph(), Graph()
    a.add("my.Op", "n", parameters={"p": (1, math.nan), "q": {"a": []}})
    b.add("my.Op", "n", parameters={"p": [1, float("nan")], "q": {"a": ()}})
    assert diff(a, b) == []


def test_what_a_conversion_writes_out_is_no_difference(tmp_path: Path) -> None:
    graph = Graph("hello")
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["n", 4]})
    graph.add("Relu", "relu")
    graph.add("Output", "y")
    graph.wire("x.value", "relu.X")
    graph.wire("relu.Y", "y.value")
    save(graph, tmp_path / "hello.onnx")
    again = load(tmp_path / "hello.onnx")
    assert again.opsets and again.nodes["y"].parameters["type"] == "tensor(float)"
    assert diff(graph, again) == diff(again, graph) == []
    again.set("y", "shape", ["n", 5])
    again.set("", "", 17, section="opsets")
    assert sorted(change.place for change in diff(graph, again)) == ['opset ""', "y.shape"]


def test_the_order_of_inputs_is_a_difference() -> None:
    def of(*names: str) -> Graph:
        graph = Graph("g")
        for name in names:
            graph.add("Input", name)
        return graph

    (change,) = diff(of("a", "b"), of("b", "a"))
    assert str(change) == "Inputs: ['a', 'b'] -> ['b', 'a']."
    assert [str(change) for change in diff(of("a", "b"), of("a"))] == ["b: removed (Input)."]


def test_numbers_of_numpy_are_numbers() -> None:
    def of(value: object) -> Graph:
        graph = Graph("g")
        graph.add("LeakyRelu", "node", parameters={"alpha": value})
        return graph

    assert diff(of(0.5), of(np.float32(0.5))) == []
    assert len(diff(of(0.5), of(np.float32(0.25)))) == 1
