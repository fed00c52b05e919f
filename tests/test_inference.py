"""Inferred types and shapes against the outputs of ONNX's own node tests, whatever is known of the inputs."""

from __future__ import annotations

import math
import re
import warnings
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

from runtime.check import Checker, check
from runtime.errors import Severity
from runtime.graph import Graph, NodeState
from runtime.onnx_files import import_model
from runtime.tensors import Tensor
from runtime.types import Dimension, TensorType

FUNCTIONS = {"floor": math.floor, "ceiling": math.ceil, "Max": max, "Min": min, "Mod": lambda a, b: a % b}


@cache
def cases() -> list[tuple[Any, list[Any], list[Any]]]:
    """Every node test of ONNX: its model, inputs and expected outputs."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    return [
        (case.model, list(map(plain, case.data_sets[0][0])), list(map(plain, case.data_sets[0][1])))
        for case in found
        if case.data_sets
    ]


def plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value) if np.isscalar(value) else value


def inputs_known_as(graph: Graph, given: list[Any], mode: str) -> tuple[Graph, dict[str, int]]:
    """The graph with inputs about which more or less is known, and the sizes that names of dimensions stand for."""
    nodes = dict(graph.nodes)
    sizes: dict[str, int] = {}
    inputs = [id for id, node in nodes.items() if node.type == "Input"]
    for id, value in zip(inputs, given, strict=False):
        parameters = dict(nodes[id].parameters)
        if not isinstance(value, np.ndarray):
            continue
        if "constants" in mode and value.size <= 64 and value.dtype.kind in "iu" and value.ndim <= 1:
            tensor = {"tensor": Tensor.from_array(value), "name": parameters.get("name", "")}
            nodes[id] = NodeState(id, "Initializer", tensor)
        elif parameters.get("shape") is not None and "declared" not in mode:
            names = [f"s{re.sub(r'[^a-z0-9]', '', id)}{len(sizes)}x{axis}" for axis in range(value.ndim)]
            sizes.update(zip(names, value.shape, strict=True))
            parameters["shape"] = names if "names" in mode else [None] * value.ndim if mode == "ranks" else None
            nodes[id] = NodeState(id, "Input", parameters)
    for id, node in nodes.items():
        if node.type == "Output":
            nodes[id] = NodeState(id, "Output", {"name": node.parameters.get("name", "")})
    sections = {section: graph.section(section) for section in ("opsets", "functions")}
    return Graph.build(nodes.values(), [(source, target) for target, source in graph.wires.items()], sections), sizes


def size_of(dimension: Dimension, sizes: dict[str, int]) -> int | None:
    """What a dimension comes to: a number, an expression of names, or unknown."""
    if dimension is None or isinstance(dimension, int):
        return dimension
    if re.search(r"\b_", dimension):
        return None
    result = eval(dimension, {"__builtins__": {}} | FUNCTIONS, dict(sizes))
    assert isinstance(result, int | float)
    return int(result)


@pytest.mark.parametrize("mode", ["declared", "declared, constants", "names", "names, constants", "ranks", "nothing"])
def test_no_valid_node_is_refused_and_no_shape_is_wrong(mode: str) -> None:
    known = 0
    for model, given, expected in cases():
        graph, sizes = inputs_known_as(import_model(model), given, mode)
        checker = Checker(graph)
        name = model.graph.name
        assert not [finding for finding in checker.findings() if finding.severity is Severity.ERROR], name
        outputs = [id for id, node in graph.nodes.items() if node.type == "Output"]
        for id, value in zip(outputs, expected, strict=True):
            type_ = checker.type_of(graph.inputs_of(id)["value"])
            if not (isinstance(type_, TensorType) and isinstance(value, np.ndarray)):
                continue
            if type_.element is not None and value.dtype.kind not in "OUS":
                assert type_.element.dtype == value.dtype, name
            if type_.shape is not None:
                known += 1
                found = [size_of(size, sizes) for size in type_.shape]
                right = [size if mine is not None else None for mine, size in zip(found, value.shape, strict=True)]
                assert found == right, f"{name}: {type_}, not {value.shape}"
    assert known > (200 if mode == "nothing" else 2000)


def of_shapes(operator: str, *shapes: list[Dimension] | list[int] | np.ndarray, **attributes: Any) -> Graph:
    """One operator on inputs of given shapes; an array is a constant."""
    graph = Graph(opsets={"": 23})
    graph.add(operator, "node", parameters=attributes)
    node_type = graph.node_type("node")
    assert node_type is not None
    for port, shape in zip(node_type.inputs, shapes, strict=False):
        if isinstance(shape, np.ndarray):
            graph.add("Initializer", port.name, parameters={"tensor": Tensor.from_array(shape)})
        else:
            graph.add("Input", port.name, parameters={"type": "tensor(float)", "shape": list(shape)})
        graph.wire(f"{port.name}.value", f"node.{port.name}")
    graph.add("Output", "result")
    graph.wire(f"node.{node_type.outputs[0].name}", "result.value")
    return graph


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (of_shapes("Add", [2, 3], [2, 4]), "A tensor(float) [2, 3], B tensor(float) [2, 4]"),
        (of_shapes("MatMul", ["n", 3], [4, 5]), "3 vs 4"),
        (of_shapes("MatMul", [2, "n", 3], [3, 3, 5]), "[2] vs [3]"),
        (of_shapes("Reshape", [4, 8], np.array([3, 5])), "32 elements"),
        (of_shapes("Reshape", [4, 8], np.array([0, 7])), "takes 28"),
        (of_shapes("Conv", ["n", 3, "h", "w"], [8, 4, 3, 3]), "3 channels"),
        (of_shapes("Transpose", [2, 3, 4], perm=[0, 1]), "2 dimensions"),
        (of_shapes("Softmax", ["n", 3], axis=4), "axis"),
        (of_shapes("Gather", ["n", 3], np.array([0]), axis=2), "axis"),
        (of_shapes("Slice", [4], np.array([0]), np.array([2]), np.array([1])), "axis"),
    ],
)
def test_shapes_that_cannot_be_are_errors_that_show_them(graph: Graph, words: str) -> None:
    findings = [finding for finding in check(graph) if finding.severity is Severity.ERROR]
    assert [(finding.node, finding.code) for finding in findings] == [("node", "shape")]
    assert words in findings[0].message


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (of_shapes("Add", ["a", 4, "b"], ["c", 1, 5]), [None, 4, 5]),
        (of_shapes("Add", ["a", 4], ["a", 1]), ["a", 4]),
        (of_shapes("MatMul", ["a", "n", "k"], ["k", "m"]), ["a", "n", "m"]),
        (of_shapes("Slice", ["a", 8], np.array([0]), np.array([4])), [None, 8]),
        (of_shapes("Slice", ["a", 8], np.array([0]), np.array([4]), np.array([1])), ["a", 4]),
        (of_shapes("Reshape", ["a", "b", 8], np.array([0, -1])), ["a", "8*b"]),
        (of_shapes("Squeeze", ["a", 1, 3]), None),
        (of_shapes("Squeeze", ["a", 1, 3], np.array([1])), ["a", 3]),
    ],
)
def test_names_stand_only_for_what_is_certain(graph: Graph, expected: list[Dimension] | None) -> None:
    type_ = graph.checker.type_of(graph.inputs_of("result")["value"])
    assert isinstance(type_, TensorType)
    if expected is None:
        assert type_.shape is None
    else:
        assert type_.shape is not None
        plainly = [None if isinstance(size, str) and size.startswith("_") else size for size in type_.shape]
        assert plainly == expected


def test_a_default_that_can_be_overridden_is_no_constant() -> None:
    graph = of_shapes("Reshape", [4, 8], np.array([3, 5]))
    graph.set("shape", "overridable", True)
    assert not [finding for finding in check(graph) if finding.severity is Severity.ERROR]


def test_joining_long_lists_of_integers_makes_no_symbols_of_them() -> None:
    graph = Graph(opsets={"": 23})
    for id in ("a", "b"):
        graph.add("Input", id, parameters={"type": "tensor(uint8)", "shape": [200_000_000]})
    graph.add("Concat", "joined", parameters={"axis": 0})
    graph.wire("a.value", "joined.inputs.0")
    graph.wire("b.value", "joined.inputs.1")
    assert str(graph.checker.type_of("joined.concat_result")).startswith("tensor(uint8)")


@pytest.mark.parametrize(
    ("operator", "inputs", "parameters", "outputs", "expected"),
    [
        ("Split", {"input": (2, 4)}, {"num_outputs": 2}, 3, "makes 2 parts, and 3 outputs"),
        ("Split", {"input": (2, 4)}, {"num_outputs": 1, "axis": 1}, 2, "makes 1 parts, and 2 outputs"),
        ("Gemm", {"A": (2, 4), "B": (4, 3), "C": (7,)}, {}, 1, r"C \[7\] cannot be added to a matrix of \[2, 3\]"),
        ("Gemm", {"A": (4, 2), "B": (3, 4), "C": (3, 3)}, {"transA": 1, "transB": 1}, 1, "cannot be added"),
        ("LayerNormalization", {"X": (2, 4), "Scale": (3,)}, {}, 1, r"scale \[3\] cannot be repeated"),
        ("RMSNormalization", {"X": (2, 4), "scale": (2, 3, 4)}, {}, 1, "cannot be repeated"),
        ("Constant", {}, {"value_int": 1, "value_float": 2.0}, 1, "exactly one attribute"),
    ],
)
def test_what_the_packages_do_not_say_or_end_the_process_for(
    operator: str, inputs: dict[str, tuple[int, ...]], parameters: dict[str, Any], outputs: int, expected: str
) -> None:
    graph = Graph("g", opsets={"": 23})
    graph.add(operator, "node", parameters=parameters)
    for port, shape in inputs.items():
        graph.add("Input", port, parameters={"type": "tensor(float)", "shape": list(shape)})
        graph.wire(f"{port}.value", f"node.{port}")
    node_type = graph.node_type("node")
    assert node_type is not None
    for index in range(outputs):
        graph.add("Output", f"y{index}")
        name = node_type.outputs[0].name
        graph.wire(f"node.{name}.{index}" if node_type.outputs[0].variadic else f"node.{name}", f"y{index}.value")
    (finding,) = check(graph)
    assert finding.node == "node"
    assert re.search(expected, finding.message)
