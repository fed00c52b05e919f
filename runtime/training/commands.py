"""What `qmoe train` and `qmoe export-training` do."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.arrays import read_arrays
from runtime.cluster import Cluster, sentence
from runtime.cluster_commands import shares
from runtime.errors import FileError, Finding, GraphError
from runtime.files import check_destination, save
from runtime.graph import Graph
from runtime.hosting import Opening
from runtime.interrupts import in_a_thread
from runtime.reports import console, errors, opened
from runtime.training.curve import save_curve
from runtime.training.evaluation import Metric
from runtime.training.export import save_step
from runtime.training.optimizers import OPTIMIZERS, Optimizer
from runtime.training.schedules import Schedule
from runtime.training.step import TOTAL, trainable_weights, training_step
from runtime.training.trainer import Progress, Runner, Settings, Trainer, finite


def optimizer_of(name: str, options: Mapping[str, Any]) -> Optimizer:
    """The optimizer of that name; options of None are its defaults. GraphError for one that it does not have."""
    cls = OPTIMIZERS[name]
    given = {key: value for key, value in options.items() if value is not None}
    unknown = [key for key in given if key not in cls.__dataclass_fields__]
    if unknown:
        raise GraphError(Finding(f"{name} has no {unknown[0].replace('_', '-')}.", code="option"))
    return cls(**given)


def losses_of(graph: Graph, given: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The losses and their weights: those given, else the output called loss, else the only output."""
    if given:
        return dict(given)
    outputs = [str(s.parameters.get("name") or id) for id, s in graph.nodes.items() if s.type == "Output"]
    if "loss" in outputs or len(outputs) == 1:
        return {"loss" if "loss" in outputs else outputs[0]: 1.0}
    there = ", ".join(outputs) or "none"
    raise GraphError(
        Finding("Which output is the loss?", remedy=f"Say it: --loss NAME. Outputs: {there}.", code="option")
    )


def train(
    file: Path,
    *,
    data: Sequence[Path],
    losses: Sequence[tuple[str, float]],
    optimizer: Optimizer,
    schedule: Mapping[str, Any],
    settings: Mapping[str, Any],
    folder: Path | None,
    resume: bool,
    output: Path | None,
    curve: Path | None,
    metrics: Sequence[str],
    backend: Any,
    threads: int | None,
    cluster: str | None,
    workers: int | None,
    by_parts: bool,
    as_json: bool,
) -> None:
    """Trains a graph, prints a line for every epoch, and writes the trained graph."""
    graph = opened(file)
    arrays: dict[str, np.ndarray] = {}
    for path in data:
        arrays |= read_arrays(path)
    if "" in arrays:
        raise FileError(data[0], "is one array without a name; put the inputs into an .npz.", code="name")
    chosen = Settings(
        losses=losses_of(graph, losses),
        optimizer=optimizer,
        metrics=[Metric.parse(text) for text in metrics],
        **settings,
    )
    inputs = [str(s.parameters.get("name") or id) for id, s in graph.nodes.items() if s.type == "Input"]
    samples = min((len(arrays[name]) for name in inputs if name in arrays and arrays[name].ndim), default=0)
    training = samples - round(samples * chosen.validation)
    plan = dict(schedule)
    if plan["kind"] in ("linear", "cosine") and not plan["steps"]:
        plan["steps"] = max(1, chosen.epochs * -(-training // chosen.batch_size) - plan["warm_up"])
    chosen = replace(chosen, schedule=Schedule(**plan))
    if output is not None:
        check_destination(output)
    if curve is not None:
        check_destination(curve, (".png",))
    options: dict[str, Any] = {"folder": folder, "resume": resume, "backend": backend, "threads": threads}
    shower = _Shower(as_json)
    with ExitStack() as ends:
        if cluster is not None:

            def over_workers() -> Runner:
                from runtime.training.parallel import ClusterRunner

                most = min(chosen.batch_size, training)
                pool = Cluster(
                    cluster or "", workers, [{"graph": graph}], Opening(backend, threads), tell=shower.tell, most=most
                )
                ends.callback(pool.close)
                runner = ClusterRunner(
                    graph, chosen, pool, tell=shower.tell, backend=backend, threads=threads, by_parts=by_parts
                )
                shower.rows = runner.rows
                return runner

            options["runner"] = over_workers
        trainer = Trainer(graph, arrays, chosen, **options)
        shower.watch(trainer)
        try:
            trained = _trained(trainer, file, graph, training, resume, shower)
        except KeyboardInterrupt:
            if folder is not None and trainer.epoch:
                text = f"{trainer.epoch} of {chosen.epochs} epochs are in {folder}; go on with --resume."
                errors.print(text, markup=False, soft_wrap=True)
            raise
    names = [name for entry in trainer.history[:1] for name in entry if name != "learning_rate"]
    if output is not None:
        save(trained, output)
    if curve is not None:
        shown = [name for name in names if TOTAL in name] if len(chosen.losses) > 1 else list(chosen.losses)
        save_curve(
            curve, trainer.history, [*shown, *(f"validation {name}" for name in shown if f"validation {name}" in names)]
        )
    if as_json:
        history = [finite(entry) for entry in trainer.history]
        facts = {"file": str(file), "epochs": trainer.epoch, "history": history, "expert_load": trainer.loads}
        shower.show({"event": "finished", **facts})
        return
    for written in (output, curve):
        if written is not None:
            console.print(f"Written to {written}.", markup=False)


def _trained(trainer: Trainer, file: Path, graph: Graph, samples: int, resume: bool, shower: _Shower) -> Graph:
    weights = sum(graph.nodes[id].parameters["tensor"].size for id in trainable_weights(graph).values())
    if shower.as_json:
        epochs = {"epochs": trainer.settings.epochs, "done": trainer.epoch}
        shower.show({"event": "started", "file": str(file), "weights": weights, "samples": samples, **epochs})
    else:
        console.print(f"{graph.name or file.stem}: {weights:,} trainable weights, {samples:,} samples", markup=False)
        if resume:
            console.print(f"goes on after epoch {trainer.epoch}")
    return _run(trainer, shower)


class _Shower:
    """What happens, as JSON lines or in sentences. `rows` says how many each worker has computed, if there are any."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.rows: Mapping[int, int] = {}
        self._trainer: Trainer | None = None
        self._waiting: list[Mapping[str, Any]] = []

    def watch(self, trainer: Trainer) -> None:
        """The trainer's log gets what happens to workers, also what has happened already."""
        self._trainer = trainer
        for event in self._waiting:
            trainer.note(event)

    def tell(self, event: Mapping[str, Any]) -> None:
        """Shows and logs what happens to workers; to people, only what should not."""
        if self._trainer is not None:
            self._trainer.note(event)
        else:
            self._waiting.append(event)
        if self.as_json:
            self.show(event)
        elif event["event"] != "worker":
            errors.print(sentence(event), markup=False, soft_wrap=True)

    def show(self, event: Mapping[str, Any]) -> None:
        """Prints an event as a line of JSON."""
        print(json.dumps(event), flush=True)

    def epoch(self, number: int, entry: Mapping[str, float], load: Mapping[str, Any], names: Sequence[str]) -> None:
        """Shows what an epoch gave."""
        if self.as_json:
            event: dict[str, Any] = {"event": "epoch", "epoch": number, **finite(entry)}
            event |= {"expert_load": load} if load else {}
            event |= {"rows_by_worker": dict(sorted(self.rows.items()))} if self.rows else {}
            self.show(event)
            return
        numbers = "  ".join(f"{name} {entry[name]:.4g}" for name in names)
        console.print(f"epoch {number:>3}  {numbers}", markup=False)


def _run(trainer: Trainer, shower: _Shower) -> Graph:
    """The training in a thread of its own, so that Ctrl-C is heard while native code works; a line for every epoch."""
    cancel = threading.Event()
    shown = trainer.epoch

    def tell() -> None:
        nonlocal shown
        for entry in trainer.history[shown:]:
            names = [name for name in entry if len(trainer.settings.losses) > 1 or TOTAL not in name]
            shown += 1
            shower.epoch(shown, entry, trainer.loads[shown - 1], names)

    def run(report: Any) -> Graph:
        graph = in_a_thread(cancel, trainer.run, report, cancel)
        tell()
        return graph

    if not errors.is_terminal:
        return run(lambda progress: tell())
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Bar(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("training")

        def show(progress: Progress) -> None:
            tell()
            text = f"epoch {progress.epoch + 1}  loss {progress.losses[TOTAL]:.4g}  rate {progress.rate:.3g}"
            text += f"  ({shares(shower.rows)})" if shower.rows else ""
            bar.update(task, completed=progress.step, total=progress.steps, description=text)

        return run(show)


def export(
    file: Path,
    destination: Path,
    *,
    losses: Sequence[tuple[str, float]],
    optimizer: Optimizer,
    clip_norm: float | None,
    accumulate: int,
    average: float | None,
) -> None:
    """Writes a graph's training step as an ONNX file and says how it is used."""
    if destination.suffix.lower() != ".onnx":
        raise FileError(destination, "a training step is written as .onnx.", code="name")
    graph = opened(file)
    step = training_step(
        graph,
        losses_of(graph, losses),
        optimizer,
        clip_norm=clip_norm,
        accumulate=accumulate,
        average=average,
    )
    save_step(step, destination)
    size = destination.stat().st_size
    console.print(f"{file} -> {destination} ({size:,} bytes)", markup=False, soft_wrap=True)
    console.print(
        f"  in: {', '.join(step.batch)}, learning_rate, and {len(step.carried)} carried tensors", markup=False
    )
    console.print(f"  out: {', '.join(step.losses)}, total_loss, gradient_norm, and what is carried, as next.NAME")
