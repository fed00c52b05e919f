"""The README's program runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from runtime import load

ROOT = Path(__file__).parent.parent


def test_the_first_graph_runs_and_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    assert str(np.ones((3, 2), np.float32)[0]) in capsys.readouterr().out
    assert list(load(tmp_path / "first.yaml").nodes) == ["x", "w", "product", "y"]
