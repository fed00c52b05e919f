"""QMoE Studio's dataflow runtime: documents, node types, checks, files, sessions. No Qt, no knowledge of QMoE.

    graph = runtime.load("block.yaml")
    session = runtime.Session(graph)
    outputs = session.forward({"x": array})

Names are loaded when they are first used, so that importing this package is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.check import Checker
    from runtime.errors import Cancelled, FileError, Finding, GraphError, Severity, StudioError
    from runtime.files import load, save
    from runtime.graph import Graph, NodeState, PortRef
    from runtime.session import Session
    from runtime.tensors import Tensor

_HOMES = {
    "Cancelled": "errors",
    "Checker": "check",
    "FileError": "errors",
    "Finding": "errors",
    "Graph": "graph",
    "GraphError": "errors",
    "NodeState": "graph",
    "PortRef": "graph",
    "Session": "session",
    "Severity": "errors",
    "StudioError": "errors",
    "Tensor": "tensors",
    "load": "files",
    "save": "files",
}

__all__ = [
    "Cancelled",
    "Checker",
    "FileError",
    "Finding",
    "Graph",
    "GraphError",
    "NodeState",
    "PortRef",
    "Session",
    "Severity",
    "StudioError",
    "Tensor",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    value = getattr(import_module(f"runtime.{home}"), name)
    globals()[name] = value
    return value
