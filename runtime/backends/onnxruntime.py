"""The fast backend: ONNX Runtime sessions for what they can run, NumPy kernels for what is left, or faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as passes

from runtime import catalog, guard
from runtime.backends.control import Control, Placement, Shortcut, attribute_values, document_node, operator_name
from runtime.backends.deviations import deviations
from runtime.backends.native import CPU, NativePiece, Options
from runtime.backends.numpy import Program, Values, array_of, port_names, read_by
from runtime.backends.partition import Piece, extract, partition, sorted_inputs
from runtime.errors import Finding, GraphError, Severity
from runtime.types import ElementType

PASSES_BETWEEN = 16
"""Forward passes after a backward pass from which on a session does not train any more: about as long as they take in
NumPy with few tokens, it takes to go back to ONNX Runtime."""


class _Repartition(Exception):
    """A piece turned out, during a run, to hold a node that ONNX Runtime cannot run."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """Who computes a node that either can, decided in each run.

    By port, `names` are its inputs' in the graph, and `constants` the shapes of those that are the same in every run.
    """

    numpy_pays_now: Callable[..., bool]
    names: Mapping[str, str]
    constants: Mapping[str, tuple[int, ...]]
    attributes: Mapping[str, Any]

    def is_for_numpy(self, inputs: Mapping[str, Any]) -> bool:
        """Whether NumPy is faster with these inputs, in which constants may be missing."""
        given = {port: inputs[name].shape for port, name in self.names.items() if name in inputs}
        return self.numpy_pays_now({**self.constants, **given}, self.attributes)


class Engine:
    """A compiled model in pieces for ONNX Runtime and NumPy: one ONNX Runtime session if that can run everything."""

    def __init__(self, model: ir.Model, options: Options, barriers: frozenset[str]) -> None:
        """Takes the model over. Its nodes carry their document node in `metadata_props["qmoe.node"]`.

        `barriers` are ids of nodes whose inputs have to be checked as values, right before they run. GraphError if
        there is a node that neither ONNX Runtime nor NumPy can run.
        """
        own = set(model.graph)
        inline_functions(model)
        self._model = model
        self._options = options
        self._opsets = dict(model.opset_imports)
        self.placement = Placement()
        self.node_count = len(model.graph)
        self._given = {value.name or "": value for value in model.graph.inputs}
        self._made = {value.name or "": value for node in model.graph for value in node.outputs}
        self._barriers = {
            node
            for node in model.graph
            if self._is_guarded(node) and (node not in own or document_node(node) in barriers)
        }
        self._on_numpy: dict[str, str] = {}
        self._refused: set[str] = set()
        self._drops_copies = self._trains = False
        self._trained: list[str] = []
        self._passes = 0
        self._between = PASSES_BETWEEN
        for node in model.graph:
            reason = self._why_numpy(node)
            if reason:
                self._on_numpy[document_node(node)] = reason
        self._pieces: list[Piece] = []
        self._natives: dict[int, NativePiece] = {}
        self._programs: dict[int, tuple[Program, Values]] = {}
        self._choices: dict[int, _Choice] = {}
        self._whole: NativePiece | None = None
        self._build()

    # -- construction ---------------------------------------------------------------------------------------------

    def _is_guarded(self, node: ir.Node) -> bool:
        return guard.is_guarded(catalog.find(operator_name(node), self._opsets))

    def _why_numpy(self, node: ir.Node) -> str:
        """Why a node is not even tried in ONNX Runtime; empty if it is."""
        if guard.contains_guarded(node, self._opsets):
            if self._options.as_is:
                raise GraphError.at(
                    document_node(node),
                    "",
                    "Its subgraph holds a node that must be checked right before it runs, which an unchanged file "
                    "does not allow.",
                    "Run it without as_is.",
                    "as-is",
                )
            return "its subgraph holds a node that must be checked right before it runs"
        if not self._options.as_is:
            reason = why_numpy_pays(node, self._opsets, self._options)
            if reason:
                return reason
        node_type = catalog.find(operator_name(node), self._opsets)
        lacks_kernel = node_type is not None and not node_type.cpu_kernel and node_type.lower is None
        if lacks_kernel and not self._options.as_is and self._numpy_can(node):
            return "ONNX Runtime has no CPU kernel for it"
        return ""

    def _numpy_can(self, node: ir.Node) -> bool:
        try:
            Program([node], self._opsets)
        except GraphError:
            return False
        return True

    def _build(self) -> None:
        """Cuts the graph and makes the sessions; moves nodes to NumPy until all of them can be made."""
        while True:
            self._pieces = partition(self._model.graph, self._on_numpy, self._barriers)
            self._natives.clear()
            self._programs.clear()
            self._choices.clear()
            self.placement = Placement()
            try:
                for index, piece in enumerate(self._pieces):
                    if not piece.native:
                        self._programs[index] = self._program(piece)
                        self._find_choice(index, piece)
                    elif all(value.type is not None for value in piece.inputs):
                        self._natives[index] = self._native(piece)
                break
            except _Repartition:
                continue
        self._is_lone = self._is_whole()
        self._whole = self._natives.get(0) if self._is_lone and self._pieces[0].native else None
        for piece in self._pieces:
            for node in piece.nodes:
                self.placement.backends[document_node(node)] = "onnxruntime" if piece.native else "numpy"
        self.placement.findings += [
            finding for finding in deviations(self._model.graph) if finding.node not in self._on_numpy
        ]
        self.placement.findings += [
            Finding(f"Runs in NumPy: {reason}.", node, severity=Severity.NOTE, code="on-numpy")
            for node, reason in self._on_numpy.items()
        ]

    def _is_whole(self) -> bool:
        """Whether ONNX Runtime's one session takes the inputs and gives the outputs just as the graph does."""
        graph = self._model.graph
        return (
            len(self._pieces) == 1
            and not self._barriers
            and all(value.name in self._made for value in graph.outputs)
            and set(self._pieces[0].inputs) == set(graph.inputs)
        )

    def _native(self, piece: Piece) -> NativePiece:
        # What runs in NumPy next needs the cores.
        alone = all(other.native or index in self._choices for index, other in enumerate(self._pieces))
        options = replace(self._options, spins=alone)
        try:
            return NativePiece(extract(self._model, piece), options, self.placement)
        except GraphError as error:
            refused = {finding.node: finding.message for finding in error.findings if finding.node}
            refused = refused or self._refused_alone(piece)
            if not refused:
                raise
            if self._options.as_is:
                raise GraphError(Finding(text, node, code="no-kernel") for node, text in refused.items()) from error
            for node, text in refused.items():
                self._move_to_numpy(piece, node, text)
            raise _Repartition from error

    def _move_to_numpy(self, piece: Piece, id: str, reason: str) -> None:
        """Notes that a node of a piece, which ONNX Runtime refused, runs in NumPy; GraphError if it cannot."""
        nodes = [node for node in piece.nodes if document_node(node) == id]
        try:
            Program(nodes, self._opsets)
        except GraphError as error:
            lacking = error.findings[0].message
            raise GraphError.at(id, "", f"Neither backend can run it. {reason} {lacking}", code="no-kernel") from error
        self._on_numpy[id] = reason.removesuffix(".")
        self._refused.add(id)

    def _refused_alone(self, piece: Piece) -> dict[str, str]:
        """The nodes of a piece that ONNX Runtime refuses one by one, for messages that name none, with its reasons."""
        refused: dict[str, str] = {}
        for node in piece.nodes:
            alone = Piece(native=True, nodes=[node], inputs=sorted_inputs(node), outputs=list(node.outputs))
            if document_node(node) in refused or any(value.type is None for value in alone.inputs):
                continue
            try:
                NativePiece(extract(self._model, alone), self._options, Placement())
            except GraphError as error:
                refused[document_node(node)] = error.findings[0].message
        return refused

    def _find_choice(self, index: int, piece: Piece) -> None:
        """Notes a piece of one node that is better run by NumPy in some runs only."""
        node = piece.nodes[0]
        node_type = catalog.find(operator_name(node), self._opsets)
        if len(piece.nodes) > 1 or node_type is None or node_type.numpy_pays_now is None:
            return
        if self._drops_copies or document_node(node) in self._refused:
            return
        if why_numpy_pays(node, self._opsets, self._options):
            ports = dict(zip(port_names(node_type, len(node.inputs)), node.inputs, strict=False))
            given = {port: value for port, value in ports.items() if value is not None}
            names = {port: value.name or "" for port, value in given.items()}
            tensors = {port: ir.convenience.get_const_tensor(value) for port, value in given.items()}
            shapes = {port: tuple(tensor.shape.numpy()) for port, tensor in tensors.items() if tensor is not None}
            self._choices[index] = _Choice(node_type.numpy_pays_now, names, shapes, attribute_values(node))

    def _program(self, piece: Piece) -> tuple[Program, Values]:
        """The NumPy program of a piece, and its constants."""
        program = Program(piece.nodes, self._opsets, self._options.threads or None)
        read = {value for node in piece.nodes for value in read_by(node)}
        values: Values = {value: array_of(value.const_value) for value in read if value.const_value is not None}
        return program, values | program.constants

    # -- running --------------------------------------------------------------------------------------------------

    def run(self, feeds: Mapping[str, Any], wanted: tuple[str, ...], control: Control) -> list[Any]:
        """The values called `wanted`, of inputs by name."""
        self._passes += 1
        if self._trained and self._passes > self._between:
            self._end_training()
        if control.times is None and control.progress is None:
            whole = self._whole or self._lone(feeds)
            if whole is not None:
                return whole.run(feeds, wanted, control)
        while True:
            control.total, control.done = self.node_count, 0
            try:
                return self._run_pieces(feeds, wanted, control)
            except _Repartition:
                self._build()

    def _lone(self, feeds: Mapping[str, Any]) -> NativePiece | None:
        """The session of a graph that is one node, in a run in which ONNX Runtime is the faster one."""
        choice = self._choices.get(0)
        if choice is None or not self._is_lone or choice.is_for_numpy(feeds):
            return None
        return self._natives.get(0)

    def shortcut(self, feeds: Mapping[str, Any], wanted: tuple[str, ...]) -> Shortcut | None:
        """What `run` comes to for all inputs of the same shapes as these, if that is a single run of ONNX Runtime's."""
        whole = self._whole or self._lone(feeds)
        return None if whole is None else whole.shortcut(wanted)

    def drop_copies(self) -> None:
        """From now on NumPy runs what either can: ONNX Runtime's copies of its weights are given back.

        What NumPy runs well only beside a backward pass goes back to ONNX Runtime when none has come for some runs.
        """
        self._passes = 0
        if self._trains:
            return
        self._trains = self._drops_copies = True
        for index in self._choices:
            self._natives.pop(index, None)
        self._choices.clear()
        moved = {
            document_node(node): reason
            for piece in self._pieces
            for node in piece.nodes
            if piece.native and (reason := self._why_trained_on_numpy(node))
        }
        if moved:
            self._on_numpy |= moved
            self._trained += moved
            self._build()

    def _why_trained_on_numpy(self, node: ir.Node) -> str:
        """Why a node that ONNX Runtime runs is better run by NumPy in training; empty if it is not."""
        if self._options.as_is or node in self._barriers:
            return ""
        reason = why_numpy_pays(node, self._opsets, self._options, trains=True)
        parts = [other for other in self._model.graph if document_node(other) == document_node(node)] if reason else []
        return reason if len(parts) == 1 else ""

    def _end_training(self) -> None:
        """Goes back to ONNX Runtime, if there is the memory for it; the next time later, if training went on."""
        self._between *= 4
        before = self._on_numpy
        self._on_numpy = {id: reason for id, reason in before.items() if id not in self._trained}
        try:
            self._build()
        except MemoryError:
            self._on_numpy = before
            self._build()
            return
        self._trained.clear()
        self._trains = False

    def _run_pieces(self, feeds: Mapping[str, Any], wanted: Sequence[str], control: Control) -> list[Any]:
        values: dict[str, Any] = dict(feeds)
        for name, value in self._model.graph.initializers.items():
            if name in wanted or (name in self._given and name not in feeds):
                values[name] = array_of(value.const_value)
        for index, piece in enumerate(self._pieces):
            made = {value.name for node in piece.nodes for value in node.outputs}
            asked = [value.name or "" for value in piece.outputs]
            asked += [name for name in dict.fromkeys(wanted) if name in made and name not in asked]
            inputs = {value.name or "": values[value.name or ""] for value in piece.inputs}
            if piece.native or (index in self._choices and not self._choices[index].is_for_numpy(inputs)):
                results = self._run_native(index, inputs, tuple(asked), control)
            else:
                results = self._run_numpy(index, inputs, tuple(asked), control)
            values.update(zip(asked, results, strict=True))
        return [values[name] for name in wanted]

    def _run_native(
        self, index: int, inputs: dict[str, Any], asked: tuple[str, ...], control: Control
    ) -> Sequence[Any]:
        piece = self._pieces[index]
        for node in piece.nodes if index in self._choices else piece.barriers:
            if node in self._barriers:
                guard.check_values(node, document_node(node), inputs, self._opsets)
        if index not in self._natives:
            for value in piece.inputs:
                if value.type is None:
                    value.type = _type_of(inputs[value.name or ""])
            self._natives[index] = self._native(piece)
        native = self._natives[index]
        control.step(
            document_node(piece.nodes[0]),
            len(piece.nodes),
            lambda: tuple(dict.fromkeys(document_node(node) for node in piece.nodes)),
        )
        if not asked:  # nobody reads what these nodes make
            return ()
        return (native.run if control.times is None else native.run_timed)(inputs, asked, control)

    def _run_numpy(self, index: int, inputs: dict[str, Any], asked: tuple[str, ...], control: Control) -> Sequence[Any]:
        program, known = self._programs[index]
        values = dict(known)
        values.update((value, inputs[value.name or ""]) for value in self._pieces[index].inputs)
        keep = [self._made[name] for name in asked]
        program.run(values, set(keep), control, top=True)
        return [values[value] for value in keep]


def why_numpy_pays(node: ir.Node, opsets: Mapping[str, int], options: Options, trains: bool = False) -> str:
    """Why a node is better computed by its NumPy kernel than by ONNX Runtime's CPU, where a session `trains` or else;
    empty if it is not."""
    node_type = catalog.find(operator_name(node), opsets)
    if node_type is None or options.providers != CPU:
        return ""
    rule = node_type.numpy_trains if trains else node_type.numpy_pays
    if rule is None:
        return ""
    from runtime.lowering import type_in_model

    names = port_names(node_type, len(node.inputs))
    types = {name: type_in_model(value) for name, value in zip(names, node.inputs, strict=False) if value is not None}
    return rule(types, attribute_values(node), options.precision == "exact")


def inline_functions(model: ir.Model) -> None:
    """Replaces calls of model-local functions by their bodies, whose nodes inherit the call's document node."""
    if not model.functions:
        return
    try:
        passes.InlinePass()(model)
    except (ValueError, ir.passes.PassError) as error:
        cause = error.__cause__ or error
        raise GraphError(
            Finding(f"A model-local function cannot be put in the place of its call: {cause}", code="function")
        ) from error
    model.graph.sort()


def _type_of(value: Any) -> Any:
    """The IR type of a value that a run has produced."""
    if isinstance(value, list):
        if not value:
            raise GraphError(
                Finding(
                    "An empty sequence of an unknown type reaches ONNX Runtime, which must know the type.",
                    remedy="Declare the types of the graph's inputs.",
                    code="type",
                )
            )
        return ir.SequenceType(_type_of(value[0]))
    return ir.TensorType(ir.DataType(int(ElementType.of(value.dtype))))
