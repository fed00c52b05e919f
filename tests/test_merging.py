"""Equal nodes, computed once."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from runtime.merging import merge_equal


def model_of(nodes, outputs):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "columns"][: 1 + (name == "y")])
            for name in outputs
        ],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def run(model, x):
    import onnxruntime

    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"x": x})


def constant(name, values):
    return helper.make_node(
        "Constant", [], [name], value=helper.make_tensor("", TensorProto.INT64, [len(values)], values)
    )


def test_what_follows_from_equal_nodes_is_equal_too():
    nodes = [
        constant("one", [1]),
        helper.make_node("ReduceSum", ["x", "one"], ["a"], keepdims=1),
        helper.make_node("Exp", ["a"], ["b"]),
        constant("uno", [1]),
        helper.make_node("ReduceSum", ["x", "uno"], ["c"], keepdims=1),
        helper.make_node("Exp", ["c"], ["d"]),
        helper.make_node("ReduceSum", ["x", "uno"], ["other"], keepdims=0),
        helper.make_node("Mul", ["b", "d"], ["y"]),
    ]
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    model = model_of(nodes, ["y", "other"])
    expected = run(model, x)
    merge_equal(model.graph, set())
    assert [node.op_type for node in model.graph] == ["Constant", "ReduceSum", "Exp", "ReduceSum", "Mul"]
    for found, wanted in zip(run(model, x), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_named_values_and_outputs_stay():
    nodes = [helper.make_node("Exp", ["x"], [name]) for name in ("a", "b", "y")]
    nodes.append(helper.make_node("Sum", ["a", "b", "y"], ["z"]))
    model = model_of(nodes, ["y", "z"])
    merge_equal(model.graph, {"b"})
    assert [node.outputs[0].name for node in model.graph] == ["a", "b", "y", "z"]


@pytest.mark.parametrize("op", ["RandomNormalLike", "Dropout", "Bernoulli"])
def test_random_nodes_stay(op):
    nodes = [helper.make_node(op, ["x"], [name]) for name in "ab"] + [helper.make_node("Sub", ["a", "b"], ["y"])]
    model = model_of(nodes, ["y"])
    merge_equal(model.graph, set())
    assert len(model.graph) == 3


def test_bodies_stay():
    body = helper.make_graph(
        [helper.make_node("Exp", ["x"], ["inner"])],
        "body",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    condition = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("", TensorProto.BOOL, [], [True]))
    nodes = [condition]
    nodes += [helper.make_node("If", ["yes"], [name], then_branch=body, else_branch=body) for name in "ab"]
    nodes.append(helper.make_node("Add", ["a", "b"], ["y"]))
    model = model_of(nodes, ["y"])
    merge_equal(model.graph, set())
    assert len(model.graph) == 4


def test_zeros_of_either_sign_differ():
    nodes = [
        helper.make_node("Constant", [], ["a"], value_float=0.0),
        helper.make_node("Constant", [], ["b"], value_float=-0.0),
        helper.make_node("Reciprocal", ["a"], ["above"]),
        helper.make_node("Reciprocal", ["b"], ["below"]),
        helper.make_node("Add", ["x", "above"], ["y"]),
        helper.make_node("Add", ["x", "below"], ["y2"]),
    ]
    model = model_of(nodes, ["y", "y2"])
    merge_equal(model.graph, ())
    up, down = run(model, np.ones((4, 4), np.float32))
    assert (up == np.inf).all()
    assert (down == -np.inf).all()


def test_an_output_that_is_left_out_stands_for_none():
    nodes = [
        helper.make_node("GRU", ["x3", "w", "r"], ["", "last"], hidden_size=2),
        helper.make_node("GRU", ["x3", "w", "r"], ["all", "end"], hidden_size=2),
        helper.make_node("Add", ["last", "end"], ["y"]),
        helper.make_node("Identity", ["all"], ["y2"]),
    ]
    model = model_of(nodes, ["y", "y2"])
    merge_equal(model.graph, ())
    assert [value.name for node in model.graph if node.op_type == "Identity" for value in node.inputs] == ["all"]
