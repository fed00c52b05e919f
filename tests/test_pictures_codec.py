"""Pictures that carry graphs: they come back from every form in which programs leave them, and bad ones are refused."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image, PngImagePlugin

import runtime
from runtime import snippets
from runtime.check import check
from runtime.diff import diff
from runtime.errors import FileError, GraphError
from runtime.graph import Graph
from runtime.snippets import commands, low_bits, payload, raster
from runtime.snippets.chunks import SIGNATURE, Chunk, chunk_bytes, read_chunks, text_chunks, write_png
from runtime.snippets.fuzz import fuzz
from runtime.snippets.payload import Payload
from runtime.snippets.pictures import (
    KEYWORD,
    PictureTooSmall,
    content_of,
    encode_content,
    encode_picture,
    load_picture,
    write_picture,
)
from runtime.snippets.tensor_files import write_tensors
from runtime.tensors import AbsentTensor, Tensor
from tests.snippet_graphs import assert_same, example, graphs

CHANGED, DAMAGED = "picture-changed", "picture-damaged"


def drawn(width: int = 160, height: int = 90) -> np.ndarray:
    """A picture with flat and smooth areas, of more than 256 colours."""
    pixels = np.full((height, width, 3), 240, np.uint8)
    pixels[10:40, 10:60] = (40, 90, 200)
    pixels[50:80, :, 0] = np.linspace(0, 255, width).astype(np.uint8)
    pixels[50:80, :, 1] = np.linspace(0, 255, 30).astype(np.uint8)[: max(0, height - 50), None]
    return pixels


def draw(samples: int) -> np.ndarray:
    """A picture with at least so many samples."""
    return drawn(160, max(90, -(-samples // 480)))


def encoded(graph: Graph) -> bytes:
    content = content_of(graph)
    return encode_content(content, draw(content.samples))


@pytest.fixture(scope="module")
def picture() -> bytes:
    return encode_picture(example(), drawn())[0]


def large(name: str = "w") -> Graph:
    """A graph with a tensor that is too large for a picture."""
    graph = example()
    graph.add("Initializer", name, parameters={"tensor": Tensor.from_array(np.arange(40_000, dtype=np.float32))})
    return graph


def joined(chunks: list[Chunk]) -> bytes:
    return SIGNATURE + b"".join(chunk_bytes(chunk.kind, chunk.data) for chunk in chunks)


def replaced(picture: bytes, text: Chunk | None, *, blank: bool = False) -> bytes:
    """A picture with another text in the place of its own, or with none; `blank`: and pixels that hold nothing."""
    chunks = [chunk for chunk in read_chunks(picture).items if not chunk.data.startswith(KEYWORD.encode() + b"\0")]
    if blank:
        chunks = list(read_chunks(write_png(drawn())).items)
    return joined([chunks[0], *([text] if text else []), *chunks[1:]])


def own_text(picture: bytes) -> str:
    return next(text_chunks(read_chunks(picture), KEYWORD)).value


def with_payload(packed: bytes) -> bytes:
    """A picture whose text holds a payload, and whose pixels hold none."""
    text = Chunk(b"tEXt", KEYWORD.encode() + b"\0" + payload.to_text(packed).encode())
    return replaced(write_png(drawn()), text, blank=True)


def as_form(picture: bytes, form: str, mode: str = "RGB", **options: Any) -> bytes:
    """A picture as Pillow saves it, without the texts."""
    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert(mode).save(file, form, **options)
    return file.getvalue()


def codes(picture: bytes) -> list[str]:
    return [finding.code for finding in load_picture(picture).findings]


# -- round trips --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_every_graph_comes_back(graph: Graph) -> None:
    data = encoded(graph)
    loaded = load_picture(data)
    assert_same(loaded.graph, graph)
    assert (loaded.findings, loaded.changed, loaded.source) == ((), False, "text")
    hidden = load_picture(as_form(data, "BMP"))
    assert_same(hidden.graph, graph)
    assert (hidden.findings, hidden.changed, hidden.source) == ((), False, "pixels")
    assert encoded(loaded.graph) == data


def test_the_picture_is_seen_as_it_was_and_by_everyone(picture: bytes) -> None:
    image = Image.open(io.BytesIO(picture))
    assert image.mode == "RGB" and set(image.info) == {KEYWORD, "Software", "Description"}
    assert np.array_equal(np.asarray(image) & 0xFE, drawn() & 0xFE)
    kinds = [chunk.kind for chunk in read_chunks(picture).items]
    assert kinds == [b"IHDR", b"tEXt", b"tEXt", b"tEXt", b"IDAT", b"IEND"]


@pytest.mark.parametrize("height", [1, 255, 256, 257, 600])
def test_pixels_are_written_as_they_are(height: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, 7, 3), dtype=np.uint8)
    for pixels in (
        noise,
        np.cumsum(noise // 99, axis=0, dtype=np.uint8),
        np.cumsum(noise // 99, axis=1, dtype=np.uint8),
    ):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(write_png(pixels)))), pixels)


def test_a_picture_that_is_too_small_says_how_large_it_must_be() -> None:
    content = content_of(example())
    with pytest.raises(PictureTooSmall) as caught:
        encode_picture(example(), drawn(60, 60))
    assert caught.value.samples == content.samples > 60 * 60 * 3
    assert load_picture(as_form(encode_content(content, draw(content.samples)), "BMP")).source == "pixels"


def test_shipped_snippets_travel_whole() -> None:
    for path in (Path(__file__).parents[1] / "snippets").glob("*.yaml"):
        graph = runtime.load(path)
        content = content_of(graph)
        assert not content.left_out and content.samples < 8 * 200_000
        assert not diff(load_picture(encode_content(content, draw(content.samples))).graph, graph)


# -- what programs make of a picture --------------------------------------------------------------------------------


def texts_as(kind: str, picture: bytes) -> bytes:
    text = own_text(picture).encode()
    head = KEYWORD.encode() + b"\0"
    contents = {
        "zTXt": head + b"\0" + zlib.compress(text),
        "iTXt": head + b"\0\0en\0\0" + text,
        "compressed iTXt": head + b"\1\0\0\0" + zlib.compress(text),
        "tEXt in lines": head + b"\n".join(text[start : start + 76] for start in range(0, len(text), 76)) + b"\n",
    }
    return replaced(picture, Chunk(kind.split()[-1].encode() if "in" not in kind else b"tEXt", contents[kind]))


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "compressed iTXt", "tEXt in lines"])
def test_other_kinds_of_text(picture: bytes, kind: str) -> None:
    loaded = load_picture(texts_as(kind, picture))
    assert loaded.graph == example()
    assert (loaded.findings, loaded.changed, loaded.source) == ((), False, "text")


@pytest.mark.parametrize("method", ["add_text", "add_itxt"])
def test_pillow_copies_texts(picture: bytes, method: str) -> None:
    image = Image.open(io.BytesIO(picture))
    texts = PngImagePlugin.PngInfo()
    for key, value in image.info.items():
        getattr(texts, method)(key, value, zip=True)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=texts)
    loaded = load_picture(file.getvalue())
    assert loaded.graph == example() and loaded.source == "text" and not loaded.changed


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("BMP", "RGB", {}),
        ("BMP", "RGBA", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {"lossless": True, "exact": True}),
    ],
)
def test_pixels_alone_are_enough(picture: bytes, form: str, mode: str, options: dict[str, Any]) -> None:
    loaded = load_picture(as_form(picture, form, mode, **options))
    assert loaded.graph == example()
    assert (loaded.findings, loaded.changed, loaded.source) == ((), False, "pixels")


def test_sixteen_bits_grey_and_palettes() -> None:
    grey = np.repeat(drawn()[:, :, :1], 3, axis=2)
    data = encode_picture(example(), grey)[0]
    rows = np.asarray(Image.open(io.BytesIO(data))).astype(">u2") * 257
    wide = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 160, 90, 16, 2, 0, 0, 0)
    chunks = [Chunk(b"IHDR", header), Chunk(b"IDAT", zlib.compress(wide)), Chunk(b"IEND", b"")]
    assert load_picture(joined(chunks)).source == "pixels"
    few = np.full((90, 160, 3), (10, 20, 30), np.uint8)
    few[20:40] = (200, 100, 50)
    data = encode_picture(example(), few)[0]
    palette = io.BytesIO()
    Image.open(io.BytesIO(data)).quantize(16, dither=Image.Dither.NONE).save(palette, "PNG")
    assert read_chunks(palette.getvalue()).of(b"PLTE")
    assert load_picture(palette.getvalue()).source == "pixels"


def test_a_changed_picture_loads_and_says_so(picture: bytes) -> None:
    image = Image.open(io.BytesIO(picture))
    pixels = np.asarray(image).copy()
    pixels[80:, 150:] = 0
    texts = [(KEYWORD, own_text(picture))]
    for data in (
        write_png(pixels, texts),
        write_png(pixels),
        write_png(pixels[:-1], texts),
        write_png(drawn()[::2], texts),
    ):
        loaded = load_picture(data)
        assert loaded.changed and loaded.graph == example()
        assert [finding.code for finding in loaded.findings] == [CHANGED]
        assert "was changed after it was saved" in loaded.findings[0].message


def test_one_damaged_copy_is_reported_and_the_other_used(picture: bytes) -> None:
    position = picture.index(KEYWORD.encode()) + 200
    damaged = picture[:position] + bytes([picture[position] ^ 1]) + picture[position + 1 :]
    loaded = load_picture(damaged)
    assert loaded.source == "pixels" and loaded.graph == example() and not loaded.changed
    assert [finding.code for finding in loaded.findings] == [DAMAGED]
    assert "copy as text cannot be used: its checksum is wrong" in loaded.findings[0].message
    text = own_text(picture)
    other = Chunk(b"tEXt", KEYWORD.encode() + b"\0" + text.replace("A", "B").encode())
    assert codes(replaced(picture, other)) == [DAMAGED]

    pixels = np.asarray(Image.open(io.BytesIO(picture))).copy()
    pixels[2] ^= 1
    loaded = load_picture(write_png(pixels, [(KEYWORD, text)]))
    assert loaded.source == "text" and not loaded.changed
    assert [finding.code for finding in loaded.findings] == [DAMAGED]
    assert "copy in the pixels cannot be used" in loaded.findings[0].message

    with pytest.raises(
        FileError, match=r"no graph that can be read \(the text .* checksum is wrong; the copy in the pixels"
    ):
        load_picture(write_png(pixels, [(KEYWORD, text.replace("A", "B"))]))


@pytest.mark.parametrize("missing", [1, 20, 500])
def test_a_file_that_is_cut_short(picture: bytes, missing: int) -> None:
    loaded = load_picture(picture[:-missing])
    assert loaded.graph == example() and loaded.source == "text" and loaded.changed
    assert [finding.code for finding in loaded.findings] == [DAMAGED]
    assert "cut short" in loaded.findings[0].message


def test_the_first_100_kilobytes_are_enough() -> None:
    data = encode_picture(example(), np.random.default_rng(0).integers(0, 256, (200, 400, 3), dtype=np.uint8))[0]
    assert len(data) > 150_000
    assert load_picture(data[:100_000]).graph == example()


# -- pictures without a graph -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (lambda p: as_form(p, "JPEG"), "is a JPEG picture"),
        (lambda p: as_form(p, "WEBP"), "lossy WebP"),
        (lambda p: as_form(p, "GIF"), "no picture of a known form"),
        (lambda p: write_png(drawn()), "a program dropped it: by making a JPEG of it, resizing it"),
        (lambda p: b"", "no picture of a known form"),
        (lambda p: b"qmoe: 1", "no picture of a known form"),
        (lambda p: SIGNATURE, "does not begin with a whole header"),
        (lambda p: b"BM", "0 x 0 pixels"),
        (lambda p: p[:60], "no graph that can be read"),
    ],
)
def test_what_has_no_graph_is_refused(picture: bytes, data: Any, sentence: str) -> None:
    with pytest.raises(FileError, match=sentence):
        load_picture(data(picture))


@pytest.mark.parametrize("size", [(1 << 31, 1 << 31), (8193, 1), (0, 5), (8192, 8192)])
def test_huge_pictures_are_refused_before_anything_is_decoded(picture: bytes, size: tuple[int, int]) -> None:
    first, *rest = read_chunks(picture).items
    huge = joined([Chunk(b"IHDR", struct.pack(">II", *size) + first.data[8:]), *rest])
    with pytest.raises(FileError, match="pixels; at most 8,192 a side and 40 million"):
        load_picture(huge)
    bitmap = as_form(picture, "BMP")
    with pytest.raises(FileError, match="pixels"):
        load_picture(bitmap[:18] + struct.pack("<II", *size) + bitmap[26:])
    with pytest.raises(ValueError, match="at most"):
        raster.check_size(*size)


def test_bombs(picture: bytes) -> None:
    head, bomb = KEYWORD.encode() + b"\0", zlib.compress(bytes(64 << 20), 9)
    for chunk in (Chunk(b"zTXt", head + b"\0" + bomb), Chunk(b"iTXt", head + b"\1\0\0\0" + bomb)):
        loaded = load_picture(replaced(picture, chunk))
        assert loaded.source == "pixels" and "longer than" in loaded.findings[0].message
    for lengths in ({"yaml": 10, "tensors": 0}, {"yaml": 1 << 40, "tensors": 0}, {"yaml": -1, "tensors": 9}):
        line = json.dumps({"picture": "", "qmoe": 1, **lengths}).encode() + b"\n"
        with pytest.raises(FileError, match="longer than|out of bounds"):
            load_picture(with_payload(line + bomb))
    header = Chunk(b"IHDR", struct.pack(">IIBBBBB", 6000, 6000, 8, 2, 0, 0, 0))
    with pytest.raises(FileError, match="not whole"):
        load_picture(joined([header, Chunk(b"IDAT", zlib.compress(b"0")), Chunk(b"IEND", b"")]))


def test_hostile_graphs() -> None:
    deep = "qmoe: 1\nnodes: " + "[" * 5000
    many = "qmoe: 1\ninfo: {a: [" + "1," * 1_100_000 + "]}"
    ranks = "qmoe: 1\ninfo: {a: {$tensor: float, shape: [" + "9," * 65 + "], name: a, sha256: '', file: a.safetensors}}"
    outside = (
        f"qmoe: 1\ninfo: {{a: {{$tensor: float, shape: [1], name: a, sha256: {'a' * 64}, file: ../a.safetensors}}}}"
    )
    for text, sentence in (
        (deep, "nested more than 64"),
        (many, "more than 400,000 values"),
        (ranks, "at most 64 sizes"),
        (outside, "plain name"),
        ("qmoe: 1\na: &a [1]\nb: *a", "aliases"),
        ("qmoe: 1\ntensors: here", "no safetensors file"),
    ):
        with pytest.raises(FileError, match=sentence):
            load_picture(with_payload(payload.pack(Payload(text.encode(), b"", ""))))
    with pytest.raises(FileError, match="not UTF-8"):
        load_picture(with_payload(payload.pack(Payload(b"\xff", b"", ""))))
    newer = b'{"picture":"","qmoe":2,"tensors":0,"yaml":0}\n'
    with pytest.raises(FileError, match="version 2.*newer QMoE Studio"):
        load_picture(with_payload(newer))


def test_a_graph_that_is_too_large_is_refused_and_a_large_one_is_worth_a_warning() -> None:
    generator = np.random.default_rng(0)

    def graph(size: int) -> Graph:
        return Graph.build([], [], {"info": {"doc": generator.bytes(size // 2).hex()}})

    content = content_of(graph(3 << 20))
    assert [finding.code for finding in content.findings] == ["large-picture"]
    with pytest.raises(GraphError, match=r"it would carry .* at most 4,194,304 bytes"):
        content_of(graph(8_300_000))
    with pytest.raises(GraphError, match="too large for a picture"):
        content_of(Graph.build([], [], {"info": {"a": [1] * 450_000}}))


def test_check_tells_what_is_wrong_with_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime.save(example(), tmp_path / "good.yaml")
    write_picture(example(), tmp_path / "good.png", draw)
    assert not commands.check([tmp_path], as_json=True)
    (good,) = json.loads(capsys.readouterr().out)
    assert (good["loads"], good["twin"], good["picture"], good["source"]) == (True, True, True, "text")
    (tmp_path / "plain.png").write_bytes(write_png(drawn()))  # no snippet's picture
    assert not commands.check([tmp_path], as_json=False)
    out = capsys.readouterr().out.replace("\n", "")  # a long path goes on in the next line
    assert "plain" not in out and "equal" in out

    other = example()
    other.remove("y")
    write_picture(other, tmp_path / "good.png", draw)
    (tmp_path / "dead.yaml").write_text("qmoe: 1")
    (tmp_path / "dead.png").write_bytes(write_png(drawn()))
    write_picture(example(), tmp_path / "edited.png", draw)
    found = np.asarray(Image.open(tmp_path / "edited.png")).copy()
    found[-1] = 9
    (tmp_path / "edited.png").write_bytes(write_png(found))
    assert commands.check([tmp_path], as_json=True)
    checked = {Path(one["file"]).name: one for one in json.loads(capsys.readouterr().out)}
    assert list(checked) == ["dead.png", "edited.png", "good.png"]
    assert checked["good.png"]["twin"] is False and "differs from good.yaml" in checked["good.png"]["problems"][0]
    assert checked["dead.png"]["loads"] is False and "holds no graph" in checked["dead.png"]["problems"][0]
    assert checked["edited.png"]["picture"] is False and checked["edited.png"]["source"] == "pixels"
    assert commands.check([tmp_path], as_json=False)
    assert commands.check([tmp_path / "none.png"], as_json=False)
    assert "No such file" in capsys.readouterr().out


def test_the_command_fuzz_tells_what_happened(
    picture: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(picture)
    assert not commands.fuzz_files([tmp_path / "a.png"], 20, 0, None, as_json=False)
    assert "sum" in capsys.readouterr().out

    def failing(data: bytes) -> None:
        if data not in sources:
            raise KeyError("a bug")

    sources = {picture}
    monkeypatch.setattr("runtime.snippets.fuzz.load_picture", failing)
    assert commands.fuzz_files([tmp_path / "a.png"], 3, 7, tmp_path / "kept", as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert [failure["problem"] for failure in facts["failures"]] == ["KeyError: 'a bug'"] * 3
    assert len(list((tmp_path / "kept").iterdir())) == 3


def test_mutations_are_loaded_or_refused(picture: bytes) -> None:
    report = fuzz([picture], 1500, seed=3)
    assert report.failures == []
    assert report.loaded.total() + report.refused.total() == 1500
    assert report.loaded.total() > 200 and report.refused.total() > 200


# -- tensors that do not travel ---------------------------------------------------------------------------------------


def test_large_tensors_are_found_beside_the_picture_and_asked_for_where_they_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert write_picture(large("big"), path, draw) == ()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "a.safetensors"]
    assert runtime.load(path) == large("big")
    assert load_picture(path).findings == ()

    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    loaded = load_picture(path)
    tensor = loaded.graph.nodes["big"].parameters["tensor"]
    assert isinstance(tensor, AbsentTensor) and tensor.nbytes == 160_000
    assert loaded.graph == large("big") and not diff(loaded.graph, large("big"))
    (finding,) = loaded.findings
    assert (finding.node, finding.port, finding.code) == ("big", "tensor", "absent-tensor")
    for fact in ("'big'", "tensor(float) [40000]", tensor.digest, "a.safetensors"):
        assert fact in str(finding)
    assert [found.code for found in check(loaded.graph)].count("absent-tensor") == 1
    with pytest.raises(GraphError, match=r"did not come along.*a\.safetensors"):
        tensor.array()
    with pytest.raises(GraphError, match="did not come along"):
        runtime.Session(loaded.graph)
    with pytest.raises(GraphError, match="did not come along"):
        runtime.save(loaded.graph, tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_nothing_of_an_absent_tensor_is_lost_in_saving(tmp_path: Path) -> None:
    write_picture(large("big"), tmp_path / "a.png", draw)
    (tmp_path / "a.safetensors").rename(tmp_path / "away")
    graph = load_picture(tmp_path / "a.png").graph
    runtime.save(graph, tmp_path / "a.yaml")  # whose tensors must not take the missing file's name
    assert not (tmp_path / "a.safetensors").exists()
    assert isinstance(runtime.load(tmp_path / "a.yaml").nodes["big"].parameters["tensor"], AbsentTensor)
    write_picture(runtime.load(tmp_path / "a.yaml"), tmp_path / "b.png", draw)
    text, tensors = snippets.dumps(load_picture(tmp_path / "b.png").graph)
    assert "big" not in tensors
    assert snippets.loads(text, tensors) == large("big")
    (tmp_path / "away").rename(tmp_path / "a.safetensors")
    for name in ("a.yaml", "a.png", "b.png"):
        found = runtime.load(tmp_path / name)
        assert found == large("big")
        assert not isinstance(found.nodes["big"].parameters["tensor"], AbsentTensor)
        assert "absent-tensor" not in [finding.code for finding in check(found)]


def test_another_tensor_of_the_same_name_is_not_taken(tmp_path: Path) -> None:
    write_picture(large("big"), tmp_path / "a.png", draw)
    write_tensors(tmp_path / "a.safetensors", {"big": Tensor.from_array(np.ones(40_000, np.float32))})
    assert codes_of(tmp_path / "a.png") == ["absent-tensor"]
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    assert codes_of(tmp_path / "a.png") == ["absent-tensor"]
    right = large("big").nodes["big"].parameters["tensor"]
    write_tensors(tmp_path / "a.safetensors", {"renamed": right, "big": Tensor.from_array(np.ones(40_000, np.float32))})
    assert codes_of(tmp_path / "a.png") == []


def codes_of(path: Path) -> list[str]:
    return [finding.code for finding in load_picture(path).findings]


def test_a_picture_uses_the_file_that_its_tensors_came_from(tmp_path: Path) -> None:
    runtime.save(large("big"), tmp_path / "a.yaml")
    before = {file.name for file in tmp_path.iterdir()}
    write_picture(runtime.load(tmp_path / "a.yaml"), tmp_path / "b.png", draw)
    assert {file.name for file in tmp_path.iterdir()} == before | {"b.png"}
    assert runtime.load(tmp_path / "b.png") == large("big")
    # The snippet goes on to other tensors; the picture's file stays as long as it names it.
    runtime.save(example(), tmp_path / "a.yaml")
    assert runtime.load(tmp_path / "b.png") == large("big")


def test_tensors_elsewhere_must_be_named_wholly() -> None:
    for rest in ("sha256: abc", "name: a", f"sha256: {'a' * 64}, data: [1.0]"):
        text = f"qmoe: 1\ninfo: {{a: {{$tensor: float, shape: [1], file: a.safetensors, {rest}}}}}"
        with pytest.raises(FileError, match=":2:"):
            snippets.loads(text)


def test_low_bits_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="samples"):
        low_bits.embed(drawn(4, 4), b"abc")
    pixels = low_bits.embed(drawn(), b"abc")
    assert low_bits.extract(pixels, 3) == b"abc" and low_bits.extract(drawn(), 9) is None
    with pytest.raises(ValueError, match="length"):
        low_bits.extract(pixels, 2)
    assert low_bits.picture_digest(pixels) == low_bits.picture_digest(drawn())
