"""A graph over a data set, in this process: data in files, results in a folder, whatever breaks in between."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import save
from runtime.arrays import write_arrays
from runtime.cluster import Done, Here, Task
from runtime.datasets import open_data
from runtime.errors import Cancelled, FileError, GraphError, StudioError
from runtime.graph import Graph
from runtime.hosting import Failure, Found, Host, Opening, Piece, Places, Scored
from runtime.scoring import WAITING, described, job_of, score
from runtime.session import Session
from runtime.shards import Results, read_manifest, read_results
from runtime.tensors import Tensor
from tests.commands import Qmoe, qmoe, start

__all__ = ["qmoe"]

TABLE = np.arange(40, dtype=np.float32).reshape(10, 4)


def looked_up() -> Graph:
    """Rows of a table by their numbers: a number that is too large makes its batch fail. And their mean."""
    graph = Graph("table")
    graph.add("Input", "index", parameters={"type": "tensor(int64)", "shape": ["rows"]})
    graph.add("Initializer", "table", parameters={"tensor": Tensor.from_array(TABLE)})
    graph.add("Gather", "gather")
    graph.add("ReduceMean", "mean", parameters={"keepdims": False})
    for id in ("row", "average"):
        graph.add("Output", id)
    graph.wire("table.value", "gather.data")
    graph.wire("index.value", "gather.indices")
    graph.wire("gather.output", "mean.data")
    graph.wire("gather.output", "row.value")
    graph.wire("mean.reduced", "average.value")
    return graph


def slow(times: int) -> Graph:
    """Rows of the table, and a product that takes some 2 ms for 100 rows and 1000 times: work that lasts for a look."""
    graph = looked_up()
    graph.add("Initializer", "times", parameters={"tensor": Tensor.from_array(np.array([1, times]))})
    for operator, id in (("Tile", "tile"), ("Transpose", "turned"), ("MatMul", "products"), ("ReduceMax", "most")):
        graph.add(operator, id, parameters={"keepdims": False} if id == "most" else {})
    graph.add("Output", "greatest")
    graph.wire("gather.output", "tile.input")
    graph.wire("times.value", "tile.repeats")
    graph.wire("tile.output", "turned.data")
    graph.wire("tile.output", "products.A")
    graph.wire("turned.transposed", "products.B")
    graph.wire("products.Y", "most.data")
    graph.wire("most.reduced", "greatest.value")
    return graph


def run(
    graph: Graph, folder: Path, data: Path, cancel: threading.Event | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Scores a data set as the command does; the events."""
    file = folder.parent / "graph.yaml"
    save(graph, file)
    resume = options.pop("resume", False)
    opened = open_data(data, "index")
    job = job_of(graph, opened, {}, **options)
    events: list[dict[str, Any]] = []
    results = Results(folder, described(file, job, Opening()), resume)
    try:
        score(job, results, Here({"graph": graph}, Opening()), events.append, cancel)
    finally:
        results.close()
    return events


def written(path: Path, index: Any) -> Path:
    np.savez(path, index=np.asarray(index))
    return path


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 60), batch=st.integers(1, 20), shard=st.integers(1, 50), first=st.integers(0, 40))
def test_a_piece_of_every_form_has_the_rows_in_order(
    rows: int, batch: int, shard: int, first: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("data")
    arrays = {"a": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3), "b": np.arange(rows)}
    np.savez(folder / "plain.npz", **arrays)
    np.savez_compressed(folder / "packed.npz", **arrays)
    (folder / "files").mkdir()
    for name, array in arrays.items():
        np.save(folder / "files" / f"{name}.npy", array)
    for form in ("plain.npz", "packed.npz", "files"):
        data = open_data(folder / form)
        assert data.rows == rows and sorted(data.names) == ["a", "b"]
        pieces = list(data.pieces(shard, first))
        for name, array in arrays.items():
            expected = array[first:]
            assert np.array_equal(np.concatenate([p[name] for p in pieces] or [expected[:0]]), expected)
        assert all(len(piece["a"]) == shard for piece in pieces[:-1])


def test_results_are_those_of_one_run_in_the_order_of_the_data(tmp_path: Path) -> None:
    index = np.random.default_rng(0).integers(0, 10, 1000)
    events = run(looked_up(), tmp_path / "out", written(tmp_path / "d.npz", index), batch=30, shard_rows=70)
    parts = list(read_results(tmp_path / "out"))
    assert np.array_equal(np.concatenate([part["row"] for part in parts]), TABLE[index])
    means = [TABLE[index[first : first + 30]].mean(dtype=np.float64) for first in range(0, 1000, 30)]
    assert np.allclose(np.concatenate([part["average"] for part in parts]), means)
    assert [event["index"] for event in events if event["event"] == "shard"] == list(range(12))  # of 90 rows each
    manifest = read_manifest(tmp_path / "out")
    assert manifest["complete"] and manifest["job"]["rows"] == 1000
    assert manifest["shards"][0].per == {"row": "row", "average": "batch"}
    assert not (tmp_path / "out" / "journal.jsonl").exists()
    logged = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in logged] == [event["event"] for event in events]


def test_a_job_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    data, out = written(tmp_path / "d.npz", np.arange(400) % 10), tmp_path / "out"
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        stop_after(3, cancel, tmp_path, data)
    there = sorted(path.name for path in out.glob("part-*.npz"))
    assert 3 <= len(there) < 20 and there == [f"part-{number:05d}.npz" for number in range(len(there))]
    with pytest.raises(FileError, match="not complete"):
        list(read_results(out))
    times = {name: (out / name).stat().st_mtime_ns for name in there}
    events = run(looked_up(), out, data, batch=10, shard_rows=20, resume=True)
    assert [event["index"] for event in events if event["event"] == "shard"] == list(range(len(there), 20))
    assert {name: (out / name).stat().st_mtime_ns for name in there} == times
    assert np.array_equal(np.concatenate([p["row"] for p in read_results(out)]), TABLE[np.arange(400) % 10])
    again = run(looked_up(), out, data, batch=10, shard_rows=20, resume=True)
    assert [event["event"] for event in again] == ["started", "finished"]


def stop_after(shards: int, cancel: threading.Event, folder: Path, data: Path) -> None:
    graph, file = looked_up(), folder / "graph.yaml"
    save(graph, file)
    job = job_of(graph, open_data(data), {}, batch=10, shard_rows=20)
    results = Results(folder / "out", described(file, job, Opening()), False)

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "shard" and event["done"] >= shards:
            cancel.set()

    try:
        score(job, results, Here({"graph": graph}, Opening()), tell, cancel)
    finally:
        results.close()


class Quick:
    """Workers who are far quicker than the disk. `given` are the results that they have written."""

    workers = 2

    def __init__(self) -> None:
        self.given = 0

    def show(self, places: Places, why_not_in_place: str = "") -> None:
        assert places.results is not None
        self._folder = places.results

    def map(self, tasks: Iterable[Task], cancel: threading.Event | None = None, count: int = 0) -> Iterator[Done]:
        for task in tasks:
            if cancel is not None and cancel.is_set():
                raise Cancelled("cancelled")
            self.given += 1
            file = self._folder.write(task.index, {"row": TABLE[:2]})
            yield Done(task, Scored({}, {"row": "row"}, (), 0.0, file), 0)

    def share(self, value: Any) -> Any:
        return value

    def close(self) -> None:
        pass


@pytest.mark.parametrize("stop", [None, 50])
def test_a_slow_disk_holds_workers_up_and_is_not_waited_for_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int | None
) -> None:
    """Progress is told as it is made, and who stops a job does not wait until a thousand files are on the disk."""
    monkeypatch.setattr("runtime.shards.os.fsync", lambda file: time.sleep(0.002))
    data, graph = written(tmp_path / "d.npz", np.arange(1200) % 10), looked_up()
    save(graph, tmp_path / "graph.yaml")
    job = job_of(graph, open_data(data), {}, batch=2, shard_rows=2)
    results = Results(tmp_path / "out", described(tmp_path / "graph.yaml", job, Opening()), False)
    pool, cancel, ahead = Quick(), threading.Event(), list[int]()

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "shard":
            ahead.append(pool.given - event["done"])
            if event["done"] == stop:
                cancel.set()

    try:
        score(job, results, pool, tell, cancel)
    except Cancelled:
        assert stop is not None and stop <= len(results.done) <= stop + 2 * WAITING
    else:
        assert stop is None and len(results.done) == 600
    finally:
        results.close()
    assert max(ahead) <= 2 * WAITING


def test_what_is_damaged_or_half_written_is_done_again(tmp_path: Path) -> None:
    data, out = written(tmp_path / "d.npz", np.arange(400) % 10), tmp_path / "out"
    with pytest.raises(Cancelled):
        stop_after(3, threading.Event(), tmp_path, data)
    there = len(list(out.glob("part-*.npz")))
    assert 3 <= there < 20
    first = out / "part-00001.npz"
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    (out / "part-00002.npz").unlink()
    (out / f"part-{there:05d}.npz").write_bytes(b"not in the journal")
    with (out / "journal.jsonl").open("a") as file:
        entry = {
            "index": there,
            "file": "../../etc/passwd",
            "start": 0,
            "stop": 1,
            "bytes": 1,
            "per": {},
            "skipped": [],
        }
        file.write(json.dumps(entry) + "\n")
        file.write('{"index": 9, "fi')
    events = run(looked_up(), out, data, batch=10, shard_rows=20, resume=True)
    done = [event["index"] for event in events if event["event"] == "shard"]
    assert done == [1, 2, *range(there, 20)]
    assert np.array_equal(np.concatenate([p["row"] for p in read_results(out)]), TABLE[np.arange(400) % 10])


def test_batches_whose_rows_have_different_shapes_are_no_results() -> None:
    found = Found(Piece(0, {"index": np.arange(4)}, 2))
    found.add(2, {"y": np.zeros((2, 4), np.float32)})
    found.add(0, {"y": np.zeros((2, 3), np.float32)})
    value = found.scored()
    assert isinstance(value, Failure)
    assert value.findings[0].node == "y" and "[2, 3] and [2, 4]" in value.findings[0].message


def test_a_worker_gives_back_what_would_take_too_long_or_be_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    host.prepare({"graph": looked_up()}, Opening())
    piece = Piece(0, {"index": np.arange(10)}, 10)
    calls = [("score", (piece,))] * 5
    scored = host.score(piece)
    assert isinstance(scored, Scored)
    size = sum(array.nbytes for array in scored.outputs.values())
    results, seconds = host.several(calls, 60.0)
    assert len(results) == 5 and 0 < seconds < 60
    assert len(host.several(calls, 0.0)[0]) == 1
    monkeypatch.setattr("runtime.hosting.LARGE", 2 * size)
    assert len(host.several(calls, 60.0)[0]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 7}, "batch was 10 and is 7"),
        ({"shard_rows": 40}, "shard_rows was 20 and is 40"),
        ({"data": np.arange(200) % 9}, "data was"),
        ({"graph": "other"}, "graph was"),
    ],
)
def test_another_job_is_not_mixed_with_the_first(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data, out = written(tmp_path / "d.npz", np.arange(200) % 10), tmp_path / "out"
    with pytest.raises(Cancelled):
        stop_after(5, threading.Event(), tmp_path, data)
    graph = looked_up()
    if "graph" in change:
        graph.add("Output", "table_out")
        graph.wire("table.value", "table_out.value")
    if "data" in change:
        written(data, change["data"])
    options = {"batch": 10, "shard_rows": 20} | {k: v for k, v in change.items() if k not in ("graph", "data")}
    with pytest.raises(FileError, match=message):
        run(graph, out, data, resume=True, **options)


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path: Path) -> None:
    data = written(tmp_path / "d.npz", [1, 2])
    out = tmp_path / "out"
    run(looked_up(), out, data)
    with pytest.raises(FileError, match="has results already: resume"):
        run(looked_up(), out, data)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(FileError, match=r"is not empty \(thesis.tex\)"):
        run(looked_up(), other, data)
    with pytest.raises(FileError, match="nothing to resume"):
        run(looked_up(), other, data, resume=True)
    held = Results(tmp_path / "held", {}, False)
    with pytest.raises(FileError, match="written by another process"):
        Results(tmp_path / "held", {}, True)
    held.close()


def test_a_bad_batch_is_named_or_set_aside(tmp_path: Path) -> None:
    index = np.arange(200) % 10
    index[117] = 10
    data = written(tmp_path / "d.npz", index)
    with pytest.raises(GraphError) as error:
        run(looked_up(), tmp_path / "out", data, batch=10, shard_rows=20)
    with pytest.raises(GraphError) as alone:
        Session(looked_up()).forward({"index": index[110:120]})
    assert error.value.findings[:-1] == alone.value.findings
    assert "rows 110 to 119 of the data" in str(error.value)
    assert len(list((tmp_path / "out").glob("part-*.npz"))) == 5  # what was done stays
    events = run(looked_up(), tmp_path / "bad", data, batch=10, shard_rows=20, skip_bad=True)
    skipped = [event for event in events if event["event"] == "skipped"]
    assert [(event["start"], event["stop"]) for event in skipped] == [(110, 120)]
    rows = np.concatenate([part["row"] for part in read_results(tmp_path / "bad")])
    assert np.array_equal(rows, TABLE[np.delete(index, np.s_[110:120])])
    (shard,) = [shard for shard in read_manifest(tmp_path / "bad")["shards"] if shard.skipped]
    assert (shard.index, shard.skipped[0].start, shard.skipped[0].stop) == (5, 110, 120)


@pytest.mark.parametrize("form", ["d.npz", "d.npy"])
@pytest.mark.parametrize("how", ["written", "replaced", "cut off"])
def test_data_that_changes_meanwhile_ends_the_job_and_is_never_mixed(tmp_path: Path, form: str, how: str) -> None:
    index = np.arange(4000) % 10
    data = tmp_path / form
    np.save(data, index) if form == "d.npy" else written(data, index)
    file = tmp_path / "graph.yaml"
    save(looked_up(), file)
    job = job_of(looked_up(), open_data(data, "index"), {}, batch=10, shard_rows=20)
    results = Results(tmp_path / "out", described(file, job, Opening()), False)

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "shard" and event["done"] == 1:
            content = bytearray(data.read_bytes())
            if how == "cut off":
                os.truncate(data, len(content) // 2)
                return
            content[-2000:-1000] = bytes(1000)
            if how == "replaced":
                (tmp_path / "new").write_bytes(content)
                (tmp_path / "new").replace(data)
            else:
                data.write_bytes(content)

    try:
        with pytest.raises(StudioError, match=f"{form}: has changed since the job began"):
            score(job, results, Here({"graph": looked_up()}, Opening()), tell)
        done = sorted(results.done.values(), key=lambda shard: shard.index)
    finally:
        results.close()
    assert done
    for shard in done:
        assert np.array_equal(np.load(tmp_path / "out" / shard.file)["row"], TABLE[index[shard.start : shard.stop]])
    if how != "cut off":
        with pytest.raises(FileError, match="data was"):
            run(looked_up(), tmp_path / "out", data, batch=10, shard_rows=20, resume=True)


def test_a_file_is_the_same_one_by_its_number_here_and_by_its_content_elsewhere(tmp_path: Path) -> None:
    data = written(tmp_path / "d.npz", np.arange(100))
    source = open_data(data).source()
    assert source is not None and source.seen_here() == source
    elsewhere = replace(
        source, machine="another", stamps={path: replace(stamp, number=1) for path, stamp in source.stamps.items()}
    )
    assert np.array_equal(elsewhere.seen_here().read(90, 100)["index"], np.arange(90, 100))
    content = bytearray(data.read_bytes())
    content[content.index(b"\x93NUMPY") + 200] ^= 1
    (tmp_path / "new").write_bytes(content)
    (tmp_path / "new").replace(data)
    for one in (source, elsewhere):
        with pytest.raises(FileError, match="is another file than the job's"):
            one.seen_here()
    data.unlink()
    with pytest.raises(FileError, match="No such file"):
        source.seen_here()


def test_an_archive_whose_members_are_not_where_it_says_is_refused(tmp_path: Path) -> None:
    content = bytearray(written(tmp_path / "d.npz", np.arange(1000)).read_bytes())
    entry = content.index(b"PK\1\2")
    for name, changes, message in (
        ("beyond.npz", {20: 60_000, 24: 60_000}, "its place in the archive"),  # it would reach beyond the end
        ("packed.npz", {20: 60_000}, "its place in the archive"),  # two sizes of what is not compressed
        ("locked.npz", {8: 1}, "cannot be read"),  # encrypted
        ("strange.npz", {10: 99}, "cannot be read"),  # compressed in a way that nobody knows
    ):
        changed = bytearray(content)
        for place, value in changes.items():
            changed[entry + place : entry + place + 2] = value.to_bytes(2, "little")
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(FileError, match=message):
            open_data(tmp_path / name)


def test_what_a_killed_job_left_half_written_goes_and_other_files_stay(tmp_path: Path) -> None:
    data, out = written(tmp_path / "d.npz", np.arange(400) % 10), tmp_path / "out"
    with pytest.raises(Cancelled):
        stop_after(3, threading.Event(), tmp_path, data)
    (out / ".part-00019.npz.0123abcd.part").write_bytes(b"half")
    (out / (".seen-" + "0" * 32)).touch()
    (out / ".part-of-something-else").touch()
    run(looked_up(), out, data, batch=10, shard_rows=20, resume=True)
    hidden = sorted(path.name for path in out.iterdir() if path.name.startswith("."))
    assert hidden == [".lock", ".part-of-something-else"]


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    def fails(path: Path, message: str) -> None:
        with pytest.raises(FileError, match=message):
            run(looked_up(), tmp_path / "out", path)

    fails(tmp_path / "none.npz", "is not there")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "neither")
    (tmp_path / "text.csv").write_text("1")
    fails(tmp_path / "text.csv", "expected .npz")
    (tmp_path / "no.npz").write_bytes(b"PK nothing")
    fails(tmp_path / "no.npz", "is no .npz")
    np.savez(tmp_path / "scalar.npz", index=1)
    fails(tmp_path / "scalar.npz", "single number")
    np.savez(tmp_path / "uneven.npz", index=[1], other=[1, 2])
    fails(tmp_path / "uneven.npz", "same number of rows")
    np.savez(tmp_path / "rows.npz", index=np.empty((0,), np.int64))
    fails(tmp_path / "rows.npz", "no rows")
    np.savez(tmp_path / "objects.npz", index=np.array([object()]))
    fails(tmp_path / "objects.npz", "objects")
    np.savez(tmp_path / "columns.npz", index=np.asfortranarray(np.ones((3, 2))))
    fails(tmp_path / "columns.npz", "columns")
    whole = written(tmp_path / "cut.npz", np.zeros(100_000, np.int64)).read_bytes()
    with zipfile.ZipFile(tmp_path / "cut.npz", "w") as archive:
        archive.writestr("index.npy", whole[whole.index(b"\x93NUMPY") :][:5000])
    fails(tmp_path / "cut.npz", "ends early")
    write_arrays(tmp_path / "named.npz", {"other": np.zeros(3)})
    with pytest.raises(GraphError, match=r"index: There is no data for this input. The data has other"):
        run(looked_up(), tmp_path / "out", tmp_path / "named.npz")


def test_a_graph_with_a_fixed_number_of_rows_sets_the_batch(tmp_path: Path) -> None:
    graph = looked_up()
    graph.set("index", "shape", [8])
    data = written(tmp_path / "d.npz", np.arange(16) % 10)
    events = run(graph, tmp_path / "out", data)
    assert sum(event["event"] == "shard" for event in events) == 1
    with pytest.raises(GraphError, match="Use --batch 8"):
        run(graph, tmp_path / "other", data, batch=4)


def test_the_command_runs_over_a_data_set(qmoe: Qmoe, tmp_path: Path) -> None:
    save(looked_up(), tmp_path / "g.yaml")
    np.save(tmp_path / "d.npy", np.arange(50) % 10)
    ended = qmoe("run", "g.yaml", "--data", "d.npy", "--out", "out", "--batch", 8, "--shard-rows", 16, "--json")
    events = [json.loads(line) for line in ended.out.splitlines()]
    assert ended.code == 0 and events[0]["event"] == "started" and events[-1]["event"] == "finished"
    assert "has results already" in qmoe("run", "g.yaml", "--data", "d.npy", "--out", "out").err
    ended = qmoe("run", "g.yaml", "--data", "d.npy", "--out", "out", "--batch", 8, "--shard-rows", 16, "--resume")
    assert "0 of 50 rows done, the others were there. Written to out." in ended.out
    for words in (["--out", "x"], ["--batch", 3], ["--resume"], ["--workers", 2], ["--skip-bad"]):
        assert qmoe("run", "g.yaml", *words).code == 2
    assert qmoe("run", "g.yaml", "--data", "d.npy").code == 2
    assert qmoe("run", "g.yaml", "--data", "d.npy", "--out", "y", "--probe", "gather.output").code == 2
    assert "no parts" in qmoe("run", "g.yaml", "--cluster", "local").err
    assert "--cluster local" in qmoe("run", "g.yaml", "--data", "d.npy", "--out", "y", "--workers", 2).err


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_command_that_ends_early_leaves_a_job_to_resume(tmp_path: Path, end: signal.Signals) -> None:
    save(looked_up(), tmp_path / "g.yaml")
    np.save(tmp_path / "d.npy", np.arange(200_000) % 10)
    words = ["run", tmp_path / "g.yaml", "--data", tmp_path / "d.npy", "--out", tmp_path / "out", "--shard-rows", 256]
    process = start(*words)
    while len(list((tmp_path / "out").glob("part-*.npz"))) < 20:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(end)
    _, err = process.communicate(timeout=60)
    if end is signal.SIGINT:
        assert process.returncode in (130, -signal.SIGINT) and "go on with --resume" in err
    assert not list((tmp_path / "out").glob(".*.part")) or end is signal.SIGKILL
    assert not read_manifest(tmp_path / "out")["complete"]
    done = start(*words, "--resume")
    out, err = done.communicate(timeout=100)
    assert done.returncode == 0 and "the others were there" in out, err
    rows = np.concatenate([part["row"] for part in read_results(tmp_path / "out")])
    assert np.array_equal(rows, TABLE[np.arange(200_000) % 10])
    assert os.listdir(tmp_path / "out").count("part-00000.npz") == 1


def test_a_full_disk_is_told_and_the_job_goes_on_later(tmp_path: Path) -> None:
    save(looked_up(), tmp_path / "g.yaml")
    np.save(tmp_path / "d.npy", np.arange(20_000) % 10)
    words = ["run", tmp_path / "g.yaml", "--data", tmp_path / "d.npy", "--out", tmp_path / "out"]
    program = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"
    ended = start(*words, before=program)
    _, err = ended.communicate(timeout=60)
    assert ended.returncode == 1 and "cannot be written: File too large" in err and "part-00000.npz" in err
    ended = start(*words, "--resume")
    assert ended.wait(timeout=60) == 0
