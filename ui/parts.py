"""The parts of a window, in the order in which they are put into it."""

from __future__ import annotations

from types import ModuleType

from ui import (
    data_runs,
    exchange,
    experts,
    export,
    feeding,
    find,
    help,
    keyboard,
    menus,
    on_disk,
    overlays,
    palette,
    probes,
    properties,
    quick_drop,
    running,
    safekeeping,
    shortcuts,
    start,
    training,
    wire_tip,
)

PARTS: tuple[ModuleType, ...] = (
    exchange,
    export,
    palette,
    properties,
    help,
    running,
    overlays,
    feeding,
    probes,
    experts,
    training,
    data_runs,
    wire_tip,
    quick_drop,
    menus,
    keyboard,
    find,
    on_disk,
    safekeeping,
    start,
    shortcuts,
)

MENUS: dict[str, tuple[str, ...]] = {
    "File": (
        *("New", "Open…", "Open recent", "", "Save", "Save as…", "Save selection as snippet picture…", ""),
        *("Export as ONNX…", "Export as picture…", "", "Quit"),
    ),
    "Edit": (
        *("Undo", "Redo", "", "Cut", "Copy", "Copy as plain picture", "Paste", "Duplicate", ""),
        *("Remove", "Remove and rewire", "Bypass", "Rename…", "", "Find…", "Select all"),
        *("Select what feeds it", "Select what it feeds"),
    ),
    "Insert": ("Quick drop…", "Find in the palette", "Wire from the selected node…"),
    "Diagram": ("Clean up", "", "Frame", "Frame's title…", "Remove the frame", "", "Remove broken wires"),
    "Run": (
        *(
            "Run",
            "Run backward",
            "Run to here",
            "Stop",
            "Train",
            "Over a data set, or on a cluster…",
            "",
            "Probe",
            "",
            "On onnxruntime",
            "On numpy",
            "",
        ),
        *("Measure time per node", "Stop at NaN or infinity"),
    ),
    "View": (
        *("Fit", "Zoom 1:1", "Zoom in", "Zoom out", "", "No overlay", "Overlay: time", "Overlay: gradient", ""),
        *("Dark theme", "Canvas alone", "Next pane", "Pane before", "Go to properties", ""),
    ),
    "Help": ("Context help", "Shortcuts…"),
}
"""What stands in each menu, in order; "" is a line. What is not named here follows at the end."""
