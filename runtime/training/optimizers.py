"""Optimizers as formulas: what becomes of a weight, given its gradient. Conventions are those of torch.optim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from runtime.errors import Finding, GraphError
from runtime.gradients.expressions import Expr
from runtime.types import ElementType

State = dict[str, Expr]


class Optimizer(Protocol):
    """`slots` names the tensors that are kept beside each weight: of its shape and type, zeros at the start."""

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the tensors kept beside each weight."""

    def update(self, weight: Expr, gradient: Expr, state: State, rate: Expr, step: Expr) -> tuple[Expr, State]:
        """The new weight and state, after step number `step` (a double, from 1 on), at the learning rate `rate`."""


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent: v = momentum v + g; w -= rate v, or with `nesterov` w -= rate (g + momentum v)."""

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _within("momentum", self.momentum, 0, 1)
        _within("weight_decay", self.weight_decay, 0)
        if self.nesterov and not self.momentum:
            raise GraphError(Finding("Nesterov's rule needs a momentum; it is 0.", code="option"))

    @property
    def slots(self) -> tuple[str, ...]:
        """One velocity, if there is momentum."""
        return ("velocity",) if self.momentum else ()

    def update(self, weight: Expr, gradient: Expr, state: State, rate: Expr, step: Expr) -> tuple[Expr, State]:
        """See `Optimizer.update`."""
        if self.weight_decay:
            gradient = gradient + self.weight_decay * weight
        if not self.momentum:
            return weight - rate * gradient, {}
        velocity = self.momentum * state["velocity"] + gradient
        change = gradient + self.momentum * velocity if self.nesterov else velocity
        return weight - rate * change, {"velocity": velocity}


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam (arXiv 1412.6980, algorithm 1): moving averages m of g and v of g^2, both corrected for their start at 0.

    w -= rate (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon). `weight_decay` is added to the gradient.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    slots: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")

    def __post_init__(self) -> None:
        _check_adam(self.beta1, self.beta2, self.epsilon, self.weight_decay)

    def update(self, weight: Expr, gradient: Expr, state: State, rate: Expr, step: Expr) -> tuple[Expr, State]:
        """See `Optimizer.update`."""
        if self.weight_decay:
            gradient = gradient + self.weight_decay * weight
        change, state = _adam(self.beta1, self.beta2, self.epsilon, gradient, state, rate, step)
        return weight - change, state


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam whose weight decay is apart from the gradient (arXiv 1711.05101): w -= rate weight_decay w, then as Adam."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    slots: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")

    def __post_init__(self) -> None:
        _check_adam(self.beta1, self.beta2, self.epsilon, self.weight_decay)

    def update(self, weight: Expr, gradient: Expr, state: State, rate: Expr, step: Expr) -> tuple[Expr, State]:
        """See `Optimizer.update`."""
        change, state = _adam(self.beta1, self.beta2, self.epsilon, gradient, state, rate, step)
        return weight * (1.0 - rate * self.weight_decay) - change, state


def _adam(
    beta1: float, beta2: float, epsilon: float, gradient: Expr, state: Mapping[str, Expr], rate: Expr, step: Expr
) -> tuple[Expr, State]:
    """What is taken from the weight, and the new state.

    The corrections m / c and v / d are brought together in numbers, rate sqrt(d) / c and epsilon sqrt(d), that all
    weights share: small weights cost what operators cost, not what they compute. Floats of 16 bits are widened for
    that, because epsilon and squares of gradients are below the least of them.
    """
    op, element = gradient.op, gradient.element
    wide = ElementType.FLOAT if element in (ElementType.FLOAT16, ElementType.BFLOAT16) else element
    gradient, state = gradient.cast(wide), {slot: value.cast(wide) for slot, value in state.items()}
    first = beta1 * state["first_moment"] + (1 - beta1) * gradient
    second = beta2 * state["second_moment"] + (1 - beta2) * (gradient * gradient)
    # In double precision: 1 - beta^t loses half of a float32's digits at the first steps.
    share1, share2 = (1.0 - op.Pow(op.operand(beta, step), step) for beta in (beta1, beta2))
    root = op.Sqrt(share2)
    size, least = (
        (rate.cast(step.element) * root / share1).cast(gradient.element),
        (root * epsilon).cast(gradient.element),
    )
    change = size * first / (op.Sqrt(second) + least)
    return change.cast(element), {"first_moment": first.cast(element), "second_moment": second.cast(element)}


def _check_adam(beta1: float, beta2: float, epsilon: float, weight_decay: float) -> None:
    _within("beta1", beta1, 0, 1)
    _within("beta2", beta2, 0, 1)
    _within("epsilon", epsilon, 0)
    _within("weight_decay", weight_decay, 0)


def _within(name: str, value: float, low: float, below: float = float("inf")) -> None:
    """GraphError unless low <= value < below."""
    if not low <= value < below:
        bound = f" and less than {below:g}" if below != float("inf") else ""
        raise GraphError(Finding(f"{name} must be at least {low:g}{bound}; {value:g} came.", code="option"))


OPTIMIZERS: Mapping[str, type[SGD] | type[Adam] | type[AdamW]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
"""By the names that the command line takes."""
