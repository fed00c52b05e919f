"""What is wrong with a QMoE node: one examination for nodes in a graph and for nodes on arrays.

It works with as much as is known of types and shapes, and complains only about what is certain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from qmoe_node.attributes import ATTRIBUTES, GLOBAL_SCALES, PROJECTIONS, check_presence, read_settings
from qmoe_node.layer import Layer, Projection, Settings
from qmoe_node.packing import default_zero_point, packed_length, zero_points
from runtime.errors import Finding, GraphError, Severity
from runtime.types import ElementType, Shape, TensorType, ValueType, format_shape, kind_of

INPUTS = (
    "input",
    "router_probs",
    "fc1_experts_weights",
    "fc1_scales",
    "fc1_experts_bias",
    "fc2_experts_weights",
    "fc2_scales",
    "fc2_experts_bias",
    "fc3_experts_weights",
    "fc3_scales",
    "fc3_experts_bias",
    "fc1_zero_points",
    "fc2_zero_points",
    "fc3_zero_points",
    "router_weights",
    "fc1_global_scale",
    "fc2_global_scale",
    "fc1_act_scale",
    "fc2_act_scale",
    "fc1_act_block_scale",
    "fc2_act_block_scale",
)
REQUIRED = ("input", "router_probs", "fc1_experts_weights", "fc2_experts_weights")

FLOAT_TYPES = (ElementType.FLOAT, ElementType.FLOAT16, ElementType.BFLOAT16)
SCALE_TYPES = {
    "int": FLOAT_TYPES,
    "fp4": (ElementType.FLOAT8E8M0,),
    "nvfp4": (ElementType.FLOAT8E4M3FN,),
    "fp8": FLOAT_TYPES,
}
FLOAT4_BLOCKS = {"fp4": 32, "nvfp4": 16}

SHAPING = {
    "expert_weight_bits",
    *(f"{fc}_expert_weight_bits" for fc in PROJECTIONS),
    "activation_type",
    "block_size",
    "quant_type",
    "swiglu_fusion",
    "weights_prepacked",
}
"""The attributes that say which shapes fit: while one of them is malformed, no shape can be called wrong."""

Dim = int | None


def examine(
    node: str,
    inputs: Mapping[str, ValueType],
    attributes: Mapping[str, Any],
    *,
    values: Mapping[str, np.ndarray] | None = None,
    alone: bool = False,
) -> tuple[Layer | None, tuple[Finding, ...]]:
    """The layer's geometry, None while it is not known or not valid, and everything that is wrong.

    `values` are the inputs whose numbers are known. A node that is `alone` is also checked for what a graph's own
    check looks at: missing inputs and names that the operator does not have.
    """
    examination = _Examination(node, inputs, attributes)
    if alone:
        examination.names()
    layer = examination.run()
    if layer is not None and values:
        examination.numbers(layer, values)
    findings = tuple(examination.findings)
    return (None if any(finding.severity is Severity.ERROR for finding in findings) else layer), findings


def layer_of(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any], node: str = "QMoE") -> Layer:
    """The layer that these arrays and operator attributes make; GraphError with every finding if they make none."""
    types: dict[str, ValueType] = {}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise GraphError.at(node, name, f"expected a NumPy array; got {type(array).__name__}.", code="type")
        try:
            types[name] = TensorType(ElementType.of(array.dtype), array.shape)
        except TypeError as error:
            raise GraphError.at(node, name, f"{error}.", code="type") from error
    layer, findings = examine(node, types, attributes, values=arrays, alone=True)
    if layer is None:
        raise GraphError(finding for finding in findings if finding.severity is Severity.ERROR)
    return layer


class _Examination:
    """The state of one examination: what is known so far, and the findings."""

    def __init__(self, node: str, inputs: Mapping[str, ValueType], attributes: Mapping[str, Any]) -> None:
        self.node = node
        self.attributes = attributes
        self.findings: list[Finding] = []
        self.inputs: dict[str, TensorType] = {}
        for name, value in inputs.items():
            if isinstance(value, TensorType) and not value.sparse:
                self.inputs[name] = value
            else:
                self.complain(name, f"expected a tensor; got {kind_of(value)}.", code="type")
                self.inputs[name] = TensorType()
        self.settings: Settings = read_settings(attributes, self.complain)

    def complain(
        self, port: str, message: str, remedy: str = "", *, code: str, severity: Severity = Severity.ERROR
    ) -> None:
        self.findings.append(Finding(message, node=self.node, port=port, remedy=remedy, code=code, severity=severity))

    def names(self) -> None:
        for name in self.inputs:
            if name not in INPUTS:
                self.complain(name, f"QMoE has no input {name!r}.", code="unknown-input")
        for name in self.attributes:
            if name not in ATTRIBUTES:
                self.complain(name, f"QMoE has no attribute {name!r}.", code="unknown-attribute")
        for name in REQUIRED:
            if name not in self.inputs:
                self.complain(name, "expected a tensor; nothing is connected.", code="missing-input")

    def run(self) -> Layer | None:
        check_presence(self.settings, self.inputs, self.complain)
        self.element_types()
        self.ranks()
        layer = None
        if not any(finding.code == "attribute" and finding.port in SHAPING for finding in self.findings):
            layer = self.sizes()
        return None if any(finding.severity is Severity.ERROR for finding in self.findings) else layer

    def shape(self, port: str) -> Shape | None:
        value = self.inputs.get(port)
        return None if value is None else value.shape

    def dim(self, port: str, axis: int, rank: int | None = None) -> Dim:
        """The known size of one axis, if the shape has the rank that it should have."""
        shape = self.shape(port)
        if shape is None or (rank is not None and len(shape) != rank) or len(shape) <= axis:
            return None
        size = shape[axis]
        return size if isinstance(size, int) else None

    @property
    def projections(self) -> tuple[str, ...]:
        return PROJECTIONS if "fc3_experts_weights" in self.inputs else PROJECTIONS[:2]

    # Types

    def element_types(self) -> None:
        quant_type = self.settings.quant_type
        self.agree(
            ("input", "router_probs", "router_weights", *(f"{fc}_experts_bias" for fc in PROJECTIONS)), FLOAT_TYPES
        )
        if quant_type in SCALE_TYPES:
            weights = ElementType.FLOAT8E4M3FN if quant_type == "fp8" else ElementType.UINT8
            self.agree(tuple(f"{fc}_experts_weights" for fc in PROJECTIONS), (weights,))
            self.agree(tuple(f"{fc}_scales" for fc in PROJECTIONS), SCALE_TYPES[quant_type])
        self.agree(tuple(f"{fc}_zero_points" for fc in PROJECTIONS), (ElementType.UINT8,))
        self.agree((*GLOBAL_SCALES, "fc1_act_scale", "fc2_act_scale"), (ElementType.FLOAT,))
        if quant_type == "int" and 3 in self.settings.bits:
            self.agree(("input",), FLOAT_TYPES[1:], "3-bit weights need ")
            self.agree(("input", *(f"{fc}_scales" for fc in PROJECTIONS)), FLOAT_TYPES, "3-bit weights need ")

    def agree(self, ports: Iterable[str], allowed: tuple[ElementType, ...], why: str = "") -> None:
        """Complains about ports whose element type is not allowed, or differs from the first one's."""
        first = ""
        for port in ports:
            element = self.inputs[port].element if port in self.inputs else None
            if element is None:
                continue
            if element not in allowed:
                expected = " or ".join(f"tensor({kind})" for kind in allowed)
                self.complain(port, f"{why or 'expected '}{expected}; got tensor({element}).", code="type")
            elif not first:
                first = port
            elif element is not self.inputs[first].element:
                self.complain(
                    port,
                    f"{why or 'expected '}tensor({self.inputs[first].element}), the type of {first}; "
                    f"got tensor({element}).",
                    code="type",
                )

    # Shapes

    def ranks(self) -> None:
        allowed: dict[str, tuple[int, ...]] = {"input": (2, 3)}
        for name in INPUTS[1:]:
            if name.endswith(("_experts_weights", "block_scale")):
                allowed[name] = (3,)
            elif name.endswith(("global_scale", "act_scale")):
                allowed[name] = (1,)
            elif name.endswith("_scales"):
                allowed[name] = (2, 3) if self.settings.quant_type == "int" else (3,)
            elif name.endswith("zero_points"):
                allowed[name] = (2, 3)
            else:
                allowed[name] = (2,)
        for name, ranks in allowed.items():
            shape = self.shape(name)
            if shape is not None and len(shape) not in ranks:
                expected = " or ".join(str(rank) for rank in ranks)
                self.complain(
                    name, f"expected {expected} dimensions; got {len(shape)}: {format_shape(shape)}.", code="shape"
                )
                self.inputs[name] = TensorType(self.inputs[name].element)

    def layout(self) -> str:
        settings = self.settings
        if settings.quant_type in FLOAT4_BLOCKS:
            return "float4" if settings.weights_prepacked == 1 else "columns"
        if settings.quant_type == "fp8":
            return "float8"
        return "interleaved" if settings.weights_prepacked == 1 else "rows"

    def weight_size(self, fc: str) -> tuple[Dim, Dim]:
        """Rows and columns of a projection as its weight tensor alone tells them."""
        port, layout = f"{fc}_experts_weights", self.layout()
        middle, last = self.dim(port, 1), self.dim(port, 2)
        if layout == "columns":
            return (None if last is None else 2 * last), middle
        if layout == "float4":
            return None, None
        bits = 8 if layout == "float8" else self.settings.bits[PROJECTIONS.index(fc)]
        return middle, (last * 8 // bits if last is not None and bits != 3 else None)

    def sizes(self) -> Layer | None:
        """Finds the layer's sizes by majority, so that the odd tensor is the one that is blamed, and compares."""
        settings = self.settings
        fusion = settings.fusion
        size = {fc: self.weight_size(fc) for fc in PROJECTIONS}
        experts = _majority(
            [self.dim(f"{fc}_experts_weights", 0) for fc in PROJECTIONS]
            + [self.dim("router_probs", 1), self.dim("router_weights", 1)]
            + [self.dim(f"{fc}_{what}", 0) for fc in PROJECTIONS for what in ("scales", "experts_bias")]
        )
        input_shape = self.shape("input")
        plain_scales = settings.quant_type != "fp8"

        def rows(fc: str) -> list[Dim]:
            scales = [self.dim(f"{fc}_scales", 1)] if plain_scales else []
            return [size[fc][0], *scales, self.dim(f"{fc}_experts_bias", 1)]

        last_axis = None if input_shape is None else self.dim("input", len(input_shape) - 1)
        hidden = _majority([last_axis, *rows("fc2"), size["fc1"][1], size["fc3"][1]])
        fused = [None if count is None or count % fusion else count // fusion for count in rows("fc1")]
        inter = _majority([size["fc2"][1], *fused, *rows("fc3")])
        fused_rows = None if inter is None else fusion * inter
        projections = {
            "fc1": self.projection("fc1", experts, fused_rows, hidden),
            "fc2": self.projection("fc2", experts, hidden, inter),
        }
        if "fc3" in self.projections:
            projections["fc3"] = self.projection("fc3", experts, inter, hidden)
        self.block_forms()
        self.tokens(experts, hidden)
        if experts is not None and settings.k > experts:
            self.complain(
                "k", f"expected at most {experts}, the number of experts; got {settings.k}.", code="attribute"
            )
        for name in (*GLOBAL_SCALES, "fc1_act_scale", "fc2_act_scale"):
            if name in self.inputs and not (name.endswith("act_scale") and self.dim(name, 0) == 1):
                self.compare(name, (experts,), "[experts]")
        fc1, fc2 = projections["fc1"], projections["fc2"]
        if experts is None or hidden is None or inter is None or fc1 is None or fc2 is None:
            return None
        for columns, fc in ((hidden, "fc1"), (inter, "fc2")):
            if not columns:
                self.complain(f"{fc}_experts_weights", "expected at least one column; got 0.", code="shape")
                return None
        return Layer(experts, hidden, inter, settings, fc1, fc2, projections.get("fc3"))

    def tokens(self, experts: Dim, hidden: Dim) -> None:
        shape = self.shape("input")
        count: Dim = 1
        if shape is None:
            count = None
        else:
            self.compare("input", (*(None for _ in shape[:-1]), hidden), "[..., hidden]")
            for size in shape[:-1]:
                count = count * size if count is not None and isinstance(size, int) else None
        if count is None:
            count = self.dim("router_probs", 0)
        for port in ("router_probs", "router_weights"):
            self.compare(port, (count, experts), "[tokens, experts]")

    def projection(self, fc: str, experts: Dim, rows: Dim, columns: Dim) -> Projection | None:
        """Compares one projection's tensors with the sizes that they should have."""
        settings, layout = self.settings, self.layout()
        bits = {"float8": 8, "float4": 4, "columns": 4}.get(layout, settings.bits[PROJECTIONS.index(fc)])
        self.weights(fc, experts, rows, columns, bits, layout)
        row_names = "fusion * inter" if fc == "fc1" and settings.fusion == 2 else "hidden" if fc == "fc2" else "inter"
        self.compare(f"{fc}_experts_bias", (experts, rows), f"[experts, {row_names}]")
        scales = f"{fc}_scales"
        if layout == "float8":
            block_size = settings.block_size
            blocks = _ceil(columns, block_size) if block_size else 1
            if block_size:
                self.compare(
                    scales,
                    (experts, _ceil(rows, block_size), blocks),
                    f"[experts, ceil({row_names} / {block_size}), ceil(columns / {block_size})]",
                )
        elif layout in ("float4", "columns"):
            block_size = FLOAT4_BLOCKS[settings.quant_type]
            blocks = _ceil(columns, block_size)
            if settings.block_size not in (0, block_size) and fc == "fc1":
                self.complain(
                    "block_size",
                    f"quant_type {settings.quant_type!r} has blocks of {block_size}: expected 0 or {block_size}; "
                    f"got {settings.block_size}.",
                    code="attribute",
                )
            if columns is not None and columns % block_size:
                self.complain(
                    f"{fc}_experts_weights",
                    f"quant_type {settings.quant_type!r} needs columns in whole blocks of {block_size}; "
                    f"got {columns} columns.",
                    code="shape",
                )
            self.compare(scales, (experts, rows, blocks), f"[experts, {row_names}, columns / {block_size}]")
        else:
            shape = self.shape(scales)
            blockwise = settings.block_size > 0 and shape is not None and len(shape) == 3
            block_size = settings.block_size if blockwise else 0
            blocks = _ceil(columns, block_size) if blockwise else 1
            if shape is not None:
                self.integer_scales(fc, experts, rows, blocks, row_names)
            self.integer_zero_points(fc, experts, rows, blocks, bits, row_names)
            if 3 in settings.bits and blockwise and columns is not None and columns % block_size:
                self.complain(
                    "block_size",
                    f"3-bit weights need columns in whole blocks; got {columns} columns and blocks of {block_size}.",
                    code="combination",
                )
            if not blockwise:
                block_size = columns or 0
        if rows is None or columns is None or blocks is None:
            return None
        return Projection(fc, rows, columns, bits, block_size, blocks, layout)

    def weights(self, fc: str, experts: Dim, rows: Dim, columns: Dim, bits: int, layout: str) -> None:
        port = f"{fc}_experts_weights"
        in_byte = 8 // bits
        if bits != 3 and columns is not None and columns % in_byte and layout != "columns":
            self.complain(
                port,
                f"{bits}-bit rows must end with a whole byte: expected a multiple of {in_byte} columns; got {columns}.",
                code="shape",
            )
            return
        length = None if columns is None else packed_length(columns, bits)
        if layout == "columns":
            if rows is not None and rows % 2:
                self.complain(
                    port, f"FP4 columns must end with a whole byte: expected even rows; got {rows}.", code="shape"
                )
                return
            halved = None if rows is None else rows // 2
            self.compare(port, (experts, columns, halved), "[experts, columns, rows / 2]")
            return
        if layout == "float4":
            alternative = (experts, columns, None if rows is None or rows % 2 else rows // 2)
            if _fits(self.shape(port), alternative):
                return
        if layout == "interleaved":
            group = 16 // bits if bits in (2, 4) else 1
            if (columns is not None and columns % 64) or (rows is not None and rows % group):
                self.complain(
                    port,
                    f"prepacked weights come in groups of {group} rows by 64 columns; got {rows} by {columns}.",
                    "Store the weights unpacked by row and set weights_prepacked to 0.",
                    code="shape",
                )
        packing = {1: "one a byte", 2: "two codes a byte", 4: "four codes a byte"}[in_byte] if bits != 3 else "3 bits"
        self.compare(port, (experts, rows, length), f"[experts, rows, columns * {bits} / 8], {packing}")

    def integer_scales(self, fc: str, experts: Dim, rows: Dim, blocks: Dim, row_names: str) -> None:
        port, block_size = f"{fc}_scales", self.settings.block_size
        shape = self.shape(port)
        if shape is None:
            return
        if len(shape) == 2:
            self.compare(port, (experts, rows), f"[experts, {row_names}]")
            if 3 in self.settings.bits:
                self.complain(
                    port, "3-bit weights need block-wise scales: expected 3 dimensions; got 2.", code="combination"
                )
        elif block_size:
            self.compare(port, (experts, rows, blocks), f"[experts, {row_names}, ceil(columns / {block_size})]")
        else:
            self.compare(port, (experts, rows, 1), f"[experts, {row_names}, 1], as there is no block_size")

    def integer_zero_points(self, fc: str, experts: Dim, rows: Dim, blocks: Dim, bits: int, row_names: str) -> None:
        port = f"{fc}_zero_points"
        shape, scales = self.shape(port), self.shape(f"{fc}_scales")
        if shape is None:
            return
        if scales is None:
            self.compare(port, (experts, *(None for _ in shape[1:])), "[experts, ...]")
            return
        blockwise = self.settings.block_size > 0 and len(scales) == 3
        if blockwise:
            length = None if blocks is None else packed_length(blocks, bits)
            self.compare(port, (experts, rows, length), f"[experts, {row_names}, ceil(blocks * {bits} / 8)]")
        else:
            length = None if rows is None else packed_length(rows, bits)
            self.compare(port, (experts, length), f"[experts, ceil({row_names} * {bits} / 8)], as scales are by row")

    def block_forms(self) -> None:
        """Row-wise or block-wise is one choice for the whole layer."""
        if self.settings.quant_type != "int" or not self.settings.block_size:
            return
        ranks = {}
        for fc in self.projections:
            shape = self.shape(f"{fc}_scales")
            if shape is not None:
                ranks[fc] = len(shape)
        for fc, rank in ranks.items():
            if sum(other == rank for other in ranks.values()) * 2 <= len(ranks) and len(set(ranks.values())) > 1:
                self.complain(
                    f"{fc}_scales",
                    f"expected scales of the same form for all projections; got {rank} dimensions here and "
                    f"{5 - rank} elsewhere.",
                    "Scale all projections by row (2 dimensions) or all by block (3).",
                    code="shape",
                )

    def compare(self, port: str, expected: tuple[Dim, ...], meaning: str) -> None:
        shape = self.shape(port)
        if shape is not None and not _fits(shape, expected):
            self.complain(
                port,
                f"expected shape {format_shape(expected)} ({meaning}); got {format_shape(shape)}.",
                code="shape",
            )

    # Numbers

    def numbers(self, layer: Layer, values: Mapping[str, np.ndarray]) -> None:
        """What 3-bit weights demand of numbers: scales finite and not negative, zero points in the middle."""
        if self.settings.quant_type != "int" or 3 not in self.settings.bits:
            return
        for projection in layer.projections:
            scales = values.get(projection.port("scales"))
            if scales is not None:
                widened = scales.astype(np.float32)
                if not bool(np.all(np.isfinite(widened) & (widened >= 0))):
                    self.complain(
                        projection.port("scales"),
                        "3-bit weights need finite scales that are not negative; got others.",
                        code="value",
                    )
            zeros = values.get(projection.port("zero_points"))
            middle = default_zero_point(projection.bits)
            if zeros is not None and projection.bits == 3:
                codes = zero_points(zeros, projection.bits, projection.rows, projection.blocks)
                if not bool(np.all(codes == middle)):
                    self.complain(
                        projection.port("zero_points"),
                        f"3-bit zero points must all be {middle}; got others.",
                        "Leave the zero points out.",
                        code="value",
                    )


def _majority(sizes: Iterable[Dim]) -> Dim:
    """The most frequent known size; of equally frequent ones the first."""
    counts = Counter(size for size in sizes if size is not None)
    return counts.most_common(1)[0][0] if counts else None


def _ceil(count: Dim, size: int) -> Dim:
    return None if count is None else -(-count // size)


def _fits(shape: Shape | None, expected: tuple[Dim, ...]) -> bool:
    """Whether the shape can be the expected one: unknown and symbolic sizes fit everything."""
    if shape is None:
        return True
    if len(shape) != len(expected):
        return False
    return all(
        not isinstance(size, int) or wanted is None or size == wanted
        for size, wanted in zip(shape, expected, strict=True)
    )
