"""Graphs of the document as ONNX models: names, order, subgraphs, attributes, and what cannot be compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.attributes import Typed
from runtime.compile import Compiled, compile_graph
from runtime.errors import GraphError
from runtime.graph import Graph, PortRef
from runtime.ir_tensors import GraphTensor
from runtime.tensors import Tensor
from runtime.types import ElementType, OptionalType, TensorType


def new_graph(**opsets: int) -> Graph:
    graph = Graph("g", opsets=opsets or {"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["n"]})
    return graph


def chain(graph: Graph, *types: str, source: str = "x.value") -> str:
    """Adds nodes one after the other and returns the last one's output."""
    for type in types:
        id = graph.add(type)
        node_type = graph.node_type(id)
        assert node_type is not None
        graph.wire(source, f"{id}.{node_type.inputs[0].name}")
        source = f"{id}.{node_type.outputs[0].name}"
    return source


def output(graph: Graph, source: str, id: str = "y", **parameters: Any) -> None:
    graph.add("Output", id, parameters=parameters)
    graph.wire(source, f"{id}.value")


def run(compiled: Compiled, **feeds: Any) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    content = ir.to_proto(compiled.model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value) for name, value in feeds.items()})


def names_of(compiled: Compiled) -> list[tuple[str, list[str | None], list[str | None]]]:
    return [
        (node.op_type, [value.name if value else None for value in node.inputs], [value.name for value in node.outputs])
        for node in compiled.model.graph
    ]


def test_names_of_values_nodes_inputs_and_outputs() -> None:
    graph = new_graph()
    graph.set("x", "name", "tokens")
    graph.add("Relu", "a", parameters={"name": "first relu"})
    graph.add("Neg", "b", parameters={"specified_outputs_name": ["own"]})
    graph.add("Exp", "c")
    for source, target in (("x.value", "a.X"), ("a.Y", "b.X"), ("b.Y", "c.input")):
        graph.wire(source, target)
    output(graph, "c.output", name="result")
    compiled = compile_graph(graph)
    assert names_of(compiled) == [
        ("Relu", ["tokens"], ["a.Y"]),
        ("Neg", ["a.Y"], ["own"]),
        ("Exp", ["own"], ["result"]),
    ]
    assert compiled.values == {
        PortRef("x", "value"): "tokens",
        PortRef("a", "Y"): "a.Y",
        PortRef("b", "Y"): "own",
        PortRef("c", "output"): "result",
    }
    assert compiled.nodes == {"first relu": "a", "b": "b", "c": "c"}


def test_an_identity_gives_a_value_its_second_name_and_only_then() -> None:
    graph = new_graph()
    value = chain(graph, "Relu")
    output(graph, value, "y")
    output(graph, value, "z")
    output(graph, "x.value", "w")
    output(graph, "x.value", "same", name="x")
    graph.add("Neg", "named", parameters={"specified_outputs_name": ["agreed"]})
    graph.wire(value, "named.X")
    output(graph, "named.Y", "agreed")
    compiled = compile_graph(graph)
    assert [node.op_type for node in compiled.model.graph] == ["Relu", "Neg", "Identity", "Identity", "Identity"]
    assert [item.name for item in compiled.model.graph.outputs] == ["y", "z", "w", "x", "agreed"]
    np.testing.assert_array_equal(
        run(compiled, x=np.array([-1, 2], np.float32)), [[0, 2], [0, 2], [-1, 2], [-1, 2], [0, -2]]
    )


def test_node_names_are_unique_and_lead_back_to_the_document() -> None:
    graph = new_graph()
    graph.add("Relu", "a", parameters={"name": "same"})
    graph.add("Relu", "b", parameters={"name": "same"})
    graph.wire("x.value", "a.X")
    graph.wire("a.Y", "b.X")
    output(graph, "b.Y")
    compiled = compile_graph(graph)
    assert list(compiled.nodes.items()) == [("same", "a"), ("same_2", "b")]


def test_initializers_share_the_documents_bytes() -> None:
    graph = new_graph()
    tensor = Tensor.from_array(np.ones((3,), np.float32))
    graph.add("Initializer", "w", parameters={"tensor": tensor})
    graph.add("Initializer", "v", parameters={"tensor": tensor, "overridable": True})
    texts = Tensor.from_array(np.array(["a", "é"], dtype=object))
    graph.add("Initializer", "t", parameters={"tensor": texts})
    graph.add("Sum", "sum")
    for index, source in enumerate(("x.value", "w.value", "v.value")):
        graph.wire(source, f"sum.data_0.{index}")
    output(graph, "sum.sum")
    output(graph, "t.value", "texts")
    compiled = compile_graph(graph)
    wrapped = compiled.model.graph.initializers["w"].const_value
    assert isinstance(wrapped, GraphTensor) and wrapped.tensor is tensor
    assert np.shares_memory(wrapped.numpy(), tensor.raw())
    assert [item.name for item in compiled.model.graph.inputs] == ["x", "v"]
    x = np.arange(3, dtype=np.float32)
    total, given = run(compiled, x=x)
    np.testing.assert_array_equal(total, x + 2)
    assert given.tolist() == ["a", "é"]
    np.testing.assert_array_equal(run(compiled, x=x, v=x)[0], 2 * x + 1)


def test_omitted_inputs_and_outputs_keep_their_places() -> None:
    graph = new_graph()
    graph.add("Initializer", "top", parameters={"tensor": Tensor.from_array(np.float32(1))})
    graph.add("Clip", "clip")
    graph.wire("x.value", "clip.input")
    graph.wire("top.value", "clip.max")
    graph.add("Unique", "unique")
    graph.wire("clip.output", "unique.X")
    output(graph, "unique.counts")
    graph.add("Dropout", "dropout")
    graph.wire("x.value", "dropout.data")
    compiled = compile_graph(graph)
    assert names_of(compiled) == [
        ("Clip", ["x", None, "top"], ["clip.output"]),
        ("Unique", ["clip.output"], ["unique.Y", "", "", "y"]),
        ("Dropout", ["x"], ["dropout.output"]),
    ]
    np.testing.assert_array_equal(run(compiled, x=np.array([1, 3, 2, 0], np.float32))[0], [1, 3])


def test_the_number_of_outputs_follows_from_wires_names_parameters_and_subgraphs() -> None:
    graph = new_graph()
    graph.add("Split", "a", parameters={"num_outputs": 3})
    graph.add("Split", "b", parameters={"specified_outputs_name": ["p", "q"]})
    graph.add("Split", "c")
    for id in "abc":
        graph.wire("x.value", f"{id}.input")
    output(graph, "c.outputs.1")
    compiled = compile_graph(graph)
    assert [outputs for _, _, outputs in names_of(compiled)] == [
        ["a.outputs.0", "a.outputs.1", "a.outputs.2"],
        ["p", "q"],
        ["c.outputs.0", "y"],
    ]


def branch(*outputs: str, capture: str = "x") -> Graph:
    graph = Graph(opsets={"": 21})
    graph.add("Capture", "outer", parameters={"name": capture})
    for index, type in enumerate(outputs):
        value = chain(graph, type, source="outer.value")
        output(graph, value, f"out_{index}")
    return graph


def conditional(graph: Graph, **branches: Graph) -> None:
    graph.add("Input", "c", parameters={"type": "tensor(bool)", "shape": []})
    graph.add("If", "choice", parameters=branches)
    graph.wire("c.value", "choice.cond")


def test_subgraphs_read_the_values_around_them() -> None:
    graph = new_graph()
    conditional(
        graph,
        then_branch=branch("Neg", "Exp", capture="relu_0.Y"),
        else_branch=branch("Relu", "Abs"),
    )
    chain(graph, "Relu")  # after the node that captures it, in the document's order
    output(graph, "choice.outputs.0")
    compiled = compile_graph(graph)
    assert [node.op_type for node in compiled.model.graph] == ["Relu", "If"]
    assert len(list(compiled.model.graph)[1].outputs) == 2
    x = np.array([-2, 2], np.float32)
    np.testing.assert_array_equal(run(compiled, x=x, c=True)[0], [0, -2])
    np.testing.assert_array_equal(run(compiled, x=x, c=False)[0], [0, 2])
    # Nodes inside belong to the node of the document that holds them, and have names of their own.
    assert set(compiled.nodes.values()) == {"choice", "relu_0"} and len(compiled.nodes) == 6


def test_names_in_subgraphs_keep_clear_of_names_around_them() -> None:
    graph = new_graph()
    inner = branch("Relu")  # its node is called relu_0, as the outer one
    conditional(graph, then_branch=inner, else_branch=inner)
    value = chain(graph, "Relu")
    graph.add("Add", "sum")
    graph.wire(value, "sum.A")
    graph.wire("choice.outputs.0", "sum.B")
    output(graph, "sum.C", "out_0")
    np.testing.assert_array_equal(run(compile_graph(graph), x=np.array([-1, 2], np.float32), c=True)[0], [0, 4])


def test_a_capture_given_out_as_it_is() -> None:
    graph = new_graph()
    body = Graph(opsets={"": 21})
    body.add("Capture", "outer", parameters={"name": "x"})
    output(body, "outer.value")
    conditional(graph, then_branch=body, else_branch=branch("Neg"))
    output(graph, "choice.outputs.0", "result")
    x = np.array([-1, 2], np.float32)
    np.testing.assert_array_equal(run(compile_graph(graph), x=x, c=True)[0], x)


def test_a_loop_counts_its_outputs_from_its_body() -> None:
    body = Graph(opsets={"": 21})
    for name, type in (("i", "tensor(int64)"), ("again", "tensor(bool)"), ("total", "tensor(float)")):
        body.add("Input", name, parameters={"type": type, "shape": [] if name != "total" else ["n"]})
    body.add("Add", "add")
    body.wire("total.value", "add.A")
    body.wire("total.value", "add.B")
    output(body, "again.value", "go_on")
    output(body, "add.C", "doubled")
    output(body, "add.C", "seen")
    graph = new_graph()
    graph.add("Initializer", "three", parameters={"tensor": Tensor.from_array(np.int64(3))})
    graph.add("Loop", "loop", parameters={"body": body})
    graph.wire("three.value", "loop.M")
    graph.wire("x.value", "loop.v_initial.0")
    output(graph, "loop.v_final_and_scan_outputs.0", "last")
    compiled = compile_graph(graph)
    assert names_of(compiled) == [("Loop", ["three", None, "x"], ["last", "loop.v_final_and_scan_outputs.1"])]
    np.testing.assert_array_equal(run(compiled, x=np.array([1, 2], np.float32))[0], [8, 16])


def test_functions_and_unknown_operators() -> None:
    function = Graph(opsets={"": 21})
    function.add("Input", "a")
    function.add("Constant", "k", parameters={"value_float": Typed("ref", ("factor", "float"))})
    function.add("Mul", "mul")
    function.wire("a.value", "mul.A")
    function.wire("k.output", "mul.B")
    output(function, "mul.C", "b")
    function.set("", "attributes", ["factor"], section="info")
    graph = new_graph()
    graph.set("", "local::scaled", function, section="functions")
    graph.add("local.scaled", "call", parameters={"factor": 2.5})
    graph.wire("x.value", "call.input.0")
    output(graph, "call.output.0")
    compiled = compile_graph(graph)
    assert compiled.model.opset_imports == {"": 21, "local": 1}
    np.testing.assert_array_equal(run(compiled, x=np.array([2], np.float32))[0], [5])


def test_attributes_of_every_kind() -> None:
    inner = branch("Relu")
    values = {
        "int": 3, "float": 2.0, "str": "a", "bytes": b"\xff", "ints": [1], "floats": [1.0, 2.0], "strings": ["a"],
        "tensor": Tensor.from_array(np.ones(2)), "tensors": [Tensor.from_array(np.ones(2))], "graph": inner,
        "graphs": [inner], "type": OptionalType(TensorType(ElementType.INT64, ("n",))), "none": Typed("ints", []),
        "whole": Typed("float", 3), "types": Typed("types", [TensorType(ElementType.FLOAT)]), "flag": True,
    }  # fmt: skip
    graph = new_graph()
    graph.add("some.Op", "op", parameters={**values, "name": "n", "lda coeff": 0.5})
    graph.wire("x.value", "op.input.0")
    output(graph, "op.output.0")
    (node,) = compile_graph(graph).model.graph
    kinds = {name: str(attribute.type) for name, attribute in node.attributes.items()}
    assert kinds == {
        "int": "INT", "float": "FLOAT", "str": "STRING", "bytes": "STRING", "ints": "INTS", "floats": "FLOATS",
        "strings": "STRINGS", "tensor": "TENSOR", "tensors": "TENSORS", "graph": "GRAPH", "graphs": "GRAPHS",
        "type": "TYPE_PROTO", "none": "INTS", "whole": "FLOAT", "types": "TYPE_PROTOS", "flag": "INT",
    }  # fmt: skip
    assert node.metadata_props == {"qmoe.id": "op", "qmoe.lda coeff": "0.5"}


def test_declared_kinds_decide_and_manual_defaults_are_left_out() -> None:
    graph = new_graph()
    graph.add("LeakyRelu", "leaky", parameters={"alpha": 1})  # a float attribute, given as a whole number
    graph.wire("x.value", "leaky.X")
    output(graph, "leaky.Y")
    graph.add("com.microsoft.QMoE", "moe", parameters={"k": 0, "block_size": 0, "swiglu_limit": 0.0, "k override": 0})
    compiled = compile_graph(graph)
    leaky, moe = compiled.model.graph
    assert leaky.attributes["alpha"].value == 1.0
    assert {name: attribute.value for name, attribute in moe.attributes.items()} == {"k": 0}
    assert compiled.model.opset_imports["com.microsoft"] == 1


def test_operator_sets_that_a_graph_does_not_name_are_the_newest_that_run() -> None:
    graph = Graph("g")
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["n"]})
    output(graph, chain(graph, "Relu"))
    np.testing.assert_array_equal(run(compile_graph(graph), x=np.array([-1.0], np.float32))[0], [0])


def wrong_graphs() -> dict[str, tuple[Graph, str, str, str]]:
    found = {}
    graph = new_graph()
    graph.add("Output", "y")
    found["open output"] = graph, "y", "value", "Nothing is wired"
    graph = new_graph()
    graph.add("Relu", "a", parameters={"specified_outputs_name": ["x"]})
    found["duplicate"] = graph, "x", "name", "taken by a.Y"
    graph = new_graph()
    graph.add("Input", "other", parameters={"name": "x"})
    found["duplicate input"] = graph, "x", "name", "taken by other.value"
    graph = new_graph()
    graph.add("Initializer", "w")
    found["no tensor"] = graph, "w", "tensor", "no tensor"
    graph = new_graph()
    graph.set("x", "type", "tensor(float33)")
    found["type"] = graph, "x", "type", "unknown element type"
    graph = new_graph()
    graph.add("Capture", "k", parameters={"name": "x"})
    found["capture outside"] = graph, "k", "name", "only a subgraph"
    graph = new_graph()
    conditional(graph, then_branch=branch("Relu", capture="nowhere"), else_branch=branch("Relu"))
    found["capture of nothing"] = graph, "choice", "name", "no value 'nowhere'"
    graph = new_graph()
    conditional(graph, then_branch=branch("Relu"), else_branch=branch("Relu"))
    chain(graph, "Neg", source="choice.outputs.0")
    graph.set("choice", "then_branch", branch("Relu", capture="neg_0.Y"))
    found["cycle through a capture"] = graph, "choice", "", "feed each other"
    graph = new_graph()
    graph.add("LeakyRelu", "a", parameters={"alpha": "much"})
    found["attribute"] = graph, "a", "alpha", "expected float"
    deep = branch("Relu")
    for _ in range(40):
        outer = Graph(opsets={"": 21})
        outer.add("Capture", "c", parameters={"name": "c"})
        outer.add("If", "choice", parameters={"then_branch": deep, "else_branch": branch("Relu")})
        outer.wire("c.value", "choice.cond")
        output(outer, "choice.outputs.0")
        deep = outer
    graph = new_graph()
    conditional(graph, then_branch=deep, else_branch=branch("Relu"))
    found["depth"] = graph, "choice", "", "nested more than"
    return found


WRONG = wrong_graphs()


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_compiled_is_named(name: str) -> None:
    graph, node, port, message = WRONG[name]
    with pytest.raises(GraphError, match=message) as caught:
        compile_graph(graph)
    assert [(finding.node, finding.port) for finding in caught.value.findings] == [(node, port)]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_acyclic_graph_compiles_in_an_order_that_runs(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    places = data.draw(st.permutations(range(count)))  # where in the document the nodes stand
    sources = [data.draw(st.tuples(st.integers(-1, i - 1), st.integers(-1, i - 1))) for i in range(count)]
    graph = new_graph()
    for place in places:
        graph.add("Add", f"n{place}")
    for index, pair in enumerate(sources):
        for port, source in zip("AB", pair, strict=True):
            graph.wire("x.value" if source < 0 else f"n{source}.C", f"n{index}.{port}")
    output(graph, f"n{count - 1}.C")
    expected = [1.0]
    for a, b in sources:
        expected.append(expected[a + 1] + expected[b + 1])
    compiled = compile_graph(graph)
    assert run(compiled, x=np.array([1], np.float32))[0] == [expected[-1]]
    if list(places) == sorted(places):
        assert [node.name for node in compiled.model.graph] == [f"n{index}" for index in range(count)]
