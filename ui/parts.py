"""The parts of a window, in the order in which they are put into it."""

from __future__ import annotations

from types import ModuleType

from ui import (
    exchange,
    feeding,
    find,
    help,
    keyboard,
    menus,
    overlays,
    palette,
    probes,
    properties,
    quick_drop,
    running,
    safekeeping,
    start,
    wire_tip,
)

PARTS: tuple[ModuleType, ...] = (
    exchange,
    palette,
    properties,
    help,
    running,
    overlays,
    feeding,
    probes,
    wire_tip,
    quick_drop,
    menus,
    keyboard,
    find,
    safekeeping,
    start,
)
