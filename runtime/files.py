"""Graphs in files: the name's ending says the form."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import FileError, Finding
from runtime.graph import Graph

YAML = (".yaml", ".yml")
PICTURES = (".png", ".bmp", ".webp")
ONNX = (".onnx",)


def load(path: str | Path, notes: list[Finding] | None = None) -> Graph:
    """The graph in a file: a snippet (.yaml, .yml, or a .png, .bmp or .webp picture) or an ONNX model (.onnx).

    What is worth knowing of the file is added to `notes`: that a picture was changed after it was saved, or that
    tensors did not come with it. FileError says what is wrong with the file.
    """
    path = Path(path)
    form = _form(path, YAML + PICTURES + ONNX)
    if path.is_dir():
        raise FileError(path, "is a folder; expected a file.")
    if not path.exists():
        raise FileError(path, "there is no such file.")
    if not path.is_file():
        raise FileError(path, "is no ordinary file.")
    if form in YAML:
        from runtime.snippets import load_yaml

        return load_yaml(path)
    if form in PICTURES:
        from runtime.snippets.pictures import load_picture

        loaded = load_picture(path)
        if notes is not None:
            notes += loaded.findings
        return loaded.graph
    from runtime.onnx_files import load_onnx

    return load_onnx(path)


def save(graph: Graph, path: str | Path, *, target: str | None = None) -> list[Finding]:
    """Writes a graph to a file: a snippet (.yaml, .yml, or a .png picture) or an ONNX model (.onnx).

    `target` says for whom a model is meant: "onnxruntime" (if None), "schema" or "portable" (see
    `runtime.onnx_files.save_onnx`); a snippet has none. Returns what is worth knowing about the result. FileError if
    the file cannot be written, GraphError if the graph cannot.
    """
    path = Path(path)
    check_destination(path)
    form = path.suffix.lower()
    if form not in ONNX and target is not None:
        raise FileError(path, f"a snippet has no target; {target!r} is for .onnx files.", code="name")
    if form in PICTURES:
        from runtime.drawing.picture import save_picture

        return list(save_picture(graph, path))
    if form in YAML:
        from runtime.snippets import save_yaml

        save_yaml(graph, path)
        return []
    from runtime.onnx_files import save_onnx

    return save_onnx(graph, path, target=target or "onnxruntime")


def check_destination(path: Path, forms: tuple[str, ...] = YAML + PICTURES[:1] + ONNX) -> None:
    """FileError if nothing can be written there by the name: a wrong ending, or no such folder."""
    _form(path, forms)
    if path.is_dir():
        raise FileError(path, "is a folder; expected the name of a file.")
    if not path.absolute().parent.is_dir():
        raise FileError(path, f"cannot be written: there is no folder {path.parent}.")


def _form(path: Path, forms: tuple[str, ...]) -> str:
    form = path.suffix.lower()
    if form not in forms:
        known = ", ".join(forms)
        raise FileError(
            path, f"expected a name that ends with one of {known}" + (f", not {form}." if form else "."), code="name"
        )
    return form
