"""Recurrent cells as forms: one step after the other, for sequences whose length is known before the run.

Formulas and the order of gates are those of the ONNX operator specification.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from runtime.gradients.elementwise import sigmoid
from runtime.gradients.expressions import Expr
from runtime.gradients.walk import Call

LONGEST = 1024
"""How many steps are written out."""

ACTIVATIONS: dict[str, Callable[[Expr, float | None, float | None], Expr]] = {
    "relu": lambda x, a, b: x.op.Relu(x),
    "tanh": lambda x, a, b: x.op.Tanh(x),
    "sigmoid": lambda x, a, b: sigmoid(x),
    "affine": lambda x, a, b: (1.0 if a is None else a) * x + (0.0 if b is None else b),
    "leakyrelu": lambda x, a, b: x.op.LeakyRelu(x, alpha=0.01 if a is None else a),
    "thresholdedrelu": lambda x, a, b: x.op.ThresholdedRelu(x, alpha=1.0 if a is None else a),
    "scaledtanh": lambda x, a, b: (1.0 if a is None else a) * x.op.Tanh((1.0 if b is None else b) * x),
    "hardsigmoid": lambda x, a, b: x.op.HardSigmoid(x, alpha=0.2 if a is None else a, beta=0.5 if b is None else b),
    "elu": lambda x, a, b: x.op.Elu(x, alpha=1.0 if a is None else a),
    "softsign": lambda x, a, b: x.op.Softsign(x),
    "softplus": lambda x, a, b: x.op.Softplus(x),
}

Cell = Callable[["Direction", Expr, Sequence[Expr]], Sequence[Expr]]


class Direction:
    """One direction of a recurrent node: its weights [gates * hidden, ...], its activations, its first state."""

    def __init__(self, n: Call, index: int, gates: int, activations: Sequence[str]) -> None:
        self.n, self.index, self.gates, self.hidden = n, index, gates, int(n.get("hidden_size"))
        self.weights, self.recurrent = (self.own(x) for x in (n.b, n.c))
        self.bias = self.own(n[3]) if n.has(3) else None
        self.names = [name.lower() for name in activations]
        alphas, betas = list(n.get("activation_alpha") or ()), list(n.get("activation_beta") or ())
        start = index * len(activations)
        self.alphas = [*alphas[start : start + len(activations)], *[None] * len(activations)]
        self.betas = [*betas[start : start + len(activations)], *[None] * len(activations)]

    def own(self, x: Expr) -> Expr:
        """This direction's part of an input [directions, ...]."""
        result: Expr = x.op.Gather(x, np.asarray(self.index, np.int64), axis=0)
        return result

    def f(self, which: int, x: Expr) -> Expr:
        """Activation number `which`, of a value within the clip."""
        clip = self.n.get("clip")
        if clip is not None:
            x = x.op.Min(x.op.Max(x, -float(clip)), float(clip))
        return ACTIVATIONS[self.names[which]](x, self.alphas[which], self.betas[which])

    def part(self, x: Expr, gate: int, count: int = 1) -> Expr:
        """The rows of `count` gates from number `gate` on."""
        result: Expr = x.op.Slice(x, [gate * self.hidden], [(gate + count) * self.hidden], [0])
        return result

    def product(self, x: Expr, weights: Expr) -> Expr:
        """x W^T."""
        return x @ x.op.Transpose(weights, perm=[1, 0])

    def sum_of(self, x: Expr, h: Expr, gate: int) -> Expr:
        """x W^T + h R^T + Wb + Rb of one gate."""
        total = self.product(x, self.part(self.weights, gate)) + self.product(h, self.part(self.recurrent, gate))
        if self.bias is not None:
            total = total + self.part(self.bias, gate) + self.part(self.bias, self.gates + gate)
        return total


def _rnn(d: Direction, x: Expr, state: Sequence[Expr]) -> Sequence[Expr]:
    return [d.f(0, d.sum_of(x, state[0], 0))]


def _gru(d: Direction, x: Expr, state: Sequence[Expr]) -> Sequence[Expr]:
    """Gates z, r, h."""
    (before,) = state
    z, r = (d.f(0, d.sum_of(x, before, gate)) for gate in (0, 1))
    if d.n.get("linear_before_reset", 0):
        inner = d.product(before, d.part(d.recurrent, 2))
        if d.bias is not None:
            inner = inner + d.part(d.bias, 5)
        total = d.product(x, d.part(d.weights, 2)) + r * inner
    else:
        total = d.product(x, d.part(d.weights, 2)) + d.product(r * before, d.part(d.recurrent, 2))
        if d.bias is not None:
            total = total + d.part(d.bias, 5)
    if d.bias is not None:
        total = total + d.part(d.bias, 2)
    return [(1.0 - z) * d.f(1, total) + z * before]


def _lstm(d: Direction, x: Expr, state: Sequence[Expr]) -> Sequence[Expr]:
    """Gates i, o, f, c; peepholes P of i, o, f."""
    h, c = state
    peepholes = d.own(d.n[7]) if d.n.has(7) else None

    def gate(number: int, cell: Expr) -> Expr:
        total = d.sum_of(x, h, number)
        return d.f(0, total if peepholes is None else total + d.part(peepholes, number) * cell)

    i = gate(0, c)
    f = 1.0 - i if d.n.get("input_forget", 0) else gate(2, c)
    new = f * c + i * d.f(1, d.sum_of(x, h, 3))
    return [gate(1, new) * d.f(2, new), new]


def recurrent(n: Call, gates: int, defaults: Sequence[str], states: int, cell: Cell) -> Sequence[Expr]:
    """Y [steps, directions, batch, hidden], and the last states [directions, batch, hidden]."""
    op = n.op
    by_batch = bool(n.get("layout", 0))
    x = op.Transpose(n.a, perm=[1, 0, 2]) if by_batch else n.a
    steps = x.shape[0] if x.shape is not None else None
    if not isinstance(steps, int) or steps > LONGEST:
        raise n.error(f"the number of steps must be known and at most {LONGEST}; it is {steps}.")
    way = n.get("direction", "forward")
    count = 2 if way == "bidirectional" else 1
    names = list(n.get("activations") or list(defaults) * count)
    every: list[list[Expr]] = []
    last: list[list[Expr]] = []
    for index in range(count):
        direction = Direction(n, index, gates, names[index * len(defaults) : (index + 1) * len(defaults)])
        backward = way == "reverse" or index == 1
        state = [_first(n, x, direction, index, 5 + number, by_batch) for number in range(states)]
        outputs: list[Expr | None] = [None] * steps
        for step in reversed(range(steps)) if backward else range(steps):
            new = cell(direction, op.Gather(x, np.asarray(step, np.int64), axis=0), state)
            result = new[0]
            if n.has(4):  # beyond a sequence's end, the state stays and the output is zero
                goes_on = op.Unsqueeze(op.Greater(n[4], np.asarray(step, np.int32)), [1])
                new = [op.Where(goes_on, after, before) for after, before in zip(new, state, strict=True)]
                result = op.Where(goes_on, result, op.operand(0.0, result))
            state = list(new)
            outputs[step] = result
        every.append([output for output in outputs if output is not None])
        last.append(state)
    joined = [op.Concat(*(op.Unsqueeze(one[step], [0]) for one in every), axis=0) for step in range(steps)]
    y = op.Concat(*(op.Unsqueeze(item, [0]) for item in joined), axis=0)
    ends = [op.Concat(*(op.Unsqueeze(one[number], [0]) for one in last), axis=0) for number in range(states)]
    if by_batch:
        y = op.Transpose(y, perm=[2, 0, 1, 3])
        ends = [op.Transpose(end, perm=[1, 0, 2]) for end in ends]
    return [y, *ends][: len(n.y)]


def _first(n: Call, x: Expr, direction: Direction, index: int, position: int, by_batch: bool) -> Expr:
    """The first state [batch, hidden]; zeros if it is not given."""
    op = n.op
    if n.has(position):
        result: Expr = op.Gather(n[position], np.asarray(index, np.int64), axis=1 if by_batch else 0)
        return result
    batch = op.Slice(op.Shape(x), [1], [2])
    zeros: Expr = op.Expand(op.operand(0.0, x), op.Concat(batch, [direction.hidden], axis=0))
    return zeros


FORMS: dict[str, Callable[[Call], Sequence[Expr]]] = {
    "GRU": lambda n: recurrent(n, 3, ("Sigmoid", "Tanh"), 1, _gru),
    "LSTM": lambda n: recurrent(n, 4, ("Sigmoid", "Tanh", "Tanh"), 2, _lstm),
    "RNN": lambda n: recurrent(n, 1, ("Tanh",), 1, _rnn),
}
"""By operator: what it is in simpler operators."""
