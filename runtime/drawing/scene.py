"""A graph as boxes, terminals and wires with places and sizes: what every painter draws.

Units are pixels at a scale of 1; y goes down. A node's `layout` holds its left upper corner, `position: [x, y]`; nodes
without one are laid out together, below the others if there are any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from runtime.drawing import font
from runtime.drawing.canvas import Bezier
from runtime.drawing.layout import GAP_DOWN, Line, Rectangle, arrange
from runtime.drawing.words import own_name, tensor_text, told_parameters, type_text
from runtime.errors import Finding, Severity
from runtime.function_calls import function_of, names_of_ports, port_title
from runtime.graph import Graph, NodeState, PortRef
from runtime.node import Node, Port
from runtime.ports import UNKNOWN_INPUT, UNKNOWN_OUTPUT, index_of, inputs_in_use, outputs_in_use
from runtime.tensors import Tensor
from runtime.types import TensorType, ValueType

TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 13.0, 11.0, 10.0
TITLE_HEIGHT, ROW, PARAMETER_ROW = 26.0, 22.0, 15.0
PADDING, BETWEEN = 10.0, 26.0
PILL_HEIGHT = 20.0
LEAST_WIDTH, MOST_TEXT = 96.0, 190.0
MOST_PARAMETERS = 10
CHIP_OFFSET = 9.0


@dataclass(frozen=True, slots=True)
class Terminal:
    """A port on a box: `y` below the box's top, and what is to be seen of it."""

    port: str
    y: float
    type: ValueType
    connected: bool
    required: bool
    label: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """A node: a `pill` is what becomes no operator (inputs, outputs, tensors), of one line."""

    id: str
    title: str
    detail: str
    family: str
    pill: bool
    width: float
    height: float
    parameters: tuple[tuple[str, str], ...] = ()
    inputs: tuple[Terminal, ...] = ()
    outputs: tuple[Terminal, ...] = ()
    severity: Severity | None = None
    known: bool = True
    training_type: str = ""
    kind: str = ""
    x: float = 0.0
    y: float = 0.0

    def terminal(self, port: str, is_output: bool) -> Terminal | None:
        """The terminal of a port."""
        return next((t for t in (self.outputs if is_output else self.inputs) if t.port == port), None)


@dataclass(frozen=True, slots=True)
class Link:
    """A wire: where it starts and ends, and what it carries; `broken` if the checker finds fault with its end."""

    source: PortRef
    target: PortRef
    curve: Bezier
    type: ValueType
    broken: bool


@dataclass(frozen=True, slots=True)
class Chip:
    """The type of a value, beside the output that gives it; its left end is at (x, y), on the base line."""

    source: PortRef
    text: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that is to be drawn of a graph."""

    name: str
    boxes: tuple[Box, ...]
    links: tuple[Link, ...]
    chips: tuple[Chip, ...]

    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of all that is drawn."""
        small = font.regular()
        xs = [box.x for box in self.boxes] or [0.0]
        ys = [box.y for box in self.boxes] or [0.0]
        rights = [box.x + box.width for box in self.boxes] or [0.0]
        rights += [chip.x + small.width(chip.text, SMALL_SIZE) for chip in self.chips]
        bottoms = [box.y + box.height for box in self.boxes] or [0.0]
        return min(xs), min(ys) - 6, max(rights), max(bottoms)


def scene_of(graph: Graph, nodes: Collection[str] | None = None, *, every_port: bool = False) -> Scene:
    """What is to be drawn of a graph, or of some of its nodes; `every_port` shows optional inputs without wires too."""
    shown = [id for id in graph.nodes if nodes is None or id in nodes]
    worst = worst_findings(graph.checker.findings())
    boxes = {id: box_of(graph, id, every_port=every_port, worst=worst) for id in shown}
    places = positions(graph, boxes)
    boxes = {id: replace(box, x=places[id][0], y=places[id][1]) for id, box in boxes.items()}
    links, chips = [], []
    told: set[PortRef] = set()
    for target, source in graph.wires.items():
        if source.node not in boxes or target.node not in boxes:
            continue
        links.append(_link(graph, boxes, source, target, worst))
        if source not in told:
            told.add(source)
            chips += _chip(graph, boxes[source.node], source)
    return Scene(graph.name, tuple(boxes.values()), tuple(links), tuple(chips))


def worst_findings(findings: Iterable[Finding]) -> dict[tuple[str, str], Severity]:
    """The worst severity by (node, port), and by (node, "") of the whole node; notes do not count."""
    order = (Severity.ERROR, Severity.WARNING)
    worst: dict[tuple[str, str], Severity] = {}
    for finding in findings:
        if finding.severity in order:
            for key in {(finding.node, finding.port), (finding.node, "")}:
                worst[key] = min(worst.get(key, Severity.WARNING), finding.severity, key=order.index)
    return worst


def box_of(
    graph: Graph,
    id: str,
    *,
    every_port: bool = False,
    worst: Mapping[tuple[str, str], Severity] | None = None,
) -> Box:
    """A node's box, at (0, 0)."""
    state, node_type = graph.nodes[id], graph.node_type(id)
    severity = (worst or {}).get((id, ""))
    if node_type is not None and not node_type.is_operator:
        return _pill(graph, state, node_type, severity)
    inputs = [_terminal(graph, node_type, PortRef(id, port), False) for port in _inputs(graph, state, every_port)]
    outputs = [_terminal(graph, node_type, PortRef(id, port), True) for port in _outputs(graph, state, every_port)]
    told = list(told_parameters(node_type, state.parameters))
    if len(told) > MOST_PARAMETERS:
        told = [*told[: MOST_PARAMETERS - 1], (f"and {len(told) - MOST_PARAMETERS + 1} more", "")]
    text, bold = font.regular(), font.bold()
    title = state.type.rpartition(".")[2]
    detail = text.fitted(id, TEXT_SIZE, MOST_TEXT)
    id_width = text.width(detail, TEXT_SIZE)
    width = max(
        LEAST_WIDTH,
        bold.width(title, TITLE_SIZE) + BETWEEN / 2 + id_width + 2 * PADDING,
        _widest(inputs) + _widest(outputs) + BETWEEN + 2 * PADDING,
        max((text.width(f"{name}  {value}", SMALL_SIZE) for name, value in told), default=0.0) + 2 * PADDING + 8,
    )
    rows = max(len(inputs), len(outputs), 1)
    top = TITLE_HEIGHT + 4
    placed = [
        tuple(replace(terminal, y=top + ROW * (number + 0.5)) for number, terminal in enumerate(side))
        for side in (inputs, outputs)
    ]
    height = top + ROW * rows + (PARAMETER_ROW * len(told) + 8 if told else 0) + 4
    known = node_type is not None or function_of(graph, state) is not None
    return Box(
        id,
        title,
        detail,
        node_type.family if node_type is not None else "control" if known else "other",
        False,
        _even(width),
        _even(height),
        tuple(told),
        placed[0],
        placed[1],
        severity,
        known,
        kind=state.type,
    )


def _pill(graph: Graph, state: NodeState, node_type: type[Node], severity: Severity | None) -> Box:
    tensor = state.parameters.get("tensor")
    is_output = bool(node_type.inputs)
    port = PortRef(state.id, (node_type.inputs or node_type.outputs)[0].name)
    source = graph.wires.get(port) if is_output else port
    value = graph.checker.type_of(source) if source is not None else TensorType()
    detail = tensor_text(tensor) if isinstance(tensor, Tensor) else type_text(value)
    title = own_name(state)
    text, bold = font.regular(), font.bold()
    title, detail = bold.fitted(title, TEXT_SIZE, MOST_TEXT), text.fitted(detail, SMALL_SIZE, MOST_TEXT)
    width = bold.width(title, TEXT_SIZE) + 2 * PADDING + 4
    width += text.width(detail, SMALL_SIZE) + 8 if detail else 0
    connected = source is not None if is_output else bool(graph.targets(port))
    terminal = Terminal(port.port, PILL_HEIGHT / 2, value, connected, True, hint=type_text(value))
    return Box(
        state.id,
        title,
        detail,
        node_type.family,
        True,
        _even(width),
        PILL_HEIGHT,
        inputs=(terminal,) if is_output else (),
        outputs=() if is_output else (terminal,),
        severity=severity,
        training_type=str(state.parameters.get("training_type") or "") if state.type == "Initializer" else "",
        kind=state.type,
    )


def port_names(graph: Graph, id: str, *, every_port: bool = False) -> tuple[list[str], list[str]]:
    """The inputs and outputs that a node's box shows, without looking at any type."""
    state, node_type = graph.nodes[id], graph.node_type(id)
    if node_type is not None and not node_type.is_operator:
        return [port.name for port in node_type.inputs], [port.name for port in node_type.outputs]
    return _inputs(graph, state, every_port), _outputs(graph, state, every_port)


def _inputs(graph: Graph, state: NodeState, every_port: bool) -> list[str]:
    """The inputs that are shown: those with a wire, those that need one, or all, and one more of each variadic one."""
    connected = graph.inputs_of(state.id)
    node_type = graph.node_type(state.id)
    if node_type is None:
        count = _function_ports(graph, state, outputs=False)
        used = list(inputs_in_use(None, connected))
        return [f"{UNKNOWN_INPUT}.{index}" for index in range(max(count, len(used)))]
    ports: list[str] = []
    for port in node_type.inputs:
        if port.variadic:
            last = max((index_of(name) for name in connected if name.rpartition(".")[0] == port.name), default=-1)
            count = max(last + 1 + every_port, 0 if port.optional else port.minimum)
            ports += [f"{port.name}.{index}" for index in range(count)]
        elif every_port or not port.optional or port.name in connected:
            ports.append(port.name)
    return ports


def _outputs(graph: Graph, state: NodeState, every_port: bool) -> list[str]:
    """The outputs that are shown: those in use and those that are always there, or all."""
    node_type = graph.node_type(state.id)
    used = list(outputs_in_use(graph, state, node_type))
    if node_type is None:
        count = _function_ports(graph, state, outputs=True)
        return [f"{UNKNOWN_OUTPUT}.{index}" for index in range(max(count, len(used)))]
    if not every_port:
        wired = {source.port for source, _ in graph.wires_of(state.id) if source.node == state.id}
        return [port for port in used if port in wired or not _is_optional(node_type.output_port(port))] or used[:1]
    more = [port.name for port in node_type.outputs if not port.variadic and port.name not in used]
    return used + more


def _is_optional(port: Port | None) -> bool:
    return port is not None and port.optional


def _function_ports(graph: Graph, state: NodeState, *, outputs: bool) -> int:
    """How many inputs or outputs the function that a node calls has; 0 if it calls none."""
    body = function_of(graph, state)
    return len(names_of_ports(body, outputs=outputs)) if body is not None else 0


def _terminal(graph: Graph, node_type: type[Node] | None, ref: PortRef, is_output: bool) -> Terminal:
    declared = None
    if node_type is not None:
        declared = node_type.output_port(ref.port) if is_output else node_type.input_port(ref.port)
    if is_output:
        connected, value = bool(graph.targets(ref)), graph.checker.type_of(ref)
    else:
        source = graph.wires.get(ref)
        connected, value = source is not None, TensorType()
        if source is not None:
            value = graph.checker.type_of(source)
    required = declared is None or (not declared.optional and not declared.variadic)
    label = font.regular().fitted(port_title(graph, ref, is_output=is_output), TEXT_SIZE, MOST_TEXT)
    return Terminal(ref.port, 0.0, value, connected, required, label, declared.type if declared else "")


def _widest(terminals: Iterable[Terminal]) -> float:
    return max((font.regular().width(terminal.label, TEXT_SIZE) for terminal in terminals), default=0.0)


def _even(size: float) -> float:
    return float(2 * round(size / 2 + 0.499))


# -- places -----------------------------------------------------------------------------------------------------------


def positions(graph: Graph, boxes: Mapping[str, Box]) -> dict[str, tuple[float, float]]:
    """The left upper corners of boxes: the document's, and for nodes that have none there, those of a layout."""
    places = {id: place for id in boxes if (place := stored_position(graph.nodes[id])) is not None}
    missing = {id: box for id, box in boxes.items() if id not in places}
    if not missing:
        return places
    found = arranged(graph, missing)
    down = max((places[id][1] + boxes[id].height for id in places), default=-2 * GAP_DOWN) + 2 * GAP_DOWN
    left = min((x for x, _ in places.values()), default=0.0)
    return places | {id: (x + left, y + down) for id, (x, y) in found.items()}


def stored_position(state: NodeState) -> tuple[float, float] | None:
    """The left upper corner that a document gives a node; None if it gives none that makes sense."""
    position = state.layout.get("position")
    if isinstance(position, list | tuple) and len(position) == 2:
        x, y = position
        if all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e6 for n in (x, y)):
            return float(x), float(y)
    return None


def arranged(graph: Graph, boxes: Mapping[str, Box]) -> dict[str, tuple[float, float]]:
    """Left upper corners for boxes in columns, by the wires between them."""
    small = font.regular()
    margins: dict[str, float] = {}
    lines = []
    for target, source in graph.wires.items():
        if source.node in boxes and target.node in boxes:
            start, end = boxes[source.node].terminal(source.port, True), boxes[target.node].terminal(target.port, False)
            lines.append(Line(source.node, target.node, start.y if start else 0.0, end.y if end else 0.0))
            chip = _chip_text(boxes[source.node], graph, source)
            margins[source.node] = max(margins.get(source.node, 0.0), small.width(chip, SMALL_SIZE) - 30 if chip else 0)
    rectangles = {
        id: Rectangle(box.width, box.height, max(0.0, margins.get(id, 0.0)), box.pill and bool(box.outputs))
        for id, box in boxes.items()
    }
    return arrange(rectangles, lines)


# -- wires ------------------------------------------------------------------------------------------------------------


def bezier(x0: float, y0: float, x1: float, y1: float) -> Bezier:
    """A wire's curve from an output to an input."""
    reach = max(24.0, min(abs(x1 - x0) / 2, 160.0)) if x1 >= x0 else max(48.0, min((x0 - x1) / 2, 220.0))
    return (x0, y0), (x0 + reach, y0), (x1 - reach, y1), (x1, y1)


def _link(
    graph: Graph,
    boxes: Mapping[str, Box],
    source: PortRef,
    target: PortRef,
    worst: Mapping[tuple[str, str], Severity],
) -> Link:
    start, end = boxes[source.node], boxes[target.node]
    leaves, arrives = start.terminal(source.port, True), end.terminal(target.port, False)
    y0 = start.y + (leaves.y if leaves else start.height / 2)
    y1 = end.y + (arrives.y if arrives else end.height / 2)
    broken = worst.get((target.node, target.port)) is Severity.ERROR
    return Link(source, target, bezier(start.x + start.width, y0, end.x, y1), graph.checker.type_of(source), broken)


def _chip_text(box: Box, graph: Graph, source: PortRef) -> str:
    return "" if box.pill else type_text(graph.checker.type_of(source))


def _chip(graph: Graph, box: Box, source: PortRef) -> list[Chip]:
    text, terminal = _chip_text(box, graph, source), box.terminal(source.port, True)
    if not text or terminal is None:
        return []
    return [Chip(source, text, box.x + box.width + CHIP_OFFSET, box.y + terminal.y - 5)]
