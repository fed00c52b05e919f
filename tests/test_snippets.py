"""Snippets: every document comes back, bad files are refused with their place, and no crash loses a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runtime
from runtime.errors import FileError, GraphError
from runtime.graph import Graph
from runtime.snippets import dumps, load_yaml, loads, save_yaml
from runtime.snippets.tensor_files import read_tensors, write_tensors
from runtime.tensors import Tensor
from runtime.types import ElementType
from tests.snippet_graphs import assert_same, example, graphs

HEAD = 'qmoe: 1\nopsets: {"": 23}\nnodes:\n'


# -- round trips --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_every_graph_comes_back_and_its_text_is_stable(graph: Graph) -> None:
    text, tensors = dumps(graph)
    again = loads(text, tensors)
    assert_same(again, graph)
    text_again, tensors_again = dumps(again)
    assert text_again == text
    assert tensors_again == tensors


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(graphs(0))
def test_every_graph_comes_back_from_files_that_stay_the_same(
    tmp_path_factory: pytest.TempPathFactory, graph: Graph
) -> None:
    path = tmp_path_factory.mktemp("snippet") / "a.yaml"
    save_yaml(graph, path)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    times = {file.name: file.stat().st_mtime_ns for file in path.parent.glob("*.safetensors")}
    again = load_yaml(path, verify=True)
    assert_same(again, graph)
    save_yaml(again, path)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    assert {file.name: file.stat().st_mtime_ns for file in path.parent.glob("*.safetensors")} == times


def test_the_text_is_yaml_to_others_too() -> None:
    """PyYAML's own loader, which reads YAML 1.1, sees the same values."""
    graph = Graph("no", opsets={"": 23})
    parameters = {"a": "no", "b": "012", "c": 1e-05, "d": 1e22, "e": "1:30", "f": [True, None, -0.0], "y": "2026-01-01"}
    graph.add("my.Op", "node", parameters=parameters)
    data = yaml.safe_load(dumps(graph)[0])
    assert data["name"] == "no"
    assert data["nodes"]["node"]["parameters"] == parameters


def test_the_form_is_readable() -> None:
    text, tensors = dumps(example(), "example.safetensors")
    assert (
        text
        == f"""\
qmoe: 1
name: example
opsets: {{"": 23, com.microsoft: 1}}
tensors: example.safetensors
nodes:
  x:
    type: Input
    parameters: {{type: tensor(float), shape: [tokens, 64]}}
    layout: {{position: [10, 20.5]}}
  w:
    type: Initializer
    parameters:
      tensor:
        $tensor: float
        shape: [64, 8]
        name: w
        sha256: {tensors["w"].digest}
  codes:
    type: Initializer
    parameters:
      tensor:
        $tensor: uint4
        shape: [99]
        name: codes
        sha256: {tensors["codes"].digest}
  b:
    type: Initializer
    parameters: {{tensor: {{$tensor: float, shape: [8], data: [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}}}}
  router:
    type: MatMul
    parameters: {{training?: false}}
    inputs:
      A: x
      B: w
  sum:
    type: Add
    inputs:
      A: router.Y
      B: b
  y:
    type: Output
    inputs:
      value: sum.C
"""
    )


def test_wires_and_parameters_stand_in_the_order_of_their_declaration() -> None:
    graph = example()
    text = dumps(graph)[0]
    graph.cut("router.A")
    graph.wire("x.value", "router.A")
    graph.set("router", "name", "router")
    assert "{training?: false, name: router}" in dumps(graph)[0]
    graph.undo()
    assert dumps(graph)[0] == text


def test_hand_written_files_are_normalised_once() -> None:
    graph = loads(
        "# a comment\nqmoe: 1\nnodes: {x: {type: Input}, r: {type: Relu, inputs: {X: x, }, note: keep}, "
        "y: {type: Output, inputs: {value: r}, parameters: }}\nopsets: {ai.onnx: 23}\nfuture: [012, no, 1e-5]\n"
    )
    assert [str(source) for source in graph.wires.values()] == ["x.value", "r.Y"]
    assert graph.opsets == {"": 23}
    assert graph.nodes["r"].extra == {"note": "keep"}
    assert graph.section("extra") == {"future": ["012", "no", 1e-5]}
    text = dumps(graph)[0]
    assert dumps(loads(text))[0] == text


def test_subgraphs_leave_out_the_operator_sets_of_the_graph_around_them() -> None:
    inner = Graph(opsets={"": 23})
    inner.add("Capture", "c", parameters={"name": "x"})
    outer = Graph(opsets={"": 23})
    outer.add("If", "branch", parameters={"then_branch": inner, "else_branch": Graph(opsets={"": 1})})
    text = dumps(outer)[0]
    assert text.count('opsets: {"": 23}') == 1
    assert text.count('opsets: {"": 1}') == 1
    assert loads(text) == outer


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    graph = Graph()
    for id in ("a", "b"):
        graph.add("Initializer", id, parameters={"tensor": Tensor.from_array(np.arange(100))})
    graph.add("Initializer", "c", parameters={"name": "a", "tensor": Tensor.from_array(np.arange(100, 200))})
    save_yaml(graph, tmp_path / "g.yaml")
    assert sorted(read_tensors(tmp_path / "g.safetensors")) == ["a", "a.2"]
    assert load_yaml(tmp_path / "g.yaml") == graph


def test_what_no_file_can_hold_is_refused_by_name() -> None:
    graph = Graph()
    graph.add("my.Op", "n", parameters={"p": object()})
    with pytest.raises(GraphError, match=r"n\.p: A value of the kind object"):
        dumps(graph)
    graph.set("n", "p", "\ud800")
    with pytest.raises(GraphError, match=r"n\.p: .* no Unicode text"):
        dumps(graph)
    graph.set("n", "p", 1)
    for seed in (1, [graph.copy()]):
        deep, outcomes = seed, []
        for _ in range(70):
            deep = [deep]
            graph.set("n", "p", deep)
            try:
                outcomes.append(loads(dumps(graph)[0]) == graph)
            except GraphError as error:
                outcomes.append("nested more than 64 deep" in str(error))
        assert all(outcomes)


# -- bad text -----------------------------------------------------------------------------------------------------

BAD = [
    ("", 0, 0, "is empty"),
    ("a: 1\n", 1, 1, "expected a key 'qmoe: 1'"),
    ("- 1\n", 1, 1, "expected a snippet"),
    ("qmoe: 2\n", 1, 7, "this snippet has version 2; this program reads up to version 1"),
    ("qmoe: one\n", 1, 7, "qmoe: expected the version"),
    ("qmoe: 1\nqmoe: 1\n", 2, 1, "the key 'qmoe' is here twice; the first is in line 1"),
    ("qmoe: 1\na: &x 1\nb: *x\n", 2, 4, "anchors and aliases"),
    ("qmoe: 1\na: !!python/object:os.system x\n", 2, 4, "tags are not allowed"),
    ("qmoe: 1\na: [1, 2\n", 3, 1, "is not YAML"),
    ("qmoe: 1\n---\nqmoe: 1\n", 2, 1, "a second document"),
    ("qmoe: 1\na: x\x01\n", 2, 5, "is not YAML"),
    ("qmoe: 1\na: " + "[" * 70 + "]" * 70, 2, 68, "nested more than 64 deep"),
    ("qmoe: 1\n? [a]\n: 1\n", 2, 3, "a key must be a text"),
    ("qmoe: 1\nname: 3\n", 2, 7, "name: expected a text; put it in quotes if it is meant as one, found 3"),
    ("qmoe: 1\nopsets: {'': x}\n", 2, 14, "opsets.: expected the version of an operator set, found 'x'"),
    ("qmoe: 1\nopsets: {'': 1, ai.onnx: 2}\n", 2, 26, "expected one version"),
    ("qmoe: 1\ninfo: {name: a}\nname: b\n", 3, 7, "name: expected name once"),
    ("qmoe: 1\nnodes: [a]\n", 2, 8, "nodes: expected a mapping, found a list"),
    (HEAD + "  1a: {type: Relu}\n", 4, 3, "nodes.1a: expected an id"),
    (HEAD + "  a: {}\n", 4, 3, "nodes.a: expected a key 'type'"),
    (HEAD + "  a: {type: 3}\n", 4, 13, "nodes.a.type: expected the name of a node type"),
    (HEAD + "  a: {type: T, parameters: 3}\n", 4, 28, "nodes.a.parameters: expected a mapping, found 3"),
    (HEAD + "  a: {type: T, inputs: {p: 3}}\n", 4, 28, "nodes.a.inputs.p: expected node.port, found 3"),
    (HEAD + "  a: {type: T, inputs: {p: b.q}}\n", 4, 28, "nodes.a.inputs.p: there is no node 'b'"),
    (
        HEAD + "  b: {type: T}\n  a: {type: T, inputs: {p: b}}\n",
        5,
        28,
        "nodes.a.inputs.p: expected node.port, found 'b'",
    ),
    (
        HEAD + "  s: {type: LSTM}\n  a: {type: T, inputs: {p: s}}\n",
        5,
        28,
        "expected node.port (its outputs: Y, Y_h, Y_c)",
    ),
    (HEAD + "  x: {type: Input}\n  a: {type: Relu, inputs: {Z: x}}\n", 5, 31, "nodes.a.Z: Relu has no input 'Z'"),
    (HEAD + "  x: {type: Input}\n  a: {type: Relu, inputs: {X: x.no}}\n", 5, 31, "nodes.x.no: Input has no output"),
    (HEAD + "  a: {type: T, inputs: {p: a.q}}\n", 4, 3, "nodes.a: These nodes form a cycle"),
    (HEAD + "  a: {type: T, parameters: {p: {$what: 1}}}\n", 4, 33, "nodes.a.parameters.p: expected one of $tensor"),
    (HEAD + "  a: {type: T, parameters: {p: {$bytes: '?'}}}\n", 4, 41, "expected a text in base 64, found '?'"),
    (
        HEAD + "  a: {type: T, parameters: {p: {$bytes: AA==, x: 1}}}\n",
        4,
        47,
        "expected nothing beside $bytes, found x",
    ),
    (HEAD + "  a: {type: T, parameters: {p: {$as: flots, value: 1}}}\n", 4, 38, "expected one of ref, float"),
    (
        HEAD + "  a: {type: T, parameters: {p: {$type: tensor(f)}}}\n",
        4,
        40,
        "expected a type: unknown element type 'f'",
    ),
    (HEAD + "  a: {type: T, parameters: {$p: 1}}\n", 4, 33, "a key that begins with $ is written $$p"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), BAD)
def test_bad_text_is_refused_with_its_place(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(FileError) as caught:
        loads(text, path="a.yaml")
    assert message in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)


BAD_TENSORS = [
    ("$tensor: float32, shape: [1], data: [1]", "ONNX spells it 'float'"),
    ("$tensor: float, data: [1]", "t.shape: expected a list of sizes"),
    ("$tensor: float, shape: [-1], data: [1]", "t.shape: expected a list of sizes"),
    ("$tensor: float, shape: [2]", "expected one of data, bytes and name, found none"),
    ("$tensor: float, shape: [2], data: [1]", "the shape [2] has 2 elements; 1 are given"),
    ("$tensor: float, shape: [1], data: [x]", "expected a number for float, found 'x'"),
    ("$tensor: float, shape: [1], data: [1.0e+300]", "1e+300 is out of range for float"),
    ("$tensor: int4, shape: [1], data: [8]", "8 is out of range for int4: -8 to 7"),
    ("$tensor: int4, shape: [1], data: [1.0]", "expected a whole number for int4, found 1.0"),
    ("$tensor: bool, shape: [1], data: [1]", "expected true or false for bool, found 1"),
    ("$tensor: complex64, shape: [1], data: [1]", "expected [real, imaginary], found 1"),
    ("$tensor: string, shape: [1], data: [1]", "expected a text"),
    ("$tensor: float, shape: [1], bytes: AAAA", "4 bytes, not 3"),
    ("$tensor: float, shape: [1], name: w", "no key 'tensors' at the top names one"),
]


@pytest.mark.parametrize(("form", "message"), BAD_TENSORS)
def test_bad_tensors_are_refused_with_their_place(form: str, message: str) -> None:
    with pytest.raises(FileError) as caught:
        loads(f"{HEAD}  a: {{type: T, parameters: {{t: {{{form}}}}}}}\n")
    assert message in str(caught.value)
    assert caught.value.line == 4


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_text_gives_a_graph_or_a_file_error(data: st.DataObject) -> None:
    text, tensors = dumps(example())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 20)))
        text = text[:start] + data.draw(st.text("\n :{}[]$\"'-?!&*#,|>0a~\t\x00é", max_size=4)) + text[stop:]
    with suppress(FileError):
        assert isinstance(loads(text, tensors), Graph)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"qmoe: 1\nname: \xff\n")
    with pytest.raises(FileError, match=r"a\.yaml:2:7: is not UTF-8"):
        load_yaml(path)
    with path.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(FileError, match="larger than 64 MiB"):
        load_yaml(path)


# -- tensor files -------------------------------------------------------------------------------------------------


def test_tensor_files_are_those_of_the_safetensors_package(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True]), "c": np.zeros((0, 3), np.int16)}
    write_tensors(tmp_path / "ours.safetensors", {name: Tensor.from_array(array) for name, array in arrays.items()})
    theirs = safetensors.numpy.load_file(tmp_path / "ours.safetensors")
    safetensors.numpy.save_file(arrays, tmp_path / "theirs.safetensors")
    ours = read_tensors(tmp_path / "theirs.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(ours[name].array(), array)
        assert ours[name].is_mapped == (array.size > 0)


def header(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 16


BAD_FILES = [
    (b"", "is empty"),
    (b"\xff" * 8, "does not fit in it"),
    (b"\x02" + b"\0" * 7 + b"[]", "no JSON object"),
    (b"\x02" + b"\0" * 7 + b"{]", "is not JSON"),
    (header(a=3), "entry of the tensor 'a'"),
    (header(a={"dtype": [], "shape": [], "data_offsets": [0, 1]}), "entry of the tensor 'a'"),
    (header(a={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}), "no list of sizes"),
    (header(a={"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}), "cut short"),
    (header(a={"dtype": "F32", "shape": [4], "data_offsets": [8, 0]}), "has no place"),
    (header(a={"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}), "does not fit its place"),
    (
        header(
            a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            b={"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        ),
        "overlap",
    ),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
def test_bad_tensor_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        read_tensors(path)
    assert caught.value.path == path


def test_many_tensors_need_few_open_files(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", {str(i): Tensor.from_array(np.arange(i)) for i in range(5000)})
    assert len(read_tensors(tmp_path / "t.safetensors")) == 5000


def test_tensors_that_are_not_what_the_snippet_says_are_refused(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.yaml", tmp_path / "a.safetensors"
    save_yaml(example(), path)
    stored = read_tensors(tensors)
    other = Tensor.from_array(stored["w"].array() + 1)
    write_tensors(tensors, {**stored, "w": other})
    with pytest.raises(
        FileError, match=rf"'w' .*line 14.* expected SHA-256 {stored['w'].digest}, found {other.digest}"
    ):
        load_yaml(path)
    assert load_yaml(path, verify=False).nodes["w"].parameters["tensor"] == other
    write_tensors(tensors, {**stored, "w": Tensor.from_array(np.zeros((64, 9), np.float32))})
    with pytest.raises(FileError, match=r"'w'.* expected tensor\(float\) \[64, 8\], found tensor\(float\) \[64, 9\]"):
        load_yaml(path)
    write_tensors(tensors, {"codes": stored["codes"]})
    with pytest.raises(FileError, match=r"a\.safetensors: holds no tensor 'w', which is needed by .*line 14"):
        load_yaml(path)
    tensors.unlink()
    with pytest.raises(FileError, match=r"a\.safetensors: is missing"):
        load_yaml(path)


@pytest.mark.parametrize("name", ["/etc/x.safetensors", "../x.safetensors", "b/x.safetensors", "x.bin", ".safetensors"])
def test_tensors_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"qmoe: 1\ntensors: {name}\n")
    with pytest.raises(FileError, match="expected the plain name") as caught:
        load_yaml(path)
    assert (caught.value.line, caught.value.column) == (2, 10)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_yaml(example(), tmp_path / "out.yaml")
    text = (tmp_path / "out.yaml").read_text()
    (tmp_path / "in" / "a.yaml").write_text(text)
    (tmp_path / "in" / "out.safetensors").symlink_to(tmp_path / "out.safetensors")
    with pytest.raises(FileError, match="a link out of the snippet's folder"):
        load_yaml(tmp_path / "in" / "a.yaml")
    # A link to the snippet itself stands for the snippet, whose tensors lie beside it.
    (tmp_path / "in" / "link.yaml").symlink_to(tmp_path / "out.yaml")
    assert load_yaml(tmp_path / "in" / "link.yaml") == example()


# -- saving -------------------------------------------------------------------------------------------------------


def changed(graph: Graph, by: float) -> Graph:
    graph = graph.copy()
    tensor = graph.nodes["w"].parameters["tensor"]
    graph.set("w", "tensor", Tensor.from_array(tensor.array() + np.float32(by)))
    return graph


def test_saving_over_the_file_that_the_tensors_are_mapped_from(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    save_yaml(example(), path)
    graph = load_yaml(path)
    for by in (1, 2, 3):
        graph = changed(graph, by)
        save_yaml(graph, path)
        assert len(list(tmp_path.iterdir())) == 2
        assert load_yaml(path, verify=True) == graph
        graph = load_yaml(path)
    assert graph == changed(changed(changed(example(), 1), 2), 3)


def test_a_copied_snippet_keeps_its_tensors(tmp_path: Path) -> None:
    save_yaml(example(), tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_bytes((tmp_path / "a.yaml").read_bytes())
    save_yaml(changed(example(), 1), tmp_path / "a.yaml")
    assert load_yaml(tmp_path / "b.yaml") == example()
    assert load_yaml(tmp_path / "a.yaml") == changed(example(), 1)


def test_tensors_that_are_no_longer_needed_go_and_others_files_stay(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"somebody's")
    save_yaml(example(), tmp_path / "a.yaml")
    assert (tmp_path / "a.safetensors").read_bytes() == b"somebody's"
    assert len(list(tmp_path.iterdir())) == 3
    graph = load_yaml(tmp_path / "a.yaml")
    for id in ("w", "codes"):
        graph.remove(id)
    save_yaml(graph, tmp_path / "a.yaml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "a.yaml"]


KILLED = """
import os, signal, sys
import runtime.atomic
from runtime.snippets import load_yaml, save_yaml
from tests.test_snippets import changed
step, path = int(sys.argv[1]), sys.argv[2]
graph = changed(load_yaml(path), 1)
calls = 0
def watched(name):
    real = getattr(os, name)
    def call(*arguments, **keywords):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **keywords)
    return call
for name in ("fsync", "replace", "rename", "unlink", "chmod"):
    setattr(os, name, watched(name))
save_yaml(graph, path)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_kill_at_any_moment_leaves_a_whole_pair(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    outcomes = []
    for step in range(1, 30):
        save_yaml(example(), path)
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        done = subprocess.run([sys.executable, "-c", KILLED, str(step), str(path)], env=environment, check=False)
        graph = load_yaml(path, verify=True)
        assert graph in (example(), changed(example(), 1))
        outcomes.append(graph == example())
        if done.returncode == 0:
            break
    assert outcomes[0] and not outcomes[-1] and len(outcomes) > 4


def test_a_failure_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.yaml"
    save_yaml(example(), path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="cannot be written: No space left on device"):
        save_yaml(changed(example(), 1), path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


# -- any file -----------------------------------------------------------------------------------------------------


def test_files_are_told_by_their_names(tmp_path: Path) -> None:
    runtime.save(example(), tmp_path / "a.yml")
    assert runtime.load(tmp_path / "a.yml") == example()
    with pytest.raises(FileError, match=r"one of \.yaml, \.yml, \.png, \.bmp, \.webp, \.onnx, not \.txt"):
        runtime.load(tmp_path / "a.txt")
    with pytest.raises(FileError, match="there is no such file"):
        runtime.load(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").mkdir()
    with pytest.raises(FileError, match="is a folder"):
        runtime.load(tmp_path / "c.yaml")
    with pytest.raises(FileError, match="there is no folder"):
        runtime.save(example(), tmp_path / "no" / "a.yaml")
    with pytest.raises(FileError, match="a snippet has no target"):
        runtime.save(example(), tmp_path / "a.yaml", target="portable")


def test_every_element_type_comes_back_from_a_file(tmp_path: Path) -> None:
    graph = Graph()
    rng = np.random.default_rng(1)
    for element in ElementType:
        if element is not ElementType.STRING:
            data = rng.integers(0, 2 if element is ElementType.BOOL else 256, 128 * element.bits // 8, dtype=np.uint8)
            graph.add("Initializer", f"t_{element}", parameters={"tensor": Tensor(element, (128,), data)})
    save_yaml(graph, tmp_path / "a.yaml")
    assert_same(load_yaml(tmp_path / "a.yaml"), graph)
