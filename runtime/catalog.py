"""Every node type there is: built in, from operator schemas, from plug-ins (entry points)."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.node import Node
from runtime.nodes import terminals

_TYPES: dict[str, type[Node]] = {
    cls.type_name(): cls
    for cls in (terminals.Input, terminals.Output, terminals.Initializer, terminals.Capture)
}


def find(type_name: str, opsets: Mapping[str, int] | None = None) -> type[Node] | None:
    """The node type of that name at the given operator set versions; None if there is none."""
    return _TYPES.get(type_name)
