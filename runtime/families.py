"""The groups in which node types are listed and by which their titles are coloured."""

from __future__ import annotations

FAMILIES = {
    "graph": "Inputs and outputs",
    "mixture": "Mixture of experts",
    "math": "Mathematics",
    "reduction": "Reductions",
    "tensor": "Tensors",
    "logic": "Logic",
    "network": "Neural networks",
    "attention": "Attention",
    "recurrent": "Recurrent networks",
    "quantization": "Quantization",
    "loss": "Losses",
    "control": "Control flow",
    "sequence": "Sequences",
    "generator": "Generators",
    "image": "Images",
    "text": "Text",
    "classical": "Classical learning",
    "other": "Others",
}
"""What a palette calls each family, in its order."""

_SOURCES = {
    "math": "math",
    "reduction": "reduction",
    "tensor": "tensor",
    "logical": "logic",
    "nn": "network",
    "rnn": "recurrent",
    "quantization": "quantization",
    "controlflow": "control",
    "sequence": "sequence",
    "optional": "sequence",
    "generator": "generator",
    "image": "image",
    "object_detection": "image",
    "text": "text",
    "traditionalml": "classical",
}
"""By the folder of ONNX's sources in which an operator is defined."""

_CONTRIBUTED = (
    ("mixture", ("MoE",)),
    ("attention", ("Attention", "Rotary", "BeamSearch", "GreedySearch", "Sampling", "PositionBias", "Mamba")),
    (
        "quantization",
        ("Quant", "QLinear", "QOrdered", "NBits", "Integer", "QGemm", "Bnb4", "Fp4", "Fp8", "Float8"),
    ),
    ("network", ("Norm", "Conv", "Gelu", "SiLU", "SwiGLU", "Pool", "Dropout", "Softmax", "BiasAdd")),
    ("math", ("MatMul", "Gemm", "Inverse", "fft", "Complex", "CDist")),
    ("text", ("Embed", "Token", "NGram")),
    ("image", ("Grid", "Crop")),
)
"""By what the name of an operator of ONNX Runtime holds: its schemas do not say."""


def family_of(source: str, name: str) -> str:
    """The family of an operator: by the source file of its schema if that is ONNX's, else by its name."""
    folder = source.replace("\\", "/").rpartition("/defs/")[2].partition("/")[0]
    if folder in _SOURCES:
        return "attention" if "Attention" in name or "Rotary" in name else _SOURCES[folder]
    return next((family for family, parts in _CONTRIBUTED if any(part in name for part in parts)), "other")
