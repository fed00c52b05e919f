"""`qmoe quantize`, `qmoe sweep`, and `qmoe compare` with the floats that a graph remembers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from qmoe_node.block_graphs import block_graph
from qmoe_node.checkpoints import Checkpoint
from qmoe_node.families import blocks
from runtime import Graph, GraphError, Session, Tensor, load, save
from runtime.twins import beside, twin_of, with_floats
from tests.commands import Qmoe, start
from tests.test_conversion import whole_model

DATA = Path(__file__).parent / "data" / "peers"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Calibration data of one layer, and a graph's input."""
    random = np.random.default_rng(0)
    np.savez(tmp_path / "tokens.npz", hidden_states=(2 * random.standard_normal((1, 300, 64))).astype(np.float32))
    return tmp_path / "tokens.npz"


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    """A graph with the float mixture of the gpt-oss peer."""
    checkpoint = Checkpoint(DATA / "gpt_oss")
    save(block_graph(checkpoint, list(blocks(checkpoint))[1]), tmp_path / "floats.yaml")
    return tmp_path / "floats.yaml"


def outputs(file: Path, tokens: Path) -> np.ndarray:
    with np.load(tokens) as arrays:
        return np.asarray(Session(load(file)).forward({"hidden_states": arrays["hidden_states"]})["output"])


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_a_block_of_a_checkpoint(qmoe: Qmoe, tokens: Path) -> None:
    ended = qmoe("quantize", DATA / "mixtral", "block.yaml", "--layers", 1)
    assert ended.code == 0 and "model.layers.1.block_sparse_moe" in ended.out and "block.yaml" in ended.out
    assert "589.8 kB" in ended.out and "92.2 kB" in ended.out and "5.00" in ended.out
    assert not Path("block.yaml.parts").exists() and not ended.err
    checkpoint = Checkpoint(DATA / "mixtral")
    save(block_graph(checkpoint, list(blocks(checkpoint))[1]), "floats.yaml")
    assert 0.05 < apart(outputs(Path("block.yaml"), tokens), outputs(Path("floats.yaml"), tokens)) < 0.2
    assert qmoe("check", "block.yaml").code == 0
    graph = load("block.yaml")
    twin = twin_of(graph, "experts")
    assert twin is not None and not twin.is_beside and twin.name == "model.layers.1.block_sparse_moe"


def test_the_report_is_what_the_graph_does(qmoe: Qmoe, tokens: Path, floats: Path) -> None:
    words = ("--bits", 2, "--method", "gptq", "-c", tokens, "--report", "report.json")
    ended = qmoe("quantize", floats, "quantized.yaml", *words, "--json")
    report = json.loads(ended.out)
    assert report == json.loads(Path("report.json").read_text())
    (mixture,) = report["mixtures"]
    error = apart(outputs(Path("quantized.yaml"), tokens), outputs(floats, tokens))
    assert mixture["output_error"] == pytest.approx(error, rel=1e-3)
    assert sum(expert["tokens"] for expert in mixture["experts"]) == 300 * 3
    words = ("--bits", 2, "--method", "nearest", "-c", tokens, "--tune", 200, "--json")
    ended = qmoe("quantize", floats, "tuned.yaml", *words)
    (mixture,) = json.loads(ended.out)["mixtures"]
    error = apart(outputs(Path("tuned.yaml"), tokens), outputs(floats, tokens))
    assert mixture["tuned_output_error"] == pytest.approx(error, rel=1e-2)
    assert mixture["tuned_output_error"] < 0.97 * mixture["output_error"]


def test_tuning_a_checkpoints_block_trains_its_router_too(qmoe: Qmoe, tokens: Path) -> None:
    for name, words in (("plain.yaml", ()), ("tuned.yaml", ("--tune", 200))):
        ended = qmoe("quantize", DATA / "mixtral", name, "--layers", 1, "--bits", 2, "-c", tokens, *words)
        assert ended.code == 0
    checkpoint = Checkpoint(DATA / "mixtral")
    save(block_graph(checkpoint, list(blocks(checkpoint))[1]), "floats.yaml")
    plain, tuned = load("plain.yaml"), load("tuned.yaml")
    for id in ("router_weight", "fc1_scales", "fc2_scales"):
        assert plain.nodes[id].parameters["tensor"] != tuned.nodes[id].parameters["tensor"], id
    assert plain.nodes["fc1_experts_weights"].parameters == tuned.nodes["fc1_experts_weights"].parameters
    expected = outputs(Path("floats.yaml"), tokens)
    assert apart(outputs(Path("tuned.yaml"), tokens), expected) < 0.97 * apart(
        outputs(Path("plain.yaml"), tokens), expected
    )


def test_a_whole_model_as_one_file_and_as_a_folder(qmoe: Qmoe, tmp_path: Path) -> None:
    model = whole_model(tmp_path / "model").folder
    assert qmoe("quantize", model, "all.onnx", "--bits", 8, "--block-size", 0).code == 0
    session = onnxruntime.InferenceSession("all.onnx")
    prefix = "model.layers.{}.block_sparse_moe"
    names = [prefix.format(layer) for layer in (0, 1)]
    assert [value.name for value in session.get_inputs()] == [f"{name}.hidden_states" for name in names]
    assert [value.name for value in session.get_outputs()] == [f"{name}.output" for name in names]
    assert qmoe("quantize", model, "blocks").code == 0
    assert sorted(path.name for path in Path("blocks").glob("*.yaml")) == [f"{name}.yaml" for name in names]
    assert qmoe("check", *sorted(Path("blocks").glob("*.yaml"))).code == 0


def test_experts_that_saw_too_few_tokens_are_named(qmoe: Qmoe, floats: Path) -> None:
    random = np.random.default_rng(0)
    np.savez("few.npz", hidden_states=random.standard_normal((1, 12, 64)).astype(np.float32))
    ended = qmoe("quantize", floats, "quantized.yaml", "--method", "gptq", "-c", "few.npz")
    assert ended.code == 0
    assert "warning: experts: expert" in ended.err and "calibration tokens, fewer than 8" in ended.err


def test_what_is_wrong_is_said_and_nothing_is_left(qmoe: Qmoe, tokens: Path, floats: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(DATA / "mixtral", broken)
    (broken / "model.safetensors").write_bytes((DATA / "mixtral" / "model.safetensors").read_bytes()[:-100])
    cases: list[tuple[tuple[Any, ...], int, str]] = [
        ((DATA / "mixtral", "x.yaml"), 1, "lacks the tensor model.layers.0"),
        ((broken, "x.yaml", "--layers", 1), 1, "cut short"),
        ((DATA / "mixtral", "x.yaml", "--layers", 9), 2, "Layers with one: 0, 1"),
        ((DATA / "mixtral", "x.yaml", "--layers", "1-"), 2, "ranges"),
        ((DATA / "mixtral", "x.txt"), 2, "expected a name"),
        ((DATA / "mixtral", "nowhere/x.yaml"), 1, "no folder"),
        (("nothing", "x.yaml"), 1, "is not there"),
        ((floats, "x.yaml", "--bits", 3), 2, "bits: expected one of 2, 4, 8"),
        ((floats, "x.yaml", "--method", "gptq"), 2, "calibration"),
        ((floats, "x.yaml", "--tune", 5), 2, "--calibration"),
        ((floats, "x.yaml", "--method", "half-quadratic"), 2, "asymmetric"),
        ((floats, "x"), 2, "expected a name"),
        ((floats, "x.yaml", "-c", "absent.npz"), 1, "is not there"),
        ((floats, floats), 2, "holds the floats that are quantized"),
        ((broken, broken), 2, "holds the floats that are quantized"),
    ]
    for words, code, sentence in cases:
        ended = qmoe("quantize", *words)
        assert ended.code == code and sentence in ended.err, (words, ended)
        assert ended.err.count("\n") == 1
    assert qmoe("quantize", floats, "q.yaml").code == 0
    ended = qmoe("quantize", "q.yaml", "x.yaml")
    assert ended.code == 1 and "nothing to quantize" in ended.err
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith("x") and not path.name.endswith(".parts")]
    assert not left
    ended = qmoe("quantize", DATA / "mixtral", "x.yaml", "--method", "gptq", "-c", tokens)
    assert "The calibration data has no model.layers.0.block_sparse_moe.hidden_states" in ended.err


def test_work_goes_on_after_kill(qmoe: Qmoe, tmp_path: Path) -> None:
    model = whole_model(tmp_path / "model").folder
    out = tmp_path / "all.yaml"
    random = np.random.default_rng(0)
    names = [f"model.layers.{layer}.block_sparse_moe.hidden_states" for layer in (0, 1)]
    np.savez("c.npz", **{name: random.standard_normal((4000, 64)).astype(np.float32) for name in names})
    words = ("quantize", model, out, "--method", "gptq", "-c", tmp_path / "c.npz")
    process = start(*words)
    journal = tmp_path / "all.yaml.parts" / "0000" / "journal.jsonl"
    end = time.monotonic() + 60
    while time.monotonic() < end and not (journal.exists() and len(journal.read_text().splitlines()) > 4):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists() and journal.exists()
    assert qmoe(*words).code == 0
    assert not (tmp_path / "all.yaml.parts").exists()
    assert qmoe("quantize", model, "again.yaml", *words[3:]).code == 0
    assert qmoe("diff", out, "again.yaml").code == 0


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_keeps_what_is_done(tmp_path: Path, tokens: Path) -> None:
    words = (DATA / "mixtral", tmp_path / "x.yaml", "--layers", 1, "-c", tokens, "--tune", 100_000)
    process: subprocess.Popen[str] = start("quantize", *words)
    parts = tmp_path / "x.yaml.parts" / "0000"
    end = time.monotonic() + 60
    while time.monotonic() < end and not (parts / "fc2_scales").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from there" in err and "Interrupted." in err
    assert parts.is_dir() and not (tmp_path / "x.yaml").exists()


def test_sweep_shows_what_each_way_gives(qmoe: Qmoe, tokens: Path, floats: Path) -> None:
    words = ("--bits", "2,4", "--block-size", "32,0", "--method", "nearest,gptq", "-c", tokens)
    ended = qmoe("sweep", floats, *words, "--symmetric", "--picture", "sweep.png", "--json")
    assert ended.code == 0
    trials = json.loads(ended.out)["trials"]
    assert len(trials) == 8 and [t["bits_per_weight"] for t in trials] == sorted(t["bits_per_weight"] for t in trials)
    best = [trial for trial in trials if trial["is_best"]]
    assert best and all(
        other["bits_per_weight"] > one["bits_per_weight"] or other["output_error"] >= one["output_error"]
        for one in best
        for other in trials
        if other is not one
    )
    plain = next(t for t in trials if (t["bits"], t["block_size"], t["method"]) == (4, 32, "nearest"))
    assert qmoe("quantize", floats, "q.yaml").code == 0
    error = apart(outputs(Path("q.yaml"), tokens), outputs(floats, tokens))
    assert plain["output_error"] == pytest.approx(error, rel=1e-3)
    with Image.open("sweep.png") as picture:
        assert picture.size == (900, 560) and len(np.unique(np.asarray(picture.convert("L")))) > 20
    table = qmoe("sweep", DATA / "mixtral", "--layers", 1, "--experts", 2, "--bits", 4, "--asymmetric").out
    assert "least-squares, asymmetric" in table and "no other is both as small and as good" in table
    for words, sentence in (
        (("--bits", "two"), "expected numbers"),
        (("--method", "gptq"), "calibration"),
        (("--method", "magic"), "method: expected one of"),
        (("--method", "half-quadratic", "--symmetric"), "asymmetric"),
        (("--picture", "x.jpg"), ".png"),
    ):
        ended = qmoe("sweep", floats, *words)
        assert ended.code == 2 and sentence in ended.err, (words, ended)


def test_a_graph_is_compared_with_the_floats_it_remembers(qmoe: Qmoe, tokens: Path, floats: Path) -> None:
    qmoe("quantize", floats, "q.yaml")
    alone = json.loads(qmoe("compare", "q.yaml", "-i", tokens, "--json").out)
    both = json.loads(qmoe("compare", floats, "q.yaml", "-i", tokens, "--json").out)
    for name in ("first", "second"):
        alone.pop(name), both.pop(name)
    assert alone["mixtures"] == both["mixtures"] and len(alone["wires"]) == len(both["wires"])
    os.makedirs("elsewhere")
    qmoe("quantize", floats, "elsewhere/q.yaml")
    ended = qmoe("compare", "elsewhere/q.yaml", "-i", tokens)
    assert ended.code == 1 and "outside of the document's folder" in ended.err and "--twin ../floats.yaml" in ended.err
    assert qmoe("compare", "elsewhere/q.yaml", "-i", tokens, "--twin", floats).code == 0
    ended = qmoe("compare", floats, "-i", tokens)
    assert ended.code == 1 and "remembers" in ended.err
    ended = qmoe("compare", floats, "q.yaml", "--twin", floats)
    assert ended.code == 2


def test_a_checkpoint_is_a_twin_too_also_when_columns_were_rescaled(qmoe: Qmoe, tmp_path: Path) -> None:
    shutil.copytree(DATA / "mixtral", "model")
    random = np.random.default_rng(0)
    tokens = random.standard_normal((1, 200, 64)) * np.exp(random.standard_normal(64))
    np.savez("c.npz", hidden_states=tokens.astype(np.float32))
    qmoe("quantize", "model", "q.yaml", "--layers", 1, "--method", "awq", "-c", "c.npz", "--report", "report.json")
    found = json.loads(qmoe("compare", "q.yaml", "-i", "c.npz", "--json").out)
    reported = json.loads(Path("report.json").read_text())["mixtures"][0]["output_error"]
    wire = next(wire for wire in found["wires"] if wire["second"] == "experts.output")
    assert wire["accumulated"]["snr"] == pytest.approx(-20 * np.log10(reported), abs=0.05)


def test_weights_that_are_not_finite_are_named(qmoe: Qmoe, floats: Path) -> None:
    graph = load(floats)
    weights = graph.nodes["fc2_experts_weights"].parameters["tensor"].array().copy()
    weights[5, 3, 7] = np.nan
    graph.set("fc2_experts_weights", "tensor", Tensor.from_array(weights))
    save(graph, floats)
    ended = qmoe("quantize", floats, "q.yaml")
    assert ended.code == 1 and "experts: expert 5:" in ended.err and "not finite" in ended.err


def test_calibration_data_may_be_wider_than_a_graphs_inputs(qmoe: Qmoe) -> None:
    random = np.random.default_rng(0)
    graph = Graph("half")
    for name, width in (("x", 32), ("r", 4)):
        graph.add("Input", name, parameters={"type": "tensor(float16)", "shape": ["tokens", width]})
    graph.add("com.microsoft.MoE", "moe", parameters={"k": 2, "activation_type": "silu"})
    graph.wire("x.value", "moe.input")
    graph.wire("r.value", "moe.router_probs")
    for name, shape in (("fc1", (4, 48, 32)), ("fc2", (4, 32, 48))):
        tensor = Tensor.from_array((random.standard_normal(shape) / 8).astype(np.float16))
        graph.add("Initializer", name, parameters={"tensor": tensor})
        graph.wire(f"{name}.value", f"moe.{name}_experts_weights")
    graph.add("Output", "y")
    graph.wire("moe.output", "y.value")
    save(graph, "half.yaml")
    given = {name: random.standard_normal((50, width)).astype(np.float32) for name, width in (("x", 32), ("r", 4))}
    np.savez("c.npz", **given)
    ended = qmoe("quantize", "half.yaml", "q.yaml", "--method", "gptq", "-c", "c.npz", "--json")
    assert ended.code == 0
    narrow = {name: array.astype(np.float16) for name, array in given.items()}
    found, expected = (Session(load(name)).forward(narrow)["y"].astype(np.float32) for name in ("q.yaml", "half.yaml"))
    assert apart(found, expected) == pytest.approx(json.loads(ended.out)["mixtures"][0]["output_error"], rel=0.02)


@pytest.mark.parametrize(
    "stored",
    [
        {"path": "/etc/passwd", "name": "x"},
        {"path": "../elsewhere.yaml", "name": "experts"},
        {"path": "link.yaml", "name": "experts"},
        {"path": "C:\\floats.yaml", "name": "experts"},
        {"path": "x" * 3000, "name": "x"},
        {"path": "a\0b", "name": "x"},
        {"path": 5, "name": []},
        ["floats.yaml"],
        {"path": "q.yaml", "name": "experts"},
    ],
)
def test_a_document_cannot_make_us_read_what_it_likes(qmoe: Qmoe, floats: Path, tmp_path: Path, stored: Any) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    qmoe("quantize", floats, folder / "q.yaml")
    (folder / "link.yaml").symlink_to(floats)
    graph = load(folder / "q.yaml")
    graph.set("experts", "float_twin", stored, section="layout")
    assert beside(graph, "experts", folder / "q.yaml") in (None, folder / "q.yaml")
    with pytest.raises(GraphError):
        with_floats(graph, folder / "q.yaml")
