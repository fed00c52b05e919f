"""Learning rates over the steps of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, inf, pi

from runtime.errors import Finding, GraphError

KINDS = ("constant", "linear", "cosine", "step", "exponential")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate of every step, counted from 0.

    The rate rises in a line from 0 over `warm_up` steps, and is `rate` at the last of them. Then, t being the steps
    after that and `steps` how many there are:
    "constant" stays at `rate`; "linear" falls in a line to `end`; "cosine" falls along half a cosine to `end`
    (arXiv 1608.03983, eq. 5, without restarts); "step" is multiplied by `factor` every `every` steps; "exponential"
    is multiplied by `factor` after every step.
    """

    rate: float = 1e-3
    kind: str = "constant"
    steps: int = 0
    warm_up: int = 0
    end: float = 0.0
    every: int = 1
    factor: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise _wrong("kind", f"one of {', '.join(KINDS)}", self.kind)
        for name, number in (("rate", self.rate), ("end", self.end), ("factor", self.factor)):
            if not 0 <= number < inf:
                raise _wrong(name, "a number that is at least 0", number)
        if self.kind in ("linear", "cosine") and self.steps < 1:
            raise _wrong("steps", "how many steps the rate falls over", self.steps)
        if self.warm_up < 0 or self.every < 1:
            raise _wrong("warm_up and every", "0 and 1 or more steps", (self.warm_up, self.every))

    def __call__(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        after = step - self.warm_up
        match self.kind:
            case "linear":
                return self.rate + (self.end - self.rate) * min(1.0, after / self.steps)
            case "cosine":
                return self.end + (self.rate - self.end) * (1 + cos(pi * min(1.0, after / self.steps))) / 2
            case "step":
                return float(self.rate * self.factor ** (after // self.every))
            case "exponential":
                return float(self.rate * self.factor**after)
        return self.rate


def _wrong(name: str, expected: str, came: object) -> GraphError:
    return GraphError(Finding(f"{name} of a learning-rate schedule: expected {expected}; {came} came.", code="option"))
