"""Two graphs on the same inputs: numbers against plain NumPy and torch's, tables, data and pictures."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qmoe_node.block_graphs import block_graph, mixture_of, samples_of
from qmoe_node.blocks import Block
from qmoe_node.checkpoints import Checkpoint
from qmoe_node.conversion import Plan, convert
from qmoe_node.families import blocks
from runtime import Cancelled, Graph, GraphError, Session, Tensor, load, save
from runtime.comparison import Comparison, WireDifference, compare
from runtime.comparison_pictures import save_ratios
from runtime.differences import PIECE, difference
from runtime.graph import NodeState, PortRef
from runtime.matching import match
from tests.commands import Qmoe

PEERS = Path(__file__).parent / "data" / "peers"
SNIPPETS = Path(__file__).resolve().parents[1] / "snippets"
FAMILIES = ("gpt_oss", "mixtral", "qwen3_moe")


def ratio(a: np.ndarray, b: np.ndarray) -> float:
    wide = a.astype(np.float64)
    return float(10 * np.log10((wide**2).sum() / ((wide - b) ** 2).sum()))


def wire(comparison: Comparison, name: str) -> WireDifference:
    return next(wire for wire in comparison.wires if str(wire.second) == name)


def opened(family: str) -> tuple[Checkpoint, Block]:
    checkpoint = Checkpoint(PEERS / family)
    return checkpoint, list(blocks(checkpoint))[1]


def renamed(graph: Graph, names: dict[str, str]) -> Graph:
    def new(port: PortRef) -> PortRef:
        return PortRef(names.get(port.node, port.node), port.port)

    states = [
        NodeState(names.get(state.id, state.id), state.type, dict(state.parameters)) for state in graph.nodes.values()
    ]
    wires = [(new(source), new(target)) for target, source in graph.wires.items()]
    return Graph.build(states, wires, {key: graph.section(key) for key in ("info", "opsets", "functions")})


def layers(*weights: np.ndarray) -> Graph:
    """y = tanh(... tanh(x W0) W1 ...)."""
    graph = Graph("layers", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["rows", len(weights[0])]})
    last = "x.value"
    for number, weight in enumerate(weights):
        graph.add("Initializer", f"w{number}", parameters={"tensor": Tensor.from_array(weight)})
        graph.add("MatMul", f"product{number}")
        graph.wire(last, f"product{number}.A")
        graph.wire(f"w{number}.value", f"product{number}.B")
        graph.add("Tanh", f"tanh{number}")
        graph.wire(f"product{number}.Y", f"tanh{number}.input")
        last = f"tanh{number}.output"
    graph.add("Output", "y")
    graph.wire(last, "y.value")
    return graph


@pytest.fixture
def weights() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.standard_normal((6, 5)).astype(np.float32), random.standard_normal((5, 4)).astype(np.float32)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((7, 6)).astype(np.float32)


# -- two arrays -------------------------------------------------------------------------------------------------------


def test_the_numbers_of_a_difference() -> None:
    random = np.random.default_rng(0)
    a = random.standard_normal(PIECE + 3).astype(np.float32)
    b = a + 0.1 * random.standard_normal(a.shape).astype(np.float32)
    found = difference(a, b)
    assert found.snr == pytest.approx(ratio(a, b))
    wide = a.astype(np.float64), b.astype(np.float64)
    assert found.cosine == pytest.approx(np.dot(*wide) / np.linalg.norm(wide[0]) / np.linalg.norm(wide[1]))
    assert found.largest == np.abs(wide[0] - wide[1]).max()
    assert (found.elements, found.not_finite, found.is_exact) == (a.size, 0, False)


def test_differences_at_the_edges() -> None:
    a = np.array([1.0, np.nan, np.inf, -np.inf, 2.0])
    assert difference(a, a.copy()).is_exact and difference(a, a.copy()).not_finite == 3
    found = difference(a, np.array([1.0, 0.0, -np.inf, -np.inf, 2.0]))
    assert (found.not_finite, found.spoiled, found.is_exact) == (3, 2, False)
    zeros = np.zeros(3)
    assert difference(zeros, zeros).is_exact and difference(zeros, zeros).cosine is None
    assert difference(zeros, zeros + 1).snr == -math.inf
    assert difference(np.zeros((0, 4)), np.zeros((0, 4))).is_exact
    assert difference(np.array([True, False]), np.array([True, True])).snr == 0.0
    complexes = np.array([1 + 1j, 2j])
    assert difference(complexes, complexes * 1.1).snr == pytest.approx(20.0)
    with pytest.raises(ValueError, match=r"\[2\] and \[3\]"):
        difference(np.zeros(2), np.zeros(3))


# -- wires ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
@pytest.mark.parametrize("memory", [1, 1 << 28])
def test_accumulated_and_isolated_differences(
    weights: tuple[np.ndarray, np.ndarray], x: np.ndarray, backend: Any, memory: int
) -> None:
    other = [np.round(weight, 1) for weight in weights]
    found = compare(layers(*weights), layers(*other), {"x": x}, backend=backend, memory=memory)
    a = [x @ weights[0]]
    b = [x @ other[0]]
    alone = [x @ other[0], np.tanh(a[0]) @ other[1]]
    a.append(np.tanh(a[0]) @ weights[1])
    b.append(np.tanh(b[0]) @ other[1])
    for number in range(2):
        one = wire(found, f"product{number}.Y")
        assert one.accumulated.snr == pytest.approx(ratio(a[number], b[number]), rel=1e-4)
        assert one.accumulated.largest == pytest.approx(np.abs(a[number] - b[number]).max(), rel=1e-4)
        assert one.isolated is not None
        assert one.isolated.snr == pytest.approx(ratio(a[number], alone[number]), rel=1e-4)
        tanh = wire(found, f"tanh{number}.output")
        assert tanh.accumulated.snr == pytest.approx(ratio(np.tanh(a[number]), np.tanh(b[number])), rel=1e-4)
        assert tanh.isolated is not None and tanh.isolated.snr > 120  # what it gives is its inputs' fault
    first = wire(found, "product0.Y")
    assert first.accumulated.snr == pytest.approx(first.isolated.snr)  # type: ignore[union-attr]
    last = wire(found, "product1.Y")
    assert abs(last.accumulated.snr - last.isolated.snr) > 0.5  # type: ignore[union-attr]
    assert wire(found, "tanh1.output").output == "y"
    constant = wire(found, "w0.value")
    assert constant.is_constant and constant.isolated is None
    assert constant.accumulated.snr == pytest.approx(ratio(weights[0], other[0]))
    assert found.worst in found.wires and not found.worst.is_constant
    assert found.worst.accumulated.snr == min(w.accumulated.snr for w in found.wires if not w.is_constant)
    assert not found.findings


def test_a_graph_and_itself(weights: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> None:
    found = compare(layers(*weights), layers(*weights), {"x": x})
    assert all(one.accumulated.is_exact for one in found.wires)
    assert found.worst is None and found.worst_isolated is None


def test_other_names_are_found_by_structure(weights: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> None:
    graph = layers(*weights)
    names = {"x": "given", "product0": "tanh1", "tanh0": "b", "w0": "c", "product1": "d", "tanh1": "e", "y": "f"}
    other = renamed(graph, names)
    assert match(graph, other).nodes == {id: names.get(id, id) for id in graph.nodes}
    found = compare(graph, other, {"x": x})
    assert [str(one.second) for one in found.wires if not one.is_constant] == [
        "tanh1.Y",
        "b.output",
        "d.Y",
        "e.output",
    ]
    assert all(one.accumulated.is_exact for one in found.wires)
    assert not found.findings


def test_a_wire_is_taken_where_its_values_are(weights: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> None:
    """The second graph halves a weight and doubles the product: what stands for the product is the double."""
    first, second = layers(*weights), layers(weights[0] / 2, weights[1])
    second.add("Initializer", "two", parameters={"tensor": Tensor.from_array(np.array(2, np.float32))})
    second.add("Mul", "doubled")
    second.wire("product0.Y", "doubled.A")
    second.wire("two.value", "doubled.B")
    second.wire("doubled.C", "tanh0.input")
    found = compare(first, second, {"x": x})
    one = wire(found, "doubled.C")
    assert str(one.first) == "product0.Y" and one.accumulated.is_exact and one.isolated is not None
    assert one.isolated.is_exact and wire(found, "tanh0.output").isolated.is_exact  # type: ignore[union-attr]
    assert [str(finding) for finding in found.findings] == [
        "1 node has no counterpart in the first graph: doubled (Mul)."
    ]


def test_half_the_width(weights: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> None:
    """The second graph may have other element types: it gets its inputs in these."""
    narrow = layers(*(weight.astype(np.float16) for weight in weights))
    narrow.set("x", "type", "tensor(float16)")
    found = compare(layers(*weights), narrow, {"x": x})
    assert 40 < wire(found, "tanh1.output").accumulated.snr < 90
    assert wire(found, "tanh1.output").element == "float16"
    assert 40 < wire(found, "product1.Y").isolated.snr < 90  # type: ignore[union-attr]


def test_values_that_are_not_finite(weights: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> None:
    spoilt = weights[0].copy()
    spoilt[0, 0] = np.nan
    found = compare(layers(*weights), layers(spoilt, weights[1]), {"x": x})
    one = wire(found, "product0.Y")
    assert (one.accumulated.not_finite, one.accumulated.spoiled) == (7, 7)
    assert one.accumulated.snr == math.inf and not one.accumulated.is_exact
    assert found.worst is wire(found, "product1.Y") and found.worst.accumulated.spoiled == 28


def test_shapes_that_do_not_fit(weights: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> None:
    found = compare(layers(*weights), layers(weights[0], weights[1][:, :3]), {"x": x})
    assert [str(finding) for finding in found.findings] == [
        "product1.Y: it has the shape [7, 3] here and [7, 4] in the first graph (product1.Y).",
        "tanh1.output: it has the shape [7, 3] here and [7, 4] in the first graph (tanh1.output).",
    ]
    assert [str(one.second) for one in found.wires if not one.is_constant] == ["product0.Y", "tanh0.output"]


def test_what_cannot_be_compared_is_said(weights: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> None:
    graph = layers(*weights)
    with pytest.raises(GraphError, match=r"x.value: The input x has no value"):
        compare(graph, graph, {})
    with pytest.raises(GraphError, match=r"z: Neither graph has an input"):
        compare(graph, graph, {"x": x, "z": x})
    more = layers(*weights)
    more.add("Input", "z", parameters={"type": "tensor(float)", "shape": [4]})
    more.add("Add", "sum")
    more.wire("tanh1.output", "sum.A")
    more.wire("z.value", "sum.B")
    more.wire("sum.C", "y.value")
    with pytest.raises(GraphError, match=r"z.value: The second graph has the input z, and the first has not"):
        compare(graph, more, {"x": x})
    found = compare(graph, more, {"x": x, "z": np.zeros(4, np.float32)})
    assert wire(found, "tanh1.output").accumulated.is_exact
    with pytest.raises(GraphError, match=r"x: \(in the second graph\) Dimension 1 must be 5"):
        compare(graph, layers(weights[0][:5], weights[1]), {"x": x})
    wrong = layers(*weights)
    wrong.set("w0", "tensor", Tensor.from_array(weights[0][:5]))
    with pytest.raises(GraphError, match=r"product0\S*: \(in the second graph\)"):
        compare(graph, wrong, {"x": x})
    with pytest.raises(GraphError, match="no node in common"):
        one = Graph("one", opsets={"": 21})
        one.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["rows", 6]})
        one.add("Output", "z")
        one.wire("x.value", "z.value")
        compare(graph, one, {"x": x})


def test_a_body_reads_what_stands_around_it(weights: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> None:
    """A node with a subgraph that captures values has no number of its own, and no error."""

    def graph(weight: np.ndarray) -> Graph:
        graph = layers(weight)
        graph.add("Initializer", "yes", parameters={"tensor": Tensor.from_array(np.array(True))})
        bodies = {}
        for name in ("then_branch", "else_branch"):
            body = Graph(name)
            body.add("Capture", "outer", parameters={"name": "product0.Y"})
            body.add("Neg", "negative")
            body.wire("outer.value", "negative.X")
            body.add("Output", "out")
            body.wire("negative.Y", "out.value")
            bodies[name] = body
        graph.add("If", "choice", parameters=bodies)
        graph.wire("yes.value", "choice.cond")
        graph.wire("choice.outputs.0", "y.value")
        return graph

    found = compare(graph(weights[0]), graph(np.round(weights[0], 1)), {"x": x})
    one = wire(found, "choice.outputs.0")
    assert one.isolated is None and not one.is_constant
    assert one.accumulated.snr == pytest.approx(ratio(x @ weights[0], x @ np.round(weights[0], 1)), rel=1e-4)


def test_it_stops_when_it_is_told_to(weights: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> None:
    stop = threading.Event()
    told: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, node: str) -> None:
        told.append((done, total, node))
        stop.set()

    with pytest.raises(Cancelled):
        compare(layers(*weights), layers(*weights), {"x": x}, progress=progress, cancel=stop)
    assert told
    told.clear()
    compare(layers(*weights), layers(*weights), {"x": x}, progress=progress)
    assert told[-1][0] == told[-1][1] and [done for done, _, _ in told] == sorted(done for done, _, _ in told)


# -- mixtures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ratio_of_a_quantized_block_is_that_of_torchs_numbers(family: str) -> None:
    checkpoint, block = opened(family)
    with np.load(PEERS / family / "quantized.npz") as peer:
        tensors = {key.removeprefix("in."): peer[key] for key in peer.files if key.startswith("in.fc")}
        given, expected = peer["in.input"][None], peer["expected_block"]
    graph = block_graph(checkpoint, block)
    second = block_graph(checkpoint, block, convert(mixture_of(checkpoint, block), Plan()))
    for port, array in tensors.items():
        second.set(port, "tensor", Tensor.from_array(array))
    floats = Session(graph).forward({"hidden_states": given})["output"]  # torch's, as test_checkpoints.py says
    found = compare(graph, second, {"hidden_states": given})
    assert wire(found, "shaped.reshaped").accumulated.snr == pytest.approx(ratio(floats, expected), abs=0.01)
    assert wire(found, "shaped.reshaped").output == "output"


def plain_weights(graph: Graph, projection: str) -> np.ndarray:
    """4-bit codes in blocks of 32 columns, by the operator's manual."""

    def array(name: str) -> np.ndarray:
        return np.asarray(graph.nodes[f"{projection}_{name}"].parameters["tensor"].array())

    packed, scales = array("experts_weights"), array("scales")
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    return (codes.astype(np.float64) - 8) * np.repeat(scales, 32, axis=2)


def test_the_numbers_of_every_expert() -> None:
    checkpoint, block = opened("qwen3_moe")
    first = block_graph(checkpoint, block)
    second = block_graph(checkpoint, block, convert(mixture_of(checkpoint, block), Plan(4)))
    with np.load(PEERS / "qwen3_moe" / "reference.npz") as reference:
        x, logits, picks = (reference[f"layer1.{name}"] for name in ("moe_in", "router_logits", "topk_indices"))
    tokens = x.reshape(-1, 64).astype(np.float64)
    (mixture,) = compare(first, second, {"hidden_states": x}).mixtures
    assert (mixture.first, mixture.second, mixture.token_count) == ("experts", "experts", len(tokens))
    assert (mixture.tokens == np.bincount(picks.ravel(), minlength=8)).all()
    assert (mixture.changed_tokens, mixture.changed_choices, mixture.choices) == (0, 0, picks.size)
    assert dict(mixture.block_sizes) == {"fc1": 32, "fc2": 32}
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    floats = {fc: first.nodes[f"{fc}_experts_weights"].parameters["tensor"].array() for fc in ("fc1", "fc2")}
    rounded = {fc: plain_weights(second, fc) for fc in ("fc1", "fc2")}

    def inner(fc1: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        both = tokens @ fc1.T
        gate, linear = both[:, ::2], both[:, 1::2]
        return gate / (1 + np.exp(-gate)) * linear

    noises = []
    for one in mixture.experts:
        e = one.expert
        rows = np.flatnonzero((picks == e).any(axis=1))
        w = shares[rows, e] / np.take_along_axis(shares, picks, 1)[rows].sum(axis=1)
        assert mixture.weights[e] == pytest.approx(w.sum(), rel=1e-4)
        middle = inner(floats["fc1"][e], tokens[rows])
        wanted = middle @ floats["fc2"][e].T
        got = inner(rounded["fc1"][e], tokens[rows]) @ rounded["fc2"][e].T
        noises.append((w[:, None] ** 2 * (got - wanted) ** 2).sum())
        if len(rows):
            error = math.sqrt(noises[-1] / (w[:, None] ** 2 * wanted**2).sum())
            assert one.output_error == pytest.approx(error, rel=1e-4)
        else:
            assert one.output_error is None
        for fc, given in (("fc1", tokens[rows]), ("fc2", middle)):
            W, apart = floats[fc][e].astype(np.float64), rounded[fc][e] - floats[fc][e]
            assert one.weight_errors[fc] == pytest.approx(np.linalg.norm(apart) / np.linalg.norm(W), rel=1e-5)
            for b, columns in enumerate(np.split(np.arange(W.shape[1]), W.shape[1] // 32)):
                error = np.linalg.norm(apart[:, columns]) / np.linalg.norm(W[:, columns])
                assert one.block_weight_errors[fc][b] == pytest.approx(error, rel=1e-5)
                if len(rows):
                    made = w[:, None] * (given[:, columns] @ apart[:, columns].T)
                    error = np.linalg.norm(made) / np.linalg.norm(w[:, None] * (given @ W.T))
                    assert one.block_output_errors[fc][b] == pytest.approx(error, rel=1e-4)
    np.testing.assert_allclose(mixture.shares, np.array(noises) / sum(noises), rtol=1e-3)
    assert mixture.block_weight_errors("fc2").shape == mixture.block_output_errors("fc2").shape == (8, 3)


def test_tokens_that_go_to_other_experts_are_counted() -> None:
    """Two experts change places in the router: who chose exactly one of them has another set."""
    checkpoint, block = opened("qwen3_moe")
    first = block_graph(checkpoint, block)
    with np.load(PEERS / "qwen3_moe" / "reference.npz") as reference:
        x, picks = reference["layer1.moe_in"], reference["layer1.topk_indices"]
    second = first.copy()
    order = np.array([1, 0, *range(2, 8)])
    router = first.nodes["router_weight"].parameters["tensor"].array()
    second.set("router_weight", "tensor", Tensor.from_array(router[order]))
    found = compare(first, second, {"hidden_states": x})
    (mixture,) = found.mixtures
    one_of_both = sum(len({0, 1} & set(chosen)) == 1 for chosen in picks.tolist())
    assert 0 < one_of_both < len(picks)
    assert (mixture.changed_tokens, mixture.changed_choices) == (one_of_both, one_of_both)
    assert (mixture.tokens_second == np.bincount(picks.ravel(), minlength=8)[order]).all()
    # The experts themselves are the same, and so is the mixture with the first graph's logits.
    assert all(expert.noise == 0 for expert in mixture.experts)
    assert wire(found, "experts.output").isolated.is_exact  # type: ignore[union-attr]
    assert not wire(found, "experts.output").accumulated.is_exact


@pytest.mark.parametrize("target", ["onnxruntime", "schema", "portable"])
def test_a_quantized_block_and_what_was_written_of_it(tmp_path: Path, target: str) -> None:
    checkpoint, block = opened("mixtral")
    graph = block_graph(checkpoint, block, convert(mixture_of(checkpoint, block), Plan(4)))
    save(graph, tmp_path / "block.onnx", target=target)
    x = np.random.default_rng(0).standard_normal((1, 9, 64)).astype(np.float32)
    found = compare(graph, load(tmp_path / "block.onnx"), {"hidden_states": x})
    (one,) = (one for one in found.wires if str(one.first) == "experts.output")
    assert one.accumulated.snr > 120 and one.isolated is not None and one.isolated.snr > 120
    assert wire(found, "shaped.reshaped").accumulated.snr > 120
    assert len(found.mixtures) == (target != "portable")


def test_a_rescaled_input_is_rescaled_for_a_node_alone_too() -> None:
    checkpoint, block = opened("mixtral")
    x = np.random.default_rng(0).standard_normal((1, 200, 64)).astype(np.float32) * np.linspace(0.1, 4, 64)
    x = x.astype(np.float32)
    converted = convert(mixture_of(checkpoint, block), Plan(method="awq"), samples_of(checkpoint, block, x))
    found = compare(block_graph(checkpoint, block), block_graph(checkpoint, block, converted), {"hidden_states": x})
    one = wire(found, "experts.output")
    assert one.isolated is not None and one.isolated.snr == pytest.approx(one.accumulated.snr, abs=0.01)
    assert 10 ** (-one.accumulated.snr / 20) == pytest.approx(converted.output_error, rel=1e-3)
    (mixture,) = found.mixtures
    for expert, report in zip(mixture.experts, converted.experts, strict=True):
        assert expert.output_error == pytest.approx(report.output_error, rel=1e-3)
    assert any("weights are compared as they are" in str(finding) for finding in found.findings)


def test_fewer_bits_are_worse_and_other_layers_cannot_be_compared() -> None:
    checkpoint, block = opened("gpt_oss")
    mixture = mixture_of(checkpoint, block)
    x = np.random.default_rng(0).standard_normal((1, 30, 64)).astype(np.float32)
    floats = block_graph(checkpoint, block)
    ratios = []
    for bits in (8, 4, 2):
        graph = block_graph(checkpoint, block, convert(mixture, Plan(bits, 0 if bits == 8 else 32)))
        found = compare(floats, graph, {"hidden_states": x})
        ratios.append(wire(found, "experts.output").accumulated.snr)
        assert found.mixtures[0].block_weight_errors("fc1").shape == (8, 2)
    assert ratios == sorted(ratios, reverse=True) and ratios[0] > 30
    wider = floats.copy()
    for port in ("fc1_experts_weights", "fc1_experts_bias"):
        array = floats.nodes[port].parameters["tensor"].array()
        wider.set(port, "tensor", Tensor.from_array(np.concatenate([array, array[:, :2] * 0], axis=1)))
    array = floats.nodes["fc2_experts_weights"].parameters["tensor"].array()
    wider.set("fc2_experts_weights", "tensor", Tensor.from_array(np.pad(array, ((0, 0), (0, 0), (0, 1)))))
    found = compare(floats, wider, {"hidden_states": x})
    assert not found.mixtures
    assert any(str(f).startswith("experts: its experts cannot be compared: fc1's rows") for f in found.findings)
    assert wire(found, "experts.output").accumulated.snr > 100


# -- the command ------------------------------------------------------------------------------------------------------

FLOATS, CODES = SNIPPETS / "digits_moe_float.yaml", SNIPPETS / "digits_moe_quantized.yaml"


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    with np.load(SNIPPETS / "digits.npz") as archive:
        x, y = archive["images"][-360:].astype(np.float32) / 16, archive["digits"][-360:].astype(np.int64)
    np.savez(tmp_path / "digits_inputs.npz", x=x, y=y)
    return tmp_path / "digits_inputs.npz"


def test_the_table(qmoe: Qmoe, digits: Path) -> None:
    ended = qmoe("compare", FLOATS, CODES, "--inputs", digits)
    assert ended.code == 0 and not ended.err, ended.err
    with np.load(digits) as arrays:
        found = compare(load(FLOATS), load(CODES), dict(arrays))
    assert f"{wire(found, 'classifier.Y').accumulated.snr:.1f}" in ended.out
    rows = {line.split()[0]: line for line in ended.out.splitlines() if line.strip()}
    assert rows["router.Y"].count("exact") == 2
    assert rows["moe.output"].rstrip().endswith("worst, adds most")
    assert "(logits)" in rows["classifier.Y"]
    assert "8 experts. Of 360 tokens, 0 (0.0 %) go to other experts: 0 of 720 choices." in ended.out
    assert rows["7"].split()[1] == str(found.mixtures[0].tokens[7])
    assert "generated" not in ended.out


def test_the_same_as_data(qmoe: Qmoe, digits: Path) -> None:
    ended = qmoe("compare", FLOATS, CODES, "--inputs", digits, "--json")
    report = json.loads(ended.out, parse_constant=lambda word: pytest.fail(word))
    wires = {one["second"]: one for one in report["wires"]}
    assert wires["router.Y"]["accumulated"] == {
        "snr": None,
        "cosine": 1.0,
        "largest": 0.0,
        "not_finite": 0,
        "spoiled": 0,
        "exact": True,
    }
    assert wires["moe.output"]["isolated"]["snr"] == pytest.approx(wires["moe.output"]["accumulated"]["snr"])
    assert wires["classifier_weight.value"]["constant"] and wires["classifier_weight.value"]["isolated"] is None
    assert report["worst"] == report["worst_isolated"] == "moe.output"
    (mixture,) = report["mixtures"]
    assert (
        len(mixture["experts"]) == 8 and sum(one["tokens"] for one in mixture["experts"]) == mixture["choices"] == 720
    )
    assert sum(one["share"] for one in mixture["experts"]) == pytest.approx(1)
    assert len(mixture["experts"][0]["block_weight_errors"]["fc1"]) == 2
    assert report["inputs"]["x"]["generated"] is False


def test_generated_inputs_are_told(qmoe: Qmoe) -> None:
    ended = qmoe("compare", FLOATS, CODES, "--size", "images=5", "--seed", 3)
    assert ended.code == 0 and "in x: tensor(float) [5, 64] (generated)" in ended.out


def test_pictures(qmoe: Qmoe, digits: Path, tmp_path: Path) -> None:
    ended = qmoe("compare", FLOATS, CODES, "--inputs", digits, "--pictures", "new/pictures")
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (tmp_path / "new/pictures").iterdir()) == ["experts_moe.png", "snr.png"]
    for name in ("experts_moe.png", "snr.png"):
        assert f"{Path('new/pictures') / name}" in ended.out
        with Image.open(tmp_path / "new/pictures" / name) as image:
            image.load()
            assert image.format == "PNG" and image.width > 300
            assert len(set(image.convert("RGB").get_flattened_data())) > 20  # type: ignore[attr-defined]
    (tmp_path / "file").write_text("")
    ended = qmoe("compare", FLOATS, CODES, "--pictures", "file")
    assert ended.code == 2 and "is a file" in ended.err


def test_a_picture_of_many_wires_stays_small(tmp_path: Path) -> None:
    matrix = np.eye(4, dtype=np.float32)
    graph = layers(*[matrix] * 100)
    found = compare(graph, layers(*[matrix * 1.001] * 100), {"x": np.ones((2, 4), np.float32)})
    save_ratios(tmp_path / "many.png", found)
    with Image.open(tmp_path / "many.png") as image:
        assert image.height < 1700


def test_errors_of_the_command(qmoe: Qmoe, tmp_path: Path) -> None:
    np.save(tmp_path / "narrow.npy", np.zeros((3, 7), np.float32))
    ended = qmoe("compare", FLOATS, CODES, "--input", "x=narrow.npy")
    assert ended.code == 1 and ended.err.startswith("qmoe: x: (in the first graph)") and "Traceback" not in ended.err
    ended = qmoe("compare", FLOATS, CODES, "--size", "tokens=5")
    assert ended.code == 2 and "no input has such a dimension" in ended.err
    ended = qmoe("compare", FLOATS, CODES, "--backend", "numpy")
    assert ended.code == 1 and "moe: (in the first graph) There is no NumPy kernel" in ended.err
    ended = qmoe("compare", FLOATS, tmp_path / "missing.yaml")
    assert ended.code == 1 and "missing.yaml" in ended.err
