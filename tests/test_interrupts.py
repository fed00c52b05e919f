"""Ctrl-C: heard once, and also where Python drops its exception."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress

import pytest

from runtime.connecting import LOCAL, connect
from runtime.errors import Cancelled
from runtime.interrupts import delayed, interrupting, remembering


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_a_dropped_interrupt_is_heard_by_the_next_work() -> None:
    cancel = threading.Event()
    with remembering():
        with interrupting(cancel):
            pass
        with suppress(KeyboardInterrupt):  # as the collection of garbage does
            press()
        with pytest.raises(KeyboardInterrupt), interrupting(cancel):
            raise AssertionError("it began all the same")
    assert cancel.is_set()
    with remembering(), interrupting(threading.Event()):
        pass  # the next command knows nothing of it


def test_work_that_is_cancelled_by_it_ends_as_interrupted() -> None:
    cancel = threading.Event()
    with remembering(), pytest.raises(KeyboardInterrupt), interrupting(cancel):
        with suppress(KeyboardInterrupt):
            press()
        assert cancel.is_set()
        raise Cancelled("cancelled")
    with remembering(), pytest.raises(Cancelled), interrupting(threading.Event()):
        raise Cancelled("by somebody else")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_must_not_be_broken_off_is_done_first() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), delayed():
        press()
        done.append(1)
    with pytest.raises(KeyboardInterrupt), delayed():
        press()
        press()
        done.append(2)
    with pytest.raises(KeyboardInterrupt), delayed():
        press()
        raise ValueError("it failed, too")
    with delayed():
        done.append(3)
    assert done == [1, 3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_connection_is_made_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends a process with SIGSEGV some seconds after Ctrl-C came while it connected."""
    ray = pytest.importorskip("ray")
    said: list[str] = []

    def init(**options: object) -> None:
        press()
        said.append("connected")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: said.append("shut down"))
    with pytest.raises(KeyboardInterrupt):
        connect(LOCAL, 1)
    assert said == ["connected", "shut down"]
