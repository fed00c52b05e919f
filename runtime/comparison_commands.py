"""What `qmoe compare` does: runs two graphs, prints how far they are apart, draws it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from runtime.check import Checker
from runtime.comparison import Comparison, WireDifference, compare
from runtime.comparison_pictures import save_pictures
from runtime.differences import Difference
from runtime.errors import FileError, Finding, GraphError
from runtime.graph import Graph, PortRef
from runtime.guard import input_names
from runtime.mixture_differences import ExpertDifference, MixtureDifference
from runtime.nodes.terminals import Initializer
from runtime.reports import (
    as_dict,
    console,
    description,
    generated_values,
    given_values,
    opened,
    plain,
    print_findings,
    watched,
)
from runtime.twins import with_floats
from runtime.types import ValueType

WORST = "bold red"


def compare_files(
    first: Path,
    second: Path | None,
    *,
    twin: Path | None,
    inputs: Sequence[str],
    sizes: Mapping[str, int],
    seed: int,
    backend: Any,
    threads: int | None,
    pictures: Path | None,
    as_json: bool,
) -> None:
    """Prints how far the second file's graph is from the first one's on the same inputs.

    Without a second file, the first one's is compared with itself in floats: with the float twins that its mixtures
    remember, or those in `twin`.
    """
    if second is not None and twin is not None:
        text = "Two graphs are compared with each other; float twins are for one graph alone."
        raise GraphError(Finding(text, remedy="Leave out --twin or B.", code="option"))
    if pictures is not None and pictures.exists() and not pictures.is_dir():
        raise FileError(pictures, "is a file; pictures are written into a folder.", code="name")
    graph = opened(first)
    graphs = (graph, opened(second)) if second is not None else (with_floats(graph, first, twin), graph)
    fed = _fed(*graphs)
    given = given_values(inputs, fed)
    feeds = given | generated_values(fed, given, sizes, seed)
    comparison = watched(compare, *graphs, feeds, backend=backend, threads=threads)
    drawn = save_pictures(pictures, comparison) if pictures is not None else []
    facts = {name: description(value) | {"generated": name not in given} for name, value in feeds.items()}
    if as_json:
        names = (str(first), str(second)) if second is not None else (f"{first} in floats", str(first))
        head = {"first": names[0], "second": names[1], "backend": backend, "inputs": facts}
        report = head | as_data(comparison) | {"pictures": [str(path) for path in drawn]}
        print(json.dumps(report, indent=2, allow_nan=False))
        return
    for name, fact in facts.items():
        console.print(plain(f"in {name}: {fact['type']}{' (generated)' if fact['generated'] else ''}"))
    _print_wires(comparison)
    for mixture in comparison.mixtures:
        console.print()
        _print_mixture(mixture, *graphs)
    print_findings(comparison.findings)
    for path in drawn:
        console.print(f"Drawn into {path}.", markup=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The inputs of both graphs: what one has under a name of its own stands beside the other's."""

    inputs: dict[str, ValueType]
    optional: frozenset[str]


def _fed(first: Graph, second: Graph) -> _Inputs:
    from runtime.matching import match

    checkers = Checker(first), Checker(second)
    names = input_names(first), input_names(second)
    shared = set(match(first, second).nodes.values())
    inputs = {name: checkers[0].type_of(PortRef(id, "value")) for id, name in names[0].items()}
    for id, name in names[1].items():
        if id not in shared and name not in inputs:
            inputs[name] = checkers[1].type_of(PortRef(id, "value"))
    defaults = {}
    for graph, checker in zip((first, second), checkers, strict=True):
        for id, state in graph.nodes.items():
            if state.type == Initializer.type_name() and state.parameters.get("overridable"):
                defaults[str(state.parameters.get("name") or id)] = checker.type_of(PortRef(id, "value"))
    return _Inputs(defaults | inputs, frozenset(defaults) - set(inputs))


# -- tables -----------------------------------------------------------------------------------------------------------


def _print_wires(comparison: Comparison) -> None:
    worst, alone = comparison.worst, comparison.worst_isolated
    table = Table("wire", "shape", box=None, pad_edge=False)
    for heading in ("SNR, dB", "cosine", "largest", "alone, dB", "not finite"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    equal = 0
    for wire in comparison.wires:
        if wire.is_constant and wire.accumulated.is_exact:
            equal += 1
            continue
        found, own = wire.accumulated, wire.isolated
        marks = [word for word, one in (("worst", worst), ("adds most", alone)) if one is wire]
        table.add_row(
            plain(named(wire)),
            plain(f"{wire.element} {list(wire.shape)}"),
            decibel_text(found),
            "" if found.is_exact or found.cosine is None else f"{found.cosine:.6f}",
            "" if found.is_exact else f"{found.largest:.3g}",
            "" if own is None else decibel_text(own),
            f"{found.not_finite:,}" + (f" ({found.spoiled:,} other)" if found.spoiled else "")
            if found.not_finite
            else "",
            ", ".join(marks),
            style=WORST if worst is wire else None,
        )
    console.print(table)
    if equal:
        console.print(f"Not shown: {equal} values that do not depend on the inputs and are exact.")


def named(wire: WireDifference) -> str:
    """A wire by the second graph's node and port, after the first one's where these differ, and as an output."""
    text = str(wire.second) if wire.first == wire.second else f"{wire.first} -> {wire.second}"
    return f"{text} ({wire.output})" if wire.output else text


def decibel_text(found: Difference) -> str:
    """A ratio with one decimal, or "exact"; that of other numbers among what is not finite says nothing."""
    if found.is_exact:
        return "exact"
    return f"{found.snr:z.1f}" if math.isfinite(found.snr) else "-inf" if found.snr < 0 else "inf"


def _print_mixture(mixture: MixtureDifference, first: Graph, second: Graph) -> None:
    types = first.nodes[mixture.first].type, second.nodes[mixture.second].type
    name = mixture.second if mixture.first == mixture.second else f"{mixture.first} -> {mixture.second}"
    share = 100 * mixture.changed_tokens / mixture.token_count if mixture.token_count else 0.0
    console.print(
        f"{name} ({types[0]} -> {types[1]}): {len(mixture.experts)} experts. Of {mixture.token_count:,} tokens, "
        f"{mixture.changed_tokens:,} ({share:.1f} %) go to other experts: {mixture.changed_choices:,} of "
        f"{mixture.choices:,} choices.",
        markup=False,
        soft_wrap=True,
    )
    table = Table("expert", box=None, pad_edge=False)
    for heading in (
        "tokens",
        "in B",
        "weight",
        *(f"{name}, %" for name in mixture.block_sizes),
        "output, %",
        "share, %",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("worst block", no_wrap=True)
    shares = mixture.shares
    most = max(range(len(shares)), key=shares.__getitem__) if any(shares) else -1
    for expert in mixture.experts:
        number = expert.expert
        table.add_row(
            str(number),
            f"{mixture.tokens[number]:,}",
            f"{mixture.tokens_second[number]:,}",
            f"{mixture.weights[number]:.2f}",
            *(f"{100 * expert.weight_errors[name]:.2f}" for name in mixture.block_sizes),
            "" if expert.output_error is None else f"{100 * expert.output_error:.2f}",
            f"{100 * shares[number]:.1f}",
            _worst_block(expert),
            style=WORST if number == most else None,
        )
    console.print(table)


def _worst_block(expert: ExpertDifference) -> str:
    """The block whose weights are farthest apart: projection, number, error."""
    found = [
        (float(error), name, number)
        for name, errors in expert.block_weight_errors.items()
        for number, error in enumerate(errors)
        if error > 0
    ]
    if not found:
        return ""
    error, name, number = max(found, key=lambda one: one[0])
    return f"{name} {number}: {100 * error:.1f} %"


# -- data -------------------------------------------------------------------------------------------------------------


def as_data(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON has it: what is not a finite number is null, and `exact` says which of these are equal."""
    worst, alone = comparison.worst, comparison.worst_isolated
    return {
        "wires": [
            {
                "first": str(wire.first),
                "second": str(wire.second),
                "output": wire.output,
                "constant": wire.is_constant,
                "element": wire.element,
                "shape": list(wire.shape),
                "accumulated": _numbers(wire.accumulated),
                "isolated": None if wire.isolated is None else _numbers(wire.isolated),
            }
            for wire in comparison.wires
        ],
        "worst": None if worst is None else str(worst.second),
        "worst_isolated": None if alone is None else str(alone.second),
        "mixtures": [_mixture(mixture) for mixture in comparison.mixtures],
        "matched_by_structure": {id: comparison.matching.nodes[id] for id in sorted(comparison.matching.by_structure)},
        "only_first": list(comparison.matching.only_first),
        "only_second": list(comparison.matching.only_second),
        "findings": [as_dict(finding) for finding in comparison.findings],
    }


def _numbers(found: Difference) -> dict[str, Any]:
    return {
        "snr": _finite(found.snr),
        "cosine": found.cosine,
        "largest": _finite(found.largest),
        "not_finite": found.not_finite,
        "spoiled": found.spoiled,
        "exact": found.is_exact,
    }


def _mixture(mixture: MixtureDifference) -> dict[str, Any]:
    shares = mixture.shares
    return {
        "first": mixture.first,
        "second": mixture.second,
        "tokens": mixture.token_count,
        "changed_tokens": mixture.changed_tokens,
        "choices": mixture.choices,
        "changed_choices": mixture.changed_choices,
        "block_sizes": dict(mixture.block_sizes),
        "experts": [
            {
                "expert": one.expert,
                "tokens": int(mixture.tokens[one.expert]),
                "tokens_second": int(mixture.tokens_second[one.expert]),
                "weight": _finite(float(mixture.weights[one.expert])),
                "weight_errors": {name: _finite(error) for name, error in one.weight_errors.items()},
                "output_error": None if one.output_error is None else _finite(one.output_error),
                "share": _finite(shares[one.expert]),
                "block_weight_errors": {name: _list(errors) for name, errors in one.block_weight_errors.items()},
                "block_output_errors": {name: _list(errors) for name, errors in one.block_output_errors.items()},
            }
            for one in mixture.experts
        ],
    }


def _list(numbers: Any) -> list[float | None]:
    return [_finite(number) for number in numbers.tolist()]


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
