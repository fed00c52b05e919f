"""How a document is to be trained, as the document says it: `layout: {training: {epochs: 20, optimizer: SGD}}`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from runtime.errors import Finding, GraphError
from runtime.feeds import Source
from runtime.graph import ABSENT, Graph, PortRef
from runtime.training.schedules import KINDS, Schedule
from runtime.types import TensorType

if TYPE_CHECKING:
    from runtime.training.trainer import Settings


@dataclass(frozen=True, slots=True)
class Plan:
    """The choices of a training run. `losses` are outputs with their weights; empty means all scalar outputs of floats.

    `data` is a file beside the document with an array for every input; empty means the inputs' own sources. `metrics`
    are written as `qmoe train` takes them, with blanks between.
    """

    losses: Mapping[str, float] = field(default_factory=dict)
    data: str = ""
    optimizer: str = "AdamW"
    rate: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.01
    schedule: str = "constant"
    warm_up: int = 0
    epochs: int = 10
    batch_size: int = 32
    validation: float = 0.2
    patience: int = 0
    clip_norm: float = 0.0
    seed: int = 0
    metrics: str = ""


_BOUNDS: dict[str, tuple[float, float]] = {
    "rate": (0, 1e6),
    "momentum": (0, 1),
    "weight_decay": (0, 1e6),
    "warm_up": (0, 1e9),
    "epochs": (1, 1e6),
    "batch_size": (1, 1e9),
    "validation": (0, 1),
    "patience": (0, 1e6),
    "clip_norm": (0, 1e12),
    "seed": (0, 2**31 - 1),
}
OPTIMIZER_NAMES = ("SGD", "Adam", "AdamW")
_CHOICES = {"optimizer": OPTIMIZER_NAMES, "schedule": KINDS}


def plan_of(graph: Graph) -> tuple[Plan, list[str]]:
    """The plan that a document has, and a sentence for each part of it that is no choice and was left out."""
    stored = graph.section("layout").get("training")
    if stored is None:
        return Plan(), []
    if not isinstance(stored, Mapping):
        return Plan(), ["The document's training plan is no mapping."]
    reasons = {str(name): why_wrong(str(name), value) for name, value in stored.items()}
    good: dict[str, Any] = {str(name): value for name, value in stored.items() if not reasons[str(name)]}
    return Plan(**good), [reason for reason in reasons.values() if reason]


def set_plan(graph: Graph, plan: Plan, merge: str = "") -> None:
    """Stores what differs from a fresh plan. GraphError names what is no choice."""
    fresh = Plan()
    changed = {f.name: getattr(plan, f.name) for f in fields(Plan) if getattr(plan, f.name) != getattr(fresh, f.name)}
    for name, value in changed.items():
        reason = why_wrong(name, value)
        if reason:
            raise GraphError(Finding(reason, code="option"))
    with graph.transaction("Plan the training", merge):
        graph.set("", "training", changed or ABSENT, section="layout")


def why_wrong(name: str, value: Any) -> str:
    """Why a value is none of a plan; empty if it is."""
    known = {f.name: f.default for f in fields(Plan)}
    if name not in known:
        return f"A training plan has no {name[:40]}."
    words = name.replace("_", " ")
    if name == "losses":
        good = isinstance(value, Mapping) and all(isinstance(k, str) and _is_number(v) for k, v in value.items())
        return "" if good else "Losses are outputs with their weights: {loss: 1.0}."
    if name == "data":
        good = isinstance(value, str) and (not value or Source(file=value).is_inside)
        return "" if good else "The data of a training plan are in a file of arrays beside the document or below."
    if name in _CHOICES:
        return "" if value in _CHOICES[name] else f"The {words} is one of {', '.join(_CHOICES[name])}."
    if name == "metrics":
        return "" if isinstance(value, str) else "Metrics are a text."
    low, high = _BOUNDS[name]
    whole = isinstance(known[name], int)
    if not _is_number(value) or (whole and not isinstance(value, int)):
        return f"The {words} is a {'whole ' if whole else ''}number."
    below = name in ("momentum", "validation")
    if not low <= value <= high or (below and value == high):
        return f"The {words} is {low:g} to {'less than ' if below else ''}{high:g}; {value:g} came."
    return ""


def scalar_losses(graph: Graph) -> dict[str, float]:
    """All scalar outputs of floats, each with weight 1."""
    found = {}
    for id, state in graph.nodes.items():
        source = graph.wires.get(PortRef(id, "value"))
        if state.type == "Output" and source is not None:
            type_ = graph.checker.type_of(source)
            if isinstance(type_, TensorType) and type_.shape == () and type_.element and type_.element.is_float:
                found[str(state.parameters.get("name") or id)] = 1.0
    return found


def settings_of(graph: Graph, plan: Plan, samples: int) -> Settings:
    """The trainer's settings for so many samples. GraphError if there is no loss, or the plan contradicts itself."""
    # They bring what runs graphs, which whoever only plans need not wait for.
    from runtime.training.evaluation import Metric
    from runtime.training.optimizers import OPTIMIZERS
    from runtime.training.trainer import Settings

    losses = {name: weight for name, weight in plan.losses.items() if weight} or scalar_losses(graph)
    if not losses:
        text = "There is no scalar output of floats to be the loss."
        raise GraphError(Finding(text, remedy="Add a loss node and an Output after it.", code="loss"))
    options: dict[str, Any] = {"weight_decay": plan.weight_decay}
    if plan.optimizer == "SGD":
        options["momentum"] = plan.momentum
    training = samples - round(samples * plan.validation)
    steps = max(1, plan.epochs * math.ceil(training / plan.batch_size) - plan.warm_up)
    return Settings(
        losses=losses,
        optimizer=OPTIMIZERS[plan.optimizer.lower()](**options),
        schedule=Schedule(plan.rate, plan.schedule, steps=steps, warm_up=plan.warm_up, every=max(1, steps // 3)),
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        seed=plan.seed,
        validation=plan.validation,
        patience=plan.patience,
        clip_norm=plan.clip_norm or None,
        metrics=[Metric.parse(text) for text in plan.metrics.split()],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
