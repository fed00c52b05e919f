"""Panes around the canvas: tabs at the left, the right and the bottom, and a place below those at the right.

(Qt's own docks leave orphaned tab bars about when several are tabbed; and every pane would have its title twice.)
"""

from __future__ import annotations

from enum import Enum

from PySide6.QtCore import QObject, QSettings, Qt
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QApplication, QSplitter, QTabBar, QTabWidget, QWidget


class Area(Enum):
    """Where a pane is."""

    LEFT = "left"
    RIGHT = "right"
    BELOW_RIGHT = "below right"
    BOTTOM = "bottom"


class Side(QTabWidget):
    """The panes of one area; it hides itself while none is shown."""

    def __init__(self, area: Area) -> None:
        super().__init__(documentMode=True, movable=False)
        self.area = area
        self.panes: list[Pane] = []
        self.setAccessibleName(f"Panes, {area.value}")
        self.hide()


class Pane(QObject):
    """A widget with a title in a side. It can be shown, hidden and brought to the front; `action` does so in a menu."""

    def __init__(self, title: str, widget: QWidget, side: Side) -> None:
        super().__init__(side)
        self._title, self._widget, self._side = title, widget, side
        side.panes.append(self)
        widget.setAccessibleName(widget.accessibleName() or title)
        widget.setParent(side)
        widget.hide()
        self.action = QAction(title, side, checkable=True)
        self.action.triggered.connect(self._toggle)

    def widget(self) -> QWidget:
        """What is in it."""
        return self._widget

    @property
    def is_listed(self) -> bool:
        """Whether it has a tab, be it behind another."""
        return self._side.indexOf(self._widget) >= 0

    def isVisible(self) -> bool:  # noqa: N802
        """Whether it can be seen now: it has a tab, and that is in front."""
        return self._widget.isVisible()

    def _toggle(self) -> None:
        if self._widget.isVisible():
            self.hide()
        else:  # hidden, or behind another: who chose it wants to see it
            self.show()
            self.focus()

    @property
    def has_focus(self) -> bool:
        """Whether the keys go to something in it."""
        focused = QApplication.focusWidget()
        return focused is not None and self._widget.isAncestorOf(focused)

    def focus(self) -> None:
        """Gives the keys to what takes them first in it."""
        reason = Qt.FocusReason.ShortcutFocusReason
        widget = None if self._widget.focusProxy() is not None else self._widget.nextInFocusChain()
        while widget is not None and self._widget.isAncestorOf(widget):
            takes_keys = widget.focusPolicy() & Qt.FocusPolicy.TabFocus
            if takes_keys and widget.isVisible() and widget.isEnabled() and not isinstance(widget, QTabBar):
                widget.setFocus(reason)
                return
            widget = widget.nextInFocusChain()
        self._widget.setFocus(reason)

    def list(self) -> None:
        """Gives it a tab, among those of its area where it was added."""
        if not self.is_listed:
            before = self._side.panes[: self._side.panes.index(self)]
            self._side.insertTab(sum(pane.is_listed for pane in before), self._widget, self._title)
            self._side.show()
        self.action.setChecked(True)

    def show(self) -> None:
        """Shows it in front of the others."""
        self.list()
        self._side.setCurrentWidget(self._widget)

    def hide(self) -> None:
        """Takes its tab away."""
        index = self._side.indexOf(self._widget)
        if index >= 0:
            self._side.removeTab(index)
            self._widget.hide()
        self._side.setVisible(self._side.count() > 0)
        self.action.setChecked(False)


class Sides(QSplitter):
    """The canvas in the middle, and the sides around it, with edges that can be dragged."""

    def __init__(self, middle: QWidget) -> None:
        super().__init__(Qt.Orientation.Vertical)
        self.sides = {area: Side(area) for area in Area}
        self._across, self._right = QSplitter(), QSplitter(Qt.Orientation.Vertical)
        self._right.addWidget(self.sides[Area.RIGHT])
        self._right.addWidget(self.sides[Area.BELOW_RIGHT])
        for widget in (self.sides[Area.LEFT], middle, self._right):
            self._across.addWidget(widget)
        self.addWidget(self._across)
        self.addWidget(self.sides[Area.BOTTOM])
        self._across.setStretchFactor(1, 1)
        self.setStretchFactor(0, 1)
        for splitter in self._splitters():
            splitter.setHandleWidth(1)
            splitter.setChildrenCollapsible(False)

    def share_out(self) -> None:
        """Gives the sides their first sizes: most of the room is the canvas's."""
        self._across.setSizes([230, 890, 380])
        self._right.setSizes([520, 300])
        self.setSizes([700, 210])

    def toggle(self) -> None:
        """Hides all panes, so that the canvas has all the room; or shows them again."""
        alone = not any(side.isVisible() for side in self.sides.values())
        for side in self.sides.values():
            side.setVisible(alone and side.count() > 0)

    def _splitters(self) -> tuple[QSplitter, ...]:
        return (self, self._across, self._right)

    def remember(self, settings: QSettings) -> None:
        """Stores where the edges are."""
        settings.setValue("edges", [splitter.saveState() for splitter in self._splitters()])

    def recall(self, settings: QSettings) -> None:
        """Puts the edges where they were."""
        states = settings.value("edges")
        if isinstance(states, list) and len(states) == len(self._splitters()):
            for splitter, state in zip(self._splitters(), states, strict=True):
                splitter.restoreState(state)


__all__ = ["Area", "Pane", "Side", "Sides"]
