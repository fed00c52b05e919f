"""ScatterND that combines what comes to the same place, for ONNX Runtime's CPU.

Its kernel of ScatterND lets several threads read and write one place at once, so that a sum may lack some of its terms.
That of ScatterElements works in one thread, in the order of the indices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.gradients.expressions import Expr, Formulas
from runtime.types import ElementType

if TYPE_CHECKING:
    from runtime.lowering import Site

LAST = 2**31 - 1
ZERO, ONE = np.asarray(0, np.int64), np.asarray(1, np.int64)


def lower(site: Site) -> None:
    """Writes a ScatterND with a reduction as ScatterElements on the numbers of the elements that its indices name."""
    reduction = site.attributes.get("reduction", "none")
    if reduction == "none":
        return
    op = Formulas(site, site.model.opset_imports)
    data, indices, updates = (Expr(op, site.inputs[port]) for port in ("data", "indices", "updates"))
    shape, depth = op.Shape(data), op.Slice(op.Shape(indices), [-1], [LAST])
    ahead, behind = op.Slice(shape, [0], depth), op.Concat(op.Slice(shape, depth, [LAST]), [1], axis=0)
    rows = op.Reshape(counted(op, op.ReduceProd(ahead, keepdims=0)), ahead, allowzero=1)
    width = op.ReduceProd(behind, keepdims=0)
    places = op.Reshape(op.GatherND(rows, indices), [-1, 1]) * width + counted(op, width)
    element = data.type.element
    flat, changes = op.Reshape(data, [-1]), op.Reshape(updates, [-1])
    if element in (ElementType.FLOAT16, ElementType.BFLOAT16):  # neither kernel combines these
        flat, changes = flat.cast(ElementType.FLOAT), changes.cast(ElementType.FLOAT)
    combined = op.ScatterElements(flat, op.Reshape(places, [-1]), changes, axis=0, reduction=reduction)
    if element is not None:
        combined = combined.cast(element)
    site.replace(op.Reshape(combined, shape, allowzero=1).value)


def counted(op: Formulas, count: Expr) -> Expr:
    """The numbers from 0 that are below `count`."""
    return op.Range(op.constant(ZERO), count, op.constant(ONE))
