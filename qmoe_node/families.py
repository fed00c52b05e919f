"""The model families whose mixtures can be read: a short declaration each.

A declaration gets a checkpoint and the number of a layer, and gives the layer's block, or None if it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np

from qmoe_node.blocks import Block, Routing, Shared, interleaved
from qmoe_node.checkpoints import CONFIGURATION, Checkpoint
from qmoe_node.mixtures import Expert
from qmoe_node.packing import E2M1
from runtime.errors import FileError
from runtime.types import ElementType

MOST_LAYERS = 10_000

Declaration: TypeAlias = Callable[[Checkpoint, int], Block | None]


def blocks(checkpoint: Checkpoint) -> Iterator[Block]:
    """All mixtures of a model, layer by layer. FileError if its family is not known."""
    declaration = FAMILIES.get(checkpoint.family)
    if declaration is None:
        known = ", ".join(sorted(FAMILIES))
        text = f"model_type: {checkpoint.family!r} is no family that can be read. Known are {known}."
        raise FileError(checkpoint.folder / CONFIGURATION, text)
    for layer in range(checkpoint.size("num_hidden_layers", most=MOST_LAYERS)):
        block = declaration(checkpoint, layer)
        if block is not None:
            _check_routing(checkpoint, block)
            yield block


def _check_routing(checkpoint: Checkpoint, block: Block) -> None:
    """FileError if the configuration's routing does not fit the number of experts."""
    routing, experts = block.routing, block.experts
    if experts % routing.groups:
        text = f"n_group: expected a number that divides the {experts} experts; {routing.groups} came."
        raise FileError(checkpoint.folder / CONFIGURATION, text)
    most = min(routing.top_groups, routing.groups) * (experts // routing.groups)
    if routing.kind == "sparse_mixer" and routing.k != 2:
        text = f"num_experts_per_tok: the sparse mixer chooses 2; {routing.k} came."
        raise FileError(checkpoint.folder / CONFIGURATION, text)
    if routing.k > most:
        text = f"num_experts_per_tok: there are {most} experts to choose from; {routing.k} came."
        raise FileError(checkpoint.folder / CONFIGURATION, text)
    if routing.scale <= 0:
        text = f"routed_scaling_factor: expected a number above 0; {routing.scale} came."
        raise FileError(checkpoint.folder / CONFIGURATION, text)


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""Gate, linear part and output, as most families call them."""


def _apart(
    checkpoint: Checkpoint, name: str, hidden: int, inter: int, parts: tuple[str, str, str] = PROJECTIONS
) -> Callable[[int], Expert]:
    """Experts whose gate, linear part and output are tensors of their own."""

    def read(expert: int) -> Expert:
        gate, linear, output = (f"{name}.experts.{expert}.{part}.weight" for part in parts)
        fc1 = interleaved(checkpoint.array(gate, (inter, hidden)), checkpoint.array(linear, (inter, hidden)))
        return Expert(fc1, checkpoint.array(output, (hidden, inter)))

    return read


def _shared(name: str, inter: int, weight: str = "") -> Shared:
    gate, linear, output = (f"{name}.{part}.weight" for part in PROJECTIONS)
    return Shared((gate, linear, output), inter, weight)


def gpt_oss(checkpoint: Checkpoint, layer: int) -> Block:
    """Experts in one tensor, columns of gate and linear part in turn, or in MXFP4 as they were released."""
    name = f"model.layers.{layer}.mlp"
    experts, hidden = checkpoint.size("num_local_experts", "num_experts"), checkpoint.size("hidden_size")
    inter, k = checkpoint.size("intermediate_size"), checkpoint.size("num_experts_per_tok", "experts_per_token")
    shapes = {"gate_up_proj": (2 * inter, hidden), "down_proj": (hidden, inter)}

    def weights(part: str, expert: int) -> np.ndarray:
        rows, columns = shapes[part]
        own = f"{name}.experts.{part}"
        if f"{own}_blocks" in checkpoint:
            if columns % 32:
                text = f"{own}_blocks: MXFP4 has blocks of 32 columns; the configuration says {columns} columns."
                raise FileError(checkpoint.folder / CONFIGURATION, text)
            codes = checkpoint.tensor(f"{own}_blocks", (experts, rows, columns // 32, 16), (ElementType.UINT8,))
            powers = checkpoint.tensor(f"{own}_scales", (experts, rows, columns // 32), (ElementType.UINT8,))
            return from_mxfp4(np.asarray(codes.array()[expert]), np.asarray(powers.array()[expert]))
        return np.ascontiguousarray(checkpoint.part(own, (experts, columns, rows), expert).T)

    def read(expert: int) -> Expert:
        bias = [checkpoint.part(f"{name}.experts.{p}_bias", (experts, s[0]), expert) for p, s in shapes.items()]
        return Expert(weights("gate_up_proj", expert), weights("down_proj", expert), *bias)

    return Block(
        name,
        layer,
        hidden,
        inter,
        experts,
        f"{name}.router.weight",
        Routing("top_k", k),
        read,
        router_bias=f"{name}.router.bias",
        alpha=checkpoint.number("swiglu_alpha", 1.702),
        beta=1.0,
        limit=checkpoint.number("swiglu_limit", 7.0),
    )


def from_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Weights float32 [rows, columns] of MXFP4: codes uint8 [rows, columns / 32, 16], the low four bits first, and
    powers of two uint8 [rows, columns / 32], 127 being one (OCP Microscaling Formats 1.0, 5.3 and 6.3)."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:2], 32)
    powers = np.ldexp(np.float32(1), np.minimum(scales, 254).astype(np.int32) - 127)
    powers = np.where(scales == 255, np.nan, powers)
    return np.asarray((E2M1[codes] * powers[..., None].astype(np.float32)).reshape(len(blocks), -1))


def mixtral(checkpoint: Checkpoint, layer: int) -> Block:
    """w1 is the gate, w3 the linear part, w2 the output."""
    return _block_sparse(checkpoint, layer, Routing("top_k", checkpoint.size("num_experts_per_tok")))


def phimoe(checkpoint: Checkpoint, layer: int) -> Block:
    """As mixtral, with the sparse mixer for two experts."""
    jitter = checkpoint.number("router_jitter_noise", 0.01)
    return _block_sparse(
        checkpoint, layer, Routing("sparse_mixer", checkpoint.size("num_experts_per_tok"), jitter=jitter)
    )


def _block_sparse(checkpoint: Checkpoint, layer: int, routing: Routing) -> Block:
    name = f"model.layers.{layer}.block_sparse_moe"
    hidden, inter = checkpoint.size("hidden_size"), checkpoint.size("intermediate_size")
    read = _apart(checkpoint, name, hidden, inter, ("w1", "w3", "w2"))
    experts = checkpoint.size("num_local_experts")
    return Block(name, layer, hidden, inter, experts, f"{name}.gate.weight", routing, read)


def qwen3_moe(checkpoint: Checkpoint, layer: int) -> Block | None:
    """Weights by softmax over all experts, normalized if the configuration says so; some layers may be dense."""
    return _qwen(checkpoint, layer, None)


def qwen2_moe(checkpoint: Checkpoint, layer: int) -> Block | None:
    """As qwen3_moe, with a shared expert whose output is weighed."""
    name, inter = f"model.layers.{layer}.mlp", checkpoint.size("shared_expert_intermediate_size")
    return _qwen(checkpoint, layer, _shared(f"{name}.shared_expert", inter, f"{name}.shared_expert_gate.weight"))


def _qwen(checkpoint: Checkpoint, layer: int, shared: Shared | None) -> Block | None:
    dense = checkpoint.setting("mlp_only_layers", list, [])
    if layer in dense or (layer + 1) % checkpoint.size("decoder_sparse_step", default=1):
        return None
    name = f"model.layers.{layer}.mlp"
    hidden, inter = checkpoint.size("hidden_size"), checkpoint.size("moe_intermediate_size")
    read = _apart(checkpoint, name, hidden, inter)
    normalize = checkpoint.setting("norm_topk_prob", bool, False)
    k = checkpoint.size("num_experts_per_tok")
    routing = Routing("top_k", k) if normalize else Routing("softmax", k)
    experts = checkpoint.size("num_experts", "num_local_experts")
    return Block(name, layer, hidden, inter, experts, f"{name}.gate.weight", routing, read, shared=shared)


def deepseek_v3(checkpoint: Checkpoint, layer: int) -> Block | None:
    """Sigmoids choose, with a correction and by groups; shared experts; the first layers are dense."""
    if layer < checkpoint.setting("first_k_dense_replace", int, 0) or layer % checkpoint.size(
        "moe_layer_freq", default=1
    ):
        return None
    name = f"model.layers.{layer}.mlp"
    hidden, inter = checkpoint.size("hidden_size"), checkpoint.size("moe_intermediate_size")
    read = _apart(checkpoint, name, hidden, inter)
    routing = Routing(
        "sigmoid",
        checkpoint.size("num_experts_per_tok"),
        normalize=checkpoint.setting("norm_topk_prob", bool, True),
        bias=f"{name}.gate.e_score_correction_bias",
        groups=checkpoint.size("n_group", default=1),
        top_groups=checkpoint.size("topk_group", default=1),
        epsilon=1e-20,
        scale=checkpoint.number("routed_scaling_factor", 1.0),
    )
    count = checkpoint.setting("n_shared_experts", int, 0)
    shared = _shared(f"{name}.shared_experts", count * inter) if count else None
    experts = checkpoint.size("n_routed_experts", "num_local_experts")
    return Block(name, layer, hidden, inter, experts, f"{name}.gate.weight", routing, read, shared=shared)


def granitemoe(checkpoint: Checkpoint, layer: int) -> Block:
    """Experts in one tensor, the rows of the gate before those of the linear part."""
    name = f"model.layers.{layer}.block_sparse_moe"
    experts, hidden = checkpoint.size("num_local_experts"), checkpoint.size("hidden_size")
    inter = checkpoint.size("intermediate_size")

    def read(expert: int) -> Expert:
        both = checkpoint.part(f"{name}.input_linear.weight", (experts, 2 * inter, hidden), expert)
        output = checkpoint.part(f"{name}.output_linear.weight", (experts, hidden, inter), expert)
        return Expert(interleaved(both[:inter], both[inter:]), output)

    routing = Routing("top_k", checkpoint.size("num_experts_per_tok"))
    return Block(name, layer, hidden, inter, experts, f"{name}.router.layer.weight", routing, read)


def lfm2_moe(checkpoint: Checkpoint, layer: int) -> Block | None:
    """Sigmoids choose, with a correction; the first layers are dense."""
    if layer < checkpoint.setting("num_dense_layers", int, 0):
        return None
    name = f"model.layers.{layer}.feed_forward"
    hidden, inter = checkpoint.size("hidden_size"), checkpoint.size("moe_intermediate_size")
    read = _apart(checkpoint, name, hidden, inter, ("w1", "w3", "w2"))
    routing = Routing(
        "sigmoid",
        checkpoint.size("num_experts_per_tok"),
        normalize=checkpoint.setting("norm_topk_prob", bool, True),
        bias=f"{name}.expert_bias" if checkpoint.setting("use_expert_bias", bool, True) else "",
        epsilon=1e-6,
        scale=checkpoint.number("routed_scaling_factor", 1.0),
    )
    experts = checkpoint.size("num_experts", "num_local_experts")
    return Block(name, layer, hidden, inter, experts, f"{name}.gate.weight", routing, read)


FAMILIES: Mapping[str, Declaration] = {
    "gpt_oss": gpt_oss,
    "mixtral": mixtral,
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": qwen3_moe,
    "phimoe": phimoe,
    "deepseek_v3": deepseek_v3,
    "granitemoe": granitemoe,
    "lfm2_moe": lfm2_moe,
}
"""The declarations by what configurations call their family (`model_type`)."""
