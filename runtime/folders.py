"""Where this program keeps what is the user's but no document: settings, and what is needed after a crash."""

from __future__ import annotations

import os
import sys
from pathlib import Path

NAME = "qmoe-studio"


def state_folder() -> Path:
    """The folder for journals, lists of recent files and the like. It need not exist.

    QMOE_STATE_FOLDER, or what the platform has for that: $XDG_STATE_HOME, ~/Library/Application Support,
    %LOCALAPPDATA%.
    """
    return _folder("QMOE_STATE_FOLDER", "XDG_STATE_HOME", ".local/state")


def config_folder() -> Path:
    """The folder for the user's settings and snippets: QMOE_CONFIG_FOLDER, or what the platform has for that."""
    return _folder("QMOE_CONFIG_FOLDER", "XDG_CONFIG_HOME", ".config")


def _folder(own: str, xdg: str, usual: str) -> Path:
    chosen = os.environ.get(own)
    if chosen:
        return Path(chosen)
    home = Path(os.path.expanduser("~"))  # unlike Path.home, as it stands where there is none
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) / NAME if local else home / "AppData" / "Local" / NAME
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / NAME
    base = os.environ.get(xdg, "")
    return Path(base) / NAME if os.path.isabs(base) else home / usual / NAME  # the standard ignores relative ones
