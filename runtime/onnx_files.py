"""`.onnx` files in and out."""

from __future__ import annotations

import mmap
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from runtime.atomic import replacing
from runtime.check import Checker
from runtime.compile import DATA_FILE, PREFIX, Compiled, compile_graph
from runtime.errors import FileError, Finding, GraphError, Severity
from runtime.graph import Graph
from runtime.onnx_export import parts_of, write_in_one, write_in_two
from runtime.onnx_import import import_model
from runtime.tensors import Tensor
from runtime.types import TensorType, ValueType

TARGETS = ("onnxruntime", "schema", "portable")
"""What an exported file is for: ONNX Runtime's CPU kernels; whoever knows the operators as their schemas describe them
(also ONNX Runtime on other devices); whoever knows standard ONNX operators only."""

LARGEST_MESSAGE = (1 << 31) - 1
"""Bytes of the largest file that protobuf reads."""

LARGEST_IN_ONE = 1_500_000_000
"""Bytes of initializers up to which a model is written into one file."""

LARGEST_MAPPED_IN_ONE = 1 << 26
"""Bytes of initializers that came from a data file up to which a model is written into one file."""


def load_onnx(path: str | Path) -> Graph:
    """The document for an ONNX file. Tensors in data files beside it are mapped, not read.

    FileError names the file and says what was expected, and what is wrong with it.
    """
    path = Path(path)
    return import_model(_read(path), path)


def save_onnx(graph: Graph, path: str | Path, target: str = "onnxruntime") -> list[Finding]:
    """Writes a graph as an ONNX file for one of TARGETS; returns what is worth knowing about the result.

    Tensors go to `<name>.onnx.data` (or `<name>.onnx.1.data` while that is taken) beside the file when they are too
    large for one file, or were mapped from a data file and are large. The old files stay whole until the new ones are;
    then a data file that we wrote goes, unless a model beside it names it. A link stands for the file it leads to.
    GraphError with the findings of `check` if the graph is wrong; FileError if the file cannot be written.
    """
    if target not in TARGETS:
        raise GraphError(Finding(f"A file is exported for one of {', '.join(TARGETS)}; not {target!r}.", code="target"))
    path = Path(path).resolve()
    checker = Checker(graph.copy())
    # What is unknown is written as it came: whoever reads the file may know it.
    wrong = [f for f in checker.findings() if f.severity is Severity.ERROR and f.code != "unknown-type"]
    if wrong:
        raise GraphError(wrong)
    compiled = compile_graph(graph)
    findings = _fit(compiled, target, checker)
    ports = {name: port for port, name in compiled.values.items()}

    def type_of(name: str) -> ValueType:
        return checker.type_of(ports[name]) if name in ports else TensorType()

    mapped = sum(tensor.nbytes for tensor in _tensors(graph) if tensor.is_mapped)
    parts = parts_of(compiled.model, type_of)
    before = _data_files(path)
    if parts.bulk and (parts.nbytes > LARGEST_IN_ONE or mapped > LARGEST_MAPPED_IN_ONE):
        data_path = _free_path(path)
        try:
            # The data file takes its place first: the old model never meets the new data, nor the new model none.
            with replacing(path) as file, replacing(data_path) as data:
                write_in_two(parts, file, data, data_path.name)
        except BaseException:
            if not path.is_file() or data_path.name.encode() not in path.read_bytes():
                data_path.unlink(missing_ok=True)
            raise
    else:
        with replacing(path) as file:
            write_in_one(parts, file)
    for old in before:
        old.unlink(missing_ok=True)
    return findings


def _fit(compiled: Compiled, target: str, checker: Checker) -> list[Finding]:
    """Rewrites a compiled model for a target."""
    if target == "schema":
        return []
    from runtime import lowering

    compiled.mark_nodes()
    take_back = compiled.give_types(checker.type_of)
    if target == "onnxruntime":
        findings = lowering.lower(compiled.model, precision="exact", feeds=False)
        take_back()
        return findings
    lowering.expand(compiled.model)
    take_back()
    graphs = [compiled.model.graph, *(function.graph for function in compiled.model.functions.values())]
    used = {node.domain for graph in graphs for node in graph.all_nodes()} | {""}
    for domain in set(compiled.model.opset_imports) - used:
        del compiled.model.opset_imports[domain]  # a runtime may refuse what it does not know, used or not
    return [
        Finding(
            f"{node.domain}.{node.op_type} is no standard ONNX operator; the file has it as it is.",
            node.metadata_props.get(PREFIX + "node", ""),
            severity=Severity.WARNING,
            code="not-portable",
        )
        for node in compiled.model.graph.all_nodes()
        if node.domain not in ("", "ai.onnx.ml") and node.op_identifier() not in compiled.model.functions
    ]


def _tensors(graph: Graph) -> list[Tensor]:
    values = (state.parameters.get("tensor") for state in graph.nodes.values())
    return [value for value in values if isinstance(value, Tensor)]


def _read(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise FileError(path, "is a folder; an ONNX file was expected.")
        if size > LARGEST_MESSAGE:
            raise FileError(path, f"has {size} bytes; ONNX files have less than 2 GiB, their tensors lie beside them.")
        data = path.read_bytes()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}.") from error
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise FileError(path, "is no ONNX model, or only a part of one.") from error
    if not model.HasField("graph") or not (model.ir_version or model.opset_import):
        raise FileError(path, "is no ONNX model: it holds no graph.")
    return model


def _free_path(path: Path) -> Path:
    """Where the data of a model may go: beside it, where no file is yet."""
    free, number = path.with_name(f"{path.name}.data"), 0
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}.data")
    return free


def _data_files(path: Path) -> set[Path]:
    """The data file that we wrote for the model at `path`, which goes when that is replaced.

    Not one of somebody else's making, and not while another model in the folder names it: copies of a model share it.
    """
    if not path.is_file():
        return set()
    try:
        old = _read(path)
    except FileError:
        return set()  # no model: what lies beside it is not ours to remove
    ours = {entry.value for entry in old.metadata_props if entry.key == DATA_FILE}
    used = {
        entry.value for tensor in old.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    return {
        path.parent / name
        for name in ours & used
        if (path.parent / name).is_file() and name == Path(name).name and not _is_named_by_others(path, name)
    }


def _is_named_by_others(path: Path, name: str) -> bool:
    """Whether another file in a model's folder that may be a model names a data file; so too if that cannot be told."""
    for other in path.parent.iterdir():
        if other == path or other.suffix.lower() not in (".onnx", ".ort", ".pb") or not other.is_file():
            continue
        try:
            with other.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(name.encode()) >= 0:
                    return True
        except (OSError, ValueError):  # an empty file cannot be mapped, and names nothing
            if other.stat().st_size:
                return True
    return False
