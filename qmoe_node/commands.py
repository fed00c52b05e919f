"""The commands that `qmoe` gets from here. Each imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from runtime.cli import JsonOption

SourceArgument = Annotated[
    Path, typer.Argument(metavar="SOURCE", help="a checkpoint's folder, or a graph with MoE nodes")
]
MethodName = Literal["nearest", "onnxruntime", "least-squares", "half-quadratic", "gptq", "awq"]
CalibrationOption = Annotated[
    list[Path] | None,
    typer.Option("--calibration", "-c", help="tokens: hidden states by mixture, or a graph's inputs; may be repeated"),
]
LayersOption = Annotated[str | None, typer.Option(metavar="0,3-5", help="these layers only [default: all]")]
MinimumOption = Annotated[
    int, typer.Option(min=0, help="calibration tokens that an expert must have seen for gptq and awq")
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(quantize)
    app.command()(sweep)
    app.command()(shard)


def quantize(
    source: SourceArgument,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="a .yaml, .png or .onnx file, or a folder for a file each")
    ],
    bits: Annotated[int, typer.Option(help="bits of a weight: 2, 4 or 8")] = 4,
    fc2_bits: Annotated[int | None, typer.Option(help="bits of fc2's weights, if others")] = None,
    block_size: Annotated[int, typer.Option(help="columns that share a scale: 16 to 256; 0 for whole rows")] = 32,
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="give each block a zero point")] = False,
    method: Annotated[MethodName, typer.Option(help="how codes and scales are found")] = "nearest",
    calibration: CalibrationOption = None,
    layers: LayersOption = None,
    minimum_tokens: MinimumOption = 8,
    tune: Annotated[
        int, typer.Option(min=0, metavar="STEPS", help="train scales, biases and router towards the floats' outputs")
    ] = 0,
    report: Annotated[Path | None, typer.Option(help="write what is printed, and more, to this .json")] = None,
    as_json: JsonOption = False,
) -> None:
    """Quantize the mixtures of a checkpoint or of a graph, and say what that does to them."""
    from qmoe_node.conversion import Plan
    from qmoe_node.quantizing import quantize as work

    work(
        source,
        out,
        Plan(bits, block_size, asymmetric, method, fc2_bits, minimum_tokens),
        layers=layers,
        calibration=calibration or [],
        tune=tune,
        report=report,
        as_json=as_json,
    )


def sweep(
    source: SourceArgument,
    bits: Annotated[str, typer.Option(metavar="2,4,8", help="widths to try")] = "2,4,8",
    block_size: Annotated[str, typer.Option(metavar="32,128,0", help="block sizes to try; 0: rows")] = "32,128,0",
    method: Annotated[
        str, typer.Option(metavar="nearest,gptq", help="methods to try; see `qmoe quantize`")
    ] = "nearest,least-squares",
    asymmetric: Annotated[
        bool | None, typer.Option("--asymmetric/--symmetric", help="with zero points, or without [default: both]")
    ] = None,
    calibration: CalibrationOption = None,
    layers: LayersOption = None,
    experts: Annotated[
        int | None, typer.Option(min=1, help="look at so many experts of each layer [default: all]")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="draw sizes and errors into this .png")] = None,
    as_json: JsonOption = False,
) -> None:
    """Try many ways to quantize the same mixtures: sizes and errors."""
    from qmoe_node.sweep import numbers, plans
    from qmoe_node.sweep import sweep as work

    ways = plans(
        list(numbers(bits, "--bits")),
        list(numbers(block_size, "--block-size")),
        [name.strip() for name in method.split(",")],  # type: ignore[misc]
        (False, True) if asymmetric is None else (asymmetric,),
    )
    work(
        source,
        ways,
        layers=layers,
        experts=experts,
        calibration=calibration or [],
        picture=picture,
        as_json=as_json,
    )


def shard(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a .yaml or .png snippet or an .onnx model")],
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="write the spread graph here; without it, only show it")
    ] = None,
    parts: Annotated[int, typer.Option(min=1, help="parts that the experts are spread over")] = 2,
    node: Annotated[
        list[str] | None, typer.Option(help="spread this QMoE node; repeat for several [default: all]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Spread the experts of a graph's QMoE nodes over parts, which workers can hold (qmoe run --cluster)."""
    from qmoe_node.sharding import show

    show(file, out, parts, node, as_json)
