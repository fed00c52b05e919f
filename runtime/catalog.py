"""Every node type there is: built in, from plug-ins (entry points), from the operator schemas of ONNX and ONNX Runtime.

A plug-in is a class in the entry-point group `qmoe.nodes`; it takes the place of a generated type of the same name.
Nothing heavy is imported before a type that needs it is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from importlib import metadata

from runtime.node import Node
from runtime.nodes import losses, terminals

ENTRY_POINTS = "qmoe.nodes"

_registered: dict[str, type[Node]] = {}
_found: dict[tuple[str, int | None], type[Node] | None] = {}


@cache
def _built_in() -> dict[str, type[Node]]:
    types: tuple[type[Node], ...] = (
        terminals.Input,
        terminals.Output,
        terminals.Initializer,
        terminals.Capture,
        *losses.LOSSES,
    )
    return {cls.type_name(): cls for cls in types}


@cache
def _plug_ins() -> dict[str, type[Node]]:
    """The types that installed packages declare; one that fails to load is warned about and left out."""
    types: dict[str, type[Node]] = {}
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            cls = entry.load()
        except Exception as error:  # somebody else's code: whatever it raises must not take the catalog down
            warnings.warn(
                f"The plug-in {entry.name} ({entry.value}) could not be loaded: {error!r}", RuntimeWarning, stacklevel=2
            )
            continue
        if not (isinstance(cls, type) and issubclass(cls, Node)):
            warnings.warn(
                f"The plug-in {entry.name} ({entry.value}) is no node type: expected a subclass of runtime.node.Node.",
                RuntimeWarning,
                stacklevel=2,
            )
            continue
        types[cls.type_name()] = cls
    return types


def register(cls: type[Node]) -> type[Node]:
    """Makes a node type known to this process, before all others of its name. Can be used as a decorator."""
    _registered[cls.type_name()] = cls
    _found.clear()
    return cls


def unregister(cls: type[Node]) -> None:
    """Takes back `register`."""
    _registered.pop(cls.type_name(), None)
    _found.clear()


def find(type_name: str, opsets: Mapping[str, int] | None = None) -> type[Node] | None:
    """The node type that documents call `type_name` ("MatMul", "com.microsoft.QMoE"), or None.

    `opsets` gives the version of each domain's operator set; the newest installed one counts for a domain without.
    """
    domain, _, name = type_name.rpartition(".")
    opset = opsets.get(domain) if opsets else None
    key = (type_name, opset)
    if key not in _found:
        _found[key] = _find(type_name, domain, name, opset)
    return _found[key]


def _find(type_name: str, domain: str, name: str, opset: int | None) -> type[Node] | None:
    declared = _registered.get(type_name) or _built_in().get(type_name) or _plug_ins().get(type_name)
    if declared is not None:
        return declared
    from runtime.nodes import operators

    return operators.find(domain, name, opset)


def with_function(name: str) -> type[Node] | None:
    """The first of the types that were registered or that packages declare that has a function of this name."""
    declared = (*_registered.values(), *_plug_ins().values())
    return next((cls for cls in declared if callable(getattr(cls, name, None))), None)


def all_types(opsets: Mapping[str, int] | None = None) -> list[type[Node]]:
    """Every node type that a new graph may use, at the given operator set versions; by domain, then name."""
    from runtime.nodes import operators

    names = set(_registered) | set(_built_in()) | set(_plug_ins())
    names |= {f"{domain}.{name}" if domain else name for domain, name in operators.names()}
    types = (find(name, opsets) for name in names)
    return sorted((cls for cls in types if cls is not None), key=lambda cls: (cls.domain, cls.operator))


def first_version(type_name: str) -> int | None:
    """The version of its domain's operator set with which an operator came; None for an unknown one."""
    from runtime.nodes import operators

    domain, _, name = type_name.rpartition(".")
    return operators.first_version(domain, name)


def newest_opset(domain: str) -> int:
    """The version of a domain's operator set that a graph has which does not say: the newest that can run."""
    from runtime.nodes import operators

    return operators.newest_opset(domain)
