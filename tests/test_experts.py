"""What a run tells of experts, and how far their weights are from float ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Graph, GraphError, Tensor, load
from runtime.experts import find_twin, loads_of, scale_ranges, together, tokens_of, twin_errors, weight_map
from runtime.graph import PortRef
from runtime.routing import Routing

SNIPPETS = Path(__file__).resolve().parents[1] / "snippets"


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    count = draw(st.integers(1, 9))
    k, tokens = draw(st.integers(1, count)), draw(st.integers(0, 20))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    experts = np.array([random.permutation(count)[:k] for _ in range(tokens)], np.int64).reshape(tokens, k)
    return Routing(experts, random.random((tokens, k)).astype(np.float32), count)


@given(routings())
def test_every_choice_is_counted_once_everywhere(routing: Routing) -> None:
    loads, (tokens, k) = loads_of(routing), routing.experts.shape
    assert loads.counts.sum() == tokens * k and len(loads.shares) == routing.count
    assert tokens == 0 or sum(loads.shares) == pytest.approx(1)
    assert -1e-9 <= loads.entropy <= 1 + 1e-9
    dense = weight_map(routing)
    assert dense.shape == (tokens, routing.count)
    pairs = together(routing)
    assert (np.diag(pairs) == loads.counts).all() and (pairs == pairs.T).all() and pairs.sum() == tokens * k * k
    for expert in range(routing.count):
        listed = tokens_of(routing, expert)
        assert len(listed) == loads.counts[expert] and (np.diff(listed["weight"]) <= 0).all()
        for token, rank, weight in listed:
            assert routing.experts[token, rank] == expert
            assert dense[token, expert] == np.float32(weight)


def test_even_loads_are_told_from_uneven_ones() -> None:
    even = loads_of(Routing(np.array([[0, 1], [2, 3]]), np.ones((2, 2)), 4))
    assert even.imbalance == 1 and even.entropy == pytest.approx(1) and even.starved == ()
    one = loads_of(Routing(np.zeros((6, 1), np.int64), np.ones((6, 1)), 4))
    assert one.imbalance == 4 and one.entropy == 0 and one.starved == (1, 2, 3)


def test_the_errors_of_the_digits_are_those_of_rounding_by_hand() -> None:
    floats, coarse = load(SNIPPETS / "digits_moe_float.yaml"), load(SNIPPETS / "digits_moe_quantized.yaml")
    assert find_twin(coarse, "moe", floats) == "moe"
    errors = list(twin_errors(coarse, "moe", floats, "moe"))
    assert len(errors) == 8
    tensors = {id: s.parameters["tensor"].array() for id, s in coarse.nodes.items() if s.type == "Initializer"}
    codes = tensors["fc1_experts_weights"][..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    zeros = tensors["fc1_zero_points"][..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    blocks = codes.reshape(8, 64, 2, 32).astype(np.float64) - zeros.reshape(8, 64, -1)[..., :2, None]
    rounded = (blocks * tensors["fc1_scales"][..., None]).reshape(8, 64, 64)
    wanted = floats.nodes["fc1_experts_weights"].parameters["tensor"].array()
    for expert in range(8):
        error = np.linalg.norm(rounded[expert] - wanted[expert]) / np.linalg.norm(wanted[expert])
        assert errors[expert]["fc1"] == pytest.approx(error, rel=1e-5)


def test_why_there_is_no_twin() -> None:
    coarse = load(SNIPPETS / "digits_moe_quantized.yaml")
    with pytest.raises(GraphError, match="there is no com.microsoft.MoE"):
        find_twin(coarse, "moe", coarse)
    other = load(SNIPPETS / "digits_moe_float.yaml")
    other.set("moe", "swiglu_fusion", 2)
    with pytest.raises(GraphError, match="moe is none: its swiglu_fusion is 2"):
        find_twin(coarse, "moe", other)
    with pytest.raises(GraphError, match="there is no"):
        find_twin(coarse, "moe", Graph())


def test_a_twin_fits_by_its_shapes() -> None:
    coarse, floats = load(SNIPPETS / "digits_moe_quantized.yaml"), load(SNIPPETS / "digits_moe_float.yaml")
    shorter = floats.nodes["fc2_experts_weights"].parameters["tensor"].array()[:, :, :-8]
    floats.add("com.microsoft.MoE", "another", parameters=dict(floats.nodes["moe"].parameters))
    for port, source in floats.inputs_of("moe").items():
        floats.wire(PortRef(*source), f"another.{port}")
    floats.set("fc2_experts_weights", "tensor", Tensor.from_array(shorter))
    with pytest.raises(GraphError, match=r"moe is none: fc2_experts_weights: .* \[8, 64, 24\]; expected \[8, 64, 32\]"):
        find_twin(coarse, "moe", floats)
    whole = load(SNIPPETS / "digits_moe_float.yaml").nodes["fc2_experts_weights"].parameters["tensor"]
    floats.add("Initializer", "whole", parameters={"tensor": whole})
    floats.cut("another.fc2_experts_weights")
    floats.wire("whole.value", "another.fc2_experts_weights")
    assert find_twin(coarse, "moe", floats) == "another"


def test_scales_that_are_computed_are_not_taken_for_ones() -> None:
    coarse, floats = load(SNIPPETS / "digits_moe_quantized.yaml"), load(SNIPPETS / "digits_moe_float.yaml")
    coarse.add("Identity", "passed")
    coarse.wire("fc1_scales.value", "passed.input")
    coarse.cut("moe.fc1_scales")
    coarse.wire("passed.output", "moe.fc1_scales")
    with pytest.raises(GraphError, match="fc1_scales: it is computed when the graph runs"):
        find_twin(coarse, "moe", floats)
    assert list(scale_ranges(coarse, "moe", 0)) == ["fc2_scales"]


def test_the_range_of_an_experts_scales() -> None:
    coarse = load(SNIPPETS / "digits_moe_quantized.yaml")
    scales = coarse.nodes["fc2_scales"].parameters["tensor"].array()[3]
    assert scale_ranges(coarse, "moe", 3)["fc2_scales"] == (scales.min(), scales.max())
    assert scale_ranges(load(SNIPPETS / "digits_moe_float.yaml"), "moe", 0) == {}


def test_many_tokens_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = np.array([np.random.default_rng(seed).permutation(6)[:3] for seed in range(50)])
    routing = Routing(experts, np.ones((50, 3), np.float32), 6)
    whole = together(routing)
    monkeypatch.setattr("runtime.experts.PIECE", 7)
    assert (together(routing) == whole).all()
