"""From a mixture in floats to a quantized one, an expert at a time, in a way that can be broken off and goes on."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from qmoe_node.gptq import compensated, moments
from qmoe_node.mixtures import Expert, Mixture, Samples
from qmoe_node.packing import packed_length, unpack
from qmoe_node.parts import Parts
from qmoe_node.quantize import METHODS as PLAIN
from qmoe_node.quantize import Method as PlainMethod
from qmoe_node.quantize import Quantized, Scheme, quantized
from qmoe_node.rescaling import column_factors
from runtime.errors import Cancelled, Finding, GraphError
from runtime.tensors import Tensor

Method: TypeAlias = Literal["nearest", "onnxruntime", "least-squares", "half-quadratic", "gptq", "awq"]
CALIBRATED: tuple[Method, ...] = ("gptq", "awq")
METHODS: tuple[Method, ...] = (*PLAIN, *CALIBRATED)
FALLBACK: PlainMethod = "least-squares"
"""What an expert gets that saw too few calibration tokens."""
MINIMUM_TOKENS = 8
SEARCHED = 8
"""Experts that the search of common factors looks at, at most."""

Progress: TypeAlias = Callable[[int, int], None]
"""`progress(done, total)`: how many of how many experts are done."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a mixture is quantized: widths of fc1 and fc3, and of fc2, in bits; columns that share a scale; how.

    `minimum_tokens` is what an expert must have seen of the calibration tokens for the methods that use them.
    """

    bits: int = 4
    block_size: int = 32
    asymmetric: bool = False
    method: Method = "nearest"
    fc2_bits: int | None = None
    minimum_tokens: int = MINIMUM_TOKENS

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            text = f"method: expected one of {', '.join(METHODS)}; {self.method} came."
            raise GraphError(Finding(text, code="option"))
        self.scheme("fc1")
        self.scheme("fc2")

    def scheme(self, projection: str) -> Scheme:
        """Of a projection's weights; methods that use calibration tokens round to nearest."""
        bits = self.bits if projection != "fc2" or self.fc2_bits is None else self.fc2_bits
        method = "nearest" if self.method in CALIBRATED else self.method
        return Scheme(bits, self.block_size, self.asymmetric, method)  # type: ignore[arg-type]

    def parameters(self) -> dict[str, Any]:
        """The parameters of a QMoE node that say the same."""
        found: dict[str, Any] = {"expert_weight_bits": self.bits}
        if self.fc2_bits not in (None, self.bits):
            found["fc2_expert_weight_bits"] = self.fc2_bits
        return found | ({"block_size": self.block_size} if self.block_size else {})


@dataclass(frozen=True, slots=True)
class ExpertReport:
    """What quantization did to an expert.

    `errors` are ||Q - W|| / ||W|| by projection. `tokens` is how many of the calibration tokens it saw (-1: there were
    none), `output_error` ||y' - y|| / ||y|| over these, each weighted by its mixing weight. `fell_back` says that it
    saw too few for the method.
    """

    expert: int
    errors: dict[str, float]
    tokens: int = -1
    output_error: float | None = None
    fell_back: bool = False


@dataclass(frozen=True, slots=True)
class Converted:
    """A quantized mixture: QMoE's tensors by port, its parameters, and what its input is to be divided by, if so.

    `outputs` are the floats' routed outputs [tokens, hidden] for the calibration tokens, `found` those of the
    quantized experts; `before` and `after` are bytes of weights as float32 would take them, and as they are.
    """

    tensors: Mapping[str, Tensor]
    parameters: Mapping[str, Any]
    factors: np.ndarray | None
    experts: tuple[ExpertReport, ...]
    before: int
    after: int
    outputs: np.ndarray | None = field(default=None, repr=False)
    found: np.ndarray | None = field(default=None, repr=False)

    @property
    def output_error(self) -> float | None:
        """||y' - y|| / ||y|| of the whole mixture over the calibration tokens."""
        return None if self.outputs is None or self.found is None else relative(self.found, self.outputs)

    @property
    def weight_error(self) -> float:
        """The root of the mean square of the experts' errors, over all projections."""
        squares = [error**2 for report in self.experts for error in report.errors.values()]
        return math.sqrt(sum(squares) / len(squares)) if squares else 0.0

    @property
    def starved(self) -> tuple[ExpertReport, ...]:
        """The experts that fell back."""
        return tuple(report for report in self.experts if report.fell_back)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """||found - expected|| / ||expected||; 0 if both are 0."""
    size = float(np.linalg.norm(expected.astype(np.float64)))
    apart = float(np.linalg.norm(found.astype(np.float64) - expected))
    return apart / size if size else math.inf if apart else 0.0


def convert(
    mixture: Mixture,
    plan: Plan,
    samples: Samples | None = None,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    experts: int | None = None,
) -> Converted:
    """Quantizes a mixture. No more than two experts' floats are held at a time.

    With a `folder`, results lie in files there, and what was done before goes on if it was the same work; without one
    they are held in memory. `experts` takes only so many of the first. GraphError if the plan's method needs
    calibration samples and there are none, or if weights are not finite; Cancelled by `cancel`.
    """
    return _Conversion(mixture, plan, samples, folder, experts).run(progress, cancel)


class _Conversion:
    def __init__(
        self, mixture: Mixture, plan: Plan, samples: Samples | None, folder: Path | None, experts: int | None
    ) -> None:
        if plan.method in CALIBRATED and samples is None:
            raise GraphError(
                Finding(
                    f"The method {plan.method} needs calibration data.",
                    remedy="Give tokens that the layer sees (--calibration), or take another method.",
                    code="option",
                )
            )
        if samples is not None and not np.isfinite(samples.tokens).all():
            raise GraphError(Finding("The calibration data holds numbers that are not finite.", code="data"))
        _check_rows(mixture, plan)
        self._mixture, self._plan, self._samples = mixture, plan, samples
        self._count = min(mixture.experts, experts or mixture.experts)
        self._parts = Parts(folder, self._identity() if folder is not None else "")
        self._factors: np.ndarray | None = None
        self._outputs = self._found = None
        if samples is not None:
            self._outputs, self._found = np.zeros_like(samples.tokens), np.zeros_like(samples.tokens)

    def run(self, progress: Progress | None, cancel: threading.Event | None) -> Converted:
        reports = {entry["expert"]: ExpertReport(**entry) for entry in self._parts.entries()}
        if self._plan.method == "awq":
            self._factors = self._common_factors()
        before = after = 0
        # The next expert is read while one is worked on.
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._mixture.expert, 0)
            for number in range(self._count):
                if progress is not None:
                    progress(number, self._count)
                if cancel is not None and cancel.is_set():
                    coming.cancel()
                    raise Cancelled("The conversion was cancelled; what is done is kept.")
                expert = coming.result()
                if number + 1 < self._count:
                    coming = reader.submit(self._mixture.expert, number + 1)
                if number not in reports or self._samples is not None:
                    try:
                        entry = self._one(number, expert, reports.get(number))
                    except GraphError as error:
                        raise self._of(number, error) from error
                    if number not in reports:
                        self._parts.done(asdict(entry))
                    reports[number] = entry
                before += sum(matrix.nbytes for matrix in expert.matrices().values())
                self._mixture.forget()
        if progress is not None:
            progress(self._count, self._count)
        tensors = self._parts.tensors()
        after = sum(t.nbytes for port, t in tensors.items() if not port.endswith("bias"))
        return Converted(
            tensors,
            self._mixture.parameters() | self._plan.parameters(),
            self._factors,
            tuple(reports[number] for number in range(self._count)),
            before,
            after,
            self._outputs,
            self._found,
        )

    def _one(self, number: int, expert: Expert, known: ExpertReport | None) -> ExpertReport:
        """Quantizes an expert, or only measures it again if it is `known`."""
        rows, weights = self._samples.of(number) if self._samples is not None else (np.empty(0, int), np.empty(0))
        tokens = self._samples.tokens[rows] if self._samples is not None else None
        report = known
        if report is None:
            is_starved = tokens is not None and len(tokens) < self._plan.minimum_tokens
            fell_back = self._plan.method in CALIBRATED and is_starved
            scaled, given = self._rescaled(expert, tokens, not fell_back)
            found = self._quantized(scaled, given, fell_back)
            for name, matrix in found.items():
                self._write(number, name, matrix)
            for name, bias in scaled.biases().items():
                self._array(f"{name}_experts_bias", bias.shape, np.float32)[number] = bias
            errors = {name: found[name].error(matrix) for name, matrix in scaled.matrices().items()}
            report = ExpertReport(number, errors, -1 if tokens is None else len(tokens), None, fell_back)
        if tokens is None or self._outputs is None or self._found is None:
            return report
        settings, shares = self._mixture.settings, weights[:, None]
        wanted = shares * expert.output(expert.inner(settings, tokens))
        given = tokens if self._factors is None else tokens / self._factors
        own = self._read(number, expert)
        got = shares * own.output(own.inner(settings, given))
        self._outputs[rows] += wanted
        self._found[rows] += got
        return replace(report, output_error=relative(got, wanted) if len(rows) else None)

    def _of(self, number: int, error: GraphError) -> GraphError:
        """The error, with the mixture and the expert that it is about."""
        name = self._mixture.name
        return GraphError(replace(f, message=f"expert {number}: {f.message}", node=name) for f in error.findings)

    # -- methods ------------------------------------------------------------------------------------------------------

    def _quantized(self, expert: Expert, tokens: np.ndarray | None, fell_back: bool) -> dict[str, Quantized]:
        schemes = {name: self._plan.scheme(name) for name in expert.matrices()}
        if fell_back:
            schemes = {name: replace(scheme, method=FALLBACK) for name, scheme in schemes.items()}
        if self._plan.method != "gptq" or fell_back or tokens is None:
            return {name: quantized(matrix, schemes[name]) for name, matrix in expert.matrices().items()}
        first = moments(tokens)
        found = {n: compensated(m, schemes[n], first) for n, m in expert.matrices().items() if n != "fc2"}
        # fc2 is made for what it will be given: the activations of what fc1 has become.
        known = replace(expert, **{name: matrix.weights() for name, matrix in found.items()})
        second = moments(known.inner(self._mixture.settings, tokens))
        return found | {"fc2": compensated(expert.fc2, schemes["fc2"], second)}

    def _common_factors(self) -> np.ndarray:
        """For the mixture's input: found on its busiest experts, the same for all."""
        samples = self._samples
        assert samples is not None
        loads = np.bincount(samples.experts.ravel(), minlength=self._mixture.experts)[: self._count]
        cases = []
        for number in np.argsort(-loads, kind="stable")[:SEARCHED].tolist():
            expert = self._mixture.expert(number)
            step = -(-len(expert.fc1) // 512)
            cases.append((expert.fc1[::step].copy(), samples.tokens[samples.of(number)[0]]))
            self._mixture.forget()
        factors = column_factors(cases, self._plan.scheme("fc1"))
        return factors if factors.size else np.ones(self._mixture.hidden, np.float32)

    def _rescaled(self, expert: Expert, tokens: np.ndarray | None, wanted: bool) -> tuple[Expert, np.ndarray | None]:
        """The expert with columns multiplied by factors, and its tokens divided by those of the input.

        fc2's factors are taken back in fc1's linear part, where the activation lets them through.
        """
        if self._factors is None or tokens is None:
            return expert, tokens
        given = tokens / self._factors
        scaled = replace(expert, fc1=expert.fc1 * self._factors)
        if expert.fc3 is not None:
            scaled = replace(scaled, fc3=expert.fc3 * self._factors)
        linear = _linear_rows(self._mixture)
        if not wanted or linear is None:
            return scaled, given
        inner = expert.inner(self._mixture.settings, tokens)
        factors = column_factors([(expert.fc2, inner)], self._plan.scheme("fc2"))
        fc1 = scaled.fc1.copy()
        fc1[linear] /= factors[:, None]
        bias = scaled.fc1_bias
        if bias is not None:
            bias = bias.copy()
            bias[linear] /= factors
        return replace(scaled, fc1=fc1, fc1_bias=bias, fc2=expert.fc2 * factors), given

    # -- results ------------------------------------------------------------------------------------------------------

    def _array(self, port: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self._parts.array(port, (self._mixture.experts, *shape), np.dtype(dtype))

    def _write(self, number: int, name: str, matrix: Quantized) -> None:
        data, scales, zeros = matrix.packed()
        self._array(f"{name}_experts_weights", data.shape, np.uint8)[number] = data
        self._array(f"{name}_scales", scales.shape, np.float32)[number] = scales
        if zeros is not None:
            self._array(f"{name}_zero_points", zeros.shape, np.uint8)[number] = zeros

    def _read(self, number: int, like: Expert) -> Expert:
        """What an expert has become, in floats."""
        found: dict[str, np.ndarray] = {}
        for name, matrix in like.matrices().items():
            scheme = self._plan.scheme(name)
            rows, columns = matrix.shape
            blocks = -(-columns // scheme.block_size) if scheme.block_size else 1
            data = self._array(f"{name}_experts_weights", (rows, packed_length(columns, scheme.bits)), np.uint8)[number]
            shape = (rows, blocks) if scheme.block_size else (rows,)
            scales = self._array(f"{name}_scales", shape, np.float32)[number].reshape(rows, blocks)
            zeros = None
            if scheme.asymmetric:
                zeros = self._zero_points(name, number, scheme, rows, blocks)
            found[name] = Quantized(data, scales, zeros, columns, scheme).weights()
        for name, bias in like.biases().items():
            found[f"{name}_bias"] = self._array(f"{name}_experts_bias", bias.shape, np.float32)[number]
        return Expert(**found)

    def _zero_points(self, name: str, number: int, scheme: Scheme, rows: int, blocks: int) -> np.ndarray:
        port = f"{name}_zero_points"
        if scheme.block_size:
            packed = self._array(port, (rows, packed_length(blocks, scheme.bits)), np.uint8)[number]
            return unpack(packed, scheme.bits, blocks)
        packed = self._array(port, (packed_length(rows, scheme.bits),), np.uint8)[number]
        return unpack(packed, scheme.bits, rows)[:, None]

    def _identity(self) -> str:
        samples = self._samples
        tokens = "" if samples is None else Tensor.from_array(samples.tokens).digest
        mixture = self._mixture
        return json.dumps([mixture.name, mixture.source, self._count, mixture.hidden, asdict(self._plan), tokens])


def _check_rows(mixture: Mixture, plan: Plan) -> None:
    """GraphError if rows of codes would not end with a whole byte: no runtime takes such weights."""
    for projection, columns in (("fc1", mixture.hidden), ("fc2", mixture.inter)):
        bits = plan.scheme(projection).bits
        if columns * bits % 8:
            text = f"{bits}-bit rows must end with a whole byte: expected a multiple of {8 // bits} columns; "
            raise GraphError(
                Finding(
                    f"{text}{columns} came.",
                    mixture.name,
                    f"{projection}_experts_weights",
                    remedy="Take more bits: 8 fit always.",
                    code="option",
                )
            )


def _linear_rows(mixture: Mixture) -> slice | None:
    """fc1's rows that the output of the activation grows with, in proportion; None if there are none."""
    settings = mixture.settings
    if settings.activation_type not in ("swiglu", "geglu") or math.isfinite(settings.swiglu_limit):
        return None
    if settings.activation_type == "swiglu" and settings.activation_beta != 0:
        return None
    if settings.swiglu_fusion == 1:
        return slice(1, None, 2)
    return slice(mixture.inter, None) if settings.swiglu_fusion == 2 else None
