"""What a worker does for a job that is spread over many: it holds sessions, and runs them on what it is sent."""

from __future__ import annotations

import os
import socket
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from runtime.errors import Cancelled, FileError, Finding, GraphError, StudioError
from runtime.graph import Graph
from runtime.session import Session
from runtime.shards import Folder, Skipped
from runtime.spans import Source

if TYPE_CHECKING:
    from runtime.training.parallel import GradientRunner

Rows = Mapping[str, np.ndarray]
MUST_AGREE = ("qmoe-studio", "onnxruntime", "numpy")
"""The packages whose versions decide about numbers."""

LARGE = 64 << 20
"""Bytes of results from which on a worker sends them before it makes more."""


class NotPrepared(Exception):
    """A worker has been given work before `Host.prepare`: it was started again, and who gave it does not know yet."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How a worker opens its graphs. `use_gpu`: on ONNX Runtime's CUDA provider, if it has that."""

    backend: Literal["onnxruntime", "numpy"] = "onnxruntime"
    threads: int | None = None
    precision: Literal["exact", "fast"] = "exact"
    use_gpu: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be done, and why; `rows` are the rows of the data that it is about.

    `is_open` is false where the graph cannot be opened, so that other rows would fare no better.
    """

    findings: tuple[Finding, ...]
    rows: tuple[int, int] | None = None
    details: str = ""
    is_open: bool = True

    def error(self) -> GraphError:
        """The error as it would have been raised here."""
        if self.rows is None:
            return GraphError(self.findings)
        first, last = self.rows[0], self.rows[1] - 1
        remedy = "Mend these rows of the data, or set them aside: --skip-bad."
        return GraphError(
            [*self.findings, Finding(f"This came of rows {first} to {last} of the data.", remedy=remedy, code="batch")]
        )


@dataclass(frozen=True, slots=True)
class Scored:
    """The outputs of some rows; `per` says which have a result for each row, and which for each batch.

    `seconds` are those that the graph ran. The outputs may be in the folder of results already, in `file`; where they
    could not be written there, `not_written` says why.
    """

    outputs: Mapping[str, np.ndarray] = field(repr=False)
    per: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    seconds: float
    file: str = ""
    not_written: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of the data from row `start` on, to be run `batch` at a time."""

    start: int
    rows: Rows = field(repr=False)
    batch: int
    skip_bad: bool = False

    @property
    def count(self) -> int:
        """How many rows."""
        return len(next(iter(self.rows.values())))

    @property
    def stop(self) -> int:
        """The row after the last."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Range:
    """Rows `start` to before `stop` of the data, which the worker reads itself, to be run `batch` at a time."""

    start: int
    stop: int
    batch: int
    skip_bad: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """Where a job's data and results are, for workers who see these files themselves; None is for nobody to see."""

    source: Source | None
    results: Folder | None


@dataclass(frozen=True, slots=True)
class Sight:
    """What a worker makes of a job's places: whether it reads rows itself; `troubles` are sentences without "It"."""

    reads: bool = False
    troubles: tuple[str, ...] = ()


class Found:
    """What the batches of a piece gave so far, in any order. `failure` is set as soon as the piece has failed;
    `seconds` are for whoever runs them to count."""

    def __init__(self, piece: Piece | Range) -> None:
        self.failure: Failure | None = None
        self.seconds = 0.0
        self._piece = piece
        self._outputs: dict[int, Mapping[str, np.ndarray]] = {}
        self._skipped: dict[int, Skipped] = {}

    def add(self, start: int, outputs: Mapping[str, np.ndarray]) -> None:
        """Takes the outputs of the batch whose first row is `start`."""
        self._outputs[start] = outputs

    def add_failure(self, start: int, failed: Failure) -> None:
        """Sets a batch aside, if the piece says so and others may fare better; else the piece fails with its first."""
        rows = start, start + self._count(start)
        if self._piece.skip_bad and failed.is_open:
            self._skipped[start] = Skipped(*rows, "\n".join(map(str, failed.findings)))
        elif self.failure is None or self.failure.rows is None or rows < self.failure.rows:
            self.failure = replace(failed, rows=rows)

    def scored(self) -> Scored | Failure:
        """All batches together, when they are there."""
        if self.failure is not None:
            return self.failure
        starts = sorted(self._outputs)
        try:
            outputs, per = _joined([self._outputs[start] for start in starts], [self._count(start) for start in starts])
        except GraphError as error:
            return Failure(error.findings)
        skipped = tuple(self._skipped[start] for start in sorted(self._skipped))
        return Scored(outputs, per, skipped, self.seconds)

    def _count(self, start: int) -> int:
        return min(self._piece.batch, self._piece.stop - start)


class Host:
    """Sessions on graphs, each opened when it is first used. NotPrepared if there is to be work before `prepare`."""

    def __init__(self) -> None:
        self._is_prepared = False
        self._graphs: dict[str, Graph] = {}
        self._opening = Opening()
        self._fixed: dict[str, np.ndarray] = {}
        self._sessions: dict[str, Session] = {}
        self._gradients: GradientRunner | None = None
        self._source: Source | None = None
        self._folder: Folder | None = None
        self.cancel = threading.Event()

    def prepare(
        self,
        graphs: Mapping[str, Graph],
        opening: Opening,
        fixed: Rows | None = None,
        places: Places | None = None,
    ) -> dict[str, Any]:
        """Takes graphs by a key, and values of inputs that are the same in every run; the places as `look` does.

        Returns where this is, and the versions of what numbers depend on, besides.
        """
        if not self._is_prepared:
            self._graphs, self._opening, self._fixed = dict(graphs), opening, dict(fixed or {})
            self._is_prepared = True
        return {**self.look(places), "versions": versions()}

    def look(self, places: Places | None) -> dict[str, Any]:
        """Looks at a job's places. Returns where this is, and what it sees."""
        sight = self._look(places) if places is not None else Sight()
        return {"host": socket.gethostname(), "process": os.getpid(), "sight": sight}

    def several(self, calls: Sequence[tuple[str, tuple[Any, ...]]], seconds: float) -> tuple[list[Any], float]:
        """Calls methods of this one after the other; none is begun after `seconds`, nor when results are `LARGE`.

        Returns the results, of which there are fewer than calls then, and the seconds that it took.
        """
        results: list[Any] = []
        begun, size = perf_counter(), 0
        for method, arguments in calls:
            results.append(getattr(self, method)(*arguments))
            if isinstance(results[-1], Scored):
                size += sum(array.nbytes for array in results[-1].outputs.values())
            if perf_counter() - begun >= seconds or size >= LARGE:
                break
        return results, perf_counter() - begun

    def score(self, piece: Piece | Range, index: int | None = None) -> Scored | Failure:
        """Runs rows through the graph "graph", and writes the outputs as results of the number `index` if it can."""
        self._must_be_prepared()
        try:
            scored = self._scored(piece)
        except FileError as error:
            return failure(error)
        if index is None or self._folder is None or not isinstance(scored, Scored):
            return scored
        try:
            return replace(scored, outputs={}, file=self._folder.write(index, scored.outputs))
        except FileError as error:  # whoever gets the outputs instead tries, too, and says what is the matter
            self._folder = None
            return replace(scored, not_written=str(error))

    def _look(self, places: Places) -> Sight:
        self._source, self._folder, troubles = None, None, []
        try:
            self._source = places.source.seen_here() if places.source is not None else None
        except FileError as error:
            troubles.append(f"does not see the data ({error}), and is sent its rows")
        if places.results is not None and places.results.is_here():
            self._folder = places.results
        elif places.results is not None:
            troubles.append(f"does not see the folder {places.results.path}, and sends its results")
        return Sight(self._source is not None, tuple(troubles))

    def batches(self, piece: Piece | Range) -> Iterator[tuple[int, Rows]]:
        """Batches and the numbers of their first rows. FileError if the data cannot be read, or has changed."""
        if isinstance(piece, Range):
            assert self._source is not None, "a range is for who has seen the data"
            batches: Iterable[Rows] = self._source.batches(piece.start, piece.stop, piece.batch)
        else:
            places = range(0, piece.count, piece.batch)
            batches = ({name: a[at : at + piece.batch] for name, a in piece.rows.items()} for at in places)
        for first, rows in zip(range(piece.start, piece.stop, piece.batch), batches, strict=True):
            yield first, {**self._fixed, **rows}

    def _scored(self, piece: Piece | Range) -> Scored | Failure:
        found = Found(piece)
        for start, feeds in self.batches(piece):
            if self.cancel.is_set():
                raise Cancelled("cancelled")
            begun = perf_counter()
            try:
                found.add(start, self._session("graph").forward(feeds))
            except Exception as error:
                found.add_failure(start, replace(failure(error), is_open="graph" in self._sessions))
                if found.failure is not None:
                    break
            finally:
                found.seconds += perf_counter() - begun
        return found.scored()

    def run(self, key: str, feeds: Rows) -> dict[str, Any] | Failure:
        """Runs one graph once."""
        self._must_be_prepared()
        try:
            return self._session(key).forward(feeds)
        except Exception as error:
            return replace(failure(error), is_open=key in self._sessions)

    def gradients(self, weights: Rows, batch: Rows, losses: Mapping[str, float]) -> Any:
        """Losses and gradients of the graph "graph" at some weights; see `runtime.training.parallel`."""
        from runtime.training.parallel import GradientRunner

        self._must_be_prepared()
        try:
            if self._gradients is None:
                opening = self._opening
                self._gradients = GradientRunner(
                    self._graphs["graph"], losses, opening.backend, opening.threads, providers_of(opening)
                )
            return self._gradients.run(weights, batch)
        except Exception as error:
            return failure(error)

    def _must_be_prepared(self) -> None:
        if not self._is_prepared:
            raise NotPrepared(os.getpid())

    def _session(self, key: str) -> Session:
        if key not in self._sessions:
            opening = self._opening
            self._sessions[key] = Session(
                self._graphs[key], opening.backend, providers_of(opening), opening.threads, opening.precision
            )
        return self._sessions[key]


def providers_of(opening: Opening) -> list[str] | None:
    """ONNX Runtime's providers for a worker: CUDA's, if it has a GPU and its ONNX Runtime that provider."""
    if not opening.use_gpu or opening.backend != "onnxruntime":
        return None
    import onnxruntime

    has_it = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if has_it else None


def versions() -> dict[str, str]:
    """The versions, here, of what must be the same on every worker."""
    from importlib.metadata import version

    return {name: version(name) for name in MUST_AGREE}


def failure(error: Exception) -> Failure:
    """What went wrong, as data: exceptions do not cross to another process as they are."""
    if isinstance(error, Cancelled):
        raise error
    if isinstance(error, GraphError):
        return Failure(error.findings)
    if isinstance(error, StudioError):
        return Failure((Finding(str(error), code="file" if isinstance(error, FileError) else ""),))
    if isinstance(error, MemoryError):
        return Failure((Finding("There is not enough memory for it.", remedy="Use smaller batches.", code="memory"),))
    text = f"Something went wrong that should not: {type(error).__name__}: {error}"
    return Failure((Finding(text, code="internal"),), details=traceback.format_exc())


def _joined(parts: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The outputs of several batches together: row after row, or, where an output has no rows, batch after batch."""
    outputs: dict[str, np.ndarray] = {}
    per: dict[str, str] = {}
    for name in parts[0] if parts else ():
        values = [part[name] for part in parts]
        if not all(isinstance(value, np.ndarray) for value in values):
            raise _no_results(name, "a sequence, or absent")
        are_rows = all(value.ndim and len(value) == count for value, count in zip(values, counts, strict=True))
        if are_rows and len({value.shape[1:] for value in values}) == 1:
            outputs[name], per[name] = np.concatenate(values), "row"
        elif len({value.shape for value in values}) == 1:
            outputs[name], per[name] = np.stack(values), "batch"
        else:
            shapes = " and ".join(dict.fromkeys(str(list(value.shape)) for value in values))
            raise _no_results(name, f"of the shapes {shapes} for batches of {' and '.join(map(str, counts))} rows")
    return outputs, per


def _no_results(name: str, came: str) -> GraphError:
    expected = "Results of a data set have one row for each row of data, or one shape for every batch"
    return GraphError.at(name, "", f"{expected}; this output is {came}.", "Remove the output.", "shape")
