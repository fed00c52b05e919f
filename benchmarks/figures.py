"""What is measured, and how: medians of calls made in turn, so that what else the machine does falls on all alike."""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

THREADS = 2
"""Of one operator; of products in NumPy too."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a table: `ours` and `peer` in `unit`, `spread` half the distance between the quartiles of ours.

    The `target` is of `compared`: "ratio" is ours / peer, "speed" is peer / ours, "ours" is the figure itself, and it
    is met at most ("ratio", "ours") or at least ("speed") that.
    """

    what: str
    ours: float
    unit: str
    spread: float = 0.0
    peer: float | None = None
    compared: str = ""
    target: float | None = None
    note: str = ""

    @property
    def value(self) -> float | None:
        """What is compared with the target."""
        if self.compared == "ours":
            return self.ours
        if self.peer is None or not self.ours or not self.peer:
            return None
        return self.peer / self.ours if self.compared == "speed" else self.ours / self.peer

    @property
    def is_met(self) -> bool | None:
        """None without a target."""
        if self.target is None or self.value is None:
            return None
        return self.value >= self.target if self.compared == "speed" else self.value <= self.target

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


QUIET = 0.1
"""Seconds in which threads that wait awake for the next call, as ONNX Runtime's do, fall asleep."""
SHORT = 0.1
"""Seconds up to which a call is made several times in a turn, and the first one does not count."""
SHORTEST = 0.001
"""Seconds below which a call has no work for threads, and nothing to wait for."""


def in_turn(calls: Sequence[Callable[[], object]], least: int = 5, long: float = 3.0) -> list[list[float]]:
    """Seconds of calls made in turn, `least` times and for about `long` seconds at least, after one to warm up.

    Nobody is measured while another's threads still hold the cores: each turn starts after a pause and, where calls are
    short, with one that is not counted, and has as many as fit into a tenth of a second: calls of a kind come one after
    the other, as they do in a program.
    """
    rests = max(map(seconds, calls)) > SHORTEST
    times: list[list[float]] = [[] for _ in calls]
    spent = 0.0
    while len(times[0]) < least or (spent < long and len(times[0]) < 2000):
        for call, own in zip(calls, times, strict=True):
            if rests:
                time.sleep(QUIET)
                if not own or own[-1] < SHORT:
                    call()
            begun = time.perf_counter()
            own.append(seconds(call))
            while rests and time.perf_counter() - begun < SHORT:
                own.append(seconds(call))
            spent += time.perf_counter() - begun + (QUIET if rests else 0.0)
    return times


def spread(times: Sequence[float]) -> float:
    """Half the distance between the first and the third quartile."""
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / 2


def beside(
    what: str,
    ours: Callable[[], object],
    peer: Callable[[], object] | None = None,
    *,
    unit: str = "ms",
    compared: str = "ratio",
    target: float | None = None,
    note: str = "",
    least: int = 5,
    long: float = 3.0,
) -> Figure:
    """A figure of two calls made in turn, or of one alone."""
    scale = {"s": 1.0, "ms": 1e3, "µs": 1e6}[unit]
    times = in_turn([ours] if peer is None else [ours, peer], least, long)
    medians = [statistics.median(own) * scale for own in times]
    return Figure(
        what,
        medians[0],
        unit,
        spread(times[0]) * scale,
        medians[1] if peer is not None else None,
        compared,
        target,
        note,
    )


def beside_anew(
    what: str,
    makes: Sequence[Callable[[], Callable[[], object]]],
    *,
    target: float,
    note: str = "",
    times: int,
    long: float = 5.0,
) -> Figure:
    """The figure of two calls, each made anew several times, now one first, now the other: in milliseconds, as a ratio.

    For what reads so much memory that chance decides about a tenth of its time: by where it comes to lie, and by the
    processors on which threads wake up, which is decided anew in each turn.
    """
    found: list[list[float]] = [[], []]
    for turn in range(times):
        calls = {which: makes[which]() for which in ((0, 1) if turn % 2 else (1, 0))}
        for own, taken in zip(found, in_turn([calls[0], calls[1]], long=long), strict=True):
            own += taken
        del calls
        gc.collect()
    ours, peer = (statistics.median(own) * 1e3 for own in found)
    return Figure(what, ours, "ms", spread(found[0]) * 1e3, peer, "ratio", target, note)


def in_a_process(
    program: str, *words: str, environment: dict[str, str] | None = None, python: Path | None = None
) -> dict[str, float]:
    """What a Python program prints as JSON, and the most memory that it took, in bytes: "memory" and "anonymous".

    Without the text of a `program` the first of the words is its file. It is run in the folder that this one runs in,
    by another `python` if need be; "anonymous" leaves out pages of files.
    """
    command = [str(python or sys.executable), *(["-c", program] if program else []), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    most = {"VmRSS": 0, "RssAnon": 0}

    def watch() -> None:
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            for line in lines:
                name = line.partition(":")[0]
                if name in most:
                    most[name] = max(most[name], int(line.split()[1]) << 10)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"a measured program ended with {process.returncode}")
    last = (output.splitlines() or [""])[-1]
    found: dict[str, float] = json.loads(last) if last.startswith("{") else {}
    return found | {"memory": float(most["VmRSS"]), "anonymous": float(most["RssAnon"])}
