"""Batches on their way through a spread graph, several at a time: the numbers of one machine, whatever comes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmoe_node.sharding import shard
from runtime import spread
from runtime.cluster import Done, Task
from runtime.errors import FileError, Finding
from runtime.hosting import Failure, Host, Opening, Piece, Range, Scored, Sight
from runtime.parts import PartedSession, alone, parts_of
from runtime.session import Session
from runtime.spread import Flow
from runtime.tensors import Tensor
from tests.test_sharding import layered

ROWS = 60


class Setting:
    """A spread graph with its parts in sessions here, and data for it."""

    def __init__(self) -> None:
        graph = layered(2)
        graph.add("Input", "index", parameters={"type": "tensor(int64)", "shape": ["n"]})
        table = np.arange(320, dtype=np.float32).reshape(10, 32)
        graph.add("Initializer", "table", parameters={"tensor": Tensor.from_array(table)})
        graph.add("Gather", "gather")
        graph.add("Add", "sum")
        graph.cut("y.value")
        for source, target in (
            ("table.value", "gather.data"),
            ("index.value", "gather.indices"),
            ("gather.output", "sum.B"),
            ("add1.C", "sum.A"),
            ("sum.C", "y.value"),
        ):
            graph.wire(source, target)
        random = np.random.default_rng(0)
        self.rows = {
            "x": random.standard_normal((ROWS, 32), np.float32),
            "logits": random.standard_normal((ROWS, 6), np.float32),
            "index": random.integers(0, 10, ROWS),
        }
        self.whole = Session(graph).forward(self.rows)["y"]
        cut = shard(graph, 3)
        parts = parts_of(cut)
        self.owners = {node: part % 2 for node, part in parts.items()}
        self.sessions = {node: Session(alone(cut, node)) for node in parts}
        self.between = PartedSession(cut, parts)
        self.host = Host()
        self.host.prepare({}, Opening())

    def flow(self, tasks: list[Task]) -> Flow:
        return Flow(self.between, self.host, self.owners, tasks, Sight())

    def pieces(self, size: int, batch: int, skip_bad: bool = False, bad: tuple[int, ...] = ()) -> list[Task]:
        """Tasks of `size` rows each; the rows `bad` cannot be run."""
        index = self.rows["index"].copy()
        index[list(bad)] = 99
        rows = self.rows | {"index": index}
        firsts = range(0, ROWS, size)
        pieces = [Piece(a, {name: r[a : a + size] for name, r in rows.items()}, batch, skip_bad) for a in firsts]
        return [Task(number, "score", (piece, number)) for number, piece in enumerate(pieces)]

    def answer(self, task: Task) -> Any:
        node, feeds = task.arguments_for(Sight())
        assert task.method == "run" and task.owner == self.owners[node]
        return self.sessions[node].forward(feeds)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


def driven(
    flow: Flow,
    answer: Callable[[Task], Any],
    pick: Callable[[int], int] = lambda count: 0,
    most: list[int] | None = None,
) -> list[Done]:
    """All that comes of a flow whose calls are answered in any order."""
    waiting: list[Task] = []
    found: list[Done] = []
    while not flow.is_done:
        waiting += flow
        if most is not None:
            most.append(len(waiting))
        if waiting:
            task = waiting.pop(pick(len(waiting)))
            flow.take(Done(task, answer(task), 0))
        found += flow.finished()
    assert not waiting
    return found


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 70), batch=st.integers(1, 25), data=st.data())
def test_numbers_are_those_of_one_machine_in_whatever_order_calls_end(
    setting: Setting, size: int, batch: int, data: st.DataObject
) -> None:
    tasks = setting.pieces(size, batch)
    found = driven(setting.flow(tasks), setting.answer, lambda count: data.draw(st.integers(0, count - 1)))
    assert Counter(done.task.index for done in found) == Counter(range(len(tasks)))
    values = [done.value for done in sorted(found, key=lambda done: done.task.index)]
    assert all(isinstance(value, Scored) and value.per == {"y": "row"} for value in values)
    np.testing.assert_allclose(np.concatenate([v.outputs["y"] for v in values]), setting.whole, rtol=1e-5, atol=1e-5)


def test_so_many_batches_are_under_way_and_no_more(setting: Setting) -> None:
    """The next batch's calls are there while those of the one before are not answered."""
    most: list[int] = []
    driven(setting.flow(setting.pieces(30, 10)), setting.answer, most=most)
    assert max(most) == 3 * spread.DEEP  # a call for each part


def test_bad_batches_are_set_aside_and_the_others_are_done(setting: Setting) -> None:
    tasks = setting.pieces(30, 10, skip_bad=True, bad=(13, 45))
    found = {done.task.index: done.value for done in driven(setting.flow(tasks), setting.answer)}
    first, second = found[0], found[1]
    assert [(one.start, one.stop) for value in (first, second) for one in value.skipped] == [(10, 20), (40, 50)]
    assert "gather" in first.skipped[0].reason
    for value, start in ((first, 0), (second, 30)):
        keeps = np.r_[start : start + 10, start + 20 : start + 30]
        np.testing.assert_allclose(value.outputs["y"], setting.whole[keeps], rtol=1e-5, atol=1e-5)


def test_a_bad_batch_fails_its_task_with_its_rows(setting: Setting) -> None:
    found = {d.task.index: d.value for d in driven(setting.flow(setting.pieces(30, 10, bad=(45,))), setting.answer)}
    assert isinstance(found[0], Scored)
    assert isinstance(found[1], Failure) and found[1].rows == (40, 50) and found[1].findings[0].node == "gather"


@pytest.mark.parametrize("skip_bad", [False, True])
def test_what_workers_cannot_do_is_told_with_its_rows(setting: Setting, skip_bad: bool) -> None:
    """Another part of the same batch may be done after that."""
    calls = Counter[str]()

    def answer(task: Task) -> Any:
        node = task.arguments_for(Sight())[0]
        calls[node] += 1
        if calls[node] == 2 and node.endswith("1"):
            return Failure((Finding("It went up in smoke.", node),))
        return setting.answer(task)

    found = driven(setting.flow(setting.pieces(60, 20, skip_bad)), answer, lambda count: count - 1)
    (value,) = [done.value for done in found]
    if skip_bad:
        assert value.skipped and all("up in smoke" in one.reason for one in value.skipped)
        assert len(value.outputs["y"]) == 60 - sum(one.stop - one.start for one in value.skipped)
    else:
        assert isinstance(value, Failure) and "up in smoke" in str(value.findings[0]) and value.rows is not None


def test_calls_of_batches_that_failed_are_under_way_until_they_are_answered(setting: Setting) -> None:
    """One worker fails at once and another is slow: batches do not pile up before that one."""
    slow: list[Task] = []
    flow = setting.flow(setting.pieces(60, 1, skip_bad=True))
    while not flow.is_done:
        for task in flow:
            if task.owner == 0:
                flow.take(Done(task, Failure((Finding("It went up in smoke."),)), 0))
            else:
                slow.append(task)
        assert len(slow) <= spread.DEEP * len(setting.owners)
        if slow:
            task = slow.pop(0)
            flow.take(Done(task, setting.answer(task), 1))
        results = [done.value for done in flow.finished()]
    (value,) = results
    assert len(value.skipped) == 60 and not slow
    assert "fc1" not in value.skipped[0].reason and "moe0" in value.skipped[0].reason, "the node is named"


def test_the_first_rows_that_fail_are_those_of_one_machine(setting: Setting) -> None:
    """Calls of the first rows are answered last, and with an error; rows after them fail here, at once."""

    def answer(task: Task) -> Any:
        return Failure((Finding("It went up in smoke."),)) if task.index < 3 else setting.answer(task)

    tasks = setting.pieces(20, 10, bad=(15, 25))
    found = driven(setting.flow(tasks), answer, lambda count: count - 1)
    assert [done.task.index for done in found] == [0, 1, 2]
    assert [getattr(done.value, "rows", None) for done in found] == [(0, 10), (20, 30), None]


def test_a_part_that_cannot_be_opened_is_no_bad_batch(setting: Setting) -> None:
    answers = Failure((Finding("Its weights are not there."),), is_open=False)
    found = driven(setting.flow(setting.pieces(60, 10, skip_bad=True)), lambda task: answers)
    assert [type(done.value) for done in found] == [Failure] and found[0].value.rows == (0, 10)


def test_data_that_cannot_be_read_fails_its_task(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are under way then change nothing about that."""
    real = setting.host.batches

    def batches(piece: Piece | Range) -> Iterator[Any]:
        for start, feeds in real(piece):
            if start == 40:
                raise FileError("d.npy", "has changed.")
            yield start, feeds

    monkeypatch.setattr(setting.host, "batches", batches)
    found = {d.task.index: d.value for d in driven(setting.flow(setting.pieces(30, 10)), setting.answer)}
    assert isinstance(found[0], Scored)
    assert isinstance(found[1], Failure) and "has changed" in str(found[1].findings[0])


def test_a_single_run_goes_the_same_way(setting: Setting) -> None:
    (done,) = driven(setting.flow([Task(0, "run", ("graph", setting.rows))]), setting.answer)
    np.testing.assert_allclose(done.value["y"], setting.whole, rtol=1e-5, atol=1e-5)
    (done,) = driven(setting.flow([Task(0, "run", ("graph", {"x": setting.rows["x"]}))]), setting.answer)
    assert isinstance(done.value, Failure) and "logits" in str(done.value.findings[0])
