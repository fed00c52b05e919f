"""Sessions: both backends, what they accept, what they report, and how they stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qmoe_node
from runtime import Cancelled, Graph, GraphError, NodeState, Session, Tensor, catalog
from runtime.graph import Add
from runtime.node import In, Inference, Node, NodeContext, Out
from runtime.types import ElementType, TensorType
from tests.qmoe_layers import make_layer

BACKENDS = ("onnxruntime", "numpy")
RNG = np.random.default_rng(7)


class Doubled(Node):
    """Twice its input: a type that only has a NumPy kernel."""

    domain = "test.session"
    x = In("T")
    y = Out("T", same_shape_as="x")
    type_constraints = {"T": ("tensor(float)", "tensor(bfloat16)")}

    @classmethod
    def infer(cls, context: NodeContext) -> Inference:
        return Inference({"y": context.inputs.get("x", TensorType())})

    @staticmethod
    def evaluate(inputs: dict[str, np.ndarray], attributes: dict[str, Any]) -> tuple[np.ndarray]:
        return ((inputs["x"] * 2).astype(inputs["x"].dtype),)


@pytest.fixture(autouse=True, scope="module")
def doubled() -> Iterator[None]:
    catalog.register(Doubled)
    yield
    catalog.unregister(Doubled)


def graph_of(nodes: dict[str, tuple[str, dict[str, Any]]], wires: dict[str, str], opset: int = 21) -> Graph:
    """Nodes by id as (type, parameters); wires as {target: source}."""
    graph = Graph("test", opsets={"": opset, "com.microsoft": 1, "test.session": 1})
    with graph.transaction("build"):
        for id, (type, parameters) in nodes.items():
            graph.apply(Add(NodeState(id, type, parameters)))
        for target, source in wires.items():
            graph.wire(source, target)
    return graph


def tensor_input(element: str, *shape: Any) -> tuple[str, dict[str, Any]]:
    return "Input", {"type": f"tensor({element})", "shape": shape}


def constant(array: np.ndarray) -> tuple[str, dict[str, Any]]:
    return "Initializer", {"tensor": Tensor.from_array(array)}


def linear(weights: np.ndarray) -> Graph:
    """y = relu(x w)"""
    return graph_of(
        {
            "x": tensor_input("float", "rows", weights.shape[0]),
            "w": constant(weights),
            "product": ("MatMul", {}),
            "relu": ("Relu", {}),
            "y": ("Output", {}),
        },
        {"product.A": "x.value", "product.B": "w.value", "relu.X": "product.Y", "y.value": "relu.Y"},
    )


WEIGHTS = RNG.standard_normal((8, 300)).astype(np.float32)
X = RNG.standard_normal((3, 8)).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_probes_and_placement(backend: Any) -> None:
    session = Session(linear(WEIGHTS), backend)
    outputs = session.forward({"x": X})
    np.testing.assert_allclose(outputs["y"], np.maximum(X @ WEIGHTS, 0), rtol=1e-5, atol=1e-6)
    probed = session.forward({"x": X}, probes=["product.Y", "x.value", "w.value"])
    np.testing.assert_array_equal(probed["y"], outputs["y"])
    np.testing.assert_allclose(session.last_run.probes["product.Y"], X @ WEIGHTS, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(session.last_run.probes["x.value"], X)
    np.testing.assert_array_equal(session.last_run.probes["w.value"], WEIGHTS)
    assert session.placement == {"product": backend, "relu": backend}
    assert session.inputs == {"x": TensorType(ElementType.FLOAT, ("rows", 8))}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_keeps_the_graph_that_it_was_given(backend: Any) -> None:
    graph = linear(WEIGHTS)
    session = Session(graph, backend)
    graph.set("w", "tensor", Tensor.from_array(WEIGHTS * 0))
    assert session.forward({"x": X})["y"].any()


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({}, "x: This input is missing"),
        ({"x": X.astype(np.float64)}, "x: The elements must be float (float32); float64 came"),
        ({"x": X[0]}, r"x: A tensor of shape [rows, 8] is expected; [8] came"),
        ({"x": X[:, :7]}, "x: Dimension 1 must be 8; 7 came"),
        ({"x": X, "z": X}, "z: The graph has no such input. Its inputs: x"),
        ({"x": {"a": 1}}, "x: An array is expected; dict came"),
        ({"x": "text"}, "x: The elements must be float"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_inputs_are_named(backend: Any, inputs: dict[str, Any], expected: str) -> None:
    session = Session(linear(WEIGHTS), backend)
    for _ in range(3):
        with pytest.raises(GraphError) as caught:
            session.forward(inputs)
        assert expected in str(caught.value)
        session.forward({"x": X})  # what was right once makes nothing else right


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_of_the_same_shapes_are_independent(backend: Any) -> None:
    session = Session(linear(WEIGHTS), backend)
    given = {"x": X.copy()}
    for scale in (1, 2, -1):
        for rows in (X, X[:2]):
            given["x"] = rows * np.float32(scale)
            expected = np.maximum(given["x"] @ WEIGHTS, 0)
            np.testing.assert_allclose(session.forward(given)["y"], expected, rtol=1e-5, atol=1e-6)
    last = given["x"]
    given["x"] = X
    found = session.backward({"y": 1.0}, ["x"])["x"]  # of the last run, whatever has become of the dictionary
    np.testing.assert_allclose(found, ((last @ WEIGHTS) > 0) @ WEIGHTS.T, rtol=1e-4, atol=1e-5)
    for rows in (X, -X, X):
        session.forward({"x": rows})
        found = session.backward({"y": 1.0}, ["x"])["x"]
        np.testing.assert_allclose(found, ((rows @ WEIGHTS) > 0) @ WEIGHTS.T, rtol=1e-4, atol=1e-5)
        session.forward({"x": rows}, probes=["product.Y"])
        np.testing.assert_allclose(session.last_run.probes["product.Y"], rows @ WEIGHTS, rtol=1e-5, atol=1e-6)


def test_dimensions_of_one_name_agree() -> None:
    graph = graph_of(
        {
            "a": tensor_input("float", "n"),
            "b": tensor_input("float", "n"),
            "sum": ("Add", {}),
            "y": ("Output", {}),
        },
        {"sum.A": "a.value", "sum.B": "b.value", "y.value": "sum.C"},
    )
    session = Session(graph)
    with pytest.raises(GraphError, match="b: Dimension 0, 'n', is 2 in input a; 1 came"):
        session.forward({"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)})
    assert session.forward({"a": [1, 2], "b": [0.5, 0.5]})["y"].tolist() == [1.5, 2.5]
    with pytest.raises(GraphError, match=r"a: .*complex128"):
        session.forward({"a": [1j, 2], "b": [1, 1]})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["bfloat16", "float8e4m3fn", "float8e5m2", "uint4", "int4", "float16", "uint8"])
def test_element_types_that_numpy_lacks(backend: Any, name: str) -> None:
    element = ElementType.parse(name)
    graph = graph_of(
        {
            "x": tensor_input(name, "n", 3),
            "wide": ("Cast", {"to": int(ElementType.FLOAT)}),
            "narrow": ("Cast", {"to": int(element)}),
            "f": ("Output", {}),
            "y": ("Output", {}),
        },
        {"wide.input": "x.value", "narrow.input": "wide.output", "f.value": "wide.output", "y.value": "narrow.output"},
    )
    session = Session(graph, backend)
    numbers = np.array([[0, 1, 2], [3, 4, 6], [7, 5, 1]], np.float32)
    for x in (numbers.astype(element.dtype), numbers[:0].astype(element.dtype), numbers[:1].astype(element.dtype)):
        outputs = session.forward({"x": x}, probes=["x.value", "narrow.output"])
        assert outputs["y"].dtype == element.dtype
        np.testing.assert_array_equal(outputs["f"], x.astype(np.float32))
        np.testing.assert_array_equal(outputs["y"].astype(np.float32), x.astype(np.float32))


def between(element: str = "float") -> Graph:
    """y = tanh(twice(relu(x))), and z = relu(x) + relu(x): the middle of the chain has only a NumPy kernel."""
    return graph_of(
        {
            "x": tensor_input(element, "n"),
            "relu": ("Relu", {}),
            "twice": ("test.session.Doubled", {}),
            "tanh": ("Tanh", {}),
            "sum": ("Add", {}),
            "y": ("Output", {}),
            "z": ("Output", {}),
        },
        {
            "relu.X": "x.value",
            "twice.x": "relu.Y",
            "tanh.input": "twice.y",
            "sum.A": "relu.Y",
            "sum.B": "relu.Y",
            "y.value": "tanh.output",
            "z.value": "sum.C",
        },
    )


def test_numpy_kernels_run_between_pieces() -> None:
    session = Session(between())
    x = np.linspace(-1, 1, 5, dtype=np.float32)
    outputs = session.forward({"x": x}, probes=["twice.y", "relu.Y"])
    np.testing.assert_allclose(outputs["y"], np.tanh(2 * np.maximum(x, 0)), rtol=1e-6)
    np.testing.assert_allclose(outputs["z"], 2 * np.maximum(x, 0), rtol=1e-6)
    np.testing.assert_allclose(session.last_run.probes["twice.y"], 2 * np.maximum(x, 0))
    assert session.placement == {
        "relu": "onnxruntime",
        "twice": "numpy",
        "tanh": "onnxruntime",
        "sum": "onnxruntime",
    }
    assert any(finding.node == "twice" and finding.code == "on-numpy" for finding in session.findings)


def test_as_is_gives_nothing_to_numpy() -> None:
    with pytest.raises(GraphError, match="twice"):
        Session(between(), as_is=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_progress_and_times_cover_every_node(backend: Any) -> None:
    session = Session(between(), backend)
    seen: list[tuple[int, int, str]] = []
    session.forward(
        {"x": np.ones(4, np.float32)}, times=True, progress=lambda done, total, node: seen.append((done, total, node))
    )
    assert seen[0][0] == 0 and seen[-1] == (4, 4, "")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert set(session.last_run.times) >= {"relu", "twice", "tanh", "sum"}
    assert all(seconds >= 0 for seconds in session.last_run.times.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancelled_from_progress(backend: Any) -> None:
    session = Session(between(), backend)
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        session.forward({"x": np.ones(4, np.float32)}, progress=lambda *_: cancel.set(), cancel=cancel)
    assert session.forward({"x": np.ones(4, np.float32)})["z"].tolist() == [2] * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_long_run_stops_when_cancelled(backend: Any) -> None:
    body = graph_of(
        {
            "i": tensor_input("int64"),
            "c": tensor_input("bool"),
            "v": tensor_input("float", 64, 64),
            "step": ("MatMul", {}),
            "keep": ("Identity", {}),
            "go": ("Output", {}),
            "next": ("Output", {}),
        },
        {
            "step.A": "v.value",
            "step.B": "v.value",
            "keep.input": "c.value",
            "go.value": "keep.output",
            "next.value": "step.Y",
        },
    )
    graph = graph_of(
        {
            "x": tensor_input("float", 64, 64),
            "count": constant(np.array(10**9)),
            "true": constant(np.array(True)),
            "loop": ("Loop", {"body": body}),
            "y": ("Output", {}),
        },
        {
            "loop.M": "count.value",
            "loop.cond": "true.value",
            "loop.v_initial.0": "x.value",
            "y.value": "loop.v_final_and_scan_outputs.0",
        },
    )
    session = Session(graph, backend, threads=1)
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        session.forward({"x": np.zeros((64, 64), np.float32)}, cancel=cancel)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("backend", BACKENDS)
def test_check_numerics_names_the_first_node(backend: Any) -> None:
    graph = graph_of(
        {
            "x": tensor_input("float", "n"),
            "log": ("Log", {}),
            "exp": ("Exp", {}),
            "sum": ("Add", {}),
            "y": ("Output", {}),
        },
        {
            "log.input": "x.value",
            "exp.input": "log.output",
            "sum.A": "exp.output",
            "sum.B": "x.value",
            "y.value": "sum.C",
        },
    )
    session = Session(graph, backend)
    session.forward({"x": np.ones(3, np.float32)}, check_numerics=True)
    with pytest.raises(GraphError, match=r"log\.output: 1 of 3 values are NaN, the first at \[1\]"):
        session.forward({"x": np.array([1, -1, 2], np.float32)}, check_numerics=True)
    with pytest.raises(GraphError, match=r"log\.output: 2 of 3 values are infinite, the first at \[0\]"):
        session.forward({"x": np.array([0, 1, 0], np.float32)}, check_numerics=True)
    # what comes from outside is nobody's fault
    outputs = session.forward({"x": np.array([np.nan, 1, 1], np.float32)}, check_numerics=True)
    assert np.isnan(outputs["y"][0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failing_node_is_named(backend: Any) -> None:
    graph = graph_of(
        {
            "x": tensor_input("float", "n"),
            "shape": tensor_input("int64", 2),
            "reshape": ("Reshape", {}),
            "y": ("Output", {}),
        },
        {"reshape.data": "x.value", "reshape.shape": "shape.value", "y.value": "reshape.reshaped"},
    )
    session = Session(graph, backend)
    for _ in range(2):
        with pytest.raises(GraphError) as caught:
            session.forward({"x": np.ones(6, np.float32), "shape": np.array([4, 2])})
        assert caught.value.findings[0].node == "reshape"
        assert session.forward({"x": np.ones(6, np.float32), "shape": np.array([3, 2])})["y"].shape == (3, 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_input_without_a_type_takes_any(backend: Any) -> None:
    graph = graph_of(
        {"x": ("Input", {}), "abs": ("Abs", {}), "y": ("Output", {})}, {"abs.X": "x.value", "y.value": "abs.Y"}
    )
    session = Session(graph, backend)
    for dtype in (np.float32, np.int64, np.float64):
        got = session.forward({"x": np.array([-1, 2], dtype)})["y"]
        assert got.dtype == dtype and got.tolist() == [1, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_overridable_initializer_is_an_input_with_a_default(backend: Any) -> None:
    graph = graph_of(
        {
            "x": tensor_input("float", "n"),
            "b": ("Initializer", {"tensor": Tensor.from_array(np.array([1], np.float32)), "overridable": True}),
            "sum": ("Add", {}),
            "y": ("Output", {}),
        },
        {"sum.A": "x.value", "sum.B": "b.value", "y.value": "sum.C"},
    )
    session = Session(graph, backend)
    x = np.array([1, 2], np.float32)
    assert session.forward({"x": x})["y"].tolist() == [2, 3]
    assert session.forward({"x": x, "b": np.array([5], np.float32)})["y"].tolist() == [6, 7]


def test_rounding_that_the_graph_itself_asks_for_is_done_and_told() -> None:
    columns, rows, block = 64, 128, 32
    codes = RNG.integers(0, 16, (rows, columns), np.uint8)
    scales = RNG.uniform(0.5, 1, (rows, columns // block)).astype(np.float32)
    weights = (codes.astype(np.float64) - 8) * np.repeat(scales, block, 1)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).reshape(rows, columns // block, block // 2)
    graph = graph_of(
        {
            "x": tensor_input("float", "n", columns),
            "w": constant(packed),
            "s": constant(scales.reshape(-1)),
            "product": (
                "com.microsoft.MatMulNBits",
                {"K": columns, "N": rows, "bits": 4, "block_size": block, "accuracy_level": 1},
            ),
            "y": ("Output", {}),
        },
        {"product.A": "x.value", "product.B": "w.value", "product.scales": "s.value", "y.value": "product.Y"},
    )
    x = RNG.standard_normal((5, columns)).astype(np.float32)
    expected = x.astype(np.float64) @ weights.T

    def error(session: Session) -> float:
        return float(np.abs(session.forward({"x": x})["y"] - expected).max() / np.abs(expected).max())

    assert error(Session(graph)) < 1e-5
    graph.set("product", "accuracy_level", 4)
    rounding = Session(graph)
    assert error(rounding) > 1e-4
    assert any(finding.node == "product" and finding.code == "accuracy-level" for finding in rounding.findings)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("varying", ["s", "z", "sz", "overridable"])
def test_rounding_is_left_out_where_its_kernel_gives_wrong_numbers(varying: str, precision: Any) -> None:
    columns, rows, block = 64, 128, 32
    codes = RNG.integers(0, 16, (rows, columns), np.uint8)
    zeros = RNG.integers(0, 16, (rows, columns // block), np.uint8)
    scales = RNG.uniform(0.5, 1, (rows, columns // block)).astype(np.float32)
    weights = (codes.astype(np.float64) - np.repeat(zeros, block, 1)) * np.repeat(scales, block, 1)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).reshape(rows, columns // block, block // 2)
    tensors = {"w": packed, "s": scales.reshape(-1), "z": (zeros[:, ::2] | zeros[:, 1::2] << 4).reshape(-1)}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {"x": tensor_input("float", "n", columns), "y": ("Output", {})}
    parameters = {"K": columns, "N": rows, "bits": 4, "block_size": block, "accuracy_level": 4}
    nodes["product"] = ("com.microsoft.MatMulNBits", parameters)
    for name, array in tensors.items():
        nodes[name] = constant(array)
        if varying == "overridable" and name == "s":
            nodes[name][1]["overridable"] = True
        elif name in varying and varying != "overridable":
            nodes[name] = tensor_input("float" if name == "s" else "uint8", *array.shape)
    ports = {"A": "x", "B": "w", "scales": "s", "zero_points": "z"}
    wires = {f"product.{port}": f"{name}.value" for port, name in ports.items()}
    session = Session(graph_of(nodes, wires | {"y.value": "product.Y"}), precision=precision)
    feeds = {"x": RNG.standard_normal((5, columns)).astype(np.float32)}
    feeds |= {name: tensors[name] for name in session.inputs if name != "x"}
    expected = feeds["x"].astype(np.float64) @ weights.T
    found = session.forward(feeds)["y"]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert any(finding.node == "product" and "left out" in finding.message for finding in session.findings)


def test_dequantized_weights_stay_exact() -> None:
    columns, rows, block = 64, 64, 32
    codes = RNG.integers(-8, 8, (columns, rows)).astype(ml_dtypes.int4)
    scales = RNG.uniform(0.5, 1, (columns // block, rows)).astype(np.float32)
    weights = codes.astype(np.float64) * np.repeat(scales, block, 0)
    graph = graph_of(
        {
            "x": tensor_input("float", "n", columns),
            "w": constant(codes),
            "s": constant(scales),
            "wide": ("DequantizeLinear", {"axis": 0, "block_size": block}),
            "product": ("MatMul", {}),
            "y": ("Output", {}),
        },
        {
            "wide.x": "w.value",
            "wide.x_scale": "s.value",
            "product.A": "x.value",
            "product.B": "wide.y",
            "y.value": "product.Y",
        },
    )
    x = RNG.standard_normal((5, columns)).astype(np.float32)
    expected = x.astype(np.float64) @ weights
    got = Session(graph).forward({"x": x})["y"]
    assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-5


def test_weights_are_shared_not_copied(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")

    def private_megabytes() -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) // 1024

    size = 64 << 20
    file = tmp_path / "w.bin"
    np.arange(size // 4, dtype=np.float32).tofile(file)
    tensor = Tensor.from_file(file, 0, ElementType.FLOAT, (size // 4096, 1024))
    graph = graph_of(
        {
            "i": tensor_input("int64", "n"),
            "w": ("Initializer", {"tensor": tensor}),
            "rows": ("Gather", {}),
            "y": ("Output", {}),
        },
        {"rows.data": "w.value", "rows.indices": "i.value", "y.value": "rows.output"},
    )
    Session(linear(WEIGHTS)).forward({"x": X})
    before = private_megabytes()
    session = Session(graph)
    assert session.forward({"i": np.array([3])})["y"][0, 0] == 3 * 1024
    assert private_megabytes() - before < 32


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"backend": "torch"}, "backend must be 'onnxruntime' or 'numpy'"),
        ({"precision": "low"}, "precision must be 'exact' or 'fast'"),
        ({"threads": 0}, "threads must be 1 to 256"),
        ({"threads": 100000}, "threads must be 1 to 256"),
        ({"providers": ["NoSuchProvider"]}, "has no NoSuchProvider"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(GraphError, match=expected):
        Session(linear(WEIGHTS), **options)


@pytest.mark.parametrize("probe", ["nothing.Y", "product.Q", "product"])
def test_wrong_probes_are_refused(probe: str) -> None:
    session = Session(linear(WEIGHTS))
    with pytest.raises(GraphError):
        session.forward({"x": X}, probes=[probe])


def test_a_graph_with_errors_is_refused() -> None:
    graph = linear(WEIGHTS)
    graph.cut("relu.X")
    with pytest.raises(GraphError) as caught:
        Session(graph)
    assert any(finding.node == "relu" for finding in caught.value.findings)


UNARY = {"Relu": ("X", "Y"), "Tanh": ("input", "output"), "Sigmoid": ("X", "Y"), "Neg": ("X", "Y"), "Abs": ("X", "Y")}


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from([*UNARY, "Double"]), min_size=1, max_size=6), st.data())
def test_backends_agree_and_probes_change_nothing(operators: list[str], data: st.DataObject) -> None:
    nodes: dict[str, tuple[str, dict[str, Any]]] = {"x": tensor_input("float", "n", 4)}
    wires: dict[str, str] = {}
    source, ports = "x.value", []
    for index, operator in enumerate(operators):
        id = f"n{index}"
        into, out = UNARY.get(operator, ("x", "y"))
        nodes[id] = ("test.session.Doubled" if operator == "Double" else operator, {})
        wires[f"{id}.{into}"] = source
        source = f"{id}.{out}"
        ports.append(source)
    nodes["y"] = ("Output", {})
    wires["y.value"] = source
    graph = graph_of(nodes, wires)
    probes = data.draw(st.lists(st.sampled_from(ports), unique=True))
    x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    native, plain = Session(graph, threads=1), Session(graph, "numpy")
    alone = native.forward({"x": x})["y"]
    np.testing.assert_array_equal(native.forward({"x": x}, probes=probes)["y"], alone)
    plain_output = plain.forward({"x": x}, probes=probes)["y"]
    np.testing.assert_allclose(alone, plain_output, rtol=1e-5, atol=1e-6)
    for probe in probes:
        np.testing.assert_allclose(native.last_run.probes[probe], plain.last_run.probes[probe], rtol=1e-5, atol=1e-6)


def test_a_session_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    inputs, attributes = make_layer(bits=(8, 8, 8), block_size=32, hidden=64, inter=64)
    qmoe_node.evaluate(inputs, attributes, backend="onnxruntime")
    assert "".join(capfd.readouterr()) == ""


FOLDED: list[tuple[str, dict[str, Any]]] = [
    ("Transpose", {"perm": [1, 0]}),
    ("Neg", {}),
    ("Relu", {}),
    ("Identity", {}),
    ("Cast", {"to": 1}),
    ("Flatten", {}),
]


@pytest.mark.parametrize(("operator", "parameters"), FOLDED)
def test_large_constants_are_folded_as_they_are(operator: str, parameters: dict[str, Any]) -> None:
    """ONNX Runtime computes constants while it opens a model: with the weights, not with what stands in for them."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((64, 64)).astype(np.float16 if operator == "Cast" else np.float32)
    graph = Graph("folded", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["n", 64]})
    graph.add("Initializer", "w", parameters={"tensor": Tensor.from_array(weights)})
    graph.add(operator, "node", parameters=parameters)
    graph.add("MatMul", "product")
    graph.add("Output", "y")
    node_type = graph.node_type("node")
    assert node_type is not None
    graph.wire("w.value", f"node.{node_type.inputs[0].name}")
    graph.wire("x.value", "product.A")
    graph.wire(f"node.{node_type.outputs[0].name}", "product.B")
    graph.wire("product.Y", "y.value")
    x = random.standard_normal((3, 64)).astype(np.float32)
    first, second = (Session(graph, backend).forward({"x": x})["y"] for backend in ("numpy", "onnxruntime"))
    assert np.abs(first).max() > 1
    np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-4)


def test_fused_convolutions_have_their_weights() -> None:
    random = np.random.default_rng(0)
    graph = Graph("fused", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [1, 16, 8, 8]})
    tensors = {"w": (16, 16, 3, 3), "scale": (16,), "bias": (16,), "mean": (16,), "var": (16,)}
    for id, shape in tensors.items():
        numbers = random.uniform(0.5, 1.5, shape).astype(np.float32)
        graph.add("Initializer", id, parameters={"tensor": Tensor.from_array(numbers)})
    graph.add("Conv", "conv")
    graph.add("BatchNormalization", "norm")
    graph.add("Output", "y")
    for source, target in (
        ("x.value", "conv.X"),
        ("w.value", "conv.W"),
        ("conv.Y", "norm.X"),
        ("scale.value", "norm.scale"),
        ("bias.value", "norm.B"),
        ("mean.value", "norm.input_mean"),
        ("var.value", "norm.input_var"),
        ("norm.Y", "y.value"),
    ):
        graph.wire(source, target)
    x = random.standard_normal((1, 16, 8, 8)).astype(np.float32)
    first, second = (Session(graph, backend).forward({"x": x})["y"] for backend in ("numpy", "onnxruntime"))
    np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-4)


def chain(*operators: str) -> Graph:
    """Operators of one input, one after the other, from x [2, 3] to y; their ids are their names in small letters."""
    graph = Graph("chain", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [2, 3]})
    source = "x.value"
    for operator in operators:
        id = graph.add(operator, operator.lower())
        node_type = graph.node_type(id)
        assert node_type is not None
        graph.wire(source, f"{id}.{node_type.inputs[0].name}")
        source = f"{id}.{node_type.outputs[0].name}"
    graph.add("Output", "y")
    graph.wire(source, "y.value")
    return graph


def test_one_session_serves_several_threads() -> None:
    graph = chain("Neg", "Abs", "Exp")
    session = Session(graph)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(30):
                probes = [port for bit, port in enumerate(session.placement) if (number + turn) >> bit & 1]
                ports = [f"{id}.{graph.node_type(id).outputs[0].name}" for id in probes]  # type: ignore[union-attr]
                session.forward({"x": np.ones((2, 3), np.float32)}, probes=ports, times=turn % 10 == 0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("backend", ["numpy", "onnxruntime"])
def test_an_infinity_made_of_integers_is_named(backend: Any) -> None:
    graph = Graph("g", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(int64)", "shape": [2]})
    graph.add("Cast", "narrow", parameters={"to": 10})
    graph.add("Neg", "neg")
    graph.add("Output", "y")
    graph.wire("x.value", "narrow.input")
    graph.wire("narrow.output", "neg.X")
    graph.wire("neg.Y", "y.value")
    with pytest.raises(GraphError, match="narrow.output: 1 of 2 values are infinite"):
        Session(graph, backend).forward({"x": np.array([1, 100000])}, check_numerics=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda graph: Session(graph, threads=1.5),
        lambda graph: Session(graph, threads="2"),
        lambda graph: Session(graph, providers="CPUExecutionProvider"),
        lambda graph: Session(graph, providers=[("CPUExecutionProvider", {})]),
        lambda graph: Session(graph, "numpy", providers=["CPUExecutionProvider"]),
        lambda graph: Session(graph, "numpy", as_is=True),
        lambda graph: Session(graph).forward(None),
        lambda graph: Session(graph).forward([1]),
        lambda graph: Session(graph).forward({"x": np.ones((2, 3), np.float32)}, probes=[5]),
        lambda graph: Session(graph).forward({"x": np.ones((2, 3), np.float32)}, probes="neg.Y"),
        lambda graph: Session(graph).forward({"x": np.ones((2, 3), np.float32)}, cancel=True),
    ],
)
def test_misused_arguments_are_told_in_sentences(call: Any) -> None:
    with pytest.raises(GraphError):
        call(chain("Neg"))


def test_split_gives_as_many_parts_as_it_is_asked_for_even_if_few_are_read() -> None:
    graph = Graph("parts", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [4]})
    graph.add("Split", "split", parameters={"num_outputs": 4})
    graph.add("Output", "y")
    graph.wire("x.value", "split.input")
    graph.wire("split.outputs.2", "y.value")
    for backend in ("onnxruntime", "numpy"):
        found = Session(graph, backend).forward({"x": np.arange(4, dtype=np.float32)})  # type: ignore[arg-type]
        assert found["y"].tolist() == [2]


def test_a_session_with_scales_that_are_fed_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    inputs, attributes = make_layer(bits=(4, 4, 4), block_size=32, hidden=64, inter=64)
    fed = {name: array for name, array in inputs.items() if "weights" not in name and "zero" not in name}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {"y": ("Output", {})}
    nodes["moe"] = ("com.microsoft.QMoE", dict(attributes))
    for name, array in inputs.items():
        tensor = Tensor.from_array(array)
        nodes[name] = ("Input", {"type": str(tensor.type)}) if name in fed else ("Initializer", {"tensor": tensor})
    graph = graph_of(nodes, {"y.value": "moe.output"} | {f"moe.{name}": f"{name}.value" for name in inputs})
    Session(graph).forward(fed)
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize(("reduction", "ufunc"), [("add", np.add), ("mul", np.multiply), ("max", np.maximum)])
@pytest.mark.parametrize(("shape", "depth"), [((400, 96), 1), ((20, 20, 96), 2), ((400,), 1)])
def test_scatter_nd_loses_nothing_to_other_threads(
    reduction: str, ufunc: Any, shape: tuple[int, ...], depth: int
) -> None:
    """ONNX Runtime's own kernel drops terms where several threads write to one place."""
    random = np.random.default_rng(0)
    count = 4000
    indices = np.stack([random.integers(-size, size, count) for size in shape[:depth]], axis=-1)
    updates = random.uniform(0.9, 1.1, (count, *shape[depth:]))
    x = random.uniform(0.9, 1.1, shape)
    expected = x.copy()
    ufunc.at(expected, tuple(indices.T), updates)
    graph = graph_of(
        {
            "x": tensor_input("double", *shape),
            "at": tensor_input("int64", count, depth),
            "updates": tensor_input("double", count, *shape[depth:]),
            "scatter": ("ScatterND", {"reduction": reduction}),
            "y": ("Output", {}),
        },
        {
            "scatter.data": "x.value",
            "scatter.indices": "at.value",
            "scatter.updates": "updates.value",
            "y.value": "scatter.output",
        },
    )
    session = Session(graph, threads=2)
    for _ in range(10):
        got = session.forward({"x": x, "at": indices, "updates": updates})["y"]
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("backend", ["numpy", "onnxruntime"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int8, np.int64])
@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
@pytest.mark.parametrize("count", [0, 6])
def test_scatter_nd_of_other_numbers_and_of_none(backend: Any, dtype: Any, reduction: str, count: int) -> None:
    random = np.random.default_rng(1)
    indices = np.stack([random.integers(-size, size, count) for size in (3, 4)], axis=-1)
    updates = random.integers(0, 4, (count, 2)).astype(dtype)
    x = random.integers(0, 4, (3, 4, 2)).astype(dtype)
    expected = x.astype(np.int64)
    ufunc = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[reduction]
    ufunc.at(expected, tuple(indices.T), updates.astype(np.int64))
    element = str(Tensor.from_array(x).type).partition("(")[2].partition(")")[0].partition(",")[0]
    graph = graph_of(
        {
            "x": tensor_input(element, "a", "b", "c"),
            "at": tensor_input("int64", "count", 2),
            "updates": tensor_input(element, "count", "c"),
            "scatter": ("ScatterND", {"reduction": reduction}),
            "y": ("Output", {}),
        },
        {
            "scatter.data": "x.value",
            "scatter.indices": "at.value",
            "scatter.updates": "updates.value",
            "y.value": "scatter.output",
        },
    )
    got = Session(graph, backend=backend).forward({"x": x, "at": indices, "updates": updates})["y"]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(np.int64), expected)


SCATTERS = """<ir_version: 10, opset_import: ["":21, "own":1]>
g (bool c, float[5,4] x, int64[n,1] i, float[n,4] u, int64 t) => (float[5,4] y, float[5,4] z, float[5,4] w) {
    y = If (c) <
        then_branch = a () => (float[5,4] p) { p = ScatterND <reduction="add"> (x, i, u) },
        else_branch = b () => (float[5,4] q) { k = Neg (u)  q = ScatterND <reduction="add"> (x, i, k) }>
    on = Constant <value = bool {1}> ()
    z = Loop (t, on, x) <body = l (int64 it, bool ci, float[5,4] v) => (bool co, float[5,4] vo)
        { co = Identity (ci)  vo = ScatterND <reduction="add"> (v, i, u) }>
    w = own.Scatter (x, i, u)
}
<domain: "own", opset_import: ["":21]>
Scatter (d, j, e) => (r) { r = ScatterND <reduction="add"> (d, j, e) }
"""


@pytest.mark.parametrize("condition", [True, False])
def test_scatter_nd_in_subgraphs_and_functions(
    condition: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import onnx

    from runtime import load

    onnx.save(onnx.parser.parse_model(SCATTERS), tmp_path / "scatters.onnx")
    graph = load(tmp_path / "scatters.onnx")
    random = np.random.default_rng(0)
    indices, updates = random.integers(-5, 5, (40, 1)), random.uniform(0, 1, (40, 4)).astype(np.float32)
    fed = {"c": np.array(condition), "x": np.zeros((5, 4), np.float32), "i": indices, "u": updates, "t": np.array(3)}
    got = Session(graph).forward(fed)
    once = np.zeros((5, 4), np.float32)
    np.add.at(once, indices[:, 0], updates)
    for name, factor in {"y": 1 if condition else -1, "z": 3, "w": 1}.items():
        np.testing.assert_allclose(got[name], factor * once, rtol=1e-5)
    assert "".join(capfd.readouterr()) == "" and not caplog.records
