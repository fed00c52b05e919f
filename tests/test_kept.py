"""What a forward pass keeps for its backward pass: used where it fits, and no number differs for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qmoe_node
from qmoe_node import backward as backward_pass
from qmoe_node import kept as kept_pass
from runtime import Graph, Session, Tensor
from runtime.backends.control import Control, KernelValues, observed
from tests.qmoe_layers import layers, make_layer

Arrays = dict[str, np.ndarray]
UNKEPT = 0.0


@pytest.fixture(autouse=True)
def everything_is_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers have many tokens for their weights."""
    monkeypatch.setattr(kept_pass, "LITTLE", 1e9)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The experts whose first projections a backward pass had to compute once more."""
    found: list[int] = []
    own = backward_pass.first_of

    def counted(layer: Any, inputs: Any, expert: int, tokens: np.ndarray) -> Any:
        found.append(expert)
        return own(layer, inputs, expert, tokens)

    monkeypatch.setattr(backward_pass, "first_of", counted)
    return found


def graph_of(inputs: Arrays, attributes: dict[str, Any], nodes: int = 1) -> Graph:
    """Layers one after the other, all with the same weights; each is given the router's numbers."""
    graph = Graph()
    for name, array in (("x", inputs["input"]), ("router", inputs["router_probs"])):
        graph.add("Input", name, parameters={"type": f"tensor({Tensor.from_array(array).element})"})
    for port, array in inputs.items():
        if port not in ("input", "router_probs"):
            training = "constant" if port.endswith(("weights", "points")) else "trainable weight"
            graph.add("Initializer", port, parameters={"tensor": Tensor.from_array(array), "training_type": training})
    last = "x.value"
    for number in range(nodes):
        graph.add("com.microsoft.QMoE", f"moe{number}", parameters=attributes)
        graph.wire(last, f"moe{number}.input")
        graph.wire("router.value", f"moe{number}.router_probs")
        for port in inputs:
            if port not in ("input", "router_probs"):
                graph.wire(f"{port}.value", f"moe{number}.{port}")
        last = f"moe{number}.output"
    graph.add("Output", "y")
    graph.wire(last, "y.value")
    return graph


def passes(session: Session, inputs: Arrays, times: int = 2) -> list[Arrays]:
    """Forward and backward passes with the same numbers: the first backward pass runs the forward pass once more."""
    given = {"x": inputs["input"], "router": inputs["router_probs"]}
    upstream = np.random.default_rng(1).standard_normal(inputs["input"].shape).astype(inputs["input"].dtype)
    return [{"y": np.array(session.forward(given)["y"])} | session.backward({"y": upstream}) for _ in range(times)]


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f") for name in one
    )


@settings(deadline=None, max_examples=40)
@given(case=layers(), nodes=st.sampled_from([1, 1, 2]))
def test_no_bit_differs(case: Any, nodes: int) -> None:
    inputs, attributes = case[0], case[1]
    graph = graph_of(inputs, attributes, nodes)
    found = passes(Session(graph, "numpy"), inputs)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kept_pass, "LITTLE", UNKEPT)
        expected = passes(Session(graph, "numpy"), inputs)
    assert all(same(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("fc3", [False, True])
def test_nothing_is_computed_once_more(computed: list[int], fc3: bool) -> None:
    inputs, attributes = make_layer(tokens=12, fc3=fc3, activation_type="silu")
    session = Session(graph_of(inputs, attributes), "numpy")
    passes(session, inputs, 3)
    assert not computed
    kept = session.last_run.kept["moe0"]
    session.backward({"y": np.ones_like(inputs["input"])})  # it was kept for one backward pass
    assert sorted(set(computed)) == sorted(computed) and computed
    rows = sum(inputs[f"{fc}_experts_weights"].shape[1] for fc in (("fc1", "fc3") if fc3 else ("fc1",)))
    firsts = 4 * rows * 12 * attributes["k"]
    assert firsts < kept - session.last_run.kept["moe0"] <= 2 * firsts  # with the tokens and what they chose
    computed.clear()
    passes(Session(graph_of(inputs, attributes, 2), "numpy"), inputs)
    assert not computed  # also where two share their weights


def test_what_was_kept_of_other_numbers_is_not_taken(computed: list[int]) -> None:
    """Somebody writes into an input after the forward pass."""
    inputs, attributes = make_layer(tokens=12)
    session = Session(graph_of(inputs, attributes), "numpy")
    passes(session, inputs)
    computed.clear()
    given = {"x": inputs["input"].copy(), "router": inputs["router_probs"].copy()}
    session.forward(given)
    given["x"][3] += 1
    found = session.backward({"y": np.ones_like(given["x"])})
    assert computed
    session.forward(given)
    assert same(found, session.backward({"y": np.ones_like(given["x"])}))


@pytest.mark.parametrize("other", ["fc1_scales", "fc1_zero_points", "fc1_experts_bias", "fc3_scales", "fc1_bits"])
@pytest.mark.parametrize("order", [1, -1])
def test_layers_of_one_node_that_share_their_codes_are_told_apart(computed: list[int], other: str, order: int) -> None:
    """As in a function or in the body of a loop: the same tokens go to the same experts of several layers."""
    inputs, attributes = make_layer(tokens=12, block_size=16, zero_points=True, fc3=True, activation_type="silu")
    changed = {**inputs, other: inputs[other] + inputs[other].dtype.type(1)} if other in inputs else inputs
    two = attributes if other in inputs else {**attributes, "fc1_expert_weight_bits": 2, "expert_weight_bits": 4}
    if other == "fc1_bits":  # the same bytes as twice as many codes of half the width
        changed = {**inputs, "fc1_experts_weights": inputs["fc1_experts_weights"][..., : inputs["input"].shape[1] // 4]}
    cases = [(inputs, attributes), (changed, two)]
    upstream = np.random.default_rng(1).standard_normal(inputs["input"].shape).astype(np.float32)
    expected = [qmoe_node.gradients(*case, upstream) for case in cases]
    computed.clear()
    with observed(Control(kept={"": KernelValues(is_one_run=True)})):
        for case in cases:
            qmoe_node.evaluate(*case)
        found = [qmoe_node.gradients(*case, upstream) for case in cases[::order]][::order]
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert not computed


def test_what_somebody_may_write_into_is_not_relied_on(computed: list[int]) -> None:
    inputs, attributes = make_layer(tokens=12)
    graph = graph_of(inputs, attributes)
    graph.remove("fc1_scales")
    graph.add("Input", "fc1_scales", parameters={"type": "tensor(float)"})
    graph.wire("fc1_scales.value", "moe0.fc1_scales")
    given = {"x": inputs["input"], "router": inputs["router_probs"], "fc1_scales": inputs["fc1_scales"].copy()}
    session, upstream = Session(graph, "numpy"), {"y": np.ones_like(inputs["input"])}
    for _ in range(2):
        session.forward(given)
        session.backward(upstream)
    session.forward(given)
    given["fc1_scales"] *= 3
    found = session.backward(upstream)
    assert computed
    session.forward(given)
    assert same(found, session.backward(upstream))


def test_too_much_is_not_kept(computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, attributes = make_layer(tokens=64, hidden=64, inter=64, block_size=32)
    size = 4 * 64 * 64 * attributes["k"]
    packed = sum(array.nbytes for port, array in inputs.items() if port.endswith("experts_weights"))
    monkeypatch.setattr(kept_pass, "LITTLE", size / packed)
    passes(Session(graph_of(inputs, attributes), "numpy"), inputs)
    assert not computed
    monkeypatch.setattr(kept_pass, "LITTLE", 0.99 * size / packed)
    passes(Session(graph_of(inputs, attributes), "numpy"), inputs)
    assert computed
