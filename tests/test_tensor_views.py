"""Looking at tensors: codes of packed bytes, tables of large tensors, histograms by slice."""

import numpy as np
import pytest

from qmoe_node import packing
from runtime import catalog
from runtime.graph import Graph, PortRef
from runtime.tensor_views import Pages, sources_of, views_at
from runtime.tensors import Tensor
from runtime.types import ElementType, TensorType


def views(type_name, port, array, attributes):
    graph = Graph()
    graph.add(type_name, "n", parameters=attributes)
    return views_at(graph, PortRef("n", port), Tensor.from_array(array).type)


@pytest.mark.parametrize(("bits", "prepacked"), [(2, 0), (3, 0), (4, 0), (2, 1), (4, 1)])
def test_weights_of_a_mixture_are_shown_as_their_codes(bits, prepacked):
    codes = np.random.default_rng(0).integers(0, 1 << bits, (3, 16, 128), dtype=np.uint8)
    packed = packing.interleave(codes, bits) if prepacked else packing.pack(codes, bits)
    found = views(
        "com.microsoft.QMoE",
        "fc1_experts_weights",
        packed,
        {"expert_weight_bits": bits, "weights_prepacked": prepacked},
    )
    assert len(found) == 1 and found[0].title.startswith(f"{bits}-bit codes")
    pages = Pages(Tensor.from_array(packed), found[0])
    assert pages.shape == codes.shape and pages.lead == (3,)
    np.testing.assert_array_equal(pages.table((1,), 3, 10), codes[1, 3:10])
    analysis = pages.analyse()
    assert analysis.by_code and list(analysis.histogram) == np.bincount(codes.reshape(-1)).tolist()
    assert [sum(strip) for strip in analysis.strips] == [16 * 128] * 3
    assert analysis.summary.mean == pytest.approx(codes.mean())
    assert analysis.summary.deviation == pytest.approx(codes.std())
    assert (analysis.summary.minimum, analysis.summary.maximum) == (0, (1 << bits) - 1)


def test_fp4_is_shown_as_codes_and_as_numbers():
    packed = np.arange(2 * 4 * 16, dtype=np.uint8).reshape(2, 4, 16)
    codes, numbers = views("com.microsoft.QMoE", "fc2_experts_weights", packed, {"quant_type": "fp4"})
    assert (codes.title, numbers.title) == ("FP4 codes", "FP4 values")
    pages = Pages(Tensor.from_array(packed), numbers)
    expected = packing.E2M1[packing.unpack(packed[1], 4, 32)]
    np.testing.assert_array_equal(pages.table((1,), 0, 4), expected)
    analysis = pages.analyse()
    assert (analysis.low, analysis.high) == (-6.0, 6.0) and sum(analysis.histogram) == packed.size * 2


def test_operators_that_pack_codes_are_known():
    packed = np.random.default_rng(0).integers(0, 256, (8, 2, 8), dtype=np.uint8)
    (found,) = views("com.microsoft.MatMulNBits", "B", packed, {"N": 8, "K": 32, "block_size": 16})
    assert found.title == "4-bit codes"
    np.testing.assert_array_equal(
        Pages(Tensor.from_array(packed), found).table((3,), 0, 2), packing.unpack(packed[3], 4, 16)
    )
    assert views("com.microsoft.MatMulNBits", "scales", packed, {}) == []
    assert views("MatMul", "B", packed, {}) == [] and views("no.Such", "B", packed, {}) == []


def test_odd_declarations_give_no_view():
    for attributes in ({"expert_weight_bits": 8}, {"expert_weight_bits": "x", "quant_type": "fp8"}):
        assert views("com.microsoft.QMoE", "fc1_experts_weights", np.zeros((2, 3, 5), np.uint8), attributes) == []
    prepacked = {"expert_weight_bits": 4, "weights_prepacked": 1}
    assert views("com.microsoft.QMoE", "fc1_experts_weights", np.zeros((2, 3, 5), np.uint8), prepacked) == []
    moe = catalog.find("com.microsoft.QMoE")
    assert moe.tensor_views("fc1_experts_weights", TensorType(ElementType.UINT8), {}) == []


def test_tables_of_every_rank():
    for shape in ((), (5,), (2, 3), (2, 3, 4), (2, 3, 4, 5)):
        array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
        pages = Pages(Tensor.from_array(array))
        lead = tuple(0 for _ in pages.lead)
        table = pages.table(lead, 0, pages.rows)
        assert table.shape == (pages.rows, pages.columns)
        assert pages.analyse().summary.size == array.size
    empty = Pages(Tensor.from_array(np.zeros((0, 4), np.float32)))
    assert empty.table((), 0, 0).shape == (0, 4) and empty.analyse().strips == ()


def test_scales_have_a_histogram_for_each_expert():
    scales = np.stack([np.full((4, 2), 0.1), np.linspace(0.1, 1, 8).reshape(4, 2)]).astype(np.float16)
    analysis = Pages(Tensor.from_array(scales)).analyse()
    assert [sum(strip) for strip in analysis.strips] == [8, 8]
    assert analysis.strips[0][0] == 8 and analysis.strips[1][-1] == 1
    with_nan = scales.copy()
    with_nan[0, 0, 0] = np.nan
    assert sum(Pages(Tensor.from_array(with_nan)).analyse().strips[0]) == 7


def test_tensors_of_a_node_are_its_own_and_those_wired_to_it():
    graph = Graph()
    graph.add("Initializer", "w", parameters={"tensor": Tensor.from_array(np.zeros((2, 3, 8), np.uint8))})
    graph.add("com.microsoft.QMoE", "moe")
    graph.add("Identity", "other")
    graph.wire("w.value", "other.input")
    graph.wire("w.value", "moe.fc1_experts_weights")
    (own,) = sources_of(graph, "w")
    assert own.target == PortRef("moe", "fc1_experts_weights"), "where its codes are known comes first"
    (wired,) = sources_of(graph, "moe")
    assert (wired.owner, wired.parameter) == ("w", "tensor")
    graph.add("Constant", "c", parameters={"value": Tensor.from_array(np.zeros(3, np.float32))})
    assert [source.parameter for source in sources_of(graph, "c")] == ["value"]
