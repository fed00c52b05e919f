"""The classifier of digits that comes along: trained, rounded and tuned again by its script."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from runtime import Session, load, save
from runtime.training.metrics import accuracy

SNIPPETS = Path(__file__).parent.parent / "snippets"


def test_the_script_tunes_away_what_rounding_cost(tmp_path: Path) -> None:
    script = [sys.executable, str(SNIPPETS / "make_digits_moe.py"), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    found = {name: float(share) for name, share in re.findall(r"(\w+): .* split, ([\d.]+)% of the test", done.stdout)}
    assert found["digits_moe_float"] > 91
    assert found["digits_moe_quantized"] + 1 < found["digits_moe"] <= found["digits_moe_float"] + 1
    for name in ("digits_moe_quantized_4_bits", "digits_moe_4_bits"):
        assert abs(found[name] - found["digits_moe_float"]) < 1
    for file in SNIPPETS.glob("digits_moe*.yaml"):
        again, shipped = load(tmp_path / file.name), load(file)
        assert again.section("info") == shipped.section("info") and again.wires == shipped.wires


def test_the_shipped_classifier_is_right_on_both_backends() -> None:
    with np.load(SNIPPETS / "digits.npz") as archive:
        x, y = archive["images"][-360:].astype(np.float32) / 16, archive["digits"][-360:].astype(np.int64)
    graph = load(SNIPPETS / "digits_moe.yaml")
    logits = [Session(graph, backend).forward({"x": x, "y": y})["logits"] for backend in ("numpy", "onnxruntime")]
    assert accuracy(logits[0], y) > 0.91
    assert np.abs(logits[0] - logits[1]).max() < 1e-5 * np.abs(logits[0]).max()


def test_a_file_of_it_is_read_written_and_run_again(tmp_path: Path) -> None:
    graph, x, y = load(SNIPPETS / "digits_moe.yaml"), np.ones((3, 64), np.float32), np.zeros(3, np.int64)
    expected = Session(graph).forward({"x": x, "y": y})["logits"]
    for number in range(4):
        save(graph, tmp_path / f"{number}.onnx")
        graph = load(tmp_path / f"{number}.onnx")
        np.testing.assert_allclose(Session(graph).forward({"x": x, "y": y})["logits"], expected, rtol=1e-5, atol=1e-6)
