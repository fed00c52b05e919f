"""`make gradients` writes docs/gradients.md: every operator with a gradient, how it is found, and the largest error.

The cases are ONNX's own node tests, in double precision, beside central differences.
"""

from __future__ import annotations

import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from runtime import Graph, StudioError

PAGE = Path(__file__).parent.parent / "docs" / "gradients.md"

CORNERS = frozenset(
    """test_clip_min_greater_than_max test_elu_example test_leakyrelu_example test_selu_example test_celu
    test_thresholdedrelu_example test_reduce_min_default_axes_keepdims_example test_l2normalization_axis_0
    test_l1normalization_axis_last test_maxpool_3d_dilations test_maxpool_3d_dilations_use_ref_impl
    test_reduce_max_default_axes_keepdim_example test_hardsigmoid_example test_relu""".split()
)
"""Cases at a corner of the operator, where there is no slope to measure."""
NARROW = ("test_layer_normalization", "test_group_normalization")
"""Cases whose operator gives out float32 numbers, or computes in float32, whatever it is given."""
UNFIT = (
    "test_training_dropout",
    "test_dropout_random",
    "softmax_precision",
    "_opset19",
)
"""Cases that draw random numbers, ask for less precision, or are of a version whose form the newest no longer has."""
LEFT_OUT = frozenset("AffineGrid Cast CastLike Col2Im DequantizeLinear Dropout GridSample Resize Split".split())
"""Operators whose cases do not show much in double precision, or have sizes that are no constants: tests of their own
try them."""
SINGLE = ("CausalConvWithState", "RotaryEmbedding")
"""Operators without double precision that have a gradient by their function body: a test of their own tries them."""
FROM_WHICH_ON = 23
"""The version of the standard operators that the cases are given, if they have an older one."""


@cache
def all_cases() -> list[Any]:
    """ONNX's node tests of one node each."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [case for case in collect_testcases(None) if len(case.model.graph.node) == 1]


def operator_of(case: Any) -> str:
    """The operator that a case tests."""
    node = case.model.graph.node[0]
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def fits(case: Any) -> bool:
    """Whether slopes can be measured: its floats are inputs, away from corners."""
    name = case.name
    if name in CORNERS or name.startswith(NARROW) or any(part in name for part in UNFIT) or name.endswith("_expanded"):
        return False
    kinds = {value.dtype.kind for value in case.data_sets[0][0] if isinstance(value, np.ndarray)}
    outputs = {value.dtype.kind for value in case.data_sets[0][1] if isinstance(value, np.ndarray)}
    return "f" in kinds and "f" in outputs


@cache
def node_cases() -> dict[str, Any]:
    """A case by operator, the smallest one, of each standard operator that has a gradient."""
    from runtime.gradients.table import FORMS, RULES

    chosen: dict[str, Any] = {}
    for case in all_cases():
        operator = operator_of(case)
        known = operator in RULES or operator in FORMS or operator in ("Attention", "CenterCropPad")
        if not known or not fits(case) or operator in LEFT_OUT:
            continue
        sizes = [np.asarray(value).size for value in case.data_sets[0][0]]
        size = sum(sizes) if all(sizes) else 1 << 30
        if operator not in chosen or size < chosen[operator][0]:
            chosen[operator] = size, case
    return {operator: case for operator, (_, case) in chosen.items()}


def case_graph(case: Any) -> tuple[Graph, dict[str, np.ndarray]]:
    """A case as a graph in double precision, and its inputs."""
    from tests.conformance import _graph, plain

    graph: Graph = _graph(case.model)
    graph.set("", "", max(FROM_WHICH_ON, graph.opsets.get("", 1)), section="opsets")
    inputs: dict[str, np.ndarray] = {}
    ids = {str(s.parameters.get("name") or id): id for id, s in graph.nodes.items() if s.type == "Input"}
    for value_info, given in zip(case.model.graph.input, case.data_sets[0][0], strict=False):
        value = plain(given)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            value = value.astype(np.float64)
            graph.set(ids[value_info.name], "type", "tensor(double)")
        inputs[value_info.name] = value
    for id, state in list(graph.nodes.items()):
        if state.type == "Output":
            for key in ("type", "shape"):
                if key in state.parameters:
                    graph.set(id, key, None)
    return graph, inputs


def main() -> int:
    """Writes the page; 1 if there is a case whose gradient is wrong."""
    from runtime import catalog
    from runtime.gradients import table
    from tests.gradient_checks import compare

    found: dict[str, list[float]] = {}
    wrong = []
    for case in filter(fits, all_cases()):
        operator = operator_of(case)
        if operator in table.FLAT or operator in LEFT_OUT:
            continue
        try:
            comparison = compare(*case_graph(case), native=False)
        except StudioError:
            continue
        if not comparison.tried:
            continue
        found.setdefault(operator, []).append(comparison.slopes)
        if comparison.slopes > 2e-5:
            wrong.append(f"{case.name}: {comparison.slopes:.1e}")
    ways = dict.fromkeys((*found, *SINGLE), "by its function body")
    ways |= dict.fromkeys(table.FORMS, "by its form in simpler operators")
    ways |= dict.fromkeys(table.RULES, "by a rule")
    ways |= dict.fromkeys(table.WITH_SUBGRAPHS, "by its subgraphs")
    own = [cls for cls in catalog.all_types() if cls.gradient is not None]
    ways |= {cls.type_name(): "by a rule of its own" for cls in own}
    ways |= {cls.type_name(): "written with standard operators" for cls in catalog.all_types() if cls.form is not None}
    lines = [
        "# Operators with a gradient",
        "",
        f"{len(ways)} operators. The errors are the largest differences from central differences, relative to the",
        "largest gradient, over ONNX's own node tests of the operator, in double precision on the NumPy backend; the",
        "test suite tries these and other cases, on both backends. Written by `make gradients`.",
        "",
        "| operator | gradient | cases | largest error |",
        "|---|---|---|---|",
    ]
    for operator in sorted(ways):
        errors = found.get(operator, [])
        error = f"{max(errors):.0e}" if errors else "see the tests"
        lines.append(f"| {operator} | {ways[operator]} | {len(errors) or ''} | {error} |")
    lines += [
        "",
        f"{len(table.FLAT)} operators have no slope anywhere, or give no floats: nothing flows back through them, and",
        f"nothing is missing where it does not. {', '.join(sorted(table.FLAT))}.",
        "",
    ]
    PAGE.write_text("\n".join(lines), encoding="utf-8")
    print(f"{len(ways)} operators, {sum(map(len, found.values()))} cases, {len(wrong)} of them wrong")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    warnings.simplefilter("ignore")
    sys.exit(main())
