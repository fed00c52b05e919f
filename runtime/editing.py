"""What an editor does to a document beyond the five primitive edits. Each function is one undo step."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from runtime import catalog
from runtime.attributes import Typed
from runtime.captures import bodies_of
from runtime.drawing.scene import arranged, box_of, positions
from runtime.errors import Finding, GraphError, Severity
from runtime.graph import ABSENT, Add, Cut, Graph, NodeState, PortRef, Remove, Set, Wire
from runtime.node import Node
from runtime.ports import outputs_in_use
from runtime.tensors import Tensor
from runtime.types import ElementType, TensorType, kind_of

NAMED = frozenset({"Input", "Output", "Initializer", "Capture"})
BROKEN_CODES = frozenset({"type", "shape", "port", "wire"})
SMALL = 4096
"""A constant made for a port has at most so many elements; one for a larger shape is a single number."""


# -- wires ------------------------------------------------------------------------------------------------------------


def fitting_input(graph: Graph, source: PortRef, node: str) -> PortRef | None:
    """The first free input of a node that takes a source's value: required ones first."""
    node_type = graph.node_type(node)
    ports = sorted(node_type.inputs, key=lambda port: port.optional) if node_type is not None else []
    connected = graph.inputs_of(node)
    for port in ports:
        name = port.name
        if port.variadic:
            name = f"{name}.{sum(key.rpartition('.')[0] == port.name for key in connected)}"
        target = PortRef(node, name)
        if name not in connected and graph.why_not(source, target) is None:
            return target
    return None


def fitting_output(graph: Graph, node: str, target: PortRef) -> PortRef | None:
    """The first output of a node whose value an input takes."""
    node_type = graph.node_type(node)
    for port in node_type.outputs if node_type is not None else ():
        source = PortRef(node, f"{port.name}.0" if port.variadic else port.name)
        if graph.why_not(source, target) is None:
            return source
    return None


def insert_on_wire(graph: Graph, node: str, target: PortRef | str) -> None:
    """Puts a node into the wire that ends at `target`. GraphError if it has no input and output that fit."""
    target = PortRef.parse(target)
    source = graph.wires.get(target)
    if source is None:
        raise GraphError.at(target.node, target.port, "There is no wire here to insert a node into.", code="no-wire")
    with graph.transaction(f"Insert {node}"):
        graph.cut(target)
        entry = fitting_input(graph, source, node)
        if entry is None:
            raise GraphError.at(node, "", f"No input of it takes the value of {source}.", code="wire")
        graph.wire(source, entry)
        leave = fitting_output(graph, node, target)
        if leave is None:
            raise GraphError.at(node, "", f"No output of it fits {target}.", code="wire")
        graph.wire(leave, target)


def is_broken(graph: Graph, target: PortRef) -> bool:
    """Whether the checker finds an error at the end of a wire."""
    return any(
        (finding.node, finding.port) == target and finding.severity is Severity.ERROR
        for finding in graph.checker.findings()
    )


def remove_broken_wires(graph: Graph) -> list[PortRef]:
    """Cuts every wire at whose end the checker finds an error; the ends of those."""
    wrong = {(f.node, f.port) for f in graph.checker.findings() if f.severity is Severity.ERROR}
    broken = [target for target in graph.wires if target in wrong]
    with graph.transaction(f"Remove {len(broken)} broken wires"):
        for target in broken:
            graph.cut(target)
    return broken


# -- nodes ------------------------------------------------------------------------------------------------------------


def create_at_port(graph: Graph, port: PortRef | str, kind: Literal["constant", "input", "output"]) -> str:
    """Makes a constant or an input for an input port, or an output for an output port, wired to it; its id.

    GraphError if the port does not exist or is of the wrong direction.
    """
    port = PortRef.parse(port)
    node_type = graph.node_type(port.node) if port.node in graph.nodes else None
    if node_type is None or (kind == "output") != (node_type.output_port(port.port) is not None):
        wanted = "an output" if kind == "output" else "an input"
        raise GraphError.at(port.node, port.port, f"This is no port that {kind} can be made for: expected {wanted}.")
    places = _places(graph)
    x, y = places.get(port.node, (0.0, 0.0))
    box = box_of(graph, port.node, every_port=True)
    terminal = box.terminal(port.port, kind == "output")
    down = y + (terminal.y if terminal is not None else 0.0) - 10
    with graph.transaction(f"Create {kind} at {port}"):
        if kind == "output":
            layout = {"position": [x + box.width + 60, down]}
            id = graph.add("Output", graph.new_id(port.port.partition(".")[0]), layout=layout)
            graph.wire(port, PortRef(id, "value"))
            return id
        expected = _expected(graph, port, node_type)
        parameters: dict[str, Any] = {}
        if kind == "constant":
            shape = expected.shape if expected.shape and all(isinstance(n, int) for n in expected.shape) else ()
            sizes = tuple(int(n) for n in shape if n is not None)
            if int(np.prod(sizes)) > SMALL:
                sizes = ()
            parameters["tensor"] = _zeros(expected.element or ElementType.FLOAT, sizes)
        else:
            if expected.element is not None:
                parameters["type"] = f"tensor({expected.element})"
            if expected.shape is not None:
                parameters["shape"] = list(expected.shape)
        type = "Initializer" if kind == "constant" else "Input"
        id = graph.add(type, graph.new_id(port.port.partition(".")[0]), parameters=parameters)
        width = box_of(graph, id).width
        graph.set(id, "position", [x - width - 60, down], section="layout")
        graph.wire(PortRef(id, "value"), port)
    return id


def _expected(graph: Graph, port: PortRef, node_type: type[Node]) -> TensorType:
    """The type that an input may have: the first allowed one that agrees with the node's other inputs of its kind."""
    declared = node_type.input_port(port.port)
    if declared is None:
        return TensorType()
    kinds: Iterable[str] = node_type.type_constraints.get(declared.type, (declared.type,))
    for other, source in graph.inputs_of(port.node).items():
        twin = node_type.input_port(other)
        if twin is not None and twin.type == declared.type and twin.name != declared.name:
            value = graph.checker.type_of(source)
            if kind_of(value) in kinds and isinstance(value, TensorType):
                return TensorType(value.element)
    if "tensor(float)" in kinds:
        return TensorType(ElementType.FLOAT)
    for kind in kinds:
        found = re.fullmatch(r"tensor\((\w+)\)", kind)
        if found:
            return TensorType(ElementType.parse(found[1]))
    return TensorType()


def _zeros(element: ElementType, shape: tuple[int, ...]) -> Tensor:
    if element is ElementType.STRING:
        return Tensor.from_array(np.full(shape, "", object))
    size = (int(np.prod(shape)) * element.bits + 7) // 8
    return Tensor(element, shape, np.zeros(size, np.uint8))


def remove_nodes(graph: Graph, ids: Collection[str], *, reconnect: bool = False) -> None:
    """Removes nodes and their wires; with `reconnect`, what fed a node's first input feeds what the node fed."""
    what = next(iter(ids)) if len(ids) == 1 else f"{len(ids)} nodes"
    with graph.transaction(f"Remove {what}"):
        for id in [id for id in graph.nodes if id in ids]:
            feeding = list(graph.inputs_of(id).values())
            fed = [(source, target) for source, target in graph.wires_of(id) if source.node == id]
            graph.remove(id)
            for _, target in fed if reconnect else ():
                source = next((s for s in feeding if graph.why_not(s, target) is None), None)
                if source is not None:
                    graph.wire(source, target)


def rename(graph: Graph, id: str, new: str) -> None:
    """Gives a node another id; wires, order, probes, parts and the subgraphs that read its values follow.

    GraphError if the id is taken or is none.
    """
    if new == id:
        return
    with graph.transaction(f"Rename {id} to {new}"):
        state = graph.nodes.get(id)
        if state is None:
            raise GraphError.at(id, "", "There is no node with this id in the graph.", code="no-node")
        before = _value_names(graph, id)
        wires = [
            (source, target, list(graph.inputs_of(target.node)).index(target.port))
            for target, source in graph.wires.items()
            if id in (source.node, target.node)
        ]
        index = list(graph.nodes).index(id)
        for _, target, _ in wires:
            graph.apply(Cut(target))
        graph.apply(Remove(id))
        graph.apply(Add(replace(state, id=new), index))
        for source, target, place in wires:
            graph.apply(Wire(_moved(source, {id: new}), _moved(target, {id: new}), place))
        after = _value_names(graph, new)
        _follow(graph, dict(zip(before, after, strict=True)))
        _keep_probes(graph, {id: new})
        _keep_part(graph, id, new)


def _value_names(graph: Graph, id: str) -> list[str]:
    """The names by which subgraphs can read a node's values."""
    state = graph.nodes[id]
    if state.type in NAMED:
        return [str(state.parameters.get("name") or id)]
    return [f"{id}.{port}" for port in outputs_in_use(graph, state, graph.node_type(id))]


def _follow(graph: Graph, names: Mapping[str, str]) -> None:
    """Makes subgraphs read values by their new names."""
    changed = {old: new for old, new in names.items() if old != new}
    if not changed:
        return
    for id, state in list(graph.nodes.items()):
        for key, value in state.parameters.items():
            found = _with_captures(value, changed)
            if found is not value:
                graph.set(id, key, found)


def _with_captures(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Typed):
        inner = _with_captures(value.value, names)
        return value if inner is value.value else Typed(value.kind, inner)
    if isinstance(value, list | tuple):
        items = [_with_captures(item, names) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else type(value)(items)
    if not isinstance(value, Graph):
        return value
    body = value.copy()
    touched = False
    for id, state in list(body.nodes.items()):
        if state.type == "Capture" and state.parameters.get("name") in names:
            body.set(id, "name", names[str(state.parameters["name"])])
            touched = True
        elif list(bodies_of(state)):
            for key, parameter in state.parameters.items():
                found = _with_captures(parameter, names)
                if found is not parameter:
                    body.set(id, key, found)
                    touched = True
    return body.copy() if touched else value


def _moved(port: PortRef, ids: Mapping[str, str]) -> PortRef:
    return PortRef(ids.get(port.node, port.node), port.port)


# -- parts of graphs --------------------------------------------------------------------------------------------------


def extract(graph: Graph, ids: Collection[str]) -> Graph:
    """Some nodes as a graph of their own, with the wires between them and the functions and operator sets they need.

    GraphError for a node that is not there.
    """
    unknown = [id for id in ids if id not in graph.nodes]
    if unknown:
        raise GraphError.at(unknown[0], "", "There is no node with this id in the graph.", code="no-node")
    chosen = [state for id, state in graph.nodes.items() if id in ids]
    domains = {state.type.rpartition(".")[0] for state in chosen}
    sections: dict[str, dict[str, Any]] = {"opsets": dict(graph.opsets), "info": {}}
    if graph.name:
        sections["info"]["name"] = graph.name
    functions = {key: body for key, body in graph.section("functions").items() if key.partition("::")[0] in domains}
    if functions:
        sections["functions"] = functions
    wires = [(source, target) for target, source in graph.wires.items() if source.node in ids and target.node in ids]
    return Graph.build(chosen, wires, sections)


def paste(graph: Graph, other: Graph, at: tuple[float, float] | None = None, label: str = "Paste") -> list[str]:
    """Inserts a copy of another graph, its left upper corner at `at`; the ids that its nodes have now.

    Ids and names that are taken are changed. GraphError if an operator would mean something else under this graph's
    operator sets, or if a function of the same name is here already and is another.
    """
    boxes = {id: box_of(other, id, every_port=True) for id in other.nodes}
    places = positions(other, boxes)
    left = min((x for x, _ in places.values()), default=0.0)
    top = min((y for _, y in places.values()), default=0.0)
    shift = (at[0] - left, at[1] - top) if at is not None else (0.0, 0.0)
    ids: dict[str, str] = {}
    with graph.transaction(label):
        _keep_places(graph)
        _merge_opsets(graph, other)
        for key, body in other.section("functions").items():
            mine = graph.section("functions").get(key)
            if mine is not None and mine != body:
                raise GraphError(Finding(f"There is another function {key} here already.", code="function"))
            if mine is None:
                graph.set("", key, body, section="functions")
        taken = {str(s.parameters.get("name") or id) for id, s in graph.nodes.items() if s.type in NAMED}
        names: dict[str, str] = {}
        for id, state in other.nodes.items():
            ids[id] = id if id not in graph.nodes else _fresh(id, {*graph.nodes, *ids.values()})
            parameters = dict(state.parameters)
            if state.type in NAMED and parameters.get("name") in taken and state.type != "Capture":
                parameters["name"] = _fresh(str(parameters["name"]), taken)
            x, y = places[id]
            layout = {**_own_layout(graph, state), "position": [round(x + shift[0], 1), round(y + shift[1], 1)]}
            graph.apply(Add(NodeState(ids[id], state.type, parameters, layout, state.extra)))
        for target, source in other.wires.items():
            graph.apply(Wire(_moved(source, ids), _moved(target, ids)))
        for id, new in ids.items():
            names |= dict(zip(_value_names(other, id), _value_names(graph, new), strict=False))
        changed = {old: new for old, new in names.items() if old != new}
        for new in ids.values() if changed else ():
            for key, value in graph.nodes[new].parameters.items():
                found = _with_captures(value, changed)
                if found is not value:
                    graph.set(new, key, found)
    return list(ids.values())


def _own_layout(graph: Graph, state: NodeState) -> dict[str, Any]:
    """A node's layout without a file of values that this document does not know: it lies beside another document."""
    stored = [other.layout.get("source") for other in graph.nodes.values()]
    files = [found.get("file") for found in stored if isinstance(found, Mapping)]
    source = state.layout.get("source")
    foreign = isinstance(source, Mapping) and "file" in source and source["file"] not in files
    return {key: value for key, value in state.layout.items() if not (key == "source" and foreign)}


def duplicate(graph: Graph, ids: Collection[str], offset: float = 30.0) -> list[str]:
    """Copies nodes with the wires between them, and with those that feed them from outside; the copies' ids."""
    places = _places(graph)
    chosen = [id for id in graph.nodes if id in ids]
    if not chosen:
        return []
    left, top = min(places[id][0] for id in chosen), min(places[id][1] for id in chosen)
    with graph.transaction(f"Duplicate {chosen[0] if len(chosen) == 1 else f'{len(chosen)} nodes'}"):
        _keep_places(graph)
        copies = paste(graph, extract(graph, chosen), (left + offset, top + offset))
        new = dict(zip(chosen, copies, strict=True))
        for id in chosen:
            for port, source in graph.inputs_of(id).items():
                if source.node not in new:
                    graph.wire(source, PortRef(new[id], port))
    return copies


def _fresh(name: str, taken: Collection[str]) -> str:
    stem = re.sub(r"_\d+$", "", name) or name
    number = 1
    while f"{stem}_{number}" in taken:
        number += 1
    return f"{stem}_{number}"


def _merge_opsets(graph: Graph, other: Graph) -> None:
    """Gives the graph the operator sets that only the other has; GraphError where one means something else here."""
    used = {state.type.rpartition(".")[0] for state in graph.nodes.values() if state.type not in NAMED}
    for domain, version in other.opsets.items():
        if domain not in graph.opsets or (domain not in used and graph.opsets[domain] != version):
            graph.set("", domain, version, section="opsets")
    for id, state in other.nodes.items():
        there, here = other.node_type(id), catalog.find(state.type, graph.opsets)
        if there is not None and (here is None or (here is not there and not _is_compatible(there, here))):
            domain = state.type.rpartition(".")[0]
            raise GraphError.at(
                id,
                "",
                f"{state.type} of operator set {other.opsets.get(domain, 'newest')} means something else in "
                f"{graph.opsets.get(domain, 'the newest')}, which this graph has.",
                "Open it as a document of its own.",
                "opset",
            )


def _is_compatible(old: type[Node], new: type[Node]) -> bool:
    """Whether a node of one version of an operator is the same as a node of another: ports, attributes, defaults."""
    if old.since_version > new.since_version:
        old, new = new, old
    ports = [port.name for port in new.inputs][: len(old.inputs)] == [port.name for port in old.inputs]
    ports = ports and all(port.optional or port.variadic for port in new.inputs[len(old.inputs) :])
    return ports and all(
        (there := new.parameter(parameter.name)) is not None and there.operator_default == parameter.operator_default
        for parameter in old.parameters
    )


# -- places -----------------------------------------------------------------------------------------------------------


def _places(graph: Graph) -> dict[str, tuple[float, float]]:
    return positions(graph, {id: box_of(graph, id, every_port=True) for id in graph.nodes})


def _keep_places(graph: Graph) -> None:
    """Writes down where nodes stand that the document gives no place: a layout made anew with others would differ."""
    if any("position" not in state.layout for state in graph.nodes.values()):
        set_positions(graph, {id: p for id, p in _places(graph).items() if "position" not in graph.nodes[id].layout})


def set_positions(graph: Graph, places: Mapping[str, tuple[float, float]], label: str = "Move") -> None:
    """Puts nodes at places."""
    with graph.transaction(label):
        for id, (x, y) in places.items():
            graph.set(id, "position", [round(x, 1), round(y, 1)], section="layout")


def arrange(graph: Graph, ids: Collection[str] | None = None) -> None:
    """Lays out all nodes anew, or some, which keep their left upper corner."""
    chosen = [id for id in graph.nodes if ids is None or id in ids]
    boxes = {id: box_of(graph, id, every_port=True) for id in chosen}
    found = arranged(graph, boxes)
    with graph.transaction("Clean up"):
        _keep_places(graph)
        framed = framed_nodes(graph)
        if ids is not None and chosen:
            before = _places(graph)
            left, top = min(before[id][0] for id in chosen), min(before[id][1] for id in chosen)
            found = {id: (x + left, y + top) for id, (x, y) in found.items()}
        set_positions(graph, found)
        follow_with_frames(graph, framed)


# -- probes and frames, which lie in the layout -----------------------------------------------------------------------


def probes_of(graph: Graph) -> list[PortRef]:
    """The outputs that are probed, in the order of their numbers; those that are no longer there are left out."""
    listed = graph.section("layout").get("probes")
    found = []
    for text in listed if isinstance(listed, list | tuple) else ():
        if isinstance(text, str) and "." in text:
            port = PortRef.parse(text)
            if port.node in graph.nodes and port not in found:
                found.append(port)
    return found


def add_probe(graph: Graph, source: PortRef | str) -> None:
    """Probes an output."""
    probes = probes_of(graph)
    source = PortRef.parse(source)
    if source not in probes:
        _set_probes(graph, [*probes, source], f"Probe {source}")


def remove_probe(graph: Graph, source: PortRef | str) -> None:
    """Ends probing an output."""
    source = PortRef.parse(source)
    _set_probes(graph, [port for port in probes_of(graph) if port != source], f"Remove the probe of {source}")


def _set_probes(graph: Graph, probes: list[PortRef], label: str) -> None:
    with graph.transaction(label):
        graph.set("", "probes", [str(port) for port in probes] or ABSENT, section="layout")


def _keep_probes(graph: Graph, ids: Mapping[str, str]) -> None:
    listed = graph.section("layout").get("probes")
    if isinstance(listed, list | tuple):
        moved = [str(_moved(PortRef.parse(t), ids)) if isinstance(t, str) and "." in t else t for t in listed]
        if moved != list(listed):
            graph.set("", "probes", moved, section="layout")


def _keep_part(graph: Graph, id: str, new: str) -> None:
    """A part of a spread graph (`runtime.parts`) stays one under its new id."""
    parts = graph.section("layout").get("parts")
    if isinstance(parts, Mapping) and id in parts:
        moved = {new if other == id else other: part for other, part in parts.items()}
        graph.set("", "parts", moved, section="layout")


@dataclass(frozen=True, slots=True)
class Frame:
    """A comment around a part of the diagram: `rectangle` is left, top, width, height."""

    id: str
    title: str
    rectangle: tuple[float, float, float, float]
    color: str = ""


def frames_of(graph: Graph) -> list[Frame]:
    """The comment frames of a document; what is no frame is left out."""
    stored = graph.section("layout").get("frames")
    frames = []
    for id, data in stored.items() if isinstance(stored, Mapping) else ():
        if not isinstance(data, Mapping):
            continue
        rectangle: Any = data.get("rectangle")
        if _is_rectangle(rectangle):
            x, y, width, height = map(float, rectangle)
            title, color = str(data.get("title", "")), str(data.get("color", ""))
            frames.append(Frame(str(id), title, (x, y, width, height), color))
    return frames


def _is_rectangle(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and len(value) == 4
    return is_list and all(isinstance(n, int | float) and abs(n) < 1e6 for n in value)


def set_frame(graph: Graph, frame: Frame, label: str = "", merge: str = "") -> None:
    """Adds a comment frame, or changes the one of its id."""
    with graph.transaction(label or f"Frame {frame.title}", merge):
        stored = dict(graph.section("layout").get("frames") or {})
        data: dict[str, Any] = {"title": frame.title, "rectangle": [round(n, 1) for n in frame.rectangle]}
        if frame.color:
            data["color"] = frame.color
        stored[frame.id] = data
        graph.set("", "frames", stored, section="layout")


def add_frame(graph: Graph, ids: Collection[str], title: str = "Comment") -> Frame:
    """Puts a comment frame around nodes."""
    left, top, right, bottom = _extent(graph, ids)
    id = _fresh("frame", {frame.id for frame in frames_of(graph)})
    frame = Frame(id, title, (left - 20, top - 44, right - left + 40, bottom - top + 64))
    with graph.transaction(f"Frame {title}"):
        _keep_places(graph)
        set_frame(graph, frame)
    return frame


def _extent(graph: Graph, ids: Collection[str]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of nodes; a small place at the origin if there are none."""
    places = _places(graph)
    boxes = [(*places[id], box_of(graph, id, every_port=True)) for id in graph.nodes if id in ids]
    left, top = min((x for x, _, _ in boxes), default=0.0), min((y for _, y, _ in boxes), default=0.0)
    right = max((x + box.width for x, _, box in boxes), default=left + 200)
    bottom = max((y + box.height for _, y, box in boxes), default=top + 120)
    return left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Framed:
    """A frame, the nodes in it, and where their edges were."""

    frame: Frame
    nodes: tuple[str, ...]
    extent: tuple[float, float, float, float]


def framed_nodes(graph: Graph) -> list[Framed]:
    """The frames that hold nodes, to be given to `follow_with_frames` after a layout."""
    held = [(frame, tuple(nodes_in(graph, frame))) for frame in frames_of(graph)]
    return [Framed(frame, nodes, _extent(graph, nodes)) for frame, nodes in held if nodes]


def follow_with_frames(graph: Graph, framed: Iterable[Framed]) -> None:
    """Puts frames around the nodes that they held, as far from them as before."""
    for held in framed:
        x, y, width, height = held.frame.rectangle
        edges = (x, y, x + width, y + height)
        now = _extent(graph, held.nodes)
        left, top, right, bottom = (e + n - b for e, n, b in zip(edges, now, held.extent, strict=True))
        if (left, top, right, bottom) != edges:
            set_frame(graph, replace(held.frame, rectangle=(left, top, right - left, bottom - top)))


def remove_frame(graph: Graph, id: str) -> None:
    """Removes a comment frame; the nodes in it stay."""
    with graph.transaction("Remove a frame"):
        stored = {key: value for key, value in (graph.section("layout").get("frames") or {}).items() if key != id}
        graph.set("", "frames", stored or ABSENT, section="layout")


def nodes_in(graph: Graph, frame: Frame) -> list[str]:
    """The nodes that stand wholly within a frame."""
    x, y, width, height = frame.rectangle
    places = _places(graph)
    inside = []
    for id, (left, top) in places.items():
        box = box_of(graph, id, every_port=True)
        if x <= left and y <= top and left + box.width <= x + width and top + box.height <= y + height:
            inside.append(id)
    return inside


def move_frame(graph: Graph, id: str, dx: float, dy: float) -> None:
    """Moves a comment frame with the nodes in it."""
    frame = next((frame for frame in frames_of(graph) if frame.id == id), None)
    if frame is None:
        raise GraphError(Finding(f"There is no frame {id!r}.", code="frame"))
    places = _places(graph)
    with graph.transaction(f"Move {frame.title}"):
        inside = nodes_in(graph, frame)
        _keep_places(graph)
        set_positions(graph, {node: (places[node][0] + dx, places[node][1] + dy) for node in inside})
        x, y, width, height = frame.rectangle
        set_frame(graph, replace(frame, rectangle=(x + dx, y + dy, width, height)))


# -- remedies ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something that mends a finding: what it says on its button, and what it does to the graph."""

    label: str
    apply: Callable[[], Any]


def remedies(graph: Graph, finding: Finding) -> list[Remedy]:
    """What mends a finding for certain, best first."""
    if finding.node not in graph.nodes:
        return []
    port = PortRef(finding.node, finding.port)
    found: list[Remedy] = []
    state, node_type = graph.nodes[finding.node], graph.node_type(finding.node)
    is_input = node_type is not None and node_type.input_port(finding.port) is not None
    if finding.code == "missing-input" and is_input and port not in graph.wires:
        found.append(Remedy("Create a constant here", lambda: create_at_port(graph, port, "constant")))
        found.append(Remedy("Create an input here", lambda: create_at_port(graph, port, "input")))
    if port in graph.wires and finding.severity is Severity.ERROR:
        cast = _cast_to(graph, port, node_type)
        if cast is not None:
            found.append(Remedy(f"Cast to {cast}", lambda: insert_cast(graph, port, cast)))
        found.append(Remedy("Cut the wire", lambda: graph.cut(port)))
    declared = node_type.parameter(finding.port) if node_type is not None else None
    is_needed = declared is not None and declared.required
    if finding.code == "parameter" and finding.port in state.parameters and not is_needed:
        found.append(
            Remedy(
                f"Set {finding.port} back to its default",
                lambda: graph.apply(Set(finding.node, "parameters", finding.port, ABSENT)),
            )
        )
    if finding.code == "duplicate-name":
        taken = {str(s.parameters.get("name") or id) for id, s in graph.nodes.items()}
        name = _fresh(str(state.parameters.get("name") or finding.node), taken)
        found.append(Remedy(f"Rename it to {name}", lambda: graph.set(finding.node, "name", name)))
    return found


_FLOATS = (ElementType.FLOAT, ElementType.FLOAT16, ElementType.BFLOAT16, ElementType.DOUBLE)
_INTEGERS = (ElementType.INT64, ElementType.INT32)


def _cast_to(graph: Graph, port: PortRef, node_type: type[Node] | None) -> ElementType | None:
    """The element type that a Cast would have to give for a wire to fit; None if the wrong kind is not all."""
    value = graph.checker.type_of(graph.wires[port])
    declared = node_type.input_port(port.port) if node_type is not None else None
    if node_type is None or declared is None or not isinstance(value, TensorType) or value.element is None:
        return None
    kinds = node_type.type_constraints.get(declared.type, (declared.type,))
    family = _FLOATS if value.element in _FLOATS else _INTEGERS if value.element in _INTEGERS else ()
    wanted = _expected(graph, port, node_type).element
    numbers = (*_FLOATS, *_INTEGERS)
    candidates = [wanted, *family] if wanted in numbers and value.element in numbers else list(family)
    for element in candidates:
        if element is not None and element is not value.element and f"tensor({element})" in kinds:
            return element
    return None


def insert_cast(graph: Graph, target: PortRef, element: ElementType) -> str:
    """Puts a Cast into a wire; its id."""
    source = graph.wires[target]
    with graph.transaction(f"Cast {source} to {element}"):
        places = _places(graph)
        _keep_places(graph)
        (x, y), (u, v) = places[source.node], places[target.node]
        place = [round((x + u) / 2, 1), round((y + v) / 2, 1)]
        id = graph.add("Cast", parameters={"to": int(element)}, layout={"position": place})
        graph.wire(source, PortRef(id, "input"))
        graph.wire(PortRef(id, "output"), target)
    return id
