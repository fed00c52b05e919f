"""Rules for operators that read between the elements of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from runtime.gradients.expressions import Expr
from runtime.gradients.shaping import zero_of
from runtime.gradients.walk import Call, Gradients, Rule


def _resize(n: Call) -> Gradients:
    """Resizing works on each axis by itself, and is a matrix there: its own result for the unit matrix.

    So the gradient is the product with the transposed matrix, axis by axis.
    """
    op, rank = n.op, n.a.rank
    if n.get("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise n.error("there is none for tf_crop_and_resize.")
    if n.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise n.error("there is none where the aspect ratio is kept.", "Write the sizes out.")
    options = {
        name: n.get(name)
        for name in ("antialias", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "mode")
    } | {"nearest_mode": n.get("nearest_mode")}
    axes = [axis % rank for axis in (n.get("axes") or range(rank))]
    gradient = n.d
    for number, axis in enumerate(axes):
        size = op.Slice(op.Shape(n.a), [axis], [axis + 1])
        if n.a.shape is not None and n.out.shape is not None and n.a.shape[axis] == n.out.shape[axis]:
            continue  # nothing happens along this axis
        unit = op.unit(size, n.d)
        if n.has(2):
            scale = op.Slice(n.c, [number], [number + 1])
            one = op.constant(np.ones(1, np.float32))
            matrix = op.Resize(unit, None, op.Concat(scale, one, axis=0), **options)
        else:
            made = op.Slice(n[3], [number], [number + 1])
            matrix = op.Resize(unit, None, None, op.Concat(made, size, axis=0), **options)
        # matrix [made, size]: what every element along the axis is made of.
        order = [*(other for other in range(rank) if other != axis), axis]
        turned = op.Transpose(gradient, perm=order) @ matrix
        gradient = op.Transpose(turned, perm=[order.index(position) for position in range(rank)])
    return gradient


def _column_to_image(n: Call) -> Gradients:
    """Every element of a column comes from where it was added: the image of the positions, taken apart again."""
    op = n.op
    positions = op.Reshape(
        op.Range(op.constant(np.asarray(0, np.int64)), op.Size(n.d), op.constant(np.asarray(1, np.int64))),
        op.Shape(n.d),
    )
    shape, kernel = n.b.known(), n.c.known()
    if shape is None or kernel is None:
        raise n.error("the sizes of image and block must be constants.")
    rank = len(shape)
    dilations, strides = list(n.get("dilations") or [1] * rank), list(n.get("strides") or [1] * rank)
    pads = list(n.get("pads") or [0] * 2 * rank)
    around = np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64)
    outside = op.Pad(positions + np.asarray(1, np.int64), around)  # 0 is what lies in the padding
    parts = []
    counts = [
        (int(size) + pads[i] + pads[rank + i] - dilations[i] * (int(kernel[i]) - 1) - 1) // strides[i] + 1
        for i, size in enumerate(shape)
    ]
    for offset in np.ndindex(*(int(size) for size in kernel)):
        starts = [at * dilation for at, dilation in zip(offset, dilations, strict=True)]
        ends = [s + stride * (count - 1) + 1 for s, stride, count in zip(starts, strides, counts, strict=True)]
        part = op.Slice(outside, starts, ends, list(range(2, rank + 2)), strides)
        parts.append(op.Unsqueeze(op.Reshape(part, [0, 0, -1]), [2]))
    taken = op.Reshape(op.Concat(*parts, axis=2), op.Shape(n.a))
    padded = op.Concat(op.Unsqueeze(zero_of(n.d), [0]), op.Reshape(n.d, [-1]), axis=0)
    return op.Gather(padded, taken)


def _affine_grid(n: Call) -> Expr:
    """theta times the coordinates of every pixel, from -1 to 1."""
    op = n.op
    size = n.b.known()
    if size is None:
        raise n.error("the size must be a constant.")
    sizes = [int(item) for item in size[2:]]
    steps = []
    for count in sizes:
        if n.get("align_corners", 0):
            steps.append(np.linspace(-1, 1, count) if count > 1 else np.array([-1.0]))
        else:
            steps.append((np.arange(count) * 2 + 1) / count - 1)
    mesh = np.meshgrid(*steps, indexing="ij")
    base = np.stack([*mesh[::-1], np.ones(sizes)], axis=-1).reshape(-1, len(sizes) + 1)
    grid = op.operand(base.astype(n.a.element.dtype)) @ op.Transpose(n.a, perm=[0, 2, 1])
    result: Expr = op.Reshape(grid, np.array([-1, *sizes, len(sizes)], np.int64))
    return result


def _grid_sample(n: Call) -> Expr:
    """The elements around every point, weighted by how near they are: one form for images of any rank."""
    op, rank = n.op, n.a.rank - 2
    mode, padding = n.get("mode", "linear"), n.get("padding_mode", "zeros")
    element, cubic = n.a.element, mode in ("cubic", "bicubic")
    places: list[list[tuple[Expr, Expr, Expr]]] = []  # by dimension: index, weight, whether it is inside
    for axis in range(rank):
        size = op.Squeeze(op.Slice(op.Shape(n.a), [2 + axis], [3 + axis]), [0])
        wide = size.cast(element)
        at = op.Squeeze(op.Slice(n.b, [rank - 1 - axis], [rank - axis], [rank + 1]), [rank + 1])
        if n.get("align_corners", 0):
            x = (at + 1.0) * (wide - 1.0) * 0.5
            low, high = op.operand(0.0, x), wide - 1.0
        else:
            x = ((at + 1.0) * wide - 1.0) * 0.5
            low, high = op.operand(-0.5, x), wide - 0.5
        if padding == "border":
            held = op.Min(op.Max(x, 0.0), wide - 1.0)
            x = op.Where(op.Or(x < low, x > high), held, x) if cubic else held
        elif padding == "reflection":
            x = _reflected(x, low, high)
            x = x if cubic else op.Min(op.Max(x, 0.0), wide - 1.0)
        first = op.Round(x) if mode == "nearest" else op.Floor(x)
        share = x - first
        if mode == "nearest":
            pairs = [(first, op.like(1.0, x))]
        elif cubic:
            pairs = [(first + float(step), _cubic_weight(op.Abs(share - float(step)), step)) for step in (-1, 0, 1, 2)]
        else:
            pairs = [(first, 1.0 - share), (first + 1.0, share)]
        found = []
        for place, near in pairs:
            if cubic and padding == "border":
                place = op.Min(op.Max(place, 0.0), wide - 1.0)
            elif cubic and padding == "reflection":
                place = _reflected(place, low, high)
            inside = op.And(place >= 0.0, place <= wide - 1.0).cast(element)
            held = op.Min(op.Max(place, 0.0), wide - 1.0).cast(size.element)
            found.append((held, near, inside))
        places.append(found)
    batch = op.Slice(op.Shape(n.a), [0], [1])
    flat = op.Reshape(n.a, [0, 0, -1])
    total: Expr | None = None
    for corner in np.ndindex(*(len(found) for found in places)):
        index: Expr | None = None
        weight: Expr | None = None
        for axis, which in enumerate(corner):
            held, share, inside = places[axis][which]
            size = op.Squeeze(op.Slice(op.Shape(n.a), [2 + axis], [3 + axis]), [0])
            index = held if index is None else index * size + held
            part = share * inside
            weight = part if weight is None else weight * part
        assert index is not None and weight is not None
        points = op.Unsqueeze(op.Reshape(index, op.Concat(batch, [-1], axis=0)), [1])
        channels = op.Slice(op.Shape(n.a), [1], [2])
        everywhere = op.Expand(points, op.Concat(batch, channels, [1], axis=0))
        values = op.GatherElements(flat, everywhere, axis=2)
        term = values * op.Unsqueeze(op.Reshape(weight, op.Concat(batch, [-1], axis=0)), [1])
        total = term if total is None else total + term
    assert total is not None
    sizes = op.Slice(op.Shape(n.b), [1], [rank + 1])
    result: Expr = op.Reshape(total, op.Concat(batch, op.Slice(op.Shape(n.a), [1], [2]), sizes, axis=0))
    return result


def _cubic_weight(distance: Expr, step: int) -> Expr:
    """Keys' kernel with a = -0.75, for the element `step` elements from the one at the left."""
    d, a = distance, -0.75
    if step in (0, 1):
        return ((a + 2) * d - (a + 3)) * d * d + 1.0
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a


def _reflected(x: Expr, low: Expr, high: Expr) -> Expr:
    """x thrown back at both ends as often as it takes."""
    op = x.op
    span = high - low
    turns = (x - low) / (2.0 * span)
    within = (turns - op.Floor(turns)) * 2.0 * span
    result: Expr = low + op.Where(within > span, 2.0 * span - within, within)
    return result


RULES: dict[str, Rule] = {"Col2Im": _column_to_image, "Resize": _resize}
"""By operator: gradients in the shapes of the inputs."""

FORMS: dict[str, Callable[[Call], Expr | Sequence[Expr]]] = {"AffineGrid": _affine_grid, "GridSample": _grid_sample}
"""By operator: what it is in simpler operators."""
