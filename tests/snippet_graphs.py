"""Random documents for tests: nodes of unknown types with every kind of value that a document can hold."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from runtime.attributes import Typed
from runtime.graph import Graph, NodeState, PortRef
from runtime.tensors import Tensor
from runtime.types import ElementType, MapType, OptionalType, SequenceType, TensorType

AWKWARD = [
    *("no", "on", "Yes", "null", "~", "", " ", "012", "1:30", "0x1F", "1_000", "1e5", "1.0", ".5", "+1", "-", "--- a"),
    *("a: b", "a #b", "#", "&a", "*a", "!a", "|", ">", "%", "@", "`", "'", '"', "\\", "{", "[a]", "a, b", "? a", "<<"),
    *("2026-01-01", "=", "training?", "lda coeff", "tensor(float)", "$tensor", "$$x", "é", "日本", "\U0001f600"),
    *(
        "a\nb",
        "a\nb\n",
        "\na",
        "a\n\n",
        "a \nb",
        "  a\nb",
        "a\tb",
        "a\r\nb",
        "\x00",
        "\x7f",
        "\x85",
        "\u2028",
        "\ufeff",
    ),
    *("nodes", "type", "extra", "x" * 1100, "a b" * 60),
]

texts = st.sampled_from(AWKWARD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
floats = st.floats(allow_nan=False) | st.sampled_from([1e-05, 1e22, -0.0, 1.0, 0.1, math.inf, -math.inf, math.nan])
numbers = st.integers(-(2**70), 2**70) | floats | st.booleans()
dimensions = st.integers(0, 99) | st.none() | st.sampled_from(["n", "a, b", "?", "7", "", "2*n"])


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    element = draw(st.sampled_from(list(ElementType)))
    shape = draw(st.sampled_from([(), (0,), (1,), (3,), (2, 5), (9, 9), (2, 0, 3)]))
    size = math.prod(shape)
    if element is ElementType.STRING:
        items = draw(st.lists(texts | st.just(b"\xff"), min_size=size, max_size=size))
        array = np.empty(size, object)
        array[:] = items
        return Tensor.from_array(array.reshape(shape))
    count = (size * element.bits + 7) // 8
    data = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, count, dtype=np.uint8)
    if element is ElementType.BOOL:
        data &= 1
    if element.bits < 8 and (size * element.bits) % 8:
        data[-1] &= (1 << (size * element.bits) % 8) - 1
    return Tensor(element, shape, data)


value_types = st.recursive(
    st.builds(
        TensorType,
        st.sampled_from([None, *ElementType]),
        st.none() | st.lists(dimensions, max_size=3).map(tuple),
        st.booleans(),
    ),
    lambda inner: (
        st.builds(SequenceType, inner)
        | st.builds(OptionalType, inner)
        | st.builds(MapType, st.sampled_from([ElementType.INT64, ElementType.STRING]), inner)
    ),
    max_leaves=3,
)
typed = st.sampled_from(
    [
        *(Typed("ints", []), Typed("floats", []), Typed("float", 3), Typed("tensors", []), Typed("strings", [])),
        *(Typed("ref", ("alpha", "float")), Typed("sparse_tensor", b"\x08\x01")),
    ]
)


def values(graphs: st.SearchStrategy[Graph] | None = None) -> st.SearchStrategy[Any]:
    leaves = texts | numbers | st.none() | st.binary(max_size=9) | tensors() | value_types | typed
    if graphs is not None:
        leaves |= graphs
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    )


@st.composite
def graphs(draw: st.DrawFn, depth: int = 1) -> Graph:
    value = values(graphs(depth - 1) if depth else None)
    keys = st.dictionaries(texts, value, max_size=3)
    ids = draw(st.lists(st.from_regex(r"[A-Za-z_][A-Za-z0-9_\-]{0,8}", fullmatch=True), max_size=5, unique=True))
    nodes = [
        NodeState(id, draw(st.sampled_from(["my.Op", "no", "x: y"])), *(draw(keys) for _ in range(3))) for id in ids
    ]
    wires: dict[PortRef, PortRef] = {}
    for index, id in enumerate(ids[1:], 1):
        for port in draw(st.lists(texts.filter(bool), max_size=3, unique=True)):
            wires[PortRef(id, port)] = PortRef(ids[draw(st.integers(0, index - 1))], draw(texts.filter(bool)))
    sections: dict[str, dict[str, Any]] = {
        "info": draw(keys | st.just({"name": "a name", "doc": "text\nin lines"})),
        "opsets": draw(st.dictionaries(texts, st.integers(1, 30), max_size=2)),
        "layout": draw(keys),
        "extra": draw(keys),
    }
    if depth:
        sections["functions"] = draw(st.dictionaries(texts, graphs(depth - 1), max_size=2))
    return Graph.build(nodes, [(source, target) for target, source in wires.items()], sections)


def assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit and in Python's types; NaN equals NaN."""
    assert type(a) is type(b), (a, b)
    match a:
        case Graph():
            assert list(a.nodes) == list(b.nodes)
            assert dict(a.wires) == dict(b.wires)
            for id, state in a.nodes.items():
                other = b.nodes[id]
                assert state.type == other.type
                for section in ("parameters", "layout", "extra"):
                    assert_same(dict(getattr(state, section)), dict(getattr(other, section)))
            for section in ("info", "opsets", "functions", "layout", "extra"):
                assert_same(dict(a.section(section)), dict(b.section(section)))
        case dict():
            assert a.keys() == b.keys()
            for key in a:
                assert_same(a[key], b[key])
        case list() | tuple():
            assert len(a) == len(b)
            for first, second in zip(a, b, strict=True):
                assert_same(first, second)
        case Typed():
            assert a.kind == b.kind
            assert_same(a.value, b.value)
        case float():
            assert np.float64(a).tobytes() == np.float64(b).tobytes() or (math.isnan(a) and math.isnan(b))
        case _:
            assert a == b


def example() -> Graph:
    """A small graph with one tensor in a file, one that is not, and a subgraph."""
    rng = np.random.default_rng(0)
    graph = Graph("example", opsets={"": 23, "com.microsoft": 1})
    graph.add(
        "Input", "x", parameters={"type": "tensor(float)", "shape": ["tokens", 64]}, layout={"position": [10, 20.5]}
    )
    graph.add("Initializer", "w", parameters={"tensor": Tensor.from_array(rng.standard_normal((64, 8), np.float32))})
    graph.add("Initializer", "codes", parameters={"tensor": Tensor.from_array(np.zeros(99, ml_dtypes.uint4))})
    graph.add("Initializer", "b", parameters={"tensor": Tensor.from_array(np.full(8, 0.1, np.float32))})
    graph.add("MatMul", "router", parameters={"training?": False})
    graph.add("Add", "sum")
    graph.add("Output", "y")
    for source, target in (
        ("x.value", "router.A"),
        ("w.value", "router.B"),
        ("router.Y", "sum.A"),
        ("b.value", "sum.B"),
        ("sum.C", "y.value"),
    ):
        graph.wire(source, target)
    return graph
