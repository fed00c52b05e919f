"""The checker: what it finds, what it leaves alone, and that it keeps up with edits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Session
from runtime.check import Checker, check
from runtime.errors import Finding, GraphError, Severity
from runtime.graph import ABSENT, Graph
from runtime.tensors import Tensor
from runtime.types import ElementType, TensorType


def graph_of(nodes: Mapping[str, tuple[str, dict[str, Any], dict[str, str]]], **opsets: int) -> Graph:
    """A graph from {id: (type, parameters, {input: source})}."""
    graph = Graph(opsets={"": 23} | opsets)
    for id, (type_, parameters, _) in nodes.items():
        graph.add(type_, id, parameters=parameters)
    for id, (_, _, inputs) in nodes.items():
        for port, source in inputs.items():
            graph.wire(source, f"{id}.{port}")
    return graph


def tensor(*shape: int, dtype: Any = np.float32) -> dict[str, Any]:
    return {"tensor": Tensor.from_array(np.zeros(shape, dtype))}


def value(*shape: int | str | None, element: str = "float") -> dict[str, Any]:
    return {"type": f"tensor({element})", "shape": list(shape)}


def linear(**changes: Any) -> Graph:
    nodes = {
        "x": ("Input", value("tokens", 4), {}),
        "w": ("Initializer", tensor(4, 3), {}),
        "mm": ("MatMul", {}, {"A": "x.value", "B": "w.value"}),
        "y": ("Output", {}, {"value": "mm.Y"}),
    }
    return graph_of(nodes | changes)


def errors(graph: Graph) -> list[Finding]:
    return [finding for finding in check(graph) if finding.severity is Severity.ERROR]


def only(graph: Graph) -> Finding:
    found = errors(graph)
    assert len(found) == 1, found
    return found[0]


def test_a_right_graph_has_no_findings_and_known_types() -> None:
    graph = linear()
    assert check(graph) == []
    assert str(graph.checker.type_of("mm.Y")) == "tensor(float) [tokens, 3]"


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        ({"mm": ("MatMull", {}, {})}, ("mm", ""), "Did you mean MatMul?"),
        ({"mm": ("MatMul", {}, {"A": "x.value"})}, ("mm", "B"), "required input"),
        ({"w": ("Initializer", tensor(5, 3), {})}, ("mm", ""), "4 vs 5"),
        ({"w": ("Initializer", tensor(4, 3, dtype=np.int64), {})}, ("mm", "B"), "expected tensor(float)"),
        ({"w": ("Initializer", tensor(4, 3, dtype=bool), {})}, ("mm", "B"), "got tensor(bool)"),
        ({"w": ("Initializer", {}, {})}, ("w", "tensor"), "required parameter"),
        ({"w": ("Initializer", tensor(4, 3) | {"training_type": "no"}, {})}, ("w", "training_type"), "one of"),
        ({"mm": ("MatMul", {"lda coeff": "much"}, {"A": "x.value", "B": "w.value"})}, ("mm", "lda coeff"), "a number"),
        ({"mm": ("MatMul", {"trans": 1}, {"A": "x.value", "B": "w.value"})}, ("mm", "trans"), "no such parameter"),
        ({"x": ("Input", {"type": "tensor(float32)"}, {})}, ("x", "type"), "ONNX spells it 'float'"),
        ({"y": ("Output", {"type": "tensor(int64)"}, {"value": "mm.Y"})}, ("y", "value"), "declared as tensor(int64)"),
        ({"x": ("Input", value("tokens", 4) | {"name": "w"}, {})}, ("w", "name"), "taken by x"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(change: dict[str, Any], place: tuple[str, str], words: str) -> None:
    if "mm" in change and change["mm"][0] == "MatMull":
        graph = Graph(opsets={"": 23})
        graph.add("MatMull", "mm")
        graph.add("Output", "y")
        graph.wire("mm.Y", "y.value")
    else:
        graph = linear(**change)
    finding = only(graph)
    assert (finding.node, finding.port) == place
    assert words in str(finding)


def test_an_operator_newer_than_the_graphs_operator_set_is_named_as_such() -> None:
    graph = Graph(opsets={"": 13})
    graph.add("Gelu", "gelu")
    assert "version 20" in str(only(graph))


def test_a_graph_without_outputs_and_an_operator_without_kernel_are_warnings() -> None:
    graph = Graph()
    graph.add("Input", "x", parameters=value(1))
    assert [(f.severity, f.code) for f in check(graph)] == [(Severity.WARNING, "no-outputs")]
    assert check(Graph()) == []


def test_shapes_are_followed_through_computed_shapes() -> None:
    graph = graph_of(
        {
            "x": ("Input", value("batch", "tokens", 64), {}),
            "shape": ("Shape", {}, {"data": "x.value"}),
            "first": ("Initializer", {"tensor": Tensor.from_array(np.array([0]))}, {}),
            "batch": ("Gather", {}, {"data": "shape.shape", "indices": "first.value"}),
            "rest": ("Initializer", {"tensor": Tensor.from_array(np.array([-1, 8, 8]))}, {}),
            "target": ("Concat", {"axis": 0}, {"inputs.0": "batch.output", "inputs.1": "rest.value"}),
            "split": ("Reshape", {}, {"data": "x.value", "shape": "target.concat_result"}),
            "y": ("Output", {}, {"value": "split.reshaped"}),
        }
    )
    assert check(graph) == []
    type_ = graph.checker.type_of("split.reshaped")
    assert isinstance(type_, TensorType) and type_.shape is not None
    assert type_.shape[0] == "batch" and type_.shape[2:] == (8, 8)


def test_unknown_dimensions_are_not_taken_for_one_another() -> None:
    graph = graph_of(
        {
            "a": ("Input", value(None, 4), {}),
            "b": ("Input", value(None, 4), {}),
            "na": ("NonZero", {}, {"X": "a.value"}),
            "nb": ("NonZero", {}, {"X": "b.value"}),
            "y": ("Output", {}, {"value": "na.Y"}),
            "z": ("Output", {}, {"value": "nb.Y"}),
        }
    )
    assert check(graph) == []
    types = [graph.checker.type_of(port) for port in ("a.value", "b.value", "na.Y", "nb.Y")]
    assert len(set(map(str, types))) == 4


def branch(name: str, operator: str) -> Graph:
    body = Graph()
    body.add("Capture", "outer", parameters={"name": name})
    body.add(operator, "node")
    body.add("Output", "result")
    body.wire("outer.value", "node.X")
    body.wire("node.Y", "result.value")
    return body


def conditional(then: Graph, other: Graph) -> Graph:
    return graph_of(
        {
            "c": ("Input", value(element="bool"), {}),
            "x": ("Input", value("tokens", 4), {}),
            "if": ("If", {"then_branch": then, "else_branch": other}, {"cond": "c.value"}),
            "y": ("Output", {}, {"value": "if.outputs.0"}),
        }
    )


def test_subgraphs_are_checked_and_give_types() -> None:
    graph = conditional(branch("x", "Relu"), branch("x", "Softplus"))
    assert check(graph) == []
    assert str(graph.checker.type_of("if.outputs.0")) == "tensor(float) [tokens, 4]"


def test_a_mistake_inside_a_subgraph_is_found_with_its_path() -> None:
    finding = only(conditional(branch("x", "Relu"), branch("nothing", "Relu")))
    assert finding.node == "if/else_branch/outer" and "'nothing'" in finding.message


def test_why_not_names_both_types() -> None:
    graph = linear(flag=("Input", value(4, 3, element="bool"), {}), i=("Input", value(4, 3, element="int64"), {}))
    assert "tensor(bool)" in (graph.why_not("flag.value", "mm.B") or "")
    reason = graph.why_not("i.value", "mm.B")
    assert reason is not None and "tensor(int64)" in reason and "mm.A" in reason
    assert graph.why_not("w.value", "mm.B") is None


def test_why_not_says_which_shapes_do_not_fit() -> None:
    graph = linear(v=("Initializer", tensor(5, 3), {}), flat=("Input", value(4), {}))
    reason = graph.why_not("v.value", "mm.B")
    assert reason is not None and "v.value is tensor(float) [5, 3]" in reason and "4 vs 5" in reason
    assert graph.why_not("flat.value", "mm.B") is None
    graph.set("y", "type", "tensor(int64)")
    graph.cut("y.value")
    assert "declared as tensor(int64)" in (graph.why_not("mm.Y", "y.value") or "")


def with_function(inner: str) -> Graph:
    body = Graph(opsets={"": 23})
    body.add("Input", "a")
    body.add(inner, "node")
    body.add("Output", "b")
    body.wire("a.value", f"node.{'input.0' if '.' in inner else 'X'}")
    body.wire(f"node.{'output.0' if '.' in inner else 'Y'}", "b.value")
    helper = Graph(opsets={"": 23})
    helper.add("Input", "a")
    helper.add("Relu", "node")
    helper.add("Output", "b")
    helper.wire("a.value", "node.X")
    helper.wire("node.Y", "b.value")
    then = Graph()
    then.add("Capture", "outer", parameters={"name": "x"})
    then.add("my.own.Call", "call")
    then.add("Output", "result")
    then.wire("outer.value", "call.input.0")
    then.wire("call.output.0", "result.value")
    graph = conditional(then, branch("x", "Relu"))
    functions = {"my.own::Call": body, "my.own::Helper": helper}
    for key, function in functions.items():
        graph.set("", key, function, section="functions")
    return graph


def test_functions_are_followed_from_subgraphs_and_from_each_other() -> None:
    graph = with_function("Relu")
    assert check(graph) == []
    assert str(graph.checker.type_of("if.outputs.0")) == "tensor(float) [tokens, 4]"
    assert check(with_function("my.own.Helper")) == []


def test_a_mistake_inside_a_function_is_found_with_its_path() -> None:
    finding = only(with_function("my.own.Nothing"))
    assert finding.node == "my.own::Call/node" and finding.code == "unknown-type"


def test_functions_that_call_themselves_are_found() -> None:
    finding = only(with_function("my.own.Call"))
    assert finding.severity is Severity.ERROR and "my.own::Call" in finding.message and "without end" in finding.message


def test_calls_that_stand_for_too_many_nodes_are_found() -> None:
    graph = Graph("g", opsets={"": 21, "f": 1})
    functions: dict[str, Graph] = {}
    for level in range(31):
        body = Graph("", opsets={"": 21, "f": 1})
        body.add("Input", "x")
        for index, source in enumerate(("x.value", "n0.output.0" if level else "n0.Y")):
            body.add(f"f.F{level - 1}" if level else "Abs", f"n{index}")
            body.wire(source, f"n{index}.input.0" if level else f"n{index}.X")
        body.add("Output", "y")
        body.wire("n1.output.0" if level else "n1.Y", "y.value")
        functions[f"f::F{level}"] = body
        graph.set("", f"f::F{level}", body, section="functions")
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [2]})
    graph.add("f.F30", "call")
    graph.add("Output", "y")
    graph.wire("x.value", "call.input.0")
    graph.wire("call.output.0", "y.value")
    finding = only(graph)
    assert finding.severity is Severity.ERROR and "at most 1,000,000" in finding.message
    with pytest.raises(GraphError, match="at most 1,000,000"):
        Session(graph)


def test_a_subgraph_has_the_operator_set_versions_of_its_graph() -> None:
    graph = conditional(branch("x", "Relu"), branch("x", "Mish"))
    graph.set("", "", 17, section="opsets")
    finding = only(graph)
    assert finding.node == "if/else_branch/node" and "version 18" in finding.message


def test_a_qmoe_node_is_checked_by_its_own_rule() -> None:
    graph = graph_of(
        {
            "x": ("Input", value("tokens", 64), {}),
            "router": ("Input", value("tokens", 4), {}),
            "w1": ("Initializer", tensor(4, 32, 32, dtype=np.uint8), {}),
            "s1": ("Initializer", tensor(4, 32), {}),
            "w2": ("Initializer", tensor(4, 64, 16, dtype=np.uint8), {}),
            "s2": ("Initializer", tensor(4, 64), {}),
            "moe": (
                "com.microsoft.QMoE",
                {"k": 2},
                {
                    "input": "x.value",
                    "router_probs": "router.value",
                    "fc1_experts_weights": "w1.value",
                    "fc1_scales": "s1.value",
                    "fc2_experts_weights": "w2.value",
                    "fc2_scales": "s2.value",
                },
            ),
            "y": ("Output", {}, {"value": "moe.output"}),
        }
    )
    assert check(graph) == []
    assert str(graph.checker.type_of("moe.output")) == "tensor(float) [tokens, 64]"
    graph.set("moe", "k", 5)
    assert {finding.port for finding in errors(graph)} == {"k"}
    graph.undo()
    graph.cut("moe.fc1_scales")
    assert {finding.port for finding in errors(graph)} == {"fc1_scales"}


edits = st.lists(
    st.tuples(
        st.sampled_from(
            ["cut", "undo", "redo", "wire", "axis", "shape", "retype", "move", "remove", "add", "body", "opset"]
        ),
        st.integers(0, 20),
        st.integers(0, 20),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(edits)
def test_following_edits_gives_what_a_fresh_check_gives(script: list[tuple[str, int, int]]) -> None:
    graph = conditional(branch("x", "Relu"), branch("x", "Softplus"))
    for number in range(3):
        graph.add("Softmax", f"s{number}")
        graph.wire("if.outputs.0" if not number else f"s{number - 1}.output", f"s{number}.input")
    checker = Checker(graph)
    for action, first, second in script:
        nodes = list(graph.nodes)
        a, b = nodes[first % len(nodes)], nodes[second % len(nodes)]
        try:
            match action:
                case "cut":
                    graph.cut(list(graph.wires)[first % len(graph.wires)])
                case "undo":
                    graph.undo()
                case "redo":
                    graph.redo()
                case "wire":
                    kind_a, kind_b = graph.node_type(a), graph.node_type(b)
                    if kind_a and kind_b and kind_a.outputs and kind_b.inputs:
                        suffix = ".0" if kind_a.outputs[0].variadic else ""
                        graph.wire(f"{a}.{kind_a.outputs[0].name}{suffix}", f"{b}.{kind_b.inputs[0].name}")
                case "axis":
                    graph.set(a, "axis", ABSENT if second > 15 else second)
                case "shape":
                    graph.set("x", "shape", ["tokens", second])
                case "retype":
                    graph.set("x", "type", "tensor(double)" if second % 2 else "tensor(float)")
                case "move":
                    graph.set(a, "position", [first, second], section="layout")
                case "remove":
                    graph.remove(a)
                case "body":
                    graph.set("if", "then_branch", branch("x" if second % 4 else "z", ["Relu", "Mish"][first % 2]))
                case "opset":
                    graph.set("", "", 17 + first % 3, section="opsets")
                case "add":
                    graph.add("Relu")
        except (GraphError, ZeroDivisionError):
            continue
        if second % 3 == 0:
            checker.findings()
    assert checker.findings() == check(graph.copy())


def with_if(capture: str) -> Graph:
    """A graph with an If, whose branches read the value `capture`, and a Neg after it."""
    body = Graph("body")
    body.add("Capture", "outer", parameters={"name": capture})
    body.add("Abs", "abs")
    body.add("Output", "out")
    body.wire("outer.value", "abs.X")
    body.wire("abs.Y", "out.value")
    graph = Graph("g", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [2]})
    graph.add("Input", "c", parameters={"type": "tensor(bool)", "shape": []})
    graph.add("If", "choice", parameters={"then_branch": body, "else_branch": body})
    graph.add("Neg", "neg")
    graph.add("Output", "y")
    graph.wire("c.value", "choice.cond")
    graph.wire("neg.Y", "y.value")
    return graph


def test_wires_that_close_a_cycle_through_a_captured_value_are_refused() -> None:
    graph = with_if("neg.Y")
    reason = graph.why_not("choice.outputs.0", "neg.X")
    assert reason == "choice already depends on neg: this wire would close a cycle."
    with pytest.raises(GraphError, match="close a cycle"):
        graph.wire("choice.outputs.0", "neg.X")
    graph.wire("x.value", "neg.X")
    assert check(graph) == []
    assert graph.order().index("neg") < graph.order().index("choice")


def test_a_cycle_that_a_changed_subgraph_closes_is_found() -> None:
    graph = with_if("x")
    graph.wire("choice.outputs.0", "neg.X")
    assert check(graph) == []
    checker = Checker(graph)
    assert checker.findings() == []
    graph.set("choice", "then_branch", with_if("neg.Y").nodes["choice"].parameters["then_branch"])
    for findings in (check(graph), checker.findings()):
        assert [(finding.code, finding.node) for finding in findings] == [("cycle", "choice")]
        assert "choice, neg" in findings[0].message
    graph.undo()
    assert checker.findings() == []


def test_deep_subgraphs_take_no_longer_than_their_size() -> None:
    """Each level examined twice would be 2 ** 24 times."""
    small = body = with_if("x").nodes["choice"].parameters["then_branch"]
    for _ in range(24):
        outer = Graph("outer")
        outer.add("Capture", "c", parameters={"name": "c"})
        outer.add("If", "choice", parameters={"then_branch": body, "else_branch": small})
        outer.add("Output", "out")
        outer.wire("c.value", "choice.cond")
        outer.wire("choice.outputs.0", "out.value")
        body = outer
    graph = with_if("x")
    graph.set("choice", "then_branch", body)
    graph.wire("choice.outputs.0", "neg.X")
    assert check(graph) == []
    assert graph.checker.type_of("neg.Y") == TensorType(ElementType.FLOAT, (2,))


def test_sizes_that_a_function_names_are_others_in_every_call() -> None:
    body = Graph()
    for id, type in (("x", "Input"), ("found", "NonZero"), ("places", "Output")):
        body.add(type, id)
    body.wire("x.value", "found.X")
    body.wire("found.Y", "places.value")
    graph = Graph()
    graph.set("", "my.own::Places", body, section="functions")
    for id in ("a", "b"):
        graph.add("Input", id, parameters={"type": "tensor(float)", "shape": ["n"]})
        graph.add("my.own.Places", f"find_{id}")
        graph.add("Output", f"places_{id}")
        graph.wire(f"{id}.value", f"find_{id}.input.0")
        graph.wire(f"find_{id}.output.0", f"places_{id}.value")
    first, second = (graph.checker.type_of(f"find_{id}.output.0") for id in ("a", "b"))
    assert isinstance(first, TensorType) and isinstance(second, TensorType)
    assert first.shape is not None and second.shape is not None
    assert first.shape[0] == second.shape[0] and first.shape[1] != second.shape[1]
    feeds = {"a": np.array([0, 1, 1], np.float32), "b": np.array([1, 0, 0], np.float32)}
    assert {name: value.shape for name, value in Session(graph).forward(feeds).items()} == {
        "places_a": (1, 2),
        "places_b": (1, 1),
    }
