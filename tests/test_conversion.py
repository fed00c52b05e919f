"""Mixtures quantized an expert at a time: with calibration data, broken off and gone on with, whole models."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qmoe_node.block_graphs import block_graph, mixture_of, model_graph, samples_of
from qmoe_node.blocks import Block
from qmoe_node.checkpoints import Checkpoint
from qmoe_node.conversion import METHODS, Converted, Plan, convert
from qmoe_node.families import blocks
from qmoe_node.layer import Settings
from qmoe_node.mixtures import Expert, Mixture, Samples
from qmoe_node.parts import Parts
from runtime import Cancelled, FileError, GraphError, Session
from runtime.errors import Severity
from runtime.snippets.tensor_files import read_tensors, write_tensors

DATA = Path(__file__).parent / "data" / "peers"
FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss")


def opened(family: str) -> tuple[Checkpoint, Block]:
    checkpoint = Checkpoint(DATA / family)
    return checkpoint, list(blocks(checkpoint))[1]


def synthetic(settings: Settings | None = None, experts: int = 4, biases: bool = False) -> tuple[Mixture, Samples]:
    """A mixture, and tokens of few directions as activations of real models are."""
    settings = settings or Settings(2, "swiglu", 1.0, 0.0, 1, normalize_routing_weights=True)
    random = np.random.default_rng(0)
    hidden, inter = 64, 96

    def expert(number: int) -> Expert:
        own = np.random.default_rng(number + 1)
        fc1 = own.standard_normal((settings.fusion * inter, hidden)).astype(np.float32) / 8
        fc2 = own.standard_normal((hidden, inter)).astype(np.float32) / 10
        bias = own.standard_normal(settings.fusion * inter).astype(np.float32) / 10 if biases else None
        return Expert(fc1, fc2, bias, None)

    directions = random.standard_normal((8, hidden)) * np.exp(random.standard_normal(hidden))
    tokens = random.standard_normal((400, 8)) @ directions + 0.1 * random.standard_normal((400, hidden))
    logits = random.standard_normal((400, experts))
    chosen = np.argsort(-logits, axis=1)[:, : settings.k]
    samples = Samples(tokens.astype(np.float32), chosen, np.full(chosen.shape, 0.5, np.float32))
    return Mixture("layer", experts, hidden, inter, settings, expert, "source"), samples


def part(samples: Samples, rows: slice) -> Samples:
    return Samples(samples.tokens[rows], samples.experts[rows], samples.weights[rows])


def held_out_error(mixture: Mixture, converted: Converted, samples: Samples) -> float:
    """Of the routed outputs, computed here from the tensors that QMoE gets, by QMoE's reference kernel."""
    from qmoe_node import evaluate

    given = samples.tokens if converted.factors is None else samples.tokens / converted.factors
    logits = np.full((len(given), mixture.experts), -1e30, np.float32)
    np.put_along_axis(logits, samples.experts, np.float32(0), axis=1)
    arrays = {port: tensor.array() for port, tensor in converted.tensors.items()}
    found = evaluate({"input": given.astype(np.float32), "router_probs": logits, **arrays}, converted.parameters)
    expected = np.zeros_like(samples.tokens)
    for number in range(mixture.experts):
        rows, weights = samples.of(number)
        expert = mixture.expert(number)
        inner = expert.inner(mixture.settings, samples.tokens[rows])
        expected[rows] += weights[:, None] * (inner @ expert.fc2.T)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_go_where_torch_sends_them(family: str) -> None:
    checkpoint, block = opened(family)
    with np.load(DATA / family / "quantized.npz") as peer:
        x, picks, weights = peer["in.input"], peer["topk_indices"], peer["topk_weights"]
    samples = samples_of(checkpoint, block, x)
    order, theirs = np.argsort(samples.experts, axis=1), np.argsort(picks, axis=1)
    assert (np.take_along_axis(samples.experts, order, 1) == np.take_along_axis(picks, theirs, 1)).all()
    found, expected = np.take_along_axis(samples.weights, order, 1), np.take_along_axis(weights, theirs, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_methods_that_know_the_tokens_keep_outputs_better_on_tokens_they_have_not_seen(bits: int, biases: bool) -> None:
    mixture, samples = synthetic(biases=biases)
    seen, unseen = part(samples, slice(300)), part(samples, slice(300, None))
    error = {
        method: held_out_error(mixture, convert(mixture, Plan(bits, 32, method=method), seen), unseen)
        for method in ("nearest", "least-squares", "gptq", "awq")
    }
    assert error["gptq"] < 0.5 * error["nearest"]
    assert error["awq"] < 0.95 * error["nearest"]


@pytest.mark.parametrize(
    "settings",
    [
        Settings(2, "swiglu", 1.702, 1.0, 1, 7.0),
        Settings(2, "swiglu", 1.0, 0.0, 2),
        Settings(2, "silu"),
        Settings(2, "geglu", swiglu_fusion=1),
        Settings(2, "relu"),
    ],
    ids=["gpt-oss", "concatenated", "silu", "geglu", "relu"],
)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_reported_is_what_the_layer_does(method: str, settings: Settings) -> None:
    mixture, samples = synthetic(settings)
    plan = Plan(4, 32, method == "half-quadratic", method)  # type: ignore[arg-type]
    converted = convert(mixture, plan, samples)
    assert converted.output_error == pytest.approx(held_out_error(mixture, converted, samples), rel=1e-3)
    assert sum(report.tokens for report in converted.experts) == samples.experts.size
    assert converted.before == 4 * sum(m.size for e in range(4) for m in mixture.expert(e).matrices().values())
    assert converted.after == sum(tensor.nbytes for port, tensor in converted.tensors.items())


def test_experts_that_saw_too_few_tokens_are_named() -> None:
    mixture, samples = synthetic()
    samples.experts[:] = np.where(samples.experts == 3, 2, samples.experts)
    samples.experts[:5] = [0, 3]
    converted = convert(mixture, Plan(4, 32, method="gptq"), samples)
    assert [(report.expert, report.tokens) for report in converted.starved] == [(3, 5)]
    wanted = convert(mixture, Plan(4, 32, method="least-squares"))
    assert converted.experts[3].errors == wanted.experts[3].errors
    assert not convert(mixture, Plan(4, 32, method="gptq", minimum_tokens=5), samples).starved


def test_work_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    mixture, samples = synthetic()
    whole = convert(mixture, Plan(method="gptq"), samples)
    read: list[int] = []

    def expert(number: int) -> Expert:
        read.append(number)
        return mixture.expert(number)

    watched = replace(mixture, expert=expert)
    stop = threading.Event()

    def progress(done: int, total: int) -> None:
        if done == 2:
            stop.set()

    with pytest.raises(Cancelled):
        convert(watched, Plan(method="gptq"), samples, folder=tmp_path / "parts", progress=progress, cancel=stop)
    journal = tmp_path / "parts" / "journal.jsonl"
    assert len([line for line in journal.read_text().splitlines() if line]) == 3
    journal.write_bytes(journal.read_bytes() + b'{"expert": 2, "err')  # as after a kill
    data = (tmp_path / "parts" / "fc1_experts_weights").read_bytes()
    found = convert(watched, Plan(method="gptq"), samples, folder=tmp_path / "parts")
    assert (tmp_path / "parts" / "fc1_experts_weights").read_bytes()[: len(data) // 2] == data[: len(data) // 2]
    assert found.tensors == whole.tensors and found.output_error == pytest.approx(whole.output_error)
    assert [replace(r, output_error=None) for r in found.experts] == [
        replace(r, output_error=None) for r in whole.experts
    ]
    # Without samples nothing that is done is even read again, but to be counted.
    again = convert(watched, Plan(), folder=tmp_path / "others")
    assert again.tensors == convert(mixture, Plan()).tensors


def test_a_file_that_finds_no_room_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        os.write(handle, bytes(size // 2))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    parts = Parts(tmp_path / "parts", "work")
    with pytest.raises(FileError, match="weights: cannot be written: No space left"):
        parts.array("weights", (64, 64), np.dtype(np.uint8))
    assert not (tmp_path / "parts" / "weights").exists()


def test_other_work_in_the_folder_is_not_taken_for_this(tmp_path: Path) -> None:
    mixture, _ = synthetic()
    convert(mixture, Plan(2), folder=tmp_path / "parts")
    assert convert(mixture, Plan(4), folder=tmp_path / "parts").tensors == convert(mixture, Plan(4)).tensors
    other = replace(mixture, source="another", expert=lambda number: mixture.expert(number + 1))
    assert convert(other, Plan(4), folder=tmp_path / "parts").tensors == convert(other, Plan(4)).tensors
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(FileError, match="something else"):
        convert(mixture, Plan(4), folder=tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_no_more_than_two_experts_are_held(tmp_path: Path) -> None:
    mixture, _ = synthetic(experts=8)
    alive: list[object] = []
    most = 0

    import weakref

    def expert(number: int) -> Expert:
        nonlocal most
        made = mixture.expert(number)
        alive.append(weakref.ref(made.fc1))
        most = max(most, sum(reference() is not None for reference in alive))  # type: ignore[operator]
        return made

    convert(replace(mixture, expert=expert), Plan(), folder=tmp_path / "parts")
    assert most <= 3  # one is given back while its follower comes


def test_what_cannot_be_done_is_said() -> None:
    mixture, samples = synthetic()
    for method in ("gptq", "awq"):
        with pytest.raises(GraphError, match="calibration"):
            convert(mixture, Plan(method=method))  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="method"):
        Plan(method="best")  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="bits"):
        Plan(fc2_bits=5)
    broken = Samples(samples.tokens * np.inf, samples.experts, samples.weights)
    with pytest.raises(GraphError, match="not finite"):
        convert(mixture, Plan(method="gptq"), broken)
    checkpoint, block = opened("mixtral")
    for data in (np.zeros((3, 32), np.float32), np.zeros(64, np.float32), np.zeros((3, 64), np.int64)):
        with pytest.raises(GraphError, match="tokens, 64"):
            samples_of(checkpoint, block, data)


def test_rows_that_end_within_a_byte_are_refused(tmp_path: Path) -> None:
    mixture, _ = synthetic()
    for changes, plan, reason in (
        ({"hidden": 33}, Plan(4), "fc1_experts_weights: 4-bit rows .* a multiple of 2 columns; 33 came"),
        ({"inter": 18}, Plan(4, fc2_bits=2), "fc2_experts_weights: 2-bit rows .* a multiple of 4 columns; 18 came"),
    ):
        with pytest.raises(GraphError, match=reason):
            convert(replace(mixture, **changes), plan, folder=tmp_path / "parts")  # type: ignore[arg-type]
    assert not (tmp_path / "parts").exists()


def whole_model(folder: Path) -> Checkpoint:
    """A checkpoint whose first layer has the weights of its second, too."""
    folder.mkdir()
    tensors = read_tensors(DATA / "mixtral" / "model.safetensors")
    doubled = tensors | {name.replace("layers.1.", "layers.0."): tensor for name, tensor in tensors.items()}
    write_tensors(folder / "model.safetensors", doubled)
    (folder / "config.json").write_bytes((DATA / "mixtral" / "config.json").read_bytes())
    return Checkpoint(folder)


def test_all_blocks_of_a_model_in_one_graph(tmp_path: Path) -> None:
    checkpoint = whole_model(tmp_path / "model")
    widths = zip(blocks(checkpoint), (4, 2), strict=True)
    parts = [(block, convert(mixture_of(checkpoint, block), Plan(bits))) for block, bits in widths]
    graph = model_graph(checkpoint, parts)
    assert not [f for f in graph.checker.findings() if f.severity is Severity.ERROR]
    x = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32)
    found = Session(graph).forward({f"{block.name}.hidden_states": x for block, _ in parts})
    for block, experts in parts:
        one = Session(block_graph(checkpoint, block, experts)).forward({"hidden_states": x})["output"]
        assert (found[f"{block.name}.output"] == one).all()


def test_a_rescaled_block_has_its_factors_in_the_graph() -> None:
    checkpoint, block = opened("mixtral")
    x = np.random.default_rng(0).standard_normal((1, 200, 64)).astype(np.float32) * np.linspace(0.1, 4, 64)
    samples = samples_of(checkpoint, block, x.astype(np.float32))
    converted = convert(block.mixture, Plan(method="awq"), samples)
    graph = block_graph(checkpoint, block, converted)
    exact = Session(block_graph(checkpoint, block)).forward({"hidden_states": x.astype(np.float32)})["output"][0]
    for backend in ("onnxruntime", "numpy"):
        found = Session(graph, backend).forward({"hidden_states": x.astype(np.float32)})["output"][0]  # type: ignore[arg-type]
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        assert error == pytest.approx(converted.output_error, rel=1e-3)
