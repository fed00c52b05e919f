"""A block of a checkpoint as a graph: router, routing, experts, shared expert, in nodes that people know."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np

from qmoe_node.blocks import Block, Expert, Routing
from qmoe_node.checkpoints import Checkpoint
from qmoe_node.quantize import Scheme, quantized
from runtime.graph import Graph
from runtime.tensors import Tensor

OPSETS = {"": 21, "com.microsoft": 1}
LEAST = -1e30
"""The logit of an expert that was not chosen."""
TRAINED = "trainable weight"


def block_graph(checkpoint: Checkpoint, block: Block, scheme: Scheme | None = None) -> Graph:
    """A graph that computes what the block does: hidden_states float [batch, sequence, hidden] -> output, the same.

    With a `scheme`, its experts are quantized, one at a time; without, they are float32. All else is float32 in both.
    Initializers have the names of the model's tensors as far as they are these. FileError if a tensor is missing or
    has another shape.
    """
    return _Builder(checkpoint, block, scheme).graph()


class _Builder:
    """Writes one graph, node by node; methods return what a wire can begin at."""

    def __init__(self, checkpoint: Checkpoint, block: Block, scheme: Scheme | None) -> None:
        self._checkpoint, self._block, self._scheme = checkpoint, block, scheme
        self._graph = Graph(block.name, opsets=OPSETS)

    def graph(self) -> Graph:
        """All of it."""
        block, graph = self._block, self._graph
        shape = ["batch", "sequence", block.hidden]
        graph.add("Input", "hidden_states", parameters={"type": "tensor(float)", "shape": shape})
        rows = self.constant("token_shape", np.array([-1, block.hidden]))
        tokens = self.add("Reshape", "tokens", {"data": "hidden_states.value", "shape": rows}, "reshaped")
        logits = self._router(tokens)
        chosen, total = self._route(logits)
        routed = self._experts(tokens, chosen)
        if total:
            routed = self.add("Mul", "weighted", {"A": routed, "B": total}, "C")
        if block.shared is not None:
            routed = self.add("Add", "with_shared", {"A": routed, "B": self._shared(tokens)}, "C")
        like = self.add("Shape", "given_shape", {"data": "hidden_states.value"}, "shape")
        shaped = self.add("Reshape", "shaped", {"data": routed, "shape": like}, "reshaped")
        graph.add("Output", "output")
        graph.wire(shaped, "output.value")
        return graph

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

    def _experts(self, tokens: str, chosen: str) -> str:
        block, scheme = self._block, self._scheme
        tensors = _stacked(block, scheme)
        wires = {"input": tokens, "router_probs": chosen}
        for port, array in tensors.items():
            wires[port] = self.constant(port, array, trained=array.dtype == np.float32)
        parameters = activation(block) | {"k": block.routing.k}
        if scheme is None:
            return self.add("com.microsoft.MoE", "experts", wires, "output", **parameters)
        parameters["expert_weight_bits"] = scheme.bits
        if scheme.block_size:
            parameters["block_size"] = scheme.block_size
        return self.add("com.microsoft.QMoE", "experts", wires, "output", **parameters)

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

    def add(self, type: str, id: str, wires: Mapping[str, str], output: str, **parameters: Any) -> str:
        """A node, and wires from what it reads; where its output is."""
        self._graph.add(type, id, parameters=parameters)
        for port, source in wires.items():
            self._graph.wire(source, f"{id}.{port}")
        return f"{id}.{output}"

    def constant(self, id: str, array: np.ndarray | np.generic, *, trained: bool = False) -> str:
        """An initializer; one that is there already is taken."""
        if id not in self._graph.nodes:
            parameters: dict[str, Any] = {"tensor": Tensor.from_array(np.asarray(array))}
            if trained:
                parameters["training_type"] = TRAINED
            self._graph.add("Initializer", id, parameters=parameters)
        return f"{id}.value"

    def weight(self, id: str, name: str, shape: tuple[int, ...]) -> str:
        """An initializer with a tensor of the model, and its name."""
        source = self.constant(id, self._checkpoint.array(name, shape), trained=True)
        self._graph.set(id, "name", name)
        return source

    def _top(self, id: str, of: str, k: int, output: str) -> str:
        count = self.constant(f"{id}_count", np.array([k]))
        return self.add("TopK", id, {"X": of, "K": count}, output, axis=-1)

    def _sum(self, id: str, of: str) -> str:
        axis = self.constant("last_axis", np.array([-1]))
        return self.add("ReduceSum", id, {"data": of, "axes": axis}, "reduced", keepdims=1)


def _stacked(block: Block, scheme: Scheme | None) -> dict[str, np.ndarray]:
    """The tensors of all experts by port; with a scheme, no more than one expert's weights are held as floats."""
    found: dict[str, np.ndarray] = {}
    for number in range(block.experts):
        for port, array in _tensors(block.expert(number), scheme).items():
            if port not in found:
                found[port] = np.empty((block.experts, *array.shape), array.dtype)
            found[port][number] = array
    return found


def _tensors(expert: Expert, scheme: Scheme | None) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray | None] = {}
    for name, weights, bias in (("fc1", expert.fc1, expert.fc1_bias), ("fc2", expert.fc2, expert.fc2_bias)):
        if scheme is None:
            found[f"{name}_experts_weights"] = weights
        else:
            packed = quantized(weights, scheme).packed()
            ports = (f"{name}_experts_weights", f"{name}_scales", f"{name}_zero_points")
            found |= dict(zip(ports, packed, strict=True))
        found[f"{name}_experts_bias"] = bias
    return {port: array for port, array in found.items() if array is not None}


def activation(block: Block) -> dict[str, Any]:
    """The parameters of MoE and QMoE for a block's SwiGLU."""
    parameters: dict[str, Any] = {
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": block.alpha,
        "activation_beta": block.beta,
        "normalize_routing_weights": 1,
    }
    return parameters | ({"swiglu_limit": block.limit} if isfinite(block.limit) else {})


def _one(value: float) -> Tensor:
    return Tensor.from_array(np.array([value], np.float32))
