"""Nothing malformed reaches a native kernel, also where shapes are known only when the graph runs.

Several of these nodes would end the process; a session refuses each at its port and can be used afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime import Graph, GraphError, NodeState, Session, Tensor
from runtime.graph import Add

EXPERTS, HIDDEN, INTER, TOKENS = 4, 64, 32, 5
RNG = np.random.default_rng(3)
W1 = RNG.integers(0, 256, (EXPERTS, INTER, HIDDEN // 2), np.uint8)
W2 = RNG.integers(0, 256, (EXPERTS, HIDDEN, INTER // 2), np.uint8)
S1 = RNG.uniform(0.01, 0.02, (EXPERTS, INTER)).astype(np.float32)
S2 = RNG.uniform(0.01, 0.02, (EXPERTS, HIDDEN)).astype(np.float32)
X = RNG.standard_normal((TOKENS, HIDDEN)).astype(np.float32)
LOGITS = RNG.standard_normal((TOKENS, EXPERTS)).astype(np.float32)

SESSIONS: list[dict[str, Any]] = [{}, {"as_is": True}, {"backend": "numpy"}]


def input_of(element: str, *shape: Any) -> tuple[str, dict[str, Any]]:
    return "Input", {"type": f"tensor({element})", "shape": shape}


def layer(
    nodes: dict[str, tuple[str, dict[str, Any]]] | None = None, wires: dict[str, str] | None = None, **settings: Any
) -> Graph:
    """A QMoE node whose tensors are constants, except for x and logits; `nodes` and `wires` replace some of it."""
    tensors = {"w1": W1, "s1": S1, "w2": W2, "s2": S2}
    all_nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "x": input_of("float", "tokens", HIDDEN),
        "logits": input_of("float", "others", "experts"),
        **{id: ("Initializer", {"tensor": Tensor.from_array(array)}) for id, array in tensors.items()},
        "moe": ("com.microsoft.QMoE", {"k": 2, "activation_type": "silu", **settings}),
        "y": ("Output", {}),
    }
    all_wires = {
        "moe.input": "x.value",
        "moe.router_probs": "logits.value",
        "moe.fc1_experts_weights": "w1.value",
        "moe.fc1_scales": "s1.value",
        "moe.fc2_experts_weights": "w2.value",
        "moe.fc2_scales": "s2.value",
        "y.value": "moe.output",
    }
    graph = Graph("layer", opsets={"": 21, "com.microsoft": 1})
    for id, (type, parameters) in (all_nodes | (nodes or {})).items():
        graph.apply(Add(NodeState(id, type, parameters)))
    for target, source in (all_wires | (wires or {})).items():
        graph.wire(source, target)
    return graph


@pytest.mark.parametrize("options", SESSIONS)
@pytest.mark.parametrize("logits", [LOGITS[:3], LOGITS[:, :3], LOGITS[:, :1], np.zeros((0, EXPERTS), np.float32)])
def test_dimensions_that_the_graph_leaves_open(options: dict[str, Any], logits: np.ndarray) -> None:
    session = Session(layer(), **options)
    with pytest.raises(GraphError) as caught:
        session.forward({"x": X, "logits": logits})
    assert caught.value.findings[0].node == "moe"
    assert session.forward({"x": X, "logits": LOGITS})["y"].shape == X.shape
    assert session.forward({"x": X[:0], "logits": LOGITS[:0]})["y"].shape == (0, HIDDEN)


def reshaped() -> Graph:
    """fc1's weights in a shape that is itself an input: not even the shapes of the inputs tell it."""
    return layer(
        {
            "w1": input_of("uint8", "bytes"),
            "shape": input_of("int64", "rank"),
            "reshape": ("Reshape", {}),
            "after": ("Relu", {}),
        },
        {
            "reshape.data": "w1.value",
            "reshape.shape": "shape.value",
            "moe.fc1_experts_weights": "reshape.reshaped",
            "after.X": "moe.output",
            "y.value": "after.Y",
        },
    )


@pytest.mark.parametrize("options", SESSIONS)
@pytest.mark.parametrize(
    "shape", [[-1], [EXPERTS, -1], [EXPERTS * INTER, -1], [EXPERTS, HIDDEN, -1], [EXPERTS // 2, INTER * 2, -1]]
)
def test_shapes_that_only_values_tell(options: dict[str, Any], shape: list[int]) -> None:
    session = Session(reshaped(), **options)
    feeds = {"x": X, "logits": LOGITS, "w1": W1.reshape(-1)}
    with pytest.raises(GraphError) as caught:
        session.forward({**feeds, "shape": np.array(shape)})
    assert (caught.value.findings[0].node, caught.value.findings[0].port) == ("moe", "fc1_experts_weights")
    outputs = session.forward({**feeds, "shape": np.array(W1.shape)}, probes=["moe.output", "reshape.reshaped"])
    expected = Session(layer(), **options).forward({"x": X, "logits": LOGITS})["y"]
    np.testing.assert_allclose(outputs["y"], np.maximum(expected, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(session.last_run.probes["moe.output"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(session.last_run.probes["reshape.reshaped"], W1)


@pytest.mark.parametrize("options", SESSIONS)
@pytest.mark.parametrize("settings", [{"swiglu_limit": -1.0}, {"k": 5}, {"swiglu_fusion": 1}, {"block_size": 24}])
def test_malformed_settings_make_no_session(options: dict[str, Any], settings: dict[str, Any]) -> None:
    with pytest.raises(GraphError) as caught:
        Session(layer(logits_shape_known(), **settings), **options)
    assert all(finding.node == "moe" for finding in caught.value.findings)


def logits_shape_known() -> dict[str, tuple[str, dict[str, Any]]]:
    return {"logits": input_of("float", "tokens", EXPERTS)}


def test_exact_sessions_agree() -> None:
    feeds = {"x": X, "logits": LOGITS}
    native = Session(layer()).forward(feeds, probes=["moe.output"], check_numerics=True)["y"]
    plain = Session(layer(), "numpy").forward(feeds)["y"]
    np.testing.assert_allclose(native, plain, rtol=1e-5, atol=1e-6)
