"""Where nodes stand when nobody has said so: in columns from left to right, so that few wires cross.

The layered method of Sugiyama, Tagawa and Toda (1981): every node gets a column behind all that feed it, wires over
several columns get a place in each, columns are sorted by the middle of their neighbours, sweep after sweep, and places
are then moved towards those neighbours as far as the order allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

GAP_ACROSS, GAP_DOWN, GAP_TIGHT = 60.0, 18.0, 2.0
PASSAGE = 6.0
"""Half the height that a wire takes in the columns that it passes."""
GAP_BANDS = 60.0
PAGE, LONGEST_ROW = 1.6, 8000.0
"""A row that is longer is folded into bands, until it is about so many times as wide as high."""
SWEEPS = 8
MOST_PLACES = 20_000
"""Wires over many columns get no places of their own beyond so many: a huge graph is laid out more coarsely."""


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A node: its size, how much room it needs on its right, and whether it stands as near as it can to its reader."""

    width: float
    height: float
    margin: float = 0.0
    clings: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A wire from `source` to `target`, each with how far below the top of its node it ends."""

    source: str
    target: str
    leaves: float
    arrives: float


@dataclass(slots=True)
class _Place:
    """One entry of a column: a node, or where a long wire passes."""

    height: float
    column: int
    clings: bool = False
    before: list[tuple[_Place, float, float]] = field(default_factory=list)  # neighbour, where there, where here
    after: list[tuple[_Place, float, float]] = field(default_factory=list)
    y: float = 0.0
    rank: float = 0.0


def arrange(nodes: Mapping[str, Rectangle], lines: Iterable[Line]) -> dict[str, tuple[float, float]]:
    """The left upper corner of every node, so that none covers another; the first column starts at x = 0."""
    lines = [line for line in lines if line.source in nodes and line.target in nodes and line.source != line.target]
    columns_of = _columns(nodes, lines)
    places = {id: _Place(nodes[id].height, column, nodes[id].clings) for id, column in columns_of.items()}
    columns: list[list[_Place]] = [[] for _ in range(max(columns_of.values(), default=-1) + 1)]
    for place in places.values():
        columns[place.column].append(place)
    _join(places, lines, columns)
    for column in columns:
        _stack(column)
    _sort(columns)
    _pull(columns)
    members: list[list[str]] = [[] for _ in columns]
    for id, column_number in columns_of.items():
        members[column_number].append(id)
    widths = [max((nodes[id].width for id in ids), default=0.0) for ids in members]
    steps = [
        width + GAP_ACROSS + max((nodes[id].margin for id in ids), default=0.0)
        for width, ids in zip(widths, members, strict=True)
    ]
    corners: dict[str, tuple[float, float]] = {}
    down = 0.0
    for first, last in _bands(steps, [len(column) for column in columns], places.values()):
        x = 0.0
        heights = {id: places[id].y for ids in members[first:last] for id in ids}
        top = min(heights.values(), default=0.0)
        for number in range(first, last):
            for id in members[number]:
                # What clings stands at the right of its column, near its reader.
                aside = widths[number] - nodes[id].width if nodes[id].clings else 0.0
                corners[id] = float(round(x + aside)), float(round(places[id].y - top + down))
            x += steps[number]
        down += max((heights[id] + nodes[id].height - top for id in heights), default=0.0) + GAP_BANDS
    return {id: corners[id] for id in nodes}


def _bands(steps: Sequence[float], crowds: Sequence[int], places: Iterable[_Place]) -> list[tuple[int, int]]:
    """Where a long row of columns is folded into several: the first column of each band and the one after its last.

    It is folded where few wires pass, into about the shape of a page.
    """
    width, count = sum(steps), len(steps)
    tops = [place.y for place in places]
    height = max(tops, default=0.0) - min(tops, default=0.0) + GAP_BANDS
    bands = min(count, round((width / (PAGE * height)) ** 0.5)) if width > LONGEST_ROW else 1
    if bands < 2:
        return [(0, count)]
    cuts, reach, x = [0], width / bands, 0.0
    ends = []
    for step in steps:
        x += step
        ends.append(x)
    for band in range(1, bands):
        near = [number for number in range(cuts[-1] + 1, count) if abs(ends[number - 1] - band * reach) <= reach / 5]
        if near:
            cuts.append(min(near, key=lambda number: (crowds[number], abs(ends[number - 1] - band * reach))))
    return list(pairwise([*cuts, count]))


def _columns(nodes: Mapping[str, Rectangle], lines: Sequence[Line]) -> dict[str, int]:
    """A column for every node: one behind the last that feeds it; one that clings, just before its first reader."""
    waiting = dict.fromkeys(nodes, 0)
    readers: dict[str, list[str]] = {id: [] for id in nodes}
    for line in lines:
        waiting[line.target] += 1
        readers[line.source].append(line.target)
    column = dict.fromkeys(nodes, 0)
    ready, order = [id for id, count in waiting.items() if not count], []
    while ready:
        id = ready.pop()
        order.append(id)
        for reader in readers[id]:
            column[reader] = max(column[reader], column[id] + 1)
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    for id in reversed(order):
        if readers[id] and nodes[id].clings:
            column[id] = max(0, min(column[reader] for reader in readers[id]) - 1)
    return column


def _join(places: Mapping[str, _Place], lines: Iterable[Line], columns: list[list[_Place]]) -> None:
    """Makes neighbours of the ends of every wire, over a place in each column between them."""
    budget = MOST_PLACES
    for line in lines:
        last, end = places[line.source], places[line.target]
        leaves = line.leaves
        passed = range(last.column + 1, end.column)
        if len(passed) <= budget:
            budget -= len(passed)
            for number in passed:
                between = _Place(2 * PASSAGE, number)
                columns[number].append(between)
                last.after.append((between, PASSAGE, leaves))
                between.before.append((last, leaves, PASSAGE))
                last, leaves = between, PASSAGE
        last.after.append((end, line.arrives, leaves))
        end.before.append((last, leaves, line.arrives))


def _offsets(column: Sequence[_Place]) -> list[float]:
    """How far below the first place of a column the others are at least; what clings may stand close together."""
    offsets = [0.0][: len(column)]
    for above, below in pairwise(column):
        gap = GAP_TIGHT if above.clings and below.clings else GAP_DOWN
        offsets.append(offsets[-1] + above.height + gap)
    return offsets


def _stack(column: Sequence[_Place]) -> None:
    for place, offset in zip(column, _offsets(column), strict=True):
        place.y = offset


def _sort(columns: Sequence[list[_Place]]) -> None:
    """Sorts columns by the middle of where their neighbours' wires come from, forwards and backwards."""
    for sweep in range(SWEEPS):
        forwards = sweep % 2 == 0
        for column in columns if forwards else reversed(columns):
            for place in column:
                place.rank = _wish(place.before if forwards else place.after, place.y)
            column.sort(key=lambda place: place.rank)
            _stack(column)


def _pull(columns: Sequence[Sequence[_Place]]) -> None:
    """Moves places to where their wires run straight, as far as the order of their column lets them."""
    for sweep in range(SWEEPS):
        forwards = sweep % 2 == 1
        for column in columns if forwards else reversed(columns):
            _settle(column, [_wish((p.before if forwards else p.after) or p.before or p.after, p.y) for p in column])
    for column in reversed(columns):  # what clings follows its reader; the others stay
        _settle(column, [_wish(place.after if place.clings else [], place.y) for place in column])


def _wish(neighbours: Sequence[tuple[_Place, float, float]], y: float) -> float:
    """Where a place's wires to its neighbours run straight; `y` if it has none."""
    if len(neighbours) == 1:
        other, there, here = neighbours[0]
        return other.y + there - here
    return median(other.y + there - here for other, there, here in neighbours) if neighbours else y


def _settle(column: Sequence[_Place], wished: Sequence[float]) -> None:
    """Gives each place of a column the height nearest to its wish, in order and without overlaps.

    Places that would overlap form a block that stands where the mean of their wishes puts it (least squares with order
    constraints: pool adjacent violators).
    """
    blocks: list[list[float]] = []  # sum of wishes less offsets, count
    offsets = _offsets(column)
    for wish, offset in zip(wished, offsets, strict=True):
        blocks.append([wish - offset, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    index = 0
    for total, count in blocks:
        for _ in range(int(count)):
            column[index].y = total / count + offsets[index]
            index += 1
