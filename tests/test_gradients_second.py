"""Second derivatives: a gradient is a graph of operators that have gradients themselves."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from runtime import Graph, Session
from runtime.check import Checker
from runtime.compile import compile_graph
from runtime.gradients import differentiate
from runtime.onnx_import import import_model

RNG = np.random.default_rng(5)


def gradient_graph(graph: Graph, wanted: list[str]) -> Graph:
    """The graph with the gradients of its output `loss` with respect to `wanted` values as further outputs."""
    compiled = compile_graph(graph)
    compiled.mark_nodes()
    compiled.give_types(Checker(graph).type_of)
    model = compiled.model
    added = differentiate(model, ["loss"], wanted)
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in wanted:
        gradient = values[added.gradients[name]]
        gradient.name = f"d_{name}"
        model.graph.outputs.append(gradient)
    return import_model(model)


MODELS = {
    "perceptron": (
        """
g (double[4,3] x, double[3,5] w, double[5] b, double[5,2] v) => (double loss) {
    h = MatMul(x, w)
    i = Add(h, b)
    j = Tanh(i)
    k = Gemm(j, v)
    p = Softmax <axis = -1> (k)
    l = Log(p)
    m = Mul(p, l)
    loss = ReduceMean <keepdims = 0> (m)
}""",
        {"x": (4, 3), "w": (3, 5), "b": (5,), "v": (5, 2)},
    ),
    "moved and selected": (
        """
g (double[5,4] table, double[4,8] w, double[1,4] v) => (double loss) {
    rows = Constant <value = int64[2,3] {1, 4, 1, 0, 2, 4}> ()
    x = Gather(table, rows)
    h = MatMul(x, w)
    a, c = Split <axis = -1, num_outputs = 2> (h)
    s = Sigmoid(a)
    d = Mul(s, c)
    k = Constant <value = int64[1] {2}> ()
    largest, places = TopK <axis = 2> (d, k)
    e = Exp(largest)
    t = Transpose <perm = [0, 2, 1]> (d)
    q = MatMul(t, d)
    n = LogSoftmax(q)
    f = Gelu(n)
    r = Mul(f, v)
    u = ReduceL2 <keepdims = 0> (r)
    loss0 = ReduceSum <keepdims = 0> (e)
    loss = Mul(u, loss0)
}""",
        {"table": (5, 4), "w": (4, 8), "v": (1, 4)},
    ),
    "subgraphs": (
        """
g (double[3] x, double[3] w) => (double loss) {
    trips = Constant <value = int64 {2}> ()
    yes = Constant <value = bool {1}> ()
    h = Loop (trips, yes, x) <
        body = b (int64 i, bool c, double[3] h) => (bool d, double[3] k) {
            d = Identity(c)
            p = Mul(h, w)
            zero = Constant <value = int64 {0}> ()
            first = Equal(i, zero)
            k = If (first) <
                then_branch = t () => (double[3] a) { a = Sin(p) },
                else_branch = e () => (double[3] o) { o = Exp(p) }
            >
        }
    >
    total = ReduceSum <keepdims = 0> (h)
    zero_float = Constant <value = float {0.0}> ()
    none = CastLike (zero_float, total)
    positive = Greater(total, none)
    loss = If (positive) <
        then_branch = t () => (double y) { u = Mul(h, w)  y = ReduceSumSquare <keepdims = 0> (u) },
        else_branch = e () => (double z) { z = ReduceLogSumExp <keepdims = 0> (h) }
    >
}""",
        {"x": (3,), "w": (3,)},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_second_derivatives(name: str) -> None:
    text, shapes = MODELS[name]
    graph = import_model(onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>' + text))
    wanted = list(shapes)
    inputs = {name: RNG.standard_normal(shape) for name, shape in shapes.items()}
    first = gradient_graph(graph, wanted)
    seed = next(name for name in Session(first, "numpy").inputs if name not in inputs)
    session = Session(first, "numpy")
    directions = {f"d_{name}": RNG.standard_normal(shape) for name, shape in shapes.items()}
    session.forward({**inputs, seed: np.array(1.0)})
    second = session.backward(directions, wanted)

    def slopes(given: dict[str, np.ndarray]) -> float:
        results = session.forward({**given, seed: np.array(1.0)})
        return float(sum(np.sum(results[name] * direction) for name, direction in directions.items()))

    scale = max(float(np.abs(gradient).max()) for gradient in second.values())
    assert scale > 1e-3
    for name, value in inputs.items():
        for place in np.ndindex(value.shape):
            moved = []
            for step in (1e-6, -1e-6):
                other = value.copy()
                other[place] += step
                moved.append(slopes({**inputs, name: other}))
            assert abs((moved[0] - moved[1]) / 2e-6 - second[name][place]) < 1e-6 * scale
