"""Running a graph: from inputs by name to outputs by name, on ONNX Runtime or on NumPy kernels."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from runtime.backends.control import Announce, Control, KernelValues, Placement, Progress, Shortcut
from runtime.backends.inputs import Acceptor, signature
from runtime.check import Checker
from runtime.compile import compile_graph
from runtime.errors import Finding, GraphError, Severity
from runtime.graph import Graph, PortRef
from runtime.guard import REMEMBERED_SHAPES, Guard, input_names
from runtime.lowering import write_forms
from runtime.nodes.terminals import Initializer, Output
from runtime.types import ElementType, TensorType, ValueType

if TYPE_CHECKING:
    import onnx_ir as ir

    from runtime.gradients import Backward

BACKENDS = ("onnxruntime", "numpy")
PRECISIONS = ("exact", "fast")
TRAINABLE = "trainable weight"
WRITTEN = ("Input", "Initializer", "Constant", "ConstantOfShape")
"""Types of nodes whose NaN and infinities come from the graph's author, or from its user."""
MOST_THREADS = 256
"""ONNX Runtime starts as many threads as it is told to, however few cores there are."""


@dataclass(slots=True)
class Run:
    """What a run left beside its outputs: seconds by node id, the probed values (of a backward pass: gradients) by
    "node.port", and of a backward pass how many bytes each node's gradient read of what the forward pass kept, and the
    Euclidean length of each gradient by name.

    Of ONNX Runtime, `times` are those of its kernels; what it spent in kernels that belong to no single node is under
    the empty id.
    """

    times: dict[str, float] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)


class _Engine(Protocol):
    placement: Placement

    def run(self, feeds: Mapping[str, Any], wanted: tuple[str, ...], control: Control) -> list[Any]: ...

    def shortcut(self, feeds: Mapping[str, Any], wanted: tuple[str, ...]) -> Shortcut | None: ...

    def drop_copies(self) -> None: ...


class Session:
    """A graph, checked and compiled, that runs as often as wanted. Later edits of the graph do not change it.

    `backend` is "onnxruntime", which runs NumPy kernels where ONNX Runtime has none, or "numpy". `providers` are ONNX
    Runtime's execution providers (its CPU's if None), `threads` how many it may use for one operator (its own choice
    if None). With `precision` "exact" no kernel rounds activations to integers unless a node itself asks for it
    (MatMulNBits' accuracy_level 4); "fast" allows those that do. `findings` says where. `as_is` gives ONNX Runtime the
    graph unchanged, for comparison, and nothing to NumPy.

    GraphError with the findings of `check` if the graph has errors, or if there is a node that nothing can run.
    """

    def __init__(
        self,
        graph: Graph,
        backend: Literal["onnxruntime", "numpy"] = "onnxruntime",
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        precision: Literal["exact", "fast"] = "exact",
        as_is: bool = False,
    ) -> None:
        _check_choice("backend", backend, BACKENDS)
        _check_choice("precision", precision, PRECISIONS)
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
            raise GraphError(Finding(f"threads must be 1 to {MOST_THREADS}, or None; {threads!r} came.", code="option"))
        if providers is not None and (
            isinstance(providers, str)
            or not isinstance(providers, Sequence)
            or not all(isinstance(name, str) for name in providers)
        ):
            raise GraphError(Finding(f"providers must be names in a list, or None; {providers!r} came.", code="option"))
        if providers is not None and backend != "onnxruntime":
            raise GraphError(Finding("providers are ONNX Runtime's; numpy has none.", code="option"))
        if as_is and backend != "onnxruntime":
            raise GraphError(
                Finding("as_is gives the graph unchanged to ONNX Runtime; numpy is something else.", code="option")
            )
        self._settings = (backend, providers, threads, precision, as_is)
        self._graph = graph.copy()
        checker = Checker(self._graph)
        found = list(checker.findings())
        errors = [finding for finding in found if finding.severity is Severity.ERROR]
        if errors:
            raise GraphError(errors)
        names = input_names(self._graph)
        self.inputs: dict[str, ValueType] = {name: checker.type_of(PortRef(id, "value")) for id, name in names.items()}
        """Types of the inputs by name. Those of `optional` may be left out: they have a default."""
        overridable = {
            str(state.parameters.get("name") or id): checker.type_of(PortRef(id, "value"))
            for id, state in self._graph.nodes.items()
            if state.type == Initializer.type_name() and state.parameters.get("overridable")
        }
        self.optional = frozenset(overridable)
        self.inputs |= overridable
        self.outputs: dict[str, ValueType] = {
            str(state.parameters.get("name") or id): _type_at(self._graph, checker, id)
            for id, state in self._graph.nodes.items()
            if state.type == Output.type_name()
        }
        """Types of the outputs by name, as far as they are known before a run."""
        self.announce: Announce | None = None
        """Called with the ids of the nodes that run next, right before they do, in a run that reports progress."""
        self.last_run = Run()
        self._lock = threading.RLock()
        self._checks = [finding for finding in found if finding.severity is not Severity.ERROR]
        self._wanted = tuple(self.outputs)
        self._acceptor = Acceptor(self.inputs, self.optional)
        self._untyped = [name for name, type in self.inputs.items() if type == TensorType() or not _has_element(type)]
        self._prepared: OrderedDict[tuple[Any, ...], _Prepared] = OrderedDict()
        self._current: _Prepared | None = None
        self._last: tuple[_Prepared, Mapping[str, Any]] | None = None
        self._shortcuts: dict[Any, tuple[_Prepared, Shortcut]] = {}
        """By signature of inputs that have been accepted: what computes the outputs, with nothing left to decide.
        There are none while runs are observed, nor once there was a backward pass."""
        if not self._untyped:
            self._current = self._prepared[()] = _Prepared(self._graph, checker, self._settings)

    @property
    def placement(self) -> dict[str, str]:
        """By node id: whether it runs in "onnxruntime" or in "numpy"."""
        return dict(self._current.engine.placement.backends) if self._current is not None else {}

    @property
    def findings(self) -> list[Finding]:
        """Warnings and notes: those of `check`, and what the backend has to say about kernels and precision, in the
        backward passes too that were made so far."""
        return self._checks + (self._current.findings() if self._current is not None else [])

    def forward(
        self,
        inputs: Mapping[str, Any],
        probes: Iterable[PortRef | str] = (),
        *,
        check_numerics: bool = False,
        times: bool = False,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> dict[str, Any]:
        """Runs the graph once and returns its outputs by name; `last_run` keeps the rest.

        Values are arrays (bfloat16, float8 and integers below 8 bits as ml_dtypes'), lists for sequences, None for an
        absent optional. `probes` are output ports whose values are wanted too; the outputs are the same with them (ONNX
        Runtime fuses no kernels across a probed value, which may show in a last bit).
        `check_numerics` raises GraphError if there is a node that makes a NaN, or an infinity, out of inputs that have
        none, and names the first. `times` measures every node; on ONNX Runtime that takes a session of its own.
        `progress(done, total, node)` is called before each node, or each group of nodes that run together; after
        `cancel` is set, the run stops soon with `Cancelled`, and the session can be used again.

        GraphError names the inputs that are missing or not of their type, or the node that failed.
        """
        if cancel is not None and not isinstance(cancel, threading.Event):
            raise GraphError(Finding(f"cancel is a threading.Event; {cancel!r} came.", code="option"))
        with self._lock:  # sessions and what they keep are made and forgotten during runs
            if not probes and not (check_numerics or times) and progress is None and cancel is None:
                return self._run_unobserved(inputs)
            return self._run_observed(inputs, probes, check_numerics, times, progress, cancel)

    def _run_unobserved(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        given = signature(self.inputs, inputs)
        known = self._shortcuts.get(given)
        if known is not None:
            # Next to a layer that reads more than the cache holds, each step here costs ten times what it does alone.
            prepared, run = known
            self._last = prepared, dict(inputs)
            return dict(zip(self._wanted, run(inputs), strict=True))
        prepared, feeds = self._accept(inputs)
        names = tuple(dict.fromkeys(self._wanted + prepared.keeps))
        control = Control(kept=prepared.room_for_kernels()) if prepared.keeps else _UNOBSERVED
        results = prepared.engine.run(feeds, names, control)
        if prepared.keeps:
            prepared.kept = feeds, dict(zip(names, results, strict=True)), control.kept
        elif given is not None and not self._untyped and all(feeds[name] is inputs[name] for name in inputs):
            # (Strings are brought into another form each time.)
            shortcut = prepared.engine.shortcut(feeds, names)
            if shortcut is not None:
                while len(self._shortcuts) >= REMEMBERED_SHAPES:
                    del self._shortcuts[next(iter(self._shortcuts))]
                self._shortcuts[given] = prepared, shortcut
        return dict(zip(self._wanted, results, strict=False))

    def _run_observed(
        self,
        inputs: Mapping[str, Any],
        probes: Iterable[PortRef | str],
        check_numerics: bool,
        times: bool,
        progress: Progress | None,
        cancel: threading.Event | None,
    ) -> dict[str, Any]:
        prepared, feeds = self._accept(inputs)
        self._shortcuts.clear()  # other values take other sessions, of which few are kept
        control = Control(progress, cancel, {} if times else None, announce=self.announce)
        asked = _ports(probes)
        watched = prepared.watched() if check_numerics else []
        values = prepared.values(feeds, self._wanted, [*asked, *watched], control)
        if check_numerics:
            _check_numerics(prepared.graph, watched, values)
        if progress is not None:
            progress(control.total, control.total, "")
        self.last_run = Run(control.times or {}, {str(probe): values[probe] for probe in asked})
        return {name: values[name] for name in self._wanted}

    def backward(
        self,
        gradients: Mapping[str, Any],
        wanted: Sequence[str] | None = None,
        *,
        probes: Iterable[PortRef | str] = (),
        times: bool = False,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> dict[str, np.ndarray]:
        """Gradients with respect to inputs and weights by name, at the inputs of the last `forward`.

        `gradients` gives the gradient of each output that counts: an array of its shape, or a number for all of its
        elements; for a loss it is 1.0. Gradients of several outputs add up. `wanted` are names of inputs and
        initializers; by default all inputs of floats and all trainable weights. What the outputs do not depend on has
        a gradient of zeros. `probes` are output ports whose gradients are wanted too; they are in `last_run.probes`,
        and `last_run.kept` says how many bytes of the forward pass each node's backward pass reads. `times`,
        `progress` and `cancel` as for `forward`.

        The first call runs the forward pass once more; from then on `forward` keeps what is needed. GraphError names a
        node that has no gradient, or keeps nothing because its `training?` is off.
        """
        names = self._wanted_gradients(wanted)
        asked = _ports(probes)
        control = Control(progress, cancel, {} if times else None, announce=self.announce)
        with self._lock:
            if self._last is None:
                raise GraphError(
                    Finding("There is nothing to go back through yet.", remedy="Call forward first.", code="backward")
                )
            prepared, feeds = self._last
            self._shortcuts.clear()  # from now on a forward pass keeps more than its outputs
            found, kept = prepared.backward(feeds, self._seeds(gradients), names, asked, control)
        if progress is not None:
            progress(control.total, control.total, "")
        results = {name: found[name] for name in names}
        norms = {name: _length(gradient) for name, gradient in results.items()}
        self.last_run = Run(control.times or {}, {str(probe): found[probe] for probe in asked}, kept, norms)
        return results

    def _accept(self, inputs: Mapping[str, Any]) -> tuple[_Prepared, Mapping[str, Any]]:
        """What runs these inputs, and they as it takes them, checked."""
        if not isinstance(inputs, Mapping):
            raise GraphError(Finding(f"Inputs are arrays by name; {type(inputs).__name__} came.", code="type"))
        feeds = self._acceptor.accept(inputs)
        prepared = self._current if not self._untyped else self._typed(feeds)
        assert prepared is not None
        self._last = prepared, feeds
        if prepared.guard.is_needed and prepared.guard.check(feeds):
            prepared.rebuild()
            self._shortcuts.clear()
        return prepared, feeds

    def _typed(self, feeds: Mapping[str, Any]) -> _Prepared:
        """The graph prepared for these element types, where it leaves some open."""
        key = tuple(_element_key(feeds.get(name)) for name in self._untyped)
        if key not in self._prepared:
            graph = self._graph.copy()
            for id, name in input_names(graph).items():
                if name in self._untyped and isinstance(feeds.get(name), np.ndarray):
                    graph.set(id, "type", f"tensor({ElementType.of(feeds[name].dtype)})")
            checker = Checker(graph)
            errors = [finding for finding in checker.findings() if finding.severity is Severity.ERROR]
            if errors:
                raise GraphError(errors)
            self._prepared[key] = _Prepared(graph, checker, self._settings)
            if len(self._prepared) > 4:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        self._current = self._prepared[key]
        return self._current

    def _wanted_gradients(self, wanted: Sequence[str] | None) -> list[str]:
        """The names of inputs and initializers whose gradients are wanted; GraphError for one that can have none."""
        weights = {
            str(state.parameters.get("name") or id): state
            for id, state in self._graph.nodes.items()
            if state.type == Initializer.type_name()
        }
        known: dict[str, ValueType] = dict(self.inputs)
        known |= {name: state.parameters["tensor"].type for name, state in weights.items()}
        if wanted is None:
            trainable = [n for n, state in weights.items() if state.parameters.get("training_type") == TRAINABLE]
            return [name for name in dict.fromkeys([*self.inputs, *trainable]) if _is_float_type(known[name])]
        for name in wanted:
            if name not in known:
                raise GraphError.at(
                    name, "", "There is no input and no initializer of this name.", f"There are {', '.join(known)}."
                )
            if not _is_float_type(known[name]):
                raise GraphError.at(name, "", f"Only floats have a gradient, and this is {known[name]}.", code="type")
        return list(wanted)

    def _seeds(self, gradients: Mapping[str, Any]) -> dict[str, Any]:
        for name in gradients:
            if name not in self.outputs:
                there = f"The outputs are {', '.join(self.outputs)}."
                raise GraphError.at(name, "", "The graph has no such output.", there, "surplus-output")
        if not gradients:
            raise GraphError(
                Finding(
                    "A backward pass starts at an output, and none was given.",
                    remedy=f"Give its gradient: {{{next(iter(self.outputs), 'loss')!r}: 1.0}}.",
                    code="missing-input",
                )
            )
        return dict(gradients)


def seed(name: str, given: Any, output: np.ndarray) -> np.ndarray:
    """The gradient of an output in its shape and type; GraphError if what was given does not fit."""
    array = np.asarray(given)
    if array.dtype.kind not in "fiu" and array.dtype != output.dtype:
        raise GraphError.at(name, "", f"The gradient of an output is an array of numbers; {array.dtype} came.")
    if array.ndim and array.shape != output.shape:
        raise GraphError.at(
            name, "", f"Its gradient must have its shape, {list(output.shape)}; {list(array.shape)} came.", code="shape"
        )
    return np.array(np.broadcast_to(array, output.shape), output.dtype)


def _length(array: np.ndarray) -> float:
    """The Euclidean length, summed in float64, in pieces that stay in the cache."""
    flat, step = array.reshape(-1), 1 << 15
    pieces = (flat[start : start + step].astype(np.float64) for start in range(0, flat.size, step))
    return math.sqrt(sum(float(piece @ piece) for piece in pieces))


_UNOBSERVED = Control()


class _Prepared:
    """A graph whose element types are known, with what runs it."""

    def __init__(self, graph: Graph, checker: Checker, settings: tuple[Any, ...]) -> None:
        self.graph = graph
        self._checker = checker
        self._settings = settings
        self.guard = Guard(graph, checker) if settings[0] == "onnxruntime" else _NoGuard()
        self.keeps: tuple[str, ...] = ()
        """What a forward pass keeps for the backward pass, beside the outputs."""
        self.kept: tuple[Mapping[str, Any], dict[str, Any], Mapping[str, KernelValues]] = {}, {}, {}
        """The inputs of the last forward pass that kept something, what it kept, and what its kernels kept by node."""
        self._backwards: OrderedDict[tuple[tuple[str, ...], tuple[str, ...]], tuple[Backward, _Engine]] = OrderedDict()
        self._ports: dict[PortRef, str] = {}
        self._tensors = {
            PortRef(id, "value"): state.parameters["tensor"]
            for id, state in graph.nodes.items()
            if state.type == Initializer.type_name() and not state.parameters.get("overridable")
        }
        self.rebuild()

    def rebuild(self) -> None:
        """Makes the engine: at the start, and when nodes have turned out to need a check right before they run."""
        compiled = compile_graph(self.graph)
        self._ports = dict(compiled.values)
        compiled.mark_nodes()
        compiled.give_types(self._checker.type_of)
        write_forms(compiled.model)
        self.engine = self._engine(compiled.model, self.guard.barriers)

    def _engine(self, model: ir.Model, barriers: frozenset[str] = frozenset()) -> _Engine:
        """What runs a model, which it takes over."""
        backend, providers, threads, precision, as_is = self._settings
        if backend == "numpy":
            from runtime.backends.numpy import Engine as NumpyEngine
            from runtime.backends.onnxruntime import inline_functions

            inline_functions(model)
            return NumpyEngine(model, threads)
        from runtime.backends.native import Options, check_providers
        from runtime.backends.onnxruntime import Engine as NativeEngine

        options = Options(check_providers(providers), threads or 0, precision, as_is)
        return NativeEngine(model, options, barriers)

    def backward(
        self,
        feeds: Mapping[str, Any],
        given: Mapping[str, Any],
        wanted: Sequence[str],
        ports: Sequence[PortRef],
        control: Control,
    ) -> tuple[dict[str | PortRef, np.ndarray], dict[str, int]]:
        """Gradients by name and by port, from those of the outputs; and the bytes kept for each node."""
        names: dict[str | PortRef, str] = {name: name for name in wanted} | {
            port: self._name_of(port) for port in ports
        }
        key = (tuple(given), tuple(names.values()))
        if key not in self._backwards:
            while len(self._backwards) >= 4:
                self._backwards.popitem(last=False)
            self._backwards[key] = self._prepare_backward(*key)
        self._backwards.move_to_end(key)
        plan, engine = self._backwards[key]
        if "numpy" in engine.placement.backends.values():
            self.engine.drop_copies()  # what computes the gradient needs the memory
        kept = self._forward(feeds, (*given, *dict.fromkeys(name for group in plan.kept.values() for name in group)))
        inputs = {plan.seeds[name]: seed(name, value, kept[name]) for name, value in given.items()}
        inputs |= {name: kept[name] for group in plan.kept.values() for name in group}
        control.kept = by_kernels = self.kept[2]
        there = {node: values.nbytes for node, values in by_kernels.items()}
        computed = tuple(name for name in dict.fromkeys(plan.gradients.values()) if name not in inputs)
        read = {name: inputs[name] for name in plan.inputs}
        values = inputs | (dict(zip(computed, engine.run(read, computed, control), strict=True)) if computed else {})
        results: dict[str | PortRef, np.ndarray] = {}
        for place, name in names.items():
            found = plan.gradients.get(name)
            results[place] = np.zeros_like(self._value(name, feeds)) if found is None else values[found]
        read_bytes = {node: sum(kept[name].nbytes for name in group) for node, group in plan.kept.items() if group}
        for node, size in there.items():
            if taken := size - by_kernels[node].nbytes:
                read_bytes[node] = read_bytes.get(node, 0) + taken
            by_kernels[node].by_key.clear()
        return results, read_bytes

    def room_for_kernels(self) -> dict[str, KernelValues]:
        """Where kernels of a forward pass keep something, for nodes whose gradients read numbers of it."""
        return {node: KernelValues() for plan, _ in self._backwards.values() for node in plan.kept}

    def findings(self) -> list[Finding]:
        """What the backend has to say of all passes."""
        engines = [self.engine, *(engine for _, engine in self._backwards.values())]
        return list(dict.fromkeys(finding for engine in engines for finding in engine.placement.findings))

    def _prepare_backward(self, outputs: Sequence[str], wanted: Sequence[str]) -> tuple[Backward, _Engine]:
        from runtime.backends.onnxruntime import inline_functions
        from runtime.gradients import backward_model

        compiled = compile_graph(self.graph)
        compiled.mark_nodes()
        inline_functions(compiled.model)
        compiled.give_types(self._checker.type_of)
        write_forms(compiled.model)
        plan = backward_model(compiled.model, outputs, list(dict.fromkeys(wanted)))
        return plan, self._engine(plan.model)

    def _forward(self, feeds: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        """Values of a forward pass: what the last one kept, or those of another one, and from then on kept."""
        missing = [name for name in names if name not in feeds and name not in self.keeps]
        if missing:
            self.keeps = (*self.keeps, *missing)
        if self.kept[0] is not feeds or missing:
            room = self.room_for_kernels()
            values = self.engine.run(feeds, self.keeps, Control(kept=room))
            self.kept = feeds, dict(zip(self.keeps, values, strict=True)), room
        return {**feeds, **self.kept[1]}

    def _value(self, name: str, feeds: Mapping[str, Any]) -> Any:
        tensor = next((t for port, t in self._tensors.items() if self._ports.get(port) == name), None)
        return tensor.array() if tensor is not None else self._forward(feeds, (name,))[name]

    def watched(self) -> list[PortRef]:
        """The output ports of all nodes whose values the model computes, in an order in which they run."""
        by_node: dict[str, list[PortRef]] = {}
        for port in self._ports:
            by_node.setdefault(port.node, []).append(port)
        return [port for id in self.graph.order() for port in by_node.get(id, ()) if port not in self._tensors]

    def values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], ports: Sequence[PortRef], control: Control
    ) -> dict[str | PortRef, Any]:
        """The outputs by name and the values of ports."""
        names = {port: self._name_of(port) for port in ports if port not in self._tensors}
        computed = tuple(dict.fromkeys([*outputs, *(name for name in names.values() if name not in feeds)]))
        results = {**feeds, **dict(zip(computed, self.engine.run(feeds, computed, control), strict=True))}
        values: dict[str | PortRef, Any] = {name: results[name] for name in outputs}
        values.update((port, results[name]) for port, name in names.items())
        values.update((port, self._tensors[port].array()) for port in ports if port in self._tensors)
        return values

    def _name_of(self, port: PortRef) -> str:
        name = self._ports.get(port)
        if name is not None:
            return name
        if port.node not in self.graph.nodes:
            raise GraphError.at(port.node, port.port, "There is no such node to probe.", code="probe")
        node_type = self.graph.node_type(port.node)
        if node_type is not None and node_type.output_port(port.port):
            remedy = "Wire it, or give it a name in specified_outputs_name."
            raise GraphError.at(port.node, port.port, "This output is not computed: nobody uses it.", remedy, "probe")
        raise GraphError.at(port.node, port.port, "There is no such output to probe.", code="probe")


class _NoGuard:
    """For the NumPy backend, whose kernels check what they are given themselves."""

    is_needed = False
    barriers: frozenset[str] = frozenset()

    def check(self, inputs: Mapping[str, Any]) -> bool:
        return False


def _check_numerics(graph: Graph, watched: Iterable[PortRef], values: Mapping[str | PortRef, Any]) -> None:
    """GraphError about the first node that makes a NaN or an infinity that none of its inputs has."""
    for port in watched:
        inputs = [values[source] for source in graph.inputs_of(port.node).values() if source in values]
        if graph.nodes[port.node].type in WRITTEN:
            continue  # an input of the graph, or a constant that the author wrote
        for word, test in (("NaN", np.isnan), ("infinite", np.isinf)):
            bad = _where(values[port], test)
            if bad is None or any(_where(value, np.isnan) is not None for value in inputs):
                continue
            if word == "infinite" and any(_where(value, np.isinf) is not None for value in inputs):
                continue
            count = len(bad)
            first = ", ".join(str(index) for index in bad[0])
            size = values[port].size
            raise GraphError.at(
                port.node,
                port.port,
                f"{count} of {size} values are {word}, the first at [{first}], though no input of the node is.",
                f"Probe the node's inputs ({', '.join(str(source) for source in graph.inputs_of(port.node).values())})"
                " to see what it was given.",
                "numerics",
            )


def _where(value: Any, test: Any) -> np.ndarray | None:
    """The indices, one a row, of the elements that pass the test; None if there are none."""
    if not _is_float(value):
        return None
    hits = test(value) if value.dtype.isbuiltin == 1 else test(value.astype(np.float32))
    return np.argwhere(hits) if hits.any() else None


def _is_float(value: Any) -> bool:
    if not isinstance(value, np.ndarray) or value.dtype.kind in "OUSTbiu":
        return False
    return value.dtype.kind == "c" or ElementType.of(value.dtype).is_float


def _is_float_type(type: ValueType) -> bool:
    return isinstance(type, TensorType) and (type.element is None or type.element.is_float)


def _has_element(type: ValueType) -> bool:
    """Whether the element type is known."""
    from runtime.types import MapType, OptionalType, SequenceType

    match type:
        case TensorType(element):
            return element is not None
        case SequenceType(of) | OptionalType(of):
            return _has_element(of)
        case MapType():
            return False


def _type_at(graph: Graph, checker: Checker, output: str) -> ValueType:
    source = graph.wires.get(PortRef(output, "value"))
    return checker.type_of(source) if source is not None else TensorType()


def _element_key(value: Any) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__


def _ports(probes: Iterable[PortRef | str]) -> list[PortRef]:
    if isinstance(probes, str):
        raise GraphError(Finding(f"probes are several: give a list, [{probes!r}].", code="probe"))
    return [_parse(probe) for probe in probes]


def _parse(probe: PortRef | str) -> PortRef:
    if not isinstance(probe, PortRef | str):
        raise GraphError(Finding(f'A probe is an output port, "node.port"; {probe!r} came.', code="probe"))
    try:
        return PortRef.parse(probe)
    except ValueError as error:
        raise GraphError(Finding(f"A probe is an output port: {error}.", code="probe")) from None


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise GraphError(
            Finding(
                f"{option} must be {' or '.join(repr(choice) for choice in choices)}; {value!r} came.", code="option"
            )
        )
