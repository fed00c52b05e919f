"""Losses: node types that make one number of predictions and targets, written with standard operators.

The formulas are those of Keras (`keras.losses`), whose names LabVIEW users of such toolkits know; the load-balancing
loss and the router z-loss are those of Switch Transformers (arXiv 2101.03961, eq. 4, summed over k choices) and ST-MoE
(arXiv 2202.08906, eq. 5). A loss is the mean over all samples unless `reduction` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from runtime.node import In, Inference, Node, NodeContext, Out, Parameter
from runtime.types import TensorType

if TYPE_CHECKING:
    from runtime.gradients.expressions import Expr

DOMAIN = "qmoe.loss"
EPSILON = 1e-7
"""What keeps logarithms and quotients finite."""
FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)")
INTEGERS = ("tensor(int32)", "tensor(int64)")
REDUCTIONS = ("mean", "sum", "none")

Inputs = Mapping[str, "Expr"]


class Loss(Node):
    """What all losses share. A subclass gives `of_samples`: one number for each sample, from the inputs."""

    domain = DOMAIN
    family = "loss"
    operator = ""
    type_constraints = {"T": FLOATS, "I": INTEGERS}
    loss = Out("T", doc="the loss: one number, unless reduction is none")
    reduction = Parameter(
        str, default="mean", choices=REDUCTIONS, doc="how the samples' losses become one number; none leaves them"
    )
    weight = Parameter(float, default=1.0, doc="what the loss is multiplied by, for sums of several losses")

    first: ClassVar[str] = "y_pred"
    """The input whose element type the loss has."""

    @classmethod
    def infer(cls, context: NodeContext) -> Inference:
        given = context.inputs.get(cls.first)
        element = given.element if isinstance(given, TensorType) else None
        reduced = context.attributes.get("reduction", "mean") != "none"
        return Inference({"loss": TensorType(element, () if reduced else None)})

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        """The loss of every sample."""
        raise NotImplementedError

    @classmethod
    def form(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        """The loss in standard operators."""
        samples = cls.of_samples(inputs, attributes)
        weights = inputs.get("sample_weight")
        if weights is not None:
            samples = samples * weights
        reduction = attributes.get("reduction", "mean")
        if reduction != "none":
            samples = (samples.op.ReduceMean if reduction == "mean" else samples.op.ReduceSum)(samples, keepdims=0)
        weight = attributes.get("weight", 1.0)
        return samples if weight == 1 else samples * weight


class _Pair(Loss):
    """Losses of predictions beside targets of the same shape."""

    operator = ""
    y_pred = In("T", doc="predictions, [samples..., last]")
    y_true = In("T", doc="targets, of the same shape")
    sample_weight = In("T", optional=True, doc="a factor for each sample, [samples...]")


class MeanSquaredError(_Pair):
    """mean((y_true - y_pred)^2) over the last dimension."""

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        error = inputs["y_true"] - inputs["y_pred"]
        return mean(error * error)


class MeanAbsoluteError(_Pair):
    """mean(|y_true - y_pred|) over the last dimension."""

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        error = inputs["y_true"] - inputs["y_pred"]
        return mean(error.op.Abs(error))


class MeanAbsolutePercentageError(_Pair):
    """100 mean(|y_true - y_pred| / max(|y_true|, 1e-7)) over the last dimension."""

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        target, op = inputs["y_true"], inputs["y_true"].op
        return 100.0 * mean(op.Abs(target - inputs["y_pred"]) / op.Max(op.Abs(target), EPSILON))


class MeanSquaredLogarithmicError(_Pair):
    """mean((log(max(y_true, 1e-7) + 1) - log(max(y_pred, 1e-7) + 1))^2) over the last dimension."""

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        first, second = (x.op.Log(x.op.Max(x, EPSILON) + 1.0) for x in (inputs["y_true"], inputs["y_pred"]))
        return mean((first - second) * (first - second))


class BinaryCrossentropy(_Pair):
    """-mean(y_true log(y_pred) + (1 - y_true) log(1 - y_pred)) over the last dimension."""

    from_logits = Parameter(bool, default=False, doc="whether y_pred are logits rather than probabilities")
    label_smoothing = Parameter(float, default=0.0, minimum=0.0, maximum=1.0, doc="how far targets move towards 1/2")

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        prediction, target, op = inputs["y_pred"], inputs["y_true"], inputs["y_pred"].op
        smoothing = attributes.get("label_smoothing", 0.0)
        if smoothing:
            target = target * (1 - smoothing) + 0.5 * smoothing
        if attributes.get("from_logits", False):
            # max(x, 0) - x y + log(1 + exp(-|x|)): no overflow for any logit.
            positive = op.Max(prediction, 0.0) - prediction * target
            return mean(positive + op.Log(1.0 + op.Exp(-op.Abs(prediction))))
        p = inside(prediction)
        return -mean(target * op.Log(p) + (1.0 - target) * op.Log(1.0 - p))


class CategoricalCrossentropy(_Pair):
    """-sum(y_true log(y_pred)) over the classes, the last dimension; y_pred is first divided by its sum."""

    from_logits = Parameter(bool, default=False, doc="whether y_pred are logits rather than probabilities")
    label_smoothing = Parameter(float, default=0.0, minimum=0.0, maximum=1.0, doc="how far targets become uniform")

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        target, smoothing = inputs["y_true"], attributes.get("label_smoothing", 0.0)
        if smoothing:
            classes = last_size(target).cast(target.element)
            target = target * (1 - smoothing) + smoothing / classes
        return -total(target * log_probabilities(inputs["y_pred"], attributes))


class SparseCategoricalCrossentropy(Loss):
    """-log(y_pred[class]) with the classes as integers; y_pred is first divided by its sum."""

    y_pred = In("T", doc="predictions, [samples..., classes]")
    y_true = In("I", doc="the class of each sample, [samples...]")
    sample_weight = In("T", optional=True, doc="a factor for each sample, [samples...]")
    from_logits = Parameter(bool, default=False, doc="whether y_pred are logits rather than probabilities")

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        logarithms, op = log_probabilities(inputs["y_pred"], attributes), inputs["y_pred"].op
        picked = op.GatherElements(logarithms, op.Unsqueeze(inputs["y_true"], [-1]), axis=-1)
        return -op.Squeeze(picked, [-1])


class Hinge(_Pair):
    """mean(max(1 - y_true y_pred, 0)) over the last dimension; targets of 0 and 1 stand for -1 and 1."""

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        return mean(margin(inputs))


class SquaredHinge(_Pair):
    """mean(max(1 - y_true y_pred, 0)^2) over the last dimension; targets of 0 and 1 stand for -1 and 1."""

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        beyond = margin(inputs)
        return mean(beyond * beyond)


class CategoricalHinge(_Pair):
    """max(max((1 - y_true) y_pred) - sum(y_true y_pred) + 1, 0) over the last dimension."""

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        target, prediction, op = inputs["y_true"], inputs["y_pred"], inputs["y_pred"].op
        others = (1.0 - target) * prediction
        strongest = op.Squeeze(op.TopK(others, [1], axis=-1, outputs=2)[0], [-1])
        return op.Max(strongest - total(target * prediction) + 1.0, 0.0)


class Huber(_Pair):
    """mean of e^2 / 2 where |e| <= delta, of delta |e| - delta^2 / 2 elsewhere; e = y_true - y_pred."""

    delta = Parameter(float, default=1.0, minimum=0.0, doc="where the square becomes a line")

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        error, delta = inputs["y_true"] - inputs["y_pred"], attributes.get("delta", 1.0)
        size = error.op.Abs(error)
        return mean(error.op.Where(size <= delta, 0.5 * error * error, delta * size - 0.5 * delta * delta))


class KLDivergence(_Pair):
    """sum(y_true log(y_true / y_pred)) over the last dimension, both kept within [1e-7, 1]."""

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        target, prediction = (x.op.Min(x.op.Max(x, EPSILON), 1.0) for x in (inputs["y_true"], inputs["y_pred"]))
        return total(target * target.op.Log(target / prediction))


class LogCosh(_Pair):
    """mean(log(cosh(y_pred - y_true))) over the last dimension."""

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        error = inputs["y_pred"] - inputs["y_true"]
        op, size = error.op, error.op.Abs(error)
        return mean(size + op.Log(1.0 + op.Exp(-2.0 * size)) - log(2))


class Poisson(_Pair):
    """mean(y_pred - y_true log(y_pred + 1e-7)) over the last dimension."""

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        prediction = inputs["y_pred"]
        return mean(prediction - inputs["y_true"] * prediction.op.Log(prediction + EPSILON))


class CosineSimilarity(_Pair):
    """-sum(y_true y_pred) over the last dimension, both divided by their Euclidean lengths: -1 for one direction."""

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        return -total(direction(inputs["y_true"]) * direction(inputs["y_pred"]))


class LoadBalancing(Loss):
    """experts sum_e f_e p_e: f_e is how often a token chooses expert e, p_e the expert's mean probability.

    It is k where all experts are chosen equally often, and pulls the router there; f has no gradient.
    """

    first = "router_logits"
    router_logits = In("T", ("tokens", "experts"), doc="the router's logits")
    k = Parameter(int, default=1, minimum=1, doc="number of experts selected per token")

    @classmethod
    def infer(cls, context: NodeContext) -> Inference:
        given = context.inputs.get(cls.first)
        return Inference({"loss": TensorType(given.element if isinstance(given, TensorType) else None, ())})

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        logits, op = inputs["router_logits"], inputs["router_logits"].op
        probabilities = op.Softmax(logits, axis=-1)
        _, chosen = op.TopK(logits, [attributes.get("k", 1)], axis=-1, outputs=2)
        experts = last_size(logits)
        every = op.Range(op.constant(np.asarray(0, np.int64)), experts, op.constant(np.asarray(1, np.int64)))
        hits = op.Equal(op.Unsqueeze(chosen, [-1]), every).cast(logits.element)
        share = op.reduce("ReduceMean", op.ReduceSum(hits, [1], keepdims=0), [0], keepdims=0)
        mean_probability = op.reduce("ReduceMean", probabilities, [0], keepdims=0)
        return op.ReduceSum(share * mean_probability, [0], keepdims=0) * experts.cast(logits.element)


class RouterZ(Loss):
    """mean(logsumexp(router_logits)^2): keeps a router's logits small."""

    first = "router_logits"
    router_logits = In("T", ("tokens", "experts"), doc="the router's logits")

    @classmethod
    def of_samples(cls, inputs: Inputs, attributes: Mapping[str, Any]) -> Expr:
        logits, op = inputs["router_logits"], inputs["router_logits"].op
        size = op.reduce("ReduceLogSumExp", logits, [-1], keepdims=0)
        return size * size


LOSSES: tuple[type[Loss], ...] = (
    MeanSquaredError,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredLogarithmicError,
    BinaryCrossentropy,
    CategoricalCrossentropy,
    SparseCategoricalCrossentropy,
    Hinge,
    SquaredHinge,
    CategoricalHinge,
    Huber,
    KLDivergence,
    LogCosh,
    Poisson,
    CosineSimilarity,
    LoadBalancing,
    RouterZ,
)


def mean(x: Expr) -> Expr:
    """The mean over the last dimension."""
    return total(x) / last_size(x).cast(x.element)


def total(x: Expr) -> Expr:
    """The sum over the last dimension."""
    result: Expr = x.op.ReduceSum(x, [-1], keepdims=0)
    return result


def last_size(x: Expr) -> Expr:
    """The size of the last dimension, a scalar int64."""
    result: Expr = x.op.Squeeze(x.op.Gather(x.op.Shape(x), np.asarray([-1], np.int64)), [0])
    return result


def inside(probabilities: Expr) -> Expr:
    """Probabilities kept within [1e-7, 1 - 1e-7]."""
    op = probabilities.op
    result: Expr = op.Min(op.Max(probabilities, EPSILON), 1 - EPSILON)
    return result


def log_probabilities(prediction: Expr, attributes: Mapping[str, Any]) -> Expr:
    """Logarithms of class probabilities, from logits or from numbers that are made to add up to 1."""
    op = prediction.op
    if attributes.get("from_logits", False):
        result: Expr = op.LogSoftmax(prediction, axis=-1)
        return result
    scaled = prediction / op.ReduceSum(prediction, [-1], keepdims=1)
    logarithms: Expr = op.Log(inside(scaled))
    return logarithms


def margin(inputs: Inputs) -> Expr:
    """max(1 - y_true y_pred, 0), where targets of only 0 and 1 stand for -1 and 1."""
    target, prediction, op = inputs["y_true"], inputs["y_pred"], inputs["y_pred"].op
    other = op.And(op.Not(op.Equal(target, 0.0)), op.Not(op.Equal(target, 1.0))).cast(target.element)
    is_binary = op.Equal(op.ReduceSum(other, keepdims=0), 0.0)
    target = op.Where(is_binary, 2.0 * target - 1.0, target)
    result: Expr = op.Max(1.0 - target * prediction, 0.0)
    return result


def direction(x: Expr) -> Expr:
    """The last dimension divided by its Euclidean length (by 1e-6 if that is less, as Keras does)."""
    op = x.op
    square = op.ReduceSum(x * x, [-1], keepdims=1)
    return x / op.Sqrt(op.Max(square, 1e-12))
