"""Gradients of ONNX Runtime's own operators.

Each operator is written with standard ones for its gradient. What is written must compute what ONNX Runtime's kernel
computes; its gradients are checked against central differences in double precision; and the gradients that a session
gives for the operator itself, on ONNX Runtime in float32, must be those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Graph, GraphError, Session
from runtime.backends.control import attribute_values, operator_name
from runtime.check import Checker
from runtime.compile import compile_graph
from runtime.gradients.expressions import Expr, Formulas
from runtime.gradients.table import FORMS
from runtime.gradients.walk import Call
from runtime.lowering import names_of
from runtime.onnx_import import import_model
from runtime.tape import Tape
from tests.gradient_checks import STEP, graph_of

RNG = np.random.default_rng(11)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 1.5, shape)


def integers(below: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, below, shape).astype(np.int32)


def written(graph: Graph) -> Graph:
    """The graph with its node `node` replaced by the standard operators that its gradient is found through."""
    compiled = compile_graph(graph)
    compiled.mark_nodes()
    compiled.give_types(Checker(graph).type_of)
    model = compiled.model
    node = next(item for item in model.graph if item.name == "node")
    op = Formulas(Tape("form", "node", model.opset_imports[""], names_of(model)), model.opset_imports)
    x = [None if value is None else Expr(op, value) for value in node.inputs]
    y = [Expr(op, value) for value in node.outputs]
    call = Call(op, node, x, y, [None] * len(y), [True] * len(x), attribute_values(node))
    found = FORMS[operator_name(node)](call)
    model.graph.insert_before(node, op.tape.nodes)
    for old, new in zip(node.outputs, (found,) if isinstance(found, Expr) else found, strict=False):
        if new is not None:
            name, old.name = old.name, None
            value = op.tape.op("Identity", [new.value])
            model.graph.insert_before(node, [op.tape.nodes[-1]])
            value.name, value.type = name, new.value.type
            old.replace_all_uses_with(value, replace_graph_outputs=True)
        elif old.is_graph_output():
            model.graph.outputs.remove(old)
    model.graph.remove(node, safe=True)
    assert not {item.domain for item in model.graph} - {""}
    return import_model(model)


def check(
    operator: str,
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any] | None = None,
    *,
    tolerance: float = 1e-5,
    opset: int = 21,
    kernel: bool = True,
    measured: bool = True,
    **options: Any,
) -> None:
    """What is written agrees with ONNX Runtime, or without a `kernel` with a formula; gradients agree with slopes,
    which are `measured` unless a kernel is not precise enough for that."""
    single = {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in inputs.items()}
    double = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in single.items()}
    constants = options.get("constants", ())
    feeds, wide = (
        {name: array for name, array in given.items() if name not in constants} for given in (single, double)
    )
    form = written(graph_of(operator, double, attributes, opset=opset, **options))
    exact = Session(form, "numpy")
    outputs = exact.forward(wide)
    directions = {name: RNG.standard_normal(value.shape) for name, value in outputs.items() if value.dtype.kind == "f"}
    expected = exact.backward(directions)
    assert expected
    if measured:
        slopes_agree(exact, wide, directions, expected)
    if not kernel:
        formula = FORMULAS.get(operator.rpartition(".")[2])
        if formula is not None:
            assert_close(outputs["y0"], formula(dict(double), dict(attributes or {})), 1e-7)
        return
    session = Session(graph_of(operator, single, attributes, opset=opset, **options), "onnxruntime")
    results = session.forward(feeds)
    for name, value in outputs.items():
        assert_close(results[name], value, tolerance)
    gradients = session.backward(directions)
    assert set(gradients) == set(expected)
    for name, value in expected.items():
        assert_close(gradients[name], value, 10 * tolerance)


def slopes_agree(
    session: Session,
    inputs: Mapping[str, np.ndarray],
    directions: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
) -> None:
    """The slope of the outputs along `directions`, measured as each input moves as a whole along a random direction."""
    for name, gradient in gradients.items():
        for _ in range(2):
            way = RNG.standard_normal(gradient.shape)
            totals = []
            for sign in (1, -1):
                results = session.forward({**inputs, name: inputs[name] + sign * STEP * way})
                totals.append(sum(np.sum(results[output] * direction) for output, direction in directions.items()))
            slope, expected = (totals[0] - totals[1]) / (2 * STEP), np.sum(gradient * way)
            assert abs(slope - expected) < 1e-6 * max(float(np.abs(gradient * way).sum()), 1e-2), (
                name,
                slope,
                expected,
            )


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert got.shape == expected.shape
    scale = float(np.abs(expected).max(initial=1e-3))
    assert float(np.abs(got - expected).max(initial=0)) <= tolerance * scale


Case = tuple[str, dict[str, np.ndarray], dict[str, Any]]


def _softmax(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    powers = np.exp(x)
    return powers / powers.sum(axes, keepdims=True)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


def _fast_gelu(x: np.ndarray) -> np.ndarray:
    return x * _sigmoid(np.sqrt(8 / np.pi) * (x + 0.044715 * x**3))


def _swiglu(x: dict[str, np.ndarray], a: dict[str, Any]) -> np.ndarray:
    gate, up = (x["gate"], x["up"]) if "up" in x else np.split(x["gate"], 2, axis=-1)
    limit = a.get("limit") or np.inf
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate * _sigmoid(a.get("activation_alpha", 1) * gate) * (up + a.get("activation_beta", 0))


def _group_norm(x: dict[str, np.ndarray], a: dict[str, Any]) -> np.ndarray:
    """Group by group, of channels that lie last."""
    last = a.get("channels_last", 1)
    image = x["X"]
    if "skip" in x:
        image = image + x["skip"][:, :, None, None] + x["bias"][:, None, None]
    if not last:
        image = np.moveaxis(image, 1, -1)
    parts = np.split(image, a["groups"], axis=-1)
    normal = [(p - p.mean((1, 2, 3), keepdims=True)) / np.sqrt(p.var((1, 2, 3), keepdims=True) + 1e-5) for p in parts]
    y = np.concatenate(normal, axis=-1) * x["gamma"] + x["beta"]
    y = y * _sigmoid(y) if a["activation"] else y
    return y if last else np.moveaxis(y, -1, 1)


def _biased_softmax(x: dict[str, np.ndarray], a: dict[str, Any]) -> np.ndarray:
    return _softmax(x["data"] + x["bias"], tuple(range(a["axis"], x["data"].ndim)))


def _split_gelu(x: dict[str, np.ndarray], a: dict[str, Any]) -> np.ndarray:
    left, right = np.split(x["X"] + x["bias"], 2, axis=-1)
    return left * _gelu(right)


FORMULAS: dict[str, Callable[[dict[str, np.ndarray], dict[str, Any]], np.ndarray]] = {
    "BiasAdd": lambda x, a: x["X"] + x["bias"] + x["skip"],
    "BiasDropout": lambda x, a: x["data"] + x["bias"] + x.get("residual", 0),
    "BiasSoftmax": _biased_softmax,
    "BiasSplitGelu": _split_gelu,
    "FusedMatMulActivation": lambda x, a: np.where((y := x["A"] @ x["B"]) > 0, y, a["activation_alpha"] * y),
    "GatedAdd": lambda x, a: x["X"] + x["Y"] * _sigmoid(x["gate"] @ x["gate_weight"]),
    "GemmFastGelu": lambda x, a: _fast_gelu(x["X"] @ x["W"] + x["bias"]),
    "GroupNorm": _group_norm,
    "SkipGroupNorm": _group_norm,
    "SwiGLU": _swiglu,
}
"""Operators, or forms of them, of which ONNX Runtime has no CPU kernel: what is written must agree with these."""

ACTIVATIONS: list[Case] = [
    ("Gelu", {"X": numbers(3, 4)}, {}),
    ("BiasGelu", {"A": numbers(2, 3, 4), "B": numbers(4)}, {}),
    ("FastGelu", {"X": numbers(2, 4), "bias": numbers(4)}, {}),
    ("FastGelu", {"X": numbers(2, 4)}, {}),
    ("QuickGelu", {"X": numbers(2, 4)}, {}),
    ("QuickGelu", {"X": numbers(2, 4)}, {"alpha": 0.7}),
    ("ScaledSiLU", {"X": numbers(2, 4)}, {"alpha": 0.7}),
    ("ScaledSiLU", {"X": numbers(2, 4), "scale": np.array(1.3)}, {}),
    ("BiasAdd", {"X": numbers(2, 3, 4), "bias": numbers(4), "skip": numbers(2, 3, 4)}, {}),
    ("BiasDropout", {"data": numbers(2, 4), "bias": numbers(4), "residual": numbers(2, 4)}, {}),
    ("BiasDropout", {"data": numbers(2, 4), "bias": numbers(4)}, {}),
    ("BiasSplitGelu", {"X": numbers(2, 3, 8), "bias": numbers(8)}, {}),
    ("BiasSoftmax", {"data": numbers(2, 3, 4), "bias": numbers(2, 1, 4)}, {"axis": 2, "is_inner_broadcast": 1}),
    ("BiasSoftmax", {"data": numbers(2, 3, 4), "bias": numbers(1, 3, 4)}, {"axis": 1, "is_inner_broadcast": 0}),
    ("SwiGLU", {"gate": numbers(2, 8)}, {"activation_alpha": 1.7, "activation_beta": 1.0, "limit": 0.8}),
    ("SwiGLU", {"gate": numbers(2, 4), "up": numbers(2, 4)}, {}),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes"), ACTIVATIONS)
def test_activations(operator: str, inputs: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
    check(f"com.microsoft.{operator}", inputs, attributes, kernel=operator not in FORMULAS)


def test_gated_add() -> None:
    check("com.microsoft.GatedAdd", {"X": numbers(2, 4), "Y": numbers(2, 4), "gate": numbers(2, 1)})
    inputs = {"X": numbers(2, 4), "Y": numbers(2, 4), "gate": numbers(2, 3), "gate_weight": numbers(3, 1)}
    check("com.microsoft.GatedAdd", inputs, kernel=False)  # ONNX Runtime has it for bfloat16 alone


PRODUCTS: list[Case] = [
    ("FusedMatMul", {"A": numbers(2, 3, 4), "B": numbers(2, 4, 5)}, {"alpha": 0.5}),
    ("FusedMatMul", {"A": numbers(2, 4, 3), "B": numbers(5, 4)}, {"transA": 1, "transB": 1}),
    ("FusedMatMul", {"A": numbers(2, 2, 2), "B": numbers(2, 2, 3)}, {"transBatchA": 1, "transBatchB": 1}),
    (
        "FusedMatMul",
        {"A": numbers(2, 2, 2), "B": numbers(2, 2, 2)},
        {"transBatchA": 1, "transBatchB": 1, "transA": 1, "transB": 1},
    ),
    ("TransposeMatMul", {"A": numbers(4, 3), "B": numbers(4, 5)}, {"transA": 1, "alpha": 2.0}),
    (
        "FusedMatMulActivation",
        {"A": numbers(3, 4), "B": numbers(4, 5)},
        {"activation": "LeakyRelu", "activation_alpha": 0.2},
    ),
    ("FusedGemm", {"A": numbers(3, 4), "B": numbers(5, 4), "C": numbers(5)}, {"transB": 1, "activation": "Sigmoid"}),
    (
        "FusedGemm",
        {"A": numbers(3, 4), "B": numbers(4, 5)},
        {"alpha": 0.5, "activation": "LeakyRelu", "activation_alpha": 0.3},
    ),
    ("GemmFastGelu", {"X": numbers(2, 3, 4), "W": numbers(4, 5), "bias": numbers(5)}, {}),
    (
        "MatMulIntegerToFloat",
        {
            "A": RNG.integers(0, 256, (3, 4), np.uint8),
            "B": RNG.integers(-128, 128, (4, 5), np.int8),
            "a_scale": 0.01 * positive(1),
            "b_scale": positive(5),
            "a_zero_point": np.array([120], np.uint8),
            "b_zero_point": RNG.integers(-9, 9, 5, np.int8),
            "bias": numbers(5),
        },
        {},
    ),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes"), PRODUCTS)
def test_products(operator: str, inputs: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
    check(f"com.microsoft.{operator}", inputs, attributes, kernel=operator not in FORMULAS)


NORMALIZATIONS: list[tuple[str, dict[str, np.ndarray], dict[str, Any], int]] = [
    (
        "SkipLayerNormalization",
        {
            "input": numbers(2, 3, 4),
            "skip": numbers(2, 3, 4),
            "gamma": numbers(4),
            "beta": numbers(4),
            "bias": numbers(4),
        },
        {"epsilon": 1e-3},
        4,
    ),
    ("SkipLayerNormalization", {"input": numbers(2, 3, 4), "skip": numbers(3, 4), "gamma": numbers(4)}, {}, 1),
    (
        "SkipSimplifiedLayerNormalization",
        {"input": numbers(2, 3, 4), "skip": numbers(1, 3, 4), "gamma": numbers(4), "bias": numbers(4)},
        {"epsilon": 1e-3},
        4,
    ),
    ("SkipSimplifiedLayerNormalization", {"input": numbers(3, 4), "skip": numbers(3, 4), "gamma": numbers(4)}, {}, 1),
    ("GatedRMSNorm", {"X": numbers(2, 8), "scale": numbers(4), "gate": numbers(2, 8)}, {}, 1),
    ("GatedRMSNorm", {"X": numbers(2, 4), "scale": numbers(4), "gate": numbers(2, 4)}, {"activation": "sigmoid"}, 1),
    (
        "EmbedLayerNormalization",
        {
            "input_ids": integers(5, 2, 3),
            "segment_ids": integers(2, 2, 3),
            "word_embedding": numbers(5, 4),
            "position_embedding": numbers(6, 4),
            "segment_embedding": numbers(2, 4),
            "gamma": numbers(4),
            "beta": numbers(4),
        },
        {"epsilon": 1e-3},
        2,
    ),
    (
        "EmbedLayerNormalization",
        {
            "input_ids": integers(5, 2, 3),
            "word_embedding": numbers(5, 4),
            "position_embedding": numbers(6, 4),
            "gamma": numbers(4),
            "beta": numbers(4),
            "position_ids": integers(6, 2, 3),
        },
        {},
        3,
    ),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes", "outputs"), NORMALIZATIONS)
def test_normalizations(operator: str, inputs: dict[str, np.ndarray], attributes: dict[str, Any], outputs: int) -> None:
    check(f"com.microsoft.{operator}", inputs, attributes, outputs=outputs, kernel=operator not in FORMULAS)


@pytest.mark.parametrize(("axis", "shape"), [(-1, (4,)), (1, (3, 4))])
def test_simplified_layer_normalization(axis: int, shape: tuple[int, ...]) -> None:
    inputs = {"X": numbers(2, 3, 4), "scale": numbers(*shape)}
    check("SimplifiedLayerNormalization", inputs, {"axis": axis, "epsilon": 1e-3}, outputs=2)


MORE: list[tuple[str, dict[str, np.ndarray], dict[str, Any], int]] = [
    ("BranchwiseRMSNorm", {"X": numbers(2, 3, 4), "scale": numbers(12)}, {}, 1),
    ("BranchwiseRMSNorm", {"X": numbers(2, 12), "scale": numbers(4)}, {"num_branches": 3}, 1),
    ("BranchwiseRMSNorm", {"X": numbers(2, 12)}, {"num_branches": 3}, 1),
    ("CausalConvWithState", {"input": numbers(2, 3, 5), "weight": numbers(3, 1, 4)}, {}, 2),
    (
        "CausalConvWithState",
        {"input": numbers(2, 3, 5), "weight": numbers(3, 1, 3), "bias": numbers(3), "past_state": numbers(2, 3, 4)},
        {"activation": "silu", "dilation": 2},
        2,
    ),
    (
        "CausalConvWithState",
        {"input": numbers(2, 5, 3), "weight": numbers(3, 1, 3), "past_state": numbers(2, 2, 3)},
        {"channels_last": 1},
        2,
    ),
    ("CDist", {"A": numbers(3, 4), "B": numbers(5, 4)}, {"metric": "sqeuclidean"}, 1),
    ("CDist", {"A": numbers(3, 4), "B": numbers(5, 4)}, {"metric": "euclidean"}, 1),
    ("ExpandDims", {"X": numbers(3, 4), "axis": np.array(-1, np.int32)}, {}, 1),
    ("GatherND", {"data": numbers(3, 4), "indices": np.array([[0], [2], [0]], np.int64)}, {}, 1),
    (
        "GroupNorm",
        {"X": numbers(2, 2, 3, 4), "gamma": numbers(4), "beta": numbers(4)},
        {"groups": 2, "activation": 0},
        1,
    ),
    (
        "SkipGroupNorm",
        {"X": numbers(2, 4, 2, 3), "gamma": numbers(4), "beta": numbers(4), "skip": numbers(2, 4), "bias": numbers(4)},
        {"groups": 2, "channels_last": 0, "activation": 1},
        2,
    ),
    (
        "LinearAttentionGate",
        {"a": numbers(2, 3, 4), "dt_bias": numbers(4), "decay_scale": numbers(4), "b": numbers(2, 3, 4)},
        {},
        2,
    ),
    ("Pad", {"data": numbers(2, 3), "pads": np.array([[0, 1, 1, 0]]), "value": np.array([0.5])}, {}, 1),
    ("Trilu", {"X": numbers(3, 4), "k": np.array(1)}, {"upper": 0}, 1),
    ("UnfoldTensor", {"input": numbers(2, 5, 3)}, {"dim": 1, "size": 3, "step": 2}, 1),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes", "outputs"), MORE)
def test_more(operator: str, inputs: dict[str, np.ndarray], attributes: dict[str, Any], outputs: int) -> None:
    check(
        f"com.microsoft.{operator}",
        inputs,
        attributes,
        outputs=outputs,
        constants=("axis",),
        kernel=operator not in FORMULAS,
    )


@pytest.mark.parametrize("kind", [0, 1])
def test_matmul_bnb4(kind: int) -> None:
    inputs = {"A": numbers(2, 32), "B": unsigned(8, 5 * 32 // 2), "absmax": positive(10)}
    attributes = {"K": 32, "N": 5, "block_size": 16, "quant_type": kind}
    check("com.microsoft.MatMulBnb4", inputs, attributes, constants=("B",))


CONVOLVED: list[Case] = [
    (
        "FusedConv",
        {"X": numbers(1, 2, 5, 5), "W": numbers(3, 2, 3, 3), "B": numbers(3), "Z": numbers(1, 3, 3, 3)},
        {"activation": "Relu"},
    ),
    (
        "FusedConv",
        {"X": numbers(1, 2, 6), "W": numbers(3, 2, 3)},
        {"activation": "LeakyRelu", "activation_params": [0.2], "pads": [1, 1], "strides": [2]},
    ),
    ("GridSample", {"X": numbers(1, 2, 4, 4), "Grid": 0.4 * numbers(1, 3, 2, 2)}, {}),
    ("GridSample", {"X": numbers(1, 2, 4, 4), "Grid": 0.4 * numbers(1, 3, 2, 2)}, {"align_corners": 1}),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes"), CONVOLVED)
def test_convolutions_and_grids(operator: str, inputs: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
    """The reference's GridSample has weights in float32; slopes of the standard operator are measured elsewhere."""
    check(f"com.microsoft.{operator}", inputs, attributes, measured=operator != "GridSample")


def test_inverse() -> None:
    x, direction = numbers(2, 3, 3) + 2 * np.eye(3), numbers(2, 3, 3)
    graph = graph_of("com.microsoft.Inverse", {"X": x})
    session = Session(graph, "onnxruntime")
    session.forward({"X": x})
    gradient = session.backward({"y0": direction})["X"]
    moved = [np.sum(np.linalg.inv(x + t * 1e-6) * direction) for t in (1, -1)]
    assert abs(np.sum(gradient) - (moved[0] - moved[1]) / 2e-6) < 1e-6 * np.abs(gradient).sum()


def unsigned(bits: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 1 << bits, shape).astype(np.uint8)


@settings(deadline=None, max_examples=6)
@given(
    st.sampled_from([2, 4, 8]),
    st.sampled_from([16, 32, 40]),
    st.sampled_from([None, "packed", "float"]),
    st.booleans(),
    st.booleans(),
)
def test_matmul_n_bits(bits: int, columns: int, zero: str | None, bias: bool, flat: bool) -> None:
    blocks = -(-columns // 16)
    inputs = {
        "A": numbers(2, 3, columns),
        "B": unsigned(8, 5, blocks, 2 * bits),
        "scales": positive(5 * blocks) if flat else positive(5, blocks),
    }
    if zero == "packed":
        inputs["zero_points"] = unsigned(8, 5, -(-blocks * bits // 8))
    if zero == "float":
        inputs["zero_points"] = numbers(5, blocks)
    if bias:
        inputs["bias"] = numbers(5)
    attributes = {"K": columns, "N": 5, "bits": bits, "block_size": 16}
    kernel = not (bits == 8 and zero == "float")  # which ONNX Runtime has for fewer bits alone
    check("com.microsoft.MatMulNBits", inputs, attributes, constants=("B",), kernel=kernel)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", [True, False])
def test_gather_block_quantized(bits: int, zero: bool) -> None:
    inputs = {
        "data": unsigned(8, 6, 48 * bits // 8),
        "indices": integers(6, 2, 3).astype(np.int64),
        "scales": positive(6, 3),
    }
    if zero:
        inputs["zero_points"] = unsigned(8, 6, -(-3 * bits // 8))
    attributes = {"bits": bits, "block_size": 16, "gather_axis": 0, "quantize_axis": 1}
    check("com.microsoft.GatherBlockQuantized", inputs, attributes, constants=("data", "zero_points"))


@pytest.mark.parametrize(("gather_axis", "quantize_axis"), [(0, 1), (1, 0), (1, 1), (0, 0)])
def test_gather_block_quantized_of_four_bit_integers(gather_axis: int, quantize_axis: int) -> None:
    shape, scales = [5, 6], [5, 6]
    shape[quantize_axis], scales[quantize_axis] = 32, 2
    inputs = {
        "data": RNG.integers(-8, 8, shape).astype(ml_dtypes.int4),
        "indices": integers(5, 3).astype(np.int64),
        "scales": positive(*scales),
        "zero_points": RNG.integers(-8, 8, scales).astype(ml_dtypes.int4),
    }
    attributes = {"block_size": 16, "gather_axis": gather_axis, "quantize_axis": quantize_axis}
    check("com.microsoft.GatherBlockQuantized", inputs, attributes, constants=("data", "zero_points"))


DEQUANTIZED: list[Case] = [
    ("", {"x": unsigned(8, 3, 4), "x_scale": np.array(0.3), "x_zero_point": np.array(120, np.uint8)}, {}),
    ("", {"x": unsigned(8, 2, 3, 4), "x_scale": positive(3)}, {}),
    ("", {"x": unsigned(8, 2, 3), "x_scale": positive(2), "x_zero_point": unsigned(8, 2)}, {"axis": -2}),
    (
        "",
        {"x": unsigned(8, 2, 5, 3), "x_scale": positive(2, 3, 3), "x_zero_point": unsigned(8, 2, 3, 3)},
        {"axis": 1, "block_size": 2},
    ),
    ("", {"x": unsigned(4, 4, 6).astype(ml_dtypes.uint4), "x_scale": positive(4, 3)}, {"axis": -1, "block_size": 2}),
    ("com.microsoft.", {"x": unsigned(8, 2, 3), "x_scale": positive(3), "x_zero_point": unsigned(8, 3)}, {"axis": 1}),
    ("com.microsoft.", {"x": unsigned(8, 2, 3), "x_scale": np.array(0.3), "x_zero_point": np.array(9, np.uint8)}, {}),
]


@pytest.mark.parametrize(("domain", "inputs", "attributes"), DEQUANTIZED)
def test_dequantize_linear(domain: str, inputs: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
    check(f"{domain}DequantizeLinear", inputs, attributes)


def test_nothing_flows_back_through_rounding() -> None:
    """Of what is quantized and dequantized again, only the second scale has a slope."""
    graph = Graph("rounded", opsets={"": 21})
    graph.add("QuantizeLinear", "q")
    graph.add("DequantizeLinear", "d")
    for name, shape, port in (("x", [4], "q.x"), ("s", [], "q.y_scale"), ("t", [], "d.x_scale")):
        graph.add("Input", name, parameters={"type": "tensor(float)", "shape": shape})
        graph.wire(f"{name}.value", port)
    graph.add("Output", "y")
    graph.wire("q.y", "d.x")
    graph.wire("d.y", "y.value")
    session = Session(graph, "numpy")
    x = np.array([0.1, 0.52, 1.9, 7.0], np.float32)
    session.forward({"x": x, "s": np.float32(0.5), "t": np.float32(0.25)})
    gradients = session.backward({"y": np.ones(4)})
    assert not np.any(gradients["x"]) and not np.any(gradients["s"])
    assert gradients["t"] == 0 + 1 + 4 + 14


def experts(activation: str, fusion: int, third: bool, bias: bool, many: int = 3) -> dict[str, np.ndarray]:
    rows = 10 if fusion else 5
    inputs = {
        "input": numbers(2, 3, 4),
        "router_probs": numbers(6, many),
        "fc1_experts_weights": numbers(many, rows, 4),
        "fc2_experts_weights": numbers(many, 4, 5),
    }
    if third:
        inputs["fc3_experts_weights"] = numbers(many, 5, 4)
    if bias:
        inputs |= {"fc1_experts_bias": numbers(many, rows), "fc2_experts_bias": numbers(many, 4)}
    if bias and third:
        inputs["fc3_experts_bias"] = numbers(many, 5)
    return inputs


@settings(deadline=None, max_examples=6)
@given(
    st.sampled_from(["relu", "gelu", "silu", "identity", "swiglu"]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 0.5]),
)
def test_mixture_of_experts(activation: str, k: int, normalized: bool, bias: bool, limit: float | None) -> None:
    gated = activation == "swiglu"
    attributes: dict[str, Any] = {
        "activation_type": activation,
        "k": k,
        "normalize_routing_weights": int(normalized),
        "swiglu_fusion": int(gated),
    }
    if gated:
        attributes |= {"activation_alpha": 1.7, "activation_beta": 1.0} | ({"swiglu_limit": limit} if limit else {})
    check("com.microsoft.MoE", experts(activation, int(gated), False, bias), attributes)


@pytest.mark.parametrize(
    ("activation", "fusion", "third"),
    [
        ("swiglu", 0, True),
        ("swiglu", 2, False),
        ("silu", 0, True),
        ("geglu", 1, False),
        ("relu2", 0, False),
    ],
)
def test_mixtures_that_onnx_runtime_has_elsewhere(activation: str, fusion: int, third: bool) -> None:
    attributes = {"activation_type": activation, "k": 2, "swiglu_fusion": fusion, "swiglu_limit": 0.7}
    check("com.microsoft.MoE", experts(activation, fusion, third, True), attributes, kernel=False)


def test_equal_logits_select_the_experts_that_the_kernel_selects() -> None:
    inputs = experts("silu", 0, False, True, many=6)
    inputs["router_probs"] = np.round(inputs["router_probs"])
    double = written(graph_of("com.microsoft.MoE", inputs, {"k": 2, "activation_type": "silu"}, opset=21))
    single = {name: value.astype(np.float32) for name, value in inputs.items()}
    graph = graph_of("com.microsoft.MoE", single, {"k": 2, "activation_type": "silu"}, opset=21)
    assert_close(
        Session(graph, "onnxruntime").forward(single)["y0"], Session(double, "numpy").forward(inputs)["y0"], 1e-5
    )


def tables(positions: int, half: int) -> dict[str, np.ndarray]:
    angles = RNG.uniform(0, 6, (positions, half))
    return {"cos_cache": np.cos(angles), "sin_cache": np.sin(angles)}


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(
    ("shape", "half", "attributes"),
    [
        ((2, 3, 8), 2, {}),
        ((2, 3, 16), 2, {"num_heads": 2, "rotary_embedding_dim": 4}),
        ((2, 2, 3, 8), 4, {}),
    ],
)
@pytest.mark.parametrize("offset", [True, False])
def test_rotary_embedding(
    shape: tuple[int, ...], half: int, attributes: dict[str, Any], interleaved: int, offset: bool
) -> None:
    positions = np.array([2]) if offset else integers(9, 2, 3).astype(np.int64)
    inputs = {"input": numbers(*shape), "position_ids": positions, **tables(9, half)}
    check("com.microsoft.RotaryEmbedding", inputs, {**attributes, "interleaved": interleaved})


def attention_inputs(**others: np.ndarray) -> dict[str, np.ndarray]:
    return {"query": numbers(2, 3, 8), "key": numbers(2, 4, 8), "value": numbers(2, 4, 6), **others}


MASK = np.array([[1, 0, 1, 1], [0, 1, 1, 0]], np.int32)

MULTI_HEAD: list[tuple[dict[str, np.ndarray], dict[str, Any], int]] = [
    (attention_inputs(), {}, 1),
    (attention_inputs(bias=numbers(22)), {"scale": 0.3}, 1),
    ({"query": numbers(2, 3, 8), "key": numbers(2, 4, 8), "value": numbers(2, 4, 8), "bias": numbers(24)}, {}, 3),
    (
        attention_inputs(
            key_padding_mask=np.array([[1, 0, 1, 1], [0, 1, 1, 0]], np.int32), attention_bias=numbers(1, 2, 3, 4)
        ),
        {},
        1,
    ),
    (attention_inputs(key_padding_mask=np.array([2, 4], np.int32)), {"mask_filter_value": -3.0}, 1),
    ({"query": numbers(2, 3, 8), "key": numbers(2, 2, 4, 4), "value": numbers(2, 2, 4, 4)}, {}, 1),
    (
        {
            "query": numbers(2, 3, 8),
            "key": numbers(2, 3, 8),
            "value": numbers(2, 3, 8),
            "past_key": numbers(2, 2, 2, 4),
            "past_value": numbers(2, 2, 2, 4),
        },
        {"unidirectional": 1},
        3,
    ),
]


@pytest.mark.parametrize(("inputs", "attributes", "outputs"), MULTI_HEAD)
def test_multi_head_attention(inputs: dict[str, np.ndarray], attributes: dict[str, Any], outputs: int) -> None:
    check("com.microsoft.MultiHeadAttention", inputs, {"num_heads": 2, **attributes}, outputs=outputs)


@pytest.mark.parametrize("shape", [(2, 3, 2, 3, 4), (2, 3, 2, 2, 4)])
def test_attention_of_packed_inputs(shape: tuple[int, ...]) -> None:
    packed = numbers(*shape)
    inputs = {"query": packed} if shape[3] == 3 else {"query": numbers(2, 3, 8), "key": packed}
    check("com.microsoft.MultiHeadAttention", inputs, {"num_heads": 2}, kernel=False)


def whole_attention(**others: np.ndarray) -> dict[str, np.ndarray]:
    return {"input": numbers(2, 3, 8), "weights": numbers(8, 24), "bias": numbers(24), **others}


ATTENTION: list[tuple[dict[str, np.ndarray], dict[str, Any], int]] = [
    (whole_attention(), {"unidirectional": 1}, 2),
    (whole_attention(mask_index=np.array([[1, 0, 1], [0, 1, 1]], np.int32), attention_bias=numbers(2, 2, 3, 3)), {}, 1),
    (whole_attention(mask_index=np.array([[[1, 0, 1], [0, 1, 1], [1, 1, 0]]] * 2, np.int32)), {"scale": 0.4}, 1),
    (whole_attention(mask_index=np.array([2, 3], np.int32)), {}, 1),
    (whole_attention(mask_index=np.array([2, 3, 1, 0], np.int32)), {}, 1),
    (whole_attention(past=numbers(2, 2, 2, 2, 4)), {"unidirectional": 1}, 2),
    (whole_attention(weights=numbers(8, 20), bias=numbers(20)), {"qkv_hidden_sizes": [8, 8, 4]}, 1),
]


@pytest.mark.parametrize(("inputs", "attributes", "outputs"), ATTENTION)
def test_attention(inputs: dict[str, np.ndarray], attributes: dict[str, Any], outputs: int) -> None:
    check("com.microsoft.Attention", inputs, {"num_heads": 2, **attributes}, outputs=outputs)


def grouped_query(length: int = 5, **others: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "query": numbers(2, length, 64),
        "key": numbers(2, length, 32),
        "value": numbers(2, length, 32),
        "seqlens_k": np.full(2, length - 1, np.int32),
        "total_sequence_length": np.array(length, np.int32),
        **others,
    }


PAST = {"past_key": numbers(2, 2, 3, 16), "past_value": numbers(2, 2, 3, 16)}
EMPTY = {"past_key": numbers(2, 2, 0, 16), "past_value": numbers(2, 2, 0, 16)}
AFTER_PAST = {"seqlens_k": np.full(2, 3, np.int32), "total_sequence_length": np.array(4, np.int32)}

PACKED = {name: value for name, value in grouped_query().items() if name not in ("query", "key", "value")}

GROUPED: list[tuple[dict[str, np.ndarray], dict[str, Any], int]] = [
    (grouped_query(), {}, 1),
    ({**PACKED, "query": numbers(2, 5, 128)}, {}, 1),
    (grouped_query(**EMPTY, **tables(9, 8)), {"do_rotary": 1, "scale": 0.4}, 3),
    (grouped_query(**tables(9, 8)), {"do_rotary": 1, "rotary_interleaved": 1}, 3),
    (grouped_query(**tables(9, 8), position_ids=np.tile(np.arange(5), (2, 1))), {"do_rotary": 1}, 1),
    (grouped_query(head_sink=numbers(4)), {"local_window_size": 2}, 1),
    (grouped_query(), {"smooth_softmax": 1, "softcap": 2.0}, 1),
    (grouped_query(attention_bias=numbers(1, 4, 5, 5)), {}, 1),
    ({**grouped_query(1, **PAST, **tables(9, 8)), **AFTER_PAST}, {"do_rotary": 1}, 3),
]


@pytest.mark.parametrize(("inputs", "attributes", "outputs"), GROUPED)
def test_grouped_query_attention(inputs: dict[str, np.ndarray], attributes: dict[str, Any], outputs: int) -> None:
    attributes = {"num_heads": 4, "kv_num_heads": 2, **attributes}
    check("com.microsoft.GroupQueryAttention", inputs, attributes, outputs=outputs)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "message"),
    [
        ("MoE", experts("silu", 0, False, False), {"use_sparse_mixer": 1, "k": 2}, "sparse mixer"),
        (
            "RotaryEmbedding",
            {"input": numbers(1, 3, 4), "position_ids": np.array([0]), **tables(9, 2)},
            {"is_packed_batching": 1},
            "packed batches",
        ),
        (
            "GroupQueryAttention",
            grouped_query(),
            {"num_heads": 4, "kv_num_heads": 2, "sliding_window_cache": 1, "local_window_size": 4},
            "sliding cache",
        ),
        (
            "MatMulNBits",
            {"A": numbers(2, 16), "B": unsigned(8, 3, 1, 6), "scales": positive(3)},
            {"K": 16, "N": 3, "bits": 3, "block_size": 16},
            "3 bits",
        ),
    ],
)
def test_what_has_no_gradient_says_so(
    operator: str, inputs: dict[str, np.ndarray], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(GraphError, match=f"the gradient of com.microsoft.{operator}.*{message}") as caught:
        written(graph_of(f"com.microsoft.{operator}", inputs, attributes, opset=21))
    assert caught.value.findings[0].node == "node"


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "outputs"),
    [
        ("SkipLayerNormalization", NORMALIZATIONS[0][1], {"epsilon": 1e-3}, 4),
        ("FastGelu", {"X": numbers(2, 4), "bias": numbers(4)}, {}, 1),
        ("GroupQueryAttention", grouped_query(**tables(9, 8)), {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1}, 1),
        ("MoE", experts("silu", 0, False, True), {"activation_type": "silu", "k": 2}, 1),
    ],
)
def test_half_precision(operator: str, inputs: dict[str, np.ndarray], attributes: dict[str, Any], outputs: int) -> None:
    found = []
    for dtype in (np.float32, np.float16):
        given = {name: value.astype(dtype) if value.dtype == np.float64 else value for name, value in inputs.items()}
        session = Session(
            graph_of(f"com.microsoft.{operator}", given, attributes, opset=21, outputs=outputs), "onnxruntime"
        )
        results = session.forward(given)
        found.append(session.backward({name: np.ones(value.shape) for name, value in results.items()}))
    for name, gradient in found[0].items():
        assert found[1][name].dtype == np.float16
        assert_close(found[1][name].astype(np.float64), gradient, 2e-2)


def test_a_buffer_that_is_longer_than_the_past_gives_no_wrong_gradient() -> None:
    """The run tells its length only; what cannot be right is NaN."""
    longer = {"past_key": numbers(2, 2, 6, 16), "past_value": numbers(2, 2, 6, 16)}
    for past, is_right in ((PAST, True), (longer, False)):
        inputs = {**grouped_query(1, **past), **AFTER_PAST}
        narrow = {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in inputs.items()}
        attributes = {"num_heads": 4, "kv_num_heads": 2}
        session = Session(graph_of("com.microsoft.GroupQueryAttention", narrow, attributes, outputs=3, opset=21))
        session.forward(narrow)
        gradient = session.backward({"y0": 1.0}, ["query"])["query"]
        assert np.isfinite(gradient).all() == is_right and np.isnan(gradient).all() != is_right
