"""The examples: their quick form does what their long form does, and repeats to the last bit."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("character_model", EXAMPLES / "character_model.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["character_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_character_model_learns_and_repeats_exactly(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = example.run(example.QUICK, tmp_path / "curve.png")
    printed = capsys.readouterr().out
    assert example.run(example.QUICK) == losses
    assert losses["float"] < losses["first epoch"] - 0.05
    for bits in (2, 4):
        assert losses[f"{bits} bits, tuned"] < losses[f"{bits} bits"]
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (900, 520)
    written = [text.partition("writes:\n")[2].splitlines()[:-1] for text in (printed, capsys.readouterr().out)]
    assert written[0] == written[1] and "".join(written[0]).startswith("The ")


def test_the_trigram_model_gives_probabilities(example: ModuleType) -> None:
    """A text of one character is certain; one of even chance costs log 2 or a little more."""
    np = example.np
    assert example.trigram_cross_entropy(np.zeros(500, int), np.zeros(50, int), 2) < 0.01
    chance = np.random.default_rng(0).integers(0, 2, 20_000)
    assert example.trigram_cross_entropy(chance[:18_000], chance[18_000:], 2) == pytest.approx(np.log(2), abs=0.005)


def test_the_model_sees_nothing_of_what_comes(example: ModuleType) -> None:
    np = example.np
    graph = example.language_model("test", example.first_weights(20))
    first = np.random.default_rng(0).integers(0, 20, (1, example.LENGTH))
    second = first.copy()
    second[:, 50:] = 0
    session = example.Session(graph, threads=1)
    logits = [session.forward({"x": x, "y": first})["logits"] for x in (first, second)]
    np.testing.assert_allclose(logits[0][:50], logits[1][:50], rtol=0, atol=1e-6)
    assert np.abs(logits[0][50:] - logits[1][50:]).max() > 0.01
