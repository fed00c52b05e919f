"""Gradients through If, Loop, Scan and calls of functions, beside central differences and unrolled graphs."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Graph, GraphError, Session
from runtime.backends.numpy import subgraphs
from runtime.check import Checker
from runtime.compile import compile_graph
from runtime.gradients import control, differentiate, table
from runtime.onnx_import import import_model
from tests.gradient_checks import compare

RNG = np.random.default_rng(3)
HEADER = '<ir_version: 10, opset_import: ["" : 21{}]>\n'


def model(text: str, functions: str = "") -> Graph:
    """A graph from ONNX's text form."""
    header = HEADER.format(', "local" : 1' if functions else "")
    return import_model(onnx.parser.parse_model(header + text + functions))


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def agree(graph: Graph, inputs: dict[str, np.ndarray]) -> None:
    found = compare(graph, inputs)
    assert found.tried and found.slopes < 1e-6 and found.onnxruntime is not None and found.onnxruntime < 1e-9, found


IF = """
g (double[2,3] x, double[3] w, double[3] v, bool which) => (double[2,3] y) {
    h = Sin(x)
    y = If (which) <
        then_branch = t () => (double[2,3] a) { p = Mul(h, w)  q = Exp(p)  a = Add(q, p) },
        else_branch = e () => (double[2,3] b) { r = Tanh(v)  b = Mul(h, r) }
    >
}"""


@pytest.mark.parametrize("which", [True, False])
def test_if_goes_back_through_the_branch_that_ran(which: bool) -> None:
    inputs = {"x": numbers(2, 3), "w": numbers(3), "v": numbers(3), "which": np.array(which)}
    agree(model(IF), inputs)
    session = Session(model(IF), "numpy")
    session.forward(inputs)
    gradients = session.backward({"y": np.ones((2, 3))})
    assert np.any(gradients["w"]) == which and np.any(gradients["v"]) != which
    assert gradients["w"].shape == gradients["v"].shape == (3,)


LOOP = """
g (double[2,3] x, double[3,3] w) => (double[2,3] y, double[N,2] z) {
    trips = Constant <value = int64 {3}> ()
    go = Constant <value = bool {1}> ()
    scale = Sin(w)
    y, z = Loop (trips, go, x) <
        body = b (int64 i, bool c, double[2,3] h) => (bool d, double[2,3] k, double[2] s) {
            d = Identity(c)
            axes = Constant <value = int64[1] {1}> ()
            p = MatMul(h, scale)
            f = Cast <to = 11> (i)
            q = Add(p, f)
            k = Tanh(q)
            s = ReduceSum <keepdims = 0> (k, axes)
        }
    >
}"""


def test_loop() -> None:
    agree(model(LOOP), {"x": numbers(2, 3), "w": numbers(3, 3)})


def test_only_what_is_needed_stays() -> None:
    """The gradient of a sum of x + If(...) needs neither the branches nor what they read."""
    text = IF.replace("Add(q, p)", "Add(q, h)").replace("Exp(p)", "Sign(p)").replace("Mul(h, r)", "Add(h, v)")
    compiled = compile_graph(model(text))
    compiled.give_types(Checker(model(text)).type_of)
    added = differentiate(compiled.model, ["y"], ["x"])
    assert {node.op_type for node in added.nodes} <= {"Cos", "Mul", "If"}
    (branching,) = (node for node in added.nodes if node.op_type == "If")
    assert all(node.op_type == "Identity" for graph in subgraphs(branching) for node in graph)


def test_a_loop_without_iterations_is_the_identity() -> None:
    graph = model(LOOP.replace("int64 {3}", "int64 {0}"))
    session = Session(graph, "numpy")
    session.forward({"x": numbers(2, 3), "w": numbers(3, 3)})
    given = numbers(2, 3)
    gradients = session.backward({"y": given})
    assert np.array_equal(gradients["x"], given) and not np.any(gradients["w"])


COUNTER = """
g (double[3] x) => (double[3] y) {
    go = Constant <value = bool {1}> ()
    start = Constant <value = float {0.0}> ()
    y, last = Loop (, go, x, start) <
        body = b (int64 i, bool c, double[3] h, float t) => (bool d, double[3] k, float u) {
            one = Constant <value = float {1.0}> ()
            four = Constant <value = float {4.0}> ()
            u = Add(t, one)
            d = Less(u, four)
            k = Mul(h, x)
        }
    >
}"""


def test_a_condition_that_counts_is_constant() -> None:
    x = numbers(3)
    agree(model(COUNTER), {"x": x})
    session = Session(model(COUNTER), "numpy")
    session.forward({"x": x})
    assert np.allclose(session.backward({"y": np.ones(3)})["x"], 5 * x**4)


def test_loops_of_unknown_length_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    depends = "m = ReduceSum <keepdims = 0> (h)  lim = Cast <to = 11> (four)  d = Less(m, lim)"
    text = COUNTER.replace("d = Less(u, four)", depends)
    with pytest.raises(GraphError, match="condition is computed from values that are known only in the run"):
        _backward(model(text), {"x": numbers(3)})
    text = LOOP.replace("double[3,3] w)", "double[3,3] w, int64 trips)")
    text = text.replace("trips = Constant <value = int64 {3}> ()", "")
    with pytest.raises(GraphError, match="trip count is not known before the run") as caught:
        _backward(model(text), {"x": numbers(2, 3), "w": numbers(3, 3), "trips": np.array(2)})
    assert caught.value.findings[0].node
    monkeypatch.setattr(control, "MOST_ITERATIONS", 4)
    with pytest.raises(GraphError, match="more than 4 iterations"):
        _backward(model(LOOP.replace("int64 {3}", "int64 {5}")), {"x": numbers(2, 3), "w": numbers(3, 3)})


def _backward(graph: Graph, inputs: dict[str, np.ndarray]) -> None:
    session = Session(graph, "numpy")
    outputs = session.forward(inputs)
    session.backward({"y": np.ones_like(outputs["y"])})


SCAN = """
g (double[{shape_a}] a, double[{shape_b}] b, double[2] h0, double[2] w)
    => (double[2] h, double[{shape_y}] y, double[{shape_z}] z) {{
    h, y, z = Scan <num_scan_inputs = 2, scan_input_axes = [{axis_a}, {axis_b}],
        scan_input_directions = [{back_a}, {back_b}], scan_output_axes = [{axis_y}, {axis_z}],
        scan_output_directions = [{back_y}, {back_z}],
        body = s (double[2] h, double[2,3] p, double[2] q) => (double[2] k, double[2,3] u, double[2] v) {{
            one = Constant <value = int64[1] {{1}}> ()
            m = ReduceSum <keepdims = 0> (p, one)
            n = Mul(m, w)
            o = Add(n, h)
            k = Tanh(o)
            wide = Unsqueeze(k, one)
            u = Mul(p, wide)
            v = Mul(k, q)
        }}
    > (h0, a, b)
}}"""


@settings(deadline=None, max_examples=12)
@given(
    st.integers(1, 3),
    st.integers(-3, 2),
    st.integers(-2, 1),
    st.integers(-3, 2),
    st.integers(-2, 1),
    st.lists(st.integers(0, 1), min_size=4, max_size=4),
)
def test_scan(length: int, axis_a: int, axis_b: int, axis_y: int, axis_z: int, back: list[int]) -> None:
    def with_length(shape: list[int], axis: int) -> list[int]:
        shape.insert(axis % (len(shape) + 1), length)
        return shape

    shapes = {
        "shape_a": with_length([2, 3], axis_a),
        "shape_b": with_length([2], axis_b),
        "shape_y": with_length([2, 3], axis_y),
        "shape_z": with_length([2], axis_z),
    }
    text = SCAN.format(
        **{name: ",".join(map(str, shape)) for name, shape in shapes.items()},
        axis_a=axis_a,
        axis_b=axis_b,
        axis_y=axis_y,
        axis_z=axis_z,
        back_a=back[0],
        back_b=back[1],
        back_y=back[2],
        back_z=back[3],
    )
    agree(
        model(text),
        {"a": numbers(*shapes["shape_a"]), "b": numbers(*shapes["shape_b"]), "h0": numbers(2), "w": numbers(2)},
    )


def test_a_scan_of_unknown_length_is_refused() -> None:
    text = SCAN.format(
        shape_a="N,2,3",
        shape_b="N,2",
        shape_y="N,2,3",
        shape_z="N,2",
        axis_a=0,
        axis_b=0,
        axis_y=0,
        axis_z=0,
        back_a=0,
        back_b=0,
        back_y=0,
        back_z=0,
    )
    with pytest.raises(GraphError, match="length of its scan inputs is not known before the run"):
        _backward(model(text), {"a": numbers(2, 2, 3), "b": numbers(2, 2), "h0": numbers(2), "w": numbers(2)})


NESTED = """
g (double[2,3] x, double[3] w, double[3] v, bool which) => (double[2,3] y) {
    trips = Constant <value = int64 {3}> ()
    go = Constant <value = bool {1}> ()
    y = Loop (trips, go, x) <
        body = b (int64 i, bool c, double[2,3] h) => (bool d, double[2,3] k) {
            d = Identity(c)
            two = Constant <value = int64 {2}> ()
            early = Less(i, two)
            k = If (early) <
                then_branch = t () => (double[2,3] a) {
                    m = Mul(h, w)
                    a = If (which) <
                        then_branch = tt () => (double[2,3] aa) { p = Sin(m)  aa = Add(p, x) },
                        else_branch = te () => (double[2,3] ab) { ab = Tanh(m) }
                    >
                },
                else_branch = e () => (double[2,3] bb) {
                    bb = Loop (two, , h) <
                        body = n (int64 j, bool cc, double[2,3] hh) => (bool dd, double[2,3] kk) {
                            dd = Identity(cc)
                            f = Cast <to = 11> (j)
                            r = Add(v, f)
                            kk = Mul(hh, r)
                        }
                    >
                }
            >
        }
    >
}"""


@pytest.mark.parametrize("which", [True, False])
def test_nested(which: bool) -> None:
    agree(model(NESTED), {"x": numbers(2, 3), "w": numbers(3), "v": numbers(3), "which": np.array(which)})


FUNCTION = """
g (double[2,3] x, double[3] w, bool which) => (double[2,3] y) {
    h = local.scaled <factor = 2.0> (x, w)
    y = If (which) <
        then_branch = t () => (double[2,3] a) { a = local.scaled <factor = 3.0> (h, w) },
        else_branch = e () => (double[2,3] b) { b = Neg(h) }
    >
}"""
SCALED = """
<opset_import: ["" : 21], domain: "local">
scaled <factor> (a, b) => (c) {
    f = Constant <value_float: float = @factor> ()
    g = CastLike (f, a)
    p = Mul (a, b)
    q = Mul (p, g)
    c = Sin (q)
}"""


def test_calls_of_functions() -> None:
    inputs = {"x": numbers(2, 3), "w": numbers(3), "which": np.array(True)}
    agree(model(FUNCTION, SCALED), inputs)


OWN_TENSORS = """
g (double[2,3] x, bool which) => (double[2,3] y) {
    y = If (which) <
        then_branch = t () => (double[2,3] a)
            <double[3] scale = {1.5, -2, 0.5}> { p = Mul(x, scale)  a = Sin(p) },
        else_branch = e () => (double[2,3] b)
            <int64 trips = {2}> {
            b = Loop (trips, , x) <
                body = n (int64 j, bool c, double[2,3] h) => (bool d, double[2,3] k)
                    <double[1] factor = {0.7}> { d = Identity(c)  m = Mul(h, factor)  k = Tanh(m) }
            >
        }
    >
}"""


@pytest.mark.parametrize("which", [True, False])
def test_subgraphs_with_tensors_of_their_own(which: bool) -> None:
    agree(model(OWN_TENSORS), {"x": numbers(2, 3), "which": np.array(which)})


def test_values_that_one_branch_alone_changes() -> None:
    """A branch may give out what it found outside; its gradient then passes."""
    text = IF.replace("r = Tanh(v)  b = Mul(h, r)", "b = Identity(x)")
    session = Session(model(text), "numpy")
    inputs = {"x": numbers(2, 3), "w": numbers(3), "v": numbers(3), "which": np.array(False)}
    session.forward(inputs)
    given = numbers(2, 3)
    gradients = session.backward({"y": given})
    assert np.array_equal(gradients["x"], given) and not np.any(gradients["w"])


def test_an_operator_without_a_gradient_inside_is_named_with_the_path_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "RULES", {name: rule for name, rule in table.RULES.items() if name != "Tanh"})
    with pytest.raises(GraphError) as caught:
        _backward(model(NESTED), {"x": numbers(2, 3), "w": numbers(3), "v": numbers(3), "which": np.array(False)})
    message = caught.value.findings[0].message
    assert "Tanh, a part of Loop, has no gradient" in message
    assert "y <- loop_0 <- " in message and "gradient/" not in message
