"""Editors of single values: each shows a value, and says when its user has chosen another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QEvent, QObject, QPoint, Qt, Signal
from PySide6.QtGui import QFocusEvent, QKeyEvent, QKeySequence, QMouseEvent, QPalette, QWheelEvent
from PySide6.QtWidgets import QCheckBox, QComboBox, QLabel, QLineEdit, QPlainTextEdit, QPushButton, QSizePolicy, QWidget

from runtime.attributes import Typed, fits
from runtime.drawing.words import value_text
from runtime.graph import ABSENT, Graph, same
from runtime.node import Parameter
from runtime.parameter_text import TYPED_KINDS, default_of, default_text, read, stepped, write
from runtime.types import ElementType, parse_type
from ui import theme

SEVERAL = "several values"
"""Stands in the field of nodes that differ."""
PIXELS_A_STEP = 4
"""How far the mouse goes for one step of a number."""

TYPES = [f"tensor({element})" for element in ElementType] + [
    f"{outer}(tensor({element}))" for outer in ("seq", "optional") for element in ("float", "int64", "string")
]

Read = Callable[[str], Any]


def type_named(text: str) -> Any:
    """An ONNX type as Input and Output hold it, as text; ValueError if it is none."""
    text = text.strip()
    if not text:
        return ABSENT
    try:
        return str(parse_type(text))
    except ValueError as error:
        raise ValueError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None


class LineField(QLineEdit):
    """A line: Enter or leaving it commits, Esc takes back, an empty line is the default. Up and Down step numbers."""

    committed = Signal(object, str)
    """The new value, and the key by which edits of one gesture are merged."""
    problem_changed = Signal(str)
    """Why the text is no value; empty if it is one."""

    def __init__(self, parameter: Parameter, reads: Read | None = None, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.parameter = parameter
        self._read: Read = reads or (lambda text: read(text, parameter))
        self._shown = ""
        self._value: Any = ABSENT
        self._serial = 0
        self.problem = ""
        self.setPlaceholderText(default_text(parameter))
        self.textEdited.connect(lambda text: self._say(""))

    @property
    def is_pending(self) -> bool:
        """Whether what stands there has not been committed."""
        return self.text() != self._shown

    def show_value(self, value: Any, agree: bool = True) -> None:
        """Shows a value of the document. What is being typed stays."""
        self.setPlaceholderText(default_text(self.parameter) if agree else SEVERAL)
        if self.is_pending and (self.hasFocus() or self.problem):
            self._value, self._shown = value, write(value)
            return
        self._value = value
        self._set(write(value))

    def _set(self, text: str) -> None:
        self._shown = text
        if self.text() != text:
            place = self.cursorPosition()
            self.setText(text)
            self.setCursorPosition(place if self.hasFocus() else 0)

    def commit(self) -> None:
        """Gives what was typed to the document; or says why it is no value."""
        if not self.is_pending:
            self._say("")
            return
        try:
            value = self._read(self.text())
        except ValueError as error:
            self._say(str(error))
            return
        self._say("")
        changed = value is not ABSENT if self._value is ABSENT else value is ABSENT or not same(value, self._value)
        self._value = value
        self._set(write(value))
        if changed or self.placeholderText() == SEVERAL:
            self.committed.emit(value, "")

    def revert(self) -> None:
        """Shows the document's value again."""
        self.setText(self._shown)
        self._say("")

    def step(self, steps: float) -> None:
        """Commits a number so many steps further; successive steps are one."""
        value = self._value if self._value is not ABSENT else default_of(self.parameter)
        new = stepped(value if isinstance(value, int | float) else 0, self.parameter, steps)
        self._value = new
        self._set(write(new))
        self._say("")
        self.committed.emit(new, f"step {id(self)} {self._serial}")

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            palette = QPalette()
            if problem:
                palette.setColor(QPalette.ColorRole.Text, theme.colour(theme.current().error))
            self.setPalette(palette)
            self.problem_changed.emit(problem)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        key = event.key()
        if key in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.commit()
            self.selectAll()
        elif key == Qt.Key.Key_Escape and (self.is_pending or self.problem):
            self.revert()
            self.selectAll()
        elif key in (Qt.Key.Key_Up, Qt.Key.Key_Down) and self.parameter.kind in ("int", "float"):
            self.commit()
            if not self.problem:
                far = 10 if event.modifiers() & Qt.KeyboardModifier.ShiftModifier else 1
                self.step(far if key == Qt.Key.Key_Up else -far)
        elif key == Qt.Key.Key_Escape:
            event.ignore()
        else:
            super().keyPressEvent(event)

    def event(self, event: QEvent) -> bool:
        """The line's own undo is for what is being typed; when nothing is, Ctrl+Z is the document's."""
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.ShortcutOverride and not self.is_pending:
            undo, redo = QKeySequence.StandardKey.Undo, QKeySequence.StandardKey.Redo
            if event.matches(undo) or event.matches(redo):
                event.ignore()
                return False
        return super().event(event)

    def focusInEvent(self, event: QFocusEvent) -> None:  # noqa: N802
        self._serial += 1
        super().focusInEvent(event)

    def focusOutEvent(self, event: QFocusEvent) -> None:  # noqa: N802
        super().focusOutEvent(event)
        if event.reason() not in (Qt.FocusReason.PopupFocusReason, Qt.FocusReason.ActiveWindowFocusReason):
            self.commit()


class TextField(QPlainTextEdit):
    """Several lines of text: leaving it or Ctrl+Enter commits, Esc takes back, Tab goes on."""

    committed = Signal(object, str)
    problem_changed = Signal(str)

    def __init__(self, parameter: Parameter, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.parameter = parameter
        self._shown = ""
        self.setTabChangesFocus(True)
        self.setFixedHeight(84)

    @property
    def is_pending(self) -> bool:
        """Whether what stands there has not been committed."""
        return self.toPlainText() != self._shown

    def show_value(self, value: Any, agree: bool = True) -> None:
        """Shows a value of the document. What is being typed stays."""
        text = "" if value is ABSENT or value is None else str(value)
        self.setPlaceholderText("empty" if agree else SEVERAL)
        keep = self.is_pending and self.hasFocus()
        self._shown = text
        if not keep and self.toPlainText() != text:
            self.setPlainText(text)

    def commit(self) -> None:
        """Gives what was typed to the document."""
        if self.is_pending:
            self._shown = text = self.toPlainText()
            self.committed.emit(text or ABSENT, "")

    def revert(self) -> None:
        """Shows the document's value again."""
        self.setPlainText(self._shown)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        held = event.modifiers() & Qt.KeyboardModifier.ControlModifier
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and held:
            self.commit()
        elif event.key() == Qt.Key.Key_Escape:
            if self.is_pending:
                self.revert()
            else:
                event.ignore()
        else:
            super().keyPressEvent(event)

    def focusOutEvent(self, event: QFocusEvent) -> None:  # noqa: N802
        super().focusOutEvent(event)
        if event.reason() not in (Qt.FocusReason.PopupFocusReason, Qt.FocusReason.ActiveWindowFocusReason):
            self.commit()


class WheelPasses(QObject):
    """Lets the wheel scroll a pane over fields in it that do not have the keys."""

    def __init__(self, *fields: QWidget) -> None:
        super().__init__(fields[0])
        for field in fields:
            field.setFocusPolicy(Qt.FocusPolicy.StrongFocus)  # theirs take the keys with the wheel
            field.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Leaves the wheel to what is behind."""
        if event.type() == QEvent.Type.Wheel and isinstance(watched, QWidget) and not watched.hasFocus():
            event.ignore()
            return True
        return super().eventFilter(watched, event)


class ChoiceField(QComboBox):
    """One of several values; the first entry is the default."""

    committed = Signal(object, str)
    problem_changed = Signal(str)

    def __init__(self, parameter: Parameter, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.parameter = parameter
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(6)
        self._values: list[Any] = []
        self._fill(ABSENT, True)
        self.activated.connect(self._choose)

    def _fill(self, value: Any, agree: bool) -> None:
        parameter = self.parameter
        hidden = default_of(parameter) if parameter.means_default is None else parameter.means_default
        if parameter.required:
            hidden = None
        self._values = [ABSENT] + [choice for choice in parameter.choices if choice != hidden or choice == value]
        is_strange = value is not ABSENT and not any(same(value, other) for other in self._values[1:])
        if is_strange:
            self._values.append(value)
        self.clear()
        self.addItem(default_text(parameter))
        self.setItemData(0, theme.colour(theme.current().faint), Qt.ItemDataRole.ForegroundRole)
        self.addItems([value_text(choice) for choice in self._values[1:]])
        if not agree:
            self.setPlaceholderText(SEVERAL)
            self.setCurrentIndex(-1)
        elif value is not ABSENT:
            self.setCurrentIndex(next(i for i, other in enumerate(self._values) if i and same(value, other)))
        self.setPalette(_told_palette(value is ABSENT))
        self.view().setPalette(QPalette())

    def show_value(self, value: Any, agree: bool = True) -> None:
        """Shows a value of the document."""
        self._fill(value, agree)

    def commit(self) -> None:
        """A choice commits itself."""

    revert = commit
    is_pending = False

    def _choose(self, index: int) -> None:
        self.committed.emit(self._values[index], "")

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        event.ignore()  # the wheel scrolls the pane


class TypeField(QComboBox):
    """An ONNX type: chosen or typed."""

    committed = Signal(object, str)
    problem_changed = Signal(str)

    def __init__(self, parameter: Parameter, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.parameter = parameter
        self.setEditable(True)
        self.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self.setMaxVisibleItems(14)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(6)
        self.addItems(TYPES)
        self.line = LineField(parameter, type_named)
        self.setLineEdit(self.line)
        self.setCompleter(None)  # type: ignore[arg-type]
        self.line.setPlaceholderText("any")
        self.line.committed.connect(self.committed)
        self.line.problem_changed.connect(self.problem_changed)
        self.activated.connect(self._choose)
        self.setCurrentIndex(-1)
        self.line.setText("")

    @property
    def is_pending(self) -> bool:
        """Whether what stands there has not been committed."""
        return self.line.is_pending

    def show_value(self, value: Any, agree: bool = True) -> None:
        """Shows a value of the document."""
        self.line.show_value(value or ABSENT, agree)
        if agree:
            self.line.setPlaceholderText("any" if not self.parameter.required else "required")

    def commit(self) -> None:
        """Gives what was typed to the document."""
        self.line.commit()

    def revert(self) -> None:
        """Shows the document's value again."""
        self.line.revert()

    def _choose(self, index: int) -> None:
        self.line.setText(self.itemText(index))
        self.line.commit()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Escape):
            self.line.keyPressEvent(event)
        else:
            super().keyPressEvent(event)

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        event.ignore()


class BoolField(QCheckBox):
    """True, false, or in the middle: the default."""

    committed = Signal(object, str)
    problem_changed = Signal(str)

    def __init__(self, parameter: Parameter, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.parameter = parameter
        self.setTristate(True)
        self.clicked.connect(self._choose)
        self._value: Any = ABSENT

    def show_value(self, value: Any, agree: bool = True) -> None:
        """Shows a value of the document."""
        self._value = value
        states = Qt.CheckState
        unset = value is ABSENT or value is None
        self.setCheckState(states.PartiallyChecked if unset else states.Checked if value else states.Unchecked)
        self.setText(
            SEVERAL if not agree else f"default: {default_text(self.parameter)}" if unset else str(bool(value)).lower()
        )
        self.setPalette(_told_palette(unset))

    def nextCheckState(self) -> None:  # noqa: N802
        """Default, the other value, the default's value, default."""
        states = Qt.CheckState
        default = bool(default_of(self.parameter))
        first, second = (states.Unchecked, states.Checked) if default else (states.Checked, states.Unchecked)
        following = {states.PartiallyChecked: first, first: second, second: states.PartiallyChecked}
        self.setCheckState(following[self.checkState()])

    def _choose(self) -> None:
        state = self.checkState()
        self.committed.emit(
            ABSENT if state == Qt.CheckState.PartiallyChecked else state == Qt.CheckState.Checked,
            "",
        )

    def commit(self) -> None:
        """A check box commits itself."""

    revert = commit
    is_pending = False


class OpenField(QPushButton):
    """A tensor: a press shows it."""

    committed = Signal(object, str)
    problem_changed = Signal(str)
    opened = Signal()

    def __init__(self, parameter: Parameter, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.parameter = parameter
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.clicked.connect(self.opened)

    def show_value(self, value: Any, agree: bool = True) -> None:
        """Shows a value of the document."""
        missing = "No tensor; open to load one" if self.parameter.required else default_text(self.parameter)
        self.setText(SEVERAL if not agree else missing if value is ABSENT else value_text(value))

    def commit(self) -> None:
        """Nothing is edited here."""

    revert = commit
    is_pending = False


class ToldField(QLabel):
    """A value that can only be looked at here."""

    committed = Signal(object, str)
    problem_changed = Signal(str)

    def __init__(self, parameter: Parameter, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.parameter = parameter
        self.setWordWrap(True)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)

    def show_value(self, value: Any, agree: bool = True) -> None:
        """Shows a value of the document."""
        plain = value.value if isinstance(value, Typed) else value
        if not agree:
            text = SEVERAL
        elif value is ABSENT:
            text = default_text(self.parameter)
        elif isinstance(plain, Graph):
            text = f"{len(plain.nodes)} nodes. A subgraph cannot be opened here yet."
        elif isinstance(plain, list | tuple) and any(isinstance(item, Graph) for item in plain):
            text = f"{len(plain)} graphs. A subgraph cannot be opened here yet."
        elif isinstance(value, Typed) and value.kind == "ref":
            text = f"the function's attribute {value.value[0]}"
        else:
            text = value_text(value)
        self.setText(text)

    def commit(self) -> None:
        """Nothing is edited here."""

    revert = commit
    is_pending = False


def _told_palette(faint: bool) -> QPalette:
    """The application's colours, with faint text for a default."""
    palette = QPalette()
    if faint:
        for role in (QPalette.ColorRole.ButtonText, QPalette.ColorRole.Text, QPalette.ColorRole.WindowText):
            palette.setColor(role, theme.colour(theme.current().faint))
    return palette


Field = LineField | TextField | ChoiceField | TypeField | BoolField | OpenField | ToldField


def field_kind(parameter: Parameter, value: Any) -> type[Field]:
    """The editor for a parameter; a value that its kind cannot hold can only be looked at."""
    kind = parameter.kind
    if kind == "tensor":
        return OpenField
    if isinstance(value, Typed | bytes) or kind not in TYPED_KINDS | {"bool"}:
        return ToldField
    if kind == "bool":
        return BoolField if value is ABSENT or fits(value, "bool") else LineField
    if parameter.choices:
        return ChoiceField
    if kind == "str" and parameter.name == "type" and parameter.attribute is None:
        return TypeField
    return LineField


class ScrubLabel(QLabel):
    """A number's name: dragged sideways it changes the number (Shift: ten times as fast, Ctrl: a tenth)."""

    dragged = Signal(float)
    """How many steps further than where the drag began."""
    ended = Signal(bool)
    """The drag is over; whether what it did shall stay."""
    pressed = Signal()

    def __init__(self, text: str, scrubs: bool, parent: QWidget | None = None) -> None:
        super().__init__(text, parent)
        self._scrubs = scrubs
        self._start: QPoint | None = None
        self._moved = False
        if scrubs:
            self.setCursor(Qt.CursorShape.SizeHorCursor)

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        if event.button() == Qt.MouseButton.LeftButton:
            self.pressed.emit()
            if self._scrubs:
                self._start, self._moved = event.position().toPoint(), False
                self.grabKeyboard()
        elif self._start is not None:
            self._end(False)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        if self._start is None:
            return
        steps = (event.position().x() - self._start.x()) / PIXELS_A_STEP
        held = event.modifiers()
        if held & Qt.KeyboardModifier.ShiftModifier:
            steps *= 10
        fine = bool(held & Qt.KeyboardModifier.ControlModifier)
        if self._moved or abs(steps) >= 1:
            self._moved = True
            self.dragged.emit(steps / 10 if fine else float(int(steps)))

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        if self._start is not None:
            self._end(True)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        if self._start is not None and event.key() == Qt.Key.Key_Escape:
            self._end(False)
        else:
            super().keyPressEvent(event)

    def _end(self, stays: bool) -> None:
        self._start = None
        self.releaseKeyboard()
        if self._moved:
            self.ended.emit(stays)
