"""Where ONNX Runtime's CPU kernels are known to compute something else than the ONNX operator specification says.

Found by running ONNX's node tests; docs/conformance.md shows them. Such a node is run all the same, and a warning says
so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.backends.control import document_node
from runtime.errors import Finding, Severity

if TYPE_CHECKING:
    import onnx_ir as ir


def deviations(graph: ir.Graph) -> list[Finding]:
    """A warning about each node, also inside subgraphs, whose kernel deviates."""
    return [
        Finding(
            f"ONNX Runtime deviates from the operator's specification here: {text}.",
            document_node(node),
            severity=Severity.WARNING,
            remedy="The numpy backend follows it.",
            code="deviation",
        )
        for node in graph.all_nodes()
        if not node.domain and node.op_type in _RULES
        for applies, text in [_RULES[node.op_type]]
        if applies(node)
    ]


def _max_unpool(node: ir.Node) -> bool:
    return len(node.inputs) > 2 and node.inputs[2] is not None


def _resize(node: ir.Node) -> bool:
    mode = node.attributes.get("coordinate_transformation_mode")
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is None or mode.value != "align_corners" or scales is None:
        return False
    known = scales.const_value
    return known is None or any(float(scale) % 1 for scale in known.numpy().reshape(-1))


def _attention(node: ir.Node) -> bool:
    causal, mode = node.attributes.get("is_causal"), node.attributes.get("qk_matmul_output_mode")
    asked = len(node.outputs) > 3 and bool(node.outputs[3].name)
    return asked and causal is not None and bool(causal.value) and mode is not None and mode.value in (1, 2)


_RULES: dict[str, tuple[Callable[[ir.Node], bool], str]] = {
    "MaxUnpool": (_max_unpool, "with output_shape it does not map the indices from the shape without padding"),
    "Resize": (
        _resize,
        "with align_corners and scales it aligns to the rounded output size, not to the size times the scale",
    ),
    "Attention": (_attention, "qk_matmul_output has the lowest finite number where the causal mask has -infinity"),
}
