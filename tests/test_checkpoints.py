"""Blocks of checkpoints: torch's numbers for four families, a plain NumPy loop for the others, and spoilt folders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmoe_node.block_graphs import block_graph, mixture_of, samples_of
from qmoe_node.checkpoints import Checkpoint
from qmoe_node.families import blocks, from_mxfp4
from runtime import Session
from runtime.errors import FileError
from runtime.snippets.tensor_files import read_tensors, write_tensors
from runtime.tensors import Tensor

PEERS = Path(__file__).parent / "data" / "peers"
"""The second layer of tiny random models, with torch's results: see README.md there."""
HIDDEN, INTER, EXPERTS = 16, 12, 8


@pytest.mark.parametrize("family", ["gpt_oss", "gpt_oss_mxfp4", "mixtral", "qwen3_moe"])
def test_a_block_gives_what_torch_gives(family: str) -> None:
    checkpoint = Checkpoint(PEERS / family)
    block = list(blocks(checkpoint))[1]
    with np.load(PEERS / family / "reference.npz") as reference:
        cases = [(reference["layer1.moe_in"], reference["layer1.moe_out"])]
        if "block.x" in reference:
            cases.append((reference["block.x"], reference["block.y"]))
        logits = reference["layer1.router_logits"]
        indices = reference["layer1.topk_indices"]
    session = Session(block_graph(checkpoint, block))
    for x, expected in cases:
        found = session.forward({"hidden_states": x})["output"]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    session.forward({"hidden_states": cases[0][0]}, ["router.Y"])
    own = session.last_run.probes["router.Y"]
    np.testing.assert_allclose(own, logits, atol=1e-5)
    assert (np.sort(np.argsort(-own, axis=1)[:, : block.routing.k]) == np.sort(indices)).all()


# -- families without torch's numbers: a plain loop over tokens -------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def expert(gate: np.ndarray, up: np.ndarray, down: np.ndarray, x: np.ndarray) -> np.ndarray:
    inner = gate @ x
    return down @ (inner / (1 + np.exp(-inner)) * (up @ x))


def pick_softmax(logits: np.ndarray, k: int) -> dict[int, float]:
    weights = softmax(logits)
    return {e: weights[e] for e in np.argsort(-logits)[:k].tolist()}


def pick_sparse(logits: np.ndarray, jitter: float) -> dict[int, float]:
    picks: dict[int, float] = {}
    left = logits.copy()
    for _ in range(2):
        best = int(left.argmax())
        near = [
            e
            for e in range(len(logits))
            if math.isfinite(left[e]) and (left[best] - logits[e]) / max(abs(logits[e]), left[best]) <= 2 * jitter
        ]
        picks[best] = 1 / sum(math.exp(left[e] - left[best]) for e in near)
        left[best] = -math.inf
    return picks


def pick_sigmoid(
    logits: np.ndarray, k: int, bias: np.ndarray, groups: int, top: int, epsilon: float, scale: float
) -> dict[int, float]:
    scores = 1 / (1 + np.exp(-logits))
    ranks = scores + bias
    by_group = ranks.reshape(groups, -1)
    marks = np.sort(by_group)[:, -2:].sum(axis=1)
    allowed = {e for g in np.argsort(-marks)[:top] for e in range(g * by_group.shape[1], (g + 1) * by_group.shape[1])}
    chosen = sorted(allowed, key=lambda e: -ranks[e])[:k]
    total = sum(scores[e] for e in chosen) + epsilon
    return {e: scores[e] / total * scale for e in chosen}


class Model:
    """A made-up checkpoint of one layer, and the weights that are in it."""

    def __init__(self, folder: Path, name: str, **configuration: Any) -> None:
        self.folder, self.name = folder, name
        self.random = np.random.default_rng(5)
        self.tensors: dict[str, np.ndarray] = {}
        common = {"hidden_size": HIDDEN, "num_hidden_layers": 1, "num_experts_per_tok": 2}
        self.configuration = common | configuration
        self.router = self.make("", (EXPERTS, HIDDEN), add=False)

    def make(self, name: str, shape: tuple[int, ...], *, add: bool = True, scale: float = 0.5) -> np.ndarray:
        array = (self.random.standard_normal(shape) * scale).astype(np.float32)
        if add:
            self.tensors[f"{self.name}.{name}"] = array
        return array

    def experts(self, names: tuple[str, str, str], prefix: str = "experts.{}.") -> list[tuple[np.ndarray, ...]]:
        shapes = ((INTER, HIDDEN), (INTER, HIDDEN), (HIDDEN, INTER))
        return [
            tuple(self.make(f"{prefix.format(e)}{n}.weight", s) for n, s in zip(names, shapes, strict=True))
            for e in range(EXPERTS)
        ]

    def save(self) -> Checkpoint:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps(self.configuration))
        write_tensors(self.folder / "model.safetensors", {n: Tensor.from_array(a) for n, a in self.tensors.items()})
        return Checkpoint(self.folder)


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
Answer = tuple[Model, Callable[[np.ndarray], np.ndarray]]


def mixed(picks: dict[int, float], experts: list[tuple[np.ndarray, ...]], x: np.ndarray) -> np.ndarray:
    return np.sum([weight * expert(*experts[e], x) for e, weight in picks.items()], axis=0)


def qwen2(folder: Path) -> Answer:
    model = Model(
        folder,
        "model.layers.0.mlp",
        model_type="qwen2_moe",
        num_experts=EXPERTS,
        moe_intermediate_size=INTER,
        shared_expert_intermediate_size=INTER,
    )
    model.tensors["model.layers.0.mlp.gate.weight"] = model.router
    experts = model.experts(PROJECTIONS)
    shapes = ((INTER, HIDDEN), (INTER, HIDDEN), (HIDDEN, INTER))
    shared = [model.make(f"shared_expert.{n}.weight", s) for n, s in zip(PROJECTIONS, shapes, strict=True)]
    weigh = model.make("shared_expert_gate.weight", (1, HIDDEN))

    def answer(x: np.ndarray) -> np.ndarray:
        share = 1 / (1 + np.exp(-(weigh @ x)))
        return mixed(pick_softmax(model.router @ x, 2), experts, x) + share * expert(*shared, x)

    return model, answer


def phimoe(folder: Path) -> Answer:
    model = Model(
        folder,
        "model.layers.0.block_sparse_moe",
        model_type="phimoe",
        num_local_experts=EXPERTS,
        intermediate_size=INTER,
        router_jitter_noise=0.2,
    )
    model.tensors["model.layers.0.block_sparse_moe.gate.weight"] = model.router
    experts = [(gate, up, down) for gate, down, up in _w123(model)]
    return model, lambda x: mixed(pick_sparse(model.router @ x, 0.2), experts, x)


def _w123(model: Model) -> list[tuple[np.ndarray, ...]]:
    found = []
    for e in range(EXPERTS):
        shapes = (("w1", (INTER, HIDDEN)), ("w2", (HIDDEN, INTER)), ("w3", (INTER, HIDDEN)))
        found.append(tuple(model.make(f"experts.{e}.{name}.weight", shape) for name, shape in shapes))
    return found


def deepseek(folder: Path) -> Answer:
    model = Model(
        folder,
        "model.layers.0.mlp",
        model_type="deepseek_v3",
        n_routed_experts=EXPERTS,
        moe_intermediate_size=INTER,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        n_shared_experts=2,
        first_k_dense_replace=0,
    )
    model.tensors["model.layers.0.mlp.gate.weight"] = model.router
    bias = model.make("gate.e_score_correction_bias", (EXPERTS,), scale=0.2)
    experts = model.experts(PROJECTIONS)
    shapes = ((2 * INTER, HIDDEN), (2 * INTER, HIDDEN), (HIDDEN, 2 * INTER))
    shared = [model.make(f"shared_experts.{n}.weight", s) for n, s in zip(PROJECTIONS, shapes, strict=True)]

    def answer(x: np.ndarray) -> np.ndarray:
        picks = pick_sigmoid(model.router @ x, 2, bias, 4, 2, 1e-20, 2.5)
        return mixed(picks, experts, x) + expert(*shared, x)

    return model, answer


def granite(folder: Path) -> Answer:
    model = Model(
        folder,
        "model.layers.0.block_sparse_moe",
        model_type="granitemoe",
        num_local_experts=EXPERTS,
        intermediate_size=INTER,
    )
    model.tensors["model.layers.0.block_sparse_moe.router.layer.weight"] = model.router
    both = model.make("input_linear.weight", (EXPERTS, 2 * INTER, HIDDEN))
    down = model.make("output_linear.weight", (EXPERTS, HIDDEN, INTER))
    experts = [(both[e, :INTER], both[e, INTER:], down[e]) for e in range(EXPERTS)]

    def answer(x: np.ndarray) -> np.ndarray:
        logits = model.router @ x
        chosen = np.argsort(-logits)[:2]
        return mixed(dict(zip(chosen.tolist(), softmax(logits[chosen]), strict=True)), experts, x)

    return model, answer


def lfm2(folder: Path) -> Answer:
    model = Model(
        folder,
        "model.layers.0.feed_forward",
        model_type="lfm2_moe",
        num_experts=EXPERTS,
        moe_intermediate_size=INTER,
        num_dense_layers=0,
        norm_topk_prob=True,
        routed_scaling_factor=1.5,
        use_expert_bias=True,
    )
    model.tensors["model.layers.0.feed_forward.gate.weight"] = model.router
    bias = model.make("expert_bias", (EXPERTS,), scale=0.2)
    experts = [(gate, up, down) for gate, down, up in _w123(model)]
    return model, lambda x: mixed(pick_sigmoid(model.router @ x, 2, bias, 1, 1, 1e-6, 1.5), experts, x)


@pytest.mark.parametrize("make", [qwen2, phimoe, deepseek, granite, lfm2])
def test_a_block_gives_what_a_plain_loop_gives(make: Callable[[Path], Answer], tmp_path: Path) -> None:
    model, answer = make(tmp_path / "model")
    checkpoint = model.save()
    (block,) = blocks(checkpoint)
    x = np.random.default_rng(1).standard_normal((2, 15, HIDDEN)).astype(np.float32)
    found = Session(block_graph(checkpoint, block)).forward({"hidden_states": x})["output"]
    expected = np.array([answer(row) for row in x.reshape(-1, HIDDEN).astype(np.float64)]).reshape(x.shape)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    samples, own = samples_of(checkpoint, block, x), replace(block, shared=None)
    routed = Session(block_graph(checkpoint, own)).forward({"hidden_states": x})["output"].reshape(-1, HIDDEN)
    again = np.zeros_like(routed)
    for number in range(EXPERTS):
        rows, weights = samples.of(number)
        one = block.expert(number)
        again[rows] += weights[:, None] * one.output(one.inner(block.mixture.settings, samples.tokens[rows]))
    assert np.abs(again - routed).max() <= 1e-5 * np.abs(routed).max()


def test_qwen3_without_normalization_and_with_dense_layers(tmp_path: Path) -> None:
    checkpoint = Checkpoint(PEERS / "qwen3_moe")
    configuration = checkpoint.configuration | {"norm_topk_prob": False, "mlp_only_layers": [0]}
    (tmp_path / "config.json").write_text(json.dumps(configuration))
    (tmp_path / "model.safetensors").write_bytes((PEERS / "qwen3_moe" / "model.safetensors").read_bytes())
    other = Checkpoint(tmp_path)
    (block,) = blocks(other)
    x = np.random.default_rng(1).standard_normal((1, 9, 64)).astype(np.float32)
    found = Session(block_graph(other, block)).forward({"hidden_states": x})["output"][0]
    router = other.array(block.router, (8, 64))
    for row, y in zip(x[0], found, strict=True):
        picks = pick_softmax((router @ row).astype(np.float64), 3)
        experts = [block.expert(e) for e in range(8)]
        parts = [(e.fc1[0::2], e.fc1[1::2], e.fc2) for e in experts]
        expected = mixed(picks, parts, row.astype(np.float64))
        assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()


def test_mxfp4_is_decoded_exactly() -> None:
    codes = np.arange(16, dtype=np.uint8)
    packed = (codes | codes[::-1] << 4).reshape(1, 1, 16)
    found = from_mxfp4(packed, np.array([[130]], np.uint8))
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    signed = np.array([*values, *(-v for v in values)])
    expected = np.stack([signed, signed[::-1]], axis=1).reshape(1, 32) * 8
    assert (found == expected).all()
    assert np.isnan(from_mxfp4(packed, np.array([[255]], np.uint8))).all()
    assert (from_mxfp4(packed, np.array([[0]], np.uint8)) == expected / 8 * 2.0**-127).all()


def test_mxfp4_of_columns_that_make_no_blocks_is_refused(tmp_path: Path) -> None:
    name = "model.layers.0.mlp"
    model = Model(
        tmp_path / "model", name, model_type="gpt_oss", num_local_experts=4, intermediate_size=32, hidden_size=48
    )
    model.tensors |= {f"{name}.router.weight": np.zeros((4, 48), np.float32)}
    for part, rows, columns in (("gate_up_proj", 64, 48), ("down_proj", 48, 32)):
        model.make(f"experts.{part}_bias", (4, rows))
        model.tensors[f"{name}.experts.{part}_blocks"] = np.zeros((4, rows, columns // 32, 16), np.uint8)
        model.tensors[f"{name}.experts.{part}_scales"] = np.full((4, rows, columns // 32), 127, np.uint8)
    (block,) = blocks(model.save())
    with pytest.raises(FileError, match="gate_up_proj_blocks: MXFP4 has blocks of 32 columns; .* says 48 columns"):
        block.expert(0)


# -- spoilt folders ---------------------------------------------------------------------------------------------------


def spoil(folder: Path, **changes: Any) -> Path:
    """A folder with a good checkpoint, but for settings of its configuration."""
    folder.mkdir(exist_ok=True)
    configuration = json.loads((PEERS / "mixtral" / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in configuration.items() if v is not ...}))
    (folder / "model.safetensors").write_bytes((PEERS / "mixtral" / "model.safetensors").read_bytes())
    return folder


def graph_of(folder: Path) -> Any:
    checkpoint = Checkpoint(folder)
    return block_graph(checkpoint, list(blocks(checkpoint))[-1])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "llama"}, "'llama' is no family that can be read. Known are deepseek_v3, gpt_oss"),
        ({"model_type": ["x"]}, "model_type: expected str"),
        ({"hidden_size": "64"}, "hidden_size: expected int; '64' came"),
        ({"hidden_size": True}, "hidden_size: expected int; True came"),
        ({"hidden_size": 0}, "hidden_size: expected a size of at least 1; 0 came"),
        ({"num_local_experts": None}, "num_local_experts: expected int; it is not there"),
        ({"intermediate_size": 32}, r"experts.0.w1.weight: expected .* \[32, 64\]; bfloat16 \[96, 64\] came"),
        ({"num_local_experts": 9}, r"gate.weight: expected .* \[9, 64\]; bfloat16 \[8, 64\] came"),
        ({"num_hidden_layers": 3}, r"lacks the tensor model.layers.2.block_sparse_moe.gate.weight, \[8, 64\]"),
        ({"num_hidden_layers": 1 << 30}, "num_hidden_layers: expected a size of at most 10000; 1073741824 came"),
        ({"num_hidden_layers": 10**400}, "num_hidden_layers: expected a size of at most 10000; a longer number came"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok: there are 8 experts to choose from; 9 came"),
        ({"model_type": "phimoe", "num_experts_per_tok": 3}, "the sparse mixer chooses 2; 3 came"),
        ({"model_type": "phimoe", "router_jitter_noise": 10**400}, "router_jitter_noise: expected a finite number"),
        ({"model_type": "phimoe", "router_jitter_noise": math.nan}, "router_jitter_noise: expected a finite number"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_told(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(FileError, match=reason):
        graph_of(spoil(tmp_path / "model", **changes))


@pytest.mark.parametrize(
    ("make", "changes", "reason"),
    [
        ("qwen2", {"decoder_sparse_step": 0}, "decoder_sparse_step: expected a size of at least 1; 0 came"),
        ("deepseek", {"moe_layer_freq": 0}, "moe_layer_freq: expected a size of at least 1; 0 came"),
        ("deepseek", {"n_group": 3}, "n_group: expected a number that divides the 8 experts; 3 came"),
        ("deepseek", {"n_group": 0}, "n_group: expected a size of at least 1; 0 came"),
        ("deepseek", {"topk_group": 1, "num_experts_per_tok": 3}, "there are 2 experts to choose from; 3 came"),
        ("deepseek", {"routed_scaling_factor": 0}, "routed_scaling_factor: expected a number above 0; 0.0 came"),
    ],
)
def test_what_is_wrong_with_a_routing_is_told(make: str, changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model, _ = {"qwen2": qwen2, "deepseek": deepseek}[make](tmp_path / "model")
    model.configuration |= changes
    checkpoint = model.save()
    with pytest.raises(FileError, match=reason):
        list(blocks(checkpoint))


def test_a_mixtures_experts_are_as_many_as_its_router_has(tmp_path: Path) -> None:
    checkpoint = Checkpoint(spoil(tmp_path / "model", num_local_experts=1 << 30))
    with pytest.raises(FileError, match=r"gate.weight: expected .* \[1073741824, 64\]; bfloat16 \[8, 64\] came"):
        mixture_of(checkpoint, list(blocks(checkpoint))[-1])


def test_a_file_that_the_index_names_and_the_folder_lacks_is_told(tmp_path: Path) -> None:
    folder = spoil(tmp_path / "model")
    places = dict.fromkeys(Checkpoint(folder).names(), "model.safetensors") | {"other": "gone.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(FileError, match="gone.safetensors: is not there, but model.safetensors.index.json names it"):
        mixture_of(Checkpoint(folder), list(blocks(Checkpoint(folder)))[-1])


def test_what_is_wrong_with_files_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="expected a folder with config.json"):
        Checkpoint(tmp_path / "none")
    folder = spoil(tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    for content, reason in (
        (whole[:-5], "the file is cut short"),
        (b"\xff" * 16, "is no safetensors file"),
        (b"", "cannot be read|is no safetensors file"),
        ((1 << 62).to_bytes(8, "little") + whole[8:], "is no safetensors file"),
    ):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(FileError, match=reason):
            graph_of(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileError, match=r"holds no \.safetensors file"):
        graph_of(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(FileError, match="is not JSON"):
        Checkpoint(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(FileError, match="expected a JSON object"):
        Checkpoint(folder)


def test_files_with_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    folder = spoil(tmp_path / "model")
    tensors = read_tensors(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, listed in parts.items():
        write_tensors(folder / file, {name: tensors[name] for name in listed})
    del tensors
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, listed in parts.items() for name in listed}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert graph_of(folder) == graph_of(PEERS / "mixtral")
    for map_, reason in (
        ({**index["weight_map"], names[0]: "../a.safetensors"}, "is no .safetensors file of this folder"),
        (dict.fromkeys(names, "c.safetensors"), "c.safetensors: is not there, but"),
        (dict.fromkeys(names, "b.safetensors"), "b.safetensors: lacks the tensor"),
        ([], "expected a mapping"),
    ):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": map_}))
        with pytest.raises(FileError, match=reason):
            graph_of(folder)
