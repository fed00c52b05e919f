"""Every test: windows are drawn off the screen, what the editor remembers goes to a folder of the test run, and Ctrl-C
is heard."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ["QT_PREFERRED_BINDING"] = "PySide6"
_home = Path(tempfile.mkdtemp(prefix="qmoe-tests-"))
for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "QMOE_STATE_FOLDER"):
    os.environ[name] = str(_home / name.lower())

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells have it for what they start in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.commands import qmoe  # noqa: E402, F401 - after what it reads is set
