"""The document: edits, undo, transactions, listeners; by random edits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import GraphError
from runtime.graph import ABSENT, Add, Cut, Edit, Graph, NodeState, PortRef, Remove, Set, Wire

TYPE = "test.Unknown"


class Mirror:
    """A second copy of the document, kept equal by listening only."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeState] = {}
        self.wires: dict[PortRef, PortRef] = {}
        self.sections: dict[str, dict[str, Any]] = {}

    def __call__(self, edit: Edit) -> None:
        match edit:
            case Add(node, index):
                items = list(self.nodes.items())
                items.insert(len(items) if index is None else index, (node.id, node))
                self.nodes = dict(items)
            case Remove(id):
                del self.nodes[id]
            case Wire(source, target):
                assert target not in self.wires
                self.wires[target] = source
            case Cut(target):
                del self.wires[target]
            case Set(node_id, section, key, value):
                if node_id:
                    node = self.nodes[node_id]
                    content = dict(getattr(node, section))
                else:
                    content = self.sections.setdefault(section, {})
                content.pop(key, None)
                if value is not ABSENT:
                    content[key] = value
                if node_id:
                    sections = {name: getattr(node, name) for name in ("parameters", "layout", "extra")}
                    self.nodes[node_id] = NodeState(node.id, node.type, **(sections | {section: content}))

    def assert_equal(self, graph: Graph) -> None:
        assert list(self.nodes.items()) == list(graph.nodes.items())
        assert self.wires == dict(graph.wires)
        for section, content in self.sections.items():
            assert content == dict(graph.section(section))


actions = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "wire", "cut", "set", "move", "info", "undo", "redo", "group", "fail"]),
        st.integers(0, 7),
        st.integers(0, 7),
        st.integers(0, 3),
    ),
    max_size=60,
)


def pick(graph: Graph, number: int) -> str:
    ids = list(graph.nodes)
    return ids[number % len(ids)] if ids else "nothing"


def act(graph: Graph, action: str, first: int, second: int, port: int) -> None:
    a, b = pick(graph, first), pick(graph, second)
    match action:
        case "add":
            graph.add(TYPE, parameters={"p": first})
        case "remove":
            graph.remove(a)
        case "wire":
            graph.wire(f"{a}.out", f"{b}.in{port}")
        case "cut":
            graph.cut(f"{b}.in{port}")
        case "set":
            graph.set(a, f"p{port}", ABSENT if second == 7 else second, merge="slider" if second % 2 else "")
        case "move":
            graph.set(a, "position", [first, second], section="layout")
        case "info":
            graph.set("", "doc", second, section="info")
        case "undo":
            graph.undo()
        case "redo":
            graph.redo()
        case "group":
            with graph.transaction("group"):
                new = graph.add(TYPE)
                graph.wire(f"{new}.out", f"{a}.in{port}")
        case "fail":
            with graph.transaction("fail"):
                graph.add(TYPE)
                graph.remove(a)
                graph.remove("not there")


@settings(deadline=None, max_examples=150)
@given(actions)
def test_random_edits_undo_to_empty_and_redo_to_equal(script: list[tuple[str, int, int, int]]) -> None:
    graph, mirror = Graph(), Mirror()
    graph.listen(mirror)
    for step in script:
        before = graph.copy()
        try:
            act(graph, *step)
        except GraphError:
            assert graph == before, "a refused edit changed the document"
        mirror.assert_equal(graph)
        assert len(graph.order()) == len(graph.nodes), "a cycle got in"
    final = graph.copy()
    steps = 0
    while graph.undo():
        steps += 1
        mirror.assert_equal(graph)
    assert graph == Graph()
    for _ in range(steps):
        graph.redo()
        mirror.assert_equal(graph)
    assert graph == final


@settings(deadline=None, max_examples=100)
@given(actions)
def test_each_edit_returns_its_inverse(script: list[tuple[str, int, int, int]]) -> None:
    graph = Graph()
    trace: list[Edit] = []
    graph.listen(trace.append)
    for step in script:
        if step[0] in ("undo", "redo", "fail"):
            continue
        try:
            act(graph, *step)
        except GraphError:
            continue
    replayed = Graph()
    for edit in trace:
        before = replayed.copy()
        inverse = replayed.apply(edit)
        after = replayed.copy()
        replayed.apply(inverse)
        assert replayed == before
        replayed.apply(edit)
        assert replayed == after


def chain() -> Graph:
    graph = Graph()
    for id in "abc":
        graph.add(TYPE, id)
    graph.wire("a.y", "b.x")
    graph.wire("b.y", "c.x")
    return graph


def test_cycles_are_refused_with_a_sentence() -> None:
    graph = chain()
    reason = graph.why_not("c.y", "a.x")
    assert reason is not None and "cycle" in reason and "c" in reason
    with pytest.raises(GraphError, match="cycle"):
        graph.wire("c.y", "a.x")
    assert graph.why_not("a.y", "a.x") is not None
    assert graph.why_not("a.y", "c.z") is None
    assert graph.why_not("a.y", "nobody.x") == "There is no node 'nobody' in this graph."


def test_wiring_a_connected_input_replaces_the_wire_in_one_step() -> None:
    graph = chain()
    graph.wire("a.y", "c.x")
    assert graph.wires[PortRef("c", "x")] == PortRef("a", "y")
    graph.undo()
    assert graph.wires[PortRef("c", "x")] == PortRef("b", "y")


def test_merge_key_makes_a_drag_one_step() -> None:
    graph = chain()
    steps = len(graph.undo_labels)
    for value in range(10):
        graph.set("a", "k", value, merge="drag a.k")
    assert len(graph.undo_labels) == steps + 1
    graph.undo()
    assert "k" not in graph.nodes["a"].parameters
    graph.redo()
    assert graph.nodes["a"].parameters["k"] == 9


def test_exception_rolls_a_transaction_back_and_leaves_undo_usable() -> None:
    graph = chain()
    before = graph.copy()
    with pytest.raises(RuntimeError), graph.transaction("broken"):
        graph.add(TYPE)
        graph.remove("b")
        raise RuntimeError
    assert graph == before
    assert graph.undo() == "Wire b.y to c.x"


def test_nested_transactions_join_the_outer() -> None:
    graph = Graph()
    with graph.transaction("outer"), graph.transaction("inner"):
        graph.add(TYPE)
        graph.add(TYPE)
    assert graph.undo_labels == ["outer"]
    graph.undo()
    assert not graph.nodes


def test_ids_are_short_and_not_reused_after_removal() -> None:
    graph = Graph()
    first = graph.add("com.microsoft.QMoE")
    graph.remove(first)
    assert (first, graph.add("com.microsoft.QMoE")) == ("qmoe_0", "qmoe_1")
    with pytest.raises(GraphError, match="letter"):
        graph.add(TYPE, "two words")


def test_layout_edits_are_a_kind_of_their_own() -> None:
    assert Set("a", "layout", "position", [0, 0]).is_layout
    assert not Set("a", "parameters", "k", 1).is_layout
    assert isinstance(Graph().apply(Add(NodeState("a", TYPE))), Remove)


def test_snapshots_do_not_follow_the_document() -> None:
    graph = chain()
    snapshot = graph.copy()
    graph.remove("b")
    assert list(snapshot.nodes) == ["a", "b", "c"] and len(snapshot.wires) == 2


def test_a_failing_listener_leaves_document_and_history_as_they_were() -> None:
    graph = chain()
    before = graph.copy()
    fail = [True]

    def listener(edit: Edit) -> None:
        if isinstance(edit, Cut) and fail.pop():
            raise RuntimeError("listener")

    graph.listen(listener)
    with pytest.raises(RuntimeError):
        graph.undo()
    fail[:] = [False, False]
    assert graph == before
    assert graph.undo() == "Wire b.y to c.x"
    assert len(graph.wires) == 1
