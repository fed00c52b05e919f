"""Forward passes of the layer, beside ONNX Runtime running the same file as it is."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from benchmarks.figures import THREADS, Figure, beside, beside_anew, in_a_process
from benchmarks.layers import Variant, feeds, layer, raw_session
from qmoe_node import compiled_tiles
from runtime import Graph, Session

SINGLE = 1
SESSIONS = 6
"""Sessions that a single token is measured with."""
AS_IT_IS = {
    "4 bits, blocks of 32": (Variant(), "ratio", {1: 1.03, 16: 1 / 1.5, 128: 1.03, 512: 1.03}),
    "4 bits, rows": (Variant(block_size=0), "speed", {1: 2.5, 16: None, 128: 2.2}),
    "2 bits, blocks of 32": (Variant(bits=2), "speed", {1: 2.5, 16: None, 128: 2.2}),
    "2 bits, rows": (Variant(bits=2, block_size=0), "speed", {1: 2.5, 16: None, 128: 2.2}),
    "8 bits, rows": (Variant(bits=8, block_size=0), "speed", {1: None, 16: None, 128: None}),
    "4 bits, blocks, zero points": (Variant(zero_points=True), "ratio", {1: 1.03, 16: None, 128: 1.03}),
    "4 bits, rows, zero points": (Variant(block_size=0, zero_points=True), "speed", {1: 2.5, 16: None, 128: 2.2}),
}
REFUSED = {
    "concatenated gate and up": Variant(fusion=2),
    "fc3": Variant(fc3=True),
    "bfloat16": Variant(element="bfloat16"),
}
NUMPY = """
import json, sys, time
from benchmarks.layers import feeds, layer
from runtime import Session
session, given = Session(layer(), "numpy"), feeds(128)
session.forward(given)
print(json.dumps({}))
"""


def figures(quick: bool) -> Iterator[Figure]:
    """All of them; `quick` takes 1 and 128 tokens of fewer variants."""
    for label, (variant, compared, targets) in AS_IT_IS.items():
        if quick and label not in ("4 bits, blocks of 32", "4 bits, rows", "2 bits, blocks of 32"):
            continue
        graph = layer(variant)
        if SINGLE in targets and compared == "ratio":
            yield _single(f"{label}, {SINGLE} tokens", graph, graph, "exact", quick)
        session, raw = Session(graph, threads=THREADS), raw_session(graph)
        for tokens, target in targets.items():
            if (quick and tokens in (16, 512)) or (tokens == SINGLE and compared == "ratio"):
                continue
            given = feeds(tokens, variant)
            apart = _apart(session.forward(given)["y"], raw.run(None, given)[0])
            yield beside(
                f"{label}, {tokens} tokens",
                lambda session=session, given=given: session.forward(given),  # type: ignore[misc]
                lambda raw=raw, given=given: raw.run(None, given),  # type: ignore[misc]
                compared=compared,
                target=target,
                note=f"apart {apart:.0e}",
            )
        del session, raw, graph
        gc.collect()
    if not quick:
        yield from _without_numba()
    yield from _refused(quick)
    yield from _fast(quick)
    if not quick:
        yield from _numpy()


def _single(what: str, graph: Graph, peers: Graph, precision: Literal["exact", "fast"], quick: bool) -> Figure:
    """One token, beside ONNX Runtime, by several sessions of each."""
    given, found = feeds(SINGLE), {}

    def ours() -> Callable[[], object]:
        session = Session(graph, threads=THREADS, precision=precision)
        found["ours"] = session.forward(given)["y"]
        return lambda: session.forward(given)

    def peer() -> Callable[[], object]:
        raw = raw_session(peers)
        found["peer"] = raw.run(None, given)[0]
        return lambda: raw.run(None, given)

    sessions, long = (1, 3.0) if quick else (SESSIONS, 5.0)
    figure = beside_anew(what, (ours, peer), target=1.03, times=sessions, long=long)
    where = "" if quick else f", {sessions} sessions each"
    apart = f"apart {_apart(found['ours'], found['peer']):.0e}" if precision == "exact" else "peer: accuracy_level 4"
    return replace(figure, note=apart + where)


def _without_numba() -> Iterator[Figure]:
    """The same without the extra `fast`: ONNX Runtime's kernel throughout."""
    graph, is_installed = layer(), compiled_tiles.is_installed
    compiled_tiles.is_installed = lambda: False  # type: ignore[assignment]
    session, raw = Session(graph, threads=THREADS), raw_session(graph)
    compiled_tiles.is_installed = is_installed
    for tokens in (16, 128):
        given = feeds(tokens)
        yield beside(
            f"4 bits, blocks of 32, without numba, {tokens} tokens",
            lambda given=given: session.forward(given),  # type: ignore[misc]
            lambda given=given: raw.run(None, given),  # type: ignore[misc]
            target=1.03,
        )


def _refused(quick: bool) -> Iterator[Figure]:
    """What ONNX Runtime refuses as it is, beside the nearest that it runs, each through a session of ours."""
    if quick:
        return
    note = "peer: 4 bits, blocks of 32, float"
    plain, near = layer(), {tokens: feeds(tokens) for tokens in (SINGLE, 16, 128)}
    for label, variant in REFUSED.items():
        graph, given = layer(variant), {tokens: feeds(tokens, variant) for tokens in near}
        makes = _forward(graph, given[SINGLE]), _forward(plain, near[SINGLE])
        single = f"{note}, {SESSIONS} sessions each"
        yield beside_anew(f"{label}, {SINGLE} tokens", makes, target=1.1, note=single, times=SESSIONS)
        session, peer = Session(graph, threads=THREADS), Session(plain, threads=THREADS)
        for tokens in (16, 128):
            yield beside(
                f"{label}, {tokens} tokens",
                lambda session=session, own=given[tokens]: session.forward(own),  # type: ignore[misc]
                lambda peer=peer, own=near[tokens]: peer.forward(own),  # type: ignore[misc]
                target=1.1,
                note=note,
            )
        del session, peer
        gc.collect()


def _forward(graph: Graph, given: Mapping[str, np.ndarray]) -> Callable[[], Callable[[], object]]:
    """Makes a session's forward pass."""

    def make() -> Callable[[], object]:
        session = Session(graph, threads=THREADS)
        return lambda: session.forward(given)

    return make


def _fast(quick: bool) -> Iterator[Figure]:
    """Kernels that round activations, beside ONNX Runtime with accuracy_level 4."""
    label, peers = "precision fast, 4 bits, blocks of 32", layer(Variant(accuracy_level=4))
    yield _single(f"{label}, {SINGLE} tokens", layer(), peers, "fast", quick)
    session, raw = Session(layer(), threads=THREADS, precision="fast"), raw_session(peers)
    for tokens in (128,) if quick else (16, 128):
        given = feeds(tokens)
        yield beside(
            f"{label}, {tokens} tokens",
            lambda given=given: session.forward(given),  # type: ignore[misc]
            lambda given=given: raw.run(None, given),  # type: ignore[misc]
            target=1.03,
            note="peer: accuracy_level 4",
        )


def _numpy() -> Iterator[Figure]:
    """The NumPy backend beside the ONNX Runtime one; its memory, in a process of its own."""
    graph, given = layer(), feeds(128)
    packed = sum(state.parameters["tensor"].nbytes for state in graph.nodes.values() if "tensor" in state.parameters)
    numpy, native = Session(graph, "numpy"), Session(graph, threads=THREADS)
    yield beside(
        "NumPy backend, 4 bits, blocks of 32, 128 tokens",
        lambda: numpy.forward(given),
        lambda: native.forward(given),
        target=3.0,
        note="peer: the ONNX Runtime backend",
    )
    memory = in_a_process(NUMPY)["memory"]
    bound = packed / 2**20 + 300
    yield Figure("NumPy backend, most memory", memory / 2**20, "MiB", compared="ours", target=bound)


def _apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a part of the largest number."""
    first, second = found.astype(np.float32), np.asarray(expected).astype(np.float32)
    return float(np.abs(first - second).max() / np.abs(second).max())
