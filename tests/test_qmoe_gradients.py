"""QMoE's gradients: against central differences in float64, against torch's, and between the backends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmoe_node.activations import NAMES, activate, activate_gradient
from qmoe_node.layer import GATED, Settings
from qmoe_node.routing import route, route_gradient
from tests.qmoe_oracle import chosen

STEP = 1e-6


@st.composite
def activations(draw):
    """(settings, whether there is an fc3) over all forms of activations."""
    name = draw(st.sampled_from(NAMES))
    fusion = draw(st.sampled_from([0, 1, 2])) if name in GATED else 0
    third = fusion == 0 if name in GATED else draw(st.booleans())
    limit = draw(st.sampled_from([0.0, 0.5, 2.0, float("inf"), float("nan")]))
    return Settings(
        activation_type=name,
        activation_alpha=draw(st.sampled_from([0.0, 1.0, 1.702, -0.5])),
        activation_beta=draw(st.sampled_from([0.0, 1.0, -0.25])),
        swiglu_fusion=fusion,
        swiglu_limit=limit,
        swiglu_limit_after_activation=draw(st.booleans()),
    ), third


@settings(deadline=None, max_examples=150)
@given(activations(), st.integers(0, 2**20))
def test_activations_in_double_precision(case, seed):
    options, has_third = case
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((3, 8)) * 3
    third = rng.standard_normal((3, 8)) * 3 if has_third else None
    upstream = rng.standard_normal(activate(options, first, third).shape)
    gradients = activate_gradient(options, first, third, upstream)

    def slopes(which):
        # Elementwise, so that all elements of one tensor move at once where gate and linear part are apart.
        moved = []
        for column in range(8):
            given = [first, third]
            results = []
            for sign in (1, -1):
                changed = given[which].copy()
                changed[:, column] += sign * STEP
                arguments = [changed if index == which else given[index] for index in range(2)]
                results.append((activate(options, *arguments) * upstream).sum(axis=-1))
            moved.append((results[0] - results[1]) / (2 * STEP))
        return np.stack(moved, axis=-1)

    for which in range(2 if has_third else 1):
        difference = np.abs(slopes(which) - gradients[which])
        assert difference.max() <= 1e-7 * max(1, np.abs(gradients[which]).max())
    assert has_third or gradients[1] is None


@pytest.mark.parametrize("name", NAMES)
def test_slopes_far_out_are_finite_and_nan_stays_nan(name):
    x = np.array([[-3e38, -1e20, -300, 0, 300, 1e9, np.nan, 1]], np.float32)
    options = Settings(activation_type=name)
    third = np.ones_like(x) if name in GATED else None
    first, _ = activate_gradient(options, x, third, np.ones_like(x))
    assert first.dtype == np.float32
    assert np.isnan(first[0, 6]) == (name not in ("relu", "identity"))
    assert np.isfinite(np.delete(first, 6)).all()


def test_nothing_flows_beyond_a_clamp_and_the_gate_is_clamped_from_above_only():
    options = Settings(activation_type="swiglu", swiglu_limit=1.0)
    gate, linear = np.float32([[2, -2, 0.5, 0.5]]), np.float32([[0.5, 0.5, 2, -2]])
    gates, linears = activate_gradient(options, gate, linear, np.ones_like(gate))
    assert (gates != 0).tolist() == [[False, True, True, True]]
    assert (linears != 0).tolist() == [[True, True, False, False]]


FORMS = [(normalized, given, False) for normalized in (False, True) for given in (False, True)] + [(False, False, True)]


@pytest.mark.parametrize(("normalized", "given_weights", "sparse"), FORMS)
def test_routing_in_double_precision(normalized, given_weights, sparse):
    attributes = {"k": 2, "normalize_routing_weights": int(normalized), "use_sparse_mixer": int(sparse)}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        logits = rng.standard_normal((1, 8)).astype(np.float32) * (0.3 if sparse else 2)
        own = rng.uniform(0.1, 1, (1, 8)).astype(np.float32) if given_weights else None
        upstream = rng.standard_normal((1, 2)).astype(np.float32)
        options = {"normalize_routing_weights": normalized, "use_sparse_mixer": sparse, "router_weights": own}
        routing = route(logits, 2, **options)
        found = route_gradient(logits, routing, upstream, **options)
        shares = dict(zip(routing.indices[0].tolist(), upstream[0].tolist(), strict=True))
        rows = {"logits": logits[0].tolist(), "own": own[0].tolist() if given_weights else None}
        moving = "own" if given_weights else "logits"
        expected = np.empty(8)
        for expert in range(8):
            ends = []
            for sign in (1, -1):
                row = list(rows[moving])
                row[expert] += sign * STEP
                moved = rows | {moving: row}
                ends.append(sum(weight * shares[e] for e, weight in chosen(moved["logits"], moved["own"], attributes)))
            expected[expert] = (ends[0] - ends[1]) / (2 * STEP)
        got = found.router_weights if given_weights else found.router_probs
        assert np.abs(got[0] - expected).max() <= 2e-6 * max(1, np.abs(expected).max())
        assert given_weights == (found.router_weights is not None)
        assert not given_weights or not found.router_probs.any()


def test_routing_at_its_edges():
    logits = np.array([[1, 2, np.nan, 0], [1, 2, 3, 4]], np.float32)
    upstream = np.ones((2, 2), np.float32)
    routing = route(logits, 2)
    assert np.isnan(route_gradient(logits, routing, upstream).router_probs).all(axis=1).tolist() == [True, False]
    cancelling = np.array([[0, 0, 0, 0], [0, 0, -1, 1]], np.float32)
    options = {"router_weights": cancelling, "normalize_routing_weights": True}
    routing = route(logits, 2, **options)
    found = route_gradient(logits, routing, upstream, **options)
    assert np.isnan(found.router_weights[0]).all()
    assert not found.router_weights[1].any()
    assert not found.router_probs.any()
    sparse = {"router_weights": cancelling, "use_sparse_mixer": True}
    routing = route(logits[1:], 2, **sparse | {"router_weights": cancelling[1:]})
    found = route_gradient(logits[1:], routing, upstream[1:], **sparse)
    assert not found.router_weights.any()
    nobody = np.zeros((0, 4), np.float32)
    assert route_gradient(nobody, route(nobody, 2), nobody[:, :2]).router_probs.shape == (0, 4)
