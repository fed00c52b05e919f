"""Rewriting the nodes of an ONNX model: for ONNX Runtime's CPU kernels, or into standard operators only.

`lower` calls `lower(site, exact)` of every node type that has it, `expand` calls `expand(site)`. Such a hook looks at
the site (the node's inputs, their types and constant values), writes new nodes on its tape and ends with
`site.replace(...)`, or leaves the node alone. Every new node is marked with the document's node that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Literal

import onnx_ir as ir

from runtime import catalog
from runtime.backends.control import attribute_values, document_node, named, operator_name
from runtime.backends.ortvalues import document_tensor
from runtime.errors import Finding, GraphError
from runtime.ir_tensors import GraphTensor
from runtime.merging import merge_equal
from runtime.node import Node
from runtime.tape import OWNER, Tape, tensor_type
from runtime.tensors import Tensor
from runtime.types import ElementType, TensorType, ValueType

STANDARD_OPSET = 21
"""The version of the standard operators that a model gets when it has none of them yet."""

FEEDS = "qmoe.feeds"
"""Where a model's `meta` holds the tensors that every run must be fed, by value name."""


class Site(Tape):
    """One node that is to be rewritten, and the place where its replacement goes.

    `inputs` are the connected inputs by port, `types` what is known of their types, `attributes` the set ones.
    """

    def __init__(
        self, model: ir.Model, node: ir.Node, owner: str, node_type: type[Node], feeds: bool, taken: Set[str]
    ) -> None:
        if not node.name:
            node.name = owner or node.op_type
        super().__init__(node.name, owner, model.opset_imports.get("", STANDARD_OPSET), taken)
        self.node = node
        self.model = model
        self.attributes = attribute_values(node)
        ports = [port.name for port in node_type.inputs]
        self.inputs = {port: value for port, value in zip(ports, node.inputs, strict=False) if value is not None}
        self.types: dict[str, ValueType] = {port: type_in_model(value) for port, value in self.inputs.items()}
        self.findings: list[Finding] = []
        self._feeds = feeds

    @property
    def id(self) -> str:
        """The document's node."""
        return self.owner

    def constant(self, port: str) -> Tensor | None:
        """The value of an input that never changes; None for any other input, and for an absent one."""
        value = self.inputs.get(port)
        if value is None or value.is_graph_input():
            return None
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else document_tensor(tensor)

    def initializer(self, what: str, tensor: Tensor) -> ir.Value:
        """A new constant of the model."""
        name = self.unique(what)
        content = GraphTensor(tensor, name)
        graph = self.node.graph
        if isinstance(graph, ir.Function):  # functions have no initializers
            return self.op("Constant", [], value=content)
        value = ir.Value(name=name, type=tensor_type(tensor.element), shape=ir.Shape(tensor.shape), const_value=content)
        assert graph is not None
        graph.register_initializer(value)
        return value

    def feed(self, what: str, tensor: Tensor) -> ir.Value:
        """A constant that ONNX Runtime must take for a variable, because for a constant it chooses another kernel.

        Runs of a session feed it; in a file it is an input with a default value.
        """
        graph = self.model.graph
        name = self.unique(what)
        value = ir.Value(name=name, type=tensor_type(tensor.element), shape=ir.Shape(tensor.shape))
        graph.inputs.append(value)
        if self._feeds:
            self.model.meta.setdefault(FEEDS, {})[name] = tensor
        else:
            value.const_value = GraphTensor(tensor, name)
            graph.register_initializer(value)
        return value

    def replace(self, *results: ir.Value) -> None:
        """Puts the tape's nodes in the node's place; `results`, made by them, take the places of its outputs."""
        graph = self.node.graph
        assert graph is not None
        graph.insert_before(self.node, self.nodes)
        for value in (value for node in self.nodes for value in node.outputs if value.type is None):
            value.shape = None  # a model holds no shape without an element type
        for old, new in zip(self.node.outputs, results, strict=False):
            name, old.name = old.name, None
            new.name = name
            new.type, new.shape = old.type or new.type, old.shape or new.shape
            new.doc_string = old.doc_string
            new.metadata_props.update(old.metadata_props)
            new.meta.update(old.meta)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        used = [value for value in self.node.inputs if value is not None]
        graph.remove(self.node, safe=True)
        for value in used:
            _drop_unused(value)


def lower(model: ir.Model, *, precision: Literal["exact", "fast"] = "exact", feeds: bool = True) -> list[Finding]:
    """Rewrites a compiled model in place so that ONNX Runtime's CPU kernels compute what the nodes mean.

    With `precision` "fast", kernels that round activations to 8 bits are allowed; the findings say where one is used.
    `feeds` says whether who runs the model feeds it `model.meta["qmoe.feeds"]`: tensors by input name. Otherwise the
    model stands for itself, and such tensors are inputs with defaults. GraphError names a node that cannot run.
    """
    from runtime import scatter

    findings: list[Finding] = []

    def rewrite(node_type: type[Node], site: Site) -> None:
        if node_type.lower is None:
            scatter.lower(site)
        else:
            node_type.lower(site, precision == "exact")
        findings.extend(site.findings)

    before = {value.name for node in model.graph for value in node.outputs}
    if _rewrite(model, lambda node_type: node_type.lower is not None or _is_scatter(node_type), rewrite, feeds) > 1:
        merge_equal(model.graph, before)  # a gradient repeats much of what its node computes
    return findings


def _is_scatter(node_type: type[Node]) -> bool:
    return node_type.operator == "ScatterND" and not node_type.domain


def expand(model: ir.Model) -> None:
    """Replaces nodes that are no standard operators by calls of model-local functions of standard operators.

    Only nodes whose type can do so change. GraphError names a node whose types, or whose model's version of the
    standard operators, do not allow it.
    """

    def rewrite(node_type: type[Node], site: Site) -> None:
        assert node_type.expand is not None
        node_type.expand(site)

    _rewrite(model, lambda node_type: node_type.expand is not None, rewrite, False)


def write_forms(model: ir.Model) -> None:
    """Writes nodes that are declared by their form in simpler operators in that form.

    GraphError names a node the types of whose inputs are not known.
    """

    def rewrite(node_type: type[Node], site: Site) -> None:
        from runtime.gradients.expressions import Expr, Formulas

        assert node_type.form is not None
        op = Formulas(site, model.opset_imports)
        inputs = {port: Expr(op, value) for port, value in site.inputs.items()}
        try:
            results = node_type.form(inputs, site.attributes)
        except GraphError as error:
            raise named(error, site.id) from error
        results = (results,) if isinstance(results, Expr) else tuple(results)
        site.replace(*(op.Identity(x).value if x.value.producer() not in site.nodes else x.value for x in results))
        for node in site.nodes:  # what the document says of the node, it says of its parts
            node.metadata_props.update(site.node.metadata_props)

    _rewrite(model, lambda node_type: node_type.form is not None, rewrite, False)
    used = {node.domain for node, _ in _all_nodes(model)} | {""}
    for domain in set(model.opset_imports) - used:
        del model.opset_imports[domain]


def _rewrite(
    model: ir.Model, wanted: Callable[[type[Node]], bool], rewrite: Callable[[type[Node], Site], None], feeds: bool
) -> int:
    """Rewrites nodes of the wanted types; returns how many there were."""
    opsets = dict(model.opset_imports)
    found = [
        (node, owner, node_type)
        for node, owner in _all_nodes(model)
        if (node_type := catalog.find(operator_name(node), opsets)) is not None and wanted(node_type)
    ]
    if found:
        model.opset_imports.setdefault("", STANDARD_OPSET)
    taken = names_of(model) if found else set()
    errors: list[Finding] = []
    for node, owner, node_type in found:
        try:
            rewrite(node_type, Site(model, node, owner, node_type, feeds, taken))
        except GraphError as error:
            errors += error.findings
    if errors:
        raise GraphError(errors)
    return len(found)


def names_of(model: ir.Model) -> set[str]:
    """The names of all nodes and values."""
    names: set[str] = set()
    graphs: list[Any] = [model.graph, *model.functions.values()]
    for node, _ in _all_nodes(model):
        names.add(node.name or "")
        names.update(value.name or "" for value in node.outputs)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                graphs.append(attribute.value)
            elif attribute.type == ir.AttributeType.GRAPHS:
                graphs.extend(attribute.value)
    for graph in graphs:
        names.update(value.name or "" for value in graph.inputs)
        names.update(getattr(graph, "initializers", ()))  # functions have none
    return names


def _all_nodes(model: ir.Model) -> Iterator[tuple[ir.Node, str]]:
    """The nodes of main graph, subgraphs and functions, each with the document's node that it is or is part of."""

    def nodes(graph: Iterable[ir.Node], owner: str) -> Iterator[tuple[ir.Node, str]]:
        for node in graph:
            own = owner or document_node(node)
            yield node, own
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    yield from nodes(attribute.value, own)
                elif attribute.type == ir.AttributeType.GRAPHS:
                    for body in attribute.value:
                        yield from nodes(body, own)

    yield from nodes(model.graph, "")
    for function in model.functions.values():
        yield from nodes(function, "")


def add_function(
    site: Site,
    domain: str,
    name: str,
    inputs: Mapping[str, TensorType],
    write: Callable[[Tape, Mapping[str, ir.Value]], ir.Value | Sequence[ir.Value]],
) -> None:
    """Adds the model-local function that `write` writes, unless the model has one of that name.

    `write` gets a tape and the function's formal inputs by name, and returns its output, or its outputs.
    """
    model = site.model
    if (domain, name, "") in model.functions:
        return
    formals = {
        port: ir.Value(name=port, type=tensor_type(type.element) if type.element else None)
        for port, type in inputs.items()
    }
    tape = Tape(name, "", site.opset)
    written = write(tape, formals)
    results = [written] if isinstance(written, ir.Value) else list(written)
    for node in tape.nodes:
        _unmark(node)
    graph = ir.Graph(list(formals.values()), results, nodes=tape.nodes, opset_imports={"": site.opset}, name=name)
    model.functions[(domain, name, "")] = ir.Function(domain, name, graph=graph, attributes=())
    model.opset_imports.setdefault(domain, 1)


def _unmark(node: ir.Node) -> None:
    """A function's nodes belong to whoever calls it."""
    node.metadata_props.pop(OWNER, None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.value:
                _unmark(inner)


def _drop_unused(value: ir.Value) -> None:
    """Forgets a constant that nobody reads any more."""
    if value.uses() or value.is_graph_output() or value.is_graph_input() or not value.is_initializer():
        return
    graph = value.graph
    if graph is not None and value.name is not None:
        del graph.initializers[value.name]


def type_in_model(value: ir.Value) -> ValueType:
    """What the model says about a value's type."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return TensorType(ElementType(tensor.dtype.value), tuple(int(size) for size in tensor.shape.numpy()))
    if value.dtype is None:
        return TensorType()
    shape = None
    if value.shape is not None:
        shape = tuple(size if isinstance(size, int) else size.value for size in value.shape)
    return TensorType(ElementType(value.dtype.value), shape)
