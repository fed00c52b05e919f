"""`qmoe edit`: the application around a window."""

from __future__ import annotations

import sys
from pathlib import Path

from ui import library  # before anything of Qt  # noqa: F401

# isort: split
from PySide6.QtCore import QSettings, Qt, QTimer
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QApplication

from ui import theme
from ui.window import Window

WARM_UP_AFTER = 1500
"""Milliseconds from the window to the process that runs graphs, which takes a second to start."""


def application(look: str | None = None) -> QApplication:
    """The application, in the theme "light" or "dark"; by default as the user left it, else as the desktop has it."""
    found = QApplication.instance()
    if not isinstance(found, QApplication):
        found = QApplication(sys.argv[:1])
        found.setOrganizationName("qmoe-studio")
        found.setApplicationName("qmoe-studio")
        found.setApplicationDisplayName("QMoE Studio")
    chosen = look or QSettings().value("theme") or _desktop_theme()
    theme.apply(found, str(chosen))
    return found


def _desktop_theme() -> str:
    return "dark" if QGuiApplication.styleHints().colorScheme() == Qt.ColorScheme.Dark else "light"


def edit(path: Path | None = None, look: str | None = None) -> int:
    """Shows a window and runs until it is closed."""
    running = application(look)
    window = Window(path)
    window.show()
    QTimer.singleShot(WARM_UP_AFTER, window, window.runner.warm_up)
    return running.exec()
