"""What the commands of `qmoe` do: read, ask the runtime, print."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from runtime.arrays import read_arrays, write_arrays
from runtime.errors import FileError, Finding, GraphError, Severity
from runtime.feeds import generated, retyped
from runtime.files import load, save
from runtime.function_calls import port_title
from runtime.graph import Graph
from runtime.interrupts import in_a_thread
from runtime.tensors import Tensor
from runtime.types import ElementType, TensorType, ValueType

if TYPE_CHECKING:
    from runtime.session import Session
    from runtime.spread import SpreadSession

_T = TypeVar("_T")

console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 400)
"""Standard output. Lines are as long as they must be where it is no terminal, so that nothing is cut off."""

errors = Console(stderr=True, highlight=False)


class Fed(Protocol):
    """What is given values by name: a session, or whatever knows the types of its inputs and which have a default."""

    @property
    def inputs(self) -> Mapping[str, ValueType]: ...

    @property
    def optional(self) -> Collection[str]: ...


def opened(file: Path) -> Graph:
    """The graph in a file; what is worth knowing of the file goes to standard error."""
    notes: list[Finding] = []
    graph = load(file, notes)
    for note in notes:
        errors.print(f"{file}: {note}", markup=False, soft_wrap=True)
    return graph


# -- run ------------------------------------------------------------------------------------------------------------


def run(
    file: Path,
    *,
    inputs: Sequence[str],
    output: Path | None,
    sizes: Mapping[str, int],
    seed: int,
    probes: Sequence[str],
    backend: Any,
    precision: Any,
    threads: int | None,
    as_is: bool,
    check_numerics: bool,
    times: bool,
    cluster: str | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Runs a graph once and prints its outputs and where the time went."""
    from runtime.session import Session

    if output is not None and output.suffix != ".npz":
        raise FileError(output, f"has the ending {output.suffix!r}; expected .npz.", code="name")
    graph = opened(file)
    with ExitStack() as ends:
        session: Session | SpreadSession
        if cluster is None:
            session = Session(graph, backend, threads=threads, precision=precision, as_is=as_is)
            options = {"probes": probes, "check_numerics": check_numerics, "times": times}
        else:
            from runtime.hosting import Opening
            from runtime.spread import SpreadSession

            session, options = SpreadSession(graph, cluster, workers, Opening(backend, threads, precision)), {}
            ends.callback(session.close)
        given = given_values(inputs, session)
        feeds = given | generated_values(session, given, sizes, seed)
        start = perf_counter()
        outputs = watched(session.forward, feeds, **options)
        seconds = perf_counter() - start
    if output is not None:
        values = outputs | session.last_run.probes
        write_arrays(output, dict(_arrays(values)))
    generated = [name for name in feeds if name not in given]
    if as_json:
        report = {
            "file": str(file),
            "backend": backend,
            "seconds": seconds,
            "inputs": {name: description(value) | {"generated": name in generated} for name, value in feeds.items()},
            "outputs": {name: description(value) for name, value in outputs.items()},
            "probes": {name: description(value) for name, value in session.last_run.probes.items()},
            "times": session.last_run.times,
            "findings": [as_dict(finding) for finding in session.findings],
        }
        print(json.dumps(report, indent=2))
        return
    table = Table("value", "type", "smallest", "mean", "largest", "not finite", box=None, pad_edge=False)
    for kind, values in (("in", feeds), ("out", outputs), ("probe", session.last_run.probes)):
        for name, value in values.items():
            facts = description(value)
            note = " (generated)" if kind == "in" and name in generated else ""
            table.add_row(
                plain(f"{kind} {name}{note}"),
                facts["type"],
                *(f"{facts[key]:.4g}" if facts.get(key) is not None else "" for key in ("minimum", "mean", "maximum")),
                str(facts.get("not_finite") or ""),
            )
    console.print(table)
    if session.last_run.times:
        console.print(times_table({backend: session.last_run.times}))
    print_findings(session.findings)
    if output is not None:
        console.print(f"Written to {output}.")


def forward(session: Session, feeds: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """One run with a progress bar where the output of errors is a terminal."""
    return watched(session.forward, feeds, **options)


def watched(work: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
    """What `work(..., progress, cancel)` gives, with a progress bar where the output of errors is a terminal."""
    if not errors.is_terminal:
        return _stoppable(work, *arguments, **options)
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("running")

        def show(done: int, total: int, node: str) -> None:
            progress.update(task, completed=done, total=total, description=node or "running")

        return _stoppable(work, *arguments, progress=show, **options)


def _stoppable(work: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
    """Work in a thread of its own, so that Ctrl-C is heard while native code works."""
    cancel = threading.Event()
    return in_a_thread(cancel, work, *arguments, cancel=cancel, **options)


def times_table(times: Mapping[str, Mapping[str, float]]) -> Table:
    """Time of every node in milliseconds, a column for each backend."""
    table = Table("node", box=None)
    for backend in times:
        table.add_column(f"{backend}, ms", justify="right")
    nodes = dict.fromkeys(node for measured in times.values() for node in measured)
    for node in nodes:
        cells = (f"{measured[node] * 1e3:.3f}" if node in measured else "" for measured in times.values())
        table.add_row(node or "(other)", *cells)
    if len(nodes) > 1:
        table.add_row("sum", *(f"{sum(measured.values()) * 1e3:.3f}" for measured in times.values()))
    return table


def given_values(inputs: Sequence[str], session: Fed) -> dict[str, Any]:
    """Values for inputs from files, as `--input` names these: `inputs.npz`, or `name=file.npy`."""
    values: dict[str, Any] = {}
    for text in inputs:
        name, equals, file = text.partition("=")
        path = Path(file if equals else text)
        arrays = read_arrays(path)
        if "" in arrays:
            if not equals and len(session.inputs) != 1:
                raise FileError(path, f"is one array; say for which input: NAME={path}.")
            values[name if equals else next(iter(session.inputs))] = arrays[""]
        elif equals:
            raise FileError(path, f"holds several arrays; give it without {name}=.")
        else:
            named = {key: array for key, array in arrays.items() if key in session.inputs}
            if not named:
                wanted = ", ".join(session.inputs) or "none"
                raise FileError(path, f"holds {', '.join(arrays) or 'nothing'}; the graph's inputs: {wanted}.")
            values |= named
    return {name: retyped(value, session.inputs.get(name)) for name, value in values.items()}


def _arrays(values: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Values as a .npz file holds them: the n-th of a sequence as `name.n`, nothing for an absent one."""
    for name, value in values.items():
        if isinstance(value, list):
            yield from _arrays({f"{name}.{index}": item for index, item in enumerate(value)})
        elif isinstance(value, np.ndarray):
            yield name, value.astype(str) if value.dtype.kind == "O" else value


def generated_values(session: Fed, given: Mapping[str, Any], sizes: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Random values for the inputs that are not given and have no default."""
    symbols = {size for type_ in session.inputs.values() if isinstance(type_, TensorType) for size in type_.shape or ()}
    unknown = [name for name in sizes if name not in symbols]
    if unknown:
        known = ", ".join(sorted(str(size) for size in symbols if isinstance(size, str))) or "none"
        raise GraphError(
            Finding(f"--size {unknown[0]}: no input has such a dimension; there are: {known}.", code="size")
        )
    types = {name: type_ for name, type_ in session.inputs.items() if name in given or name not in session.optional}
    return generated(types, given, sizes, seed)


def description(value: Any) -> dict[str, Any]:
    """Type, shape and range of a value."""
    if not isinstance(value, np.ndarray):
        return {"type": f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else "nothing"}
    type_ = TensorType(ElementType.of(value.dtype), value.shape)
    facts: dict[str, Any] = {"type": str(type_), "element": str(type_.element), "shape": list(value.shape)}
    assert type_.element is not None
    if value.size and (type_.element.is_float or value.dtype.kind in "iu"):
        wide = value.astype(np.float64)
        finite = wide[np.isfinite(wide)]
        facts["not_finite"] = int(wide.size - finite.size)
        if finite.size:
            facts |= {"minimum": float(finite.min()), "mean": float(finite.mean()), "maximum": float(finite.max())}
    return facts


# -- check, info ------------------------------------------------------------------------------------------------------


def check(files: Sequence[Path], as_json: bool) -> bool:
    """Prints the findings of several files; True if there is an error among them."""
    from runtime.check import check as findings_of

    wrong = False
    report = []
    for file in files:
        try:
            findings = findings_of(opened(file))
        except FileError as error:
            place = f"line {error.line}, column {error.column}: " if error.line else ""
            findings = [Finding(place + error.message, code="file")]
        except GraphError as error:
            findings = list(error.findings)
        wrong = wrong or any(finding.severity is Severity.ERROR for finding in findings)
        report.append({"file": str(file), "findings": [as_dict(finding) for finding in findings]})
        if not as_json:
            console.print(f"{file}: " + ("nothing wrong" if not findings else _counts(findings)), markup=False)
            print_findings(findings)
    if as_json:
        print(json.dumps(report, indent=2))
    return wrong


def _counts(findings: Sequence[Finding]) -> str:
    numbers = {severity: sum(finding.severity is severity for finding in findings) for severity in Severity}
    return ", ".join(f"{number} {severity}{'s' * (number != 1)}" for severity, number in numbers.items() if number)


def print_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        console.print(f"  {finding.severity}: {finding}", markup=False, soft_wrap=True)


def as_dict(finding: Finding) -> dict[str, str]:
    return {name: str(getattr(finding, name)) for name in ("severity", "node", "port", "message", "remedy", "code")}


def info(file: Path, as_json: bool) -> None:
    """Prints what a graph consists of."""
    from runtime.node import COMMON_PARAMETERS

    graph = opened(file)
    checker = graph.checker
    rows: list[dict[str, Any]] = []
    for id, state in graph.nodes.items():
        node_type = graph.node_type(id)
        outputs = {str(port): str(checker.type_of(port)) for port in _output_ports(graph, id)}
        titles = [port_title(graph, port, is_output=True) for port in _output_ports(graph, id)]
        common = {parameter.name for parameter in COMMON_PARAMETERS}
        parameters = {
            name: _brief(value)
            for name, value in state.parameters.items()
            if name not in common | {"tensor", "type", "shape", "name"}
        }
        tensors = [value for value in state.parameters.values() if isinstance(value, Tensor)]
        rows.append(
            {
                "node": id,
                "type": state.type,
                "known": node_type is not None,
                "outputs": outputs,
                "titles": titles,
                "parameters": parameters,
                "bytes": sum(tensor.nbytes for tensor in tensors),
            }
        )
    total = sum(row["bytes"] for row in rows)
    if as_json:
        print(json.dumps({"file": str(file), "name": graph.name, "nodes": rows, "bytes": total}, indent=2))
        return
    table = Table(box=None)
    for heading in ("node", "type", "gives", "parameters"):
        table.add_column(heading, overflow="fold")  # names are cut in two, not off
    table.add_column("bytes", justify="right", no_wrap=True)
    for row in rows:
        named = zip(row["titles"], row["outputs"].values(), strict=True)
        gives = "\n".join(f"{title}: {type}" if len(row["titles"]) > 1 else type for title, type in named)
        settings = ", ".join(f"{name}={value}" for name, value in row["parameters"].items())
        size = f"{row['bytes']:,}" if row["bytes"] else ""
        table.add_row(row["node"], row["type"], plain(gives), plain(settings), size)
    console.print(f"{graph.name or file.stem}: {len(rows)} nodes, {len(graph.wires)} wires, {total:,} bytes of tensors")
    console.print(table)


def plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def _output_ports(graph: Graph, id: str) -> list[Any]:
    from runtime.graph import PortRef
    from runtime.ports import outputs_in_use

    if graph.nodes[id].type == "Output":
        source = graph.wires.get(PortRef(id, "value"))
        return [source] if source is not None else []
    return [PortRef(id, port) for port in outputs_in_use(graph, graph.nodes[id], graph.node_type(id))]


def _brief(value: Any) -> str:
    if isinstance(value, Graph):
        return f"graph of {len(value.nodes)} nodes"
    if isinstance(value, Tensor):
        return str(value.type)
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


# -- convert, nodes, diff ---------------------------------------------------------------------------------------------


def convert(source: Path, destination: Path, target: str | None) -> None:
    """Writes a graph in the form that the destination's name says."""
    graph = opened(source)
    findings = save(graph, destination, target=target)
    console.print(f"{source} -> {destination} ({destination.stat().st_size:,} bytes)", markup=False, soft_wrap=True)
    print_findings(findings)


def nodes(name: str | None, domain: str | None, search: str | None, as_json: bool) -> None:
    """Prints the list of node types, or the manual page of one."""
    from runtime import catalog
    from runtime.manual import page, summary

    if name is not None:
        node_type = catalog.find(name)
        if node_type is None:  # the operator's bare name is enough
            found = [cls for cls in catalog.all_types() if cls.operator.lower() == name.rpartition(".")[2].lower()]
            node_type = found[0] if found else None
        if node_type is None:
            raise GraphError(Finding(f"No node type is called {name}.", remedy="`qmoe nodes` lists them.", code="name"))
        if as_json:
            print(json.dumps({"type": node_type.type_name(), "page": page(node_type)}))
        else:
            print(page(node_type), end="")
        return
    types = catalog.all_types()
    if domain is not None:
        domains = sorted({cls.domain or "ai.onnx" for cls in types})
        if domain not in domains:
            raise GraphError(Finding(f"There is no domain {domain}; there are {', '.join(domains)}.", code="name"))
        types = [cls for cls in types if (cls.domain or "ai.onnx") == domain]
    if search is not None:
        types = [cls for cls in types if search.lower() in f"{cls.type_name()} {cls.doc}".lower()]
    rows = [(cls.type_name(), cls.cpu_kernel or cls.evaluate is not None, summary(cls)) for cls in types]
    if as_json:
        print(json.dumps([{"type": row[0], "cpu": row[1], "summary": row[2]} for row in rows], indent=2))
        return
    width = max((len(type_name) for type_name, _, _ in rows), default=0)
    for type_name, cpu, text in rows:
        line = f"{type_name:<{width}}  {'' if cpu else '(no CPU kernel) '}{text}"
        if console.is_terminal:
            console.print(plain(line), no_wrap=True, overflow="ellipsis")
        else:
            print(line)
    console.print(f"{len(rows)} node types")


def diff(first: Path, second: Path, as_json: bool) -> bool:
    """Prints how two graphs differ; True if they do."""
    from runtime.diff import diff as changes_between

    changes = changes_between(opened(first), opened(second))
    if as_json:
        rows = [{"kind": str(change.kind), "place": change.place, "sentence": str(change)} for change in changes]
        print(json.dumps(rows, indent=2))
    else:
        for change in changes:
            console.print(str(change), markup=False, soft_wrap=True)
        if not changes:
            console.print("No difference in meaning.")
    return bool(changes)
