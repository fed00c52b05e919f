"""The command `qmoe`: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from PIL import Image

from runtime import Graph, Tensor, load, reports, save
from runtime.diff import diff
from runtime.errors import Cancelled
from tests.commands import Qmoe, start
from tests.test_training import DATA as TRAINING_DATA
from tests.test_training import classifier

SNIPPETS = Path(__file__).resolve().parents[1] / "snippets"
ROOT = SNIPPETS.parent
BLOCK = SNIPPETS / "qwen3_moe_block.yaml"
DATA = SNIPPETS / "qwen3_moe_block.data.npz"
COMMANDS = (
    "run",
    "check",
    "info",
    "convert",
    "nodes",
    "diff",
    "compare",
    "train",
    "export-training",
    "snippet",
    "demo",
)


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from runtime.cli import main\n"
        "sys.argv = ['qmoe', '--help']\n"
        "main()"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=SNIPPETS.parent)
    assert run.returncode == 0 and all(command in run.stdout for command in COMMANDS)
    loaded = {name.partition(".")[0] for name in run.stderr.split()}
    assert "typer" in loaded
    assert not loaded & {"numpy", "onnx", "onnx_ir", "onnxruntime", "yaml", "rich", "PySide6", "ui"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(qmoe: Qmoe, command: str) -> None:
    ended = qmoe(command, "--help")
    assert ended.code == 0 and f"qmoe {command}" in ended.out and "--help" in ended.out


def test_version(qmoe: Qmoe) -> None:
    assert re.fullmatch(r"qmoe-studio \d+\.\d+\.\d+\S*\n", qmoe("--version").out)


# -- run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
def test_the_shipped_block_gives_torchs_numbers(qmoe: Qmoe, tmp_path: Path, backend: str) -> None:
    ended = qmoe("run", BLOCK, "--input", DATA, "--output", "out.npz", "--probe", "router.Y", "--backend", backend)
    assert ended.code == 0, ended.err
    found, expected = np.load(tmp_path / "out.npz"), np.load(DATA)
    assert set(found.files) == {"y", "router.Y"}
    assert np.abs(found["y"] - expected["y"]).max() <= 1e-5 * np.abs(expected["y"]).max()
    assert found["router.Y"].shape == (32, 8)
    assert all(word in ended.out for word in ("in x", "out y", "probe router.Y", "tensor(float) [32, 64]", "router"))
    assert "generated" not in ended.out


def test_a_run_as_json(qmoe: Qmoe) -> None:
    ended = qmoe("run", BLOCK, "--input", DATA, "--json")
    report = json.loads(ended.out)
    expected = np.load(DATA)["y"]
    assert report["outputs"]["y"]["shape"] == [32, 64]
    assert report["outputs"]["y"]["maximum"] == pytest.approx(float(expected.max()), rel=1e-5)
    assert report["inputs"]["x"]["generated"] is False
    assert set(report["times"]) >= {"router", "moe"} and all(seconds >= 0 for seconds in report["times"].values())


def test_generated_inputs_have_the_wanted_size_and_the_seeds_numbers(qmoe: Qmoe, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        ended = qmoe("run", BLOCK, "--size", "tokens=5", "--seed", seed, "-o", f"{name}.npz", "--no-times")
        assert ended.code == 0 and "generated" in ended.out and "ms" not in ended.out
    a, b, c = (np.load(tmp_path / f"{name}.npz")["y"] for name in "abc")
    assert a.shape == (5, 64)
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("form", ["x.npy", "x=x.npy"])
def test_one_array_is_an_input(qmoe: Qmoe, tmp_path: Path, form: str) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 64), np.float32))
    ended = qmoe("run", BLOCK, "-i", form, "--json")
    assert json.loads(ended.out)["inputs"]["x"]["mean"] == 1


def test_other_options_of_a_run(qmoe: Qmoe) -> None:
    ended = qmoe("run", BLOCK, "--precision", "fast", "--threads", 1, "--check-numerics", "--as-is")
    assert ended.code == 0, ended.err


def test_bfloat16_goes_through_npz_files(qmoe: Qmoe, tmp_path: Path) -> None:
    graph = Graph()
    graph.add("Input", "x", parameters={"type": "tensor(bfloat16)", "shape": ["n"]})
    graph.add("Neg", "negative")
    graph.add("Output", "x_out", parameters={"name": "x"})
    graph.wire("x.value", "negative.X")
    graph.wire("negative.Y", "x_out.value")
    graph.set("x_out", "name", "y")
    save(graph, tmp_path / "negate.yaml")
    values = np.array([1.5, -3, 0], ml_dtypes.bfloat16)
    np.savez(tmp_path / "in.npz", x=values)
    ended = qmoe("run", "negate.yaml", "-i", "in.npz", "-o", "out.npz")
    assert ended.code == 0, ended.err
    assert np.array_equal(np.load(tmp_path / "out.npz")["y"].view(ml_dtypes.bfloat16), -values)


def test_a_sequence_is_written_item_by_item(qmoe: Qmoe, tmp_path: Path) -> None:
    graph = Graph()
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [2, 3]})
    graph.add("SplitToSequence", "split", parameters={"axis": 0})
    graph.add("Output", "y")
    graph.wire("x.value", "split.input")
    graph.wire("split.output_sequence", "y.value")
    save(graph, tmp_path / "split.yaml")
    assert qmoe("run", "split.yaml", "-o", "out.npz").code == 0
    assert {name: array.shape for name, array in np.load(tmp_path / "out.npz").items()} == {
        "y.0": (1, 3),
        "y.1": (1, 3),
    }


# -- how it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["walk"],
        ["run"],
        ["run", BLOCK, "--nonsense"],
        ["run", BLOCK, "--backend", "abacus"],
        ["run", BLOCK, "--precision", "vague"],
        ["run", BLOCK, "--threads", "0"],
        ["run", BLOCK, "--threads", "100000"],
        ["run", BLOCK, "--seed", "x"],
        ["run", BLOCK, "--seed", "-1"],
        ["run", BLOCK, "--size", "tokens"],
        ["run", BLOCK, "--size", "tokens=-1"],
        ["convert", BLOCK, "x.onnx", "--target", "moon"],
        ["check"],
        ["diff", BLOCK],
    ],
)
def test_a_wrong_question_ends_with_2(qmoe: Qmoe, words: list[object]) -> None:
    ended = qmoe(*words)
    assert ended.code == 2
    assert "Error" in ended.err and "Traceback" not in ended.err and not ended.out


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["run", "missing.yaml"], "missing.yaml", 1),
        (["run", "."], "expected", 2),
        (["run", BLOCK, "-i", "missing.npz"], "missing.npz", 1),
        (["run", BLOCK, "-i", BLOCK], ".npz", 2),
        (["run", BLOCK, "-i", "broken.npz"], "broken.npz", 1),
        (["run", BLOCK, "-i", "objects.npz"], "objects.npz", 1),
        (["run", BLOCK, "-i", "others.npz"], "x", 1),
        (["run", BLOCK, "-i", "wrong.npz"], "x", 1),
        (["run", BLOCK, "-i", f"x={DATA}"], "several", 1),
        (["run", BLOCK, "--size", "rows=3"], "tokens", 2),
        (["run", BLOCK, "--probe", "moe"], "node.port", 2),
        (["run", BLOCK, "--probe", "moe.outputs"], "moe.outputs", 2),
        (["run", BLOCK, "--output", "out.txt"], ".npz", 2),
        (["run", BLOCK, "--output", "no/such/folder/out.npz"], "out.npz", 1),
        (["run", "wrong.yaml"], "moe.fc1_experts_weights", 1),
        (["info", "missing.onnx"], "missing.onnx", 1),
        (["convert", BLOCK, "block.txt"], "block.txt", 2),
        (["convert", BLOCK, "block.yaml", "--target", "schema"], "target", 2),
        (["convert", "wrong.yaml", "wrong.onnx"], "moe.fc1_experts_weights", 1),
        (["diff", BLOCK, "missing.yaml"], "missing.yaml", 1),
        (["nodes", "NoSuchNode"], "NoSuchNode", 2),
        (["nodes", "--domain", "no.such.domain"], "com.microsoft", 2),
        (["run", BLOCK, "--size", "tokens=99999999999999"], "do not fit into memory", 2),
        (["run", BLOCK, "--as-is", "--backend", "numpy"], "as_is", 2),
    ],
)
def test_what_cannot_be_done_is_said_in_sentences(
    qmoe: Qmoe, tmp_path: Path, words: list[object], said: str, code: int
) -> None:
    (tmp_path / "broken.npz").write_bytes(DATA.read_bytes()[:900])
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    np.savez(tmp_path / "others.npz", z=np.zeros(3))
    np.savez(tmp_path / "wrong.npz", x=np.zeros((2, 64)))
    save(wrong_graph(), tmp_path / "wrong.yaml")
    files = sorted(tmp_path.iterdir())
    ended = qmoe(*words)
    assert ended.code == code
    assert said in ended.err and ended.err.startswith("qmoe: ") and "Traceback" not in ended.err
    assert sorted(tmp_path.iterdir()) == files, "a failure leaves no files behind"


def wrong_graph() -> Graph:
    """The shipped block with weights of one row less than their scales."""
    graph = load(BLOCK)
    weights = graph.nodes["fc1_experts_weights"].parameters["tensor"].array()
    graph.set("fc1_experts_weights", "tensor", Tensor.from_array(np.ascontiguousarray(weights[:, 1:])))
    return graph


def test_a_reader_that_leaves_is_no_error() -> None:
    with start("nodes") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert not process.stderr.read()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_ctrl_c_stops_native_code(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, ["n"]),
        ],
        [
            helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, ["n"]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])],
        [helper.make_tensor("times", onnx.TensorProto.INT64, [], [2**62])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "endless.onnx")
    with start("run", tmp_path / "endless.onnx", "--no-times") as process:
        time.sleep(4)
        assert process.poll() is None, "it has ended by itself"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "Interrupted.\n")


# -- check, info, convert, nodes, diff --------------------------------------------------------------------------------


def test_check_names_file_node_and_port(qmoe: Qmoe, tmp_path: Path) -> None:
    save(wrong_graph(), tmp_path / "wrong.yaml")
    (tmp_path / "broken.yaml").write_text("qmoe: 1\nnodes: [")
    ended = qmoe("check", BLOCK, "wrong.yaml", "broken.yaml")
    assert ended.code == 1
    assert f"{BLOCK}: nothing wrong" in ended.out
    assert "moe.fc1_experts_weights" in ended.out and "broken.yaml" in ended.out
    assert qmoe("check", BLOCK).code == 0


def test_findings_as_json(qmoe: Qmoe, tmp_path: Path) -> None:
    save(wrong_graph(), tmp_path / "wrong.yaml")
    ended = qmoe("check", "--json", BLOCK, "wrong.yaml", "missing.yaml")
    right, wrong, missing = json.loads(ended.out)
    assert ended.code == 1
    assert right == {"file": str(BLOCK), "findings": []}
    assert ("moe", "fc1_experts_weights") in {(found["node"], found["port"]) for found in wrong["findings"]}
    assert [found["severity"] for found in missing["findings"]] == ["error"]


def test_info_counts_the_bytes(qmoe: Qmoe) -> None:
    report = json.loads(qmoe("info", BLOCK, "--json").out)
    graph = load(BLOCK)
    sizes = {row["node"]: row["bytes"] for row in report["nodes"]}
    assert sizes["fc1_experts_weights"] == 8 * 192 * 32 and sizes["moe"] == 0
    assert list(sizes) == list(graph.nodes) and report["bytes"] == sum(sizes.values())
    table = qmoe("info", BLOCK).out
    assert "tensor(float) [tokens, 8]" in table and "com.microsoft.QMoE" in table and "49,152" in table


def test_info_of_a_model_with_everything(qmoe: Qmoe) -> None:
    ended = qmoe("info", Path(__file__).parent / "data" / "genai_gptoss_int4" / "model.onnx")
    assert ended.code == 0 and "GroupQueryAttention" in ended.out


@pytest.mark.parametrize("target", ["onnxruntime", "schema", "portable", None])
def test_a_converted_block_runs_anywhere(qmoe: Qmoe, tmp_path: Path, target: str | None) -> None:
    words = ["--target", target] if target else []
    assert qmoe("convert", BLOCK, "block.onnx", *words).code == 0
    data = np.load(DATA)
    session = onnxruntime.InferenceSession(tmp_path / "block.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": data["x"]})
    assert np.abs(found - data["y"]).max() <= 1e-5 * np.abs(data["y"]).max()
    again = qmoe("run", "block.onnx", "-i", DATA, "-o", "again.npz")
    assert again.code == 0, again.err
    assert np.abs(np.load(tmp_path / "again.npz")["y"] - data["y"]).max() <= 1e-5 * np.abs(data["y"]).max()


def test_a_block_comes_back_from_onnx(qmoe: Qmoe, tmp_path: Path) -> None:
    assert qmoe("convert", BLOCK, "block.onnx", "--target", "schema").code == 0
    assert qmoe("convert", "block.onnx", "block.yaml").code == 0
    changes = json.loads(qmoe("diff", BLOCK, "block.yaml", "--json").out)
    assert all(change["place"] in ("y.type", "y.shape") for change in changes), "ONNX declares its outputs' types"


def test_differences_are_told_and_layout_is_none(qmoe: Qmoe, tmp_path: Path) -> None:
    graph = load(BLOCK)
    graph.set("moe", "position", [1, 2], section="layout")
    save(graph, tmp_path / "moved.yaml")
    assert qmoe("diff", BLOCK, "moved.yaml").code == 0
    graph.set("moe", "k", 2)
    save(graph, tmp_path / "changed.yaml")
    ended = qmoe("diff", BLOCK, "changed.yaml")
    assert ended.code == 1 and "moe.k: 3 -> 2" in ended.out
    assert [change["place"] for change in json.loads(qmoe("diff", BLOCK, "changed.yaml", "--json").out)] == ["moe.k"]


@pytest.mark.parametrize("name", ["QMoE", "com.microsoft.QMoE", "qmoe"])
def test_the_manual_page_of_a_node(qmoe: Qmoe, name: str) -> None:
    ended = qmoe("nodes", name)
    assert ended.code == 0 and ended.out.startswith("# com.microsoft.QMoE\n")
    for word in ("fc1_experts_weights", "specified_outputs_name", "training?", "lda coeff", "use_sparse_mixer"):
        assert word in ended.out
    assert json.loads(qmoe("nodes", name, "--json").out)["page"] == ended.out


def test_the_list_of_nodes(qmoe: Qmoe) -> None:
    rows = json.loads(qmoe("nodes", "--json").out)
    names = {row["type"] for row in rows}
    assert {"Input", "Output", "Initializer", "MatMul", "com.microsoft.QMoE", "ai.onnx.ml.Scaler"} <= names
    assert {row["type"] for row in rows if not row["cpu"]}
    found = qmoe("nodes", "--domain", "com.microsoft", "--search", "mixture of experts").out
    assert "com.microsoft.QMoE" in found and "MatMul " not in found


# -- demo, completion -------------------------------------------------------------------------------------------------


def test_the_demo_shows_accuracies_routing_times_and_torchs_numbers_in_80_columns(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    for encoding in ("utf-8", "ascii"):
        with start(
            "demo",
            "--picture",
            str(tmp_path / "m.png"),
            env=environment | {"PYTHONIOENCODING": encoding, "COLUMNS": "80"},
        ) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert not err and "\x1b" not in out and "?" not in out
        assert max(map(len, out.splitlines())) <= 80
        assert all(word in out for word in ("expert 7", "router", "moe", "onnxruntime", "numpy", "torch"))
        accuracies = dict(re.findall(r"(trained|rounded|tuned) .*?(\d+\.\d)% \(onnxruntime\)", out))
        assert float(accuracies["rounded"]) + 1 < float(accuracies["tuned"]) < float(accuracies["trained"]) + 1
        for stage in ("rounded", "tuned"):
            assert f"{accuracies[stage]}% (numpy)" in out
        with Image.open(tmp_path / "m.png") as picture:
            assert picture.size == (652, 740)
        differences = [float(number) for number in re.findall(r"\d\.\de-\d\d", out)]
        assert len(differences) == 3 and max(differences) < 1e-6


@pytest.mark.parametrize(
    ("line", "offered"),
    [("qmoe inf", "info"), ("qmoe run --prec", "--precision"), ("qmoe nodes com.microsoft.QM", "com.microsoft.QMoE")],
)
def test_completion_in_bash(line: str, offered: str) -> None:
    words = line.split()
    asked = {"_QMOE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    with start(env=os.environ | asked) as process:
        out, _ = process.communicate(timeout=60)
    assert offered in out.split()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("words", [["nodes"], ["check", BLOCK]])
def test_output_that_does_not_fit_is_told_in_a_sentence(words: list[object]) -> None:
    program = [sys.executable, "-m", "runtime.cli", *map(str, words)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "qmoe: the output cannot be written: No space left on device.\n"


def test_a_closed_output_is_no_reason_to_fail() -> None:
    command = f"{sys.executable} -m runtime.cli check {BLOCK} >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_told_in_a_sentence() -> None:
    command = f"ulimit -f 8; trap '' XFSZ; {sys.executable} -m runtime.cli run {BLOCK}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("qmoe: ") and "File too large" in done.stderr and "Traceback" not in done.stderr


def test_training_writes_graph_curve_and_folder(qmoe: Qmoe, tmp_path: Path) -> None:
    save(classifier(), tmp_path / "c.yaml")
    np.savez(tmp_path / "c.npz", **TRAINING_DATA)
    words = ["train", "c.yaml", "--data", "c.npz", "--rate", "0.01", "--validation", "0.2", "--threads", "1"]
    whole = qmoe(*words, "--epochs", "4", "--json", "--output", "whole.yaml", "--curve", "curve.png")
    events = [json.loads(line) for line in whole.out.splitlines()]
    assert [event["event"] for event in events] == ["started", *["epoch"] * 4, "finished"]
    history = events[-1]["history"]
    assert [event["loss"] for event in events[1:-1]] == [entry["loss"] for entry in history]
    assert whole.code == 0 and len(history) == 4 and history[3]["loss"] < history[0]["loss"]
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (900, 520) and len(picture.convert("RGB").getcolors(1 << 20)) > 10
    assert qmoe(*words, "--epochs", "2", "--folder", "run").out.count("epoch ") == 2
    again = qmoe(*words, "--epochs", "4", "--folder", "run", "--resume", "--output", "resumed.yaml")
    assert "goes on after epoch 2" in again.out and again.code == 0
    assert diff(load(tmp_path / "whole.yaml"), load(tmp_path / "resumed.yaml")) == []


def test_export_of_a_training_step(qmoe: Qmoe, tmp_path: Path) -> None:
    save(classifier(), tmp_path / "c.yaml")
    ended = qmoe(
        "export-training", "c.yaml", "step.onnx", "--optimizer", "sgd", "--momentum", "0.9", "--loss", "loss=2"
    )
    assert ended.code == 0 and "carried tensors" in ended.out
    inputs = [value.name for value in onnx.load(tmp_path / "step.onnx").graph.input]
    assert inputs[:3] == ["x", "y", "w1"] and "velocity.w1" in inputs and "learning_rate" in inputs


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["train", "c.yaml", "--data", "missing.npz"], "missing.npz", 1),
        (["train", "c.yaml", "--data", "c.npz", "--momentum", "0.9"], "adam has no momentum", 2),
        (["train", "c.yaml", "--data", "c.npz", "--loss", "lost"], "no such output", 1),
        (["train", "c.yaml", "--data", "c.npz", "--validation", "1.5"], "validation", 2),
        (["train", "c.yaml", "--data", "c.npz", "--resume"], "folder", 2),
        (["train", BLOCK, "--data", "c.npz"], "A loss is one number", 1),
        (["train", "c.yaml", "--data", "c.npz", "--output", "c.txt"], "expected a name that ends with one of", 2),
        (["train", "c.yaml", "--data", "c.npz", "--output", "none/c.yaml"], "there is no folder none", 1),
        (["train", "c.yaml", "--data", "c.npz", "--curve", "c.jpg"], "expected a name that ends with", 2),
        (["export-training", "c.yaml", "step.yaml"], "written as .onnx", 2),
    ],
)
def test_training_that_cannot_be_is_told_in_sentences(
    qmoe: Qmoe, tmp_path: Path, words: list[object], said: str, code: int
) -> None:
    save(classifier(), tmp_path / "c.yaml")
    np.savez(tmp_path / "c.npz", **TRAINING_DATA)
    ended = qmoe(*words)
    assert ended.code == code
    assert said in ended.err and "Traceback" not in ended.err
    assert "epoch" not in ended.out, "what is wrong is told before anything is trained"


def test_data_that_are_no_inputs_change_nothing(qmoe: Qmoe, tmp_path: Path) -> None:
    save(classifier(), tmp_path / "c.yaml")
    np.savez(tmp_path / "c.npz", **TRAINING_DATA)
    np.savez(tmp_path / "more.npz", other=np.zeros(3, np.float32))
    words = ["train", "c.yaml", "--data", "c.npz", "--schedule", "cosine", "--epochs", "2", "--threads", "1"]
    assert qmoe(*words).out == qmoe(*words, "--data", "more.npz").out


def test_an_interrupt_that_is_lost_ends_the_work_all_the_same() -> None:
    """Python drops an exception that comes while it collects garbage: here, nobody raises it at all."""

    def work(cancel: threading.Event) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert cancel.wait(30)
        raise Cancelled("The run was cancelled.")

    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            reports.watched(work)
    finally:
        signal.signal(signal.SIGINT, before)
