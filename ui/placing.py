"""Putting new nodes into a document: at a place, wired to what they were asked for by, in one undo step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import QPointF, QSettings

from runtime.drawing.scene import box_of
from runtime.editing import fitting_input, fitting_output, insert_on_wire
from runtime.errors import Finding, GraphError
from runtime.graph import PortRef
from ui.editor import Editor

MOST_RECENT = 12


def recent_types() -> list[str]:
    """The node types that were placed last, newest first."""
    stored = QSettings().value("recent types")
    return [str(name) for name in stored] if isinstance(stored, list) else []


def _note(type_name: str) -> None:
    others = [name for name in recent_types() if name != type_name]
    QSettings().setValue("recent types", [type_name, *others][:MOST_RECENT])


def place(
    editor: Editor,
    type_name: str,
    at: QPointF,
    *,
    parameters: Mapping[str, Any] | None = None,
    source: PortRef | None = None,
    target: PortRef | None = None,
    into: PortRef | None = None,
) -> str:
    """Adds a node and selects it; its id, empty if that could not be done.

    `source` is wired to its first fitting input, or its first fitting output to `target`; `into` is a wire (where it
    ends) that it is put into.
    """
    made: list[str] = []
    graph = editor.graph

    def change() -> None:
        id = graph.add(type_name, parameters=parameters)
        height = box_of(graph, id, every_port=True).height
        position = [round(at.x(), 1), round(at.y() - min(height, 60) / 2, 1)]
        graph.set(id, "position", position, section="layout")
        made.append(id)
        if into is not None:
            insert_on_wire(graph, id, into)
        elif source is not None:
            entry = fitting_input(graph, source, id)
            if entry is None:
                raise GraphError(Finding(f"No input of {type_name} takes the value of {source}.", id, code="wire"))
            graph.wire(source, entry)
        elif target is not None:
            leave = fitting_output(graph, id, target)
            if leave is None:
                raise GraphError(Finding(f"No output of {type_name} fits {target}.", id, code="wire"))
            graph.wire(leave, target)

    if not editor.edit(f"Add {type_name.rpartition('.')[2]}", change):
        return ""
    _note(type_name)
    editor.canvas.select(made)
    editor.canvas.viewer.setFocus()
    return made[0]


def free_place(editor: Editor) -> QPointF:
    """Right of the selection, or else the middle of what is visible."""
    area = editor.canvas.area(editor.canvas.selected) if editor.canvas.selected else None
    if area is not None and not area.isEmpty():
        return QPointF(area.right() + 60, area.top() + 30)
    return editor.canvas.viewer.visible().center()


def lone_source(editor: Editor) -> PortRef | None:
    """The output of the one selected node, if it has just one: what a new node beside it probably reads."""
    chosen = editor.canvas.selected
    item = editor.canvas.item(chosen[0]) if len(chosen) == 1 else None
    if item is None or len(item.outputs) != 1:
        return None
    return PortRef(chosen[0], item.outputs[0].name)
