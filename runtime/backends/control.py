"""What one run reports while it works, and how it is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

from runtime.errors import Cancelled, Finding, GraphError

if TYPE_CHECKING:
    import onnx_ir as ir

Progress: TypeAlias = Callable[[int, int, str], None]
"""`progress(done, total, node)`: how many of how many nodes are done, and the node that comes next ("" at the end)."""

Announce: TypeAlias = Callable[[tuple[str, ...]], None]
"""`announce(nodes)`: the nodes that run next, together."""

Shortcut: TypeAlias = Callable[[Mapping[str, Any]], Sequence[Any]]
"""`shortcut(feeds)`: the outputs of a run that nobody observes, of inputs that need no check any more."""


@dataclass(slots=True)
class KernelValues:
    """What one node's kernel keeps in a forward pass for its backward pass, by a key of its own: each has `nbytes`.

    `is_one_run` says that both passes are one run, so that nobody writes into a value between them.
    """

    is_one_run: bool = False
    by_key: dict[Any, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """How much memory all of it takes."""
        return sum(value.nbytes for value in self.by_key.values())


@dataclass(slots=True)
class Control:
    """The observers of one run. `times` collects seconds by node id where it is a dictionary.

    `kept` is where kernels of a forward pass keep something for its backward pass: by the id of each node whose
    gradient reads numbers of it.
    """

    progress: Progress | None = None
    cancel: threading.Event | None = None
    times: dict[str, float] | None = None
    total: int = 0
    done: int = 0
    announce: Announce | None = None
    kept: Mapping[str, KernelValues] = field(default_factory=dict)
    node: str = ""

    def step(self, node: str, count: int = 1, together: Callable[[], tuple[str, ...]] | None = None) -> None:
        """Tells that `node` comes next and stands for `count` nodes; Cancelled if the user wants no more.

        `together` gives the ids of all of them if it is not only the one.
        """
        self.check()
        self.node = node
        if self.announce is not None:
            self.announce(together() if together is not None else (node,))
        if self.progress is not None:
            self.progress(self.done, self.total, node)
        self.done += count

    def check(self) -> None:
        """Cancelled if the user wants no more."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("The run was cancelled.")

    @contextmanager
    def timed(self, node: str) -> Iterator[None]:
        """Adds the time that the block takes to the node's."""
        if self.times is None:
            yield
            return
        start = perf_counter()
        yield
        self.times[node] = self.times.get(node, 0.0) + perf_counter() - start


_running = threading.local()


@contextmanager
def observed(control: Control, threads: int | None = None) -> Iterator[None]:
    """Lets kernels that run for long ask whether this run is still wanted, and how many threads they may use."""
    before = getattr(_running, "control", None), getattr(_running, "threads", None)
    _running.control, _running.threads = control, threads
    try:
        yield
    finally:
        _running.control, _running.threads = before


def checkpoint() -> None:
    """Cancelled if the run that calls this kernel is not wanted any more."""
    control = getattr(_running, "control", None)
    if control is not None:
        control.check()


def allowed_threads() -> int | None:
    """How many threads the run that calls this kernel may use; None if that is left to the kernel."""
    found: int | None = getattr(_running, "threads", None)
    return found


def kept_values() -> KernelValues | None:
    """What the running node's kernel keeps for its backward pass, or has kept; None where there is none to come."""
    control: Control | None = getattr(_running, "control", None)
    return None if control is None else control.kept.get(control.node)


@dataclass(slots=True)
class Placement:
    """Where the nodes of a graph run, and what is worth knowing about that."""

    backends: dict[str, str] = field(default_factory=dict)
    """By node id: "onnxruntime" or "numpy"."""
    findings: list[Finding] = field(default_factory=list)


def document_node(node: ir.Node) -> str:
    """The id of the document's node that an ONNX node belongs to."""
    return node.metadata_props.get("qmoe.node") or node.name or ""


def named(error: GraphError, node: str) -> GraphError:
    """The error with `node` as the place of those findings that name none or name an operator instead."""
    return GraphError(
        Finding(finding.message, node, finding.port, finding.severity, finding.remedy, finding.code)
        for finding in error.findings
    )


def operator_name(node: ir.Node) -> str:
    """The operator as documents write it: `MatMul`, `com.microsoft.QMoE`."""
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def attribute_values(node: ir.Node) -> dict[str, Any]:
    """A node's attributes as plain values; tensors as arrays, graphs as they are."""
    import onnx_ir as ir

    values: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        if attribute.type == ir.AttributeType.TENSOR:
            value = value.numpy()
        elif isinstance(value, tuple):
            value = list(value)
        values[name] = value
    return values
