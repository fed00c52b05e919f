"""The document: edits, undo, transactions, listeners; by random edits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import GraphError
from runtime.graph import ABSENT, Add, Cut, Edit, Graph, NodeState, PortRef, Remove, Set, Wire
from runtime.snippets import dumps

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


# Listeners that fail, values that change, orders that come back


def test_all_listeners_hear_an_edit_that_one_of_them_refuses() -> None:
    graph, heard = Graph("g"), []

    def refuse(edit: Edit) -> None:
        if isinstance(edit, Add):
            raise ValueError("no")

    graph.listen(refuse)
    graph.listen(heard.append)
    with pytest.raises(ValueError, match="no"):
        graph.add("Relu", "r")
    assert [type(edit) for edit in heard] == [Add, Remove]
    assert not graph.nodes and not graph.undo_labels


def test_a_listener_that_fails_while_edits_are_taken_back_stops_nothing() -> None:
    graph = Graph("g")

    def refuse(edit: Edit) -> None:
        if isinstance(edit, Remove):
            raise KeyError(edit.id)

    graph.listen(refuse)
    with pytest.raises(RuntimeError, match="stop") as caught, graph.transaction("t"):
        graph.add("Relu", "r")
        graph.add("Relu", "s")
        raise RuntimeError("stop")
    assert not graph.nodes
    assert len(caught.value.__notes__) == 2


def test_listeners_cannot_edit() -> None:
    graph, heard = Graph("g"), []

    def move(edit: Edit) -> None:
        if isinstance(edit, Add):
            graph.set(edit.node.id, "position", [0, 0], section="layout")

    graph.listen(move)
    graph.listen(heard.append)
    with pytest.raises(GraphError, match="listener cannot edit"):
        graph.add("Relu", "r")
    assert not graph.nodes
    assert [type(edit) for edit in heard] == [Add, Remove]


def test_what_is_refused_inside_a_transaction_leaves_what_was_there() -> None:
    graph = Graph("g")
    graph.add("Input", "x")
    graph.add("Relu", "a")
    graph.add("Relu", "b")
    graph.wire("x.value", "a.X")
    graph.wire("a.Y", "b.X")
    before = graph.copy()
    with graph.transaction("t"):
        with pytest.raises(GraphError, match="cycle"):
            graph.wire("b.Y", "a.X")
        assert graph == before
        graph.add("Relu", "c")
    graph.undo()
    assert graph == before


def test_undo_brings_orders_back() -> None:
    graph = Graph("")
    graph.add("Input", "x")
    graph.apply(Add(NodeState("z", "their.Unknown", {"a": 1, "b": 2, "c": 3})))
    for port in ("one", "two", "three"):
        graph.wire("x.value", f"z.{port}")
    before = dumps(graph)[0]
    graph.set("z", "b", ABSENT)
    graph.cut("z.one")
    graph.cut("z.two")
    for _ in range(3):
        graph.undo()
    assert dumps(graph)[0] == before
    while graph.redo():
        pass
    assert list(graph.nodes["z"].parameters) == ["a", "c"]
    assert list(graph.inputs_of("z")) == ["three"]


def test_values_belong_to_the_graph() -> None:
    graph = Graph("g")
    shape, position = [1, 2], {"at": [0, 0]}
    graph.add("Input", "x", parameters={"shape": shape})
    graph.set("x", "position", position, section="layout")
    shape.append(3)
    position["at"].append(9)
    assert graph.nodes["x"].parameters["shape"] == [1, 2]
    assert graph.nodes["x"].layout["position"] == {"at": [0, 0]}


def test_nan_equals_itself() -> None:
    def with_numbers(*numbers: float) -> Graph:
        graph = Graph("g")
        graph.apply(Add(NodeState("z", "their.Unknown", {"a": numbers[0], "b": list(numbers)})))
        return graph

    assert with_numbers(float("nan"), 1.0) == with_numbers(float("nan"), 1.0)
    assert with_numbers(float("nan"), 1.0) != with_numbers(float("nan"), 2.0)
