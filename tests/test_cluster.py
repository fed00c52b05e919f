"""Work on a local Ray cluster: every result there, none twice, all equal to one machine's, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="the extra `cluster` is not installed")

from qmoe_node.sharding import shard
from runtime import cluster, load, save
from runtime.cluster import Cluster, Task
from runtime.datasets import open_data
from runtime.errors import Cancelled, GraphError, StudioError
from runtime.graph import Graph
from runtime.hosting import Failure, Opening, Piece, Places, Range, Scored
from runtime.parts import parts_of
from runtime.scoring import Job, described, job_of, score
from runtime.session import Session
from runtime.shards import Folder, Results, read_manifest, read_results
from runtime.spans import Source
from runtime.spread import Spread
from runtime.tensors import Tensor
from runtime.training.parallel import ClusterRunner
from runtime.training.trainer import Settings, Trainer
from tests.commands import ROOT, Qmoe, qmoe, start
from tests.test_scoring import TABLE, looked_up, slow

__all__ = ["qmoe"]

DIGITS = ROOT / "snippets" / "digits_moe.yaml"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of three nodes with one processor each, on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def until_losses_are_known(nodes: Any) -> None:
    """Waits until Ray counts only nodes that are there: it takes a while to miss one that was killed."""
    import ray

    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if sum(node["Alive"] for node in ray.nodes()) == len(nodes.list_all_nodes()):
                return
            time.sleep(0.1)
        raise AssertionError("a lost node is still counted")
    finally:
        ray.shutdown()


def tasks(count: int, rows: int = 10) -> Iterator[Task]:
    for index in range(count):
        numbers = (np.arange(rows) + index) % 10
        yield Task(index, "score", (Piece(index * rows, {"index": numbers}, rows),))


def all_once(found: dict[int, np.ndarray], count: int, rows: int = 10) -> bool:
    """Whether each task's result is there, and equal to one machine's."""
    return sorted(found) == list(range(count)) and all(
        np.array_equal(value, TABLE[(np.arange(rows) + index) % 10]) for index, value in found.items()
    )


def collect(pool: Cluster, count: int, after: dict[int, Any], rows: int = 10) -> dict[int, np.ndarray]:
    """Does tasks and calls `after[n]` when n are done; a result that comes twice fails."""
    found: dict[int, np.ndarray] = {}
    for done in pool.map(tasks(count, rows)):
        assert isinstance(done.value, Scored), done.value
        assert done.task.index not in found
        found[done.task.index] = np.array(done.value.outputs["row"])
        if len(found) in after:
            after[len(found)]()
    return found


def kill_one(events: list[dict[str, Any]]) -> None:
    """Kills the worker that came last of those who are there."""
    for event in reversed([event for event in events if event["event"] == "worker"]):
        with suppress(ProcessLookupError):  # it was killed before, and has not come back yet
            os.kill(event["process"], signal.SIGKILL)
            return


def test_every_result_is_there_when_workers_are_killed(nodes: Any) -> None:
    events: list[dict[str, Any]] = []
    pool = Cluster(nodes.address, 2, [{"graph": looked_up()}], Opening(), tell=events.append)
    try:
        kill = partial(kill_one, events)
        found = collect(pool, 200, {50: kill, 120: kill})
        assert all_once(found, 200)
        assert sum(event["event"] == "worker lost" for event in events) >= 2
        assert sum(event["event"] == "worker" for event in events) >= 3
    finally:
        pool.close()


@pytest.mark.parametrize("reads", [False, True], ids=["sent", "read"])
def test_a_call_that_reaches_a_worker_before_it_is_ready_again_is_made_again(
    nodes: Any, tmp_path: Path, reads: bool
) -> None:
    """While nobody looks, Ray starts another worker in the place of one that was killed; that one knows nothing."""
    np.save(tmp_path / "d.npy", np.array([(np.arange(100) + index) % 10 for index in range(20)]).reshape(-1))
    events: list[dict[str, Any]] = []
    pool = Cluster(nodes.address, 2, [{"graph": slow(20_000)}], Opening(), tell=events.append)
    found: dict[int, np.ndarray] = {}
    try:
        if reads:
            pool.show(Places(open_data(tmp_path / "d.npy", "index").source(), None))
        ranges = (Task(index, "score", (Range(index * 100, index * 100 + 100, 100),)) for index in range(20))
        for done in pool.map(ranges if reads else tasks(20, 100), count=20):
            assert isinstance(done.value, Scored), done.value
            assert done.task.index not in found
            found[done.task.index] = np.array(done.value.outputs["row"])
            if len(found) in (3, 9):
                kill_one(events)
                time.sleep(4)  # so long that another one is there
        assert all_once(found, 20, 100)
        assert sum(event["event"] == "worker lost" for event in events) >= 2
    finally:
        pool.close()


def test_every_result_is_there_when_a_node_is_lost(nodes: Any) -> None:
    extra = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    pool = Cluster(nodes.address, 4, [{"graph": looked_up()}], Opening())
    try:
        found = collect(pool, 200, {30: lambda: nodes.remove_node(extra, allow_graceful=False)})
        assert all_once(found, 200)
    finally:
        pool.close()


def test_a_machine_that_joins_gets_a_worker(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    until_losses_are_known(nodes)
    monkeypatch.setattr(cluster, "GROWTH", 0.1)
    events: list[dict[str, Any]] = []
    pool = Cluster(nodes.address, None, [{"graph": looked_up()}], Opening(), tell=events.append)
    extra = None
    try:
        first = pool.workers
        extra = nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        deadline = time.monotonic() + 60
        while pool.workers == first and time.monotonic() < deadline:
            assert all_once(collect(pool, 20, {}), 20)
        assert pool.workers == first + 1
        by = {done.worker for done in pool.map(tasks(200))}
        assert first in by
        assert {event["worker"] for event in events if event["event"] == "worker"} == set(range(first + 1))
    finally:
        pool.close()
        if extra is not None:
            nodes.remove_node(extra)


def test_a_machine_with_another_version_that_joins_is_not_taken_and_ends_nothing(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    until_losses_are_known(nodes)
    monkeypatch.setattr(cluster, "GROWTH", 0.1)
    events: list[dict[str, Any]] = []
    pool = Cluster(nodes.address, None, [{"graph": looked_up()}], Opening(), tell=events.append)
    extra = []
    first = pool.workers

    def until(is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < deadline, events
            assert all_once(collect(pool, 20, {}), 20)

    def told(kind: str) -> list[dict[str, Any]]:
        return [event for event in events if event["event"] == kind]

    try:
        until(lambda: len(told("worker")) == first)
        with monkeypatch.context() as patched:
            patched.setattr(cluster, "versions", lambda: {"qmoe-studio": "9.9"})
            extra.append(nodes.add_node(num_cpus=1))
            nodes.wait_for_nodes()
            until(lambda: bool(told("warning")))
        assert told("warning")[0]["message"].startswith("A worker that joined is not taken: The worker on")
        assert pool.workers == first
        extra.append(nodes.add_node(num_cpus=1))  # others are welcome
        nodes.wait_for_nodes()
        until(lambda: pool.workers == first + 1)
        assert len(told("warning")) == 1
    finally:
        pool.close()
        for node in extra:
            nodes.remove_node(node)


def test_an_error_in_a_kernel_is_that_of_one_machine_with_its_rows(nodes: Any, tmp_path: Path) -> None:
    index = np.arange(200) % 10
    index[117] = 10
    np.savez(tmp_path / "d.npz", index=index)
    graph = looked_up()
    save(graph, tmp_path / "g.yaml")

    def run(folder: Path, skip_bad: bool) -> None:
        job = job_of(graph, open_data(tmp_path / "d.npz"), {}, batch=10, shard_rows=20, skip_bad=skip_bad)
        results = Results(folder, described(tmp_path / "g.yaml", job, Opening()), False)
        pool = Cluster(nodes.address, 2, [{"graph": graph}], Opening())
        try:
            score(job, results, pool, lambda event: None)
        finally:
            pool.close()
            results.close()

    with pytest.raises(GraphError) as error:
        run(tmp_path / "out", False)
    with pytest.raises(GraphError) as alone:
        Session(graph).forward({"index": index[110:120]})
    assert error.value.findings[:-1] == alone.value.findings
    assert "rows 110 to 119 of the data" in str(error.value)
    run(tmp_path / "bad", True)
    rows = np.concatenate([part["row"] for part in read_results(tmp_path / "bad")])
    assert np.array_equal(rows, TABLE[np.delete(index, np.s_[110:120])])


def test_a_task_at_which_workers_die_is_given_up_and_others_are_not(nodes: Any) -> None:
    pool = Cluster(nodes.address, 2, [{"graph": looked_up()}], Opening())
    try:

        def mixed() -> Iterator[Task]:
            yield from tasks(5)
            yield Task(5, "score", (Crash(),))
            yield from (Task(one.index + 6, one.method, one.arguments) for one in tasks(5))

        values = {done.task.index: done.value for done in pool.map(mixed())}
        assert sorted(values) == list(range(11))
        failed = values.pop(5)
        assert isinstance(failed, Failure) and "3 workers died at this" in failed.findings[0].message
        assert all(isinstance(value, Scored) for value in values.values())
    finally:
        pool.close()


class Crash:
    """Ends the process that looks at it."""

    @property
    def count(self) -> int:
        os._exit(1)


def test_who_dies_at_one_of_several_tasks_dies_of_that_one_only(nodes: Any, tmp_path: Path) -> None:
    """Short tasks are sent together; after a death each is tried alone."""
    np.save(tmp_path / "d.npy", np.arange(6000) % 10)
    source = open_data(tmp_path / "d.npy", "index").source()
    events: list[dict[str, Any]] = []
    pool = Cluster(nodes.address, 2, [{"graph": looked_up()}], Opening(), tell=events.append)
    try:
        pool.show(Places(source, None))
        ranges = [Task(index, "score", (Range(index * 10, index * 10 + 10, 10),)) for index in range(600)]
        ranges[200] = Task(200, "score", (Crash(),))
        values = {done.task.index: done.value for done in pool.map(iter(ranges), count=600)}
        assert sorted(values) == list(range(600))
        failed = values.pop(200)
        assert isinstance(failed, Failure) and "3 workers died at this" in failed.findings[0].message
        assert all(isinstance(value, Scored) for value in values.values())
        assert any(event["event"] == "worker lost" and event["tasks"] > 1 for event in events)
    finally:
        pool.close()


def test_what_a_worker_gives_back_is_done_once(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows at first how long a task takes: a worker who is given too many gives back what it has not begun."""
    np.save(tmp_path / "d.npy", (np.arange(10) + np.arange(200)[:, None]).reshape(-1) % 10)
    returned: list[int] = []
    put_back = cluster._Work.put_back

    def counted(work: Any, tasks: Any) -> None:
        returned.append(len(tasks))
        put_back(work, tasks)

    monkeypatch.setattr(cluster, "AT_ONCE", 0.0)
    monkeypatch.setattr(cluster._Work, "put_back", counted)
    pool = Cluster(nodes.address, 2, [{"graph": looked_up()}], Opening())
    try:
        pool.show(Places(open_data(tmp_path / "d.npy", "index").source(), None))
        ranges = [Task(index, "score", (Range(index * 10, index * 10 + 10, 10),)) for index in range(200)]
        found = [(done.task.index, done.value.outputs["row"]) for done in pool.map(iter(ranges), count=200)]
    finally:
        pool.close()
    assert max(returned) == cluster.UNTRIED - 1
    assert len(found) == 200 and all_once(dict(found), 200, 10)


def test_a_spread_graph_loses_nothing_when_who_has_a_part_is_killed(nodes: Any) -> None:
    graph = load(DIGITS)
    random = np.random.default_rng(0)
    x, y = random.uniform(0, 1, (2000, 64)).astype(np.float32), np.zeros(2000, np.int64)
    whole = Session(graph).forward({"x": x, "y": y})["logits"]
    cut = shard(graph, 2)
    events: list[dict[str, Any]] = []
    pool = Spread(cut, parts_of(cut), nodes.address, 2, Opening(), {}, events.append)
    found: dict[int, np.ndarray] = {}
    try:
        pieces = (Piece(a, {"x": x[a : a + 50], "y": y[a : a + 50]}, 10) for a in range(0, 2000, 50))
        for done in pool.map(Task(index, "score", (piece, index)) for index, piece in enumerate(pieces)):
            assert done.task.index not in found
            found[done.task.index] = done.value.outputs["logits"]
            if len(found) in (5, 20):
                kill_one(events)
                time.sleep(0 if len(found) == 5 else 4)  # another one is there before the next answer
    finally:
        pool.close()
    assert sum(event["event"] == "worker lost" for event in events) >= 2
    np.testing.assert_allclose(np.concatenate([found[index] for index in range(40)]), whole, rtol=1e-5, atol=1e-5)


def test_a_worker_with_another_version_is_refused(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "versions", lambda: {"qmoe-studio": "9.9", "onnxruntime": "1", "numpy": "2"})
    with pytest.raises(GraphError, match=r"has qmoe-studio 0\.1\.0; here is 9\.9, and numbers must be the same"):
        Cluster(nodes.address, 1, [{"graph": looked_up()}], Opening())


def test_a_cluster_that_is_not_there_or_too_small_is_refused(nodes: Any) -> None:
    with pytest.raises(GraphError, match="40 workers with 1 threads each need 40 processors; the cluster at"):
        Cluster(nodes.address, 40, [{"graph": looked_up()}], Opening())
    with pytest.raises(GraphError, match="no cluster to be had at 127.0.0.1:1"):
        Cluster("127.0.0.1:1", 1, [{"graph": looked_up()}], Opening())
    pool = Cluster(nodes.address, 1, [{"graph": looked_up()}], Opening())
    try:
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(Cancelled):
            list(pool.map(tasks(5), cancel))
    finally:
        pool.close()


def test_workers_for_whom_there_is_no_work_do_not_start(nodes: Any) -> None:
    for most, started in ((2, 2), (3, 3)):
        events: list[dict[str, Any]] = []
        pool = Cluster(nodes.address, 3, [{"graph": looked_up()}], Opening(), tell=events.append, most=most)
        try:
            assert pool.workers == started and all_once(collect(pool, 20, {}), 20)
        finally:
            pool.close()
        told = [event["message"] for event in events if event["event"] == "warning"]
        assert told == (["Only 2 workers start: there is no work for more at the same time."] if most == 2 else [])


def test_memory_stays_flat_whatever_the_size_of_the_data(nodes: Any) -> None:
    """No more is taken from the data than workers have room for."""
    pool = Cluster(nodes.address, 2, [{"graph": looked_up()}], Opening())
    taken, done = 0, 0

    def counted() -> Iterator[Task]:
        nonlocal taken
        for task in tasks(100):
            taken += 1
            assert taken - done <= 2 * cluster.AHEAD + 1
            yield task

    try:
        for _ in pool.map(counted()):
            done += 1
        assert done == 100
    finally:
        pool.close()


# -- files that workers read and write themselves -------------------------------------------------------------------


def wide() -> Graph:
    """A row of the table for each number, a thousand times: results that take a while to write."""
    graph = looked_up()
    graph.add("Initializer", "times", parameters={"tensor": Tensor.from_array(np.array([1, 1000]))})
    graph.add("Tile", "tile")
    graph.add("Output", "wide")
    graph.wire("gather.output", "tile.input")
    graph.wire("times.value", "tile.repeats")
    graph.wire("tile.output", "wide.value")
    return graph


def before(number: int, act: Callable[[], None], pool: Cluster) -> None:
    """Lets a pool do something before it takes the task of some number."""
    own = pool.map

    def watched(tasks: Iterable[Task]) -> Iterator[Task]:
        for index, task in enumerate(tasks):
            if index == number:
                act()
            yield task

    pool.map = lambda tasks, *rest: own(watched(tasks), *rest)  # type: ignore[method-assign]


class Scoring:
    """A job on a cluster: its events, its results, and whether they are what they must be."""

    def __init__(self, graph: Graph, data: Path, folder: Path, **options: Any) -> None:
        self.graph, self.folder, self.events = graph, folder, list[dict[str, Any]]()
        save(graph, folder.parent / "g.yaml")
        self.job = job_of(graph, open_data(data, "index"), {}, **options)
        self.results = Results(folder, described(folder.parent / "g.yaml", self.job, Opening()), False)

    def run(
        self,
        address: str,
        tell: Callable[[dict[str, Any]], None] | None = None,
        prepare: Callable[[Cluster], None] | None = None,
    ) -> None:
        def hear(event: dict[str, Any]) -> None:
            self.events.append(event)
            if tell is not None:
                tell(event)

        pool = Cluster(address, 2, [{"graph": self.graph}], Opening(), tell=hear)
        if prepare is not None:
            prepare(pool)
        try:
            score(self.job, self.results, pool, hear)
        finally:
            pool.close()
            self.results.close()

    @property
    def warnings(self) -> list[str]:
        return [event["message"] for event in self.events if event["event"] == "warning"]

    def is_right(self, index: np.ndarray) -> bool:
        """Whether all results are there, none twice, and nothing else is left."""
        rows = np.concatenate([part["row"] for part in read_results(self.folder)])
        done = [event["index"] for event in self.events if event["event"] == "shard"]
        hidden = {path.name for path in self.folder.iterdir() if path.name.startswith(".")}
        return (
            np.array_equal(rows, TABLE[index]) and sorted(done) == list(range(self.job.shards)) and hidden == {".lock"}
        )


def refused(*_: Any) -> Any:
    raise AssertionError("this process neither reads rows nor writes results")


@pytest.mark.parametrize("form", ["d.npz", "d.npy"])
def test_workers_read_and_write_what_they_see(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    index = np.random.default_rng(0).integers(0, 10, 5000)
    np.save(tmp_path / form, index) if form == "d.npy" else np.savez(tmp_path / form, other=np.zeros(5000), index=index)
    scoring = Scoring(looked_up(), tmp_path / form, tmp_path / "out", batch=10, shard_rows=30)
    monkeypatch.setattr(Source, "read", refused)
    monkeypatch.setattr(Folder, "write", refused)
    scoring.run(nodes.address)
    assert scoring.is_right(index) and not scoring.warnings


def test_a_worker_that_is_killed_while_it_writes_leaves_nothing_half_done(nodes: Any, tmp_path: Path) -> None:
    index = np.arange(40_000) % 10
    np.save(tmp_path / "d.npy", index)
    scoring = Scoring(wide(), tmp_path / "d.npy", tmp_path / "out", batch=100, shard_rows=1000)
    killed: set[int] = set()

    def kill_who_writes() -> None:
        while len(killed) < 2:
            if any(path.name.endswith(".part") for path in (tmp_path / "out").iterdir()):
                alive = [event["process"] for event in scoring.events if event["event"] == "worker"]
                process = next((one for one in reversed(alive) if one not in killed and writes(one)), None)
                if process is not None:
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                        killed.add(process)
            time.sleep(0.0005)

    threading.Thread(target=kill_who_writes, daemon=True).start()
    scoring.run(nodes.address)
    assert len(killed) == 2 and sum(event["event"] == "worker lost" for event in scoring.events) >= 2
    assert scoring.is_right(index)


def writes(process: int) -> bool:
    """Whether a process has a file of results open that is not whole yet."""
    with suppress(OSError):
        return any(os.readlink(file).endswith(".part") for file in Path(f"/proc/{process}/fd").iterdir())
    return False


def test_data_that_changes_while_workers_read_it_ends_the_job(nodes: Any, tmp_path: Path) -> None:
    index = np.arange(20_000) % 10
    np.save(tmp_path / "d.npy", index)
    scoring = Scoring(looked_up(), tmp_path / "d.npy", tmp_path / "out", batch=10, shard_rows=20)

    change = partial(np.save, tmp_path / "d.npy", (index + 1) % 10)
    with pytest.raises(StudioError, match=r"d\.npy: has changed since the job began"):
        scoring.run(nodes.address, prepare=partial(before, 500, change))
    done = sorted(scoring.results.done.values(), key=lambda one: one.index)
    assert 1 <= len(done) < 1000
    for one in done:
        assert np.array_equal(np.load(tmp_path / "out" / one.file)["row"], TABLE[index[one.start : one.stop]])


def test_another_file_under_the_same_path_is_not_read(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers who are elsewhere are told the content; here they are told another one than what they find."""
    index = np.arange(3000) % 10
    np.save(tmp_path / "d.npy", index)
    for name, digest in (("same", None), ("other", "0" * 64)):
        scoring = Scoring(looked_up(), tmp_path / "d.npy", tmp_path / name, batch=10, shard_rows=100)
        source = scoring.job.source()
        assert source is not None
        digests = {path: digest or own for path, own in source.digests.items()}
        elsewhere = replace(source, machine="another", digests=digests)
        monkeypatch.setattr(Job, "source", lambda self, elsewhere=elsewhere: elsewhere)
        scoring.run(nodes.address)
        assert scoring.is_right(index)
        told = [text for text in scoring.warnings if "d.npy: is another file than the job's" in text]
        assert len(told) == (0 if name == "same" else 2) and len(scoring.warnings) == len(told)
        monkeypatch.undo()


def test_a_folder_that_workers_do_not_see_is_written_here(nodes: Any, tmp_path: Path) -> None:
    index = np.arange(3000) % 10
    np.save(tmp_path / "d.npy", index)
    scoring = Scoring(looked_up(), tmp_path / "d.npy", tmp_path / "out", batch=10, shard_rows=100)
    (tmp_path / "out" / scoring.results.place.token).unlink()
    scoring.run(nodes.address)
    assert scoring.is_right(index)
    assert len(scoring.warnings) == 2 and all("does not see the folder" in text for text in scoring.warnings)


def test_what_a_worker_cannot_write_is_written_here(nodes: Any, tmp_path: Path) -> None:
    import resource

    index = np.arange(20_000) % 10
    np.save(tmp_path / "d.npy", index)
    scoring = Scoring(wide(), tmp_path / "d.npy", tmp_path / "out", batch=100, shard_rows=1000)

    def limit(event: dict[str, Any]) -> None:
        if event["event"] == "worker":
            resource.prlimit(event["process"], resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    scoring.run(nodes.address, limit)
    assert scoring.is_right(index)
    assert 1 <= len(scoring.warnings) <= 2
    assert all("cannot be written: File too large" in text for text in scoring.warnings)


def test_compressed_data_is_sent_and_that_is_told(nodes: Any, tmp_path: Path) -> None:
    index = np.arange(3000) % 10
    np.savez_compressed(tmp_path / "d.npz", index=index)
    scoring = Scoring(looked_up(), tmp_path / "d.npz", tmp_path / "out", batch=10, shard_rows=100)
    scoring.run(nodes.address)
    assert scoring.is_right(index)
    (text,) = scoring.warnings
    assert "index is compressed" in text and "are sent them" in text


def test_training_has_the_losses_of_one_machine_and_goes_on_there(nodes: Any, tmp_path: Path) -> None:
    graph = load(DIGITS)
    random = np.random.default_rng(0)
    data = {"x": random.random((300, 64), np.float32), "y": random.integers(0, 10, 300)}
    settings = Settings(epochs=2, batch_size=50, clip_norm=1.0)
    alone = Trainer(graph, data, settings, folder=tmp_path / "alone")
    alone.run()
    events: list[dict[str, Any]] = []
    pool = Cluster(nodes.address, 2, [{"graph": graph}], Opening(), tell=events.append)
    try:
        steps = 0

        def kill(progress: Any) -> None:
            nonlocal steps
            steps += 1
            if steps in (3, 8):
                kill_one(events)
                time.sleep(0 if steps == 3 else 4)  # another one is there before the next step

        spread = Trainer(graph, data, settings, folder=tmp_path / "spread", runner=ClusterRunner(graph, settings, pool))
        spread.run(kill)
    finally:
        pool.close()
    for first, second in zip(alone.history, spread.history, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5, abs=1e-5)
    for id, tensor in alone.weights().items():
        np.testing.assert_allclose(spread.weights()[id].array(), tensor.array(), rtol=1e-3, atol=1e-4)
    longer = Settings(epochs=3, batch_size=50, clip_norm=1.0)
    here = Trainer(graph, data, longer, folder=tmp_path / "spread", resume=True)
    here.run()
    assert len(here.history) == 3


def test_a_loss_that_is_no_mean_is_told(nodes: Any) -> None:
    graph = load(DIGITS)
    random = np.random.default_rng(0)
    data = {"x": random.random((64, 64), np.float32), "y": random.integers(0, 10, 64)}
    settings = Settings(losses={"loss": 1.0, "balance_loss": 0.1}, epochs=1)
    events: list[dict[str, Any]] = []
    pool = Cluster(nodes.address, 2, [{"graph": graph}], Opening())
    try:
        Trainer(graph, data, settings, runner=ClusterRunner(graph, settings, pool, tell=events.append)).run()
    finally:
        pool.close()
    assert [event["message"].split()[0] for event in events if event["event"] == "warning"] == [
        "balance_loss",
        "total_loss",
    ]


# -- the commands, each with a cluster of its own -------------------------------------------------------------------


def scoring_of(folder: Path, rows: int) -> list[Any]:
    """The words of a command that scores rows in some 20 ms for each file of 100."""
    save(slow(10_000), folder / "g.yaml")
    np.save(folder / "d.npy", np.arange(rows) % 10)
    words = ["run", folder / "g.yaml", "--data", folder / "d.npy", "--out", folder / "out", "--shard-rows", 100]
    return [*words, "--batch", 100, "--cluster", "local", "--workers", 2]


def written(folder: Path) -> dict[str, int]:
    """The files of results that are there, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("part-*.npz")}


def test_a_driver_that_is_killed_leaves_a_job_to_resume(tmp_path: Path) -> None:
    words = scoring_of(tmp_path, 30_000)
    process = start(*words)
    while len(written(tmp_path)) < 20:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    there = written(tmp_path)
    assert 20 <= len(there) < 300 and not read_manifest(tmp_path / "out")["complete"]
    done = start(*words, "--resume", "--json")
    out, err = done.communicate(timeout=100)
    assert done.returncode == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert events[-1]["event"] == "finished"
    now = written(tmp_path)
    kept = sum(now[name] == when for name, when in there.items())
    assert kept >= len(there) - 1  # the last one may lack its line in the journal
    rows = np.concatenate([part["row"] for part in read_results(tmp_path / "out")])
    assert np.array_equal(rows, TABLE[np.arange(30_000) % 10])


def test_ctrl_c_ends_a_job_cleanly(tmp_path: Path) -> None:
    process = start(*scoring_of(tmp_path, 40_000), start_new_session=True)
    while len(written(tmp_path)) < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everyone hears it
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert "go on with --resume" in err and "Traceback" not in err
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    workers = [event["process"] for event in log if event["event"] == "worker"]
    assert workers
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_events_are_json_and_nothing_else_when_a_worker_dies(tmp_path: Path) -> None:
    process = start(*scoring_of(tmp_path, 20_000), "--json")
    assert process.stdout is not None
    events: list[dict[str, Any]] = []
    killed = False
    for line in process.stdout:
        events.append(json.loads(line))
        if not killed and events[-1]["event"] == "shard":
            last = next(event for event in reversed(events) if event["event"] == "worker")
            os.kill(last["process"], signal.SIGKILL)
            killed = True
    assert process.wait(60) == 0 and killed
    kinds = [event["event"] for event in events]
    assert "worker lost" in kinds and kinds[-1] == "finished" and kinds.count("shard") == 200


def test_training_tells_and_logs_what_workers_do(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=random.random((50, 64), np.float32), y=random.integers(0, 10, 50))
    words = ("--data", tmp_path / "d.npz", "--epochs", 2, "--batch", 2, "--folder", tmp_path / "run", "--json")
    ended = start("train", DIGITS, *words, "--cluster", "local", "--workers", 3)
    out, err = ended.communicate(timeout=100)
    assert ended.returncode == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    kinds = [event["event"] for event in events if event["event"] != "worker"]
    assert kinds == ["warning", "started", "epoch", "epoch", "finished"]
    assert events[0]["message"].startswith("Only 2 workers start")
    assert sum(events[-2]["rows_by_worker"].values()) >= 100
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log if "epoch" in line] == [1, 2]
    assert {line["worker"] for line in log if line.get("event") == "worker"} <= {0, 1}
    assert any(line.get("event") == "worker" and line["time"] for line in log)


def test_parquet_and_a_spread_graph_by_the_command(qmoe: Qmoe, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    random = np.random.default_rng(0)
    x, y = random.random((1000, 64), np.float32), random.integers(0, 10, 1000)
    (tmp_path / "tables").mkdir()
    for number in range(3):
        rows = slice(number * 400, (number + 1) * 400)
        table = pyarrow.table({"x": list(x[rows]), "y": y[rows]})
        pyarrow.parquet.write_table(table, tmp_path / "tables" / f"{number}.parquet", row_group_size=130)
    save(shard(load(DIGITS), 2), tmp_path / "spread.yaml")
    whole = Session(load(DIGITS)).forward({"x": x, "y": y})["logits"]
    for file, out in ((DIGITS, "whole"), ("spread.yaml", "parts")):
        words = ("--data", "tables", "--out", out, "--batch", 100, "--shard-rows", 300, "--cluster", "local")
        ended = start("run", file, *words, "--workers", 2, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
        _, err = ended.communicate(timeout=120)
        assert ended.returncode == 0, err
        found = np.concatenate([part["logits"] for part in read_results(tmp_path / out)])
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)
    assert "add --cluster local" in qmoe("run", DIGITS, "--data", "tables", "--out", "here").err
