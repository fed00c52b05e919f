"""Locks on files, which end with the process that holds them, and whether a process still lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO


def take_lock(path: str | Path) -> BinaryIO | None:
    """Locks a file, which is made if there is none, until what is returned is closed; None if somebody holds it.

    OSError if the file cannot be opened. Where the file system has no locks, nobody holds them.
    """
    file = open(path, "ab")  # noqa: SIM115 - it is the lock
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    except OSError:
        return file
    return file


def started(process: int) -> str:
    """When a process was started, in a form of the platform's; empty if there is none, or that cannot be told."""
    if process <= 0:
        return ""
    if sys.platform.startswith("linux"):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except (OSError, ValueError):
            return ""
        return f"{boot} {fields[19]}" if fields[0] not in "ZX" else ""
    if sys.platform == "win32":
        return ""
    try:
        command = ["ps", "-o", "lstart=", "-p", str(process)]
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def lives(process: int, start: str) -> bool:
    """Whether the process of this number is still the one that was started then; False where that cannot be told."""
    return bool(start) and (process == os.getpid() or started(process) == start)
