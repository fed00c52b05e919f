"""Rules of standard operators beside central differences; hypothesis draws shapes, attributes and broadcasts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx.reference.ops.op_grid_sample import GridSample

from runtime import Graph, GraphError, Session, Tensor, load
from tests.conformance import _graph
from tests.gradient_checks import compare, graph_of
from tests.gradient_table import SINGLE, all_cases, case_graph, node_cases, operator_of

EXAMPLES = settings(deadline=None, max_examples=8)
LIMIT = 2e-5
BETWEEN = 1e-9

seeds = st.integers(0, 1 << 16)
shapes = st.lists(st.integers(1, 3), min_size=0, max_size=3).map(tuple)


def spread(random: np.random.Generator, shape: tuple[int, ...], low: float = -2, high: float = 2) -> np.ndarray:
    """Numbers in a range with gaps between them and around the corners of operators: 0, 1, 3."""
    size = math.prod(shape)
    numbers = np.linspace(low, high, size + 2)[1:-1] + random.uniform(-0.02, 0.02)
    for corner in (-3, -1, -0.5, 0, 0.5, 1, 3):
        numbers = np.where(np.abs(numbers - corner) < 0.01, numbers + 0.02, numbers)
    return np.asarray(random.permutation(numbers).reshape(shape))


def check(graph: Graph, inputs: dict[str, np.ndarray], limit: float = LIMIT, **options: Any) -> None:
    named = {port.replace(".", "_"): array for port, array in inputs.items()}
    fed = {name: array for name, array in named.items() if name not in graph.nodes or graph.nodes[name].type == "Input"}
    comparison = compare(graph, fed, **options)
    assert comparison.tried
    assert comparison.slopes < limit
    assert comparison.onnxruntime is None or comparison.onnxruntime < BETWEEN


UNARY: dict[str, tuple[float, float, dict[str, Any]]] = {
    **dict.fromkeys(
        """Abs Asinh Atan Cos Cosh Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu Selu Sigmoid
        Sin Sinh Softplus Softsign Swish Tanh ThresholdedRelu Shrink""".split(),
        (-2.0, 2.0, {}),
    ),
    **dict.fromkeys(("Acos", "Asin", "Atanh"), (-0.9, 0.9, {})),
    **dict.fromkeys(("Log", "Sqrt", "Reciprocal"), (0.1, 2.0, {})),
    "Acosh": (1.1, 3.0, {}),
    "Tan": (-1.2, 1.2, {}),
}


@pytest.mark.parametrize("operator", UNARY)
@EXAMPLES
@given(shape=shapes, seed=seeds, symbolic=st.booleans())
def test_one_argument(operator: str, shape: tuple[int, ...], seed: int, symbolic: bool) -> None:
    low, high, attributes = UNARY[operator]
    port = {"Dropout": "data"}.get(operator)
    probe = Graph("probe")
    probe.add(operator, "node")
    node_type = probe.node_type("node")
    assert node_type is not None
    inputs = {port or node_type.inputs[0].name: spread(np.random.default_rng(seed), shape, low, high)}
    check(graph_of(operator, inputs, attributes, symbolic=symbolic, opset=24), inputs)


def test_celu() -> None:
    """Which takes float32 only."""
    x = np.linspace(-2, 2, 9, dtype=np.float32)
    for backend in ("numpy", "onnxruntime"):
        session = Session(graph_of("Celu", {"X": x}, {"alpha": 1.7}), backend)
        session.forward({"X": x})
        expected = np.where(x > 0, 1, np.exp(x / 1.7))
        np.testing.assert_allclose(session.backward({"y0": 1.0})["X"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Elu", {"alpha": 0.4}),
        ("Gelu", {"approximate": "tanh"}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
        ("LeakyRelu", {"alpha": 0.3}),
        ("Selu", {"alpha": 1.2, "gamma": 0.8}),
        ("Shrink", {"lambd": 0.7, "bias": 0.2}),
        ("Swish", {"alpha": 1.7}),
        ("ThresholdedRelu", {"alpha": 0.4}),
    ],
)
def test_attributes_of_activations(operator: str, attributes: dict[str, Any]) -> None:
    port = {"Shrink": "input"}.get(operator, "X")
    inputs = {port: spread(np.random.default_rng(0), (3, 5), -2.9, 2.9)}
    check(graph_of(operator, inputs, attributes, opset=24), inputs)


@st.composite
def broadcast(draw: st.DrawFn, count: int = 2) -> list[tuple[int, ...]]:
    """Shapes that can be broadcast to each other."""
    full = draw(st.lists(st.integers(1, 3), min_size=0, max_size=3))
    found = []
    for _ in range(count):
        kept = full[draw(st.integers(0, len(full))) :]
        found.append(tuple(1 if draw(st.booleans()) and draw(st.booleans()) else size for size in kept))
    return found


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Pow", "Mod", "PRelu"])
@EXAMPLES
@given(pair=broadcast(), seed=seeds, symbolic=st.booleans())
def test_two_arguments(operator: str, pair: list[tuple[int, ...]], seed: int, symbolic: bool) -> None:
    random = np.random.default_rng(seed)
    positive = operator in ("Div", "Pow", "Mod")
    first = spread(random, pair[0], 0.2 if operator == "Pow" else -2, 2.3)
    second = spread(random, pair[1], 0.6 if positive else -2, 1.9)
    ports = {"PRelu": ("X", "slope"), "Pow": ("X", "Y")}.get(operator, ("A", "B"))
    if operator == "PRelu":  # the slope is broadcast to X, not the other way round
        assume(np.broadcast_shapes(*pair) == pair[0])
    if operator == "Mod":
        quotients = first / second
        assume(np.abs(quotients - np.round(quotients)).min(initial=1) > 1e-3)
    inputs = dict(zip(ports, (first, second), strict=True))
    check(graph_of(operator, inputs, {"fmod": 1} if operator == "Mod" else {}, symbolic=symbolic), inputs)


@pytest.mark.parametrize("operator", ["Max", "Min", "Sum", "Mean"])
@EXAMPLES
@given(several=broadcast(3), seed=seeds, symbolic=st.booleans())
def test_many_arguments(operator: str, several: list[tuple[int, ...]], seed: int, symbolic: bool) -> None:
    random = np.random.default_rng(seed)
    inputs = {f"data_0.{i}": spread(random, shape, -2 + i / 7, 2) for i, shape in enumerate(several)}
    check(graph_of(operator, inputs, symbolic=symbolic), {name.replace(".", "_"): x for name, x in inputs.items()})


@EXAMPLES
@given(several=broadcast(3), seed=seeds, symbolic=st.booleans())
def test_where(several: list[tuple[int, ...]], seed: int, symbolic: bool) -> None:
    random = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = {"condition": random.random(several[0]) < 0.5}
    inputs |= {"X": spread(random, several[1]), "Y": spread(random, several[2])}
    check(graph_of("Where", inputs, symbolic=symbolic), inputs)


@EXAMPLES
@given(shape=shapes, seed=seeds, low=st.booleans(), high=st.booleans())
def test_clip(shape: tuple[int, ...], seed: int, low: bool, high: bool) -> None:
    inputs = {"input": spread(np.random.default_rng(seed), shape)}
    inputs |= ({"min": np.array(-0.733)} if low else {}) | ({"max": np.array(0.871)} if high else {})
    check(graph_of("Clip", inputs), inputs)


REDUCTIONS = """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare""".split()


@pytest.mark.parametrize("operator", REDUCTIONS)
@EXAMPLES
@given(data=st.data(), seed=seeds, keepdims=st.integers(0, 1), constant=st.booleans())
def test_reductions(operator: str, data: st.DataObject, seed: int, keepdims: int, constant: bool) -> None:
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple))
    axes = data.draw(st.lists(st.integers(-len(shape), len(shape) - 1), max_size=2, unique_by=lambda a: a % len(shape)))
    random = np.random.default_rng(seed)
    inputs = {"data": spread(random, shape, 0.2 if operator == "ReduceLogSum" else -2, 2)}
    attributes = {"keepdims": keepdims, "noop_with_empty_axes": data.draw(st.integers(0, 1))}
    assume(axes or not (attributes["noop_with_empty_axes"] and operator != "ReduceSum"))
    if axes:
        inputs["axes"] = np.array(axes, np.int64)
    check(graph_of(operator, inputs, attributes, constants=("axes",) if constant else ()), inputs)


def test_the_product_of_zeros() -> None:
    inputs = {"data": np.array([[2.0, 3, 4], [0, 3, 4], [0, 0, 4]])}
    gradient = _gradient(
        graph_of("ReduceProd", inputs | {"axes": np.array([1])}, {"keepdims": 0}, constants=("axes",)), inputs
    )
    np.testing.assert_array_equal(gradient, [[12, 8, 6], [12, 0, 0], [0, 0, 0]])


def _gradient(graph: Graph, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = Session(graph, "numpy")
    session.forward(inputs)
    return session.backward({"y0": 1.0})[next(iter(inputs))]


@EXAMPLES
@given(data=st.data(), seed=seeds, zeros=st.integers(0, 3), exclusive=st.integers(0, 1), reverse=st.integers(0, 1))
def test_cumulated_products(data: st.DataObject, seed: int, zeros: int, exclusive: int, reverse: int) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple))
    random = np.random.default_rng(seed)
    x = spread(random, shape)
    x.reshape(-1)[random.integers(0, x.size, zeros)] = 0
    inputs = {"x": x, "axis": np.array(data.draw(st.integers(-len(shape), len(shape) - 1)))}
    flags = {"exclusive": exclusive, "reverse": reverse}
    check(graph_of("CumProd", inputs, flags, opset=26), inputs)


@EXAMPLES
@given(data=st.data(), seed=seeds, operator=st.sampled_from(["Softmax", "LogSoftmax", "CumSum"]))
def test_along_an_axis(data: st.DataObject, seed: int, operator: str) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = spread(np.random.default_rng(seed), shape)
    if operator == "CumSum":
        flags = {name: data.draw(st.integers(0, 1)) for name in ("exclusive", "reverse")}
        inputs = {"x": x, "axis": np.array(axis)}
        check(graph_of(operator, inputs, flags), inputs)
    else:
        check(graph_of(operator, {"input": x}, {"axis": axis}), {"input": x})


@EXAMPLES
@given(data=st.data(), seed=seeds, symbolic=st.booleans())
def test_matrix_products(data: st.DataObject, seed: int, symbolic: bool) -> None:
    batch = data.draw(broadcast())
    rows, inner, columns = (data.draw(st.integers(1, 3)) for _ in range(3))
    a = data.draw(st.sampled_from([(inner,), (*batch[0], rows, inner)]))
    b = data.draw(st.sampled_from([(inner,), (*batch[1], inner, columns)]))
    random = np.random.default_rng(seed)
    inputs = {"A": spread(random, a), "B": spread(random, b)}
    check(graph_of("MatMul", inputs, symbolic=symbolic), inputs)


@EXAMPLES
@given(data=st.data(), seed=seeds)
def test_gemm(data: st.DataObject, seed: int) -> None:
    m, k, n = (data.draw(st.integers(1, 3)) for _ in range(3))
    flip_a, flip_b = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))
    random = np.random.default_rng(seed)
    inputs = {"A": spread(random, (k, m) if flip_a else (m, k)), "B": spread(random, (n, k) if flip_b else (k, n))}
    bias = data.draw(st.sampled_from([None, (), (n,), (m, 1), (1, n), (m, n)]))
    if bias is not None:
        inputs["C"] = spread(random, bias)
    check(graph_of("Gemm", inputs, {"transA": flip_a, "transB": flip_b, "alpha": 0.7, "beta": 1.3}), inputs)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (4, 4), (2, 1, 3, 3)])
@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("symbolic", [False, True])
def test_determinants(shape: tuple[int, ...], missing: int, symbolic: bool) -> None:
    """Also of singular matrices: of rows that are the same, `missing` is how many there are too many."""
    x = spread(np.random.default_rng(0), shape)
    x[..., 1 : missing + 1, :] = x[..., :1, :]
    check(graph_of("Det", {"X": x}, symbolic=symbolic), {"X": x})


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 2)]),
        ("bij,bkj->bik", [(2, 2, 3), (2, 3, 3)]),
        ("i,i->", [(3,), (3,)]),
        ("ij->j", [(2, 3)]),
        ("ij", [(2, 3)]),
        ("i,j,k->kji", [(2,), (3,), (2,)]),
        ("...ij,...jk->...ik", [(2, 2, 3), (2, 3, 2)]),
        ("...i->...", [(2, 3)]),
        ("ii->i", [(3, 3)]),
        ("ii", [(3, 3)]),
        ("iij,jk->ik", [(2, 2, 3), (3, 2)]),
        ("iji,i->j", [(3, 2, 3), (3,)]),
        ("iii->", [(2, 2, 2)]),
        ("...ii->...i", [(2, 3, 3)]),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    random = np.random.default_rng(0)
    inputs = {f"Inputs.{index}": spread(random, shape) for index, shape in enumerate(shapes)}
    graph = graph_of("Einsum", inputs, {"equation": equation})
    check(graph, {name.replace(".", "_"): x for name, x in inputs.items()})


MOVES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("Concat", {"inputs.0": (2, 3), "inputs.1": (2, 1), "inputs.2": (2, 2)}, {"axis": -1}),
    ("DepthToSpace", {"input": (1, 8, 2, 3)}, {"blocksize": 2, "mode": "CRD"}),
    ("DepthToSpace", {"input": (1, 8, 2, 3)}, {"blocksize": 2}),
    ("Expand", {"input": (3, 1), "shape": np.array([2, 3, 4])}, {}),
    ("Flatten", {"input": (2, 3, 2)}, {"axis": 2}),
    ("Gather", {"data": (3, 4), "indices": np.array([[0, 2], [2, -1]])}, {}),
    ("Gather", {"data": (3, 4), "indices": np.array([[0, 2], [2, -1]])}, {"axis": 1}),
    ("GatherElements", {"data": (3, 3), "indices": np.array([[0, 2, 2], [1, 1, -1]])}, {"axis": 0}),
    ("GatherND", {"data": (3, 3, 2), "indices": np.array([[0, 1], [0, 1], [2, -1]])}, {}),
    ("GatherND", {"data": (2, 3, 2), "indices": np.array([[1], [0]])}, {"batch_dims": 1}),
    ("Pad", {"data": (3, 4), "pads": np.array([1, 0, 2, 1]), "constant_value": ()}, {}),
    ("Pad", {"data": (3, 4), "pads": np.array([-1, 0, 2, -2])}, {}),
    ("Pad", {"data": (3, 4), "pads": np.array([1, 2, 2, 1])}, {"mode": "reflect"}),
    ("Pad", {"data": (3, 4), "pads": np.array([1, 2, 2, 1])}, {"mode": "edge"}),
    ("Pad", {"data": (3, 4), "pads": np.array([1, 2]), "axes": np.array([-1])}, {"mode": "wrap"}),
    ("Reshape", {"data": (3, 4), "shape": np.array([2, -1, 0 + 3])}, {}),
    ("ReverseSequence", {"input": (4, 2), "sequence_lens": np.array([3, 1])}, {}),
    ("ScatterElements", {"data": (3, 3), "indices": np.array([[1, 0, 2]]), "updates": (1, 3)}, {"axis": 0}),
    (
        "ScatterElements",
        {"data": (3, 3), "indices": np.array([[1, 1, 1]]), "updates": (1, 3)},
        {"axis": 1, "reduction": "add"},
    ),
    ("ScatterND", {"data": (4, 2), "indices": np.array([[1], [3]]), "updates": (2, 2)}, {}),
    ("ScatterND", {"data": (4, 2), "indices": np.array([[1], [1]]), "updates": (2, 2)}, {"reduction": "add"}),
    *(
        ("ScatterElements", {"data": (3, 3), "indices": np.array([[1, 0, 1], [2, 1, -2]]), "updates": (2, 3)}, how)
        for how in ({"axis": 1, "reduction": "mul"}, {"reduction": "max"}, {"axis": -1, "reduction": "min"})
    ),
    *(
        ("ScatterND", {"data": (4, 2), "indices": np.array([[1], [-1], [1]]), "updates": (3, 2)}, {"reduction": how})
        for how in ("mul", "max", "min")
    ),
    ("Slice", {"data": (4, 5), "starts": np.array([1, -4]), "ends": np.array([9, -1])}, {}),
    (
        "Slice",
        {
            "data": (4, 5),
            "starts": np.array([-1]),
            "ends": np.array([-9]),
            "axes": np.array([1]),
            "steps": np.array([-2]),
        },
        {},
    ),
    ("SpaceToDepth", {"input": (1, 2, 4, 2)}, {"blocksize": 2}),
    ("Split", {"input": (5, 2), "split": np.array([1, 0, 4])}, {"axis": 0}),
    ("Squeeze", {"data": (1, 3, 1), "axes": np.array([0])}, {}),
    ("Tile", {"input": (2, 3), "repeats": np.array([2, 3])}, {}),
    ("TopK", {"X": (3, 4), "K": np.array([2])}, {"axis": 0, "largest": 0}),
    ("Transpose", {"data": (2, 3, 4)}, {"perm": [2, 0, 1]}),
    ("Transpose", {"data": (2, 3)}, {}),
    ("Trilu", {"input": (3, 4), "k": np.array(1)}, {"upper": 0}),
    ("Unsqueeze", {"data": (2, 3), "axes": np.array([0, -1])}, {}),
]


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(("operator", "given_", "attributes"), MOVES)
def test_moves(operator: str, given_: dict[str, Any], attributes: dict[str, Any], constant: bool) -> None:
    """With positions that are constants, and with ones that are known in the run only."""
    random = np.random.default_rng(1)
    inputs = {port: spread(random, v) if isinstance(v, tuple) else v for port, v in given_.items()}
    integers = tuple(port for port, value in inputs.items() if value.dtype.kind == "i")
    if not constant and (not integers or (operator, constant) == ("Split", False)):
        pytest.skip("there are none, or the number of parts depends on them")
    outputs = {"Split": 3, "TopK": 2}.get(operator)
    graph = graph_of(operator, inputs, attributes, constants=integers if constant else (), outputs=outputs)
    fed = {port.replace(".", "_"): x for port, x in inputs.items() if not constant or port not in integers}
    check(graph, fed)


@pytest.mark.parametrize("zeros", [(0,), (3,), (0, 4), (4, 5), (0, 1, 2, 3, 4, 5)])
def test_scattered_products_of_zeros(zeros: tuple[int, ...]) -> None:
    numbers = np.arange(1.0, 7.0)
    numbers[list(zeros)] = 0
    inputs = {"data": numbers[:3], "indices": np.array([0, 1, 1]), "updates": numbers[3:]}
    check(graph_of("ScatterElements", inputs, {"reduction": "mul"}), inputs)


@pytest.mark.parametrize("reduction", ["max", "min"])
def test_scattered_equals_share_the_gradient(reduction: str) -> None:
    inputs = {"data": np.array([2.0, 7.0]), "indices": np.array([0, 0]), "updates": np.array([2.0, 2.0])}
    session = Session(graph_of("ScatterElements", inputs, {"reduction": reduction}), "numpy")
    session.forward(inputs)
    found = session.backward({"y0": 1.0})
    np.testing.assert_allclose(found["data"], [1 / 3, 1])
    np.testing.assert_allclose(found["updates"], [1 / 3, 1 / 3])


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize(("shape", "axis"), [((2, 5, 3), -2), ((2, 2, 5, 3), 2), ((2, 2, 5), -1)])
@pytest.mark.parametrize("starts", [None, (0, 0), (1, 3)])
@pytest.mark.parametrize("symbolic", [False, True])
def test_tensor_scatter(
    mode: str, shape: tuple[int, ...], axis: int, starts: tuple[int, int] | None, symbolic: bool
) -> None:
    random = np.random.default_rng(0)
    written = list(shape)
    written[axis] = 3 if mode == "circular" else 2
    inputs = {"past_cache": spread(random, shape), "update": spread(random, tuple(written))}
    inputs |= {} if starts is None else {"write_indices": np.array(starts)}
    check(graph_of("TensorScatter", inputs, {"mode": mode, "axis": axis}, opset=24, symbolic=symbolic), inputs)


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, dict[str, Any], list[int]]:
    """A number of dimensions, the attributes of a window, and sizes that it fits into."""
    rank = draw(st.integers(1, 2))
    numbers = st.lists(st.integers(1, 2), min_size=rank, max_size=rank)
    kernel = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    attributes = {"kernel_shape": kernel, "strides": draw(numbers), "dilations": draw(numbers)}
    pads = [draw(st.integers(0, size - 1)) for size in kernel]
    attributes["pads"] = [*pads, *(draw(st.integers(0, size - 1)) for size in kernel)]
    sizes = [d * (k - 1) + 1 + draw(st.integers(0, 3)) for k, d in zip(kernel, attributes["dilations"], strict=True)]
    return rank, attributes, sizes


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@EXAMPLES
@given(window=windows(), group=st.integers(1, 2), seed=seeds, bias=st.booleans(), symbolic=st.booleans())
def test_convolutions(operator: str, window: Any, group: int, seed: int, bias: bool, symbolic: bool) -> None:
    _, attributes, sizes = window
    random = np.random.default_rng(seed)
    each, made = 2, 3
    weights = (group * made, each) if operator == "Conv" else (group * each, made)
    inputs = {
        "X": spread(random, (2, group * each, *sizes)),
        "W": spread(random, (*weights, *attributes["kernel_shape"])),
    }
    if operator == "ConvTranspose":
        extents = [
            s * (n - 1) + d * (k - 1) + 1 - b - e
            for n, s, d, k, b, e in zip(
                sizes,
                attributes["strides"],
                attributes["dilations"],
                attributes["kernel_shape"],
                attributes["pads"][: len(sizes)],
                attributes["pads"][len(sizes) :],
                strict=True,
            )
        ]
        assume(min(extents) > 0)
    if bias:
        inputs["B"] = spread(random, (group * made,))
    check(graph_of(operator, inputs, attributes | {"group": group}, symbolic=symbolic), inputs, native=False)


@pytest.mark.parametrize("operator", ["AveragePool", "MaxPool", "LpPool"])
@EXAMPLES
@given(window=windows(), seed=seeds, ceil=st.integers(0, 1), include=st.integers(0, 1))
def test_pools(operator: str, window: Any, seed: int, ceil: int, include: int) -> None:
    rank, attributes, sizes = window
    attributes = attributes | {"ceil_mode": ceil}
    if operator == "AveragePool":
        attributes |= {"count_include_pad": include, "ceil_mode": 0}
    x = spread(np.random.default_rng(seed), (2, 2, *sizes), 0.1 if operator == "LpPool" else -2, 2)
    if operator == "LpPool":
        attributes |= {"p": 3, "ceil_mode": 0, "dilations": [1] * rank}
    # A window that lies in the padding alone has no largest element.
    extents = [d * (k - 1) for d, k in zip(attributes["dilations"], attributes["kernel_shape"], strict=True)]
    attributes["pads"] = [min(p, e // 2) for p, e in zip(attributes["pads"], extents * 2, strict=True)]
    check(graph_of(operator, {"X": x}, attributes, outputs=1), {"X": x}, native=False)


@pytest.mark.parametrize("outputs", [1, 2])
def test_places_that_count_columns_first(outputs: int) -> None:
    x = spread(np.random.default_rng(0), (2, 2, 4, 5))
    attributes = {"kernel_shape": [2, 3], "strides": [2, 1], "storage_order": 1}
    check(graph_of("MaxPool", {"X": x}, attributes, outputs=outputs), {"X": x}, native=False)


@pytest.mark.parametrize("shape", [None, (2, 2, 4, 6), (2, 2, 5, 8)])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 0, 1]])
def test_undone_pooling(shape: tuple[int, ...] | None, pads: list[int]) -> None:
    """ONNX Runtime does not map the indices from the shape that the window makes to the one that is asked for."""
    random = np.random.default_rng(0)
    made = 2 * 2 * (4 - pads[0] - pads[2]) * (6 - pads[1] - pads[3])
    inputs = {"X": spread(random, (2, 2, 2, 3)), "I": random.permutation(made)[:24].reshape(2, 2, 2, 3)}
    inputs |= {} if shape is None else {"output_shape": np.array(shape)}
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": pads}
    check(graph_of("MaxUnpool", inputs, attributes), inputs, native=shape is None)


@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "AveragePool", "MaxPool"])
def test_chosen_padding(operator: str, pad: str) -> None:
    random = np.random.default_rng(2)
    attributes = {"auto_pad": pad, "kernel_shape": [3, 2], "strides": [2, 1]}
    inputs = {"X": spread(random, (1, 2, 5, 4))}
    if operator.startswith("Conv"):
        inputs["W"] = spread(random, (2, 2, 3, 2))
    check(graph_of(operator, inputs, attributes, outputs=1), inputs, native=False)
    narrow = {name: array.astype(np.float32) for name, array in inputs.items()}
    found = []
    for backend in ("numpy", "onnxruntime"):  # whose kernels take float32 only
        session = Session(graph_of(operator, narrow, attributes, outputs=1), backend)
        y = session.forward(narrow)["y0"]
        found.append(session.backward({"y0": np.sin(np.arange(y.size, dtype=np.float32)).reshape(y.shape)}))
    for name in inputs:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*node_cases()])
def test_onnx_own_cases(name: str) -> None:
    """One of ONNX's own node tests for every operator that has one."""
    graph, inputs = case_graph(node_cases()[name])
    check(graph, inputs, native=False)


def test_an_operator_without_a_gradient_is_named_with_the_way_to_it() -> None:
    graph = Graph("g", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [1, 1, 2, 2]})
    weights = Tensor.from_array(np.eye(2, dtype=np.float32))
    graph.add("Initializer", "w", parameters={"tensor": weights, "training_type": "trainable weight"})
    rois = Tensor.from_array(np.array([[0, 0, 0, 1, 1]], np.float32))
    graph.add("Initializer", "rois", parameters={"tensor": rois})
    graph.add("MaxRoiPool", "pool", parameters={"pooled_shape": [1, 1]})
    for id, type in (("product", "MatMul"), ("double", "Add")):
        graph.add(type, id)
    graph.add("Output", "loss")
    for source, target in (
        ("x.value", "product.A"),
        ("w.value", "product.B"),
        ("product.Y", "pool.X"),
        ("rois.value", "pool.rois"),
        ("pool.Y", "double.A"),
        ("pool.Y", "double.B"),
        ("double.C", "loss.value"),
    ):
        graph.wire(source, target)
    session = Session(graph)
    session.forward({"x": np.ones((1, 1, 2, 2), np.float32)})
    expected = "pool: MaxRoiPool has no gradient.* loss <- double <- pool <- product <- w"
    with pytest.raises(GraphError, match=expected) as caught:
        session.backward({"loss": 1.0}, ["w"])
    assert caught.value.findings[0].node == "pool"


@pytest.mark.parametrize(
    "case",
    [c for c in all_cases() if operator_of(c) in SINGLE and not c.name.endswith(("_expanded", "_fp16"))],
    ids=lambda case: case.name,
)
def test_operators_without_double_precision(case: Any) -> None:
    """Along one direction for each input, because differences of float32 tell no more."""
    graph = _graph(case.model)
    names = [value.name for value in case.model.graph.input]
    inputs = {name: np.asarray(value) for name, value in zip(names, case.data_sets[0][0], strict=False)}
    session, random = Session(graph, "numpy"), np.random.default_rng(0)
    seeds = {name: random.standard_normal(y.shape).astype(y.dtype) for name, y in session.forward(inputs).items()}
    gradients = session.backward(seeds)

    def total(changed: dict[str, np.ndarray]) -> float:
        results = session.forward({**inputs, **changed})
        return sum(float((seeds[name].astype(np.float64) * y).sum()) for name, y in results.items())

    for name, gradient in gradients.items():
        way = random.standard_normal(gradient.shape).astype(gradient.dtype)
        slope = (total({name: inputs[name] + 0.01 * way}) - total({name: inputs[name] - 0.01 * way})) / 0.02
        assert slope == pytest.approx(float((gradient.astype(np.float64) * way).sum()), rel=2e-3, abs=5e-3)


def test_the_coefficient_is_for_previous_nodes_only() -> None:
    graph = Graph("g", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(double)", "shape": [2, 3]})
    weights = Tensor.from_array(np.arange(6.0).reshape(3, 2))
    graph.add("Initializer", "w", parameters={"tensor": weights, "training_type": "trainable weight"})
    graph.add("Tanh", "before")
    graph.add("MatMul", "node")
    graph.add("Output", "y")
    for source, target in (
        ("x.value", "before.input"),
        ("before.output", "node.A"),
        ("w.value", "node.B"),
        ("node.Y", "y.value"),
    ):
        graph.wire(source, target)
    found = []
    for coefficient in (1.0, 0.25):
        graph.set("node", "lda coeff", coefficient)
        session = Session(graph)
        session.forward({"x": np.linspace(-1, 1, 6).reshape(2, 3)})
        found.append(session.backward({"y": 1.0}))
        assert session.last_run.norms == {name: pytest.approx(np.linalg.norm(g)) for name, g in found[-1].items()}
        assert session.last_run.kept == {"before": 48, "node": 48}  # tanh's output, for itself and as a factor
    np.testing.assert_allclose(found[1]["x"], 0.25 * found[0]["x"], rtol=1e-12)
    np.testing.assert_array_equal(found[1]["w"], found[0]["w"])


CALL = """<ir_version: 10, opset_import: ["":21, "own":1]>
g (double[3] a, double[3] b) => (double[3] y) { y = own.Several (a, b) }
<domain: "own", opset_import: ["":21]>
Several (a, b) => (r) { s = Mul (a, b)  t = Tanh (s)  q = Neg (t)  r = Mul (q, b) }
"""


@pytest.mark.parametrize("kind", ["own.Several", "qmoe.loss.MeanSquaredError", "LayerNormalization"])
def test_the_coefficient_counts_once_for_nodes_of_many_parts(kind: str, tmp_path: Path) -> None:
    fed = {"a": np.array([0.1, 0.2, 0.3]), "b": np.array([1.0, 2.0, 0.5])}
    if kind == "own.Several":
        onnx.save(onnx.parser.parse_model(CALL), tmp_path / "call.onnx")
        graph = load(tmp_path / "call.onnx")
    else:
        graph = Graph("g", opsets={"": 21})
        for name in fed:
            graph.add("Input", name, parameters={"type": "tensor(double)", "shape": [3]})
        graph.add(kind, "node")
        node_type = graph.node_type("node")
        assert node_type is not None
        for name, port in zip(fed, node_type.inputs, strict=False):
            graph.wire(f"{name}.value", f"node.{port.name}")
        graph.add("Output", "y")
        graph.wire(f"node.{node_type.outputs[0].name}", "y.value")
    (node,) = (id for id, state in graph.nodes.items() if state.type == kind)
    found = []
    for coefficient in (1.0, 0.25):
        graph.set(node, "lda coeff", coefficient)
        session = Session(graph)
        session.forward(fed)
        found.append(session.backward({"y": 1.0}))
    for name in fed:
        np.testing.assert_allclose(found[1][name], 0.25 * found[0][name], rtol=1e-12)
        assert np.any(found[0][name] != 0)


def test_a_node_that_is_not_in_training_mode_keeps_nothing() -> None:
    inputs = {"X": np.array([0.5, -0.5])}
    graph = graph_of("Relu", inputs)
    graph.set("node", "training?", False)
    session = Session(graph, "numpy")
    session.forward(inputs)
    with pytest.raises(GraphError, match=r"node.training\?: .*Switch training\? on"):
        session.backward({"y0": 1.0})
    graph = graph_of("Neg", inputs)  # whose gradient needs nothing of it
    graph.set("node", "training?", False)
    session = Session(graph, "numpy")
    session.forward(inputs)
    np.testing.assert_array_equal(session.backward({"y0": 1.0})["X"], [-1, -1])


def test_what_an_output_does_not_depend_on_has_a_gradient_of_zeros() -> None:
    graph = graph_of("Add", {"A": np.ones(2), "B": np.ones(2)})
    graph.add("Input", "other", parameters={"type": "tensor(double)", "shape": [3]})
    graph.add("Output", "z")
    graph.wire("other.value", "z.value")
    session = Session(graph)
    session.forward({"A": np.ones(2), "B": np.ones(2), "other": np.ones(3)})
    np.testing.assert_array_equal(session.backward({"y0": 1.0})["other"], np.zeros(3))


@pytest.mark.parametrize(
    ("gradients", "wanted", "expected"),
    [
        ({}, None, "starts at an output"),
        ({"lost": 1.0}, None, "no such output"),
        ({"y0": np.ones(3)}, None, r"must have its shape, \[2\]; \[3\] came"),
        ({"y0": "much"}, None, "array of numbers"),
        ({"y0": 1.0}, ["lost"], "no input and no initializer"),
    ],
)
def test_wrong_questions_are_answered_in_sentences(gradients: Any, wanted: Any, expected: str) -> None:
    session = Session(graph_of("Neg", {"X": np.ones(2)}))
    with pytest.raises(GraphError, match="Call forward first"):
        session.backward({"y0": 1.0})
    session.forward({"X": np.ones(2)})
    with pytest.raises(GraphError, match=expected):
        session.backward(gradients, wanted)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("transformation", ["half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric"])
@pytest.mark.parametrize("kind", ["scales", "sizes"])
@pytest.mark.parametrize("scale", [(1.5, 2.0), (0.6, 0.8)])
def test_resize(mode: str, transformation: str, kind: str, scale: tuple[float, float]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 5))
    given_ = (
        np.array((1, 1, *scale), np.float32) if kind == "scales" else np.array([1, 2, *(int(4 * s) for s in scale)])
    )
    attributes = {"mode": mode, "coordinate_transformation_mode": transformation}
    attributes |= {"antialias": 1} if mode != "nearest" and scale[0] < 1 else {}
    check(graph_of("Resize", {"X": x, kind: given_}, attributes, constants=(kind,)), {"X": x}, native=False)


def test_resize_of_some_axes() -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 5))
    inputs = {"X": x, "sizes": np.array([7, 3])}
    check(graph_of("Resize", inputs, {"mode": "linear", "axes": [3, 2]}, constants=("sizes",)), {"X": x})


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_grid_sample(mode: str, padding: str, align: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference has coordinates in float32, which here are in double precision, so that slopes can be measured."""

    def coordinates(self: GridSample, n: np.ndarray, dims: tuple[int, ...], align_corners: bool) -> np.ndarray:
        each = zip(n, dims, strict=True)
        return np.array([self._gs_denormalize(n=at, length=size, align_corners=align_corners) for at, size in each])

    monkeypatch.setattr(GridSample, "_gs_denormalize_coordinates", coordinates)
    random = np.random.default_rng(0)
    inputs = {"X": random.standard_normal((1, 2, 4, 5)), "grid": random.uniform(-1.4, 1.4, (1, 3, 2, 2))}
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": align}
    wanted = ["X"] if mode == "nearest" else None
    check(graph_of("GridSample", inputs, attributes), inputs, native=False, wanted=wanted)


@pytest.mark.parametrize("align", [0, 1])
def test_affine_grid(align: int) -> None:
    theta = np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float32)
    inputs = {"theta": theta, "size": np.array([2, 3, 4, 5])}
    session = Session(graph_of("AffineGrid", inputs, {"align_corners": align}, constants=("size",)))
    grid = session.forward({"theta": theta})["y0"]
    direction = np.random.default_rng(1).standard_normal(grid.shape).astype(np.float32)
    gradient = session.backward({"y0": direction})["theta"]
    other = np.random.default_rng(2).standard_normal(theta.shape).astype(np.float32)
    # The grid is linear in theta: its slope along `other` is its value there.
    expected = float((session.forward({"theta": other})["y0"] * direction).sum())
    assert float((gradient * other).sum()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("attributes", "columns"), [({}, 12), ({"strides": [2, 2], "pads": [1, 0, 1, 1]}, 9)])
def test_column_to_image(attributes: dict[str, Any], columns: int) -> None:
    inputs: dict[str, np.ndarray] = {"input": np.random.default_rng(0).standard_normal((1, 8, columns))}
    inputs |= {"image_shape": np.array([4, 5]), "block_shape": np.array([2, 2])}
    constants = ("image_shape", "block_shape")
    check(graph_of("Col2Im", inputs, attributes, constants=constants), {"input": inputs["input"]}, native=False)


@pytest.mark.parametrize("opset", [19, 23])
@pytest.mark.parametrize("length", [None, 4, 7])
@pytest.mark.parametrize("axis", [0, -2])
@pytest.mark.parametrize(
    ("parts", "flags"),
    [
        (1, {}),
        (2, {}),
        (1, {"onesided": 1}),
        (2, {"inverse": 1}),
        (1, {"inverse": 1}),
        (2, {"inverse": 1, "onesided": 1}),
    ],
)
def test_fourier_transforms(opset: int, length: int | None, axis: int, parts: int, flags: dict[str, int]) -> None:
    """ONNX Runtime's inverse transforms are less precise than double numbers."""
    inputs: dict[str, np.ndarray] = {"input": np.random.default_rng(0).standard_normal((5, 6, parts))}
    if length is not None:
        inputs["dft_length"] = np.array(length)
    attributes = dict(flags)
    if opset < 20:
        attributes["axis"] = axis
    else:
        inputs["axis"] = np.array(axis)
    check(graph_of("DFT", inputs, attributes, opset=opset), inputs, native=False)


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize(("parts", "onesided"), [(1, 1), (1, 0), (2, 0)])
@pytest.mark.parametrize("given_", [("window",), ("frame_length",), ("window", "frame_length")])
def test_short_time_fourier_transforms(opset: int, parts: int, onesided: int, given_: tuple[str, ...]) -> None:
    random = np.random.default_rng(0)
    inputs = {"signal": random.standard_normal((2, 12, parts)), "frame_step": np.array(3)}
    optional = {"window": random.uniform(0.5, 1, 5), "frame_length": np.array(5)}
    inputs |= {port: optional[port] for port in given_}
    graph = graph_of("STFT", inputs, {"onesided": onesided}, opset=opset, constants=("frame_step", "frame_length"))
    check(graph, inputs, native=False)
