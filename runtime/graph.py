"""The document: nodes and wires, changed only by five primitive edits, with transactions and undo.

A `Graph` holds what its author wrote, finished or not: `runtime.check` says what is wrong with it. Nodes are
immutable `NodeState`s, so that a copy of a graph is cheap and a snapshot stays what it was. Layout (positions,
groups) is kept apart from meaning: an edit of it changes no result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from runtime import catalog
from runtime.errors import Finding, GraphError

if TYPE_CHECKING:
    from runtime.check import Checker
    from runtime.node import Node


class PortRef(NamedTuple):
    """One port of one node of a graph; written `node.port`."""

    node: str
    port: str

    def __str__(self) -> str:
        return f"{self.node}.{self.port}"

    @classmethod
    def parse(cls, text: str | PortRef) -> PortRef:
        """`moe.input` and `split.outputs.1`: the node's id ends at the first dot. ValueError without one."""
        if isinstance(text, PortRef):
            return text
        node, dot, port = text.partition(".")
        if not (node and dot and port):
            raise ValueError(f"a port is written node.port, not {text!r}")
        return cls(node, port)


class _Absent:
    """The value of a key that is not there (None is a value)."""

    def __repr__(self) -> str:
        return "ABSENT"

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()

SECTIONS = ("info", "opsets", "functions", "layout", "extra")
"""What a graph holds beside nodes and wires: info (name, doc, metadata, ...), operator set versions by domain,
model-local functions (graphs by name), layout (groups and the like), and unknown keys, kept verbatim."""

NODE_SECTIONS = ("parameters", "layout", "extra")

ID_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]{0,127}")


@dataclass(frozen=True)
class NodeState:
    """A node of a document at one moment. The mappings are never changed in place.

    `parameters` holds what was set, by the names of the node type's declaration; `layout` position and the like;
    `extra` keys that this version does not know.
    """

    id: str
    type: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Add:
    """Adds a node without wires, at `index` in the document's order (at the end if None)."""

    node: NodeState
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Remove:
    """Removes a node that has no wires."""

    id: str


@dataclass(frozen=True, slots=True)
class Wire:
    """Connects an output to an input that has no wire yet, at `index` among the node's wired inputs (None: last)."""

    source: PortRef
    target: PortRef
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """Removes the wire that ends at an input."""

    target: PortRef


@dataclass(frozen=True, slots=True)
class Set:
    """Sets one key of one section of a node, or of the graph if `node` is empty. ABSENT removes the key.

    A new key goes to `index` among the section's keys, to the end if that is None.
    """

    node: str
    section: str
    key: str
    value: Any
    index: int | None = None

    @property
    def is_layout(self) -> bool:
        """Whether it moves things without changing what the graph means."""
        return self.section == "layout"


Edit: TypeAlias = Add | Remove | Wire | Cut | Set
Listener: TypeAlias = Callable[[Edit], None]


@dataclass(slots=True)
class Step:
    """One entry of the undo history: the edits that take the document back, last first."""

    label: str
    merge: str
    inverses: list[Edit]


class Graph:
    """A document. See the module's text; `runtime.load` reads one from a file."""

    def __init__(self, name: str = "", *, opsets: Mapping[str, int] | None = None) -> None:
        self._nodes: dict[str, NodeState] = {}
        self._sources: dict[PortRef, PortRef] = {}  # by target
        self._targets: dict[PortRef, dict[PortRef, None]] = {}  # by source, in wiring order
        self._incident: dict[str, dict[PortRef, None]] = {}  # by node: targets of the wires that touch it
        self._sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        self._sections["opsets"] = dict(opsets or {})
        if name:
            self._sections["info"]["name"] = name
        self._listeners: list[Listener] = []
        self._undo: list[Step] = []
        self._redo: list[Step] = []
        self._open: Step | None = None
        self._counters: dict[str, int] = {}
        self._checker: Checker | None = None
        self._order: tuple[str, ...] | None = None
        self._nested: set[str] = set()  # nodes with subgraphs
        self._telling = False

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> Mapping[str, NodeState]:
        """The nodes by id, in the document's order."""
        return self._nodes

    @property
    def wires(self) -> Mapping[PortRef, PortRef]:
        """The source of every connected input: {target: source}."""
        return self._sources

    def section(self, name: str) -> Mapping[str, Any]:
        """One of SECTIONS."""
        return self._sections[name]

    @property
    def name(self) -> str:
        """The graph's name, or an empty string."""
        return str(self._sections["info"].get("name", ""))

    @property
    def opsets(self) -> Mapping[str, int]:
        """Versions of the operator sets by domain; a domain that is not there has the newest installed one."""
        return self._sections["opsets"]

    def node_type(self, id: str) -> type[Node] | None:
        """The declaration of a node's type at this graph's operator set versions; None if the type is unknown."""
        return catalog.find(self._nodes[id].type, self.opsets)

    def targets(self, source: PortRef) -> tuple[PortRef, ...]:
        """The inputs that an output is wired to."""
        return tuple(self._targets.get(source, ()))

    def wires_of(self, id: str) -> list[tuple[PortRef, PortRef]]:
        """The wires (source, target) that touch a node."""
        return [(self._sources[target], target) for target in self._incident[id]]

    def inputs_of(self, id: str) -> dict[str, PortRef]:
        """The sources of a node's connected inputs by port name."""
        return {target.port: self._sources[target] for target in self._incident[id] if target.node == id}

    def order(self) -> tuple[str, ...]:
        """Ids such that a node comes after all that feed it, also through captured values; else in document order.

        Nodes that feed each other through captured values, which `check` reports, are left out.
        """
        if self._order is None:
            self._order = self._ordered()
        return self._order

    def _ordered(self) -> tuple[str, ...]:
        waiting = dict.fromkeys(self._nodes, 0)
        for target in self._sources:
            waiting[target.node] += 1
        readers = self._readers()
        for others in readers.values():
            for id in others:
                waiting[id] += 1
        ready = [id for id, count in reversed(waiting.items()) if not count]
        done: list[str] = []
        while ready:
            id = ready.pop()
            done.append(id)
            freed = []
            for target in self._incident[id]:
                if self._sources[target].node == id:
                    waiting[target.node] -= 1
                    if not waiting[target.node]:
                        freed.append(target.node)
            for reader in readers.get(id, ()):
                waiting[reader] -= 1
                if not waiting[reader]:
                    freed.append(reader)
            ready.extend(reversed(freed))
        return tuple(done)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        return (
            list(self._nodes) == list(other._nodes)
            and self._sources == other._sources
            and all(same(state, other._nodes[id]) for id, state in self._nodes.items())
            and same(self._sections, other._sections)
        )

    __hash__ = object.__hash__

    def copy(self) -> Graph:
        """A graph of the same content with no history and no listeners. Cheap: node states are shared."""
        twin = Graph()
        twin._nodes = dict(self._nodes)
        twin._sources = dict(self._sources)
        twin._targets = {source: dict(targets) for source, targets in self._targets.items()}
        twin._incident = {id: dict(targets) for id, targets in self._incident.items()}
        twin._sections = {section: dict(content) for section, content in self._sections.items()}
        twin._counters = dict(self._counters)
        twin._order = self._order
        twin._nested = set(self._nested)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """What crosses to another process: the content, no history and no listeners."""
        twin = self.copy()
        twin._order = None
        return vars(twin)

    # -- what may be wired --------------------------------------------------------------------------------------

    @property
    def checker(self) -> Checker:
        """What is known about this graph's types and mistakes, kept up to date with its edits."""
        if self._checker is None:
            from runtime.check import Checker

            self._checker = Checker(self)
        return self._checker

    def why_not(self, source: PortRef | str, target: PortRef | str) -> str | None:
        """Why a wire from `source` to `target` would be refused, in one sentence; None if it may be made.

        A target that has a wire already is no reason: `wire` replaces it.
        """
        source, target = PortRef.parse(source), PortRef.parse(target)
        return self._why_not_connected(source, target) or self.checker.why_not(source, target)

    def _why_not_connected(self, source: PortRef, target: PortRef) -> str | None:
        """The part of `why_not` that holds even while a graph is unfinished: nodes, ports and cycles."""
        for id in (source.node, target.node):
            if id not in self._nodes:
                return f"There is no node {id!r} in this graph."
        source_type, target_type = self.node_type(source.node), self.node_type(target.node)
        if source_type and not source_type.output_port(source.port):
            ports = ", ".join(port.name for port in source_type.outputs) or "none"
            return f"{source_type.type_name()} has no output {source.port!r}; its outputs: {ports}."
        if target_type and not target_type.input_port(target.port):
            ports = ", ".join(port.name for port in target_type.inputs) or "none"
            return f"{target_type.type_name()} has no input {target.port!r}; its inputs: {ports}."
        if source.node == target.node:
            return f"{source.node} cannot feed itself: a graph has no cycles."
        if self.reaches(target.node, source.node):
            return f"{source.node} already depends on {target.node}: this wire would close a cycle."
        return None

    def reaches(self, start: str, end: str) -> bool:
        """Whether data flows from node `start` to node `end`, by wires or by values that subgraphs capture."""
        readers = self._readers()
        seen, stack = {start}, [start]
        while stack:
            id = stack.pop()
            if id == end:
                return True
            for target in self._incident[id]:
                if self._sources[target].node == id and target.node not in seen:
                    seen.add(target.node)
                    stack.append(target.node)
            fresh = readers.get(id, set()) - seen
            seen |= fresh
            stack.extend(fresh)
        return False

    def _readers(self) -> dict[str, set[str]]:
        """By node: the nodes whose subgraphs capture its values."""
        if not self._nested:
            return {}
        from runtime.captures import read_through_captures

        readers: dict[str, set[str]] = {}
        for reader, sources in read_through_captures(self).items():
            for source in sources:
                readers.setdefault(source, set()).add(reader)
        return readers

    # -- the five primitive edits -------------------------------------------------------------------------------

    def apply(self, edit: Edit) -> Edit:
        """Makes one edit and returns its inverse. GraphError, and no change, if it cannot be made.

        Outside a transaction it is an undo step of its own.
        """
        if self._open is None:
            with self.transaction(type(edit).__name__):
                return self.apply(edit)
        self._refuse_listeners()
        inverse = self._perform(edit)
        self._open.inverses.append(inverse)
        self._tell(edit)
        return inverse

    def _perform(self, edit: Edit) -> Edit:
        if not isinstance(edit, Set) or self._nested or isinstance(edit.value, Graph | list | tuple):
            self._order = None
        match edit:
            case Add(node, index):
                return self._add(node, index)
            case Remove(id):
                return self._remove(id)
            case Wire(source, target, index):
                return self._wire(source, target, index)
            case Cut(target):
                if target not in self._sources:
                    raise GraphError.at(target.node, target.port, "There is no wire here to cut.", code="no-wire")
                index = list(self.inputs_of(target.node)).index(target.port)
                source = self._sources.pop(target)
                del self._targets[source][target]
                if not self._targets[source]:
                    del self._targets[source]
                self._incident[source.node].pop(target, None)
                self._incident[target.node].pop(target, None)
                return Wire(source, target, index)
            case Set():
                return self._set(edit)

    def _add(self, node: NodeState, index: int | None) -> Edit:
        if not ID_PATTERN.fullmatch(node.id):
            raise GraphError.at(
                node.id, "", "A node's id is a letter or _ followed by letters, digits, _ and -.", code="bad-id"
            )
        if node.id in self._nodes:
            raise GraphError.at(node.id, "", "There is a node with this id already.", "Choose another.", "duplicate")
        node = replace(node, parameters=_owned(node.parameters), layout=_owned(node.layout), extra=_owned(node.extra))
        if index is None or index >= len(self._nodes):
            self._nodes[node.id] = node
        else:
            items = list(self._nodes.items())
            items.insert(index, (node.id, node))
            self._nodes.clear()
            self._nodes.update(items)
        self._incident[node.id] = {}
        self._note_subgraphs(node)
        return Remove(node.id)

    def _note_subgraphs(self, node: NodeState) -> None:
        has = any(_holds_graph(value) for value in node.parameters.values())
        (self._nested.add if has else self._nested.discard)(node.id)

    def _remove(self, id: str) -> Edit:
        node = self._existing(id)
        if self._incident[id]:
            raise GraphError.at(id, "", "A node with wires cannot be removed.", "Cut its wires first.", "wired")
        index = list(self._nodes).index(id)
        del self._nodes[id], self._incident[id]
        self._nested.discard(id)
        return Add(node, index)

    def _wire(self, source: PortRef, target: PortRef, index: int | None) -> Edit:
        reason = self._why_not_connected(source, target)
        if reason is None and target in self._sources:
            reason = f"It is wired to {self._sources[target]} already."
        if reason:
            raise GraphError.at(target.node, target.port, reason, code="wire")
        self._connect(source, target)
        inputs = [wired for wired in self._incident[target.node] if wired.node == target.node]
        if index is not None and index < len(inputs) - 1:
            inputs.insert(index, inputs.pop())
            others = [wired for wired in self._incident[target.node] if wired.node != target.node]
            self._incident[target.node] = dict.fromkeys([*inputs, *others])
        return Cut(target)

    def _connect(self, source: PortRef, target: PortRef) -> None:
        self._sources[target] = source
        self._targets.setdefault(source, {})[target] = None
        self._incident[source.node][target] = None
        self._incident[target.node][target] = None

    def _set(self, edit: Set) -> Edit:
        if edit.node:
            node = self._existing(edit.node)
            if edit.section not in NODE_SECTIONS:
                raise GraphError.at(edit.node, "", f"A node has no section {edit.section!r}.", code="section")
            content = dict(getattr(node, edit.section))
        else:
            if edit.section not in SECTIONS:
                raise GraphError(Finding(f"A graph has no section {edit.section!r}.", code="section"))
            content = self._sections[edit.section]
        previous = content.get(edit.key, ABSENT)
        index = None
        if edit.value is ABSENT:
            index = list(content).index(edit.key) if edit.key in content else None
            content.pop(edit.key, None)
        else:
            is_new = edit.key not in content
            content[edit.key] = _owned(edit.value)
            if is_new and edit.index is not None:
                for key in list(content)[edit.index : -1]:
                    content[key] = content.pop(key)
        if edit.node:
            changes: dict[str, Any] = {edit.section: content}
            self._nodes[edit.node] = replace(node, **changes)
            self._note_subgraphs(self._nodes[edit.node])
        return replace(edit, value=previous, index=index)

    def _existing(self, id: str) -> NodeState:
        node = self._nodes.get(id)
        if node is None:
            raise GraphError.at(id, "", "There is no node with this id in the graph.", code="no-node")
        return node

    # -- editing in steps of the user's size --------------------------------------------------------------------

    @contextmanager
    def transaction(self, label: str, merge: str = "") -> Iterator[None]:
        """Groups edits into one undo step called `label`; an exception takes all of them back.

        A transaction inside another joins it, but an exception takes back its own edits only. One with the same
        non-empty `merge` key as the step before it extends that step (a slider being dragged is one step).
        """
        self._refuse_listeners()
        outer = self._open
        if outer is not None:
            start = len(outer.inverses)
            try:
                yield
            except BaseException as error:
                self._roll_back(outer.inverses, error, start)
                raise
            return
        step = self._open = Step(label, merge, [])
        try:
            yield
        except BaseException as error:
            self._roll_back(step.inverses, error)
            raise
        finally:
            self._open = None
        if not step.inverses:
            return
        last = self._undo[-1] if self._undo else None
        if merge and last and last.merge == merge and not self._redo:
            last.inverses.extend(step.inverses)
        else:
            self._undo.append(step)
        self._redo.clear()

    def add(
        self,
        type: str,
        id: str = "",
        *,
        parameters: Mapping[str, Any] | None = None,
        layout: Mapping[str, Any] | None = None,
    ) -> str:
        """Adds a node and returns its id: the given one, or a new short one made from the type (`qmoe_0`)."""
        id = id or self.new_id(type)
        self.apply(Add(NodeState(id, type, dict(parameters or {}), dict(layout or {}))))
        return id

    def remove(self, id: str) -> None:
        """Removes a node and its wires, in one undo step."""
        self._existing(id)
        with self.transaction(f"Remove {id}"):
            for _, target in self.wires_of(id):
                self.apply(Cut(target))
            self.apply(Remove(id))

    def wire(self, source: PortRef | str, target: PortRef | str) -> None:
        """Connects an output to an input; a wire that ends there already is replaced, in one undo step.

        GraphError if a node or port does not exist or the wire would close a cycle. Types may disagree: the document
        can hold a wrong graph, and `check` says so; ask `why_not` first to refuse.
        """
        source, target = PortRef.parse(source), PortRef.parse(target)
        with self.transaction(f"Wire {source} to {target}"):
            if target in self._sources:
                self.apply(Cut(target))
            self.apply(Wire(source, target))

    def cut(self, target: PortRef | str) -> None:
        """Removes the wire that ends at an input."""
        self.apply(Cut(PortRef.parse(target)))

    def set(self, node: str, key: str, value: Any, *, section: str = "parameters", merge: str = "") -> None:
        """Sets a node's parameter (or a key of another section; of the graph if `node` is empty)."""
        with self.transaction(f"Set {node}.{key}" if node else f"Set {key}", merge):
            self.apply(Set(node, section, key, value))

    def new_id(self, type: str) -> str:
        """An unused id made from a node type's name. Never one that was handed out before."""
        stem = re.sub(r"[^a-z0-9]+", "_", type.rpartition(".")[2].lower()).strip("_") or "node"
        stem = stem if stem[0].isalpha() else f"node_{stem}"
        number = self._counters.get(stem, 0)
        while f"{stem}_{number}" in self._nodes:
            number += 1
        self._counters[stem] = number + 1
        return f"{stem}_{number}"

    # -- undo -----------------------------------------------------------------------------------------------------

    @property
    def undo_labels(self) -> list[str]:
        """What can be undone, oldest first."""
        return [step.label for step in self._undo]

    @property
    def redo_labels(self) -> list[str]:
        """What can be redone, next last."""
        return [step.label for step in self._redo]

    def undo(self) -> str | None:
        """Takes the last step back and returns its label; None if there is none."""
        return self._travel(self._undo, self._redo)

    def redo(self) -> str | None:
        """Makes the last undone step again and returns its label; None if there is none."""
        return self._travel(self._redo, self._undo)

    def _travel(self, origin: list[Step], destination: list[Step]) -> str | None:
        self._refuse_listeners()
        if self._open is not None:
            raise GraphError(Finding("Undo and redo cannot run inside a transaction.", code="transaction"))
        if not origin:
            return None
        step = origin[-1]
        inverses: list[Edit] = []
        try:
            for edit in reversed(step.inverses):
                inverses.append(self._perform(edit))
                self._tell(edit)
        except BaseException as error:  # a listener failed: the step stays where it was
            self._roll_back(inverses, error)
            raise
        origin.pop()
        destination.append(Step(step.label, step.merge, inverses))
        return step.label

    def _roll_back(self, inverses: list[Edit], cause: BaseException, start: int = 0) -> None:
        """Takes the edits from number `start` on back, last first, and tells listeners.

        A listener that fails does not stop it: what it raised becomes a note on `cause`.
        """
        while len(inverses) > start:
            edit = inverses.pop()
            self._perform(edit)
            try:
                self._tell(edit)
            except Exception as error:  # the document comes first; the listener's own error is kept as a note
                cause.add_note(f"While {edit} was taken back, a listener failed: {error!r}")

    # -- listeners ------------------------------------------------------------------------------------------------

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener(edit)` after every edit, undo, redo and rollback; the returned function ends that.

        A listener must not edit the graph. If one raises, the others still hear the edit, and then it is taken back.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _tell(self, edit: Edit) -> None:
        failed: BaseException | None = None
        self._telling = True
        try:
            for listener in tuple(self._listeners):
                try:
                    listener(edit)
                except BaseException as error:  # raised below, when all have heard
                    failed = failed or error
        finally:
            self._telling = False
        if failed is not None:
            raise failed

    def _refuse_listeners(self) -> None:
        if self._telling:
            raise GraphError(
                Finding(
                    "A listener cannot edit the graph: the others would hear of its edit before this one.",
                    remedy="Make the edit after the one that is being told has returned.",
                    code="listener",
                )
            )

    # -- whole documents ------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        nodes: Iterable[NodeState],
        wires: Iterable[tuple[PortRef, PortRef]],
        sections: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Graph:
        """A graph from its parts, with an empty history: what loaders use.

        `wires` are (source, target). GraphError names a wire to a node or port that does not exist, two wires that end
        at one input, or a cycle.
        """
        graph = cls()
        for section, content in (sections or {}).items():
            graph._sections[section] = dict(content)
        for node in nodes:
            graph._add(node, None)
        for source, target in wires:
            for id in (source.node, target.node):
                if id not in graph._nodes:
                    raise GraphError.at(
                        target.node, target.port, f"The wire {source} -> {target} names no node {id!r}.", code="wire"
                    )
            if target in graph._sources:
                raise GraphError.at(target.node, target.port, "Two wires end here; an input takes one.", code="wire")
            graph._connect(source, target)
        for target, source in graph._sources.items():
            source_type, target_type = graph.node_type(source.node), graph.node_type(target.node)
            if source_type and not source_type.output_port(source.port):
                raise GraphError.at(*source, f"{source_type.type_name()} has no output {source.port!r}.", code="wire")
            if target_type and not target_type.input_port(target.port):
                raise GraphError.at(*target, f"{target_type.type_name()} has no input {target.port!r}.", code="wire")
        stuck = set(graph._nodes) - set(graph.order())
        if stuck:
            raise GraphError.at(min(stuck), "", f"These nodes form a cycle: {', '.join(sorted(stuck))}.", code="cycle")
        return graph


def same(a: Any, b: Any) -> bool:
    """Whether two parts of documents are equal, where NaN equals itself."""
    if a is b or (type(a) is type(b) and a == b):
        return True
    match a, b:
        case NodeState(), NodeState():
            return (a.id, a.type) == (b.id, b.type) and same(vars(a), vars(b))
        case Mapping(), Mapping():
            return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
        case (list(), list()) | (tuple(), tuple()):
            return len(a) == len(b) and all(map(same, a, b))
        case float(), float():
            return a == b or (a != a and b != b)
    if hasattr(a, "kind") and hasattr(b, "kind"):  # attributes with a type of their own
        return bool(a.kind == b.kind and same(a.value, b.value))
    return bool(a == b)


def _owned(value: Any) -> Any:
    """The value, lists and mappings copied: who gave them may go on to change them."""
    if isinstance(value, Mapping):
        return {key: _owned(item) for key, item in value.items()}
    return [_owned(item) for item in value] if type(value) is list else value


def _holds_graph(value: Any) -> bool:
    """Whether a parameter is a subgraph, or a list of them."""
    value = getattr(value, "value", value)
    return isinstance(value, Graph) or (isinstance(value, list | tuple) and any(isinstance(v, Graph) for v in value))
