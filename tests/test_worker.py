"""Runs in a process of their own: results, progress, crashes, cancelling, training, and who ends when."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from runtime import catalog
from runtime.errors import GraphError
from runtime.graph import Graph
from runtime.reaching import only_for
from runtime.summaries import summarize
from runtime.tensors import Tensor
from runtime.training.trainer import Settings, Trainer
from runtime.types import ElementType
from runtime.worker import (
    BestWeights,
    Cancelled,
    Crashed,
    EpochFinished,
    Event,
    Excerpt,
    Failed,
    Finished,
    Paused,
    Progressed,
    Result,
    Started,
    Training,
    TrainingProgressed,
    Worker,
    why_again,
)
from runtime.worker_process import EXCERPT, first_rows
from tests.test_training import DATA, classifier

ROOT = Path(__file__).resolve().parents[1]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    from tests import trouble_nodes

    with Worker(preload=["tests.trouble_nodes"]) as worker:
        yield worker
    catalog.unregister(trouble_nodes.Trouble)


@pytest.fixture(scope="module")
def digits() -> Graph:
    return runtime.load(ROOT / "snippets" / "digits_moe.yaml")


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    with np.load(ROOT / "snippets" / "digits.npz") as file:
        return {"x": file["images"][:96].reshape(96, 64).astype(np.float32), "y": file["digits"][:96].astype(np.int64)}


def events(worker: Worker, last: type | tuple[type, ...] = (Finished, Failed, Crashed, Cancelled)) -> list[Event]:
    """What happens up to an event of a kind."""
    found: list[Event] = []
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([worker], [], [], 1)[0]:
            found += worker.poll()
            hits = [index for index, event in enumerate(found) if isinstance(event, last)]
            if hits:
                return found[: hits[0] + 1]
    raise AssertionError(f"no {last} came, only {found}")


def until_running(worker: Worker, node: str) -> None:
    """Waits for the start of a node."""
    while True:
        event = events(worker, (Progressed, Failed, Crashed))[-1]
        assert isinstance(event, Progressed), event
        if event.node == node:
            return


def end_of(worker: Worker) -> Any:
    return events(worker)[-1]


def result_of(worker: Worker) -> Result:
    end = end_of(worker)
    assert isinstance(end, Finished), end
    assert isinstance(end.result, Result)
    return end.result


def trouble(how: str) -> Graph:
    """x -> before -> trouble -> after -> out."""
    graph = Graph("trouble", opsets={"": 21, "test.trouble": 1})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ("n",)})
    graph.add("Relu", "before")
    graph.add("test.trouble.Trouble", "trouble", parameters={"how": how})
    graph.add("Neg", "after")
    graph.add("Output", "out")
    for source, target in (
        ("x.value", "before.X"),
        ("before.Y", "trouble.X"),
        ("trouble.Y", "after.X"),
        ("after.Y", "out.value"),
    ):
        graph.wire(source, target)
    return graph


X = {"x": np.array([1.0, -2.0], np.float32)}


# -- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
def test_a_run_gives_what_a_session_gives(
    worker: Worker, digits: Graph, batch: dict[str, np.ndarray], backend: Any
) -> None:
    number = worker.run(
        digits,
        batch,
        backend=backend,
        probes=["router.Y"],
        backward={"loss": 1.0},
        gradient_probes=["moe.output"],
        everything=True,
    )
    happened = events(worker)
    assert isinstance(happened[0], Started) and {event.job for event in happened} == {number}
    assert any(isinstance(event, Progressed) and event.phase == "forward" for event in happened)
    end = happened[-1]
    assert isinstance(end, Finished) and isinstance(end.result, Result)
    result = end.result
    session = runtime.Session(digits, backend)
    wires = dict.fromkeys(source for source in digits.wires.values() if digits.nodes[source.node].type != "Initializer")
    outputs = session.forward(batch, wires)
    values = session.last_run.probes
    for name, value in outputs.items():
        np.testing.assert_allclose(result.outputs[name], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result.probes["router.Y"], values["router.Y"])
    assert list(result.probes) == ["router.Y"] and set(result.summaries) == set(map(str, wires))
    assert result.summaries["moe.output"].shape == values["moe.output"].shape
    gradients = session.backward({"loss": 1.0}, probes=["moe.output"])
    assert set(result.gradients) == set(gradients)
    for name, value in gradients.items():
        np.testing.assert_allclose(result.gradients[name], value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        result.gradient_probes["moe.output"], session.last_run.probes["moe.output"], rtol=1e-4, atol=1e-6
    )
    assert set(result.gradient_summaries) == {*gradients, "moe.output"} and set(result.norms) == set(gradients)
    assert result.times["moe"] > 0 and sum(result.backward_times.values()) > 0
    routing = result.routings["moe"]
    assert routing.experts.shape == routing.weights.shape and routing.tokens_per_expert().sum() == routing.experts.size
    assert result.placement["moe"] == backend and result.excerpts == ()


def test_an_open_graph_stays_open_until_its_meaning_changes(
    worker: Worker, digits: Graph, batch: dict[str, np.ndarray]
) -> None:
    graph = digits.copy()
    worker.run(graph, batch, times=False)
    result_of(worker)
    process = worker.process_id
    graph.set("moe", "position", [1, 2], section="layout")
    worker.run(graph, batch, times=False)
    assert result_of(worker).reason == ""
    graph.set("moe", "name", "mixture")
    worker.run(graph, batch, times=False)
    assert result_of(worker).reason == "parameter name of moe changed"
    worker.run(graph, batch, times=False, backend="numpy")
    result = result_of(worker)
    assert result.reason == "backend is numpy now" and result.placement["moe"] == "numpy"
    assert worker.process_id == process


def test_reasons_name_what_changed(digits: Graph) -> None:
    def after(edit: Any) -> str:
        graph = digits.copy()
        edit(graph)
        return why_again(digits, graph)

    assert after(lambda g: g.add("Relu", "new")) == "new was added"
    assert after(lambda g: g.cut("moe.input")) == "the wire to moe.input changed"
    assert after(lambda g: g.remove("loss")) == "loss was removed"
    assert after(lambda g: g.set("", "name", "other", section="info")) == "info changed"
    assert after(lambda g: g.set("", "zoom", 2, section="layout")) == ""
    assert why_again(digits, runtime.load(ROOT / "snippets" / "digits_moe.yaml")) == ""


def test_run_to_here_runs_only_what_a_node_needs(worker: Worker, digits: Graph, batch: dict[str, np.ndarray]) -> None:
    part, added = only_for(digits, "router")
    assert set(part.nodes) - added < set(digits.nodes) and "moe" not in part.nodes
    worker.run(digits, batch, until="router", probes=["moe.output"], times=False)
    result = result_of(worker)
    assert list(result.probes) == ["router.Y"] and result.outputs == {} and "moe" not in result.placement
    worker.run(digits, {"x": batch["x"]}, until="moe", times=False)
    result = result_of(worker)
    assert result.reason == "only what moe needs is run" and result.probes["moe.output"].shape[0] == 96
    worker.run(digits, batch, times=False)
    result = result_of(worker)
    assert result.reason == "the whole graph is run again" and "loss" in result.outputs
    worker.run(digits, batch, until="nowhere")
    assert end_of(worker).findings[0].node == "nowhere"


def test_what_fails_says_where_and_the_process_goes_on(worker: Worker, digits: Graph, batch: Any) -> None:
    worker.run(digits, {"x": batch["x"]})
    end = end_of(worker)
    assert isinstance(end, Failed) and end.findings[0].node == "y"
    process = worker.process_id
    worker.run(trouble("error"), X)
    end = end_of(worker)
    assert isinstance(end, Failed) and "a mistake in a plug-in" in end.message and "trouble" in end.message
    graph = digits.copy()
    graph.cut("moe.router_probs")
    worker.run(graph, batch)
    assert any(finding.node == "moe" for finding in end_of(worker).findings)
    for _ in range(2):
        worker.run(graph, batch)
        end_of(worker)
    worker.run(digits, batch, times=False)
    result_of(worker)
    worker.run(digits, {"x": batch["x"]})
    assert isinstance(end_of(worker), Failed)
    worker.run(digits, batch, times=False)
    assert result_of(worker).reason == ""  # it was open all the time
    assert worker.process_id == process


def test_only_one_job_at_a_time(worker: Worker) -> None:
    worker.run(trouble(""), X)
    with pytest.raises(GraphError, match="A run is under way"):
        worker.run(trouble(""), X)
    np.testing.assert_array_equal(result_of(worker).outputs["out"], [-1, 0])
    assert not worker.is_busy


def test_large_values_come_as_their_first_rows(worker: Worker) -> None:
    graph = Graph("large", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ("n", 1024)})
    graph.add("Neg", "neg")
    graph.add("Output", "out")
    graph.wire("x.value", "neg.X")
    graph.wire("neg.Y", "out.value")
    x = np.arange(17 << 20, dtype=np.float32).reshape(-1, 1024)
    worker.run(graph, {"x": x}, times=False)
    result = result_of(worker)
    value = result.outputs["out"]
    assert isinstance(value, Excerpt) and result.excerpts == ("out",) and value.shape == x.shape
    np.testing.assert_array_equal(value.first, -x[:64])
    assert value.summary.minimum == -x.max()
    assert first_rows(np.zeros((1, 2, 1 << 20), np.uint8)).shape == (1, 1, EXCERPT)


# -- crashes and cancelling -----------------------------------------------------------------------------------------


@POSIX
def test_a_crash_names_the_node_and_costs_only_the_run(worker: Worker) -> None:
    worker.run(trouble(""), X)
    result_of(worker)
    process = worker.process_id
    worker.run(trouble("abort"), X)
    end = end_of(worker)
    assert isinstance(end, Crashed) and (end.node, end.signal, end.phase) == ("trouble", "SIGABRT", "forward")
    assert end.finding.node == "trouble" and "SIGABRT" in end.message and end.remedy
    worker.run(trouble(""), X)
    result = result_of(worker)
    assert result.reason == "its process had ended" and worker.process_id not in (None, process)
    worker.run(trouble("exit"), X)
    end = end_of(worker)
    assert isinstance(end, Crashed) and (end.node, end.exit_code, end.signal) == ("trouble", 3, "")


def slow_products() -> Graph:
    """Two matrix products that ONNX Runtime does in one piece, and that take a while."""
    graph = Graph("slow", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": (2500, 2500)})
    graph.add("Output", "out")
    last = "x.value"
    for index in range(40):
        graph.add("MatMul", f"product_{index}")
        graph.wire(last, f"product_{index}.A")
        graph.wire("x.value", f"product_{index}.B")
        last = f"product_{index}.Y"
    graph.wire(last, "out.value")
    return graph


@POSIX
def test_a_crash_of_a_native_piece_names_all_its_nodes(worker: Worker) -> None:
    worker.run(slow_products(), {"x": np.zeros((2500, 2500), np.float32)}, times=False)
    events(worker, Progressed)
    assert worker.process_id is not None
    os.kill(worker.process_id, signal.SIGKILL)
    end = end_of(worker)
    assert isinstance(end, Crashed) and end.signal == "SIGKILL" and len(end.nodes) == 40
    assert end.node == "product_0" and "39 nodes that run with it" in end.message


def test_cancelling_is_friendly_first(worker: Worker) -> None:
    worker.run(slow_products(), {"x": np.zeros((2500, 2500), np.float32)}, times=False)
    events(worker, Progressed)
    process = worker.process_id
    worker.cancel()
    end = end_of(worker)
    assert isinstance(end, Cancelled) and not end.killed and worker.process_id == process
    worker.run(trouble(""), X)
    result_of(worker)


def test_what_does_not_stop_is_killed(worker: Worker) -> None:
    worker.run(trouble("sleep"), X)
    until_running(worker, "trouble")
    start = time.monotonic()
    worker.cancel()
    end = end_of(worker)
    assert isinstance(end, Cancelled) and end.killed and 1.5 < time.monotonic() - start < 4
    worker.run(trouble(""), X)
    assert result_of(worker).reason == "its process was ended"


def test_a_process_that_died_while_idle_is_replaced(worker: Worker) -> None:
    worker.run(trouble(""), X)
    result_of(worker)
    assert worker.process_id is not None
    os.kill(worker.process_id, signal.SIGTERM)
    end = time.monotonic() + 10
    while worker.process_id is not None and time.monotonic() < end:
        time.sleep(0.01)
    worker.run(trouble(""), X)
    result_of(worker)


def test_a_module_that_cannot_be_imported_is_named(digits: Graph) -> None:
    with Worker(preload=["tests.no_such_module"]) as worker:
        worker.run(digits, {})
        end = end_of(worker)
        assert isinstance(end, Failed) and "tests.no_such_module" in end.message


def test_closing_takes_less_than_two_seconds() -> None:
    worker = Worker(preload=["tests.trouble_nodes"])
    worker.run(trouble("sleep"), X)
    until_running(worker, "trouble")
    process = worker.process_id
    assert process is not None
    start = time.monotonic()
    worker.close()
    assert time.monotonic() - start < 2 and not is_alive(process)
    worker.close()
    assert worker.poll() == [] or not worker.is_busy
    with pytest.raises(GraphError, match="closed"):
        worker.run(trouble(""), X)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/status")
    return not (status.exists() and "State:\tZ" in status.read_text())


PARENT = """
import sys, time
from runtime.worker import Worker
from tests.test_worker import X, trouble, until_running
if __name__ == "__main__":
    worker = Worker(preload=["tests.trouble_nodes"])
    if sys.argv[1] == "busy":
        worker.run(trouble("sleep"), X)
        until_running(worker, "trouble")
    else:
        worker.start()
    print(worker.process_id, flush=True)
    time.sleep(60)
"""


@POSIX
@pytest.mark.parametrize("state", ["busy", "idle"])
def test_a_process_ends_when_its_parent_is_killed(tmp_path: Path, state: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), state]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
        end = time.monotonic() + 10
        while is_alive(child) and time.monotonic() < end:
            time.sleep(0.02)
        assert not is_alive(child)


# -- what crosses ---------------------------------------------------------------------------------------------------


def test_a_changed_file_is_noticed_where_the_tensor_arrives(worker: Worker, tmp_path: Path) -> None:
    import pickle

    path = tmp_path / "weights.bin"
    path.write_bytes(np.arange(1 << 18, dtype=np.float32).tobytes())
    tensor = Tensor.from_file(path, 16, ElementType.FLOAT, (1 << 17,))
    content = pickle.dumps(tensor)
    assert len(content) < 500
    again = pickle.loads(content)
    assert again == tensor and again.is_mapped
    path.write_bytes(b"other")
    with pytest.raises(runtime.FileError, match="has changed"):
        pickle.loads(content)
    path.unlink()
    path.write_bytes(np.arange(1 << 18, dtype=np.float32).tobytes())
    tensor = Tensor.from_file(path, 16, ElementType.FLOAT, (1 << 17,))
    path.rename(tmp_path / "elsewhere.bin")
    content = pickle.dumps(tensor)  # still mapped, but no longer under its name
    assert tensor.place is None and len(content) > 1 << 19 and pickle.loads(content) == tensor


def test_a_graph_crosses_without_history_and_listeners(digits: Graph) -> None:
    import pickle

    graph = digits.copy()
    graph.set("moe", "name", "other")
    graph.listen(lambda edit: None)
    _ = graph.checker
    twin = pickle.loads(pickle.dumps(graph))
    assert twin == graph and twin.undo_labels == [] and twin.order() == graph.order()
    twin.add("Relu", "new")
    assert "new" not in graph.nodes


def test_what_cannot_be_sent_is_said(worker: Worker, digits: Graph) -> None:
    worker.run(digits, {"x": lambda: None})
    end = end_of(worker)
    assert isinstance(end, Failed) and "cannot be sent" in end.message
    worker.run(trouble(""), {"x": Tensor.from_array(X["x"])})
    np.testing.assert_array_equal(result_of(worker).outputs["out"], [-1, 0])


# -- training -------------------------------------------------------------------------------------------------------


def test_training_comes_back_as_weights(worker: Worker, tmp_path: Path) -> None:
    graph = classifier()
    settings = Settings(epochs=3, batch_size=32, validation=0.25)
    worker.train(graph, DATA, settings, folder=tmp_path / "run")
    happened = events(worker)
    end = happened[-1]
    assert isinstance(end, Finished) and isinstance(end.result, Training)
    steps = [event for event in happened if isinstance(event, TrainingProgressed)]
    assert [event.step for event in steps] == list(range(1, steps[0].steps + 1))
    assert all(event.gradient_norm > 0 and event.rate > 0 and "total_loss" in event.losses for event in steps)
    epochs = [event for event in happened if isinstance(event, EpochFinished)]
    assert [event.epoch for event in epochs] == [0, 1, 2] and epochs[0].is_best
    assert [dict(event.entry) for event in epochs] == [dict(entry) for entry in end.result.history]
    trainer = Trainer(graph, DATA, settings)
    trained = trainer.run()
    assert end.result.best_epoch == trainer.best_epoch
    for id, tensor in end.result.weights.items():
        np.testing.assert_allclose(tensor.array(), trained.nodes[id].parameters["tensor"].array(), rtol=1e-5, atol=1e-6)
    with graph.transaction("Train"):
        for id, tensor in end.result.weights.items():
            graph.set(id, "tensor", tensor)
    assert (tmp_path / "run" / "checkpoint.zip").exists()
    worker.request_best()
    best = events(worker, BestWeights)[-1]
    assert isinstance(best, BestWeights) and best.training.weights == end.result.weights


def test_training_pauses_resumes_and_keeps_what_it_reached(worker: Worker) -> None:
    worker.train(classifier(), DATA, Settings(epochs=100_000, batch_size=32, validation=0.25))
    events(worker, EpochFinished)
    worker.pause()
    assert events(worker, Paused)[-1].is_paused and worker.is_paused  # type: ignore[union-attr]
    time.sleep(0.1)
    assert worker.poll() == []
    worker.request_best()
    best = events(worker, BestWeights)[-1]
    assert isinstance(best, BestWeights) and best.training.best_epoch is not None
    worker.resume()
    events(worker, EpochFinished)
    assert not worker.is_paused
    worker.cancel()
    end = end_of(worker)
    assert isinstance(end, Cancelled) and not end.killed and end.training is not None
    assert end.training.weights.keys() == best.training.weights.keys()


def test_training_that_cannot_start_says_why(worker: Worker) -> None:
    worker.train(classifier(), {})
    assert isinstance(end_of(worker), Failed)


# -- summaries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", [element for element in ElementType if element is not ElementType.STRING])
@pytest.mark.parametrize("shape", [(), (5, 7), (48,), (49,), (200_001,), (0, 3)])
def test_every_element_type_has_a_summary(element: ElementType, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng(0).integers(0, 2, shape).astype(np.float32).astype(element.dtype))
    summary = summarize(array)
    assert (summary.element, summary.shape) == (element, shape)
    assert sum(summary.histogram) + summary.nans == array.size and len(summary.sparkline) == min(48, array.size)
    if array.size and not summary.nans:
        values = np.abs(array.astype(np.complex128)) if array.dtype.kind == "c" else array.astype(np.float64)
        assert summary.mean == pytest.approx(values.mean()) and summary.deviation == pytest.approx(values.std())
        assert (summary.minimum, summary.maximum) == (values.min(), values.max())
        assert summary.zeros == pytest.approx((values == 0).mean())


def test_a_summary_counts_what_is_not_finite() -> None:
    array = np.random.default_rng(0).normal(size=(400, 701)).astype(np.float32)
    array[3, 4], array[5, 5], array[6] = np.nan, np.inf, -np.inf
    summary = summarize(array)
    finite = array[np.isfinite(array)].astype(np.float64)
    assert (summary.nans, summary.infinities) == (1, 702) and sum(summary.histogram) == finite.size
    assert (summary.minimum, summary.maximum) == (finite.min(), finite.max())
    assert summary.mean == pytest.approx(finite.mean()) and summary.deviation == pytest.approx(finite.std())
    assert summarize(np.asfortranarray(array)) == summary
    nothing = summarize(np.full(3, np.nan))
    assert nothing.minimum is None and nothing.nans == 3 and nothing.histogram == ()
    assert summarize(np.array([2**63 - 1, -5])).maximum == 2**63 - 1
    assert summarize(np.array(["a", ""], object)).zeros == 0.5
