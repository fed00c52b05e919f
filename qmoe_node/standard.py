"""Routing and activations as standard ONNX operators, in float32; formulas as in `routing` and `activations`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qmoe_node.activations import GELU_CUBIC, SQRT_2_OVER_PI
from qmoe_node.layer import GATED, Layer, Settings
from qmoe_node.routing import JITTER
from runtime.types import ElementType

if TYPE_CHECKING:
    import onnx_ir as ir

    from runtime.tape import Tape

FLOAT = int(ElementType.FLOAT)


def as_float(tape: Tape, value: ir.Value, element: ElementType | None) -> ir.Value:
    """The value in float32."""
    return value if element is ElementType.FLOAT else tape.op("Cast", [value], to=FLOAT)


def in_shape_of(tape: Tape, value: ir.Value, like: ir.Value) -> ir.Value:
    """The value's elements in the shape of `like`, in which a dimension may be 0."""
    inputs = [value, tape.op("Shape", [like])]
    return tape.op("Reshape", inputs, allowzero=1) if tape.opset >= 14 else tape.op("Reshape", inputs)


def cast_back(tape: Tape, value: ir.Value, like: ir.Value, element: ElementType | None) -> ir.Value:
    """The float32 value in the type of `like`, which is `element` if that is known."""
    if element is ElementType.FLOAT:
        return value
    return tape.op("CastLike", [value, like]) if element is None else tape.op("Cast", [value], to=int(element))


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen experts, int64 [T, k], and their mixing weights, float32 [T, k], not yet normalised.

    `unordered` is bool [T, 1], true where a logit is NaN; None if the weights of such a row are NaN already.
    """

    indices: ir.Value
    weights: ir.Value
    unordered: ir.Value | None


def choose(tape: Tape, settings: Settings, logits: ir.Value, router_weights: ir.Value | None) -> Choice:
    """The routing of `logits` [T, E], with mixing weights from `router_weights` [T, E] if given; both float32."""
    count = tape.literal([settings.k], np.int64)
    largest, indices = tape.ops("TopK", [logits, count], 2, axis=-1, largest=1, sorted=1)
    if settings.use_sparse_mixer:
        return Choice(indices, _sparse_mixer(tape, logits, largest, indices), None)
    if router_weights is None:
        softmax = tape.op("Softmax", [logits], axis=-1)
        return Choice(indices, tape.op("GatherElements", [softmax, indices], axis=1), None)
    marks = tape.op("Cast", [tape.op("IsNaN", [logits])], to=FLOAT)
    marks = tape.op("ReduceSum", [marks, tape.literal([1], np.int64)], keepdims=1)
    unordered = tape.op("Greater", [marks, tape.literal(0, np.float32)])
    return Choice(indices, tape.op("GatherElements", [router_weights, indices], axis=1), unordered)


@dataclass(frozen=True, slots=True)
class Groups:
    """The S = T k choices sorted by expert: whose they are (`experts`), which they are of all (`order`), how many each
    expert has (`counts` [E]), and where each one is now (`place`); int64 [S] but for the counts."""

    experts: ir.Value
    order: ir.Value
    counts: ir.Value
    place: ir.Value


def by_expert(tape: Tape, layer: Layer, indices: ir.Value) -> Groups:
    """Sorts the chosen experts, int64 [T, k]."""
    flat = tape.op("Reshape", [indices, tape.literal([-1], np.int64)])
    count = tape.op("Shape", [flat])
    experts, order = tape.ops("TopK", [flat, count], 2, axis=0, largest=0, sorted=1)
    every = tape.literal(np.arange(layer.experts)[:, None], np.int64)
    matches = tape.op("Cast", [tape.op("Equal", [every, flat])], to=int(ElementType.INT64))
    counts = tape.op("ReduceSum", [matches, tape.literal([1], np.int64)], keepdims=0)
    bounds = [tape.literal(0, np.int64), tape.op("Squeeze", [count]), tape.literal(1, np.int64)]
    place = tape.op("ScatterElements", [order, order, tape.op("Range", bounds)], axis=0)
    return Groups(experts, order, counts, place)


def mixing_weights(tape: Tape, settings: Settings, choice: Choice) -> ir.Value:
    """The final mixing weights, float32 [T, k]: normalised if the settings say so, NaN in rows without an order."""
    weights = choice.weights
    if settings.normalize_routing_weights and not settings.use_sparse_mixer:
        total = row_sum(tape, weights)
        zero = tape.literal(0, np.float32)
        weights = tape.op("Where", [tape.op("Equal", [total, zero]), zero, tape.op("Div", [weights, total])])
    if choice.unordered is not None:
        weights = tape.op("Where", [choice.unordered, tape.literal(np.nan, np.float32), weights])
    return weights


def row_sum(tape: Tape, values: ir.Value) -> ir.Value:
    """The sum over the last of two axes, which stays."""
    return tape.op("ReduceSum", [values, tape.literal([1], np.int64)], keepdims=1)


def _sparse_mixer(tape: Tape, logits: ir.Value, largest: ir.Value, indices: ir.Value) -> ir.Value:
    """The sparse mixer's two weights, float32 [T, 2]."""
    rounds = sparse_rounds(tape, logits, largest, indices)
    return tape.op("Concat", [tape.op("Reciprocal", [row_sum(tape, near)]) for near in rounds], axis=1)


def sparse_rounds(tape: Tape, logits: ir.Value, largest: ir.Value, indices: ir.Value) -> list[ir.Value]:
    """The sparse mixer's two rounds, float32 [T, E] each: exp(l - largest) of the logits near the largest, else 0.

    `largest` [T, 2] are the logits at the chosen `indices`; the second round leaves the first's winner out.
    """
    zero = tape.literal(0, np.float32)
    jitter = tape.literal(2 * JITTER, np.float32)
    first = tape.op("Slice", [indices, *(tape.literal([bound], np.int64) for bound in (0, 1, 1))])
    sizes = tape.op("Abs", [logits])
    excluded: ir.Value | None = None
    rounds = []
    for best in tape.ops("Split", [largest, tape.literal([1, 1], np.int64)], 2, axis=1):
        bound = tape.op("Mul", [jitter, tape.op("Where", [tape.op("Greater", [sizes, best]), sizes, best])])
        left_out = tape.op("Greater", [tape.op("Sub", [best, logits]), bound])
        if excluded is not None:
            left_out = tape.op("Or", [left_out, excluded])
        rounds.append(tape.op("Where", [left_out, zero, tape.op("Exp", [tape.op("Sub", [logits, best])])]))
        if excluded is None:
            excluded = tape.op("Equal", [every_expert(tape, logits), first])
    return rounds


def every_expert(tape: Tape, logits: ir.Value) -> ir.Value:
    """The numbers of all experts, int64 [E]."""
    width = tape.op("Slice", [tape.op("Shape", [logits]), *(tape.literal([at], np.int64) for at in (1, 2))])
    return tape.op("Range", [tape.literal(0, np.int64), tape.op("Squeeze", [width]), tape.literal(1, np.int64)])


def activate(tape: Tape, layer: Layer, first: ir.Value, third: ir.Value | None) -> ir.Value:
    """What fc2 is given, from fc1's output and, where there is one, fc3's: see `activations.activate`."""
    settings = layer.settings
    name = settings.activation_type
    if name not in GATED:
        activated = _plain(tape, name, first)
        return activated if third is None else tape.op("Mul", [activated, third])
    gate, linear = (first, third) if third is not None else split(tape, first, settings.swiglu_fusion, layer.inter)
    if name == "geglu":
        return tape.op("Mul", [_plain(tape, "gelu", gate), linear])
    limit = settings.swiglu_limit
    clamped = not np.isnan(limit) and limit != np.inf
    if clamped:
        linear = _at_most(tape, linear, limit)
        linear = tape.op("Neg", [_at_most(tape, tape.op("Neg", [linear]), limit)])
        if not settings.swiglu_limit_after_activation:
            gate = _at_most(tape, gate, limit)
    activated = _gated_by_itself(tape, gate, settings.activation_alpha)
    if clamped and settings.swiglu_limit_after_activation:
        activated = _at_most(tape, activated, limit)
    if settings.activation_beta:
        linear = tape.op("Add", [linear, tape.literal(settings.activation_beta, np.float32)])
    return tape.op("Mul", [activated, linear])


def _plain(tape: Tape, name: str, x: ir.Value) -> ir.Value:
    if name == "identity":
        return x
    if name == "silu":
        return _gated_by_itself(tape, x, 1.0)
    if name == "gelu":
        cubic = tape.op("Mul", [tape.op("Mul", [x, x]), tape.literal(GELU_CUBIC, np.float32)])
        inner = tape.op("Add", [x, tape.op("Mul", [x, cubic])])
        return _quotient(tape, x, tape.op("Mul", [inner, tape.literal(-2 * SQRT_2_OVER_PI, np.float32)]))
    zero = tape.literal(0, np.float32)
    if name == "relu":
        return tape.op("Where", [tape.op("Greater", [x, zero]), x, zero])
    positive = tape.op("Where", [tape.op("Less", [x, zero]), zero, x])
    return tape.op("Mul", [positive, positive])


def _gated_by_itself(tape: Tape, x: ir.Value, alpha: float) -> ir.Value:
    """x sigmoid(alpha x)."""
    negated = tape.op("Neg", [x]) if alpha == 1 else tape.op("Mul", [x, tape.literal(-alpha, np.float32)])
    return _quotient(tape, x, negated)


def _quotient(tape: Tape, x: ir.Value, exponent: ir.Value) -> ir.Value:
    """x / (1 + exp(exponent)): ONNX Runtime's Sigmoid has no correct digit left below -16, its Exp has all."""
    return tape.op("Div", [x, tape.op("Add", [tape.op("Exp", [exponent]), tape.literal(1, np.float32)])])


def _at_most(tape: Tape, x: ir.Value, limit: float) -> ir.Value:
    """min(x, limit), where NaN stays NaN."""
    bound = tape.literal(limit, np.float32)
    return tape.op("Where", [tape.op("Greater", [x, bound]), bound, x])


def split(tape: Tape, fused: ir.Value, swiglu_fusion: int, inter: int) -> tuple[ir.Value, ir.Value]:
    """Gate and linear part of fc1's output [t, 2 I]."""
    ranges = ((0, 2 * inter, 2), (1, 2 * inter, 2)) if swiglu_fusion == 1 else ((0, inter, 1), (inter, 2 * inter, 1))
    gate, linear = (
        tape.op("Slice", [fused, *(tape.literal([item], np.int64) for item in (start, stop, 1, step))])
        for start, stop, step in ranges
    )
    return gate, linear
