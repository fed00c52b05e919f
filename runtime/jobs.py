"""What a worker and its process tell each other: jobs one way, events and results the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from runtime.errors import Finding
from runtime.routing import Routing
from runtime.summaries import Summary
from runtime.tensors import Tensor

if TYPE_CHECKING:
    from runtime.training.trainer import Settings

Backend: TypeAlias = Literal["onnxruntime", "numpy"]
Precision: TypeAlias = Literal["exact", "fast"]
Phase: TypeAlias = Literal["starting", "opening", "forward", "backward", "training", "waiting"]


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Stands for an array that is too large to be sent whole: its first rows, and a summary of all of it."""

    first: np.ndarray
    summary: Summary

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""
        return self.summary.shape


Value: TypeAlias = Any
"""An array, an `Excerpt` of one, a list for a sequence, or None for an absent optional."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run gave.

    `outputs` and `gradients` are by name, `probes`, `gradient_probes` and `summaries` by "node.port". `summaries` has
    every wire that was computed, if that was asked for, and all probes; `gradient_summaries` all gradients that were
    probed, by "node.port", and those by name. `times` and `backward_times` are seconds by node, `norms` and `kept` what
    `Run` says. `routings` tells for every mixture where it sent its tokens. `reason` says why the graph was opened
    again; it is empty if it was open. `excerpts` names the values that were too large to come whole.
    """

    outputs: Mapping[str, Value]
    probes: Mapping[str, Value] = field(default_factory=dict)
    gradients: Mapping[str, Value] = field(default_factory=dict)
    gradient_probes: Mapping[str, Value] = field(default_factory=dict)
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    gradient_summaries: Mapping[str, Summary] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    backward_times: Mapping[str, float] = field(default_factory=dict)
    norms: Mapping[str, float] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)
    routings: Mapping[str, Routing] = field(default_factory=dict)
    placement: Mapping[str, str] = field(default_factory=dict)
    findings: Sequence[Finding] = ()
    reason: str = ""
    opening_seconds: float = 0.0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0

    @property
    def excerpts(self) -> tuple[str, ...]:
        """The names of outputs, probes and gradients of which only the first rows came."""
        groups = (self.outputs, self.probes, self.gradients, self.gradient_probes)
        return tuple(name for group in groups for name, value in group.items() if isinstance(value, Excerpt))


@dataclass(frozen=True, slots=True)
class Training:
    """What a training run gave: `weights` by the ids of their initializers, those of `best_epoch` if that is known.

    `history` and `loads` have an entry for every epoch, as the trainer's.
    """

    weights: Mapping[str, Tensor]
    best_epoch: int | None
    history: Sequence[Mapping[str, float]]
    loads: Sequence[Mapping[str, Sequence[float]]]


# -- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """A job has begun. `reason` says why its graph has to be opened again; it is empty if it is open."""

    job: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Progressed:
    """`done` of `total` nodes have run in this phase; `node` comes next, "" at the end."""

    job: int
    node: str
    done: int
    total: int
    phase: Phase = "forward"


@dataclass(frozen=True, slots=True)
class Finished:
    """A job has ended well. `result` is a `Result` of a run, a `Training` of a training run."""

    job: int
    result: Result | Training


@dataclass(frozen=True, slots=True)
class Failed:
    """A job cannot be done: `findings` says why. `details` is for a report of a mistake in this program."""

    job: int
    findings: tuple[Finding, ...]
    details: str = ""

    @property
    def message(self) -> str:
        """The findings as text, a line each."""
        return "\n".join(str(finding) for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process has died. `nodes` were running together, if any was; `node` is the first of them.

    `exit_code` is the process's, negative for a signal, whose name is `signal` then. The next job gets a new process.
    """

    job: int
    nodes: tuple[str, ...]
    phase: Phase
    exit_code: int
    signal: str
    remedy: str

    @property
    def node(self) -> str:
        """The first of the nodes that were running; empty if none was."""
        return self.nodes[0] if self.nodes else ""

    @property
    def message(self) -> str:
        """What happened, in a sentence."""
        how = f"was ended by {self.signal}" if self.signal else f"ended with exit code {self.exit_code}"
        if not self.nodes:
            return f"The process that runs graphs {how} while it was {self.phase}."
        others = f" and {len(self.nodes) - 1} nodes that run with it" if len(self.nodes) > 1 else ""
        way = " backward" if self.phase == "backward" else ""
        return f"The process that runs graphs {how} while it ran {self.node}{others}{way}."

    @property
    def finding(self) -> Finding:
        """The crash as a finding about the node."""
        return Finding(self.message, self.node, remedy=self.remedy, code="crash")


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A job was cancelled; `killed` if it had to be ended with its process. Of a training run, what it had reached."""

    job: int
    killed: bool = False
    training: Training | None = None


@dataclass(frozen=True, slots=True)
class TrainingProgressed:
    """A training step was made: `epoch` counts from 0, `step` from 1 through all epochs, `steps` is their number."""

    job: int
    epoch: int
    step: int
    steps: int
    losses: Mapping[str, float]
    rate: float
    gradient_norm: float


@dataclass(frozen=True, slots=True)
class EpochFinished:
    """A training epoch has ended: its entry in the history, and by node each expert's share of the choices."""

    job: int
    epoch: int
    entry: Mapping[str, float]
    loads: Mapping[str, Sequence[float]]
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class Paused:
    """A training run waits between two steps, or goes on again."""

    job: int
    is_paused: bool


@dataclass(frozen=True, slots=True)
class BestWeights:
    """The answer to `Worker.request_best`: what the training run has reached so far."""

    job: int
    training: Training


Event: TypeAlias = (
    Started
    | Progressed
    | Finished
    | Failed
    | Crashed
    | Cancelled
    | TrainingProgressed
    | EpochFinished
    | Paused
    | BestWeights
)


# -- jobs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opening:
    """How a graph is opened for running."""

    backend: Backend = "onnxruntime"
    threads: int | None = None
    precision: Precision = "exact"
    until: str = ""


@dataclass(frozen=True, slots=True)
class RunJob:
    """A run. `graph` is None if the process has it already; `fresh` says that it must be opened again."""

    job: int
    graph: Any
    fresh: bool
    opening: Opening
    inputs: Mapping[str, Any]
    probes: tuple[str, ...]
    backward: Mapping[str, Any] | None
    gradient_probes: tuple[str, ...]
    times: bool
    check_numerics: bool
    everything: bool
    reason: str


@dataclass(frozen=True, slots=True)
class TrainJob:
    """A training run."""

    job: int
    graph: Any
    data: Mapping[str, Any]
    settings: Settings
    folder: str | None
    resume: bool
    backend: Backend
    threads: int | None


@dataclass(frozen=True, slots=True)
class Order:
    """What a process does beside its job, at once or between two steps. After "job", the job itself follows."""

    what: Literal["job", "cancel", "pause", "resume", "best", "close"]
    job: int = 0


@dataclass(frozen=True, slots=True)
class At:
    """Where a process is: told before it goes there, so that a crash can name the place."""

    job: int
    phase: Phase
    nodes: tuple[str, ...] = ()
