"""The QMoE node type: the operator's manual page as a declaration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from math import inf
from typing import Any, ClassVar

import numpy as np

from qmoe_node.activations import NAMES
from qmoe_node.attributes import QUANT_TYPES
from qmoe_node.checks import FLOAT_TYPES, examine
from runtime.node import FLOATS, In, Inference, Node, NodeContext, Out, Parameter
from runtime.types import TensorType, ValueType

_WEIGHTS = (
    "Codes of fewer than 8 bits are packed along the last axis, the lowest bits of a byte first. With quant_type 'fp4' "
    "and 'nvfp4' the shape is (experts, columns, rows / 2), and with 'fp8' one float8e4m3fn for each weight."
)
_SCALES = (
    "(experts, rows) for one scale for each row, or (experts, rows, ceil(columns / block_size)) for one for each block "
    "of block_size columns. float8e8m0 for 'fp4', float8e4m3fn for 'nvfp4', square blocks for 'fp8'."
)
_ZERO_POINTS = (
    "Packed along the rows, (experts, ceil(rows * bits / 8)), if scales are by row; along the blocks of each row, "
    "(experts, rows, ceil(blocks * bits / 8)), if they are by block. Without it the zero point is 2^(bits-1)."
)

LARGE_COPY = 64 << 20
"""Bytes of packed weights from which on it matters that ONNX Runtime has them a second time."""
COPIED = "its gradient is computed there, and ONNX Runtime's copy of its weights is given back meanwhile"


class QMoE(Node):
    """Quantized mixture of experts.

    Every token goes to the k experts whose logits in router_probs are largest. An expert computes
    fc2(activation(fc1(x))) with weights stored as small integers, w = (code - zero point) * scale, or as 4 or 8 bit
    floats; the output is the sum of the chosen experts' outputs, weighted by the softmax of the logits over all
    experts. With fc3, the activation is multiplied by fc3(x). fc1 has fusion * inter rows, where fusion is 2 when a
    gated activation finds gate and linear part in fc1 (swiglu_fusion 1 or 2), and otherwise 1.

    All sums are in float32 and are rounded to the input's type once, at the end.
    """

    domain = "com.microsoft"
    family = "mixture"
    type_constraints: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "T": FLOATS,
        "T1": ("tensor(uint8)", "tensor(float8e4m3fn)"),
        "T2": (*FLOATS, "tensor(float8e8m0)", "tensor(float8e4m3fn)"),
        "T4": ("tensor(float)",),
    }

    input = In("T", doc="The tokens: (tokens, hidden), or (batch, sequence, hidden).")
    router_probs = In(
        "T",
        ("tokens", "experts"),
        doc="The router's logits for every token and expert; the softmax is part of the operator. Two dimensions, "
        "also where input has three.",
    )
    fc1_experts_weights = In("T1", doc=f"Weights of fc1, (experts, fusion * inter, hidden * bits / 8). {_WEIGHTS}")
    fc1_scales = In("T2", optional=True, doc=f"Scales of fc1's weights. {_SCALES}")
    fc1_experts_bias = In("T", ("experts", "fusion * inter"), optional=True, doc="Added to fc1's output.")
    fc2_experts_weights = In("T1", doc=f"Weights of fc2, (experts, hidden, inter * bits / 8). {_WEIGHTS}")
    fc2_scales = In("T2", optional=True, doc=f"Scales of fc2's weights. {_SCALES}")
    fc2_experts_bias = In(
        "T", ("experts", "hidden"), optional=True, doc="Added to fc2's output, before the expert is weighted."
    )
    fc3_experts_weights = In(
        "T1",
        optional=True,
        doc=f"Weights of fc3, (experts, inter, hidden * bits / 8), where it is separate. {_WEIGHTS}",
    )
    fc3_scales = In("T2", optional=True, doc=f"Scales of fc3's weights. {_SCALES}")
    fc3_experts_bias = In("T", ("experts", "inter"), optional=True, doc="Added to fc3's output.")
    fc1_zero_points = In("T1", optional=True, doc=f"Zero points of fc1's weights. {_ZERO_POINTS}")
    fc2_zero_points = In("T1", optional=True, doc=f"Zero points of fc2's weights. {_ZERO_POINTS}")
    fc3_zero_points = In("T1", optional=True, doc=f"Zero points of fc3's weights. {_ZERO_POINTS}")
    router_weights = In(
        "T",
        ("tokens", "experts"),
        optional=True,
        doc="Mixing weights: taken from here at the chosen experts, while router_probs only chooses them.",
    )
    fc1_global_scale = In(
        "T4", ("experts",), optional=True, doc="A factor for each expert's fc1 weights (quant_type fp4, nvfp4, fp8)."
    )
    fc2_global_scale = In(
        "T4", ("experts",), optional=True, doc="A factor for each expert's fc2 weights (quant_type fp4, nvfp4, fp8)."
    )
    fc1_act_scale = In("T4", optional=True, doc="Scale of fc1's activations in modes that quantize them; not used.")
    fc2_act_scale = In("T4", optional=True, doc="Scale of fc2's activations in modes that quantize them; not used.")
    fc1_act_block_scale = In("T2", optional=True, doc="Block scales of fc1's activations in such modes; not used.")
    fc2_act_block_scale = In("T2", optional=True, doc="Block scales of fc2's activations in such modes; not used.")

    output = Out("T", same_shape_as="input", doc="The mixed outputs of the experts, in the input's shape and type.")

    activation_alpha = Parameter(
        float, default=0.0, means_default=0.0, operator_default=1.0, doc="alpha in swiglu's sigmoid(alpha * gate)."
    )
    activation_beta = Parameter(float, default=0.0, doc="beta in swiglu's factor (linear + beta).")
    activation_type = Parameter(
        str,
        default="relu",
        choices=NAMES,
        doc="The activation. gelu is the tanh form; swiglu and geglu take a gate and a linear part.",
    )
    block_size = Parameter(
        int,
        default=0,
        minimum=0,
        means_default=0,
        operator_default=0,
        doc="How many columns share a scale: a power of two of at least 16; 0 for one scale for each row. With "
        "quant_type 'fp8', the side of the square blocks.",
    )
    expert_weight_bits = Parameter(
        int,
        default=0,
        choices=(0, 2, 3, 4, 8),
        means_default=0,
        operator_default=4,
        doc="Bits of a quantized weight: 2, 3, 4 or 8; 0 stands for 4.",
    )
    k = Parameter(
        int,
        default=0,
        minimum=0,
        means_default=0,
        operator_default=1,
        doc="The number of experts chosen for each token; 0 stands for 1.",
    )
    normalize_routing_weights = Parameter(
        bool, default=False, doc="Whether the weights of the chosen experts are divided by their sum."
    )
    swiglu_fusion = Parameter(
        int,
        default=0,
        choices=(0, 1, 2),
        doc="Where a gated activation finds its parts: 0, gate in fc1 and linear part in fc3; 1, alternating rows of "
        "fc1; 2, gate in the first half of fc1's rows, linear part in the second.",
    )
    swiglu_limit = Parameter(
        float,
        default=0.0,
        minimum=0,
        means_default=0.0,
        operator_default=inf,
        doc="swiglu clamps the gate to at most this and the linear part to at most this in size; 0 stands for no "
        "limit.",
    )
    use_sparse_mixer = Parameter(
        bool, default=False, doc="Whether the mixing weights are those of the sparse mixer, which needs k = 2."
    )
    fc1_expert_weight_bits = Parameter(
        int, choices=(2, 3, 4, 8), doc="Bits of fc1's weights where they differ from expert_weight_bits."
    )
    fc2_expert_weight_bits = Parameter(
        int, choices=(2, 3, 4, 8), doc="Bits of fc2's weights where they differ from expert_weight_bits."
    )
    fc3_expert_weight_bits = Parameter(
        int, choices=(2, 3, 4, 8), doc="Bits of fc3's weights where they differ from expert_weight_bits."
    )
    quant_type = Parameter(
        str,
        default="int",
        choices=QUANT_TYPES,
        doc="How weights are stored: 'int'; 'fp4' (MXFP4: blocks of 32); 'nvfp4' (blocks of 16); 'fp8' (e4m3). "
        "'wfp4afp8' is known but not computed.",
    )
    weights_prepacked = Parameter(
        int,
        default=-1,
        choices=(-1, 0, 1),
        doc="The layout of the weights' bytes: -1 and 0 as fc1_experts_weights says; 1, for integers, groups of "
        "interleaved rows, and for 4-bit floats packing along the columns, (experts, rows, columns / 2).",
    )
    accuracy_level = Parameter(
        int,
        default=0,
        doc="How far a kernel may round activations (4: to 8 bits), as MatMulNBits has it. Exact execution ignores it.",
    )
    swiglu_limit_after_activation = Parameter(
        int,
        default=0,
        choices=(0, 1),
        doc="Whether swiglu clamps its gate after the sigmoid: min(gate * sigmoid(alpha * gate), limit).",
    )

    @classmethod
    def infer(cls, context: NodeContext) -> Inference:
        """The output has the input's type and shape; findings are everything that is certainly wrong."""
        _, findings = examine(context.id, context.inputs, context.attributes, values=context.values)
        given, logits = context.inputs.get("input"), context.inputs.get("router_probs")
        output = given if isinstance(given, TensorType) and not given.sparse else TensorType()
        if output.element is None and isinstance(logits, TensorType) and logits.element in FLOAT_TYPES:
            output = TensorType(logits.element, output.shape)
        return Inference({"output": output}, findings)

    @staticmethod
    def evaluate(inputs: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> tuple[np.ndarray]:
        """The NumPy kernel: `inputs` by port, `attributes` the operator's own; GraphError if they are malformed."""
        from qmoe_node.checks import layer_of
        from qmoe_node.kernel import forward

        return (forward(layer_of(inputs, attributes), inputs),)

    @staticmethod
    def numpy_pays(inputs: Mapping[str, ValueType], attributes: Mapping[str, Any], exact: bool) -> str:
        """Whether there are compiled loops for the layer; see `qmoe_node.compiled_tiles.why_compiled`."""
        from qmoe_node.compiled_tiles import why_compiled

        return why_compiled(inputs, attributes) if exact else ""

    @staticmethod
    def numpy_pays_now(shapes: Mapping[str, tuple[int, ...]], attributes: Mapping[str, Any]) -> bool:
        """Whether tokens are as many as compiled loops are best at; see `qmoe_node.compiled_tiles.is_best_at`."""
        from qmoe_node.compiled_tiles import is_best_at

        return is_best_at(shapes, attributes)

    @staticmethod
    def numpy_trains(inputs: Mapping[str, ValueType], attributes: Mapping[str, Any], exact: bool) -> str:
        """Whether ONNX Runtime's copy of the weights, in an order of its own, takes much memory."""
        types = [type for port, type in inputs.items() if port.endswith("_experts_weights")]
        shapes = [type.shape for type in types if isinstance(type, TensorType) and type.shape is not None]
        packed = sum(math.prod(size for size in shape if isinstance(size, int)) for shape in shapes)
        return COPIED if exact and packed >= LARGE_COPY else ""

    @staticmethod
    def lower(site: Any, exact: bool) -> None:
        """Rewrites the node for ONNX Runtime's CPU kernels; see `qmoe_node.lowering.lower`."""
        from qmoe_node.lowering import lower

        lower(site, exact)

    @staticmethod
    def expand(site: Any) -> None:
        """Rewrites the node as a call of a function of standard operators; see `qmoe_node.portable.expand`."""
        from qmoe_node.portable import expand

        expand(site)

    @staticmethod
    def gradient(call: Any) -> Any:
        """Writes one QMoEGrad node; see `qmoe_node.grad.gradient`."""
        from qmoe_node.grad import gradient

        return gradient(call)

    @staticmethod
    def routing(inputs: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Where the tokens go: `experts` int64 [tokens, k], best first, and their mixing `weights` float32 [tokens, k].

        `inputs` and `attributes` are those of `evaluate`.
        """
        from qmoe_node.checks import layer_of
        from qmoe_node.kernel import route_tokens

        chosen = route_tokens(layer_of(inputs, attributes), inputs)
        return {"experts": chosen.indices, "weights": chosen.weights}

    @staticmethod
    def weight_errors(
        types: Mapping[str, ValueType],
        arrays: Mapping[str, np.ndarray],
        attributes: Mapping[str, Any],
        floats: Mapping[str, np.ndarray],
    ) -> Iterator[dict[str, float]]:
        """For each expert, how far its weights are from float ones; see `qmoe_node.twin.weight_errors`."""
        from qmoe_node.twin import weight_errors

        return weight_errors(types, arrays, attributes, floats)

    @staticmethod
    def floats_in_checkpoint(folder: Any, block: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The parameters and tensors of a MoE node with a block's floats; see `qmoe_node.block_graphs.floats`."""
        from qmoe_node.block_graphs import floats

        return floats(folder, block)

    @staticmethod
    def expert_differences(first: Any, second: Any, own: Any) -> Any:
        """How far the experts of two mixtures are apart; see `qmoe_node.differences.expert_differences`."""
        from qmoe_node.differences import expert_differences

        return expert_differences(first, second, own)

    @staticmethod
    def tensor_views(port: str, type_: TensorType, attributes: Mapping[str, Any]) -> Any:
        """The codes that weights and zero points hold; see `qmoe_node.views.tensor_views`."""
        from qmoe_node.views import tensor_views

        return tensor_views(port, type_, attributes)
