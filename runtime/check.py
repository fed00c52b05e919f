"""What is wrong with a graph, in sentences that name a node and a port; kept up to date while it is edited.

A `Checker` follows one graph: an edit makes the nodes that it touches stale, and those after them only as far as types
change. Only what is certain is an error: an unknown type or shape is never held against a graph.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from runtime import catalog
from runtime.attributes import Typed
from runtime.captures import MAXIMUM_DEPTH, bodies_of, captured_names
from runtime.errors import Finding, Severity
from runtime.function_checks import function_key, wrong_functions
from runtime.graph import Add, Cut, Edit, Graph, NodeState, PortRef, Remove, Set, Wire
from runtime.node import In, Node, NodeContext
from runtime.node_checks import (
    absent_tensors,
    choices,
    disagreements_of_output,
    duplicate_names,
    finding_at,
    missing_inputs,
    shown,
    type_variables,
    wrong_parameters,
)
from runtime.nodes.terminals import Capture, Initializer, Input, Output
from runtime.ports import UNKNOWN_OUTPUT, inputs_in_use, outputs_in_use, value_names
from runtime.tensors import Tensor
from runtime.types import TensorType, ValueType, kind_of

if TYPE_CHECKING:
    from runtime.inference import Value

REMEMBERED = 20_000
"""How many results are kept for nodes of the same kind."""
MANY = 1000
"""Nodes to be looked at from which on garbage is collected afterwards."""
_UNKNOWN = TensorType()


def check(graph: Graph) -> list[Finding]:
    """Everything that is wrong with a graph, or worth knowing, in the document's order."""
    return Checker(graph).findings()


@dataclass(slots=True)
class _Result:
    """What is known of one node. Types and values are by output port; `has_own_names` says that they name the node."""

    types: dict[str, ValueType] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    has_own_names: bool = False


@dataclass(frozen=True, slots=True)
class _Kind:
    """All that counts of an operator node but its inputs' types and values, as a number, and where those come from.

    Equal numbers, types and values give equal results.
    """

    number: int
    sources: tuple[PortRef, ...]


@dataclass(slots=True)
class _Surroundings:
    """What a subgraph is told by the graph around it."""

    captures: Mapping[str, ValueType]
    inputs: Sequence[ValueType | None]
    functions: Mapping[str, Graph]
    opsets: Mapping[str, int]
    depth: int


@dataclass(slots=True)
class _Body:
    """What was found in a subgraph, and for what."""

    body: Graph
    around: _Surroundings
    findings: list[Finding]
    results: list[ValueType]


class Checker:
    """Findings and types of a graph, following its edits."""

    def __init__(self, graph: Graph, surroundings: _Surroundings | None = None) -> None:
        self._graph = graph
        self._surroundings = surroundings
        self._results: dict[str, _Result] = {}
        self._stale: set[str] = set(graph.nodes)
        self._examined: set[str] = set()
        self._nesting: set[str] = set()
        self._bodies: dict[tuple[str, str], _Body] = {}  # by node and parameter
        self._wires = dict(graph.wires)
        self._findings: list[Finding] | None = None
        self._kinds: dict[str, _Kind] = {}  # of faultless nodes that were examined since they changed themselves
        self._numbers: dict[Hashable, int] = {}
        self._seen: dict[tuple[int, tuple[ValueType, ...], tuple[Value | None, ...]], _Result] = {}
        graph.listen(self._hear)

    def findings(self) -> list[Finding]:
        """Everything that is wrong, or worth knowing, in the document's order."""
        self._refresh()
        if self._findings is None:
            own = [finding for id in self._graph.nodes for finding in self._results[id].findings]
            self._findings = own + list(self._of_the_whole())
        return list(self._findings)

    def take_examined(self) -> set[str]:
        """The nodes that were looked at since this was last asked: all of whom anything may be known that was not."""
        self._refresh()
        examined, self._examined = self._examined, set()
        return examined

    def type_of(self, source: PortRef | str) -> ValueType:
        """What is known of the type of an output; `UNKNOWN` if nothing is."""
        self._refresh()
        source = PortRef.parse(source)
        result = self._results.get(source.node)
        return result.types.get(source.port, TensorType()) if result else TensorType()

    def value_of(self, source: PortRef | str) -> Value | None:
        """The numbers of an output, if they are few and known before the graph runs."""
        self._refresh()
        source = PortRef.parse(source)
        result = self._results.get(source.node)
        return result.values.get(source.port) if result else None

    def why_not(self, source: PortRef, target: PortRef) -> str | None:
        """Why the types at the ends of a wire do not agree, in one sentence; None if they may."""
        given = self.type_of(source)
        node_type = self._graph.node_type(target.node)
        port = node_type.input_port(target.port) if node_type else None
        if node_type is None or port is None:
            return None
        kind = kind_of(given)
        if "?" not in kind:
            allowed = node_type.type_constraints.get(port.type, (port.type,) if "(" in port.type else None)
            if allowed is not None and kind not in allowed:
                return f"{source} is {kind}, and {target} takes {choices(allowed)}."
            other = self._disagreement(target, node_type, port, kind)
            if other:
                came = kind_of(self.type_of_known(self._graph.wires[other]))
                return f"{source} is {kind}, but {other} has {came} already, and both must have one type, {port.type}."
        reason = self._contradiction(source, target)
        return f"{source} is {shown(given)}, and does not fit {target}: {reason}" if reason else None

    def _disagreement(self, target: PortRef, node_type: type[Node], port: In, kind: str) -> PortRef | None:
        """Another input of a node that stands for the same type variable and has another type."""
        if not port.homogeneous or port.type not in node_type.type_constraints:
            return None
        for other, origin in self._graph.inputs_of(target.node).items():
            declared = node_type.input_port(other)
            if other != target.port and declared is not None and declared.type == port.type:
                came = kind_of(self.type_of_known(origin))
                if "?" not in came and came != kind:
                    return PortRef(target.node, other)
        return None

    def _contradiction(self, source: PortRef, target: PortRef) -> str:
        """What a wire would newly make wrong about types and shapes at the node where it ends, or an empty string."""
        sources = self._graph.inputs_of(target.node)
        before = {finding.message for finding in self._results[target.node].findings}
        after = self._examine(target.node, sources | {target.port: source}).findings
        for finding in after:
            if (
                finding.severity is Severity.ERROR
                and finding.code in ("type", "shape")
                and finding.message not in before
            ):
                return finding.message
        return ""

    # -- keeping up -----------------------------------------------------------------------------------------------

    def _hear(self, edit: Edit) -> None:
        changed: Collection[str] = ()
        match edit:
            case Add(node):
                changed = (node.id,)
            case Remove(id):
                self._stale.discard(id)
                self._nesting.discard(id)
                self._results.pop(id, None)
                self._kinds.pop(id, None)
            case Wire(source, target, _):
                self._wires[target] = source
                changed = (source.node, target.node)
            case Cut(target):
                changed = (self._wires.pop(target).node, target.node)
            case Set(node, section, _, _, _):
                if section in ("layout", "extra"):
                    return
                changed = (node,) if node else self._graph.nodes.keys()
        self._stale.update(changed)
        for id in changed:
            self._kinds.pop(id, None)
        self._stale |= self._nesting  # a subgraph may read any value around it
        self._findings = None

    def _refresh(self) -> None:
        if len(self._stale) < MANY or not gc.isenabled():
            if self._stale:
                self._sweep()
            return
        # Python's collection of garbage would look again and again through what a large check keeps.
        gc.disable()
        try:
            self._sweep()
        finally:
            gc.enable()

    def _sweep(self) -> None:
        graph, stale = self._graph, self._stale
        order: Sequence[str] = self._order() if len(stale) > 1 else list(stale)
        while stale:
            grown = False
            for id in order:
                if id not in stale:
                    continue
                stale.discard(id)
                self._examined.add(id)
                before = self._results.get(id)
                after = self._results[id] = self._examine(id)
                if before is None or before.types != after.types or before.values != after.values:
                    for source, target in graph.wires_of(id):
                        if source.node == id and target.node not in stale:
                            grown = True
                            stale.add(target.node)
                if not stale:
                    return
            if grown or stale:
                order = self._order()

    def _order(self) -> Sequence[str]:
        """All ids, each after those that feed it as far as that can be."""
        order = self._graph.order()
        if len(order) == len(self._graph.nodes):
            return order
        return [*order, *(id for id in self._graph.nodes if id not in set(order))]

    # -- one node -------------------------------------------------------------------------------------------------

    def _examine(self, id: str, sources: Mapping[str, PortRef] | None = None) -> _Result:
        """What is known of a node; with other sources than its own, what would be."""
        kind = self._kinds.get(id) if sources is None else None
        if kind is not None:
            known = self._seen.get((kind.number, *self._arriving(kind.sources)))
            if known is not None:
                return known
        state = self._graph.nodes[id]
        node_type = self._graph.node_type(id)
        is_supposed = sources is not None
        sources = self._graph.inputs_of(id) if sources is None else sources
        if node_type is None:
            return self._examine_unknown(state, sources)
        inputs = {port: self.type_of_known(source) for port, source in sources.items()}
        parameters = {name: value for name, value in state.parameters.items() if value is not None}
        absent = list(absent_tensors(state, parameters))
        findings: list[Finding] = [*missing_inputs(state, node_type, sources), *absent]
        variables, disagreements = type_variables(state, node_type, inputs)
        findings += disagreements
        attributes = node_type.to_attributes(parameters) if node_type.is_operator else parameters
        used = outputs_in_use(self._graph, state, node_type)
        result = _Result()
        is_open = any(isinstance(value, Typed) and value.kind == "ref" for value in attributes.values())
        # A function's attributes: who calls it says what they are. An absent tensor: its numbers are not known.
        if (is_open or absent) and node_type.is_operator:
            pass
        elif node_type.infer.__func__ is not Node.infer.__func__:  # type: ignore[attr-defined]
            values = {
                port: value.array()
                for port, source in sources.items()
                if isinstance(value := self._value_of_known(source), Tensor)
            }
            try:
                context = NodeContext(id, inputs, attributes, values, used, self._graph.opsets)
                inferred = node_type.infer(context)
            except ValueError as error:
                findings.append(finding_at(id, "type", f"{error}.", code="parameter"))
            else:
                result.types = dict(inferred.outputs)
                blamed = {(finding.port, finding.code) for finding in inferred.findings}
                findings = [f for f in findings if (f.port, f.code) not in blamed] + list(inferred.findings)
            result.types |= self._refined(id, node_type, result.types)
            if node_type is Initializer:
                tensor = parameters.get("tensor")
                is_there = not absent and not parameters.get("overridable")
                if isinstance(tensor, Tensor) and tensor.size <= 64 and is_there:
                    result.values["value"] = tensor
        else:
            nested = any(isinstance(value, Graph) for value in parameters.values())
            if nested:
                self._nesting.add(id)
                findings += self._examine_subgraphs(state, node_type, parameters, sources, result)
            elif node_type is not Output and not any(f.severity is Severity.ERROR for f in findings):
                findings += self._infer(state, node_type, attributes, sources, used, result)
        blamed_ports = {finding.port for finding in findings}
        findings += [f for f in wrong_parameters(state, node_type, parameters) if f.port not in blamed_ports]
        for port in node_type.outputs:
            stands_for = variables.get(port.type)
            if port.name not in result.types and stands_for is not None:
                if isinstance(stands_for, TensorType):
                    stands_for = TensorType(stands_for.element)
                result.types[port.name] = stands_for
        if node_type is Output:
            findings += disagreements_of_output(state, inputs)
        if node_type.is_operator and not node_type.cpu_kernel and node_type.evaluate is None:
            findings.append(
                finding_at(
                    id,
                    "",
                    f"ONNX Runtime has no CPU kernel for {node_type.type_name()} at this operator set version.",
                    severity=Severity.WARNING,
                    code="no-cpu-kernel",
                )
            )
        result.findings = tuple(findings)
        is_plain = node_type.is_operator and node_type.infer.__func__ is Node.infer.__func__  # type: ignore[attr-defined]
        if is_plain and not (findings or result.has_own_names or id in self._nesting or is_supposed):
            self._remember(id, node_type, attributes, sources, used, result)
        return result

    def _arriving(self, sources: Sequence[PortRef]) -> tuple[tuple[ValueType, ...], tuple[Value | None, ...]]:
        """Types and values of a node's connected inputs."""
        types, values = [], []
        for source in sources:
            result = self._results.get(source.node)
            types.append(result.types.get(source.port, _UNKNOWN) if result else _UNKNOWN)
            values.append(result.values.get(source.port) if result else None)
        return tuple(types), tuple(values)

    def _remember(
        self,
        id: str,
        node_type: type[Node],
        attributes: Mapping[str, Any],
        sources: Mapping[str, PortRef],
        used: tuple[str, ...],
        result: _Result,
    ) -> None:
        """Keeps a result that has nothing of its node's own in it, for this node and others of its kind."""
        from runtime.inference import frozen

        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        signature = (node_type, self._graph.opsets.get(node_type.domain), frozen(attributes), tuple(sources), used)
        kind = _Kind(self._numbers.setdefault(signature, len(self._numbers)), tuple(sources.values()))
        self._kinds[id] = kind
        self._seen[kind.number, *self._arriving(kind.sources)] = result

    def type_of_known(self, source: PortRef) -> ValueType:
        """The type that the last examination of a node found: for use while others are stale."""
        result = self._results.get(source.node)
        return result.types.get(source.port, TensorType()) if result else TensorType()

    def _value_of_known(self, source: PortRef) -> Value | None:
        result = self._results.get(source.node)
        return result.values.get(source.port) if result else None

    def _refined(self, id: str, node_type: type[Node], types: Mapping[str, ValueType]) -> dict[str, ValueType]:
        """Types of terminals, with what the surroundings know, and a name for every unknown dimension."""
        refined = dict(types)
        around = self._surroundings
        if around is not None and node_type is Input:
            position = [key for key, node in self._graph.nodes.items() if node.type == "Input"].index(id)
            given = around.inputs[position] if position < len(around.inputs) else None
            if given is not None:
                refined["value"] = _merged(refined["value"], given)
        if around is not None and node_type is Capture:
            name = str(self._graph.nodes[id].parameters.get("name", ""))
            if name in around.captures:
                refined["value"] = _merged(refined["value"], around.captures[name])
        for port, type_ in refined.items():
            if isinstance(type_, TensorType) and type_.shape and None in type_.shape:
                shape = tuple(f"_{id}_{axis}" if size is None else size for axis, size in enumerate(type_.shape))
                refined[port] = TensorType(type_.element, shape, type_.sparse)
        return refined

    def _infer(
        self,
        state: NodeState,
        node_type: type[Node],
        attributes: Mapping[str, Any],
        sources: Mapping[str, PortRef],
        used: tuple[str, ...],
        result: _Result,
    ) -> list[Finding]:
        from runtime.inference import infer

        ports = list(inputs_in_use(node_type, sources))
        types = tuple(self.type_of_known(sources[port]) if port in sources else None for port in ports)
        values = tuple(self._value_of_known(sources[port]) if port in sources else None for port in ports)
        opset = self._graph.opsets.get(node_type.domain) or catalog.newest_opset(node_type.domain)
        if any(isinstance(value, Typed) for value in attributes.values()):
            return []
        known = infer(node_type, attributes, types, values, len(used), opset, state.id)
        result.has_own_names = known.has_own_names
        if known.contradiction:
            came = ", ".join(f"{port} {shown(type_)}" for port, type_ in zip(ports, types, strict=True) if type_)
            return [finding_at(state.id, "", f"{known.contradiction} It gets {came}.", code="shape")]
        for port, type_, value in zip(used, known.types, known.values, strict=False):
            if type_ is not None:
                result.types[port] = type_
            if value is not None:
                result.values[port] = value
        return []

    def _examine_unknown(self, state: NodeState, sources: Mapping[str, PortRef]) -> _Result:
        if isinstance(self._functions.get(function_key(state)), Graph):
            return _Result(self._types_of_call(state, sources))
        domain = state.type.rpartition(".")[0]
        version = catalog.first_version(state.type)
        if version is not None:
            message = (
                f"{state.type} came with version {version} of the operator set {domain or 'ai.onnx'!r}; "
                f"this graph has version {self._graph.opsets.get(domain)}."
            )
            remedy = "Raise the graph's operator set version."
        else:
            message = f"No node type is called {state.type}; it is kept as it is, but cannot run."
            close = _similar_type(state.type)
            remedy = f"Did you mean {close}?" if close else "Install the plug-in that declares it."
        return _Result(findings=(finding_at(state.id, "", message, remedy, code="unknown-type"),))

    # -- functions and subgraphs ----------------------------------------------------------------------------------

    @property
    def _functions(self) -> Mapping[str, Graph]:
        return self._surroundings.functions if self._surroundings else self._graph.section("functions")

    @property
    def _depth(self) -> int:
        return self._surroundings.depth if self._surroundings else 0

    def _types_of_call(self, state: NodeState, sources: Mapping[str, PortRef]) -> dict[str, ValueType]:
        """Types of the outputs of a call of a function; functions inside it are not followed."""
        key = function_key(state)
        body = self._functions[key]
        ports = inputs_in_use(None, sources)
        given = tuple(self.type_of_known(sources[port]) if port in sources else None for port in ports)
        checked = self._bodies.get((key, str(given)))
        if checked is None or checked.body is not body:
            around = _Surroundings({}, given, {}, self._graph.opsets, self._depth + 1)
            checked = self._checked(body, around, is_function=True)
            self._bodies[key, str(given)] = checked
        from runtime.inference import names_in, of_call

        types = of_call(checked.results, state.id, names_in(given))
        return {f"{UNKNOWN_OUTPUT}.{index}": type_ for index, type_ in enumerate(types)}

    def _checked(self, body: Graph, around: _Surroundings, *, is_function: bool) -> _Body:
        twin = body.copy()
        for domain, version in around.opsets.items():
            if not is_function or domain not in twin.opsets:  # a function may have versions of its own
                twin.set("", domain, version, section="opsets")
        inner = Checker(twin, around)
        return _Body(body, around, inner.findings(), [inner._results_of_output(id) for id in inner.output_ids()])

    def _of_functions(self) -> Iterator[Finding]:
        """Findings in the bodies of the graph's functions, whatever they are called with."""
        functions = {key: body for key, body in self._functions.items() if isinstance(body, Graph)}
        if not functions:
            return
        yield from wrong_functions(self._graph, functions)
        around = _Surroundings({}, (), functions, dict(self._graph.opsets), 1)
        for key, body in functions.items():
            checked = self._bodies.get(("", key))
            if checked is None or checked.body is not body or checked.around != around:
                checked = self._bodies["", key] = self._checked(body, around, is_function=True)
            for finding in checked.findings:
                yield replace(finding, node=f"{key}/{finding.node}")

    def output_ids(self) -> list[str]:
        """Ids of the Output nodes, in the order of the graph's outputs."""
        return [id for id, node in self._graph.nodes.items() if node.type == "Output"]

    def _results_of_output(self, id: str) -> ValueType:
        self._refresh()
        source = self._graph.inputs_of(id).get("value")
        return TensorType() if source is None else self.type_of_known(source)

    def _examine_subgraphs(
        self,
        state: NodeState,
        node_type: type[Node],
        parameters: Mapping[str, Any],
        sources: Mapping[str, PortRef],
        result: _Result,
    ) -> list[Finding]:
        if self._depth >= MAXIMUM_DEPTH:
            return [finding_at(state.id, "", f"Subgraphs are nested more than {MAXIMUM_DEPTH} deep.", code="depth")]
        outer = dict(self._surroundings.captures) if self._surroundings else {}
        outer |= {name: self.type_of_known(source) for name, source in value_names(self._graph)}
        read: set[str] = set().union(*(captured_names(body) for body in bodies_of(state)))
        outer = {name: type_ for name, type_ in outer.items() if name in read}
        findings: list[Finding] = []
        outcomes: list[list[ValueType]] = []
        given = self._inputs_of_body(state, node_type, sources)
        around = _Surroundings(outer, given, dict(self._functions), dict(self._graph.opsets), self._depth + 1)
        for name, body in parameters.items():
            if not isinstance(body, Graph):
                continue
            checked = self._bodies.get((state.id, name))
            if checked is None or checked.body is not body or checked.around != around:
                checked = self._bodies[state.id, name] = self._checked(body, around, is_function=False)
            for finding in checked.findings:
                path = f"{state.id}/{name}/{finding.node}" if finding.node else f"{state.id}/{name}"
                findings.append(replace(finding, node=path))
            outcomes.append(checked.results)
        ports = outputs_in_use(self._graph, state, node_type)
        if node_type.domain == "" and node_type.operator == "If" and len(outcomes) == 2:
            for port, first, second in zip(ports, *outcomes, strict=False):
                result.types[port] = _common(first, second)
        elif node_type.domain == "" and node_type.operator in ("Loop", "Scan") and len(outcomes) == 1:
            states = len(given) - 2 if node_type.operator == "Loop" else _scan_states(state, sources)
            produced = outcomes[0][1:] if node_type.operator == "Loop" else outcomes[0]
            for index, (port, type_) in enumerate(zip(ports, produced, strict=False)):
                element = type_.element if isinstance(type_, TensorType) else None
                if index >= states:
                    result.types[port] = TensorType(element)
                elif isinstance(type_, TensorType):
                    before = given[index + 2] if node_type.operator == "Loop" else None
                    result.types[port] = _common(type_, before) if before else TensorType(element)
                else:
                    result.types[port] = type_
        return findings

    def _inputs_of_body(
        self, state: NodeState, node_type: type[Node], sources: Mapping[str, PortRef]
    ) -> list[ValueType | None]:
        """Types of the inputs of a Loop's body, element types only: shapes may change from one turn to the next."""
        if (node_type.domain, node_type.operator) != ("", "Loop"):
            return []
        given: list[ValueType | None] = [None, None]
        for port in islice(inputs_in_use(node_type, sources), 2, None):
            type_ = self.type_of_known(sources[port]) if port in sources else None
            given.append(TensorType(type_.element) if isinstance(type_, TensorType) else type_)
        return given

    # -- the graph as a whole -------------------------------------------------------------------------------------

    def _of_the_whole(self) -> Iterator[Finding]:
        graph = self._graph
        yield from duplicate_names(graph)
        stuck = set(graph.nodes) - set(graph.order())
        if stuck:
            yield finding_at(
                min(stuck),
                "",
                f"These nodes feed each other, through values that subgraphs capture: {', '.join(sorted(stuck))}.",
                "Cut a wire between them, or capture another value.",
                code="cycle",
            )
        if graph.nodes and self._surroundings is None and not self.output_ids():
            yield Finding(
                "The graph has no outputs, so that running it gives nothing.",
                severity=Severity.WARNING,
                remedy="Add an Output node and wire the result to it.",
                code="no-outputs",
            )
        around = self._surroundings
        if around is None:
            yield from self._of_functions()
        for id, node in graph.nodes.items():
            if node.type != "Capture":
                continue
            name = str(node.parameters.get("name", ""))
            if around is None:
                yield finding_at(
                    id, "name", "Only a subgraph can capture values, and this graph is none.", code="capture"
                )
            elif name not in around.captures:
                yield finding_at(id, "name", f"The graph around has no value {name!r}.", code="capture")


def _merged(declared: ValueType, given: ValueType) -> ValueType:
    """A declared type with what is missing taken from the given one."""
    if isinstance(declared, TensorType) and isinstance(given, TensorType):
        element = declared.element if declared.element is not None else given.element
        shape = declared.shape if declared.shape is not None else given.shape
        return TensorType(element, shape, declared.sparse or given.sparse)
    return given if declared == TensorType() else declared


def _common(first: ValueType, second: ValueType) -> ValueType:
    """What two types have in common."""
    if first == second:
        return first
    if not (isinstance(first, TensorType) and isinstance(second, TensorType)):
        return TensorType()
    shape = None
    if first.shape is not None and second.shape is not None and len(first.shape) == len(second.shape):
        shape = tuple(a if a == b else None for a, b in zip(first.shape, second.shape, strict=True))
    return TensorType(first.element if first.element == second.element else None, shape)


def _scan_states(state: NodeState, sources: Mapping[str, PortRef]) -> int:
    scanned = state.parameters.get("num_scan_inputs", 0)
    return max(0, len(sources) - (scanned if isinstance(scanned, int) else 0))


@lru_cache(maxsize=256)
def _similar_type(name: str) -> str:
    close = get_close_matches(name, [cls.type_name() for cls in catalog.all_types()], 1, 0.8)
    return close[0] if close else ""
