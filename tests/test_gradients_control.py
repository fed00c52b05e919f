"""Gradients through If, Loop, Scan and calls of functions, beside central differences and unrolled graphs."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Graph, GraphError, Session
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
