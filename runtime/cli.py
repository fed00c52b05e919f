"""`qmoe`: graphs from a shell. Every command imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

FINDINGS, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes: something is wrong with what was asked for; the question is wrong; Ctrl-C."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

app = typer.Typer(
    name="qmoe",
    help="Block diagrams of ONNX operators, with quantized mixtures of experts: run, check, convert, compare.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="a .yaml or .png snippet or an .onnx model")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]
ClusterOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS|local", help="the workers of a Ray cluster, or of one on this machine"),
]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="workers of the cluster [default: all processors]")]


def main() -> None:
    """The console script: runs a command and turns errors into sentences and exit codes."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - it stays open to the end; None if it was closed
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign is no reason to fail
    from runtime.interrupts import remembering

    try:
        with _sentences():
            add_plug_ins()
            try:
                with remembering():
                    app(standalone_mode=True)
            finally:
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(_interrupted())
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _interrupted()
        raise


@cache
def add_plug_ins() -> None:
    """Adds the commands of installed packages: entry points `qmoe.commands`, functions that are given the app."""
    from importlib.metadata import entry_points

    for entry in entry_points(group="qmoe.commands"):
        entry.load()(app)


def _interrupted() -> int:
    print("Interrupted.", file=sys.stderr)
    return INTERRUPTED


@contextmanager
def _sentences() -> Iterator[None]:
    """Deliberate errors are told without a traceback; everything else is a bug and keeps it."""
    from runtime.errors import StudioError

    try:
        yield
    except StudioError as error:
        print(f"qmoe: {error}", file=sys.stderr)
        sys.exit(USAGE if _is_usage(error) else FINDINGS)
    except BrokenPipeError:
        _forget_output()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        _forget_output()
        print(f"qmoe: the output cannot be written: {error.strerror}.", file=sys.stderr)
        sys.exit(FINDINGS)


def _is_usage(error: Exception) -> bool:
    """Whether not the graph or a file is wrong, but what was asked for."""
    from runtime.errors import FileError, GraphError

    if isinstance(error, FileError):
        return error.code == "name"
    codes = {finding.code for finding in error.findings} if isinstance(error, GraphError) else set()
    return bool(codes) and codes <= {"name", "option", "probe", "size", "target"}


def _forget_output() -> None:
    """Nobody reads our output any more, or nothing more fits: Python would complain once more while it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"qmoe-studio {version('qmoe-studio')}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    pass


def _complete_node(incomplete: str) -> list[str]:
    from runtime import catalog

    return [name for cls in catalog.all_types() if (name := cls.type_name()).lower().startswith(incomplete.lower())]


@app.command()
def run(
    file: FileArgument,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="[NAME=]FILE", help="inputs.npz, or name=file.npy; may be repeated"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write outputs and probes to this .npz")] = None,
    size: Annotated[
        list[str] | None, typer.Option("--size", help="dimension=number for generated inputs; may be repeated")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of generated inputs")] = 0,
    probe: Annotated[
        list[str] | None, typer.Option(metavar="NODE.PORT", help="an output that is wanted too; may be repeated")
    ] = None,
    backend: Annotated[Literal["onnxruntime", "numpy"], typer.Option(help="what runs the graph")] = "onnxruntime",
    precision: Annotated[
        Literal["exact", "fast"], typer.Option(help="fast: kernels that round activations may be used")
    ] = "exact",
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="threads of one operator")] = None,
    as_is: Annotated[bool, typer.Option("--as-is", help="give ONNX Runtime the graph unchanged")] = False,
    check_numerics: Annotated[
        bool, typer.Option("--check-numerics", help="stop at the first node that makes a NaN or an infinity")
    ] = False,
    times: Annotated[bool, typer.Option(help="show the time of every node")] = True,
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="run on a data set: .npz, .npy, .parquet, or a folder of such"),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="write a data set's results here")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="rows that run together, of a data set [default: 256]")
    ] = None,
    shard_rows: Annotated[
        int | None, typer.Option(min=1, help="rows in a file of results [default: 16 batches]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="do what is missing in --out")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="set batches aside that fail, and say which")] = False,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a graph once, or over a data set. Inputs that are not given are generated to shape."""
    if data is not None:
        from runtime import cluster_commands

        if out is None:
            raise typer.BadParameter("say where the results go: --out FOLDER", param_hint="--data")
        alone = {
            "--output": output,
            "--probe": probe,
            "--size": size,
            "--as-is": as_is,
            "--check-numerics": check_numerics,
        }
        _none_of(alone, "of a single run; a data set is run with --data")
        cluster_commands.over_data(
            file,
            data=data,
            out=out,
            inputs=inputs or [],
            cluster=cluster,
            workers=workers,
            batch=batch,
            shard_rows=shard_rows,
            resume=resume,
            skip_bad=skip_bad,
            backend=backend,
            precision=precision,
            threads=threads,
            as_json=as_json,
        )
        return
    with_data = {"--out": out, "--batch": batch, "--shard-rows": shard_rows, "--resume": resume, "--skip-bad": skip_bad}
    _none_of(with_data, "of a data set: --data")
    if workers is not None and cluster is None:
        raise typer.BadParameter("workers are of a cluster: --cluster local", param_hint="--workers")
    if cluster is not None:
        _none_of({"--probe": probe, "--as-is": as_is, "--check-numerics": check_numerics}, "of a run without --cluster")
    from runtime import reports

    reports.run(
        file,
        inputs=inputs or [],
        output=output,
        sizes=dict(_pair(text, "--size", _size) for text in size or []),
        seed=seed,
        probes=probe or [],
        backend=backend,
        precision=precision,
        threads=threads,
        as_is=as_is,
        check_numerics=check_numerics,
        times=times,
        cluster=cluster,
        workers=workers,
        as_json=as_json,
    )


def _none_of(options: dict[str, Any], why: str) -> None:
    for name, value in options.items():
        if value:
            raise typer.BadParameter(f"it is {why}", param_hint=name)


def _size(text: str) -> int:
    size = int(text)
    if size < 0:
        raise ValueError
    return size


def _pair(text: str, option: str, kind: Callable[[str], Any]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        if not (name and equals):
            raise ValueError
        return name, kind(value)
    except ValueError:
        raise typer.BadParameter(f"expected name=value, got {text!r}", param_hint=option) from None


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help=".yaml or .png snippets or .onnx models")],
    as_json: JsonOption = False,
) -> None:
    """Say everything that is wrong with graphs. Ends with 1 if something is."""
    from runtime import reports

    if reports.check(files, as_json):
        raise typer.Exit(FINDINGS)


@app.command()
def info(file: FileArgument, as_json: JsonOption = False) -> None:
    """Summarise a graph: nodes, types, shapes, parameters, bytes."""
    from runtime import reports

    reports.info(file, as_json)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="a .yaml or .png snippet or an .onnx model")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="a .yaml or .png snippet or an .onnx model")],
    target: Annotated[
        Literal["onnxruntime", "schema", "portable"] | None,
        typer.Option(help="whose an .onnx file is: ONNX Runtime's CPU kernels' (default), other kernels', all's"),
    ] = None,
) -> None:
    """Write a graph in another form, by the ends of the file names."""
    from runtime import reports

    reports.convert(source, destination, target)


@app.command()
def nodes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="print its page of the manual", autocompletion=_complete_node)
    ] = None,
    domain: Annotated[str | None, typer.Option(help="list this domain only; ai.onnx is the standard one")] = None,
    search: Annotated[str | None, typer.Option(help="list types with this in name or description")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the node types, or print the manual page of one."""
    from runtime import reports

    reports.nodes(name, domain, search, as_json)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="a .yaml or .png snippet or an .onnx model")],
    second: Annotated[Path, typer.Argument(metavar="B", help="a .yaml or .png snippet or an .onnx model")],
    as_json: JsonOption = False,
) -> None:
    """Say how two graphs differ in meaning, not in layout. Ends with 1 if they do."""
    from runtime import reports

    if reports.diff(first, second, as_json):
        raise typer.Exit(FINDINGS)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="a .yaml or .png snippet or an .onnx model")],
    second: Annotated[
        Path | None,
        typer.Argument(metavar="[B]", help="what is compared with it; without it, A with the floats it remembers"),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--inputs", "--input", "-i", metavar="[NAME=]FILE", help="inputs.npz, or name=file.npy; may be repeated"
        ),
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option("--size", help="dimension=number for generated inputs; may be repeated")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of generated inputs")] = 0,
    pictures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="draw ratios along the graph and experts x blocks")
    ] = None,
    twin: Annotated[
        Path | None, typer.Option(help="where the floats of A are, if there is no B: a graph or a checkpoint's folder")
    ] = None,
    backend: Annotated[Literal["onnxruntime", "numpy"], typer.Option(help="what runs the graphs")] = "onnxruntime",
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="threads of one operator")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run two graphs on the same inputs and say how far their values are apart, wire by wire, expert by expert."""
    from runtime import comparison_commands

    comparison_commands.compare_files(
        first,
        second,
        twin=twin,
        inputs=inputs or [],
        sizes=dict(_pair(text, "--size", _size) for text in size or []),
        seed=seed,
        backend=backend,
        threads=threads,
        pictures=pictures,
        as_json=as_json,
    )


LossOption = Annotated[
    list[str] | None,
    typer.Option("--loss", metavar="NAME[=WEIGHT]", help="an output that is a loss; may be repeated [default: loss]"),
]
OptimizerOption = Annotated[Literal["sgd", "adam", "adamw"], typer.Option(help="how weights follow their gradients")]
MomentumOption = Annotated[float | None, typer.Option(help="of sgd")]
NesterovOption = Annotated[bool | None, typer.Option("--nesterov", help="of sgd")]
DecayOption = Annotated[float | None, typer.Option(help="weight decay")]
ClipOption = Annotated[float | None, typer.Option(help="most that the norm of all gradients may be")]
AccumulateOption = Annotated[int, typer.Option(min=1, help="steps over which gradients are averaged")]
AverageOption = Annotated[float | None, typer.Option(help="decay of a moving average of the weights")]


def _losses(texts: list[str] | None) -> list[tuple[str, float]]:
    return [_pair(text if "=" in text else f"{text}=1", "--loss", float) for text in texts or []]


@app.command()
def train(
    file: FileArgument,
    data: Annotated[
        list[Path], typer.Option("--data", "-d", help="arrays by input name, .npz or .safetensors; may be repeated")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write the trained graph here")] = None,
    loss: LossOption = None,
    optimizer: OptimizerOption = "adam",
    rate: Annotated[float, typer.Option(help="learning rate")] = 1e-3,
    schedule: Annotated[
        Literal["constant", "linear", "cosine", "step", "exponential"], typer.Option(help="how the rate changes")
    ] = "constant",
    warm_up: Annotated[int, typer.Option(min=0, help="steps over which the rate rises")] = 0,
    rate_end: Annotated[float, typer.Option(help="the rate at the end, of linear and cosine")] = 0.0,
    rate_steps: Annotated[int, typer.Option(min=0, help="steps that linear and cosine take [default: all]")] = 0,
    rate_every: Annotated[int, typer.Option(min=1, help="steps between two changes, of step")] = 1000,
    rate_factor: Annotated[float, typer.Option(help="what the rate is multiplied by, of step and exponential")] = 0.1,
    momentum: MomentumOption = None,
    nesterov: NesterovOption = None,
    weight_decay: DecayOption = None,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch: Annotated[int, typer.Option(min=1, help="samples in a step")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="seed of the order of samples")] = 0,
    validation: Annotated[float, typer.Option(help="share of the samples that is held back, from their end")] = 0.0,
    patience: Annotated[int, typer.Option(min=0, help="stop after so many epochs that were no better; 0: never")] = 0,
    clip: ClipOption = None,
    accumulate: AccumulateOption = 1,
    average: AverageOption = None,
    folder: Annotated[Path | None, typer.Option(help="keep checkpoints and the log here")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --folder")] = False,
    curve: Annotated[Path | None, typer.Option(help="draw the losses into this .png")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="accuracy:OUTPUT:TARGET, top-5:OUTPUT:TARGET, mse:OUTPUT:TARGET or perplexity:LOSS; repeat"),
    ] = None,
    backend: Annotated[Literal["onnxruntime", "numpy"], typer.Option(help="what runs the graph")] = "onnxruntime",
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="threads of one operator")] = None,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    by_parts: Annotated[
        bool, typer.Option("--by-parts", help="divide batches also where a loss is no mean over their rows")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a graph's trainable weights on arrays of samples."""
    if workers is not None and cluster is None:
        raise typer.BadParameter("workers are of a cluster: --cluster local", param_hint="--workers")
    if by_parts and cluster is None:
        raise typer.BadParameter("parts are those of a cluster's workers: --cluster local", param_hint="--by-parts")
    from runtime.training import commands

    commands.train(
        file,
        data=data,
        losses=_losses(loss),
        optimizer=commands.optimizer_of(
            optimizer, {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        ),
        schedule={
            "rate": rate,
            "kind": schedule,
            "warm_up": warm_up,
            "end": rate_end,
            "steps": rate_steps,
            "every": rate_every,
            "factor": rate_factor,
        },
        settings={
            "epochs": epochs,
            "batch_size": batch,
            "seed": seed,
            "validation": validation,
            "patience": patience,
            "clip_norm": clip,
            "accumulate": accumulate,
            "average": average,
        },
        folder=folder,
        resume=resume,
        output=output,
        curve=curve,
        metrics=metric or [],
        backend=backend,
        threads=threads,
        cluster=cluster,
        workers=workers,
        by_parts=by_parts,
        as_json=as_json,
    )


@app.command("export-training")
def export_training(
    file: FileArgument,
    destination: Annotated[Path, typer.Argument(metavar="STEP", help="the .onnx file to write")],
    loss: LossOption = None,
    optimizer: OptimizerOption = "adam",
    momentum: MomentumOption = None,
    nesterov: NesterovOption = None,
    weight_decay: DecayOption = None,
    clip: ClipOption = None,
    accumulate: AccumulateOption = 1,
    average: AverageOption = None,
) -> None:
    """Write a graph's training step as a file that a plain ONNX Runtime trains with."""
    from runtime.training import commands

    commands.export(
        file,
        destination,
        losses=_losses(loss),
        optimizer=commands.optimizer_of(
            optimizer, {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        ),
        clip_norm=clip,
        accumulate=accumulate,
        average=average,
    )


snippet = typer.Typer(help="Pictures that carry their graph.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(snippet, name="snippet")

PicturesArgument = Annotated[list[Path], typer.Argument(metavar="FILE...", help=".png, .bmp or .webp pictures")]


@snippet.command("check")
def check_snippets(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="pictures, or folders with pictures")],
    as_json: JsonOption = False,
) -> None:
    """Say whether pictures hold the graphs that they show. Ends with 1 if one does not."""
    from runtime.snippets import commands

    if commands.check(files, as_json):
        raise typer.Exit(FINDINGS)


@snippet.command("render")
def render_snippet(
    file: FileArgument,
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="the .png file to write")],
    theme: Annotated[Literal["light", "dark"], typer.Option(help="colours of the picture")] = "light",
    scale: Annotated[float, typer.Option(min=1, max=4, help="pixels for each unit")] = 2.0,
    node: Annotated[list[str] | None, typer.Option(help="show this node; repeat for several [default: all]")] = None,
) -> None:
    """Draw a graph, or some of its nodes, as a picture that carries what it shows."""
    from runtime.snippets import commands

    commands.render(file, destination, theme, scale, node)


@snippet.command("fuzz", hidden=True)
def fuzz_snippets(
    files: PicturesArgument,
    count: Annotated[int, typer.Option(min=1, help="how many mutations")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="seed of the mutations")] = 0,
    keep: Annotated[Path | None, typer.Option(help="write files that fail into this folder")] = None,
    as_json: JsonOption = False,
) -> None:
    """Load broken and hostile mutations of pictures. Ends with 1 if one is neither loaded nor refused."""
    from runtime.snippets import commands

    if commands.fuzz_files(files, count, seed, keep, as_json):
        raise typer.Exit(FINDINGS)


@app.command()
def edit(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="a .yaml or .png snippet or an .onnx model")
    ] = None,
    theme: Annotated[
        Literal["light", "dark"] | None, typer.Option(help="colours [default: as last time, or the desktop's]")
    ] = None,
) -> None:
    """Open the editor."""
    from importlib.metadata import entry_points

    (editor,) = entry_points(group="qmoe.editor")  # what is headless does not know the editor
    raise typer.Exit(editor.load()(file, theme))


@app.command()
def demo(
    picture: Annotated[Path | None, typer.Option(help="draw which expert sees which digit into this .png")] = None,
) -> None:
    """Run the mixtures that come along on both backends: a tuned 2-bit classifier, and a block beside torch."""
    from runtime import demonstration

    demonstration.show(picture)


if __name__ == "__main__":
    main()
