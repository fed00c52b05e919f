"""How good a graph is on samples: its losses, its metrics, and the load of its experts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from runtime.errors import Finding, GraphError
from runtime.graph import Graph
from runtime.routing import given_to, mixtures, routing_of
from runtime.session import Session
from runtime.training.metrics import accuracy, load_entropy, mean_squared_error, perplexity, top_k_accuracy

Kind = Literal["accuracy", "top", "mse", "perplexity"]

_METRIC = re.compile(r"(?P<kind>accuracy|mse|perplexity|top-(?P<k>[1-9][0-9]{0,5})):(?P<rest>.+)")


@dataclass(frozen=True, slots=True)
class Metric:
    """One number for each epoch, from an output of the graph and, but for perplexity, an array of the data.

    `accuracy` and `top` (within the first `k`) compare `output` [samples, ..., classes] with classes [samples, ...] or
    one-hot rows of the same shape; `mse` is the mean squared error; `perplexity` is exp of a loss in nats.
    """

    kind: Kind
    output: str
    target: str = ""
    k: int = 5

    def __str__(self) -> str:
        kind = f"top-{self.k}" if self.kind == "top" else self.kind
        return ":".join(part for part in (kind, self.output, self.target) if part)

    @classmethod
    def parse(cls, text: str) -> Metric:
        """The inverse of str: `accuracy:OUTPUT:TARGET`, `top-5:OUTPUT:TARGET`, `mse:OUTPUT:TARGET`, `perplexity:LOSS`.

        GraphError for any other text.
        """
        match = _METRIC.fullmatch(text)
        if match is not None:
            kind, (output, _, target) = match["kind"], match["rest"].partition(":")
            if output and bool(target) != (kind == "perplexity"):
                if match["k"]:
                    return cls("top", output, target, int(match["k"]))
                return cls(kind, output, target)  # type: ignore[arg-type]
        forms = "accuracy:OUTPUT:TARGET, top-5:OUTPUT:TARGET, mse:OUTPUT:TARGET or perplexity:LOSS"
        raise GraphError(Finding(f"{text!r} is no metric.", remedy=f"Expected {forms}.", code="option"))

    def of(self, output: np.ndarray, target: np.ndarray) -> float:
        """The metric of one batch; of a perplexity its logarithm, which can be averaged over batches."""
        if self.kind == "perplexity":
            if output.size != 1:
                raise self._misfit(f"expected one number; {self.output} is {list(output.shape)}")
            return float(output.reshape(()))
        if self.kind == "mse":
            if output.shape != target.shape:
                came = f"{self.output} is {list(output.shape)}, {self.target} {list(target.shape)}"
                raise self._misfit(f"expected two arrays of the same shape; {came}")
            return mean_squared_error(output, target)
        classes = target.argmax(-1) if target.shape == output.shape else target
        if output.ndim < 2 or classes.shape != output.shape[:-1]:
            raise self._misfit(
                "expected [samples, classes] and as many classes as samples, or one-hot rows; "
                f"{self.output} is {list(output.shape)}, {self.target} {list(target.shape)}"
            )
        classes, count = classes.astype(np.int64), output.shape[-1]
        if classes.size and not 0 <= classes.min() <= classes.max() < count:
            raise self._misfit(f"expected classes from 0 to {count - 1}; {self.target} has others")
        return accuracy(output, classes) if self.kind == "accuracy" else top_k_accuracy(output, classes, self.k)

    def _misfit(self, why: str) -> GraphError:
        return GraphError(Finding(f"{self}: {why}.", code="shape"))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over samples: `losses` and `metrics` by name, and `loads` by node: each expert's share of the choices."""

    losses: Mapping[str, float]
    metrics: Mapping[str, float]
    loads: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def entropies(self) -> dict[str, float]:
        """How even each node's load is: 1 if all experts get the same, 0 if one gets all."""
        return {node: load_entropy(np.asarray(load)) for node, load in self.loads.items()}


def evaluate(
    graph: Graph,
    session: Session,
    data: Mapping[str, np.ndarray],
    rows: range,
    batch_size: int,
    losses: Sequence[str],
    metrics: Sequence[Metric] = (),
    fixed: Mapping[str, np.ndarray] | None = None,
) -> Evaluation:
    """Runs the `rows` of `data` through the graph that `session` has open, in batches, and measures what came out.

    `data` has all inputs of the graph and all targets of the metrics; `fixed` are inputs that all rows share.
    """
    routed = mixtures(graph)
    probes = sorted({source for node in routed for source in given_to(graph, node)})
    inputs = {name: data[name] for name in session.inputs if name in data}
    sums = dict.fromkeys([*losses, *map(str, metrics)], 0.0)
    counts: dict[str, np.ndarray] = {}
    for start in range(rows.start, rows.stop, batch_size):
        batch = slice(start, min(start + batch_size, rows.stop))
        size = batch.stop - batch.start
        feeds = {name: array[batch] for name, array in inputs.items()} | dict(fixed or {})
        results = session.forward(feeds, probes=probes)
        for name in losses:
            sums[name] += float(np.asarray(results[name]).reshape(())) * size
        for metric in metrics:
            target = data[metric.target][batch] if metric.target else np.zeros(0)
            sums[str(metric)] += metric.of(np.asarray(results[metric.output]), target) * size
        for node in routed:
            chosen = routing_of(graph, node, session.last_run.probes).tokens_per_expert()
            counts[node] = counts.get(node, 0) + chosen
    means = {name: value / len(rows) for name, value in sums.items()}
    measured = {str(m): perplexity(means[str(m)]) if m.kind == "perplexity" else means[str(m)] for m in metrics}
    loads = {node: (count / max(1, count.sum())).tolist() for node, count in counts.items()}
    return Evaluation({name: means[name] for name in losses}, measured, loads)
