"""What `qmoe run --data` and `qmoe train --cluster` say and leave behind; without a cluster."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.commands import ROOT, Qmoe, qmoe, start

__all__ = ["qmoe"]

DIGITS = ROOT / "snippets" / "digits_moe.yaml"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty images with their digits."""
    random = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=random.random((20, 64), np.float32), y=random.integers(0, 10, 20))
    return tmp_path / "data.npz"


@pytest.mark.parametrize("options", [("--workers", 2), ("--cluster", "127.0.0.1:1")])
def test_a_wrong_option_leaves_the_folder_as_it_was(
    qmoe: Qmoe, tmp_path: Path, data: Path, options: tuple[str, ...]
) -> None:
    """Else the mended command would be told that there are results already."""
    (tmp_path / "empty").mkdir()
    for out in ("new", "empty"):
        words = ("run", DIGITS, "--data", data, "--out", tmp_path / out)
        assert qmoe(*words, *options).code in (1, 2)
        assert (tmp_path / out).exists() == (out == "empty")
        assert qmoe(*words).code == 0
        assert qmoe(*words, *options, "--resume").code in (1, 2)
        assert len(list((tmp_path / out).glob("part-*.npz"))) == 1  # what a job has done stays


def test_an_address_that_is_none_is_refused(qmoe: Qmoe, data: Path) -> None:
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    words = ("run", DIGITS, "--data", data, "--out", "out", "--cluster")
    assert "expected an address, such as local or head:6379; none came" in qmoe(*words, "").err
    assert "no cluster to be had at foo: Invalid address format: foo. Start one" in qmoe(*words, "foo").err


def test_training_that_is_interrupted_says_how_it_goes_on(tmp_path: Path, data: Path) -> None:
    words = ("train", DIGITS, "--data", data, "--epochs", 100_000, "--folder", tmp_path / "run")
    process = start(*words)
    log = tmp_path / "run" / "log.jsonl"
    while not log.is_file() or not log.read_bytes():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in err
    assert re.search(r"\d+ of 100000 epochs are in .*run; go on with --resume\.", err)
