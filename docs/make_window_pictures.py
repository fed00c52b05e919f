"""Makes the pictures of the editor's window in this folder: `python docs/make_window_pictures.py`, without a display.

Times in them are this machine's; all else is the same everywhere.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"
_home = tempfile.mkdtemp(prefix="qmoe-pictures-")
for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "QMOE_STATE_FOLDER", "QMOE_CONFIG_FOLDER"):
    os.environ[variable] = _home

from PySide6.QtCore import QSettings  # noqa: E402
from PySide6.QtWidgets import QApplication  # noqa: E402

from runtime.editing import add_probe  # noqa: E402
from runtime.graph import Graph  # noqa: E402
from runtime.training.plan import Plan, set_plan  # noqa: E402
from ui.app import application  # noqa: E402
from ui.experts import ExpertsPane  # noqa: E402
from ui.training import TrainingPane  # noqa: E402
from ui.window import Window  # noqa: E402

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
LONGEST = 60.0


def wait(done: Callable[[], bool], least: float = 0.4) -> None:
    """Lets the window work until something is done."""
    begun = time.monotonic()
    while time.monotonic() - begun < LONGEST:
        QApplication.processEvents()
        time.sleep(0.01)
        if done() and time.monotonic() - begun > least:
            return
    raise SystemExit("The window did not come to an end.")


def picture(name: str, look: str, file: Path | None, prepare: Callable[[Window], None]) -> None:
    """Opens a file, prepares the window and takes its picture."""
    from ui import theme

    running = application(look)
    theme.apply(running, look)
    QSettings().clear()
    window = Window(file)
    window.resize(1440, 900)
    window.show()
    wait(lambda: True)
    prepare(window)
    wait(lambda: not window.runner.is_busy)
    window.grab().save(str(DOCS / name))
    window.editor.show(Graph())
    window.close()
    print(f"docs/{name}")


def run(window: Window, command: str = "Run") -> None:
    """Runs the graph and waits for it."""
    window.commands[command].trigger()
    wait(lambda: window.runner.result is not None and not window.runner.is_busy)


def digits(window: Window) -> None:
    """The classifier after a run over the test images, with an expert chosen."""
    run(window)
    window.show_pane("Experts")
    pane = window.panes["Experts"].widget()
    assert isinstance(pane, ExpertsPane)
    window.sides.setSizes([560, 300])
    wait(lambda: bool(pane.bars.values))
    pane.choose(3)
    window.editor.canvas.select(["moe"])
    window.editor.canvas.fit()


def training(window: Window) -> None:
    """The rounded classifier while it is tuned: gradients on the canvas, losses below."""
    graph = window.editor.graph
    window.editor.edit("Probe moe.output", lambda: add_probe(graph, "moe.output"))
    losses = {"loss": 1.0}
    set_plan(graph, Plan(epochs=30, batch_size=30, rate=1e-3, losses=losses, metrics="accuracy:logits:y"))
    window.commands["Overlay: gradient"].trigger()
    run(window, "Run backward")
    window.commands["Train"].trigger()
    pane = window.panes["Training"].widget()
    assert isinstance(pane, TrainingPane)
    wait(lambda: not pane.is_busy)
    window.sides.setSizes([560, 300])
    window.editor.canvas.fit()


def broken(window: Window) -> None:
    """A wire of the wrong type, a parameter out of bounds, an input that is missing: what is said, what mends it."""
    graph = window.editor.graph
    graph.set("moe", "k", 9)
    graph.cut("moe.fc2_scales")
    graph.cut("classifier.A")
    graph.add("Cast", "cast", parameters={"to": 7}, layout={"position": [900, 250]})
    graph.wire("moe.output", "cast.input")
    graph.wire("cast.output", "classifier.A")
    window.editor.canvas.refresh()
    window.editor.canvas.select(["moe"])
    window.show_pane("Problems")
    window.editor.canvas.fit()


def gptoss(window: Window) -> None:
    """The mixture in a layer of an imported model, with what feeds it."""
    canvas = window.editor.canvas
    moe = next(id for id, state in window.editor.graph.nodes.items() if state.type == "com.microsoft.QMoE")
    sources = {source.node for source in window.editor.graph.inputs_of(moe).values()}
    near = {id for id in sources if window.editor.graph.nodes[id].type in ("Initializer", "Reshape")}
    canvas.select([moe])
    canvas.fit({moe, *near})


def main() -> None:
    """Makes them all."""
    snippets = Path("snippets")
    os.chdir(ROOT)
    picture("editor_empty.png", "light", None, lambda window: wait(lambda: True, least=4.0))
    picture("editor.png", "light", snippets / "digits_moe.yaml", digits)
    picture("editor_training.png", "dark", snippets / "digits_moe_quantized.yaml", training)
    picture("editor_broken.png", "light", snippets / "digits_moe.yaml", broken)
    picture("editor_gptoss.png", "dark", Path("tests") / "data" / "genai_gptoss_int4" / "model.onnx", gptoss)


if __name__ == "__main__":
    main()
