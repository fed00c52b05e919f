"""What an editor does to a document: each thing is one undo step, and undoing all leads back to the start."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Graph, GraphError, Session, Tensor
from runtime.check import check
from runtime.editing import (
    Remedy,
    add_frame,
    add_probe,
    arrange,
    create_at_port,
    duplicate,
    extract,
    frames_of,
    insert_on_wire,
    move_frame,
    nodes_in,
    paste,
    probes_of,
    remedies,
    remove_broken_wires,
    remove_frame,
    remove_nodes,
    remove_probe,
    rename,
)
from runtime.files import load
from runtime.graph import PortRef, Set
from runtime.nodes.operators import newest_opset
from runtime.shipped import snippets_folder


def chain() -> Graph:
    """x -> relu -> sum with a constant -> y."""
    graph = Graph("chain", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [2, 3]}, layout={"position": [0, 0]})
    graph.add("Relu", "relu", layout={"position": [200, 0]})
    graph.add("Initializer", "one", parameters={"tensor": Tensor.from_array(np.float32(1))})
    graph.add("Add", "sum")
    graph.add("Output", "y")
    for source, target in (("x.value", "relu.X"), ("relu.Y", "sum.A"), ("one.value", "sum.B"), ("sum.C", "y.value")):
        graph.wire(source, target)
    return graph


def result(graph: Graph) -> np.ndarray:
    return np.asarray(Session(graph).forward({"x": np.array([[1, -2, 3], [-4, 5, -6]], np.float32)})["y"])


def steps(graph: Graph) -> int:
    return len(graph.undo_labels)


def test_a_node_goes_into_a_wire() -> None:
    graph = chain()
    graph.add("Neg", "neg")
    before = steps(graph)
    insert_on_wire(graph, "neg", "sum.A")
    assert steps(graph) == before + 1
    assert graph.wires[PortRef("sum", "A")] == ("neg", "Y") and graph.wires[PortRef("neg", "X")] == ("relu", "Y")
    np.testing.assert_array_equal(result(graph), 1 - np.maximum([[1, -2, 3], [-4, 5, -6]], 0))


def test_a_node_that_does_not_fit_stays_out() -> None:
    graph = chain()
    graph.add("StringNormalizer", "text")
    before = graph.copy()
    with pytest.raises(GraphError, match="text: No input of it takes the value of relu.Y"):
        insert_on_wire(graph, "text", "sum.A")
    assert graph == before


@pytest.mark.parametrize("kind", ["constant", "input"])
def test_what_a_port_needs_is_made_beside_it(kind: str) -> None:
    graph = chain()
    graph.cut("sum.B")
    before = steps(graph)
    id = create_at_port(graph, "sum.B", kind)  # type: ignore[arg-type]
    assert steps(graph) == before + 1
    assert graph.wires[PortRef("sum", "B")] == (id, "value")
    assert not [finding for finding in check(graph) if finding.node in (id, "sum")]
    graph.undo()
    assert id not in graph.nodes


def test_a_constant_takes_the_element_type_of_its_neighbours() -> None:
    graph = Graph("types", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(int64)", "shape": [2]})
    graph.add("Add", "sum")
    graph.wire("x.value", "sum.A")
    id = create_at_port(graph, "sum.B", "constant")
    assert str(graph.nodes[id].parameters["tensor"].element) == "int64"
    out = create_at_port(graph, "sum.C", "output")
    assert graph.wires[PortRef(out, "value")] == ("sum", "C")
    with pytest.raises(GraphError, match="expected an output"):
        create_at_port(graph, "sum.A", "output")


def test_removing_can_bridge_the_gap() -> None:
    graph = chain()
    remove_nodes(graph, ["relu"], reconnect=True)
    assert graph.wires[PortRef("sum", "A")] == ("x", "value")
    graph.undo()
    remove_nodes(graph, ["relu"])
    assert PortRef("sum", "A") not in graph.wires


def test_a_new_id_keeps_wires_order_probes_and_captures() -> None:
    graph = Graph("outer", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [2]})
    graph.add("Input", "flag", parameters={"type": "tensor(bool)", "shape": []})
    graph.add("Relu", "relu")
    graph.wire("x.value", "relu.X")
    branches = []
    for type in ("Neg", "Abs"):
        body = Graph(type.lower(), opsets={"": 21})
        body.add("Capture", "outer", parameters={"name": "relu.Y"})
        body.add(type, "op")
        body.add("Output", "out")
        body.wire("outer.value", "op.X")
        body.wire("op.Y", "out.value")
        branches.append(body)
    graph.add("If", "choice", parameters={"then_branch": branches[0], "else_branch": branches[1]})
    graph.add("Output", "y")
    graph.wire("flag.value", "choice.cond")
    graph.wire("choice.outputs.0", "y.value")
    add_probe(graph, "relu.Y")
    feeds = {"x": np.array([1, -2], np.float32), "flag": np.array(True)}
    before, order = Session(graph).forward(feeds)["y"], [i if i != "relu" else "r2" for i in graph.nodes]
    start, count = graph.copy(), steps(graph)
    rename(graph, "relu", "r2")
    assert steps(graph) == count + 1 and list(graph.nodes) == order
    assert probes_of(graph) == [("r2", "Y")]
    np.testing.assert_array_equal(Session(graph).forward(feeds)["y"], before)
    graph.undo()
    assert graph == start
    with pytest.raises(GraphError, match="already"):
        rename(graph, "relu", "choice")


def test_a_part_is_a_graph_of_its_own_and_can_be_pasted() -> None:
    graph = chain()
    part = extract(graph, ["relu", "sum", "one"])
    assert set(part.nodes) == {"relu", "sum", "one"} and len(part.wires) == 2
    before = steps(graph)
    ids = paste(graph, part, (500, 500))
    assert steps(graph) == before + 1
    assert ids == ["relu_1", "one_1", "sum_1"]
    assert graph.wires[PortRef("sum_1", "A")] == ("relu_1", "Y")
    corners = [graph.nodes[id].layout["position"] for id in ids]
    assert min(x for x, _ in corners) == 500 and min(y for _, y in corners) == 500
    with pytest.raises(GraphError, match="nothing"):
        extract(graph, ["nothing"])


def test_pasted_inputs_get_names_of_their_own() -> None:
    graph = chain()
    graph.set("x", "name", "image")
    ids = paste(graph, graph.copy())
    assert len({str(graph.nodes[id].parameters.get("name") or id) for id in graph.nodes}) == len(graph.nodes)
    assert len(ids) == 5 and not [f for f in check(graph) if f.code == "duplicate-name"]


def test_operator_sets_are_joined_or_refused() -> None:
    graph = chain()
    moe = load(snippets_folder() / "qwen3_moe_block.yaml")
    paste(graph, moe)
    assert graph.opsets["com.microsoft"] == 1
    old = Graph("old", opsets={"": 11})
    old.add("Squeeze", "squeeze", parameters={"axes": [0]})  # an input since 13
    before = graph.copy()
    with pytest.raises(GraphError, match="squeeze: Squeeze of operator set 11 means something else in 21"):
        paste(graph, old)
    assert graph == before


def test_copies_are_fed_as_their_originals_are() -> None:
    graph = chain()
    (copy,) = duplicate(graph, ["sum"])
    assert graph.wires[PortRef(copy, "A")] == ("relu", "Y")
    assert graph.undo() == "Duplicate sum"
    assert copy not in graph.nodes


def test_broken_wires_are_removed_and_others_stay() -> None:
    graph = chain()
    graph.set("x", "type", "tensor(string)")
    assert remove_broken_wires(graph) == [("relu", "X")]
    assert len(graph.wires) == 3


def test_cleaning_up_a_selection_leaves_the_rest() -> None:
    graph = chain()
    arrange(graph, ["sum", "one"])
    kept = graph.nodes["x"].layout["position"]
    assert kept == [0, 0] and graph.nodes["relu"].layout["position"] == [200, 0]
    assert graph.undo() == "Clean up"


def test_frames_carry_what_is_in_them() -> None:
    graph = chain()
    arrange(graph)
    frame = add_frame(graph, ["relu", "sum"], "the middle")
    assert set(nodes_in(graph, frame)) >= {"relu", "sum"}
    before = graph.nodes["relu"].layout["position"]
    move_frame(graph, frame.id, 100, 50)
    assert graph.nodes["relu"].layout["position"] == [before[0] + 100, before[1] + 50]
    assert frames_of(graph)[0].rectangle[0] == pytest.approx(frame.rectangle[0] + 100, abs=0.1)
    graph.undo()
    assert graph.nodes["relu"].layout["position"] == before
    remove_frame(graph, frame.id)
    assert frames_of(graph) == []


@pytest.mark.parametrize("bad", ["text", 5, [1], {"f": 1}, {"f": {"rectangle": [1, 2]}}, {"f": {"rectangle": "x"}}])
def test_layouts_that_are_none_are_ignored(bad: object) -> None:
    graph = chain()
    graph.apply(Set("", "layout", "frames", bad))
    graph.apply(Set("", "layout", "probes", bad))
    assert frames_of(graph) == [] and probes_of(graph) == []


def test_probes_are_layout_and_go_with_their_nodes() -> None:
    graph = chain()
    heard = []
    graph.listen(heard.append)
    add_probe(graph, "relu.Y")
    add_probe(graph, "relu.Y")
    add_probe(graph, "sum.C")
    assert all(isinstance(edit, Set) and edit.is_layout for edit in heard)
    assert [str(port) for port in probes_of(graph)] == ["relu.Y", "sum.C"]
    remove_probe(graph, "relu.Y")
    remove_nodes(graph, ["sum"])
    assert probes_of(graph) == []


def mended(graph: Graph, code: str) -> list[str]:
    """The labels of the remedies for the first finding of a code; each of them mends it."""
    finding = next(finding for finding in check(graph) if finding.code == code)
    offered: list[Remedy] = remedies(graph, finding)
    for index in range(len(offered)):
        count = steps(graph)
        remedies(graph, finding)[index].apply()
        assert steps(graph) == count + 1
        same = [f for f in check(graph) if (f.code, f.node, f.port) == (finding.code, finding.node, finding.port)]
        assert not same or offered[index].label == "Cut the wire", offered[index].label
        graph.undo()
    return [remedy.label for remedy in offered]


def test_what_is_certain_can_be_mended() -> None:
    graph = chain()
    graph.cut("sum.B")
    assert mended(graph, "missing-input") == ["Create a constant here", "Create an input here"]
    graph = chain()
    graph.set("one", "tensor", Tensor.from_array(np.float16(1)))
    assert mended(graph, "type")[-1] == "Cut the wire" and mended(graph, "type")[0].startswith("Cast to ")
    graph = chain()
    graph.add("Softmax", "soft", parameters={"axis": "zero"})
    assert "Set axis back to its default" in mended(graph, "parameter")
    graph = chain()
    graph.add("Input", "second", parameters={"name": "x", "type": "tensor(float)"})
    assert mended(graph, "duplicate-name") == ["Rename it to x_1"]


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_anything_can_be_undone_to_the_start_and_done_again(seed: int) -> None:
    chance = random.Random(seed)
    graph = chain()
    start, count = graph.copy(), steps(graph)
    for _ in range(12):
        nodes = list(graph.nodes)
        some = chance.sample(nodes, min(len(nodes), chance.randint(1, 3))) if nodes else []
        action = chance.choice(["duplicate", "remove", "rename", "arrange", "paste", "probe", "frame", "insert"])
        try:
            match action:
                case "duplicate":
                    duplicate(graph, some)
                case "remove":
                    remove_nodes(graph, some, reconnect=chance.random() < 0.5)
                case "rename" if nodes:
                    rename(graph, some[0], chance.choice(["a", "b", "c", some[0]]))
                case "arrange":
                    arrange(graph, some or None)
                case "paste" if nodes:
                    paste(graph, extract(graph, some), (chance.randint(0, 900), chance.randint(0, 900)))
                case "probe" if graph.wires:
                    add_probe(graph, chance.choice(list(graph.wires.values())))
                case "frame" if some:
                    add_frame(graph, some)
                case "insert" if graph.wires:
                    insert_on_wire(graph, graph.add("Relu"), chance.choice(list(graph.wires)))
        except GraphError:
            continue
    end, done = graph.copy(), steps(graph)
    while steps(graph) > count:
        graph.undo()
    assert graph == start
    while steps(graph) < done:
        graph.redo()
    assert graph == end
    assert newest_opset("") >= 21


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_pasted_part_means_what_it_meant(seed: int) -> None:
    chance = random.Random(seed)
    graph = chain()
    some = chance.sample(list(graph.nodes), chance.randint(1, 5))
    part = extract(graph, some)
    ids = dict(zip(part.nodes, paste(graph, part), strict=True))
    assert {(ids[s.node], s.port, ids[t.node], t.port) for t, s in part.wires.items()} == {
        (*s, *t) for t, s in graph.wires.items() if t.node in ids.values()
    }
    assert all(graph.nodes[new].type == part.nodes[id].type for id, new in ids.items())
