"""A snippet's tree -> Graph. Errors give line and column, the path of keys, and what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Mapping as MappingOf
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np

from runtime import catalog
from runtime.attributes import KINDS, Typed
from runtime.errors import FileError, GraphError
from runtime.graph import ID_PATTERN, Graph, NodeState, PortRef
from runtime.snippets.tensor_files import MAXIMUM_RANK, STORED_AS
from runtime.snippets.tree import Mapping, Parser, Scalar, Sequence, Tree, plain
from runtime.snippets.values import decode_bytes, decode_numbers
from runtime.snippets.writing import DOCUMENT_KEYS, GRAPH_KEYS, NODE_KEYS, VERSION
from runtime.tensors import AbsentTensor, Tensor
from runtime.types import ElementType, MapType, OptionalType, SequenceType, TensorType, ValueType, parse_type

TensorFile: TypeAlias = Callable[[str], MappingOf[str, Tensor]]
"""Gives the tensors of the file of that name; FileError without place, or ValueError, if it must not be read."""

VERIFIED_AT_LOAD = 256 << 20
"""Bytes of tensors whose SHA-256 is computed whenever a snippet is loaded; of more, only on demand."""

_Wires: TypeAlias = dict[PortRef, tuple[PortRef, Tree]]


class Reader:
    """Reads one document. `verify`: whether tensors' hashes are computed; None does so up to VERIFIED_AT_LOAD."""

    def __init__(self, parser: Parser, open_tensors: TensorFile, verify: bool | None) -> None:
        self.parser = parser
        self.open_tensors = open_tensors
        self.verify = verify
        self.tensors_file = ""
        self.stored: MappingOf[str, Tensor] | None = None
        self.others: dict[str, MappingOf[str, Tensor]] = {}
        self.used: dict[tuple[str, ElementType, tuple[int, ...]], Tensor] = {}

    def document(self) -> Graph:
        """The graph. FileError says what is wrong with the file."""
        tree = self.parser.parse()
        if not isinstance(tree, Mapping):
            self.fail(tree, "", f"expected a snippet, a mapping that begins with 'qmoe: {VERSION}'", tree)
        version = tree.items.get("qmoe")
        if version is None:
            self.parser.fail(tree, f"is no snippet: expected a key 'qmoe: {VERSION}' that gives the form's version.")
        number = plain(version)
        if type(number) is not int or number < 1:
            self.fail(version, "qmoe", f"expected the version of the snippet's form, {VERSION}", version)
        if number > VERSION:
            self.parser.fail(
                version,
                f"this snippet has version {number}; this program reads up to version {VERSION}. "
                "Open it with a newer QMoE Studio.",
            )
        file = tree.items.get("tensors")
        if file is not None:
            self.tensors_file = self.text(file, "tensors", "the name of a file beside the snippet")
            try:
                self.stored = self.open_tensors(self.tensors_file)
            except ValueError as error:
                self.parser.fail(file, f"tensors: {error}")
            if self.verify is None:
                self.verify = sum(tensor.nbytes for tensor in self.stored.values()) <= VERIFIED_AT_LOAD
        return self.graph(tree, "", {}, DOCUMENT_KEYS)

    def fail(self, at: Tree | tuple[int, int], path: str, expected: str, found: Tree | None = None) -> NoReturn:
        """FileError: `path: expected ..., found ...`."""
        tail = f", found {_describe(found)}." if found is not None else "."
        self.parser.fail(at, f"{path}: {expected}{tail}" if path else f"{expected}{tail}")

    # -- graphs ---------------------------------------------------------------------------------------------------

    def graph(
        self, tree: Tree, path: str, outer_opsets: MappingOf[str, int], keys: tuple[str, ...] = GRAPH_KEYS
    ) -> Graph:
        """A graph; one without opsets has the outer graph's."""
        items = self.mapping(tree, path or "the snippet").items
        at = f"{path}." if path else ""
        opsets = self.opsets(items["opsets"], f"{at}opsets") if "opsets" in items else dict(outer_opsets)
        info = self.section(items.get("info"), f"{at}info", opsets)
        for key in ("doc", "name"):
            if key in items:
                if key in info:
                    self.fail(items[key], f"{at}{key}", f"expected {key} once; info has it too")
                info = {key: self.text(items[key], f"{at}{key}"), **info}
        functions = {
            key: self.graph(body, f"{at}functions.{key}", opsets)
            for key, body in self.mapping(items.get("functions"), f"{at}functions").items.items()
        }
        nodes: list[NodeState] = []
        wires: _Wires = {}
        node_trees = self.mapping(items.get("nodes"), f"{at}nodes")
        types = {id: self.node_type(id, node, f"{at}nodes.{id}", node_trees) for id, node in node_trees.items.items()}
        for id, node in node_trees.items.items():
            nodes.append(self.node(id, node, types, f"{at}nodes.{id}", opsets, wires))
        sections = {
            "info": info,
            "opsets": opsets,
            "functions": functions,
            "layout": self.section(items.get("layout"), f"{at}layout", opsets),
            "extra": self.extra(items, keys, at, opsets),
        }
        try:
            return Graph.build(nodes, [(source, target) for target, (source, _) in wires.items()], sections)
        except GraphError as error:
            finding = error.findings[0]
            self.parser.fail(_place_of(finding.node, finding.port, wires, node_trees), f"{at}nodes.{finding}")

    def opsets(self, tree: Tree, path: str) -> dict[str, int]:
        """Versions by domain; the standard domain may be called by its long name."""
        opsets: dict[str, int] = {}
        for domain, version in self.mapping(tree, path).items.items():
            number = plain(version)
            if type(number) is not int:
                self.fail(version, f"{path}.{domain}", "expected the version of an operator set", version)
            domain = "" if domain == "ai.onnx" else domain
            if domain in opsets:
                self.fail(version, path, "expected one version of each operator set; '' and ai.onnx are the same one")
            opsets[domain] = number
        return opsets

    # -- nodes ----------------------------------------------------------------------------------------------------

    def node_type(self, id: str, tree: Tree, path: str, around: Mapping) -> str:
        """The name of a node's type, and a look at its id."""
        if not ID_PATTERN.fullmatch(id):
            self.fail(around.keys[id], path, "expected an id: a letter or _ followed by letters, digits, _ and -")
        items = self.mapping(tree, path).items
        if "type" not in items:
            self.fail(tree if items else around.keys[id], path, "expected a key 'type' that names the node's type")
        return self.text(items["type"], f"{path}.type", "the name of a node type")

    def node(
        self, id: str, tree: Tree, types: dict[str, str], path: str, opsets: MappingOf[str, int], wires: _Wires
    ) -> NodeState:
        """A node; the wires that end at it are added to `wires`."""
        items = self.mapping(tree, path).items
        for port, source in self.mapping(items.get("inputs"), f"{path}.inputs").items.items():
            if not port:
                self.fail(source, f"{path}.inputs", "expected the name of a port before the colon")
            wires[PortRef(id, port)] = self.source(source, types, f"{path}.inputs.{port}", opsets), source
        return NodeState(
            id,
            types[id],
            self.section(items.get("parameters"), f"{path}.parameters", opsets),
            self.section(items.get("layout"), f"{path}.layout", opsets),
            self.extra(items, NODE_KEYS, f"{path}.", opsets),
        )

    def source(self, tree: Tree, types: dict[str, str], path: str, opsets: MappingOf[str, int]) -> PortRef:
        """Where a wire begins: `node.port`, or `node` if it has one output."""
        text = plain(tree)
        if not isinstance(text, str) or not text:
            self.fail(tree, path, "expected node.port", tree)
        node, dot, port = text.partition(".")
        if node not in types:
            self.fail(tree, path, f"there is no node {node!r} in this graph")
        if port:
            return PortRef(node, port)
        declared = catalog.find(types[node], opsets)
        outputs = declared.outputs if declared is not None else ()
        if dot or len(outputs) != 1 or outputs[0].variadic:
            known = f" (its outputs: {', '.join(output.name for output in outputs)})" if outputs else ""
            self.fail(tree, path, f"expected node.port{known}", tree)
        return PortRef(node, outputs[0].name)

    # -- values ---------------------------------------------------------------------------------------------------

    def mapping(self, tree: Tree | None, path: str) -> Mapping:
        """A mapping; nothing at all stands for an empty one."""
        if isinstance(tree, Mapping):
            return tree
        if tree is None or (isinstance(tree, Scalar) and tree.value is None):
            return Mapping({}, *((tree.line, tree.column) if tree is not None else (0, 0)))
        self.fail(tree, path, "expected a mapping", tree)

    def text(self, tree: Tree, path: str, what: str = "a text") -> str:
        value = plain(tree) if isinstance(tree, Scalar) else None
        if not isinstance(value, str):
            hint = "; put it in quotes if it is meant as one" if value is not None else ""
            self.fail(tree, path, f"expected {what}{hint}", tree)
        return value

    def section(self, tree: Tree | None, path: str, opsets: MappingOf[str, int]) -> dict[str, Any]:
        items = self.mapping(tree, path).items
        return {self.key(key, item, path): self.value(item, f"{path}.{key}", opsets) for key, item in items.items()}

    def extra(
        self, items: dict[str, Tree], keys: tuple[str, ...], at: str, opsets: MappingOf[str, int]
    ) -> dict[str, Any]:
        """The unknown keys among `items`."""
        unknown = {
            self.key(key, item, at): self.value(item, f"{at}{key}", opsets)
            for key, item in items.items()
            if key not in keys
        }
        return unknown | self.section(items.get("extra"), f"{at}extra", opsets)

    def key(self, key: str, at: Tree, path: str) -> str:
        if not key.startswith("$"):
            return key
        if not key.startswith("$$"):
            self.fail(at, path, f"{key} has no meaning here; a key that begins with $ is written ${key}")
        return key[1:]

    def value(self, tree: Tree, path: str, opsets: MappingOf[str, int]) -> Any:
        """A value, in one of the forms of `runtime.snippets.values`."""
        if isinstance(tree, Scalar):
            return tree.value
        if isinstance(tree, Sequence):
            return [self.value(item, f"{path}.{index}", opsets) for index, item in enumerate(tree.items)]
        form = next((key for key in tree.items if key[:1] == "$" and key[:2] != "$$"), "")
        if not form:
            return self.section(tree, path, opsets)
        allowed = _FORMS.get(form)
        if allowed is None:
            self.fail(
                tree.keys[form],
                path,
                f"expected one of {', '.join(_FORMS)}, found {form}; a plain key that begins with $ is written ${form}",
            )
        for key in tree.items:
            if key != form and key not in allowed:
                names = " and ".join(allowed) or "nothing"
                self.fail(tree.keys[key], path, f"expected {names} beside {form}, found {key}")
        match form:
            case "$tensor":
                return self.tensor(tree, path)
            case "$bytes":
                return self.base64(tree.items[form], path)
            case "$type":
                return self.type(tree, path)
            case "$graph":
                return self.graph(tree.items[form], path, opsets)
        return self.typed(tree, path, opsets)

    def base64(self, tree: Tree, path: str) -> bytes:
        text = plain(tree)
        if isinstance(text, int):  # digits only
            self.fail(tree, path, "expected a text in base 64; put digits in quotes", tree)
        try:
            return decode_bytes(self.text(tree, path, "a text in base 64"))
        except ValueError:
            self.fail(tree, path, "expected a text in base 64", tree)

    def typed(self, tree: Mapping, path: str, opsets: MappingOf[str, int]) -> Typed:
        kind = self.text(tree.items["$as"], path, "the name of an attribute kind")
        if kind != "ref" and kind not in KINDS.values():
            self.fail(tree.items["$as"], path, f"expected one of ref, {', '.join(KINDS.values())}", tree.items["$as"])
        if "value" not in tree.items:
            self.fail(tree, path, "expected a value beside $as")
        value = self.value(tree.items["value"], path, opsets)
        return Typed(kind, tuple(value) if kind == "ref" and isinstance(value, list) else value)

    def type(self, tree: Mapping, path: str) -> ValueType:
        """A type from its text, or from its parts."""
        head = tree.items["$type"]
        text = self.text(head, path, "a type such as tensor(float)")
        try:
            if text == "map" and "of" in tree.items and "key" in tree.items:
                return MapType(ElementType.parse(self.text(tree.items["key"], path)), self.inner_type(tree, path))
            if text in ("seq", "optional") and "of" in tree.items:
                inner = self.inner_type(tree, path)
                return SequenceType(inner) if text == "seq" else OptionalType(inner)
            parsed = parse_type(text)
        except ValueError as error:
            self.fail(head, path, f"expected a type: {error}")
        if "shape" not in tree.items:
            return parsed
        if not isinstance(parsed, TensorType):
            self.fail(tree.items["shape"], path, f"expected no shape: {parsed} has none")
        shape = plain(tree.items["shape"])
        if not isinstance(shape, list) or not all(item is None or type(item) in (int, str) for item in shape):
            self.fail(tree.items["shape"], path, "expected a shape: a list of sizes, names and null")
        return TensorType(parsed.element, tuple(shape), parsed.sparse)

    def inner_type(self, tree: Mapping, path: str) -> ValueType:
        inner = tree.items["of"]
        if not isinstance(inner, Mapping) or "$type" not in inner.items:
            self.fail(inner, path, "expected a mapping with $type", inner)
        return self.type(inner, path)

    # -- tensors --------------------------------------------------------------------------------------------------

    def tensor(self, tree: Mapping, path: str) -> Tensor:
        """A tensor whose numbers stand here or in the file beside the snippet."""
        head = tree.items["$tensor"]
        try:
            element = ElementType.parse(self.text(head, path, "an element type"))
        except ValueError as error:
            self.fail(head, path, f"expected an element type: {error}")
        shape_tree = tree.items.get("shape")
        sizes = plain(shape_tree) if shape_tree is not None else None
        if not isinstance(sizes, list) or not all(type(size) is int and 0 <= size < 1 << 48 for size in sizes):
            self.fail(shape_tree or tree, f"{path}.shape", "expected a list of sizes", shape_tree)
        if len(sizes) > MAXIMUM_RANK:
            self.fail(shape_tree or tree, f"{path}.shape", f"expected at most {MAXIMUM_RANK} sizes")
        shape = tuple(sizes)
        forms = [key for key in ("data", "bytes", "name") if key in tree.items]
        if len(forms) != 1:
            self.fail(tree, path, f"expected one of data, bytes and name, found {' and '.join(forms) or 'none'}")
        if forms == ["name"]:
            return self.stored_tensor(tree, element, shape, path)
        for key in ("sha256", "file"):
            if key in tree.items:
                self.fail(tree.items[key], path, f"expected {key} only beside name")
        try:
            if forms == ["bytes"]:
                data = np.frombuffer(self.base64(tree.items["bytes"], path), np.uint8)
                if element is ElementType.STRING:
                    self.fail(tree.items["bytes"], path, "expected data: texts have no bytes of their own")
                return Tensor(element, shape, data)
            items = tree.items["data"]
            if not isinstance(items, Sequence):
                self.fail(items, f"{path}.data", "expected a list of the elements, rows first", items)
            if element is ElementType.STRING:
                texts = [self.string(item, f"{path}.data") for item in items.items]
                return Tensor(element, shape, np.array([*texts, None], dtype=object)[:-1])
            return decode_numbers(element, shape, plain(items))
        except ValueError as error:
            self.fail(tree.items[forms[0]], f"{path}.{forms[0]}", str(error))

    def string(self, tree: Tree, path: str) -> str | bytes:
        if isinstance(tree, Mapping) and list(tree.items) == ["$bytes"]:
            return self.base64(tree.items["$bytes"], path)
        return self.text(tree, path)

    def stored_tensor(self, tree: Mapping, element: ElementType, shape: tuple[int, ...], path: str) -> Tensor:
        """A tensor of the file beside the snippet, which must be what the snippet says."""
        name = self.text(tree.items["name"], f"{path}.name", "the name of a tensor")
        digest = tree.items.get("sha256")
        expected = self.text(digest, f"{path}.sha256", "64 hexadecimal digits") if digest is not None else ""
        if "file" in tree.items:
            return self.tensor_elsewhere(tree, element, shape, path)
        if self.stored is None:
            self.fail(tree, path, f"the tensor {name!r} lies in a file, but no key 'tensors' at the top names one")
        found = self.stored.get(name)
        where = f"{self.parser.path}, line {tree.line}, {path}"
        if found is None:
            raise FileError(self.tensors_path, f"holds no tensor {name!r}, which is needed by {where}.")
        key = (name, element, shape)
        if key not in self.used:
            self.used[key] = self.as_meant(found, name, element, shape, where)
        tensor = self.used[key]
        if expected and self.verify and tensor.digest != expected.lower():
            raise FileError(
                self.tensors_path,
                f"the tensor {name!r} is not the one that {where} means: "
                f"expected SHA-256 {expected}, found {tensor.digest}.",
            )
        return tensor

    def tensor_elsewhere(self, tree: Mapping, element: ElementType, shape: tuple[int, ...], path: str) -> Tensor:
        """A tensor of another file than the one beside the snippet; absent if it is not there or is another one."""
        file = self.text(tree.items["file"], f"{path}.file", "the name of a file beside the snippet")
        name = self.text(tree.items["name"], f"{path}.name", "the name of a tensor")
        digest = plain(tree.items["sha256"]) if "sha256" in tree.items else None
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            self.fail(tree, f"{path}.sha256", "expected 64 hexadecimal digits, in quotes if there is no letter in them")
        if element is ElementType.STRING:
            self.fail(tree, path, "expected data: a tensor of texts lies in no file")
        if file not in self.others:
            try:
                self.others[file] = self.open_tensors(file)
            except ValueError as error:
                self.parser.fail(tree.items["file"], f"{path}.file: {error}")
            except FileError:
                self.others[file] = {}
        stored = self.others[file]
        for key in dict.fromkeys([name, *stored]):  # under another name if a node was renamed since
            try:
                tensor = self.as_meant(stored[key], name, element, shape, path)
            except (KeyError, FileError):
                continue  # of another type or shape: not the one
            if tensor.digest == digest.lower():
                return tensor
        return AbsentTensor(element, shape, digest, name, file)

    @property
    def tensors_path(self) -> str:
        return str(Path(self.parser.path).parent / self.tensors_file)

    def as_meant(self, found: Tensor, name: str, element: ElementType, shape: tuple[int, ...], where: str) -> Tensor:
        """The tensor with the type and shape that the snippet gives it; the file may hold only its bytes."""
        if (found.element, found.shape) == (element, shape):
            return found
        if element not in STORED_AS and found.element is ElementType.UINT8 and element is not ElementType.STRING:
            try:
                return Tensor(element, shape, found.raw())
            except ValueError:
                pass  # the sentence below says what differs
        raise FileError(
            self.tensors_path,
            f"the tensor {name!r} is not the one that {where} means: "
            f"expected {TensorType(element, shape)}, found {found.type}.",
        )


_DIGEST = re.compile("[0-9a-fA-F]{64}")

_FORMS: dict[str, tuple[str, ...]] = {
    "$tensor": ("shape", "data", "bytes", "name", "sha256", "file"),
    "$bytes": (),
    "$type": ("shape", "of", "key"),
    "$as": ("value",),
    "$graph": (),
}


def _describe(tree: Tree) -> str:
    """What stands at a place, in a few words."""
    match tree:
        case Sequence():
            return "a list"
        case Mapping():
            return "a mapping"
        case Scalar(None):
            return "nothing"
        case Scalar(bool() as value):
            return "true" if value else "false"
        case Scalar(value):
            text = repr(value)
            return text if len(text) <= 60 else f"{text[:57]}..."


def _place_of(node: str, port: str, wires: _Wires, nodes: Mapping) -> Tree | tuple[int, int]:
    """Where in the file the thing stands that a finding about a wire or a node names."""
    target = wires.get(PortRef(node, port))
    if target is not None:
        return target[1]
    for source, tree in wires.values():
        if source == (node, port):
            return tree
    return nodes.keys.get(node, (nodes.line, nodes.column))
