"""Qt and NodeGraphQt, imported once and only if they can be trusted to run here.

Import this module before any other of Qt or NodeGraphQt. It refuses versions that end the process, says which system
libraries are missing, and gives NodeGraphQt what it expects of older Pythons.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import types
from importlib import metadata

from runtime.errors import StudioError

SYSTEM_LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libfontconfig.so.1": "libfontconfig1",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libdbus-1.so.3": "libdbus-1-3",
}
"""What PySide6 needs on Linux, with the Debian packages that have it."""
SCREEN_LIBRARIES = {
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-render.so.0": "libxcb-render0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-util.so.1": "libxcb-util1",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
}
"""What it needs in addition to show windows under X."""
BROKEN = ((6, 12, 0), (3, 12))
"""PySide6 6.12.0 loses a reference to None in every call that returns nothing; from Python 3.12 on that is harmless."""


class EditorUnavailable(StudioError):
    """The editor cannot run here; the message says why and what to do."""


def require() -> None:
    """Makes Qt and NodeGraphQt importable. EditorUnavailable says what is missing or broken."""
    missing = [name for name in ("PySide6", "NodeGraphQt", "Qt") if importlib.util.find_spec(name) is None]
    if missing:
        raise EditorUnavailable(
            f"The editor needs {' and '.join(missing)}, which this Python does not have. "
            "Install it with: pip install 'qmoe-studio[ui]'"
        )
    refuse_broken(metadata.version("PySide6-Essentials"), sys.version_info[:2])
    if sys.platform.startswith("linux"):
        if not has_display():
            raise EditorUnavailable(
                "The editor needs a display, and there is none here: neither DISPLAY nor WAYLAND_DISPLAY is set. "
                "Everything else works without one: qmoe --help."
            )
        _require_libraries()
    os.environ["QT_PREFERRED_BINDING"] = "PySide6"  # Qt.py would take the first binding that it finds
    _provide_distutils()


def has_display() -> bool:
    """Whether there is somewhere to show a window, or Qt was told to draw elsewhere."""
    if not sys.platform.startswith("linux"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))


def refuse_broken(pyside: str, python: tuple[int, int]) -> None:
    """EditorUnavailable for a version of PySide6 that would abort on this version of Python."""
    version = tuple(int(part) for part in pyside.split(".")[:3] if part.isdigit())
    bad, fine_from = BROKEN
    if version == bad and python < fine_from:
        raise EditorUnavailable(
            f"PySide6 {pyside} ends the process after some thousand calls on Python {python[0]}.{python[1]}. "
            "Install another with: pip install 'PySide6-Essentials<6.12'"
        )


def _require_libraries() -> None:
    wanted = dict(SYSTEM_LIBRARIES)
    platform = os.environ.get("QT_QPA_PLATFORM", "")
    if platform in ("", "xcb") and os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        wanted |= SCREEN_LIBRARIES
    packages = [package for library, package in wanted.items() if not _loads(library)]
    if packages:
        raise EditorUnavailable(
            f"The editor needs system libraries that are not here. Install them with: "
            f"sudo apt-get install {' '.join(packages)} (names of Debian and Ubuntu)."
        )


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _provide_distutils() -> None:
    """NodeGraphQt compares versions with distutils, which left Python in 3.12: this much of it is enough."""
    if importlib.util.find_spec("distutils") is not None:
        return

    class LooseVersion:
        def __init__(self, text: str) -> None:
            self._parts = [int(part) if part.isdigit() else part for part in text.split(".")]

        def __ge__(self, other: LooseVersion) -> bool:
            return self._parts >= other._parts

    package, version = types.ModuleType("distutils"), types.ModuleType("distutils.version")
    version.LooseVersion = LooseVersion  # type: ignore[attr-defined]
    package.version = version  # type: ignore[attr-defined]
    sys.modules |= {"distutils": package, "distutils.version": version}


require()
