"""A mixture's experts spread over parts, as a graph: routing once, each part with its experts' tokens, then the sum.

A QMoE node becomes a call of `Route`, and for each part a call of `Select`, which picks the choices that fell on the
part's experts, and a QMoE node with these experts alone; `Collect` adds up what they give. The three are functions of
standard operators that the document holds. Everything between is float32, so that the numbers are those of one node.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.table import Table

from qmoe_node.checks import INPUTS
from qmoe_node.graph_mixtures import free_id, settings_of
from qmoe_node.layer import Settings
from qmoe_node.standard import FLOAT, choose, in_shape_of, mixing_weights
from runtime.captures import bodies_of, read_through_captures
from runtime.errors import Finding, GraphError, Severity
from runtime.files import check_destination, save
from runtime.graph import ABSENT, Graph, PortRef
from runtime.isolation import is_overridable
from runtime.onnx_import import import_model
from runtime.onnx_names import NAMES
from runtime.parts import PARTS, parts_of
from runtime.reports import console, opened
from runtime.tape import Tape
from runtime.tensors import Tensor

MIXTURE = "com.microsoft.QMoE"
DOMAIN = "qmoe.parts"
OLDEST = 15
"""The version of the standard operators since which those are there that the functions use."""
ROUTED = ("input", "router_probs", "router_weights")
AGAIN = "Spread the graph that this one was made from."
OF_ROUTING = ("k", "normalize_routing_weights", "use_sparse_mixer")


def shard(graph: Graph, parts: int, nodes: Sequence[str] | None = None) -> Graph:
    """A copy of a graph whose QMoE nodes (or those of them that `nodes` names) are spread over `parts`.

    A node that is a part already is left as it is. GraphError if the graph has errors, if it has no such node, if one
    has fewer experts than there are parts, or if its weights are not in the document.
    """
    errors = [finding for finding in graph.checker.findings() if finding.severity is Severity.ERROR]
    if errors:
        raise GraphError(errors)
    found = [id for id, state in graph.nodes.items() if state.type == MIXTURE]
    for id in nodes or ():
        if id not in found:
            there = f"The QMoE nodes are {', '.join(found) or 'none'}."
            raise GraphError.at(id, "", "There is no QMoE node of this name.", there, "no-node")
    spread = parts_of(graph)
    for id in nodes or ():
        if id in spread:
            raise GraphError.at(id, "", "This node is a part already.", AGAIN, "parts")
    chosen = [id for id in found if id not in spread and (nodes is None or id in nodes)]
    if not chosen:
        raise GraphError(_nothing_to_spread(graph, spread))
    if parts < 1:
        raise GraphError(Finding(f"expected 1 part at least; {parts} came.", code="option"))
    version = graph.opsets.get("", OLDEST)
    if version < OLDEST:
        text = f"The graph is in version {version} of the standard operators; spreading experts needs {OLDEST}."
        raise GraphError(Finding(text, remedy="Raise the version.", code="opset"))
    result = graph.copy()
    for id in chosen:
        _Mixture(result, id, parts).replace()
    return result


def _nothing_to_spread(graph: Graph, spread: Mapping[str, int]) -> Finding:
    if spread:
        return Finding("All QMoE nodes of the graph are parts already.", remedy=AGAIN, code="parts")
    inside = inner_mixtures(graph)
    if inside:
        text = f"The graph has QMoE nodes only inside {' and '.join(inside)}; those of the graph itself can be spread."
        return Finding(text, remedy="Take them out of there.", code="no-node")
    return Finding("The graph has no QMoE node to spread.", code="no-node")


def inner_mixtures(graph: Graph) -> list[str]:
    """The nodes with a QMoE node in a subgraph, and the functions that have one: these stay whole."""
    functions = {f"the function {key}": body for key, body in graph.section("functions").items()}
    holders = {id: list(bodies_of(state)) for id, state in graph.nodes.items()}
    holders |= {name: [body] for name, body in functions.items() if isinstance(body, Graph)}
    return [name for name, bodies in holders.items() if any(map(_has_mixture, bodies))]


def _has_mixture(body: Graph) -> bool:
    return any(state.type == MIXTURE or any(map(_has_mixture, bodies_of(state))) for state in body.nodes.values())


def show(file: Path, out: Path | None, parts: int, nodes: Sequence[str] | None, as_json: bool) -> None:
    """Prints which part holds what, and writes the spread graph if `out` says where."""
    if out is not None:
        check_destination(out)
    graph = shard(opened(file), parts, nodes)
    rows: list[dict[str, Any]] = []
    for id, part in parts_of(graph).items():
        sources = graph.inputs_of(id)
        tensors = [graph.nodes[source.node].parameters.get("tensor") for source in sources.values()]
        selected = graph.nodes[sources["input"].node]
        first, count = (int(selected.parameters[name]) for name in ("first", "count"))
        size = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
        rows.append({"node": id, "part": part, "experts": [first, first + count - 1], "bytes": size})
    if out is not None:
        save(graph, out)
    if as_json:
        print(json.dumps({"file": str(file), "parts": parts, "nodes": rows}, indent=2))
        return
    table = Table("node", box=None)
    for heading in ("part", "experts", "bytes"):
        table.add_column(heading, justify="right")
    for row in rows:
        first, last = row["experts"]
        table.add_row(row["node"], str(row["part"]), f"{first} to {last}", f"{row['bytes']:,}")
    console.print(table)
    if out is not None:
        console.print(f"Written to {out}.", markup=False)


class _Mixture:
    def __init__(self, graph: Graph, id: str, parts: int) -> None:
        self.graph, self.id, self.parts = graph, id, parts
        self.sources = graph.inputs_of(id)
        self.parameters = dict(graph.nodes[id].parameters)
        self.settings = settings_of(graph, id)
        self.tensors = {port: self._tensor(port) for port in INPUTS if port in self.sources and port not in ROUTED}
        self.experts = self.tensors["fc1_experts_weights"].shape[0]
        if self.experts < parts:
            raise GraphError.at(id, "", f"{self.experts} experts cannot be spread over {parts} parts.", code="parts")

    def replace(self) -> None:
        """Puts the parts in the node's place."""
        graph, id = self.graph, self.id
        route = self._function("Route", _route(self.settings, "router_weights" in self.sources))
        select = self._function("Select", _select(self.settings.k))
        collect = self._function("Collect", _collect(self.settings.k, self.parts))
        targets = graph.targets(PortRef(id, "output"))
        captured = {source for sources in read_through_captures(graph).values() for source in sources}
        weights = {source.node for port, source in self.sources.items() if port not in ROUTED}
        own = list(self.parameters.get(NAMES) or ())
        names = {NAMES: own or [f"{id}.output"]} if own or id in captured else {}
        parts = dict(graph.section("layout").get(PARTS, {}))
        with graph.transaction(f"Spread {id} over {self.parts} parts"):
            graph.remove(id)
            routed = graph.add(route, self._id("route"))
            given = [self.sources[port] for port in ROUTED if port in self.sources]
            for index, source in enumerate(given):
                graph.wire(source, PortRef(routed, f"input.{index}"))
            results: list[PortRef] = []
            places: list[PortRef] = []
            bounds = [self.experts * part // self.parts for part in range(self.parts + 1)]
            for part, (first, end) in enumerate(pairwise(bounds)):
                selected = graph.add(
                    select, self._id(f"select_{part}"), parameters={"first": first, "count": end - first}
                )
                for index in range(3):
                    graph.wire(PortRef(routed, f"output.{index}"), PortRef(selected, f"input.{index}"))
                mixture = self._part(part, first, end)
                for index, port in enumerate(ROUTED):
                    graph.wire(PortRef(selected, f"output.{index}"), PortRef(mixture, port))
                results.append(PortRef(mixture, "output"))
                places.append(PortRef(selected, "output.3"))
                parts[mixture] = part
            collected = graph.add(collect, id, parameters=names)
            for index, source in enumerate([self.sources["input"], *places, *results]):
                graph.wire(source, PortRef(collected, f"input.{index}"))
            for target in targets:
                graph.wire(PortRef(collected, "output.0"), target)
            for weight in weights:
                if not graph.wires_of(weight) and weight not in captured:
                    graph.remove(weight)
            graph.set("", PARTS, parts, section="layout")

    def _part(self, part: int, first: int, end: int) -> str:
        """The QMoE node of experts `first` to before `end`."""
        kept = {name: value for name, value in self.parameters.items() if name not in (*OF_ROUTING, "name", NAMES)}
        mixture = self.graph.add(MIXTURE, self._id(f"part_{part}"), parameters={**kept, "k": 1})
        for port, tensor in self.tensors.items():
            source = self.graph.nodes[self.sources[port].node]
            array = tensor.array()
            if array.shape[:1] == (self.experts,):  # and else it is the same for all
                array = array[first:end]
            if port.endswith("_bias"):
                array = array.astype(np.float32)
            parameters = {name: value for name, value in source.parameters.items() if name not in ("tensor", "name")}
            parameters["tensor"] = Tensor.from_array(array)
            weights = self.graph.add("Initializer", self._id(f"part_{part}_{port}"), parameters=parameters)
            self.graph.wire(PortRef(weights, "value"), PortRef(mixture, port))
        return mixture

    def _tensor(self, port: str) -> Tensor:
        source = self.graph.nodes[self.sources[port].node]
        tensor = source.parameters.get("tensor")
        if is_overridable(source):
            text = (
                f"{source.id} may be given anew in every run; only experts whose weights stay the same can be spread."
            )
            raise GraphError.at(self.id, port, text, f"Switch off overridable of {source.id}.", "parts")
        if not isinstance(tensor, Tensor):
            text = "is computed when the graph runs; only experts whose weights the document holds can be spread."
            raise GraphError.at(self.id, port, text, code="parts")
        return tensor

    def _id(self, what: str) -> str:
        return free_id(self.graph, f"{self.id}_{what}")

    def _function(self, name: str, body: ir.Function) -> str:
        """The type of calls of a function, which the document gets if it has none that is the same."""
        body.name = name
        read = _read(body)
        functions = dict(self.graph.section("functions"))
        number = 1
        while (key := f"{DOMAIN}::{name}{f'_{number}' if number > 1 else ''}") in functions:
            if functions[key] == read:
                return key.replace("::", ".")
            number += 1
        self.graph.set("", key, read, section="functions")
        self.graph.set("", DOMAIN, 1, section="opsets")
        return key.replace("::", ".")


# -- functions ----------------------------------------------------------------------------------------------------


def _route(settings: Settings, has_weights: bool) -> ir.Function:
    """(input, router_probs[, router_weights]) -> tokens float32 [T, hidden]; experts int64 [T, k]; weights float32."""
    tape = _Tape()
    given = [ir.Value(name=name) for name in ROUTED[: 3 if has_weights else 2]]
    wide = [tape.op("Cast", [value], to=FLOAT) for value in given]
    width = tape.op("Shape", [wide[0]], start=-1)
    shape = tape.op("Concat", [tape.literal([-1], np.int64), width], axis=0)
    tokens = tape.op("Reshape", [wide[0], shape])
    choice = choose(tape, settings, wide[1], wide[2] if has_weights else None)
    outputs = {"tokens": tokens, "experts": choice.indices, "weights": mixing_weights(tape, settings, choice)}
    return _function(given, outputs, tape)


def _select(k: int) -> ir.Function:
    """(tokens, experts, weights) -> what goes to experts `first` to before `first + count`.

    Of the S choices that fell on these: tokens [S, hidden]; choice float32 [S, count], 1 at the chosen expert and
    else 0; weights [S, count], the mixing weight there; places int64 [S], which of the T k choices they are.
    """
    tape = _Tape()
    given = [ir.Value(name=name) for name in ("tokens", "experts", "weights")]
    first, count = (tape.attribute(name) for name in ("first", "count"))
    line = tape.literal([-1], np.int64)
    chosen = tape.op("Sub", [tape.op("Reshape", [given[1], line]), first])
    inside = tape.op(
        "And", [tape.op("GreaterOrEqual", [chosen, tape.literal(0, np.int64)]), tape.op("Less", [chosen, count])]
    )
    places = tape.op("Squeeze", [tape.op("NonZero", [inside]), tape.literal([0], np.int64)])
    tokens = tape.op("Gather", [given[0], tape.op("Div", [places, tape.literal(k, np.int64)])], axis=0)
    expert = tape.op("Gather", [chosen, places], axis=0)
    choice = tape.op("OneHot", [expert, count, tape.literal([0, 1], np.float32)], axis=-1)
    weight = tape.op("Gather", [tape.op("Reshape", [given[2], line]), places], axis=0)
    column = tape.op("Unsqueeze", [weight, tape.literal([1], np.int64)])
    weights = tape.op("Mul", [choice, column])
    outputs = {"routed_tokens": tokens, "choice": choice, "routed_weights": weights, "places": places}
    return _function(given, outputs, tape, ("first", "count"))


def _collect(k: int, parts: int) -> ir.Function:
    """(input, the parts' places, the parts' results [S, hidden]) -> for each token the sum of its k results."""
    tape = _Tape()
    like = ir.Value(name="input")
    places = [ir.Value(name=f"places_{part}") for part in range(parts)]
    results = [ir.Value(name=f"results_{part}") for part in range(parts)]
    order = tape.op("Concat", places, axis=0)
    values = tape.op("Concat", results, axis=0)
    rows = tape.op("Unsqueeze", [order, tape.literal([1], np.int64)])
    sorted_ = tape.op("ScatterND", [tape.op("Mul", [values, tape.literal(0, np.float32)]), rows, values])
    width = tape.op("Shape", [values], start=-1)
    tokens = tape.op("Div", [tape.op("Shape", [values], end=1), tape.literal([k], np.int64)])
    shape = tape.op("Concat", [tokens, tape.literal([k], np.int64), width], axis=0)
    apart = tape.op("Reshape", [sorted_, shape], allowzero=1)
    summed = tape.op("ReduceSum", [apart, tape.literal([1], np.int64)], keepdims=0)
    output = tape.op("CastLike", [in_shape_of(tape, summed, like), like])
    return _function([like, *places, *results], {"output": output}, tape)


class _Tape(Tape):
    """Nodes of a function."""

    def __init__(self) -> None:
        super().__init__("", "", OLDEST)

    def attribute(self, name: str) -> ir.Value:
        """An integer that the function's caller gives, as a value."""
        node = ir.Node("", "Constant", [], [ir.RefAttr("value_int", name, ir.AttributeType.INT)])
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]


def _function(
    inputs: Sequence[ir.Value], outputs: Mapping[str, ir.Value], tape: _Tape, attributes: Sequence[str] = ()
) -> ir.Function:
    for name, value in outputs.items():
        value.name = name
    graph = ir.Graph(inputs, list(outputs.values()), nodes=tape.nodes, opset_imports={"": OLDEST})
    declared = [ir.Attr(name, ir.AttributeType.INT, None) for name in attributes]
    return ir.Function(DOMAIN, "", graph=graph, attributes=declared)


def _read(function: ir.Function) -> Graph:
    """A function as a document holds it, in whatever version of the standard operators the document is in."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OLDEST, DOMAIN: 1}, name="functions")
    (body,) = import_model(ir.Model(graph, ir_version=8, functions=[function])).section("functions").values()
    for id, state in list(body.nodes.items()):
        for name in {"name", "specified_outputs_name"} & set(state.parameters):
            body.set(id, name, ABSENT)
    for domain in list(body.opsets):
        body.set("", domain, ABSENT, section="opsets")
    attributes = body.section("info").get("attributes")
    sections = {"info": {"attributes": attributes}} if attributes else {}
    return Graph.build(body.nodes.values(), ((source, target) for target, source in body.wires.items()), sections)
