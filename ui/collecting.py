"""Python's collector of garbage, on the windows' thread.

It runs on whichever thread makes an object at the wrong moment. If that is not the thread of the windows, and there are
widgets among the garbage, Qt ends them there and crashes.
"""

from __future__ import annotations

import gc

from PySide6.QtCore import QObject, QTimer

INTERVAL = 500
"""Milliseconds between looks at how much garbage there may be."""

_open: set[int] = set()


class Collector(QObject):
    """Collects on this thread, and nowhere else, from its making until `end`."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._thresholds = gc.get_threshold()
        _open.add(id(self))
        gc.disable()
        self._timer = QTimer(self, interval=INTERVAL)
        self._timer.timeout.connect(self._look)
        self._timer.start()

    def _look(self) -> None:
        counts = gc.get_count()
        for generation in (2, 1, 0):
            if counts[generation] > self._thresholds[generation]:
                gc.collect(generation)
                return

    def end(self) -> None:
        """Collects once more; Python collects by itself again if no other window is open."""
        self._timer.stop()
        _open.discard(id(self))
        if not _open:
            gc.collect()
            gc.enable()


__all__ = ["Collector"]
