"""Two graphs on the same inputs: how far the second one's values are from the first one's, wire by wire.

    comparison = compare(floats, quantized, {"x": array})
    print(comparison.worst.second, comparison.worst.accumulated.snr)

Accumulated differences are those of two whole runs. Isolated ones are what a node adds itself: each node of the second
graph runs with the first one's values at its inputs, and with its own weights.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from runtime import catalog
from runtime.backends.control import Progress
from runtime.captures import read_through_captures
from runtime.check import Checker
from runtime.differences import Difference, difference
from runtime.errors import Cancelled, Finding, GraphError, Severity
from runtime.graph import Graph, PortRef
from runtime.guard import input_names
from runtime.isolation import Segment, computed_from_inputs, is_overridable, isolate, segment
from runtime.matching import EXPERTS_HOOK, Matching, is_mixture, match
from runtime.mixture_differences import ExpertComparison, Given, MixtureDifference, mixture_difference
from runtime.nodes.terminals import Initializer, Input, Output
from runtime.routing import given_to
from runtime.session import Session
from runtime.tensors import Tensor
from runtime.types import ElementType, TensorType
from runtime.wire_matching import Rival, match_wires

MEMORY = 1 << 28
"""Bytes of wires' values that are held at once, unless a single node has more."""
UNKNOWN = 1 << 20
"""Bytes that a value is taken for whose size nothing tells."""
TOLD = 8
"""Nodes without counterpart that are told of by name."""


@dataclass(frozen=True, slots=True)
class WireDifference:
    """How far a value of the second graph is from its counterpart: the outputs `first` and `second` of two nodes.

    `isolated` is None where a node cannot be run alone. `is_constant` says that the value does not depend on the
    inputs: weights, and what is made of them. `output` is the name under which the first graph gives the value out, or
    an empty string.
    """

    first: PortRef
    second: PortRef
    shape: tuple[int, ...]
    element: str
    accumulated: Difference
    isolated: Difference | None = None
    is_constant: bool = False
    output: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found: wires in the second graph's order, mixtures of experts, and what could not be compared."""

    wires: tuple[WireDifference, ...]
    mixtures: tuple[MixtureDifference, ...]
    matching: Matching
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> WireDifference | None:
        """The wire with the least accumulated signal-to-noise ratio, weights aside; None if all are exact."""
        return _worst([(wire, wire.accumulated) for wire in self.wires if not wire.is_constant])

    @property
    def worst_isolated(self) -> WireDifference | None:
        """The wire with the least isolated ratio: whose node adds most; None if all are exact."""
        return _worst([(wire, wire.isolated) for wire in self.wires if wire.isolated is not None])


def compare(
    first: Graph,
    second: Graph,
    inputs: Mapping[str, Any],
    *,
    backend: Literal["onnxruntime", "numpy"] = "onnxruntime",
    threads: int | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Comparison:
    """Runs both graphs on `inputs`, arrays by the first one's names, and compares what their nodes give.

    An input that only the second graph has is in `inputs` under its own name. `memory` is about how many bytes of
    values are held at once: the graphs run as often as that takes. `progress(done, total, node)` is called as that goes
    on; after `cancel` is set it ends with Cancelled.

    GraphError if one of the graphs cannot be run on these inputs; findings of the result say what has no counterpart,
    another shape, or could not be run alone.
    """
    return _Comparer(first, second, backend, threads, memory, progress, cancel).compare(inputs)


def _worst(wires: Sequence[tuple[WireDifference, Difference | None]]) -> WireDifference | None:
    inexact = [(wire, found) for wire, found in wires if found is not None and not found.is_exact]
    return min(inexact, key=lambda pair: (-pair[1].spoiled, pair[1].snr))[0] if inexact else None


@dataclass(frozen=True, slots=True)
class _Item:
    """What is compared together: a node of the second graph, its wires after the first one's, the first one's mixture.

    `mixture` is empty for a node that is none.
    """

    node: str
    mixture: str
    wires: tuple[tuple[PortRef, PortRef], ...]
    alone: Segment | None
    bytes: int


class _Side:
    """One of the two graphs, ready to run."""

    def __init__(self, word: str, graph: Graph, backend: Any, threads: int | None) -> None:
        self.word, self.graph = word, graph
        with self.named():
            self.session = Session(graph, backend, threads=threads)
        self.names = input_names(graph) | {
            id: str(state.parameters.get("name") or id) for id, state in graph.nodes.items() if is_overridable(state)
        }
        self.feeds: dict[str, Any] = {}

    def named(self) -> _Named:
        return _Named(self.word)

    def values(self, ports: Iterable[PortRef], **options: Any) -> dict[PortRef, Any]:
        """The values of ports in one run of the whole graph."""
        wanted = list(dict.fromkeys(ports))
        values = {port: value for port in wanted if (value := self.known(port)) is not None}
        probes = [port for port in wanted if port not in values]
        if probes:
            with self.named():
                self.session.forward(self.feeds, probes, **options)
            values |= {port: self.session.last_run.probes[str(port)] for port in probes}
            self.session.last_run.probes.clear()
        return values

    def known(self, port: PortRef) -> Any:
        """A value that no run is needed for: an input's, or a tensor."""
        if port.node in self.names and self.names[port.node] in self.feeds:
            return self.feeds[self.names[port.node]]
        tensor = self.graph.nodes[port.node].parameters.get("tensor")
        is_initializer = self.graph.nodes[port.node].type == Initializer.type_name()
        return tensor.array() if is_initializer and isinstance(tensor, Tensor) else None


class _Named:
    """Says in errors which of the two graphs they are about."""

    def __init__(self, word: str) -> None:
        self._word = word

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, GraphError):
            raise GraphError(
                replace(finding, message=f"(in the {self._word} graph) {finding.message}") for finding in error.findings
            ) from error


class _Comparer:
    def __init__(
        self,
        first: Graph,
        second: Graph,
        backend: Any,
        threads: int | None,
        memory: int,
        progress: Progress | None,
        cancel: threading.Event | None,
    ) -> None:
        self._settings = (backend, threads)
        self._memory, self._progress, self._cancel = memory, progress, cancel
        self._first = _Side("first", first, backend, threads)
        self._second = _Side("second", second, backend, threads)
        self._matching = match(first, second)
        self._findings: list[Finding] = list(_unmatched(self._matching, first, second))
        self._depends = computed_from_inputs(second)
        self._wires = match_wires(first, second, self._matching)
        self._pairs = self._wires.pairs
        self._done, self._total = 0, 1

    def compare(self, inputs: Mapping[str, Any]) -> Comparison:
        self._feed(inputs)
        self._settle(self._wires.rivals)
        items = list(self._items())
        if not items:
            remedy = "Nodes are found by their names, or by types and wires."
            raise GraphError(Finding("The two graphs have no node in common.", remedy=remedy, code="match"))
        self._total = sum(len(item.wires) or 1 for item in items)
        wires: list[WireDifference] = []
        mixtures: list[MixtureDifference] = []
        for batch in self._batches(items):
            found, compared = self._batch(batch)
            wires += found
            mixtures += compared
        self._tell("")
        return Comparison(tuple(wires), tuple(mixtures), self._matching, tuple(self._findings))

    # -- what is compared -----------------------------------------------------------------------------------------

    def _feed(self, inputs: Mapping[str, Any]) -> None:
        """Sorts values to the inputs of both graphs."""
        first, second = self._first, self._second
        first.feeds = {name: value for name, value in inputs.items() if name in first.session.inputs}
        back = {its: mine for mine, its in self._matching.nodes.items()}
        for id, name in second.names.items():
            own = back.get(id)
            source = first.names.get(own) if own is not None else None
            if source is not None and source in first.feeds:
                second.feeds[name] = _fitted(first.feeds[source], second.session.inputs.get(name))
            elif name in inputs:
                second.feeds[name] = inputs[name]
            elif source in first.session.inputs and source not in first.session.optional:
                raise GraphError.at(str(own), "value", f"The input {source} has no value.", code="missing-input")
            elif name not in second.session.optional:
                known = ", ".join(first.session.inputs) or "none"
                text = f"The second graph has the input {name}, and the first has not; its inputs: {known}."
                raise GraphError.at(id, "value", text, "Give its value too.", "missing-input")
        surplus = [name for name in inputs if name not in first.session.inputs and name not in second.session.inputs]
        if surplus:
            raise GraphError.at(surplus[0], "", "Neither graph has an input of this name.", code="surplus-input")

    def _settle(self, rivals: Sequence[Rival]) -> None:
        """Of two wires of the second graph that may stand for one of the first, takes that whose values are nearer."""
        if not rivals:
            return
        first = self._first.values((rival.first for rival in rivals), cancel=self._cancel)
        both = (port for rival in rivals for port in (rival.usual, rival.other))
        second = self._second.values(both, cancel=self._cancel)
        for rival in rivals:
            value, usual, other = first[rival.first], second[rival.usual], second[rival.other]
            if not (_is_numeric(value) and _is_numeric(other)) or value.shape != other.shape:
                continue
            is_usual = _is_numeric(usual) and usual.shape == value.shape
            if not is_usual or difference(value, other).snr > difference(value, usual).snr:
                self._pairs.pop(rival.usual, None)
                self._pairs[rival.other] = rival.first

    def _items(self) -> Iterator[_Item]:
        """What has a counterpart, in the second graph's order."""
        second = self._second.graph
        back = {its: mine for mine, its in self._matching.nodes.items()}
        wires: dict[str, list[tuple[PortRef, PortRef]]] = {}
        for its, mine in self._pairs.items():
            wires.setdefault(its.node, []).append((mine, its))
        sizes = _Sizes(self._first), _Sizes(self._second)
        captured = read_through_captures(second)
        for id in second.order():
            own = back.get(id, "")
            mixture = own if own and is_mixture(second, id) else ""
            pairs = wires.get(id, [])
            if id in self._second.names or not (pairs or mixture):
                continue
            alone = segment(second, id, self._is_given, captured) if id in self._depends else None
            bytes = sum(sizes[0].of(mine) + 2 * sizes[1].of(its) for mine, its in pairs)
            if alone is not None:
                bytes += sum(sizes[1].of(source) for source in alone.sources)
            yield _Item(id, mixture, tuple(pairs), alone, bytes)

    def _is_given(self, source: PortRef) -> bool:
        """Whether a value of the second graph is replaced by the first one's when a node runs alone."""
        if source.node not in self._depends:
            return False
        return source in self._pairs or source.node in self._second.names

    def _batches(self, items: Sequence[_Item]) -> Iterator[list[_Item]]:
        batch: list[_Item] = []
        for item in items:
            if batch and sum(one.bytes for one in batch) + item.bytes > self._memory:
                yield batch
                batch = []
            batch.append(item)
        yield batch

    # -- runs -------------------------------------------------------------------------------------------------------

    def _batch(self, batch: Sequence[_Item]) -> tuple[list[WireDifference], list[MixtureDifference]]:
        cancel = self._cancel
        mixtures = [item for item in batch if item.mixture]
        self._tell(batch[0].node)
        first = self._first.values(self._of_first(batch, mixtures), cancel=cancel)
        second = self._second.values(
            (
                *(its for item in batch for _, its in item.wires),
                *(port for item in mixtures for port in given_to(self._second.graph, item.node)),
            ),
            cancel=cancel,
        )
        alone = self._alone([item for item in batch if item.alone is not None], mixtures, first)
        names = dict(self._output_names())
        wires: list[WireDifference] = []
        for item in batch:
            for mine, its in item.wires:
                self._tell(item.node, 1)
                a, b = first[mine], second[its]
                found = self._difference(mine, its, a, b)
                if found is None:
                    continue
                own = alone.get(its)
                isolated = None if own is None or own.shape != a.shape else difference(a, own)
                element = str(ElementType.of(b.dtype))
                is_constant = its.node not in self._depends
                name = names.get(mine, "")
                wires.append(WireDifference(mine, its, b.shape, element, found, isolated, is_constant, name))
        compared = []
        for item in mixtures:
            one = self._mixture(item, first, second, alone)
            compared += [one] if one is not None else []
        return wires, compared

    def _of_first(self, batch: Sequence[_Item], mixtures: Sequence[_Item]) -> Iterator[PortRef]:
        for item in batch:
            yield from (mine for mine, _ in item.wires)
            if item.alone is not None:
                yield from (self._pairs[source] for source in item.alone.sources if source in self._pairs)
        for item in mixtures:
            yield from given_to(self._first.graph, item.mixture)

    def _output_names(self) -> Iterator[tuple[PortRef, str]]:
        for id, state in self._first.graph.nodes.items():
            source = self._first.graph.wires.get(PortRef(id, "value"))
            if state.type == Output.type_name() and source is not None:
                yield source, str(state.parameters.get("name") or id)

    def _difference(self, mine: PortRef, its: PortRef, a: Any, b: Any) -> Difference | None:
        """None, and a finding, where the two cannot be compared."""
        if not _is_numeric(a) or not _is_numeric(b):
            return None  # texts, sequences and absent values
        if a.shape != b.shape:
            text = f"it has the shape {list(b.shape)} here and {list(a.shape)} in the first graph ({mine})."
            self._note(text, its, code="shape")
            return None
        return difference(a, b)

    def _note(self, text: str, port: PortRef, code: str) -> None:
        self._findings.append(Finding(text, port.node, port.port, Severity.WARNING, code=code))

    # -- nodes alone --------------------------------------------------------------------------------------------------

    def _alone(
        self, items: Sequence[_Item], mixtures: Sequence[_Item], first: Mapping[PortRef, Any]
    ) -> dict[PortRef, np.ndarray]:
        """What the second graph's nodes give for the first one's values; also what mixtures are given then."""
        if not items:
            return {}
        wanted = {item.node: [its for _, its in item.wires] for item in items}
        for item in mixtures:
            if item.node in wanted:
                wanted[item.node] += [source for source in self._computed_for(item.node) if not self._is_given(source)]
        try:
            return self._run_alone(items, wanted, first)
        except Cancelled:
            raise
        except GraphError as error:
            if len(items) == 1:
                reason = "; ".join(str(finding) for finding in error.findings)
                self._note(f"it cannot be run alone: {reason}", PortRef(items[0].node, ""), "isolated")
                return {}
        found: dict[PortRef, np.ndarray] = {}
        for item in items:
            found |= self._alone([item], [one for one in mixtures if one is item], first)
        return found

    def _run_alone(
        self, items: Sequence[_Item], wanted: Mapping[str, Sequence[PortRef]], first: Mapping[PortRef, Any]
    ) -> dict[PortRef, np.ndarray]:
        segments = [item.alone for item in items if item.alone is not None]
        values = {}
        for source in dict.fromkeys(source for part in segments for source in part.sources):
            value = self._given(source, first)
            if not isinstance(value, np.ndarray):
                raise GraphError.at(source.node, source.port, "its value is no tensor.")
            values[source] = value
        ports = [port for item in items for port in wanted[item.node]]
        if not ports:
            return {}
        part = isolate(self._second.graph, segments, values, ports)
        backend, threads = self._settings
        results = Session(part.graph, backend, threads=threads).forward(part.inputs, cancel=self._cancel)
        return {port: results[name] for port, name in part.outputs.items() if isinstance(results[name], np.ndarray)}

    def _given(self, source: PortRef, first: Mapping[PortRef, Any]) -> Any:
        """The first graph's value for a wire of the second, in the second one's type."""
        if source in self._pairs:
            return _fitted(first[self._pairs[source]], self._second.graph.checker.type_of(source))
        return self._second.known(source)

    # -- mixtures -----------------------------------------------------------------------------------------------------

    def _computed_for(self, node: str) -> list[PortRef]:
        """What a mixture is given that depends on the inputs."""
        return [source for source in given_to(self._second.graph, node) if source.node in self._depends]

    def _mixture(
        self,
        item: _Item,
        first: Mapping[PortRef, Any],
        second: Mapping[PortRef, Any],
        alone: Mapping[PortRef, Any],
    ) -> MixtureDifference | None:
        def given(side: _Side, node: str, value: Callable[[PortRef], Any]) -> Given:
            graph = side.graph
            node_type: Any = graph.node_type(node)
            arrays = {port: value(PortRef(*source)) for port, source in graph.inputs_of(node).items()}
            return arrays, node_type.to_attributes(graph.nodes[node].parameters)

        def of(side: _Side, values: Mapping[PortRef, Any]) -> Callable[[PortRef], Any]:
            return lambda port: values[port] if port in values else side.known(port)

        def isolated(port: PortRef) -> Any:
            if port.node not in self._depends:
                return of(self._second, second)(port)
            return self._given(port, first) if self._is_given(port) else alone.get(port)

        types = (self._second.graph.node_type(item.node), self._first.graph.node_type(item.mixture))
        hook = next((t for t in types if hasattr(t, EXPERTS_HOOK)), None) or catalog.with_function(EXPERTS_HOOK)
        if hook is None:
            return None
        sides = (
            given(self._first, item.mixture, of(self._first, first)),
            given(self._second, item.node, isolated),
            given(self._second, item.node, of(self._second, second)),
        )
        if any(value is None for value in sides[1][0].values()):
            return None  # a finding has said why it cannot be run alone
        try:
            found: ExpertComparison = getattr(hook, EXPERTS_HOOK)(*sides)
        except GraphError as error:
            self._findings += [
                replace(finding, node=item.node, severity=Severity.WARNING) for finding in error.findings
            ]
            return None
        source = self._second.graph.inputs_of(item.node).get("input")
        if source is not None and not self._is_given(source):
            text = f"its input comes from {source}, which the first graph has not: weights are compared as they are."
            self._note(text, PortRef(item.node, "input"), "rescaled")
        experts = []
        for expert in found.experts:
            experts.append(expert)
            self._tell(f"{item.node}: expert {expert.expert}")
        return mixture_difference(item.mixture, item.node, found, tuple(experts))

    def _tell(self, node: str, done: int = 0) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("The comparison was cancelled.")
        self._done += done
        if self._progress is not None:
            self._progress(self._total if not node else self._done, self._total, node)


class _Sizes:
    """How many bytes the values of a graph take, as far as the shapes of its inputs tell."""

    def __init__(self, side: _Side) -> None:
        graph = side.graph.copy()
        for id, name in side.names.items():
            value = side.feeds.get(name)
            if isinstance(value, np.ndarray) and graph.nodes[id].type == Input.type_name():
                graph.set(id, "shape", list(value.shape))
        self._checker = Checker(graph)

    def of(self, port: PortRef) -> int:
        kind = self._checker.type_of(port)
        if not isinstance(kind, TensorType) or kind.element is None or kind.shape is None:
            return UNKNOWN
        if not all(isinstance(size, int) for size in kind.shape):
            return UNKNOWN
        width = 1 if kind.element is ElementType.STRING else kind.element.dtype.itemsize
        return width * math.prod(size for size in kind.shape if isinstance(size, int))


def _fitted(value: Any, wanted: Any) -> Any:
    """A value of the first graph in the element type that the second one has there, where both are numbers."""
    if not isinstance(value, np.ndarray) or not isinstance(wanted, TensorType) or wanted.element is None:
        return value
    if wanted.element is ElementType.STRING or ElementType.of(value.dtype) is ElementType.STRING:
        return value
    return value if ElementType.of(value.dtype) is wanted.element else value.astype(wanted.element.dtype)


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind not in "OUST"


def _unmatched(matching: Matching, first: Graph, second: Graph) -> Iterator[Finding]:
    for graph, ids, word in ((first, matching.only_first, "second"), (second, matching.only_second, "first")):
        if ids:
            told = ", ".join(f"{id} ({graph.nodes[id].type})" for id in ids[:TOLD])
            more = f" and {len(ids) - TOLD} more" if len(ids) > TOLD else ""
            count = f"{len(ids)} nodes have" if len(ids) > 1 else "1 node has"
            text = f"{count} no counterpart in the {word} graph: {told}{more}."
            yield Finding(text, severity=Severity.NOTE, code="unmatched")
