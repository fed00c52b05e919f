"""Part of a graph as ONNX Runtime sessions: how they are made, fed, timed, stopped, and what their errors mean."""

from __future__ import annotations

import json
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from runtime.backends.control import Control, Placement, Shortcut, document_node
from runtime.backends.ortvalues import detach_weights, from_ort, is_foreign, ort_value, to_ort, weights_folder
from runtime.errors import FileError, Finding, GraphError, Severity
from runtime.types import ElementType

if TYPE_CHECKING:
    from runtime.tensors import Tensor

ERRORS = (
    native.EPFail,
    native.EngineError,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NoModel,
    native.NoSuchFile,
    native.NotImplemented,
    native.RuntimeException,
    RuntimeError,
    ValueError,
)
"""What ONNX Runtime raises; its own classes have no base of their own."""

_NODE_IN_MESSAGE = (
    re.compile(r"node with name '([^']*)'"),
    re.compile(r"In Node, \(\"([^\"]*)\""),
    re.compile(r"Name:'([^']*)'"),
    re.compile(r"in node \(([^)]*)\)"),
    re.compile(r"Node \(([^)]*)\)"),
    re.compile(r"[Nn]ode:\s?([^\s']+)"),
)
_NOISE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+:\d+ ")
_QUIET = 4
"""Log level: fatal only. What goes wrong comes back as an exception."""
_USUAL = 2
"""ONNX Runtime's own log level: warnings too."""


CPU = ("CPUExecutionProvider",)


@dataclass(frozen=True, slots=True)
class Options:
    """How sessions are made. `spins`: whether threads wait awake for the next run, or give the cores back at once."""

    providers: tuple[str, ...] = CPU
    threads: int = 0
    precision: Literal["exact", "fast"] = "exact"
    as_is: bool = False
    spins: bool = True


def check_providers(wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The providers to use; GraphError if the installed ONNX Runtime lacks one."""
    if wanted is None:
        return CPU
    available = onnxruntime.get_available_providers()
    missing = [provider for provider in wanted if provider not in available]
    if missing:
        raise GraphError(
            Finding(
                f"The installed ONNX Runtime has no {' and no '.join(missing)}.",
                remedy=f"Available: {', '.join(available)}.",
                code="provider",
            )
        )
    return tuple(wanted)


class NativePiece:
    """Part of a graph as ONNX Runtime sessions: one for each set of values that has been asked for, a few at a time."""

    def __init__(self, model: ir.Model, options: Options, placement: Placement) -> None:
        self._options = options
        self._model = model
        if not options.as_is:
            placement.findings += _lower(model, options.precision)
        self._nodes = _document_nodes(model.graph)
        feeds: dict[str, Tensor] = model.meta.get("qmoe.feeds", {})
        self._feeds = {name: ort_value(tensor) for name, tensor in feeds.items()}
        self._weights = detach_weights(model)
        self._outputs = [value.name or "" for value in model.graph.outputs]
        self._values = {value.name: value for node in model.graph for value in node.outputs}
        self._sessions: OrderedDict[tuple[str, ...], onnxruntime.InferenceSession] = OrderedDict()
        self._foreign: dict[tuple[str, ...], bool] = {}
        self._takes_foreign = any(
            value.dtype is not None and is_foreign(ElementType(value.dtype.value)) for value in model.graph.inputs
        )
        self.session(tuple(self._outputs))

    def run(self, feeds: Mapping[str, Any], wanted: tuple[str, ...], control: Control) -> list[Any]:
        """The values called `wanted`; GraphError names the node that failed."""
        session = self.session(wanted)
        if self._takes_foreign:
            feeds = {name: to_ort(value) for name, value in feeds.items()}
        if self._feeds:
            feeds = {**feeds, **self._feeds}
        try:
            with _cancellable(control) as run_options:
                if self._foreign[wanted]:
                    return self._run_bound(session, feeds, wanted, run_options)
                return session.run(wanted, feeds, run_options)
        except ERRORS as error:
            control.check()
            raise self._translated(error, "could not run it", "kernel") from error

    def shortcut(self, wanted: tuple[str, ...]) -> Shortcut | None:
        """`run` without an end before its own; None where values have to be put into ONNX Runtime's form."""
        session = self.session(wanted)
        if self._takes_foreign or self._foreign[wanted]:
            return None
        run, own = session.run, self._feeds

        def shortcut(feeds: Mapping[str, Any]) -> Sequence[Any]:
            try:
                return run(wanted, {**feeds, **own} if own else feeds)
            except ERRORS as error:
                raise self._translated(error, "could not run it", "kernel") from error

        return shortcut

    def bind(
        self,
        wanted: tuple[str, ...],
        given: Mapping[str, onnxruntime.OrtValue],
        found: Mapping[str, onnxruntime.OrtValue],
    ) -> onnxruntime.IOBinding:
        """Runs that read some inputs from the same memory each time, and write some outputs into the same."""
        binding = self.session(wanted).io_binding()
        for name, value in {**given, **self._feeds}.items():
            binding.bind_ortvalue_input(name, value)
        for name in wanted:
            if name in found:
                binding.bind_ortvalue_output(name, found[name])
            else:
                binding.bind_output(name)
        return binding

    def run_binding(
        self, wanted: tuple[str, ...], binding: onnxruntime.IOBinding, feeds: Mapping[str, Any], control: Control
    ) -> None:
        """Like `run`, with what `bind` made for the same `wanted`, and the inputs that it leaves."""
        for name, value in feeds.items():
            value = to_ort(value) if self._takes_foreign else value
            if isinstance(value, onnxruntime.OrtValue):
                binding.bind_ortvalue_input(name, value)
            else:
                binding.bind_cpu_input(name, np.asarray(value, order="C"))  # ascontiguousarray has no scalars
        try:
            with _cancellable(control) as run_options:
                self.session(wanted).run_with_iobinding(binding, run_options)
        except ERRORS as error:
            control.check()
            raise self._translated(error, "could not run it", "kernel") from error

    def run_timed(self, feeds: Mapping[str, Any], wanted: tuple[str, ...], control: Control) -> list[Any]:
        """Like `run`, in a session of its own that measures every kernel; fills `control.times`."""
        kept = self._sessions.pop(wanted, None)
        with tempfile.TemporaryDirectory(prefix="qmoe-") as folder:
            session = self.session(wanted, profile=str(Path(folder, "profile")))
            try:
                self.run(feeds, wanted, control)  # the first run allocates
                results = self.run(feeds, wanted, control)
            finally:
                profile = session.end_profiling()
                del self._sessions[wanted]
                if kept is not None:
                    self._sessions[wanted] = kept
            try:
                events = json.loads(Path(profile).read_text())
            except ValueError as error:  # cut off
                raise FileError(profile, "ONNX Runtime could not write its times there: is the disk full?") from error
        times = control.times if control.times is not None else {}
        for node, seconds in self._kernel_times(events):
            times[node] = times.get(node, 0.0) + seconds
        return results

    def _kernel_times(self, events: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
        """Document node and seconds of every kernel of the last of two runs."""
        runs = sorted(event["ts"] for event in events if event.get("name") == "model_run")
        start = runs[-1] if runs else 0
        by_length = sorted(self._nodes, key=len, reverse=True)
        for event in events:
            name = event.get("name", "")
            if event.get("cat") != "Node" or not name.endswith("_kernel_time") or event["ts"] < start:
                continue
            name = name.removesuffix("_kernel_time")
            # A kernel that ONNX Runtime fused is called after one of the nodes that it stands for.
            known = name if name in self._nodes else next((node for node in by_length if node and node in name), "")
            yield self._nodes.get(known, ""), event["dur"] / 1e6

    def session(self, wanted: tuple[str, ...], profile: str = "") -> onnxruntime.InferenceSession:
        """The session that gives the values called `wanted`."""
        session = self._sessions.get(wanted)
        if session is None:
            session = self._make(wanted, profile)
            self._sessions[wanted] = session
            while len(self._sessions) > 4:
                forgotten, _ = self._sessions.popitem(last=False)
                del self._foreign[forgotten]
        return session

    def _make(self, wanted: tuple[str, ...], profile: str) -> onnxruntime.InferenceSession:
        graph = self._model.graph
        graph.outputs.clear()
        graph.outputs.extend(self._values[name] for name in wanted)
        content = ir.to_proto(self._model).SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _QUIET
        if self._options.threads:
            options.intra_op_num_threads = self._options.threads
        if self._options.precision == "exact" and not self._options.as_is:
            # DequantizeLinear followed by MatMul becomes MatMulNBits, by default with activations rounded to 8 bits.
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if not self._options.spins:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        for name, value in self._weights.values.items():
            options.add_initializer(name, value)
        try:
            with weights_folder(self._weights) as folder, _without_warnings():
                if folder is not None:
                    options.add_session_config_entry(
                        "session.model_external_initializers_file_folder_path", str(folder)
                    )
                session = onnxruntime.InferenceSession(content, options, providers=list(self._options.providers))
        except ERRORS as error:
            raise self._translated(error, "cannot run it", "no-kernel") from error
        self._foreign[wanted] = any(_is_foreign_type(output.type) for output in session.get_outputs())
        return session

    def _run_bound(
        self,
        session: onnxruntime.InferenceSession,
        feeds: Mapping[str, Any],
        wanted: Sequence[str],
        run_options: onnxruntime.RunOptions,
    ) -> list[Any]:
        """For outputs of types that NumPy lacks, which `run` cannot return."""
        binding = session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, onnxruntime.OrtValue):
                binding.bind_ortvalue_input(name, value)
            else:
                binding.bind_cpu_input(name, value)
        for name in wanted:
            binding.bind_output(name)
        session.run_with_iobinding(binding, run_options)
        return [from_ort(value) for value in binding.get_outputs()]

    def _translated(self, error: Exception, what: str, code: str) -> GraphError:
        """ONNX Runtime's message as an error about a node of the document, if it names one."""
        text = str(error).strip()
        node = ""
        for pattern in _NODE_IN_MESSAGE:
            match = pattern.search(text)
            if match and match[1] in self._nodes:
                node = self._nodes[match[1]]
                break
        message = _NOISE.sub("", text)
        return GraphError.at(node, "", f"ONNX Runtime {what}: {message}", code=code)


def _lower(model: ir.Model, precision: Literal["exact", "fast"]) -> list[Finding]:
    """Rewrites what ONNX Runtime's CPU kernels would refuse or get wrong, and tells where a graph asks for rounding."""
    from runtime.lowering import lower

    findings = list(lower(model, precision=precision))
    findings += [_leave_out_rounding(node) for node in model.graph.all_nodes() if _rounds_wrongly(node)]
    if precision == "exact":
        findings += [_rounding(node) for node in model.graph.all_nodes() if _rounds_activations(node)]
    return findings


def _rounds_activations(node: ir.Node) -> bool:
    level = node.attributes.get("accuracy_level")
    return node.op_type == "MatMulNBits" and node.domain == "com.microsoft" and level is not None and level.value == 4


def _rounds_wrongly(node: ir.Node) -> bool:
    """Whether the kernel that rounds activations would put its weights together without their scales.

    It does so when a session is made, and takes scales and zero points that are not known then for nothing at all.
    """
    return _rounds_activations(node) and any(
        value is not None and (value.const_value is None or value.is_graph_input()) for value in node.inputs[2:4]
    )


def _leave_out_rounding(node: ir.Node) -> Finding:
    """Takes back what the graph's author chose, and tells that."""
    node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    return Finding(
        "accuracy_level 4 is left out: ONNX Runtime gives wrong numbers with it where scales or zero points are no "
        "constants.",
        document_node(node),
        "accuracy_level",
        Severity.NOTE,
        code="accuracy-level",
    )


def _rounding(node: ir.Node) -> Finding:
    """The graph's author chose the rounding; whoever reads the numbers should know."""
    return Finding(
        "accuracy_level 4 asks the kernel to round activations to 8 bits, and so it does.",
        document_node(node),
        "accuracy_level",
        Severity.NOTE,
        "Set accuracy_level to 1 for products in float32.",
        "accuracy-level",
    )


def _document_nodes(graph: ir.Graph) -> dict[str, str]:
    """The document's node by the name of each ONNX node. Nodes inside subgraphs belong to the node around them."""
    names: dict[str, str] = {}
    for node in graph:
        owner = document_node(node)
        names[node.name or ""] = owner
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                names |= dict.fromkeys(_document_nodes(attribute.value), owner)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for body in attribute.value:
                    names |= dict.fromkeys(_document_nodes(body), owner)
    names.pop("", None)
    return names


def _is_foreign_type(text: str) -> bool:
    """Whether values of ONNX Runtime's type string hold elements that NumPy lacks."""
    return any(part in text for part in ("bfloat16", "float8", "float4", "int4", "int2)"))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Spares the user kernels' warnings, past the session's log level: which of their ways they do not take."""
    onnxruntime.set_default_logger_severity(_QUIET)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_USUAL)


@contextmanager
def _cancellable(control: Control) -> Iterator[onnxruntime.RunOptions | None]:
    """Run options whose run stops soon after the control's cancel event is set; None if there is no such event."""
    cancel = control.cancel
    if cancel is None:
        yield None
        return
    options = onnxruntime.RunOptions()
    _watcher.add(cancel, options)
    try:
        yield options
    finally:
        _watcher.remove(options)


class _Watcher:
    """A thread that stops runs whose cancel event is set. It ends when there has been no run for a while."""

    _INTERVAL = 0.01
    _IDLE = 100

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: list[tuple[threading.Event, onnxruntime.RunOptions]] = []
        self._is_awake = False

    def add(self, cancel: threading.Event, options: onnxruntime.RunOptions) -> None:
        """Watches a run."""
        with self._lock:
            self._runs.append((cancel, options))
            if not self._is_awake:
                self._is_awake = True
                threading.Thread(target=self._watch, name="cancel", daemon=True).start()

    def remove(self, options: onnxruntime.RunOptions) -> None:
        """Ends that."""
        with self._lock:
            self._runs = [run for run in self._runs if run[1] is not options]

    def _watch(self) -> None:
        idle = 0
        while True:
            sleep(self._INTERVAL)
            with self._lock:
                idle = 0 if self._runs else idle + 1
                if idle > self._IDLE:
                    self._is_awake = False
                    return
                for cancel, options in self._runs:
                    if cancel.is_set():
                        options.terminate = True


_watcher = _Watcher()
