"""The parameters of what is selected, one row each: its name, an editor, what is wrong, what it means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from PySide6.QtCore import QEvent, QObject, Qt, QTimer, Signal
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import (
    QCheckBox,
    QFrame,
    QGridLayout,
    QLabel,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from runtime import catalog
from runtime.drawing.style import blend
from runtime.errors import Finding, Severity
from runtime.graph import ABSENT, Graph, Set
from runtime.manual import summary
from runtime.node import COMMON_PARAMETERS, OVERRIDE, Parameter
from runtime.parameter_text import common, default_of, parameters_of, range_text, stepped
from ui import theme
from ui.editor import Editor
from ui.fields import Field, LineField, OpenField, ScrubLabel, TextField, field_kind

LABEL_WIDTH = 146
_COMMON = {parameter.name: parameter for parameter in COMMON_PARAMETERS}
_serial = count()
_MIDDLE = Qt.AlignmentFlag.AlignVCenter

GRAPH_NAME = Parameter(str, default="", attribute=None, name="name", doc="What the graph is called.")
GRAPH_DOC = Parameter(str, default="", attribute=None, name="doc", doc="What the graph is for.")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value lies in a document: a key of a section of a node, or of the graph if there is none."""

    node: str
    section: str
    key: str

    def value(self, graph: Graph) -> Any:
        """What is there; ABSENT if nothing is."""
        content = getattr(graph.nodes[self.node], self.section) if self.node else graph.section(self.section)
        return content.get(self.key, ABSENT)


class ParameterRow(QWidget):
    """One parameter of one node or of several. It edits these for as long as it lives, whatever is selected then."""

    opened = Signal(str)
    """The tensor of the parameter of this name is to be shown."""
    stirred = Signal()
    """A line of text below the field is to come or go."""

    def __init__(self, editor: Editor, parameter: Parameter, places: tuple[Place, ...], field: Field) -> None:
        super().__init__()
        self.parameter = parameter
        self.places = places
        self.field = field
        self._editor = editor
        self._graph = editor.graph
        self._findings: list[tuple[str, Severity]] = []
        self._problem = ""
        self._focused = self._retired = False
        self._drag: tuple[Any, str, int] | None = None
        name = parameter.name
        scrubs = parameter.kind in ("int", "float") and isinstance(field, LineField)
        written = name.replace("_", "_\u200b")  # long names break after an underscore
        self.label = ScrubLabel(f"{written} *" if parameter.required else written, scrubs)
        self.label.setFixedWidth(LABEL_WIDTH)
        self.label.setWordWrap(True)
        self.label.setBuddy(field)
        self.reset_button = QToolButton(text="×", toolTip=f"Back to the default of {name}")
        self.reset_button.setStyleSheet("padding: 1px;")
        self.reset_button.setFixedWidth(18)
        self.reset_button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.reset_button.setAccessibleName(f"Reset {name}")
        policy = self.reset_button.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self.reset_button.setSizePolicy(policy)
        self.error = QLabel(wordWrap=True, visible=False)
        self.error.setAccessibleName(f"What is wrong with {name}")
        self.text = QLabel(self._documentation(), wordWrap=True, visible=False)
        self.text.setTextFormat(Qt.TextFormat.PlainText)
        for told in (self.error, self.text):
            told.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        layout = QGridLayout(self)
        layout.setContentsMargins(10, 1, 3, 1)
        layout.setHorizontalSpacing(4)
        layout.setVerticalSpacing(2)
        layout.addWidget(self.label, 0, 0, Qt.AlignmentFlag.AlignTop if isinstance(field, TextField) else _MIDDLE)
        layout.addWidget(field, 0, 1)
        layout.addWidget(self.reset_button, 0, 2, Qt.AlignmentFlag.AlignTop)
        layout.addWidget(self.error, 1, 0, 1, 2)
        layout.addWidget(self.text, 2, 0, 1, 2)
        layout.setColumnStretch(1, 1)
        field.setAccessibleName(name)
        field.setAccessibleDescription(self._documentation())
        for widget in (self.label, field):
            widget.setToolTip(f"<p>{_escaped(self._documentation())}</p>")
        field.committed.connect(self.commit)
        field.problem_changed.connect(self._show_problem)
        if isinstance(field, OpenField):
            field.opened.connect(lambda: self.opened.emit(name))
        field.installEventFilter(self)
        self.reset_button.clicked.connect(self.reset)
        self.label.pressed.connect(field.setFocus)
        self.label.dragged.connect(self._scrub)
        self.label.ended.connect(self._end_scrub)
        self.show_value()

    def _documentation(self) -> str:
        parameter = self.parameter
        facts = [parameter.kind]
        if parameter.required:
            facts.append("required")
        if range_text(parameter):
            facts.append(range_text(parameter))
        text = " ".join(parameter.doc.split())
        return f"{text} ({', '.join(facts)})" if text else ", ".join(facts)

    # -- document -> row ----------------------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        """Whether what it edits is still there."""
        here = not self._retired and self._editor.graph is self._graph
        return here and all(not place.node or place.node in self._graph.nodes for place in self.places)

    def retire(self) -> None:
        """Nothing is committed from now on: what is typed now was for something that is gone."""
        self._retired = True

    def value(self) -> tuple[Any, bool]:
        """The document's value, and whether all nodes have the same."""
        return common([place.value(self._graph) for place in self.places])

    def show_value(self) -> None:
        """Shows what the document has."""
        if not self.is_alive:
            return
        value, agree = self.value()
        self.field.show_value(value, agree)
        self.reset_button.setVisible(not agree or value is not ABSENT)
        self.label.setFont(theme.font(12, bold=not agree or value is not ABSENT))

    def show_findings(self, findings: Iterable[Finding]) -> None:
        """Shows what the check says of the parameter."""
        ids = [place.node for place in self.places]
        several = len(ids) > 1
        mine = [f for f in findings if f.node and f.port == self.parameter.name and f.node in ids]
        self._findings = [(str(f) if several else f"{f.message} {f.remedy}".strip(), f.severity) for f in mine]
        self.stirred.emit()

    def _show_problem(self, problem: str) -> None:
        self._problem = problem
        self.stirred.emit()

    def settle(self) -> None:
        """Shows and hides the lines below the field. Not called while a button is down: nothing moves under a press."""
        look = theme.current()
        worst = [(self._problem, Severity.ERROR)] if self._problem else self._findings
        text = "\n".join(dict.fromkeys(message[:1].upper() + message[1:] for message, _ in worst))
        is_error = any(severity is Severity.ERROR for _, severity in worst)
        colour = look.error if is_error else look.warning
        self.error.setStyleSheet(f"color: {theme.css(colour)};")
        self.error.setText(text)
        self.error.setVisible(bool(text))
        self.text.setStyleSheet(f"color: {theme.css(look.faint)}; padding-bottom: 4px;")
        self.text.setVisible(self._focused)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        if event.type() in (QEvent.Type.FocusIn, QEvent.Type.FocusOut):
            self._focused = event.type() == QEvent.Type.FocusIn
            self.stirred.emit()
        return False

    # -- row -> document ----------------------------------------------------------------------------------------------

    def commit(self, value: Any, merge: str = "") -> None:
        """Sets the parameter of all its nodes, as one undo step."""
        if not self.is_alive:
            return

        def change() -> None:
            for place in self.places:
                if (place.value(self._graph), value) != (ABSENT, ABSENT):
                    self._graph.apply(Set(place.node, place.section, place.key, value))

        name, ids = self.parameter.name, [place.node for place in self.places]
        where = f"{name} of {len(ids)} nodes" if len(ids) > 1 else f"{ids[0]}.{name}" if ids[0] else name
        self._editor.edit(f"Set {where}", change, merge)
        self.show_value()

    def reset(self) -> None:
        """Goes back to the default."""
        self.field.revert()
        self.commit(ABSENT)

    def _scrub(self, steps: float) -> None:
        if self._drag is None:
            self.field.revert()
            value, _ = self.value()
            if not isinstance(value, int | float):
                value = default_of(self.parameter)
            start = value if isinstance(value, int | float) else 0
            self._drag = (start, f"drag {next(_serial)}", len(self._editor.graph.undo_labels))
        start, merge, _ = self._drag
        value, _ = self.value()
        new = stepped(start, self.parameter, steps) if steps else start
        if value is ABSENT or value != new:
            self.commit(new, merge)

    def _end_scrub(self, stays: bool) -> None:
        drag, self._drag = self._drag, None
        if drag is not None and not stays and len(self._editor.graph.undo_labels) > drag[2]:
            self._editor.undo()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


class ParametersView(QScrollArea):
    """Rows for what is selected: a node, the common parameters of several, or the graph itself."""

    opened = Signal(str)
    """The tensor of the parameter of this name is to be shown."""

    def __init__(self, editor: Editor, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._editor = editor
        self._signature: Any = None
        self._overrides = False
        self._is_open = True
        self.rows: dict[str, ParameterRow] = {}
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setAccessibleName("Parameters")
        self._later = QTimer(self, singleShot=True, interval=0)
        self._later.timeout.connect(self.follow)
        self._settling = QTimer(self, singleShot=True, interval=20)
        self._settling.timeout.connect(self._settle)
        editor.selection_changed.connect(lambda ids: self._later.start())
        editor.document_changed.connect(self._on_document)
        editor.edited.connect(self._hear)
        editor.checked.connect(self._on_checked)
        self.follow()

    # -- following ----------------------------------------------------------------------------------------------------

    def _hear(self, edit: object) -> None:
        if not (isinstance(edit, Set) and edit.is_layout):
            self._later.start()

    def _on_document(self) -> None:
        for row in self.rows.values():
            row.retire()
        self._signature = None
        self._later.start()

    def follow(self) -> None:
        """Shows what is selected as it is now. Rows are made anew only if there are others than before."""
        self._later.stop()
        wanted = self._wanted()
        signature = [(title, [(p, places) for p, places in rows]) for title, rows in wanted]
        kinds = [[row_field(self._editor.graph, p, places) for p, places in rows] for _, rows in wanted]
        made_for = (signature, kinds, theme.current().name)
        if made_for != self._signature:
            self._signature = made_for
            self._build(wanted)
        else:
            for row in self.rows.values():
                row.show_value()

    def _wanted(self) -> list[tuple[str, list[tuple[Parameter, tuple[Place, ...]]]]]:
        """The sections with their rows."""
        graph = self._editor.graph
        ids = [id for id in self._editor.canvas.selected if id in graph.nodes]
        if not ids:
            return [
                ("", [(GRAPH_NAME, (Place("", "info", "name"),)), (GRAPH_DOC, (Place("", "info", "doc"),))]),
                ("Operator sets", [(p, (Place("", "opsets", domain),)) for domain, p in _opsets(graph)]),
            ]
        own: list[tuple[Parameter, tuple[Place, ...]]] = []
        shared: list[tuple[Parameter, tuple[Place, ...]]] = []
        for parameter in _parameters_in_common(graph, ids):
            places = tuple(Place(id, "parameters", parameter.name) for id in ids)
            is_hidden = parameter.name.endswith(OVERRIDE) and not self._overrides
            if is_hidden and all(place.value(graph) is ABSENT for place in places):
                continue
            is_common = parameter == _COMMON.get(parameter.name)
            if parameter.name == "name" and len(ids) == 1 and not parameter.required:
                parameter = replace(parameter, default=ids[0])  # what it is called without
            (shared if is_common else own).append((parameter, places))
        return [("", own), ("Common", shared)]

    def _build(self, wanted: Sequence[tuple[str, list[tuple[Parameter, tuple[Place, ...]]]]]) -> None:
        focused = next((name for name, row in self.rows.items() if row.isAncestorOf(self._focus())), "")
        place = self.verticalScrollBar().value()
        same_nodes = self._nodes_shown() == {p.node for _, rows in wanted for _, places in rows for p in places}
        for row in self.rows.values():
            row.retire()
        self.rows = {}
        body = QWidget()
        layout = QVBoxLayout(body)
        layout.setContentsMargins(0, 0, 0, 8)
        layout.setSpacing(2)
        layout.addWidget(self._header())
        for title, rows in wanted:
            if rows:
                layout.addWidget(self._section(title, rows))
        layout.addStretch(1)
        self.setWidget(body)
        self._show_findings(self._editor.findings)
        self._settle()
        if same_nodes and focused in self.rows:
            self.rows[focused].field.setFocus()
            self.verticalScrollBar().setValue(place)

    def _focus(self) -> QWidget:
        window = self.window()
        return window.focusWidget() or self

    def _nodes_shown(self) -> set[str]:
        return {place.node for row in self.rows.values() for place in row.places}

    def _section(self, title: str, rows: list[tuple[Parameter, tuple[Place, ...]]]) -> QWidget:
        inner = QWidget()
        inside = QVBoxLayout(inner)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.setSpacing(1)
        for parameter, places in rows:
            field = row_field(self._editor.graph, parameter, places)(parameter)
            row = ParameterRow(self._editor, parameter, places, field)
            row.opened.connect(self.opened)
            row.stirred.connect(self._settling.start)
            self.rows[parameter.name] = row
            inside.addWidget(row)
        if not title:
            return inner
        outer = QWidget()
        layout = QVBoxLayout(outer)
        layout.setContentsMargins(0, 8, 0, 0)
        layout.setSpacing(2)
        fold = QToolButton(text=title)
        fold.setAccessibleName(f"Section {title}")
        fold.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        fold.setFont(theme.font(12, bold=True))

        def show(is_open: bool) -> None:
            self._is_open = is_open
            fold.setArrowType(Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow)
            inner.setVisible(is_open)

        fold.clicked.connect(lambda: show(not self._is_open))
        layout.addWidget(fold)
        layout.addWidget(inner)
        show(self._is_open)
        return outer

    def _header(self) -> QWidget:
        graph = self._editor.graph
        ids = [id for id in self._editor.canvas.selected if id in graph.nodes]
        look = theme.current()
        box = QWidget()
        layout = QVBoxLayout(box)
        layout.setContentsMargins(10, 8, 10, 6)
        layout.setSpacing(2)
        title, kind, text = "The graph", "", ""
        family = "graph"
        if len(ids) == 1:
            node_type = graph.node_type(ids[0])
            title, kind = ids[0], graph.nodes[ids[0]].type
            family = node_type.family if node_type is not None else "other"
            text = summary(node_type) if node_type is not None else "No operator of this name is known here."
        elif ids:
            kinds = list(dict.fromkeys(graph.nodes[id].type.rpartition(".")[2] for id in ids))
            title, kind = f"{len(ids)} nodes", ", ".join(kinds[:4]) + (", …" if len(kinds) > 4 else "")
            text = "What they have in common; an edit sets it for all of them."
            family = "other"
        name = QLabel(title)
        name.setFont(theme.font(14, bold=True))
        layout.addWidget(name)
        if kind:
            tag = QLabel(kind, wordWrap=True)
            tag.setStyleSheet(f"color: {theme.css(blend(look.title(family), look.ink, 0.6))}; font-weight: 600;")
            layout.addWidget(tag)
        if text:
            told = QLabel(text, wordWrap=True)
            told.setTextFormat(Qt.TextFormat.PlainText)
            told.setStyleSheet(f"color: {theme.css(look.faint)};")
            layout.addWidget(told)
        if any(p.name.endswith(OVERRIDE) for p in (_parameters_in_common(graph, ids) if ids else ())):
            button = QCheckBox("Show override fields", checked=self._overrides)
            button.setToolTip("For whoever means the very value that stands for the operator's default")
            button.toggled.connect(self.show_overrides)
            layout.addWidget(button)
        return box

    def show_overrides(self, shown: bool) -> None:
        """Shows the fields whose value is exported as it is, beside those whose 0 stands for the default."""
        self._overrides = shown
        self._later.start()

    def _on_checked(self, findings: list[Finding]) -> None:
        self._show_findings(findings)
        self._later.start()  # also told when the theme has changed

    def _show_findings(self, findings: list[Finding]) -> None:
        for row in self.rows.values():
            row.show_value()
            row.show_findings(findings)

    def _settle(self) -> None:
        if QGuiApplication.mouseButtons() != Qt.MouseButton.NoButton:
            self._settling.start()
            return
        for row in self.rows.values():
            row.settle()

    def focus_first(self) -> None:
        """Puts the focus into the first field."""
        self.follow()
        for row in self.rows.values():
            if row.field.focusPolicy() != Qt.FocusPolicy.NoFocus:
                row.field.setFocus(Qt.FocusReason.ShortcutFocusReason)
                return


def row_field(graph: Graph, parameter: Parameter, places: tuple[Place, ...]) -> type[Field]:
    """The editor of a row: several lines for a graph's documentation."""
    if parameter is GRAPH_DOC:
        return TextField
    values = [place.value(graph) for place in places]
    return field_kind(parameter, next((value for value in values if value is not ABSENT), ABSENT))


def _parameters_in_common(graph: Graph, ids: Sequence[str]) -> list[Parameter]:
    lists = [parameters_of(graph.node_type(id), dict(graph.nodes[id].parameters)) for id in ids]
    others = [{parameter.name: parameter for parameter in parameters} for parameters in lists[1:]]

    def shared(parameter: Parameter) -> bool:
        return all(
            parameter.name in other
            and (other[parameter.name].kind, other[parameter.name].choices) == (parameter.kind, parameter.choices)
            for other in others
        )

    return [parameter for parameter in lists[0] if shared(parameter)]


def _opsets(graph: Graph) -> list[tuple[str, Parameter]]:
    """The operator sets that a graph uses or names, each with the parameter that its version is."""
    domains = dict.fromkeys(graph.opsets)
    for state in graph.nodes.values():
        found = graph.node_type(state.id)
        if found is not None and found.is_operator:
            domains.setdefault(found.domain)
    domains.setdefault("")
    return [
        (
            domain,
            Parameter(
                int,
                default=catalog.newest_opset(domain),
                minimum=1,
                attribute=None,
                name=domain or "ai.onnx",
                doc="The version of the operator set; without one, the newest that can run here.",
            ),
        )
        for domain in sorted(domains)
    ]
