"""Layout and pictures: nothing covers anything, everything is told, and the pixels are the same everywhere."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Graph, GraphError, Tensor
from runtime.drawing import font
from runtime.drawing.canvas import Canvas
from runtime.drawing.layout import GAP_TIGHT, Line, Rectangle, arrange
from runtime.drawing.picture import render, save_picture
from runtime.drawing.scene import box_of, scene_of
from runtime.drawing.style import DARK, LIGHT
from runtime.files import load
from runtime.graph import same
from runtime.shipped import snippets_folder
from runtime.snippets.pictures import load_picture

DIGITS = snippets_folder() / "digits_moe.yaml"


@st.composite
def diagrams(draw: st.DrawFn) -> tuple[dict[str, Rectangle], list[Line]]:
    """Boxes and wires that go from earlier to later ones."""
    count = draw(st.integers(1, 25))
    size = st.floats(10, 300)
    nodes = {
        f"n{i}": Rectangle(draw(size), draw(size), draw(st.floats(0, 90)), draw(st.booleans())) for i in range(count)
    }
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda pair: pair[0] < pair[1])
    wires = draw(st.lists(pairs, max_size=40)) if count > 1 else []
    return nodes, [Line(f"n{a}", f"n{b}", draw(st.floats(0, 50)), draw(st.floats(0, 50))) for a, b in wires]


@given(diagrams())
@settings(max_examples=150, deadline=None)
def test_no_box_covers_another_and_wires_go_to_the_right(diagram: tuple[dict[str, Rectangle], list[Line]]) -> None:
    nodes, lines = diagram
    places = arrange(nodes, lines)
    assert list(places) == list(nodes)
    assert places == arrange(nodes, lines)
    boxes = [(*places[id], nodes[id]) for id in nodes]
    for i, (x, y, a) in enumerate(boxes):
        for u, v, b in boxes[:i]:
            apart = x + a.width <= u + 1 or u + b.width <= x + 1 or y + a.height <= v + 1 or v + b.height <= y + 1
            assert apart, (x, y, a, u, v, b)
    width = max(x + box.width for x, _, box in boxes)
    if width < 8000:  # a longer row is folded
        for line in lines:
            assert places[line.source][0] + nodes[line.source].width <= places[line.target][0]


def test_a_long_row_is_folded_like_a_text() -> None:
    nodes = {f"n{i}": Rectangle(120, 60) for i in range(400)}
    places = arrange(nodes, [Line(f"n{i}", f"n{i + 1}", 30, 30) for i in range(399)])
    width, height = (max(values) - min(values) for values in zip(*places.values(), strict=True))
    assert 0.5 < width / height < 5
    assert len(set(places.values())) == 400


def test_tensors_stand_beside_the_ports_that_they_feed() -> None:
    graph = load(DIGITS)
    graph = unplaced(graph)
    scene = scene_of(graph)
    boxes = {box.id: box for box in scene.boxes}
    for target in ("fc1_experts_weights", "fc1_scales", "fc2_scales"):
        pill, port = boxes[target], boxes["moe"].terminal(target, False)
        assert port is not None
        assert abs(pill.y + pill.height / 2 - boxes["moe"].y - port.y) < 22
    assert boxes["fc1_scales"].y - boxes["fc1_experts_weights"].y == boxes["fc1_scales"].height + GAP_TIGHT


def unplaced(graph: Graph) -> Graph:
    """The graph without positions."""
    states = [type(state)(state.id, state.type, state.parameters) for state in graph.nodes.values()]
    return Graph.build(
        states,
        [(source, target) for target, source in graph.wires.items()],
        {name: graph.section(name) for name in ("info", "opsets")},
    )


def test_a_picture_tells_types_shapes_and_parameters() -> None:
    scene = scene_of(unplaced(load(DIGITS)))
    boxes = {box.id: box for box in scene.boxes}
    assert dict(boxes["moe"].parameters)["block_size"] == "32"
    assert "activation_alpha" not in dict(boxes["moe"].parameters)
    assert boxes["fc1_scales"].detail == "float[8, 64, 2]"
    assert "float[images, 8]" in {chip.text for chip in scene.chips if chip.source.node == "router"}
    assert [terminal.port for terminal in boxes["moe"].inputs][:3] == ["input", "router_probs", "fc1_experts_weights"]
    assert "fc3_scales" not in [terminal.port for terminal in boxes["moe"].inputs]
    every = box_of(load(DIGITS), "moe", every_port=True)
    assert "fc3_scales" in [terminal.port for terminal in every.inputs]


def test_small_constants_are_written_out_and_broken_wires_are_known() -> None:
    graph = Graph("small", opsets={"": 21})
    graph.add("Initializer", "axes", parameters={"tensor": Tensor.from_array(np.array([1, 2], np.int64))})
    graph.add("Input", "x", parameters={"type": "tensor(string)", "shape": [3]})
    graph.add("Relu", "relu")
    graph.wire("x.value", "relu.X")
    scene = scene_of(graph)
    assert {box.id: box.detail for box in scene.boxes}["axes"] == "int64 [1, 2]"
    assert [link.broken for link in scene.links] == [True]
    red = np.array(LIGHT.error)
    assert (render(graph) == red).all(-1).sum() > 100


def test_unknown_types_and_an_empty_graph_are_drawn() -> None:
    graph = Graph("strange")
    assert render(graph).shape[2] == 3
    graph.add("some.domain.Thing", "thing")
    graph.add("Input", "x")
    graph.wire("x.value", "thing.input.0")
    graph.wire("thing.output.0", graph.add("Output", "y") + ".value")
    boxes = {box.id: box for box in scene_of(graph).boxes}
    assert not boxes["thing"].known and [t.port for t in boxes["thing"].inputs] == ["input.0"]
    assert render(graph, theme="dark").shape[2] == 3


# Pixels


def test_shapes_are_soft_at_their_edges_and_exact_inside() -> None:
    canvas = Canvas(20, 20, 1, (255, 255, 255))
    canvas.box(2.5, 3, 10, 10, fill=(0, 0, 0))
    assert canvas.pixels[8, 6].tolist() == [0, 0, 0] and canvas.pixels[8, 0].tolist() == [255, 255, 255]
    assert 110 < canvas.pixels[8, 2, 0] < 145
    canvas = Canvas(20, 20, 1, (255, 255, 255))
    canvas.path([(2, 10), (10, 10), (18, 10)], (0, 0, 0), 2)
    column = canvas.pixels[:, :, 0]
    assert (column[9:11, 4:16] == 0).all(), "the join of two pieces shows"


@pytest.mark.parametrize("letter", "aQ8&ß×…")
def test_letters_cover_what_their_outlines_enclose(letter: str) -> None:
    small, left, top = font.regular().coverage(letter, 24.0, 0)
    large, *_ = font.regular().coverage(letter, 96.0, 0)
    assert small.sum() / 24**2 == pytest.approx(large.sum() / 96**2, rel=0.03)
    assert small.max() <= font.FULL and (left, top) != (0, 0)
    moved, *_ = font.regular().coverage(letter, 24.0, 2)
    assert moved.sum() == pytest.approx(small.sum(), rel=0.02)


def test_unknown_letters_are_boxes_and_long_texts_are_cut() -> None:
    assert font.regular().width("漢", 20) > 5
    assert font.regular().fitted("a long name of a tensor", 11, 60).endswith("…")
    assert font.bold().fitted("short", 11, 60) == "short"


# The digest is that of the pixels on every machine: nothing but integers, sums and square roots is in them.
PIXELS = "e978cefd7223d808"


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


def test_pixels_are_the_same_everywhere() -> None:
    assert digest(render(unplaced(load(DIGITS)), theme="dark")) == PIXELS


def test_files_are_the_same_in_another_process_with_other_settings(tmp_path: Path) -> None:
    save_picture(load(DIGITS), tmp_path / "here.png")
    command = ["snippet", "render", str(DIGITS), "there.png"]
    code = f"import sys; from runtime.cli import main; sys.argv[1:] = {command!r}; main()"
    environment = {
        **os.environ,
        "LC_ALL": "tr_TR.UTF-8",
        "TZ": "Asia/Tokyo",
        "PYTHONHASHSEED": "7",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes()


@pytest.mark.parametrize("scale", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_scale_and_theme_carries_the_graph(tmp_path: Path, scale: float, theme: object) -> None:
    graph = load(DIGITS)
    save_picture(graph, tmp_path / "p.png", theme=theme.name, scale=scale)  # type: ignore[attr-defined]
    loaded = load_picture(tmp_path / "p.png")
    assert not loaded.changed and not loaded.findings
    assert all(same(state, loaded.graph.nodes[id]) for id, state in graph.nodes.items())


def test_a_selection_is_a_picture_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("runtime.editing")
    save_picture(load(DIGITS), tmp_path / "part.png", nodes=["moe", "router", "x"])
    loaded = load_picture(tmp_path / "part.png").graph
    assert set(loaded.nodes) == {"moe", "router", "x"}
    assert len(loaded.wires) == 3


def test_a_picture_that_would_be_too_large_is_drawn_smaller() -> None:
    graph = Graph("long", opsets={"": 21})
    before = graph.add("Input", "x")
    for _ in range(120):
        relu = graph.add("Relu")
        graph.wire(f"{before}.{'value' if before == 'x' else 'Y'}", f"{relu}.X")
        before = relu
    pixels = render(graph, scale=4)
    assert max(pixels.shape) <= 8192


def test_a_small_picture_grows_until_its_graph_fits(tmp_path: Path) -> None:
    graph = Graph("noise", opsets={"": 21})
    noise = np.random.default_rng(0).integers(0, 256, 100_000).astype(np.uint8)
    graph.add("Initializer", "w", parameters={"tensor": Tensor.from_array(noise)})
    save_picture(graph, tmp_path / "p.png", scale=1)
    assert load_picture(tmp_path / "p.png").graph.nodes["w"].parameters["tensor"].array().tolist() == noise.tolist()


@pytest.mark.parametrize(
    ("options", "word"), [({"theme": "pink"}, "pink"), ({"scale": 9}, "9"), ({"nodes": ["a"]}, "a")]
)
def test_what_cannot_be_drawn_is_said(options: dict[str, object], word: str) -> None:
    with pytest.raises(GraphError, match=word):
        render(Graph("x"), **options)  # type: ignore[arg-type]
