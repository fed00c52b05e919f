"""A block of a checkpoint as a graph: router, routing, experts, shared expert, in nodes that people know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qmoe_node.blocks import Block, Routing
from qmoe_node.checkpoints import Checkpoint
from qmoe_node.families import blocks
from qmoe_node.mixtures import Mixture, Samples
from qmoe_node.routing import route
from runtime.errors import Finding, GraphError
from runtime.graph import Graph
from runtime.session import Session
from runtime.tensors import Tensor
from runtime.types import ElementType

if TYPE_CHECKING:
    from qmoe_node.conversion import Converted

OPSETS = {"": 21, "com.microsoft": 1}
LEAST = -1e30
"""The logit of an expert that was not chosen."""
TRAINED = "trainable weight"
ROUTER, TOTAL = "router_probs", "total"
"""The outputs of a routing graph."""


def block_graph(checkpoint: Checkpoint, block: Block, experts: Converted | None = None) -> Graph:
    """A graph that computes what the block does: hidden_states float [batch, sequence, hidden] -> output, the same.

    With `experts`, these are the block's quantized ones; without, they are float32. All else is float32 in both.
    Initializers have the names of the model's tensors as far as they are these. FileError if a tensor is missing or
    has another shape.
    """
    graph = Graph(block.name, opsets=OPSETS)
    _Builder(checkpoint, block, graph).whole(experts, "hidden_states", "output")
    return graph


def model_graph(checkpoint: Checkpoint, parts: Iterable[tuple[Block, Converted | None]]) -> Graph:
    """Several blocks of a model in one graph, side by side.

    Each has an input and an output of its own, called after the block: model.layers.3.mlp.hidden_states.
    """
    graph = Graph(str(checkpoint.configuration.get("model_type", "model")), opsets=OPSETS)
    for block, experts in parts:
        builder = _Builder(checkpoint, block, graph, prefix=f"layer{block.layer}_")
        builder.whole(experts, f"{block.name}.hidden_states", f"{block.name}.output")
    return graph


def routing_graph(checkpoint: Checkpoint, block: Block) -> Graph:
    """The block's graph up to its experts: hidden_states -> router_probs [tokens, experts].

    Mixing weights are the softmax of its k largest, times total [tokens, 1] where there is that output.
    """
    graph = Graph(block.name, opsets=OPSETS)
    _Builder(checkpoint, block, graph).routing_only()
    return graph


def mixture_of(checkpoint: Checkpoint, block: Block) -> Mixture:
    """The block's experts, with what tells the checkpoint from others; the files' memory is let go of after each.

    FileError if the router is missing or has another shape.
    """
    # Room for all experts is taken before the second is read: their number must not be the configuration's word alone.
    checkpoint.tensor(block.router, (block.experts, block.hidden))
    return replace(block.mixture, source=checkpoint.identity, forget=checkpoint.forget)


def floats(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A MoE node's parameters and its float tensors by port, of a checkpoint's block. GraphError if it has none."""
    checkpoint = Checkpoint(folder)
    for block in blocks(checkpoint):
        if block.name == name:
            return block.mixture.parameters(), _stacked(block.mixture)
    raise GraphError(Finding(f"{folder} has no mixture called {name}.", code="twin"))


def samples_of(checkpoint: Checkpoint, block: Block, hidden_states: np.ndarray) -> Samples:
    """Tokens float [..., hidden] that the block is given, with where its router sends them. GraphError for others."""
    found = np.asarray(hidden_states)
    if found.ndim < 2 or found.shape[-1] != block.hidden or found.dtype.kind not in "fV" or not found.size:
        text = f"expected calibration data of floats, [tokens, {block.hidden}]; {found.dtype} {list(found.shape)} came."
        raise GraphError(Finding(text, block.name, "hidden_states", code="data"))
    tokens = np.ascontiguousarray(found.reshape(-1, block.hidden).astype(np.float32))
    outputs = Session(routing_graph(checkpoint, block)).forward({"hidden_states": tokens[None]})
    chosen = route(outputs[ROUTER], block.routing.k, normalize_routing_weights=True)
    return Samples(tokens, chosen.indices, chosen.weights * outputs.get(TOTAL, np.float32(1)))


class _Builder:
    """Writes one block into a graph, node by node; methods return what a wire can begin at."""

    def __init__(self, checkpoint: Checkpoint, block: Block, graph: Graph, prefix: str = "") -> None:
        self._checkpoint, self._block, self._graph, self._prefix = checkpoint, block, graph, prefix

    def whole(self, experts: Converted | None, given: str, made: str) -> None:
        """All of it, with an input and an output of these names."""
        block = self._block
        start, tokens = self._tokens(given)
        chosen, total = self._route(self._router(tokens))
        routed = self._experts(tokens, chosen, experts)
        if total:
            routed = self.add("Mul", "weighted", {"A": routed, "B": total}, "C")
        if block.shared is not None:
            routed = self.add("Add", "with_shared", {"A": routed, "B": self._shared(tokens)}, "C")
        like = self.add("Shape", "given_shape", {"data": start}, "shape")
        shaped = self.add("Reshape", "shaped", {"data": routed, "shape": like}, "reshaped")
        self._output(made, shaped)

    def routing_only(self) -> None:
        """What `routing_graph` has."""
        _, tokens = self._tokens("hidden_states")
        chosen, total = self._route(self._router(tokens))
        self._output(ROUTER, chosen)
        if total:
            self._output(TOTAL, total)

    def _tokens(self, name: str) -> tuple[str, str]:
        block = self._block
        id = f"{self._prefix}hidden_states"
        parameters = {"type": "tensor(float)", "shape": ["batch", "sequence", block.hidden]}
        if name != id:
            parameters["name"] = name
        self._graph.add("Input", id, parameters=parameters)
        rows = self.constant("token_shape", np.array([-1, block.hidden]))
        return f"{id}.value", self.add("Reshape", "tokens", {"data": f"{id}.value", "shape": rows}, "reshaped")

    def _output(self, name: str, source: str) -> None:
        id = f"{self._prefix}{name.rpartition('.')[2]}"
        self._graph.add("Output", id, parameters={} if name == id else {"name": name})
        self._graph.wire(source, f"{id}.value")

    # -- parts --------------------------------------------------------------------------------------------------------

    def _router(self, tokens: str) -> str:
        block = self._block
        wires = {"A": tokens, "B": self.weight("router_weight", block.router, (block.experts, block.hidden))}
        if block.router_bias:
            wires["C"] = self.weight("router_bias", block.router_bias, (block.experts,))
        return self.add("Gemm", "router", wires, "Y", transB=1)

    def _route(self, logits: str) -> tuple[str, str]:
        """Logits whose softmax over the k largest are the mixing weights but for a factor; and that, [tokens, 1]."""
        routing = self._block.routing
        if routing.kind == "top_k":
            return logits, ""
        if routing.kind == "softmax":
            every = self.add("Softmax", "probabilities", {"input": logits}, "output", axis=-1)
            best = self._top("chosen", every, routing.k, "Values")
            return logits, self._sum("total_weight", best)
        choose = self._sparse_mixer if routing.kind == "sparse_mixer" else self._sigmoid
        picks, weights = choose(logits, routing)
        if routing.normalize:
            total = self._sum("weight_sum", weights)
            if routing.epsilon:
                epsilon = self.constant("epsilon", np.float32(routing.epsilon))
                total = self.add("Add", "guarded_sum", {"A": total, "B": epsilon}, "C")
            weights = self.add("Div", "normalized", {"A": weights, "B": total}, "C")
        if routing.scale != 1:
            scale = self.constant("routed_scaling_factor", np.float32(routing.scale))
            weights = self.add("Mul", "scaled", {"A": weights, "B": scale}, "C")
        size = self.add("Shape", "logits_shape", {"data": logits}, "shape")
        none = self.add("ConstantOfShape", "nobody", {"input": size}, "output", value=_one(LEAST))
        powers = self.add("Log", "log_weights", {"input": weights}, "output")
        wires = {"data": none, "indices": picks, "updates": powers}
        chosen = self.add("ScatterElements", "routed", wires, "output", axis=1)
        return chosen, self._sum("total_weight", weights)

    def _sigmoid(self, logits: str, routing: Routing) -> tuple[str, str]:
        scores = self.add("Sigmoid", "scores", {"X": logits}, "Y")
        ranked = scores
        if routing.bias:
            bias = self.weight("correction_bias", routing.bias, (self._block.experts,))
            ranked = self.add("Add", "corrected", {"A": scores, "B": bias}, "C")
        if routing.groups > 1 and routing.top_groups < routing.groups:
            ranked = self._best_groups(ranked, routing)
        picks = self._top("picks", ranked, routing.k, "Indices")
        return picks, self.add("GatherElements", "weights", {"data": scores, "indices": picks}, "output", axis=1)

    def _best_groups(self, ranked: str, routing: Routing) -> str:
        """The ranks with those of experts outside the best groups put last."""
        size = self._block.experts // routing.groups
        shape = self.constant("group_shape", np.array([-1, routing.groups, size]))
        grouped = self.add("Reshape", "grouped", {"data": ranked, "shape": shape}, "reshaped")
        two = self._top("best_of_group", grouped, min(2, size), "Values")
        axis = self.constant("last_axis", np.array([-1]))
        marks = self.add("ReduceSum", "group_scores", {"data": two, "axes": axis}, "reduced", keepdims=0)
        best = self._top("best_groups", marks, routing.top_groups, "Indices")
        like = self.add("Shape", "groups_shape", {"data": marks}, "shape")
        nobody = self.add("ConstantOfShape", "no_group", {"input": like}, "output", value=_one(LEAST))
        ones = self.add("ConstantOfShape", "every_group", {"input": like}, "output", value=_one(0.0))
        kept = self.add("GatherElements", "kept_groups", {"data": ones, "indices": best}, "output", axis=1)
        wires = {"data": nobody, "indices": best, "updates": kept}
        mask = self.add("ScatterElements", "group_mask", wires, "output", axis=1)
        wide = self.add("Unsqueeze", "wide_mask", {"data": mask, "axes": axis}, "expanded")
        masked = self.add("Add", "masked_groups", {"A": grouped, "B": wide}, "C")
        flat = self.constant("experts_shape", np.array([-1, self._block.experts]))
        return self.add("Reshape", "ranked", {"data": masked, "shape": flat}, "reshaped")

    def _sparse_mixer(self, logits: str, routing: Routing) -> tuple[str, str]:
        first, first_weight = self._mixer_pick("first", logits, logits, routing)
        least = self.constant("least", np.float32(LEAST))
        like = self.add("Shape", "pick_shape", {"data": first}, "shape")
        out = self.add("Expand", "left_out", {"input": least, "shape": like}, "output")
        wires = {"data": logits, "indices": first, "updates": out}
        rest = self.add("ScatterElements", "rest", wires, "output", axis=1)
        second, second_weight = self._mixer_pick("second", rest, logits, routing)
        picks = self.add("Concat", "picks", {"inputs.0": first, "inputs.1": second}, "concat_result", axis=1)
        wires = {"inputs.0": first_weight, "inputs.1": second_weight}
        return picks, self.add("Concat", "weights", wires, "concat_result", axis=1)

    def _mixer_pick(self, name: str, candidates: str, logits: str, routing: Routing) -> tuple[str, str]:
        """The largest candidate, and its weight among those that are near it."""
        top = f"{name}_pick"
        pick = self._top(top, candidates, 1, "Indices")
        largest = f"{top}.Values"
        size = self.add("Abs", f"{name}_size", {"X": logits}, "Y")
        factor = self.add("Max", f"{name}_factor", {"data_0.0": size, "data_0.1": largest}, "max")
        apart = self.add("Sub", f"{name}_apart", {"A": largest, "B": logits}, "C")
        share = self.add("Div", f"{name}_share", {"A": apart, "B": factor}, "C")
        bound = self.constant(f"{name}_bound", np.float32(2 * routing.jitter))
        far = self.add("Greater", f"{name}_far", {"A": share, "B": bound}, "C")
        nothing = self.constant(f"{name}_nothing", np.float32(-np.inf))
        near = self.add("Where", f"{name}_near", {"condition": far, "X": nothing, "Y": candidates}, "output")
        weights = self.add("Softmax", f"{name}_weights", {"input": near}, "output", axis=-1)
        wires = {"data": weights, "indices": pick}
        return pick, self.add("GatherElements", f"{name}_weight", wires, "output", axis=1)

    def _experts(self, tokens: str, chosen: str, experts: Converted | None) -> str:
        mixture = self._block.mixture
        wires = {"input": tokens, "router_probs": chosen}
        if experts is None:
            for port, array in _stacked(mixture).items():
                wires[port] = self.initializer(port, Tensor.from_array(array), trained=True)
            return self.add("com.microsoft.MoE", "experts", wires, "output", **mixture.parameters())
        if experts.factors is not None:
            factors = self.initializer("input_factors", Tensor.from_array(1 / experts.factors))
            wires["input"] = self.add("Mul", "rescaled", {"A": tokens, "B": factors}, "C")
        for port, tensor in experts.tensors.items():
            wires[port] = self.initializer(port, tensor, trained=tensor.element is ElementType.FLOAT)
        return self.add("com.microsoft.QMoE", "experts", wires, "output", **experts.parameters)

    def _shared(self, tokens: str) -> str:
        block, shared = self._block, self._block.shared
        assert shared is not None
        gate, linear, output = shared.tensors
        wide, narrow = (shared.inter, block.hidden), (block.hidden, shared.inter)
        weights = {"shared_gate": (gate, wide), "shared_up": (linear, wide)}
        parts = []
        for name, (tensor, shape) in weights.items():
            wires = {"A": tokens, "B": self.weight(f"{name}_weight", tensor, shape)}
            parts.append(self.add("Gemm", name, wires, "Y", transB=1))
        share = self.add("Sigmoid", "shared_sigmoid", {"X": parts[0]}, "Y")
        silu = self.add("Mul", "shared_silu", {"A": parts[0], "B": share}, "C")
        inner = self.add("Mul", "shared_inner", {"A": silu, "B": parts[1]}, "C")
        wires = {"A": inner, "B": self.weight("shared_down_weight", output, narrow)}
        result = self.add("Gemm", "shared_down", wires, "Y", transB=1)
        if shared.weight:
            wires = {"A": tokens, "B": self.weight("shared_expert_weight", shared.weight, (1, block.hidden))}
            logit = self.add("Gemm", "shared_logit", wires, "Y", transB=1)
            share = self.add("Sigmoid", "shared_share", {"X": logit}, "Y")
            result = self.add("Mul", "shared_output", {"A": result, "B": share}, "C")
        return result

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(self, type: str, name: str, wires: Mapping[str, str], output: str, **parameters: Any) -> str:
        """A node, and wires from what it reads; where its output is."""
        id = self._prefix + name
        self._graph.add(type, id, parameters=parameters)
        for port, source in wires.items():
            self._graph.wire(source, f"{id}.{port}")
        return f"{id}.{output}"

    def constant(self, name: str, array: np.ndarray | np.generic) -> str:
        """An initializer that is no weight; one that is there already is taken."""
        return self.initializer(name, Tensor.from_array(np.asarray(array)))

    def initializer(self, name: str, tensor: Tensor, *, trained: bool = False, known_as: str = "") -> str:
        """An initializer, called so in an ONNX file; one that is there already is taken."""
        id = self._prefix + name
        if id not in self._graph.nodes:
            parameters: dict[str, Any] = {"tensor": tensor}
            if trained:
                parameters["training_type"] = TRAINED
            if known_as:
                parameters["name"] = known_as
            self._graph.add("Initializer", id, parameters=parameters)
        return f"{id}.value"

    def weight(self, name: str, tensor: str, shape: tuple[int, ...]) -> str:
        """An initializer with a tensor of the model, and its name."""
        array = self._checkpoint.array(tensor, shape)
        return self.initializer(name, Tensor.from_array(array), trained=True, known_as=tensor)

    def _top(self, id: str, of: str, k: int, output: str) -> str:
        count = self.constant(f"{id}_count", np.array([k]))
        return self.add("TopK", id, {"X": of, "K": count}, output, axis=-1)

    def _sum(self, id: str, of: str) -> str:
        axis = self.constant("last_axis", np.array([-1]))
        return self.add("ReduceSum", id, {"data": of, "axes": axis}, "reduced", keepdims=1)


def _stacked(mixture: Mixture) -> dict[str, np.ndarray]:
    """The tensors of all experts by port, float32."""
    found: dict[str, np.ndarray] = {}
    for number in range(mixture.experts):
        expert = mixture.expert(number)
        arrays = {f"{name}_experts_weights": matrix for name, matrix in expert.matrices().items()}
        arrays |= {f"{name}_experts_bias": bias for name, bias in expert.biases().items()}
        for port, array in arrays.items():
            if port not in found:
                found[port] = np.empty((mixture.experts, *array.shape), np.float32)
            found[port][number] = array
    return found


def _one(value: float) -> Tensor:
    return Tensor.from_array(np.array([value], np.float32))
