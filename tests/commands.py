"""The command `qmoe`, called in this process or in one of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from runtime import reports
from runtime.cli import main

ROOT = Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Qmoe = Callable[..., Ended]


@pytest.fixture
def qmoe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Qmoe:
    """Calls the command in this process, in an empty folder, as if its output went to a file."""
    monkeypatch.chdir(tmp_path)
    # A test runner may say how wide its own output is, which is not that of the command.
    monkeypatch.setattr(reports.console, "_width", 400)

    def call(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["qmoe", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
            sys.exit(0)
        out, err = capsys.readouterr()
        return Ended(int(end.value.code or 0), out, err)

    return call


def start(*words: object, before: str = "", **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, which runs `before` first."""
    program = (
        f"{before}\n"
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from runtime.cli import main\n"
        "sys.argv = ['qmoe', *sys.argv[1:]]\n"
        "main()"
    )
    command = [sys.executable, "-c", program, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return subprocess.Popen(command, **(pipes | options))
