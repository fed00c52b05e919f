"""Rules for operators that work element by element. Broadcasting is undone by the walk."""

from __future__ import annotations

from math import pi, sqrt

import numpy as np

from runtime.gradients.expressions import Expr
from runtime.gradients.walk import Call, Gradients, Rule

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def _extreme(n: Call) -> Gradients:
    """Max and Min: to the inputs that are the result; in equal parts where there are several."""
    hits = [n.op.Equal(x, n.out).cast(n.out.element) for x in n.x if x is not None]
    count = hits[0]
    for hit in hits[1:]:
        count = count + hit
    return [n.d * hit / count for hit in hits]


def _power(n: Call) -> Gradients:
    a, b = n.a, n.b.cast(n.a.element)
    to_base = n.d * b * n.op.Pow(a, b - 1) if n.needs[0] else None
    if to_base is not None:  # where the exponent is 0, so is the slope, whatever the base
        to_base = n.op.Where(n.op.Equal(b, zero(b)), zero(n.d), to_base)
    if not n.needs[1]:
        return to_base
    positive = a > 0
    slope = n.out * n.op.Log(n.op.Where(positive, a, n.op.operand(1.0, a)))
    return to_base, n.op.Where(positive, n.d * slope, zero(n.d))


def _clip(n: Call) -> Gradients:
    """min(max(x, low), high). What is at a bound still passes; what is beyond goes to the bound."""
    inside, low, raised = n.d, None, n.a
    high = None
    if n.has(1):
        raised = n.op.Max(n.a, n.b)
    if n.has(2):
        above = raised > n.c
        high = n.op.Where(above, n.d, zero(n.d))
        inside = n.op.Where(above, zero(n.d), inside)
    if n.has(1):
        below = n.a < n.b
        low = n.op.Where(below, inside, zero(n.d))
        inside = n.op.Where(below, zero(n.d), inside)
    return inside, low, high


def _mod(n: Call) -> Gradients:
    quotient = n.a / n.b
    whole = n.op.Floor(quotient)
    if n.get("fmod", 0):
        whole = n.op.Where(quotient < 0, n.op.Ceil(quotient), whole)
    return n.d, -n.d * whole


def _gelu(n: Call) -> Gradients:
    if n.get("approximate", "none") == "tanh":
        return n.d * gelu_tanh_slope(n.a)
    return n.d * gelu_slope(n.a)


def gelu_slope(x: Expr) -> Expr:
    """The derivative of x Phi(x), Phi being the normal distribution function."""
    op = x.op
    return 0.5 * (1 + op.Erf(x * sqrt(0.5))) + x * op.Exp(-0.5 * x * x) * (1 / sqrt(2 * pi))


def gelu_tanh_slope(x: Expr) -> Expr:
    """The derivative of 0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    c = sqrt(2 / pi)
    tanh = x.op.Tanh(c * (x + 0.044715 * x * x * x))
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * c * (1 + 3 * 0.044715 * x * x)


def swish_slope(x: Expr, alpha: float = 1.0) -> Expr:
    """The derivative of x sigmoid(alpha x)."""
    gate = sigmoid(x * alpha if alpha != 1 else x)
    return gate + alpha * x * gate * (1 - gate)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + exp(-x)); ONNX Runtime's Sigmoid has no correct digit left where it is small."""
    return 1 / (1 + x.op.Exp(-x))


def zero(x: Expr) -> Expr:
    """A scalar zero of the element type."""
    return x.op.operand(0.0, x)


def where(n: Call, condition: Expr, slope: Expr | float) -> Expr:
    """The incoming gradient times `slope` where the condition holds, 0 elsewhere."""
    passed = n.d if isinstance(slope, float) and slope == 1.0 else n.d * slope
    return n.op.Where(condition, passed, zero(n.d))


def either(n: Call, condition: Expr, slope: Expr | float, otherwise: Expr | float) -> Expr:
    """The incoming gradient times one slope or the other."""
    yes, no = (n.op.operand(item, n.d) for item in (slope, otherwise))
    return n.d * n.op.Where(condition, yes, no)


def _hard_sigmoid(n: Call) -> Gradients:
    alpha, beta = n.get("alpha", 0.2), n.get("beta", 0.5)
    line = alpha * n.a + beta
    return where(n, n.op.And(line > 0, line < 1), alpha)


def _hard_swish(n: Call) -> Gradients:
    inner = either(n, n.a >= 3, 1.0, n.a * (1 / 3) + 0.5)
    return n.op.Where(n.a <= -3, zero(n.d), inner)


def _mish(n: Call) -> Gradients:
    tanh = n.op.Tanh(n.op.Softplus(n.a))
    return n.d * (tanh + n.a * (1 - tanh * tanh) * sigmoid(n.a))


def _dropout(n: Call) -> Gradients:
    """What was dropped passes nothing, the rest is scaled as it was; without training mode, all passes."""
    mode = n.c.known() if n.has(2) else np.asarray(False)
    if mode is not None and not mode:
        return n.d
    if len(n.y) < 2:
        raise n.error("it needs to know what was dropped.", "Give its second output, the mask, a name or a wire.")
    ratio = n.b.cast(n.d.element) if n.has(1) else n.op.operand(0.5, n.d)
    scaled = n.op.Where(n.c, n.d / (1 - ratio), n.d)
    return n.op.Where(n.y[1], scaled, zero(n.d))


RULES: dict[str, Rule] = {
    "Abs": lambda n: n.d * n.op.Sign(n.a),
    "Acos": lambda n: -n.d / n.op.Sqrt(1 - n.a * n.a),
    "Acosh": lambda n: n.d / n.op.Sqrt(n.a * n.a - 1),
    "Add": lambda n: (n.d, n.d),
    "Asin": lambda n: n.d / n.op.Sqrt(1 - n.a * n.a),
    "Asinh": lambda n: n.d / n.op.Sqrt(n.a * n.a + 1),
    "Atan": lambda n: n.d / (1 + n.a * n.a),
    "Atanh": lambda n: n.d / (1 - n.a * n.a),
    "Cast": lambda n: n.d.cast(n.a.element),
    "CastLike": lambda n: n.d.cast(n.a.element),
    "Celu": lambda n: either(n, n.a > 0, 1.0, n.op.Exp(n.a / n.get("alpha", 1.0))),
    "Clip": _clip,
    "Cos": lambda n: -n.d * n.op.Sin(n.a),
    "Cosh": lambda n: n.d * n.op.Sinh(n.a),
    "Div": lambda n: (n.d / n.b, -n.d * n.out / n.b),
    "Dropout": _dropout,
    "Elu": lambda n: either(n, n.a > 0, 1.0, n.get("alpha", 1.0) * n.op.Exp(n.a)),
    "Erf": lambda n: n.d * (2 / sqrt(pi)) * n.op.Exp(-n.a * n.a),
    "Exp": lambda n: n.d * n.out,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": lambda n: n.d,
    "LeakyRelu": lambda n: either(n, n.a >= 0, 1.0, n.get("alpha", 0.01)),
    "Log": lambda n: n.d / n.a,
    "Max": _extreme,
    "Mean": lambda n: [n.d / len(n.x)] * len(n.x),
    "Min": _extreme,
    "Mish": _mish,
    "Mod": _mod,
    "Mul": lambda n: (n.d * n.b, n.d * n.a),
    "Neg": lambda n: -n.d,
    "PRelu": lambda n: (either(n, n.a >= 0, 1.0, n.b), where(n, n.a < 0, n.a)),
    "Pow": _power,
    "Reciprocal": lambda n: -n.d * n.out * n.out,
    "Relu": lambda n: where(n, n.a > 0, 1.0),
    "Selu": lambda n: either(
        n,
        n.a > 0,
        n.get("gamma", SELU_GAMMA),
        n.get("gamma", SELU_GAMMA) * n.get("alpha", SELU_ALPHA) * n.op.Exp(n.a),
    ),
    "Shrink": lambda n: where(n, n.op.Abs(n.a) > n.get("lambd", 0.5), 1.0),
    "Sigmoid": lambda n: n.d * n.out * (1 - n.out),
    "Sin": lambda n: n.d * n.op.Cos(n.a),
    "Sinh": lambda n: n.d * n.op.Cosh(n.a),
    "Softplus": lambda n: n.d * sigmoid(n.a),
    "Softsign": lambda n: n.d / (1 + n.op.Abs(n.a)) ** 2.0,
    "Sqrt": lambda n: n.d * 0.5 / n.out,
    "Sub": lambda n: (n.d, -n.d),
    "Sum": lambda n: [n.d] * len(n.x),
    "Swish": lambda n: n.d * swish_slope(n.a, n.get("alpha", 1.0)),
    "Tan": lambda n: n.d * (1 + n.out * n.out),
    "Tanh": lambda n: n.d * (1 - n.out * n.out),
    "ThresholdedRelu": lambda n: where(n, n.a > n.get("alpha", 1.0), 1.0),
    "Where": lambda n: (None, n.op.Where(n.a, n.d, zero(n.d)), n.op.Where(n.a, zero(n.d), n.d)),
}
"""By operator: gradients in the shape of the output."""

FLAT = frozenset(
    """And ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Bernoulli Ceil Constant ConstantOfShape
    Equal EyeLike Floor Greater GreaterOrEqual Hardmax IsInf IsNaN Less LessOrEqual Multinomial NonZero Not OneHot Or
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Round Shape Sign Size StringConcat
    StringNormalizer TfIdfVectorizer Unique Xor NonMaxSuppression SequenceLength OptionalHasElement""".split()
)
"""Operators whose results do not change with small changes of what they are given, or are no numbers at all."""
