"""What `qmoe quantize` does: reads a checkpoint or a graph, quantizes its mixtures, writes graphs, tells the errors."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from rich.table import Table

from qmoe_node import graph_mixtures
from qmoe_node.block_graphs import block_graph, mixture_of, model_graph, samples_of
from qmoe_node.checkpoints import Checkpoint
from qmoe_node.conversion import Converted, Plan, convert, relative
from qmoe_node.families import blocks
from qmoe_node.mixtures import Mixture, Samples
from qmoe_node.parts import clear
from qmoe_node.tuning import tuned
from runtime.arrays import read_arrays
from runtime.atomic import replacing
from runtime.backends.control import Progress
from runtime.errors import FileError, Finding, GraphError
from runtime.files import ONNX, PICTURES, YAML, check_destination, save
from runtime.graph import Graph
from runtime.reports import console, errors, opened, watched
from runtime.session import Session
from runtime.tensors import Tensor
from runtime.twins import remember_twin

HIDDEN_STATES = "hidden_states"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One mixture that was quantized; `tuned_error` is its output error after tuning, `seconds` all that it took."""

    name: str
    converted: Converted
    tuned_error: float | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        made = self.converted
        return {
            "name": self.name,
            "bytes_before": made.before,
            "bytes_after": made.after,
            "bits_per_weight": bits_per_weight(made),
            "weight_error": made.weight_error,
            "output_error": made.output_error,
            "tuned_output_error": self.tuned_error,
            "seconds": round(self.seconds, 3),
            "experts": [
                {
                    "expert": report.expert,
                    "tokens": None if report.tokens < 0 else report.tokens,
                    "weight_errors": report.errors,
                    "output_error": report.output_error,
                    "fell_back": report.fell_back,
                }
                for report in made.experts
            ],
        }


def bits_per_weight(made: Converted) -> float:
    """With scales and zero points."""
    return 32 * made.after / made.before if made.before else 0.0


class Source(Protocol):
    """Where mixtures come from, and what is made of them."""

    names: tuple[str, ...]

    def check(self, calibration: Mapping[str, np.ndarray]) -> None:
        """GraphError if the calibration data lacks something."""

    def mixture(self, name: str) -> Mixture:
        """The experts in floats."""

    def samples(self, name: str, calibration: Mapping[str, np.ndarray]) -> Samples:
        """The tokens that it sees."""

    def trial(self, name: str, made: Converted, samples: Samples) -> tuple[Graph, dict[str, np.ndarray]]:
        """A graph that computes the routed output alone, and its inputs, a token in each row: to tune it."""

    def write(self, made: Mapping[str, tuple[Converted, Mapping[str, Tensor]]], out: Path) -> list[Path]:
        """Writes graphs with these in place of the floats, and says which."""


class Model:
    """The mixtures of a checkpoint."""

    def __init__(self, folder: Path, layers: set[int] | None) -> None:
        self._checkpoint = Checkpoint(folder)
        known = {block.layer: block for block in blocks(self._checkpoint)}
        missing = sorted((layers or set()) - set(known))
        if missing:
            text = f"Layer {missing[0]} has no mixture. Layers with one: {', '.join(map(str, known)) or 'none'}."
            raise GraphError(Finding(text, code="option"))
        chosen = [block for layer, block in known.items() if layers is None or layer in layers]
        if not chosen:
            raise FileError(folder, "the model has no mixture of experts.")
        self._blocks = {block.name: block for block in chosen}
        self.names = tuple(self._blocks)

    def mixture(self, name: str) -> Mixture:
        return mixture_of(self._checkpoint, self._blocks[name])

    def check(self, calibration: Mapping[str, np.ndarray]) -> None:
        for name in self.names:
            self._key(name, calibration)

    def samples(self, name: str, calibration: Mapping[str, np.ndarray]) -> Samples:
        return samples_of(self._checkpoint, self._blocks[name], calibration[self._key(name, calibration)])

    def _key(self, name: str, calibration: Mapping[str, np.ndarray]) -> str:
        for key in (f"{name}.{HIDDEN_STATES}", name, HIDDEN_STATES):
            if key in calibration and (key != HIDDEN_STATES or len(self.names) == 1):
                return key
        wanted = f"{name}.{HIDDEN_STATES}" + (f" or {HIDDEN_STATES}" if len(self.names) == 1 else "")
        there = ", ".join(calibration) or "nothing"
        raise GraphError(Finding(f"The calibration data has no {wanted}. It has {there}.", name, code="data"))

    def trial(self, name: str, made: Converted, samples: Samples) -> tuple[Graph, dict[str, np.ndarray]]:
        graph = block_graph(self._checkpoint, replace(self._blocks[name], shared=None), made)
        return graph, {HIDDEN_STATES: samples.tokens[:, None]}

    def write(self, made: Mapping[str, tuple[Converted, Mapping[str, Tensor]]], out: Path) -> list[Path]:
        if is_file(out):
            graph = self._graph(made, out)
            save(graph, out)
            return [out]
        try:
            out.mkdir(exist_ok=True)
        except OSError as error:
            raise FileError(out, f"cannot be written: {error.strerror or error}.") from error
        paths = []
        for name, one in made.items():
            path = out / f"{name}.yaml"
            save(self._graph({name: one}, path), path)
            paths.append(path)
        return paths

    def _graph(self, made: Mapping[str, tuple[Converted, Mapping[str, Tensor]]], out: Path) -> Graph:
        if len(made) == 1:
            ((name, (converted, weights)),) = made.items()
            graph = block_graph(self._checkpoint, self._blocks[name], converted)
            prefixes = {name: ""}
        else:
            graph = model_graph(self._checkpoint, [(self._blocks[name], one) for name, (one, _) in made.items()])
            prefixes = {name: f"layer{self._blocks[name].layer}_" for name in made}
        for name, (converted, weights) in made.items():
            for id, tensor in weights.items():
                graph.set(prefixes[name] + id, "tensor", tensor)
            rescaled = converted.factors is not None
            node = f"{prefixes[name]}experts"
            remember_twin(graph, node, self._checkpoint.folder, name, out, rescaled=rescaled)
        return graph


class Document:
    """The float mixtures of a graph."""

    def __init__(self, file: Path, layers: set[int] | None) -> None:
        self._file, self._graph = file, opened(file)
        names = graph_mixtures.float_mixtures(self._graph)
        if not names:
            raise FileError(file, f"holds no {graph_mixtures.FLOAT} node: there is nothing to quantize.")
        wrong = sorted(number for number in layers or () if number >= len(names))
        if wrong:
            text = f"There is no mixture {wrong[0]}; the {len(names)} that there are are numbered from 0."
            raise GraphError(Finding(text, code="option"))
        self.names = tuple(name for number, name in enumerate(names) if layers is None or number in layers)
        self._samples: dict[str, Samples] = {}

    def check(self, calibration: Mapping[str, np.ndarray]) -> None:
        self._samples = graph_mixtures.graph_samples(self._graph, self.names, calibration)

    def mixture(self, name: str) -> Mixture:
        return graph_mixtures.mixture_in(self._graph, name)

    def samples(self, name: str, calibration: Mapping[str, np.ndarray]) -> Samples:
        return self._samples[name]

    def trial(self, name: str, made: Converted, samples: Samples) -> tuple[Graph, dict[str, np.ndarray]]:
        graph = Graph("trial", opsets=dict(self._graph.opsets))
        shape = len(samples.tokens), made.tensors["fc1_experts_weights"].shape[0]
        logits, weights = np.full(shape, -1e30, np.float32), np.zeros(shape, np.float32)
        np.put_along_axis(logits, samples.experts, np.float32(0), axis=1)
        np.put_along_axis(weights, samples.experts, samples.weights.astype(np.float32), axis=1)
        given = samples.tokens if made.factors is None else samples.tokens / made.factors
        arrays = {"input": given, "router_probs": logits, "router_weights": weights}
        parameters = {**made.parameters, "normalize_routing_weights": 0, "use_sparse_mixer": 0}
        graph.add(graph_mixtures.QUANTIZED, "experts", parameters=parameters)
        for port, array in arrays.items():
            graph.add("Input", port, parameters={"type": "tensor(float)", "shape": ["tokens", array.shape[1]]})
            graph.wire(f"{port}.value", f"experts.{port}")
        for port, tensor in made.tensors.items():
            is_float = port.endswith(("scales", "bias"))
            own: dict[str, Any] = {"tensor": tensor}
            if is_float:
                own["training_type"] = graph_mixtures.TRAINED
            graph.add("Initializer", port, parameters=own)
            graph.wire(f"{port}.value", f"experts.{port}")
        graph.add("Output", "output")
        graph.wire("experts.output", "output.value")
        return graph, arrays

    def write(self, made: Mapping[str, tuple[Converted, Mapping[str, Tensor]]], out: Path) -> list[Path]:
        graph = self._graph.copy()
        for name, (converted, weights) in made.items():
            tensors = {**converted.tensors, **{port: weights[port] for port in weights if port in converted.tensors}}
            graph_mixtures.replace_mixture(graph, name, replace(converted, tensors=tensors))
            remember_twin(graph, name, self._file, name, out, rescaled=converted.factors is not None)
        save(graph, out)
        return [out]


def is_file(out: Path) -> bool:
    """Whether a graph is written there; else it is a folder of graphs."""
    return out.suffix.lower() in (*YAML, *PICTURES, *ONNX)


def source_of(path: Path, layers: set[int] | None) -> Source:
    """The mixtures in a checkpoint's folder or in a graph's file."""
    if not path.exists():
        raise FileError(path, "is not there; expected a checkpoint's folder, or a graph.")
    return Model(path, layers) if path.is_dir() else Document(path, layers)


def layers_of(text: str | None) -> set[int] | None:
    """The numbers in "0,3-5"; None for None. GraphError if it is no such list."""
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.strip().isdecimal() or (dash and not last.strip().isdecimal()):
            text = f"--layers: expected numbers and ranges such as 0,3-5; {text!r} came."
            raise GraphError(Finding(text, code="option"))
        start, stop = int(first), int(last) if dash else int(first)
        if stop < start or stop - start > 10_000:
            raise GraphError(Finding(f"--layers: {part!r} is no range of layers.", code="option"))
        found.update(range(start, stop + 1))
    return found


def quantize(
    source: Path,
    out: Path,
    plan: Plan,
    *,
    layers: str | None = None,
    calibration: Sequence[Path] = (),
    tune: int = 0,
    report: Path | None = None,
    as_json: bool = False,
) -> None:
    """Quantizes the mixtures of `source` into `out`, and prints what that did to them."""
    if tune and not calibration:
        text = "Tuning needs tokens that the layers see."
        raise GraphError(Finding(text, remedy="Give them with --calibration.", code="option"))
    found = source_of(source, layers_of(layers))
    _check_out(out, isinstance(found, Document))
    if out.exists() and out.samefile(source):
        raise FileError(out, "holds the floats that are quantized: write to another name.", code="name")
    arrays = calibration_of(calibration)
    if arrays:
        found.check(arrays)
    parts = out.with_name(f"{out.name}.parts")
    outcomes: list[Outcome] = []
    made: dict[str, tuple[Converted, Mapping[str, Tensor]]] = {}
    try:
        parts.mkdir(exist_ok=True)
    except OSError as error:
        raise FileError(parts, f"cannot be written: {error.strerror or error}.") from error
    try:
        for number, name in enumerate(found.names):
            mixture = found.mixture(name)
            samples = found.samples(name, arrays) if arrays else None
            outcome, weights = _one(found, name, mixture, plan, samples, parts / f"{number:04}", tune)
            outcomes.append(outcome)
            made[name] = outcome.converted, weights
        written = found.write(made, out)
    except KeyboardInterrupt:
        errors.print(
            f"What is done is kept in {parts}; the same command goes on from there.", markup=False, soft_wrap=True
        )
        raise
    finally:
        with suppress(OSError):
            parts.rmdir()  # if nothing was begun
    made.clear()
    clear(parts)
    content = summary(source, out, outcomes)
    if report is not None:
        with replacing(report) as file:
            file.write((json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    if as_json:
        print(json.dumps(content, indent=2, allow_nan=False))
        return
    tell(outcomes)
    for path in written:
        console.print(f"Written to {path}.", markup=False, soft_wrap=True)


def _check_out(out: Path, whole: bool) -> None:
    """FileError if nothing can be written there by the name; a `whole` graph is one file."""
    if whole or is_file(out) or (out.suffix and not out.is_dir()):
        if not is_file(out) and not whole:
            text = "expected a name that ends with .yaml, .png or .onnx, or a folder (make it, if its name has a dot)."
            raise FileError(out, text, code="name")
        check_destination(out)
    elif out.is_file():
        raise FileError(out, "is a file; expected the name of a folder.", code="name")
    elif not out.absolute().parent.is_dir():
        raise FileError(out, f"cannot be written: there is no folder {out.parent}.")


def calibration_of(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """The arrays of files of calibration data by name; the one of a .npy file is hidden_states."""
    arrays: dict[str, np.ndarray] = {}
    for path in paths:
        arrays |= {name or HIDDEN_STATES: array for name, array in read_arrays(path).items()}
    return arrays


def _one(
    source: Source,
    name: str,
    mixture: Mixture,
    plan: Plan,
    samples: Samples | None,
    folder: Path,
    tune: int,
) -> tuple[Outcome, dict[str, Tensor]]:
    start = perf_counter()

    def quantizing(progress: Progress | None = None, cancel: threading.Event | None = None) -> Converted:
        def tell_expert(done: int, total: int) -> None:
            if progress is not None:
                progress(done, total, f"{name}: experts")

        return convert(mixture, plan, samples, folder=folder, progress=tell_expert, cancel=cancel)

    made = watched(quantizing)
    for report in made.starved:
        text = f"expert {report.expert} saw {report.tokens} calibration tokens, fewer than {plan.minimum_tokens}: "
        errors.print(f"warning: {name}: {text}it was quantized by least squares.", markup=False, soft_wrap=True)
    if not tune or samples is None or made.outputs is None:
        return Outcome(name, made, None, perf_counter() - start), {}
    graph, inputs = source.trial(name, made, samples)
    targets = made.outputs.reshape(*next(iter(inputs.values())).shape[:-1], -1)

    def tuning(progress: Progress | None = None, cancel: threading.Event | None = None) -> dict[str, Tensor]:
        def tell_step(done: int, total: int, loss: float) -> None:
            if progress is not None:
                progress(done, total, f"{name}: tuning, error {math.sqrt(max(loss, 0)):.4f}")

        return tuned(graph, inputs, targets, tune, progress=tell_step, cancel=cancel)

    weights = watched(tuning)
    return Outcome(name, made, _trial_error(graph, inputs, targets, weights), perf_counter() - start), weights


def _trial_error(
    graph: Graph, inputs: Mapping[str, np.ndarray], targets: np.ndarray, weights: Mapping[str, Tensor]
) -> float:
    changed = graph.copy()
    for id, tensor in weights.items():
        changed.set(id, "tensor", tensor)
    return relative(Session(changed).forward(inputs)["output"], targets)


def summary(source: Path, out: Path | None, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The report as JSON has it; errors that are not finite are null."""
    before = sum(outcome.converted.before for outcome in outcomes)
    after = sum(outcome.converted.after for outcome in outcomes)
    content = {
        "source": str(source),
        "out": None if out is None else str(out),
        "bytes_before": before,
        "bytes_after": after,
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 3),
        "mixtures": [outcome.as_dict() for outcome in outcomes],
    }
    return dict(_finite(content))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tell(outcomes: Sequence[Outcome]) -> None:
    """A table with a line for each mixture."""
    has_output = any(outcome.converted.output_error is not None for outcome in outcomes)
    has_tuned = any(outcome.tuned_error is not None for outcome in outcomes)
    table = Table("mixture", box=None, pad_edge=False, header_style="bold")
    for name in ("experts", "float32", "quantized", "bits/weight", "weight error", "worst expert"):
        table.add_column(name, justify="right")
    for name, shown in (("output error", has_output), ("tuned", has_tuned)):
        if shown:
            table.add_column(name, justify="right")
    table.add_column("seconds", justify="right")
    for outcome in outcomes:
        made = outcome.converted
        worst = max(made.experts, key=lambda report: max(report.errors.values()))
        cells = [
            outcome.name,
            str(len(made.experts)),
            size_text(made.before),
            size_text(made.after),
            f"{bits_per_weight(made):.2f}",
            f"{made.weight_error:.2%}",
            f"{worst.expert}: {max(worst.errors.values()):.2%}",
        ]
        cells += [_percent(made.output_error)] if has_output else []
        cells += [_percent(outcome.tuned_error)] if has_tuned else []
        table.add_row(*cells, f"{outcome.seconds:.1f}")
    console.print(table)


def size_text(count: int) -> str:
    """Bytes, in a unit that fits."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:.2%}"
