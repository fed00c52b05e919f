"""Rules for matrix products."""

from __future__ import annotations

from string import ascii_letters

from runtime.gradients.expressions import Expr
from runtime.gradients.walk import Call, Gradients, Rule, sum_to
from runtime.types import ElementType


def transposed(x: Expr) -> Expr:
    """The last two dimensions exchanged."""
    rank = x.rank
    return x.op.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])


def product_gradients(n: Call, a: Expr, b: Expr, d: Expr) -> tuple[Expr | None, Expr | None]:
    """The gradients of a and b in a @ b, given that of the product."""
    op = n.op
    if a.rank == 1 and b.rank == 1:
        return (d * b if n.needs[0] else None), (d * a if n.needs[1] else None)
    left = op.Unsqueeze(a, [0]) if a.rank == 1 else a
    right = op.Unsqueeze(b, [1]) if b.rank == 1 else b
    if a.rank == 1:
        d = op.Unsqueeze(d, [-2])
    if b.rank == 1:
        d = op.Unsqueeze(d, [-1])
    to_a = sum_to(d @ transposed(right), left) if n.needs[0] else None
    to_b = sum_to(_left_transposed(left, d, right), right) if n.needs[1] else None
    if to_a is not None and a.rank == 1:
        to_a = op.Squeeze(to_a, [0])
    if to_b is not None and b.rank == 1:
        to_b = op.Squeeze(to_b, [1])
    return to_a, to_b


def _left_transposed(left: Expr, d: Expr, right: Expr) -> Expr:
    """The gradient of the right factor. Where that is one matrix for a whole batch, the batch is part of the sum."""
    op = d.op
    if right.rank == 2 and left.rank > 2:
        rows = [op.Reshape(x, op.Concat([-1], _last(x), axis=0)) for x in (left, d)]
        return op.Transpose(rows[0], perm=[1, 0]) @ rows[1]
    return transposed(left) @ d


def _last(x: Expr) -> Expr:
    """The size of the last dimension, int64 [1]."""
    return x.op.Slice(x.op.Shape(x), [x.rank - 1], [x.rank])


def _gemm(n: Call) -> Gradients:
    alpha, beta = n.get("alpha", 1.0), n.get("beta", 1.0)
    op, flip_a, flip_b = n.op, n.get("transA", 0), n.get("transB", 0)
    to_a = to_b = to_c = None
    if n.needs[0]:  # Y = A' B': the product is written in the order that gives A, not its transpose
        to_a = (
            op.Gemm(n.b, n.d, alpha=alpha, transA=flip_b, transB=1)
            if flip_a
            else op.Gemm(n.d, n.b, alpha=alpha, transB=1 - flip_b)
        )
    if n.needs[1]:
        to_b = (
            op.Gemm(n.d, n.a, alpha=alpha, transA=1, transB=flip_a)
            if flip_b
            else op.Gemm(n.a, n.d, alpha=alpha, transA=1 - flip_a)
        )
    if n.has(2) and n.needs[2]:
        to_c = sum_to(n.d if beta == 1 else n.d * beta, n.c)
    return to_a, to_b, to_c


def _einsum(n: Call) -> Gradients:
    """Each operand's gradient is an Einsum of the output's gradient and the other operands.

    A diagonal is one of an operand whose dimensions all have letters of their own, multiplied with unit matrices.
    """
    equation = str(n.get("equation", "")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        right = "..." * ("." in left)
        right += "".join(sorted(letter for letter in set(left) - set(",.") if left.count(letter) == 1))
    free = sorted(set(ascii_letters) - set(equation))
    if "." in left:
        most = max(n[i].rank - len(term) + 3 for i, term in enumerate(terms) if "." in term)
        terms = [t.replace("...", "".join(free[most - n[i].rank + len(t) - 3 : most])) for i, t in enumerate(terms)]
        right = right.replace("...", "".join(free[:most]))
        free = free[most:]
    gradients: list[Expr | None] = []
    for position, term in enumerate(terms):
        if not n.needs[position]:
            gradients.append(None)
            continue
        others = [(t, n[i]) for i, t in enumerate(terms) if i != position]
        for axis, letter in enumerate(term):
            if letter in term[:axis]:
                size = n.op.Slice(n.op.Shape(n[position]), [axis], [axis + 1])
                others.append((letter + free[axis], n.op.unit(size, n.d)))
                term = term[:axis] + free[axis] + term[axis + 1 :]
        there = set(right).union(*(t for t, _ in others))
        found = "".join(letter for letter in term if letter in there)
        subscripts = ",".join([right, *(t for t, _ in others)]) + "->" + found
        gradient = n.op.Einsum(n.d, *(x for _, x in others), equation=subscripts)
        missing = [axis for axis, letter in enumerate(term) if letter not in there]
        if missing:  # summed over right away: every element counts the same
            gradient = n.op.Expand(n.op.Unsqueeze(gradient, missing), n.op.Shape(n[position]))
        gradients.append(sum_to(gradient, n[position]))
    return gradients


def _determinant(n: Call) -> Gradients:
    """Every element gets its cofactor: the determinant with a one in its place and zeros in the rest of its row.

    These are as many determinants as there are elements; but a singular matrix, which has no inverse, has them too.
    """
    op = n.op
    unit = op.unit(_last(n.a), n.a)
    rows = op.Unsqueeze(op.Cast(unit, to=int(ElementType.BOOL)), [1, 3])
    changed = op.Where(rows, op.Unsqueeze(unit, [0, 2]), op.Unsqueeze(n.a, [-4, -3]))
    return op.Unsqueeze(n.d, [-2, -1]) * op.Det(changed)


RULES: dict[str, Rule] = {
    "Det": _determinant,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": lambda n: product_gradients(n, n.a, n.b, n.d),
}
"""By operator: gradients in the shapes of the inputs."""
