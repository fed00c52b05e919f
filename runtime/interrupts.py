"""Ctrl-C, which must not get lost: Python drops a KeyboardInterrupt that is raised while it collects garbage."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from runtime.errors import Cancelled

_T = TypeVar("_T")

LOOK_EVERY = 0.1
"""Seconds."""
_heard = threading.Event()


@contextmanager
def remembering() -> Iterator[None]:
    """Remembers Ctrl-C while a command runs, so that its next `interrupting` hears of it if nobody else did."""
    _heard.clear()
    with _telling(_heard.set):
        yield


def in_a_thread(cancel: threading.Event, work: Callable[..., _T], /, *arguments: Any, **options: Any) -> _T:
    """What work gives that is done in a thread of its own, so that Ctrl-C is heard while native code works.

    It is to end soon after `cancel` is set, with `Cancelled` or without.
    """
    from concurrent.futures import ThreadPoolExecutor, wait

    with interrupting(cancel), ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, *arguments, **options)
        while not future.done():
            # A thread that waits for ever does not always wake when another one was told of the signal.
            wait([future], LOOK_EVERY)
        return future.result()


@contextmanager
def interrupting(cancel: threading.Event) -> Iterator[None]:
    """Sets `cancel` at Ctrl-C, before KeyboardInterrupt is raised, and raises that again if work ends so."""
    if _heard.is_set():
        cancel.set()
        raise KeyboardInterrupt
    with _telling(cancel.set):
        try:
            yield
        except KeyboardInterrupt:
            cancel.set()
            raise
        except Cancelled:
            if cancel.is_set():
                raise KeyboardInterrupt from None
            raise


@contextmanager
def delayed() -> Iterator[None]:
    """Has Ctrl-C wait until the end of what must not be broken off; a second one does not wait."""
    waiting: list[Callable[[], object]] = []

    def wait(then: Callable[[], object]) -> None:
        if waiting:
            then()
        waiting.append(then)

    try:
        with _handling(wait):
            yield
    finally:
        if waiting:
            waiting[0]()


@contextmanager
def _telling(tell: Callable[[], None]) -> Iterator[None]:
    """Calls `tell` at Ctrl-C, before what was to happen then."""

    def tell_first(then: Callable[[], object]) -> None:
        tell()
        then()

    with _handling(tell_first):
        yield


@contextmanager
def _handling(handle: Callable[[Callable[[], object]], None]) -> Iterator[None]:
    """Calls `handle` at Ctrl-C, with what was to happen then. Only the main thread hears of it."""
    before = signal.getsignal(signal.SIGINT)
    heard = threading.current_thread() is threading.main_thread() and callable(before)

    def at_signal(number: int, frame: FrameType | None) -> None:
        assert callable(before)
        handle(partial(before, number, frame))

    if heard:
        signal.signal(signal.SIGINT, at_signal)
    try:
        yield
    finally:
        if heard:
            signal.signal(signal.SIGINT, before)
