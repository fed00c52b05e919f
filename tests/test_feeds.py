"""Values for inputs: from files, typed, made up; and what a document may say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Graph, GraphError, Session
from runtime.arrays import write_arrays
from runtime.editing import rename
from runtime.errors import FileError
from runtime.feeds import Source, feeds_of, set_size, set_source, sizes_of, source_of, symbols_of
from runtime.files import load, save


def graph() -> Graph:
    made = Graph("fed", opsets={"": 21})
    made.add("Input", "a", parameters={"type": "tensor(float)", "shape": ["N", 3]})
    made.add("Input", "b", parameters={"type": "tensor(float)", "shape": ["N", 3]})
    made.add("Input", "c", parameters={"type": "tensor(int64)", "shape": [2]})
    made.add("Add", "sum")
    made.add("Output", "y")
    for source, target in (("a.value", "sum.A"), ("b.value", "sum.B"), ("sum.C", "y.value")):
        made.wire(source, target)
    return made


def test_made_up_values_are_those_of_the_seed_and_differ_between_inputs() -> None:
    first, again = feeds_of(graph()), feeds_of(graph())
    assert {name: value.shape for name, value in first.items()} == {"a": (8, 3), "b": (8, 3), "c": (2,)}
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["a"], first["b"])
    other = graph()
    set_source(other, "a", Source(seed=1))
    assert not np.array_equal(feeds_of(other)["a"], first["a"])


def test_a_file_gives_its_array_and_the_size_of_the_others(tmp_path: Path) -> None:
    array = np.arange(15, dtype=np.float32).reshape(5, 3)
    write_arrays(tmp_path / "data.npz", {"a": array, "z": array})
    document = graph()
    set_source(document, "a", Source(file="data.npz"))
    found = feeds_of(document, tmp_path)
    assert np.array_equal(found["a"], array) and found["b"].shape == (5, 3)
    assert Session(document).forward(found)["y"].shape == (5, 3)
    set_source(document, "b", Source(file="data.npz"))
    with pytest.raises(FileError, match="holds a, z; expected b"):
        feeds_of(document, tmp_path)
    with pytest.raises(GraphError, match="a.value: .* in no file yet"):
        feeds_of(document)
    write_arrays(tmp_path / "one.npz", {"anything": array})
    assert np.array_equal(feeds_of(document, tmp_path, {"b": tmp_path / "one.npz"})["b"], array)


@pytest.mark.parametrize(
    ("values", "expected"),
    [(2, np.full((8, 3), 2.0)), ([[1, 2, 3]], [[1, 2, 3]]), ([[0.5, 1, 2], [3, 4, 5]], [[0.5, 1, 2], [3, 4, 5]])],
)
def test_typed_values_are_those_of_the_input(values: Any, expected: Any) -> None:
    document = graph()
    set_source(document, "a", Source(values=values))
    found = feeds_of(document)["a"]
    assert found.dtype == np.float32 and np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("values", "reason"), [([1.5, 2], "cannot hold"), ([[1], [2, 3]], "do not make a tensor"), ("x", "numbers")]
)
def test_typed_values_that_make_no_tensor_are_told(values: Any, reason: str) -> None:
    document = graph()
    set_source(document, "c", Source(values=values))
    with pytest.raises(GraphError, match=reason):
        feeds_of(document)


@pytest.mark.parametrize(
    "stored",
    [
        {"file": "../data.npz"},
        {"file": "/etc/data.npz"},
        {"file": "C:\\data.npz"},
        {"file": "C:data.npz"},
        {"file": "..\\data.npz"},
        {"file": "data.pickle"},
        {"file": "a", "seed": 1},
        {"seed": -1},
        {"seed": True},
        {"values": [0] * 5000},
        {"values": {"a": 1}},
        {"url": "x"},
        "file",
        [],
    ],
)
def test_what_is_no_source_is_refused(stored: Any) -> None:
    document = graph()
    document.set("a", "source", stored, section="layout")
    with pytest.raises(GraphError, match="a.value: .* is no source"):
        source_of(document, "a")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    write_arrays(tmp_path / "data.npz", {"a": np.zeros((1, 3), np.float32)})
    (inside / "data.npz").symlink_to(tmp_path / "data.npz")
    document = graph()
    set_source(document, "a", Source(file="data.npz"))
    with pytest.raises(GraphError, match="leads out"):
        feeds_of(document, inside)


def test_sources_and_sizes_stay_with_the_document(tmp_path: Path) -> None:
    document = graph()
    with document.transaction("all"):
        set_source(document, "a", Source(values=[[1, 2, 3]]))
        set_size(document, "N", 1)
    rename(document, "a", "renamed")
    save(document, tmp_path / "fed.yaml")
    found = load(tmp_path / "fed.yaml")
    assert source_of(found, "renamed") == Source(values=[[1, 2, 3]])
    assert symbols_of(found) == ["N"] and sizes_of(found) == {"N": 1}
    assert feeds_of(found)["b"].shape == (1, 3)
    document.undo()
    document.undo()
    assert sizes_of(document) == {} and source_of(document, "a") == Source()


def test_a_source_that_is_refused_changes_nothing() -> None:
    document = graph()
    before = document.undo_labels
    with pytest.raises(GraphError):
        set_source(document, "a", Source(file="/absolute.npz"))
    assert source_of(document, "a") == Source() and document.undo_labels == before
