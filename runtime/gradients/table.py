"""The table of gradients: every operator that has one, and how it is found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from runtime.gradients import (
    contrib,
    contrib_attention,
    control,
    elementwise,
    mixtures,
    neural,
    products,
    quantized,
    recurrent,
    reductions,
    resampling,
    shaping,
    signals,
)
from runtime.gradients.expressions import Expr
from runtime.gradients.walk import Call, Rule

Form: TypeAlias = "Callable[[Call], Sequence[Expr | None] | Expr]"

EXACT = (products, reductions, shaping, contrib, neural, resampling, signals)
"""Modules whose rules give gradients in the shapes of the inputs."""

RULES: Mapping[str, tuple[Rule, bool]] = {
    **{name: (rule, True) for name, rule in elementwise.RULES.items()},
    **{name: (rule, False) for table in EXACT for name, rule in table.RULES.items()},
}
"""By operator: its rule, and whether the gradients are those of inputs that were broadcast to the output's shape."""

FORMS: Mapping[str, Form] = {
    **contrib.FORMS,
    **contrib_attention.FORMS,
    **mixtures.FORMS,
    **neural.FORMS,
    **quantized.FORMS,
    **recurrent.FORMS,
    **resampling.FORMS,
    **shaping.FORMS,
    **signals.FORMS,
}
"""By operator: what it is in simpler operators, through which its gradient is found."""

WITH_SUBGRAPHS: Mapping[str, Callable[[Call, Collection[ir.Value]], dict[ir.Value, Expr]]] = {**control.WITH_SUBGRAPHS}
"""Operators with subgraphs: gradients of the values that they read, given those that a gradient is wanted of."""

FLAT = elementwise.FLAT | quantized.FLAT
"""Operators without a slope: nothing flows back through them, and nothing is missing where it does not."""
