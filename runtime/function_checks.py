"""What is wrong with a graph's functions as a whole: that they call each other in a circle, or grow without bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from runtime.captures import bodies_of
from runtime.errors import Finding
from runtime.graph import Graph, NodeState

MOST_NODES = 1_000_000
"""How many nodes a graph may have when every call of a function has become the function's body."""


def function_key(state: NodeState) -> str:
    """The name under which a graph holds the function that a node calls, if it calls one."""
    domain, _, name = state.type.rpartition(".")
    overload = str(state.extra.get("overload") or "")
    return f"{domain}::{name}::{overload}" if overload else f"{domain}::{name}"


def wrong_functions(graph: Graph, functions: Mapping[str, Graph]) -> Iterator[Finding]:
    """Functions that call themselves, by way of others too; and calls that stand for too many nodes."""
    calls = {key: _calls(body, functions) for key, body in functions.items()}
    sizes: dict[str, int] = {}
    while len(sizes) < len(calls):
        ready = [key for key in calls if key not in sizes and all(other in sizes for other in calls[key])]
        if not ready:
            circle = sorted(key for key in calls if key not in sizes and _reaches(key, key, calls))
            yield Finding(
                f"These functions call each other without end: {', '.join(circle)}.",
                circle[0],
                remedy="Take one of the calls out.",
                code="function",
            )
            return
        for key in ready:
            own = len(functions[key].nodes)
            sizes[key] = own + sum(count * sizes[other] for other, count in calls[key].items())
    total = len(graph.nodes) + sum(count * sizes[key] for key, count in _calls(graph, functions).items())
    if total > MOST_NODES:
        yield Finding(
            f"The calls of functions stand for {total:,} nodes; at most {MOST_NODES:,} can run.", code="function"
        )


def _calls(body: Graph, functions: Mapping[str, Graph]) -> Counter[str]:
    """How often a graph, its subgraphs included, calls each function."""
    found: Counter[str] = Counter()
    for state in body.nodes.values():
        key = function_key(state)
        if key in functions:
            found[key] += 1
        for inner in bodies_of(state):
            found += _calls(inner, functions)
    return found


def _reaches(start: str, end: str, calls: Mapping[str, Counter[str]]) -> bool:
    seen: set[str] = set()
    stack = list(calls[start])
    while stack:
        key = stack.pop()
        if key == end:
            return True
        if key not in seen:
            seen.add(key)
            stack.extend(calls[key])
    return False
