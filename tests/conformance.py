"""ONNX's own node tests, each as a graph of ours on both backends: `make conformance` writes docs/conformance.md.

A case is right if every output has the expected type and shape and lies within the case's own tolerances. The cases run
in worker processes, so that one that ends its process, or does not end at all, is one line of the table.
"""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

PAGE = Path(__file__).parent.parent / "docs" / "conformance.md"
BACKENDS = ("onnxruntime", "numpy")
WORKERS = 2
SECONDS_FOR_A_CASE = 60

KINDS = ("right", "random", "wrong", "refused", "crashed")

UNDETERMINED = ("test_bernoulli", "test_training_dropout")
"""Cases whose expected numbers come from a random generator that the operator does not prescribe."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case on a backend, one of KINDS, and why if it is not right."""

    kind: str
    reason: str = ""


def all_cases() -> list[Any]:
    """The cases, in an order that is always the same."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(collect_testcases(None))


def outcomes(case: Any) -> dict[str, Outcome]:
    """Runs a case on both backends."""
    return {backend: _outcome(case, backend) for backend in BACKENDS}


def _outcome(case: Any, backend: Any) -> Outcome:
    from runtime import Session, StudioError

    try:
        session = Session(_graph(case.model), backend, threads=1)
        names = [value.name for value in case.model.graph.input]
        wanted = [value.name for value in case.model.graph.output]
        for given, expected in case.data_sets:
            feeds = {name: plain(value) for name, value in zip(names, given, strict=False)}
            results = session.forward(feeds)
            for name, value in zip(wanted, expected, strict=True):
                difference = why_not_same(results[name], plain(value), case.rtol, case.atol)
                if difference and case.name.startswith(UNDETERMINED):
                    return Outcome(
                        "random", "The numbers are random, and the operator does not prescribe the generator."
                    )
                if difference:
                    announced = [finding.message for finding in session.findings if finding.code == "deviation"]
                    return Outcome("wrong", " ".join([f"{name}: {difference}.", *announced]))
    except StudioError as error:
        return Outcome("refused", str(error))
    return Outcome("right")


def _graph(model: Any) -> Any:
    import onnx_ir as ir

    from runtime.onnx_import import import_model

    return import_model(ir.from_proto(model))


def plain(value: Any) -> Any:
    """A case's value as a session takes it: arrays, lists of arrays, None."""
    import onnx

    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, dict):
        return value
    return np.asarray(value)


def why_not_same(got: Any, expected: Any, rtol: float, atol: float) -> str:
    """How two values differ, in a few words; empty if they agree."""
    if isinstance(expected, list):
        if not isinstance(got, list) or len(got) != len(expected):
            return f"a sequence of {len(expected)} is expected"
        return next(filter(None, (why_not_same(*pair, rtol, atol) for pair in zip(got, expected, strict=True))), "")
    if not isinstance(expected, np.ndarray):
        return "" if got == expected else f"{expected!r} is expected"
    if not isinstance(got, np.ndarray) or got.shape != expected.shape:
        return f"the shape is {getattr(got, 'shape', None)}, not {expected.shape}"
    if expected.dtype.kind in "OUS":
        return "" if got.astype(str).tolist() == expected.astype(str).tolist() else "other strings"
    if got.dtype != expected.dtype:
        return f"the type is {got.dtype}, not {expected.dtype}"
    native = expected.dtype.isbuiltin == 1 and expected.dtype.kind in "fc"
    precision = np.finfo(expected.dtype).eps if native else 0.0
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    got, expected = got.astype(wide), expected.astype(wide)
    if np.allclose(got, expected, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    off = ~np.isclose(got, expected, rtol=rtol, atol=atol, equal_nan=True)
    largest = np.abs(got - expected)[off].max()
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0)
    text = f"{off.sum()} of {off.size} values are off, by up to {largest:.2g} where the largest expected is {scale:.2g}"
    return text + (
        ": rounding, of no more than 4 units in that one's last place" if largest <= 4 * precision * scale else ""
    )


# -- workers --------------------------------------------------------------------------------------------------------


def _work(connection: Connection) -> None:
    """Answers case numbers with outcomes until the connection closes."""
    warnings.simplefilter("ignore")
    cases = all_cases()
    try:
        while True:
            connection.send(outcomes(cases[connection.recv()]))
    except EOFError:
        return


class _Worker:
    """A process, the case that it works on, and when it has had its time."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.case: int | None = None
        self.deadline = 0.0

    def give(self, case: int) -> None:
        self.connection.send(case)
        self.case = case
        self.deadline = monotonic() + SECONDS_FOR_A_CASE

    def close(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def run_all(count: int) -> Iterator[tuple[int, dict[str, Outcome]]]:
    """The outcomes of cases 0 to count - 1, as they come."""
    waiting = iter(range(count))
    workers: list[_Worker] = []
    for _ in range(WORKERS):
        worker = _Worker()
        worker.give(next(waiting))
        workers.append(worker)
    while workers:
        ready = wait([worker.connection for worker in workers], timeout=1)
        for worker in list(workers):
            case = worker.case
            assert case is not None
            if worker.connection in ready:
                try:
                    yield case, worker.connection.recv()
                except EOFError:
                    worker.process.join()
                    workers.remove(worker)
                    worker.close()
                    yield case, _both(f"the process ended with code {worker.process.exitcode}")
                    worker = _Worker()
                    workers.append(worker)
            elif monotonic() > worker.deadline:
                workers.remove(worker)
                worker.close()
                yield case, _both(f"no answer within {SECONDS_FOR_A_CASE} s")
                worker = _Worker()
                workers.append(worker)
            else:
                continue
            following = next(waiting, None)
            if following is None:
                workers.remove(worker)
                worker.close()
            else:
                worker.give(following)


def _both(reason: str) -> dict[str, Outcome]:
    return {backend: Outcome("crashed", reason) for backend in BACKENDS}


# -- the page -------------------------------------------------------------------------------------------------------


def page(names: list[str], results: list[dict[str, Outcome]]) -> str:
    """The table, and every case that is not right on one of the backends, with its reason."""
    counts = {backend: Counter(result[backend].kind for result in results) for backend in BACKENDS}
    either = sum(any(outcome.kind == "right" for outcome in result.values()) for result in results)
    import onnx
    import onnxruntime

    lines = [
        "# Conformance",
        "",
        f"The {len(names)} node tests of ONNX {onnx.__version__}, each as a graph on both backends (ONNX Runtime "
        f"{onnxruntime.__version__}). A case is right if every output has the expected type and shape and lies within "
        "the case's own tolerances; random if the operator leaves the numbers to a generator. Written by "
        "`make conformance`.",
        "",
        "| | " + " | ".join(KINDS) + " |",
        "|---|" + "---:|" * len(KINDS),
        *(f"| {backend} | " + " | ".join(str(counts[backend][kind]) for kind in KINDS) + " |" for backend in BACKENDS),
        "",
        f"Right on one backend or the other: **{either}**.",
        "",
        "## What is not right, and why",
        "",
        "| case | backend | | reason |",
        "|---|---|---|---|",
    ]
    for name, result in sorted(zip(names, results, strict=True), key=lambda item: item[0]):
        for backend, outcome in result.items():
            if outcome.kind != "right":
                lines.append(f"| {name} | {backend} | {outcome.kind} | {_reason(outcome)} |")
    return "\n".join(lines) + "\n"


def _reason(outcome: Outcome) -> str:
    text = " ".join(outcome.reason.split()).replace("|", "\\|")
    return text if len(text) <= 300 else text[:300] + " ..."


def main() -> int:
    """Runs everything, with a line of progress, and writes the page; 1 if a case ended its process."""
    names = [case.name for case in all_cases()]
    results: list[dict[str, Outcome]] = [{}] * len(names)
    for done, (case, result) in enumerate(run_all(len(names)), 1):
        results[case] = result
        if done % 20 == 0 or done == len(names):
            print(f"\r{done} of {len(names)}", end="", flush=True)
    print()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(names, results), encoding="utf-8")
    for backend in BACKENDS:
        counts = Counter(result[backend].kind for result in results)
        print(f"{backend}: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
    print(f"written: {PAGE}")
    return int(any(outcome.kind == "crashed" for result in results for outcome in result.values()))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    sys.exit(main())
