"""Work on several threads whose results come in order, while the linear algebra beneath uses one thread each."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import islice
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 32


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[tuple[Item, Result]]:
    """(item, work(item)) for all items, in their order; no more than twice as many as `threads` are under way.

    With 0 `threads` the caller's does it all, and NumPy's products use as many as they like.
    """
    if threads <= 1:
        with _single_threaded_products() if threads else nullcontext():
            for item in items:
                yield item, work(item)
        return
    source = iter(items)
    pending: deque[tuple[Item, Future[Result]]] = deque()
    pool = _pool(threads - 1)
    with _single_threaded_products():
        try:
            while True:
                for item in islice(source, 2 * threads - len(pending)):
                    pending.append((item, pool.submit(work, item)))
                if not pending:
                    return
                # Whoever asks works, too: a thread that sleeps is late when it is woken, later than most work takes.
                while not pending[0][1].done() and _do_one(work, pending):
                    pass
                item, future = pending.popleft()
                yield item, future.result()
        finally:
            # A cancelled one is not waited for: it stays where it is until a thread, which may be this one, finds it.
            wait([future for _, future in pending if not future.cancel()])


def _do_one(work: Callable[[Item], Result], pending: deque[tuple[Item, Future[Result]]]) -> bool:
    """Does the first piece of work that nobody has begun; False if there is none."""
    for place, (item, future) in enumerate(pending):
        if future.cancel():
            done: Future[Result] = Future()
            done.set_result(work(item))
            pending[place] = item, done
            return True
    return False


def available_threads() -> int:
    """As many as the process may use processors."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, MOST_THREADS)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: starting some for each call takes as long as a token's way through an expert."""
    return ThreadPoolExecutor(threads, thread_name_prefix="qmoe")


_lock = threading.Lock()
_users = 0
_limit: Any = None


def _begin_anew() -> None:
    """Forgets, in a child process, the threads of its parent: they do not live on, and end nothing they have begun."""
    global _lock, _users
    _pool.cache_clear()
    _lock = threading.Lock()
    if _users:
        _limit.restore_original_limits()
    _users = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def _single_threaded_products() -> Iterator[None]:
    """NumPy's products on one thread, for the whole process; the first who comes sets it, the last resets it."""
    global _users, _limit
    lock = _lock
    with lock:
        if not _users:
            _limit = _controller().limit(limits=1, user_api="blas")
        _users += 1
    try:
        yield
    finally:
        with lock:
            if lock is _lock:  # and not in a child process, which has begun anew in between
                _users -= 1
                if not _users:
                    _limit.restore_original_limits()
