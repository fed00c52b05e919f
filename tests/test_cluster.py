"""Work on a local Ray cluster: every result there, none twice, all equal to one machine's, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="the extra `cluster` is not installed")

from qmoe_node.sharding import shard
from runtime import cluster, load, save
from runtime.cluster import Cluster, Task
from runtime.datasets import open_data
from runtime.errors import Cancelled, GraphError
from runtime.hosting import Failure, Opening, Piece, Scored
from runtime.scoring import described, job_of, score
from runtime.session import Session
from runtime.shards import Results, read_manifest, read_results
from runtime.training.parallel import ClusterRunner
from runtime.training.trainer import Settings, Trainer
from tests.commands import ROOT, Qmoe, qmoe, start
from tests.test_scoring import TABLE, looked_up

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


def test_every_result_is_there_when_workers_are_killed(nodes: Any) -> None:
    events: list[dict[str, Any]] = []
    pool = Cluster(nodes.address, 2, [{"graph": looked_up()}], Opening(), tell=events.append)
    try:

        def kill() -> None:
            for event in reversed([event for event in events if event["event"] == "worker"]):
                with suppress(ProcessLookupError):  # it was killed before, and has not come back yet
                    os.kill(event["process"], signal.SIGKILL)
                    return

        found = collect(pool, 200, {50: kill, 120: kill})
        assert all_once(found, 200)
        assert sum(event["event"] == "worker lost" for event in events) >= 2
        assert sum(event["event"] == "worker" for event in events) >= 3
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
            if steps == 3:
                os.kill(next(event for event in events if event["event"] == "worker")["process"], signal.SIGKILL)

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


def test_a_driver_that_is_killed_leaves_a_job_to_resume(tmp_path: Path) -> None:
    save(looked_up(), tmp_path / "g.yaml")
    np.save(tmp_path / "d.npy", np.arange(50_000) % 10)
    words = ["run", tmp_path / "g.yaml", "--data", tmp_path / "d.npy", "--out", tmp_path / "out", "--shard-rows", 100]
    words += ["--batch", 10, "--cluster", "local", "--workers", 2]
    process = start(*words)
    while len(list((tmp_path / "out").glob("part-*.npz"))) < 20:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*.npz")}
    assert 20 <= len(there) < 500 and not read_manifest(tmp_path / "out")["complete"]
    done = start(*words, "--resume", "--json")
    out, err = done.communicate(timeout=100)
    assert done.returncode == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert events[-1]["event"] == "finished"
    kept = sum((tmp_path / "out" / name).stat().st_mtime_ns == when for name, when in there.items())
    assert kept >= len(there) - 1  # the last one may lack its line in the journal
    rows = np.concatenate([part["row"] for part in read_results(tmp_path / "out")])
    assert np.array_equal(rows, TABLE[np.arange(50_000) % 10])


def test_ctrl_c_ends_a_job_cleanly(tmp_path: Path) -> None:
    save(looked_up(), tmp_path / "g.yaml")
    np.save(tmp_path / "d.npy", np.arange(200_000) % 10)
    words = ["run", tmp_path / "g.yaml", "--data", tmp_path / "d.npy", "--out", tmp_path / "out", "--shard-rows", 100]
    words += ["--batch", 10, "--cluster", "local", "--workers", 2]
    process = start(*words, start_new_session=True)
    while len(list((tmp_path / "out").glob("part-*.npz"))) < 5:
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
    save(looked_up(), tmp_path / "g.yaml")
    np.save(tmp_path / "d.npy", np.arange(50_000) % 10)
    words = ["run", tmp_path / "g.yaml", "--data", tmp_path / "d.npy", "--out", tmp_path / "out", "--shard-rows", 100]
    process = start(*words, "--batch", 10, "--cluster", "local", "--workers", 2, "--json")
    assert process.stdout is not None
    events: list[dict[str, Any]] = []
    killed = False
    for line in process.stdout:
        events.append(json.loads(line))
        if not killed and events[-1].get("done", 0) >= 20 and events[-1]["event"] == "shard":
            os.kill(next(event for event in events if event["event"] == "worker")["process"], signal.SIGKILL)
            killed = True
    assert process.wait(60) == 0 and killed
    kinds = [event["event"] for event in events]
    assert "worker lost" in kinds and kinds[-1] == "finished" and kinds.count("shard") == 500


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
