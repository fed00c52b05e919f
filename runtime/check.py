"""What is wrong with a graph, in sentences that name a node and a port; kept up to date while it is edited.

A `Checker` follows one graph: an edit makes the nodes that it touches stale, and those after them only as far as types
change. Only what is certain is an error: an unknown type or shape is never held against a graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime import catalog
from runtime.attributes import Typed
from runtime.errors import Finding, Severity
from runtime.graph import Add, Cut, Edit, Graph, NodeState, PortRef, Remove, Set, Wire
from runtime.node import Node, NodeContext, Parameter
from runtime.nodes.terminals import Capture, Initializer, Input, Output, declared_type
from runtime.ports import belongs, inputs_in_use, outputs_in_use, value_names
from runtime.tensors import Tensor
from runtime.types import OptionalType, TensorType, ValueType, format_shape, kind_of

if TYPE_CHECKING:
    from runtime.inference import Value

MAXIMUM_DEPTH = 32
"""How deep subgraphs may be nested."""


def check(graph: Graph) -> list[Finding]:
    """Everything that is wrong with a graph, or worth knowing, in the document's order."""
    return Checker(graph).findings()


@dataclass(slots=True)
class _Result:
    """What is known of one node. Types and values are by output port."""

    types: dict[str, ValueType] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(slots=True)
class _Surroundings:
    """What a subgraph is told by the graph around it."""

    captures: Mapping[str, ValueType]
    inputs: Sequence[ValueType | None] = ()
    depth: int = 0
    is_function: bool = False


class Checker:
    """Findings and types of a graph, following its edits."""

    def __init__(self, graph: Graph, surroundings: _Surroundings | None = None) -> None:
        self._graph = graph
        self._surroundings = surroundings
        self._results: dict[str, _Result] = {}
        self._stale: set[str] = set(graph.nodes)
        self._nesting: set[str] = set()
        self._wires = dict(graph.wires)
        self._findings: list[Finding] | None = None
        graph.listen(self._hear)

    def findings(self) -> list[Finding]:
        """Everything that is wrong, or worth knowing, in the document's order."""
        self._refresh()
        if self._findings is None:
            own = [finding for id in self._graph.nodes for finding in self._results[id].findings]
            self._findings = own + list(self._of_the_whole())
        return list(self._findings)

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
        if node_type is None:
            return None
        port = node_type.input_port(target.port)
        kind = kind_of(given)
        if port is None or "?" in kind:
            return None
        allowed = node_type.type_constraints.get(port.type)
        if allowed is not None and kind not in allowed:
            return f"{source} is {kind}, and {target} takes {_choices(allowed)}."
        if allowed is None and "(" in port.type and port.type != kind:
            return f"{source} is {kind}, and {target} takes {port.type}."
        if not port.homogeneous:
            return None
        for other, origin in self._graph.inputs_of(target.node).items():
            declared = node_type.input_port(other)
            if other == target.port or declared is None or declared.type != port.type or allowed is None:
                continue
            came = kind_of(self.type_of(origin))
            if "?" not in came and came != kind:
                return (
                    f"{source} is {kind}, but {target.node}.{other} has {came} already, "
                    f"and both must have the same type {port.type}."
                )
        return None

    # -- keeping up -----------------------------------------------------------------------------------------------

    def _hear(self, edit: Edit) -> None:
        match edit:
            case Add(node):
                self._stale.add(node.id)
            case Remove(id):
                self._stale.discard(id)
                self._nesting.discard(id)
                self._results.pop(id, None)
            case Wire(source, target):
                self._wires[target] = source
                self._stale.update((source.node, target.node))
            case Cut(target):
                self._stale.update((self._wires.pop(target).node, target.node))
            case Set(node, section, _, _):
                if section in ("layout", "extra"):
                    return
                self._stale.update([node] if node else self._graph.nodes)
        self._stale |= self._nesting  # a subgraph may read any value around it
        self._findings = None

    def _refresh(self) -> None:
        if not self._stale:
            return
        for _ in range(2):  # a second time for subgraphs that read values which come later in the order
            self._sweep()
            if not self._nesting:
                return
            self._stale = set(self._nesting)
        self._sweep()

    def _sweep(self) -> None:
        graph, stale = self._graph, self._stale
        order: Iterable[str] = graph.order() if len(stale) > 1 else list(stale)
        while stale:
            grown = False
            for id in order:
                if id not in stale:
                    continue
                stale.discard(id)
                before = self._results.get(id)
                after = self._results[id] = self._examine(id)
                if before is None or before.types != after.types or before.values != after.values:
                    followers = {t.node for s, t in graph.wires_of(id) if s.node == id}
                    grown = grown or not followers <= stale
                    stale |= followers
                if len(stale) == 0:
                    return
            if grown or stale:
                order = graph.order()

    # -- one node -------------------------------------------------------------------------------------------------

    def _examine(self, id: str) -> _Result:
        state = self._graph.nodes[id]
        node_type = self._graph.node_type(id)
        sources = self._graph.inputs_of(id)
        if node_type is None:
            return self._examine_unknown(state, sources)
        inputs = {port: self.type_of_known(source) for port, source in sources.items()}
        parameters = {name: value for name, value in state.parameters.items() if value is not None}
        findings: list[Finding] = list(_missing_inputs(state, node_type, sources))
        variables, disagreements = _type_variables(state, node_type, inputs)
        findings += disagreements
        attributes = node_type.to_attributes(parameters) if node_type.is_operator else parameters
        used = outputs_in_use(self._graph, state, node_type)
        result = _Result()
        if node_type.infer.__func__ is not Node.infer.__func__:  # type: ignore[attr-defined]
            values = {
                port: value.array()
                for port, source in sources.items()
                if isinstance(value := self._value_of_known(source), Tensor)
            }
            try:
                context = NodeContext(id, inputs, attributes, values, used, self._graph.opsets)
                inferred = node_type.infer(context)
            except ValueError as error:
                findings.append(_at(id, "type", f"{error}.", code="parameter"))
            else:
                result.types = dict(inferred.outputs)
                blamed = {(finding.port, finding.code) for finding in inferred.findings}
                findings = [f for f in findings if (f.port, f.code) not in blamed] + list(inferred.findings)
            result.types |= self._refined(id, node_type, result.types)
            if node_type is Initializer:
                tensor = parameters.get("tensor")
                if isinstance(tensor, Tensor) and tensor.size <= 64:
                    result.values["value"] = tensor
        else:
            nested = any(isinstance(value, Graph) for value in parameters.values())
            if nested:
                self._nesting.add(id)
                findings += self._examine_subgraphs(state, node_type, parameters, sources, result)
            elif node_type is not Output and not any(f.severity is Severity.ERROR for f in findings):
                findings += self._infer(state, node_type, attributes, sources, used, result)
        blamed_ports = {finding.port for finding in findings}
        findings += [f for f in _parameters(state, node_type, parameters) if f.port not in blamed_ports]
        for port in node_type.outputs:
            stands_for = variables.get(port.type)
            if port.name not in result.types and stands_for is not None:
                if isinstance(stands_for, TensorType):
                    stands_for = TensorType(stands_for.element)
                result.types[port.name] = stands_for
        if node_type is Output:
            findings += _declared_output(state, inputs)
        if node_type.is_operator and not node_type.cpu_kernel and node_type.evaluate is None:
            findings.append(
                _at(
                    id,
                    "",
                    f"ONNX Runtime has no CPU kernel for {node_type.type_name()} at this operator set version.",
                    severity=Severity.WARNING,
                    code="no-cpu-kernel",
                )
            )
        result.findings = tuple(findings)
        return result

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
        if known.contradiction:
            came = ", ".join(f"{port} {_shown(type_)}" for port, type_ in zip(ports, types, strict=True) if type_)
            return [_at(state.id, "", f"{known.contradiction} It gets {came}.", code="shape")]
        for port, type_, value in zip(used, known.types, known.values, strict=False):
            if type_ is not None:
                result.types[port] = type_
            if value is not None:
                result.values[port] = value
        return []

    def _examine_unknown(self, state: NodeState, sources: Mapping[str, PortRef]) -> _Result:
        function = _function_of(self._graph, state.type)
        if function is not None:
            around = self._surroundings or _Surroundings({})
            count = max((int(port.rpartition(".")[2]) + 1 for port in sources if port[-1].isdigit()), default=0)
            given = [
                self.type_of_known(sources[f"input.{index}"]) if f"input.{index}" in sources else None
                for index in range(count)
            ]
            if around.depth < MAXIMUM_DEPTH:
                inner = Checker(function.copy(), _Surroundings({}, given, around.depth + 1, is_function=True))
                outputs = [inner._results_of_output(id) for id in inner.output_ids()]
                return _Result({f"output.{index}": type_ for index, type_ in enumerate(outputs)})
        domain = state.type.rpartition(".")[0]
        older = catalog.find(state.type)
        if older is not None:
            message = (
                f"{state.type} came with version {older.since_version} of the operator set {domain or 'ai.onnx'!r}; "
                f"this graph has version {self._graph.opsets.get(domain)}."
            )
            remedy = "Raise the graph's operator set version."
        else:
            message = f"No node type is called {state.type}; it is kept as it is, but cannot run."
            close = get_close_matches(state.type, _type_names(), 1, 0.8)
            remedy = f"Did you mean {close[0]}?" if close else "Install the plug-in that declares it."
        return _Result(findings=(_at(state.id, "", message, remedy, code="unknown-type"),))

    # -- subgraphs ------------------------------------------------------------------------------------------------

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
        depth = self._surroundings.depth + 1 if self._surroundings else 1
        if depth > MAXIMUM_DEPTH:
            return [_at(state.id, "", f"Subgraphs are nested more than {MAXIMUM_DEPTH} deep.", code="depth")]
        outer = dict(self._surroundings.captures) if self._surroundings else {}
        outer |= {name: self.type_of_known(source) for name, source in value_names(self._graph)}
        findings: list[Finding] = []
        outcomes: list[list[ValueType]] = []
        given = self._inputs_of_body(state, node_type, sources)
        for name, body in parameters.items():
            if not isinstance(body, Graph):
                continue
            inner = Checker(body.copy(), _Surroundings(outer, given, depth))
            for finding in inner.findings():
                path = f"{state.id}/{name}/{finding.node}" if finding.node else f"{state.id}/{name}"
                findings.append(
                    Finding(finding.message, path, finding.port, finding.severity, finding.remedy, finding.code)
                )
            outcomes.append([inner._results_of_output(id) for id in inner.output_ids()])
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
        yield from _duplicates(graph)
        if graph.nodes and self._surroundings is None and not self.output_ids():
            yield Finding(
                "The graph has no outputs, so that running it gives nothing.",
                severity=Severity.WARNING,
                remedy="Add an Output node and wire the result to it.",
                code="no-outputs",
            )
        around = self._surroundings
        for id, node in graph.nodes.items():
            if node.type != "Capture":
                continue
            name = str(node.parameters.get("name", ""))
            if around is None:
                yield _at(id, "name", "Only a subgraph can capture values, and this graph is none.", code="capture")
            elif name not in around.captures:
                yield _at(id, "name", f"The graph around has no value {name!r}.", code="capture")


def _at(
    node: str,
    port: str,
    message: str,
    remedy: str = "",
    *,
    severity: Severity = Severity.ERROR,
    code: str,
) -> Finding:
    return Finding(message, node, port, severity, remedy, code)


def _shown(type_: ValueType) -> str:
    if not isinstance(type_, TensorType):
        return str(type_)
    shape = type_.shape
    if shape is not None:
        shape = tuple(None if isinstance(size, str) and size.startswith("_") else size for size in shape)
    element = "?" if type_.element is None else type_.element
    return f"tensor({element}) {format_shape(shape)}"


def _choices(kinds: Iterable[str]) -> str:
    names = list(kinds)
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"


def _missing_inputs(state: NodeState, node_type: type[Node], sources: Mapping[str, PortRef]) -> Iterator[Finding]:
    for port in node_type.inputs:
        if port.variadic:
            indices = {
                int(name.rpartition(".")[2]) for name in sources if belongs(name, port.name) and name != port.name
            }
            gaps = sorted(set(range(max(indices, default=-1))) - indices)
            if len(indices) < port.minimum and not port.optional:
                yield _at(
                    state.id,
                    port.name,
                    f"expected at least {port.minimum} values; {len(indices) or 'nothing'} connected.",
                    f"Wire {port.name}.{len(indices)}.",
                    code="missing-input",
                )
            elif gaps and node_type.operator != "Loop":
                yield _at(
                    state.id,
                    f"{port.name}.{gaps[0]}",
                    f"{port.name}.{max(indices)} is connected and this one before it is not.",
                    "Wire the values without gaps.",
                    code="missing-input",
                )
        elif not port.optional and port.name not in sources:
            expected = f" ({port.type})" if "(" in port.type else ""
            yield _at(
                state.id,
                port.name,
                f"a required input{expected}; nothing is connected.",
                "Wire a value to it.",
                code="missing-input",
            )
    if not node_type.type_constraints and not node_type.inputs:
        return
    for name in sources:
        if node_type.input_port(name) is None:
            yield _at(state.id, name, f"{node_type.type_name()} has no such input.", "Cut the wire.", code="port")


def _type_variables(
    state: NodeState, node_type: type[Node], inputs: Mapping[str, ValueType]
) -> tuple[dict[str, ValueType], list[Finding]]:
    """What the type variables of a node stand for, and where its inputs disagree."""
    bound: dict[str, tuple[str, ValueType]] = {}
    findings: list[Finding] = []
    for name, type_ in inputs.items():
        port = node_type.input_port(name)
        kind = kind_of(type_)
        if port is None or "?" in kind:
            continue
        allowed: Sequence[str] | None = node_type.type_constraints.get(port.type)
        if allowed is None and "(" in port.type:
            allowed = (port.type,)
        if allowed is not None and kind not in allowed:
            findings.append(_at(state.id, name, f"expected {_choices(allowed)}; got {kind}.", code="type"))
            continue
        if allowed is None or not port.homogeneous or "(" in port.type:
            continue
        first = bound.setdefault(port.type, (name, type_))
        if kind_of(first[1]) != kind and not isinstance(type_, OptionalType):
            findings.append(
                _at(
                    state.id,
                    name,
                    f"expected {kind_of(first[1])}, the type {port.type} that {first[0]} has; got {kind}.",
                    "Insert a Cast, or change one of the two.",
                    code="type",
                )
            )
    return {variable: type_ for variable, (_, type_) in bound.items()}, findings


def _parameters(state: NodeState, node_type: type[Node], parameters: Mapping[str, Any]) -> Iterator[Finding]:
    for declared in node_type.parameters:
        if declared.required and declared.name not in parameters:
            yield _at(
                state.id, declared.name, f"a required parameter ({declared.kind}); it is not set.", code="parameter"
            )
    for name, value in parameters.items():
        declared_ = node_type.parameter(name)
        if declared_ is None:
            if node_type.is_operator:
                close = get_close_matches(name, [parameter.name for parameter in node_type.parameters], 1)
                remedy = f"Did you mean {close[0]}?" if close else "Remove it."
                message = f"{node_type.type_name()} has no such parameter."
                yield _at(state.id, name, message, remedy, code="parameter")
            continue
        wrong = _wrong_value(declared_, value)
        if wrong:
            yield _at(state.id, name, f"expected {wrong}; got {_brief(value)}.", code="parameter")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_ITEMS = {"ints": (int, np.integer), "floats": (float, int), "strings": (str, bytes)}


def _wrong_value(declared: Parameter, value: Any) -> str:
    """What was expected instead of a value, or an empty string if it fits."""
    kind = declared.kind
    if isinstance(value, Typed):
        return ""
    if kind == "bool":
        return "" if isinstance(value, bool) or value in (0, 1) else "true or false"
    if kind == "int":
        if not isinstance(value, int | np.integer):
            return "an integer" + _range(declared)
    elif kind == "float":
        if not isinstance(value, float | int | np.floating) or isinstance(value, bool):
            return "a number" + _range(declared)
    elif kind == "str":
        if not isinstance(value, str | bytes):
            return "a text"
    elif kind in _ITEMS:
        if not isinstance(value, list | tuple) or not all(isinstance(item, _ITEMS[kind]) for item in value):
            return f"a list of {kind}"
    elif kind == "tensor":
        if not isinstance(value, Tensor):
            return "a tensor"
    elif kind == "graph" and not isinstance(value, Graph):
        return "a graph"
    elif kind == "shape" and not (
        isinstance(value, list | tuple) and all(item is None or isinstance(item, int | str) for item in value)
    ):
        return "a list of integers, names and nulls"
    if declared.choices and value not in declared.choices:
        return "one of " + ", ".join(map(str, declared.choices))
    if declared.minimum is not None and value < declared.minimum:
        return f"at least {declared.minimum:g}"
    if declared.maximum is not None and value > declared.maximum:
        return f"at most {declared.maximum:g}"
    return ""


def _range(declared: Parameter) -> str:
    if declared.minimum is not None:
        return f" of at least {declared.minimum:g}"
    return ""


def _declared_output(state: NodeState, inputs: Mapping[str, ValueType]) -> Iterator[Finding]:
    try:
        declared = declared_type(NodeContext(state.id, {}, state.parameters))
    except ValueError as error:
        yield _at(state.id, "type", f"{error}.", code="parameter")
        return
    came = inputs.get("value")
    if came is None:
        return
    kinds = kind_of(declared), kind_of(came)
    if "?" not in kinds[0] + kinds[1] and kinds[0] != kinds[1]:
        yield _at(state.id, "value", f"declared as {kinds[0]}; gets {kinds[1]}.", code="type")
    elif isinstance(declared, TensorType) and isinstance(came, TensorType) and declared.shape and came.shape:
        pairs = list(zip(declared.shape, came.shape, strict=False))
        clash = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
        if clash or len(declared.shape) != len(came.shape):
            message = f"declared with shape {format_shape(declared.shape)}; gets {_shown(came)}."
            # Exporters write wrong shapes often enough, and the numbers do not depend on them.
            yield _at(state.id, "value", message, severity=Severity.WARNING, code="shape")


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


def _duplicates(graph: Graph) -> Iterator[Finding]:
    """Names that two inputs, two outputs or two values share."""
    seen: dict[tuple[str, str], str] = {}
    for id, node in graph.nodes.items():
        names: list[tuple[str, str]] = []
        if node.type in ("Input", "Initializer"):
            names = [("value", str(node.parameters.get("name") or id))]
        elif node.type == "Output":
            names = [("output", str(node.parameters.get("name") or id))]
        else:
            own = node.parameters.get("specified_outputs_name")
            if own:
                names = [("value", str(name)) for name in own if name]
        for kind, name in names:
            other = seen.setdefault((kind, name), id)
            if other != id or names.count((kind, name)) > 1:
                yield _at(
                    id,
                    "specified_outputs_name"
                    if kind == "value" and node.type not in ("Input", "Initializer")
                    else "name",
                    f"the name {name!r} is taken by {other}: the {'outputs' if kind == 'output' else 'values'} of a "
                    "graph have names of their own.",
                    "Choose another.",
                    code="duplicate-name",
                )
                break


def _function_of(graph: Graph, type_name: str) -> Graph | None:
    functions = graph.section("functions")
    if not functions:
        return None
    domain, _, name = type_name.rpartition(".")
    for key, body in functions.items():
        if key == f"{domain}::{name}" or key.startswith(f"{domain}::{name}::"):
            return body if isinstance(body, Graph) else None
    return None


def _type_names() -> list[str]:
    return [cls.type_name() for cls in catalog.all_types()]
