"""The activations between fc1 and fc2, elementwise on arrays of float32 (or float64)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt

import numpy as np

from qmoe_node.layer import GATED, Settings

SQRT_2_OVER_PI = sqrt(2 / np.pi)
GELU_CUBIC = 0.044715


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def relu(x: np.ndarray) -> np.ndarray:
    """max(0, x), and 0 for NaN."""
    return np.where(x > 0, x, x.dtype.type(0))


def relu2(x: np.ndarray) -> np.ndarray:
    """max(0, x) squared; NaN stays."""
    return np.asarray(np.square(np.maximum(x, 0)))


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form, 0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    # As x sigmoid(2 u), which is the same: 1 + tanh(u) has no correct digit left below -5.
    return np.asarray(x * sigmoid(2 * SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x)))


def silu(x: np.ndarray) -> np.ndarray:
    """x sigmoid(x)."""
    return np.asarray(x * sigmoid(x))


def identity(x: np.ndarray) -> np.ndarray:
    """x."""
    return x


TABLE: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": relu,
    "gelu": gelu,
    "silu": silu,
    "identity": identity,
    "relu2": relu2,
}
"""The activations of one argument. The gated ones, `swiglu` and `geglu`, take a gate and a linear part."""

NAMES = (*TABLE, *GATED)
"""All activations, by the names that `activation_type` takes."""


def swiglu(
    gate: np.ndarray,
    linear: np.ndarray,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    limit: float = np.inf,
    limit_after_activation: bool = False,
) -> np.ndarray:
    """G sigmoid(alpha G) (L + beta), where G = min(gate, limit) and L = clip(linear, -limit, limit).

    With `limit_after_activation` the gate is clamped after its activation: min(gate sigmoid(alpha gate), limit).
    A NaN limit clamps nothing; NaN in the arguments passes the clamps.
    """
    clamped = not np.isnan(limit) and limit != np.inf
    if clamped:
        linear = np.clip(linear, -limit, limit)
        if not limit_after_activation:
            gate = np.minimum(gate, limit)
    activated = gate * sigmoid(alpha * gate)
    if clamped and limit_after_activation:
        activated = np.minimum(activated, limit)
    return np.asarray(activated * (linear + beta))


def geglu(gate: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """gelu(gate) linear."""
    return np.asarray(gelu(gate) * linear)


def relu_slope(x: np.ndarray) -> np.ndarray:
    """1 above 0, else 0; NaN has none, as `relu` makes it 0."""
    return (x > 0).astype(x.dtype)


def relu2_slope(x: np.ndarray) -> np.ndarray:
    """2 max(0, x); NaN stays."""
    return np.asarray(2 * np.maximum(x, 0))


def gelu_slope(x: np.ndarray) -> np.ndarray:
    """s + x s (1 - s) v', where gelu(x) = x s, s = sigmoid(v) and v = 2 sqrt(2/pi) (x + 0.044715 x^3)."""
    share = sigmoid(2 * SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x))
    curvature = share * (1 - share)
    bend = x * curvature * (2 * SQRT_2_OVER_PI * (1 + 3 * GELU_CUBIC * x * x))
    return np.asarray(share + np.where(curvature == 0, curvature, bend))  # x^2 may be infinite there


def silu_slope(x: np.ndarray) -> np.ndarray:
    """s + x s (1 - s), where s = sigmoid(x)."""
    return _swish_slope(x, 1.0)


def identity_slope(x: np.ndarray) -> np.ndarray:
    """1."""
    return np.ones_like(x)


def _swish_slope(x: np.ndarray, alpha: float) -> np.ndarray:
    """s + alpha x s (1 - s), where s = sigmoid(alpha x): the slope of x sigmoid(alpha x)."""
    share = sigmoid(alpha * x)
    return np.asarray(share * (1 + alpha * x * (1 - share)))


SLOPES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": relu_slope,
    "gelu": gelu_slope,
    "silu": silu_slope,
    "identity": identity_slope,
    "relu2": relu2_slope,
}
"""The derivatives of the activations in `TABLE`."""


def split(fused: np.ndarray, swiglu_fusion: int) -> tuple[np.ndarray, np.ndarray]:
    """Gate and linear part of fc1's output [..., 2 I]: alternating (fusion 1) or one after the other (fusion 2)."""
    if swiglu_fusion == 1:
        return fused[..., 0::2], fused[..., 1::2]
    half = fused.shape[-1] // 2
    return fused[..., :half], fused[..., half:]


def join(gate: np.ndarray, linear: np.ndarray, swiglu_fusion: int) -> np.ndarray:
    """The inverse of `split`: [..., 2 I]."""
    if swiglu_fusion == 1:
        return np.stack([gate, linear], axis=-1).reshape(*gate.shape[:-1], -1)
    return np.concatenate([gate, linear], axis=-1)


def activate(settings: Settings, first: np.ndarray, third: np.ndarray | None) -> np.ndarray:
    """What fc2 is given: [t, I] from fc1's output [t, fusion * I] and, where there is one, fc3's [t, I].

    A plain activation with fc3 is gated: act(first) * third.
    """
    name = settings.activation_type
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        if name not in GATED:
            activated = TABLE[name](first)
            return activated if third is None else activated * third
        gate, linear = (first, third) if third is not None else split(first, settings.swiglu_fusion)
        if name == "geglu":
            return geglu(gate, linear)
        return swiglu(
            gate,
            linear,
            alpha=settings.activation_alpha,
            beta=settings.activation_beta,
            limit=settings.swiglu_limit,
            limit_after_activation=settings.swiglu_limit_after_activation,
        )


def swiglu_gradient(
    gate: np.ndarray, linear: np.ndarray, upstream: np.ndarray, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of swiglu's gate and linear part; none of what is beyond a clamp."""
    alpha, limit = settings.activation_alpha, settings.swiglu_limit
    clamped = not np.isnan(limit) and limit != np.inf
    inner = np.minimum(gate, limit) if clamped and not settings.swiglu_limit_after_activation else gate
    activated = inner * sigmoid(alpha * inner)
    slope = _swish_slope(inner, alpha)
    factor = linear
    if clamped:
        factor = np.clip(linear, -limit, limit)
        slope[(activated if settings.swiglu_limit_after_activation else gate) > limit] = 0
        if settings.swiglu_limit_after_activation:
            activated = np.minimum(activated, limit)
    linear_gradient = upstream * activated
    if clamped:
        # Within a limit of 0 nothing moves, not even what is 0 already.
        linear_gradient[np.abs(linear) > limit if limit else np.abs(linear) >= 0] = 0
    return upstream * (factor + settings.activation_beta) * slope, linear_gradient


def activate_gradient(
    settings: Settings, first: np.ndarray, third: np.ndarray | None, upstream: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """The gradients of fc1's output [t, fusion * I] and of fc3's [t, I], from that of `activate`'s result [t, I]."""
    name = settings.activation_type
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        if name not in GATED:
            slope = SLOPES[name](first)
            if third is None:
                return upstream * slope, None
            return upstream * third * slope, upstream * TABLE[name](first)
        gate, linear = (first, third) if third is not None else split(first, settings.swiglu_fusion)
        if name == "geglu":
            parts = upstream * linear * gelu_slope(gate), upstream * gelu(gate)
        else:
            parts = swiglu_gradient(gate, linear, upstream, settings)
        return parts if third is not None else (join(*parts, settings.swiglu_fusion), None)
