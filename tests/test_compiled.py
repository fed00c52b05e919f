"""The compiled loops over packed weights: NumPy's numbers, whichever processor, threads and numbers of tokens."""

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

import qmoe_node
from qmoe_node import compiled, compiled_tiles, kernel
from qmoe_node.checks import layer_of
from qmoe_node.compiled_tiles import CompiledTiles, can_compile
from qmoe_node.node import QMoE
from qmoe_node.parallel import in_order
from qmoe_node.tiles import PackedTiles
from runtime import Graph, GraphError, Session, Tensor
from runtime.backends.control import Control, observed
from tests.commands import ROOT
from tests.qmoe_layers import make_layer
from tests.test_qmoe_forward import assert_close
from tests.test_qmoe_gradients import assert_slopes, upstream_of


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    """Layers of any size take the ways of large ones."""
    monkeypatch.setattr(compiled_tiles, "WORTH_COMPILED", 0)
    monkeypatch.setattr(compiled_tiles, "WORTH_A_CALL", 0)
    monkeypatch.setattr(compiled_tiles, "WORTH_LOADING", 0)


@st.composite
def compilable(draw):
    """(inputs, attributes, inter) of layers that there are loops for; few tokens, and so many that products do it."""
    bits = draw(st.sampled_from([2, 4, 8]))
    block = draw(st.sampled_from([0, 16, 32, 64]))
    hidden, inter = (64 * draw(st.integers(1, 3)) for _ in range(2))
    swiglu = draw(st.booleans())
    inputs, attributes = make_layer(
        draw(st.integers(0, 2**16)),
        tokens=draw(st.sampled_from([1, 2, 3, 4, 7, 30, 150])),
        experts=draw(st.integers(2, 5)),
        hidden=hidden,
        inter=inter,
        kind=draw(st.sampled_from(["float", "float", "float16", "bfloat16"])),
        bits=(bits,) * 3,
        block_size=block,
        zero_points=draw(st.booleans()),
        fc3=not swiglu and draw(st.booleans()),
        biases=draw(st.booleans()),
        activation_type="swiglu" if swiglu else "silu",  # the slopes of others have steps
        swiglu_fusion=draw(st.sampled_from([1, 2])) if swiglu else 0,
    )
    return inputs, attributes, inter


@settings(deadline=None, max_examples=60)
@given(compilable())
def test_outputs_against_float64(case):
    inputs, attributes, inter = case
    assert all(can_compile(projection) for projection in layer_of(inputs, attributes).projections)
    assert_close(inputs, attributes, inter)


@settings(deadline=None, max_examples=25)
@given(compilable())
def test_gradients_against_slopes(case):
    inputs, attributes, inter = case
    inputs = {
        port: array.astype(np.float32) if array.dtype.kind != "u" and array.dtype.itemsize == 2 else array
        for port, array in inputs.items()
    }
    assert_slopes(
        {**inputs, "input": inputs["input"][:7], "router_probs": inputs["router_probs"][:7]}, attributes, inter
    )


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_loops_of_every_length(bits, lanes, zero_points, monkeypatch):
    """Also those that this machine would not choose: vectors of other processors, and those of short blocks."""
    monkeypatch.setattr(compiled, "MOST_LANES", lanes)
    inputs, attributes = make_layer(hidden=192, inter=128, bits=(bits,) * 3, block_size=64, zero_points=zero_points)
    projection = layer_of(inputs, attributes).fc1
    plain, fast = PackedTiles(projection, inputs, 1), CompiledTiles(projection, inputs, 1)
    assert fast._loops is compiled.loops(bits, lanes, int(zero_points))
    np.testing.assert_array_equal(fast.weights(16, 43), plain.weights(16, 43))
    random = np.random.default_rng(0)
    gradient = random.standard_normal((27, 192), np.float32)
    sums = fast.scale_sums(16, gradient.copy())
    np.testing.assert_allclose(sums, plain.scale_sums(16, gradient.copy()), atol=1e-5 * np.abs(sums).max())
    for tokens in (1, 2, 3, 4, 5, 11):
        x = random.standard_normal((tokens, 192), np.float32)
        expected = plain.project(x)
        np.testing.assert_allclose(fast.project(x), expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("rows", [8, 9, 10, 11, 13, 31])
def test_rows_need_not_be_groups(rows):
    inputs, attributes = make_layer(hidden=32, inter=rows, biases=False, bits=(8, 8, 8), activation_type="identity")
    projection = layer_of(inputs, attributes).fc1
    assert can_compile(projection)
    x = np.random.default_rng(0).standard_normal((3, 32), np.float32)
    expected = PackedTiles(projection, inputs, 0).project(x)
    np.testing.assert_allclose(CompiledTiles(projection, inputs, 0).project(x), expected, atol=1e-6)


@pytest.mark.parametrize("case", [{"inter": 6}, {"hidden": 20}, {"block_size": 16, "bits": (8, 8, 8), "hidden": 40}])
def test_other_layouts_are_left_to_numpy(case):
    inputs, attributes = make_layer(**({"inter": 32} | case))
    assert not all(can_compile(projection) for projection in layer_of(inputs, attributes).projections)
    assert_close(inputs, attributes, case.get("inter", 32))


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_threads_change_nothing(tokens, bits, monkeypatch):
    """Also with fewer experts than threads, whose rows are shared out."""
    monkeypatch.setattr(kernel, "WORTH_THREADS", 0)
    inputs, attributes = make_layer(
        tokens=tokens, experts=3, hidden=128, inter=72, bits=(bits,) * 3, k=1, activation_type="swiglu", swiglu_fusion=1
    )
    found = []
    for threads in (1, 2, 3, 7):
        with observed(Control(), threads):
            found.append(qmoe_node.evaluate(inputs, attributes))
    for other in found[1:]:
        assert np.abs(other - found[0]).max() <= 1e-6 * np.abs(found[0]).max()


def test_numbers_that_are_not_finite_pass():
    inputs, attributes = make_layer(hidden=64, inter=64, experts=2, k=2, activation_type="identity", biases=False)
    inputs["input"][1, 3], inputs["input"][2, 5] = np.nan, np.inf
    output = qmoe_node.evaluate(inputs, attributes)
    assert np.isfinite(output[0]).all()
    assert np.isnan(output[1]).all()
    assert not np.isfinite(output[2]).any()


def test_arrays_may_be_read_only_and_in_any_order():
    inputs, attributes = make_layer(hidden=64, inter=64, zero_points=True, block_size=32)
    expected = qmoe_node.evaluate(inputs, attributes)
    for name, array in inputs.items():
        odd = np.asfortranarray(array)
        odd.flags.writeable = False
        inputs[name] = odd
    np.testing.assert_array_equal(qmoe_node.evaluate(inputs, attributes), expected)


def graph_of(inputs, attributes, shape=("tokens", 64)):
    """A graph whose weights are constants."""
    graph = Graph()
    for name, declared in (("x", list(shape)), ("router", ["tokens", inputs["router_probs"].shape[1]])):
        graph.add("Input", name, parameters={"type": "tensor(float)", "shape": declared})
    graph.add("com.microsoft.QMoE", "moe", parameters=attributes)
    graph.wire("x.value", "moe.input")
    graph.wire("router.value", "moe.router_probs")
    for port, array in inputs.items():
        if port.startswith("fc"):
            graph.add("Initializer", port, parameters={"tensor": Tensor.from_array(array)})
            graph.wire(f"{port}.value", f"moe.{port}")
    graph.add("Output", "y")
    graph.wire("moe.output", "y.value")
    return graph


def fed(tokens, hidden=64, experts=4):
    random = np.random.default_rng(tokens)
    return {
        "x": random.standard_normal((tokens, hidden), np.float32),
        "router": random.standard_normal((tokens, experts), np.float32),
    }


@pytest.mark.parametrize(
    ("bits", "zero_points", "expected_use"),
    [
        (4, False, {1: False, 2: True, 20: True, 60: True, 61: False}),
        (4, True, {1: False, 2: True, 26: True, 27: False}),
        (2, False, {1: False, 2: True, 17: True, 18: False}),
        (8, False, {1: True, 2: True, 61: True, 640: True, 641: False}),
    ],
)
def test_onnx_runtime_computes_very_few_and_many_tokens(bits, zero_points, expected_use, monkeypatch):
    monkeypatch.setattr(compiled, "MOST_LANES", 16)
    inputs, attributes = make_layer(
        hidden=64, inter=64, experts=5, block_size=32, bits=(bits,) * 3, zero_points=zero_points
    )
    graph = graph_of(inputs, attributes)
    session, numpy = Session(graph), Session(graph, "numpy")
    assert session.placement == {"moe": "numpy"}
    expected = {tokens: numpy.forward(fed(tokens, experts=5))["y"] for tokens in expected_use}
    own = []
    evaluate = QMoE.evaluate
    monkeypatch.setattr(QMoE, "evaluate", staticmethod(lambda *given: own.append(1) or evaluate(*given)))
    session = Session(graph)
    used = {}
    for tokens, y in expected.items():
        for _ in range(2):
            own.clear()
            found = session.forward(fed(tokens, experts=5))["y"]
            used[tokens] = bool(own)
            assert np.abs(found - y).max() <= 1e-6 * np.abs(y).max()
    assert used == expected_use
    session.forward(fed(1, experts=5), times=True)
    assert list(session.last_run.times) == ["moe"]


def test_numba_is_not_loaded_for_what_onnx_runtime_computes(monkeypatch):
    inputs, attributes = make_layer(hidden=64, inter=64, experts=5, block_size=32)
    attributes["fc3_expert_weight_bits"] = 8  # of a projection that is not there
    session = Session(graph_of(inputs, attributes))
    monkeypatch.setattr(compiled_tiles, "compiled_loops", lambda: pytest.fail("loaded"))
    for tokens in (0, 1, 61):
        assert session.forward(fed(tokens, experts=5))["y"].shape == (tokens, 64)


@pytest.mark.parametrize("weights", ["WORTH_A_CALL", "WORTH_LOADING"])
def test_small_experts_and_small_layers_are_onnx_runtimes(weights, monkeypatch):
    inputs, attributes = make_layer(hidden=64, inter=64, experts=4, block_size=32)
    size = 2 * 64 * 64 * (1 if weights == "WORTH_A_CALL" else 4)
    monkeypatch.setattr(compiled_tiles, weights, size)
    assert Session(graph_of(inputs, attributes)).placement == {"moe": "numpy"}
    monkeypatch.setattr(compiled_tiles, weights, size + 1)
    assert Session(graph_of(inputs, attributes)).placement == {"moe": "onnxruntime"}


def test_what_the_graph_leaves_open_is_checked_before_onnx_runtime_sees_it():
    inputs, attributes = make_layer(hidden=64, inter=64, experts=5)
    session = Session(graph_of(inputs, attributes, ("tokens", "width")))
    good = session.forward(fed(1, experts=5))["y"]
    for tokens in (1, 20):
        with pytest.raises(GraphError, match="moe.*expected"):
            session.forward(fed(tokens, hidden=32, experts=5))
    np.testing.assert_array_equal(session.forward(fed(1, experts=5))["y"], good)


def test_precision_fast_is_onnx_runtimes():
    inputs, attributes = make_layer(hidden=64, inter=64, experts=4, block_size=32)
    assert Session(graph_of(inputs, attributes), precision="fast").placement == {"moe": "onnxruntime"}


def test_without_numba_everything_runs(monkeypatch):
    inputs, attributes = make_layer(hidden=64, inter=64, experts=4)
    expected = qmoe_node.evaluate(inputs, attributes)
    gradients = qmoe_node.gradients(inputs, attributes, upstream_of(inputs))
    monkeypatch.setattr(compiled_tiles, "is_installed", lambda: False)
    found = qmoe_node.evaluate(inputs, attributes)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    for port, other in qmoe_node.gradients(inputs, attributes, upstream_of(inputs)).items():
        assert np.abs(other - gradients[port]).max() <= 1e-5 * np.abs(other).max(), port
    assert Session(graph_of(inputs, attributes)).placement == {"moe": "onnxruntime"}


COPIES = """
import json
import numpy as np
from qmoe_node import compiled_tiles
from runtime import Session
from tests.qmoe_layers import make_layer
from tests.test_compiled import fed, graph_of

compiled_tiles.is_installed = lambda: False
with open("/proc/self/status") as file:
    def private():
        file.seek(0)
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("RssAnon"))
    inputs, attributes = make_layer(hidden=1024, inter=1024, experts=96, block_size=32)
    given, start = fed(3, hidden=1024, experts=96), private()
    session = Session(graph_of(inputs, attributes, ("tokens", 1024)), threads=1)
    results, memory, places = [session.forward(given)["y"]], [private() - start], [session.placement["moe"]]
    for _ in range(2):
        session.backward({"y": np.ones((3, 1024), np.float32)}, wanted=["x"])
        results.append(session.forward(given)["y"])
        memory.append(private() - start)
        places.append(session.placement["moe"])
    notes = [str(finding) for finding in session.findings]
    for _ in range(20):
        results.append(session.forward(given)["y"])
        memory.append(private() - start)
        places.append(session.placement["moe"])
apart = max(float(np.abs(result - results[0]).max() / np.abs(results[0]).max()) for result in results)
print(json.dumps({"memory": memory, "places": places, "notes": notes, "apart": apart}))
"""


def test_without_numba_onnx_runtimes_copies_are_given_back_as_long_as_there_are_backward_passes():
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc")
    words = [sys.executable, "-c", COPIES]
    found = json.loads(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert found["places"] == ["onnxruntime", *["numpy"] * 17, *["onnxruntime"] * 5]
    assert any("copy of its weights is given back meanwhile" in note for note in found["notes"])
    packed, memory = 96, found["memory"]  # megabytes
    assert memory[0] > 0.8 * packed and memory[-1] > 0.8 * packed
    assert max(memory[1:3]) < memory[0] - 0.6 * packed
    assert found["apart"] < 1e-5


def test_a_session_stays_in_numpy_if_there_is_no_memory_to_go_back(monkeypatch):
    monkeypatch.setattr(compiled_tiles, "is_installed", lambda: False)
    monkeypatch.setattr("qmoe_node.node.LARGE_COPY", 0)
    monkeypatch.setattr("qmoe_node.grad.WORTH_BYTES", 0)
    inputs, attributes = make_layer(hidden=64, inter=64, experts=4)
    session = Session(graph_of(inputs, attributes))
    expected = session.forward(fed(3))["y"]
    session.backward({"y": np.ones((3, 64), np.float32)})

    def full(*_):
        raise MemoryError

    def passes(count):
        for _ in range(count):
            assert np.abs(session.forward(fed(3))["y"] - expected).max() <= 1e-6 * np.abs(expected).max()
        return session.placement

    with monkeypatch.context() as patched:
        patched.setattr("runtime.backends.native.NativePiece.__init__", full)
        assert passes(40) == {"moe": "numpy"}
    assert passes(40) == {"moe": "onnxruntime"}


def test_numba_that_does_not_load_is_reported_and_done_without(monkeypatch):
    compiled_tiles.compiled_loops.cache_clear()
    monkeypatch.setitem(sys.modules, "qmoe_node.compiled", None)
    monkeypatch.delattr("qmoe_node.compiled")
    inputs, attributes = make_layer(hidden=64, inter=64, experts=4)
    expected = Session(graph_of(inputs, attributes), "numpy").forward
    session = Session(graph_of(inputs, attributes))
    with pytest.warns(RuntimeWarning, match="numba is installed, but does not load"):
        found = session.forward(fed(20))["y"]
    assert np.abs(found - expected(fed(20))["y"]).max() <= 1e-6 * np.abs(found).max()
    compiled_tiles.compiled_loops.cache_clear()


def test_what_is_kept_is_kept_for_the_text_of_the_intrinsics():
    found = compiled.loops(4, 8, 0)
    for function in (found.project, found.unpack, found.scale_sums):
        assert compiled._SOURCE in [cell.cell_contents for cell in function.py_func.__closure__]


def test_numba_that_compiles_nothing_is_done_without(monkeypatch):
    monkeypatch.setattr("numba.config.DISABLE_JIT", True)
    monkeypatch.delitem(sys.modules, "qmoe_node.compiled")
    with pytest.raises(ImportError, match="NUMBA_DISABLE_JIT"):
        importlib.import_module("qmoe_node.compiled")


def _in_a_child(queue, inputs, attributes):
    queue.put(qmoe_node.evaluate(inputs, attributes))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(kernel, "WORTH_THREADS", 0)
    inputs, attributes = make_layer(tokens=8, hidden=64, inter=64)
    with observed(Control(), 2):
        expected = qmoe_node.evaluate(inputs, attributes)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_in_a_child, args=(queue, inputs, attributes))
        child.start()
        np.testing.assert_array_equal(queue.get(timeout=60), expected)
        child.join()


@pytest.mark.parametrize("constants", [{"router_probs"}, {"input"}, {"input", "router_probs"}])
def test_tokens_and_logits_may_be_constants(constants):
    inputs, attributes = make_layer(hidden=64, inter=64, experts=4)
    given = {"input": "x", "router_probs": "router"}
    graph = graph_of(inputs, attributes, (5, 64))
    for port in constants:
        graph.remove(given[port])
        graph.add("Initializer", given[port], parameters={"tensor": Tensor.from_array(inputs[port])})
        graph.wire(f"{given[port]}.value", f"moe.{port}")
    feeds = {name: inputs[port] for port, name in given.items() if port not in constants}
    expected = qmoe_node.evaluate(inputs, attributes)
    found = Session(graph).forward(feeds)["y"]
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def _products_in_a_child(queue):
    queue.put([own["num_threads"] for own in threadpool_info() if own["user_api"] == "blas"])
    queue.put([result for _, result in in_order(lambda item: item, range(9), 2)])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_forked_amid_work_has_its_products_threads():
    before = [own["num_threads"] for own in threadpool_info() if own["user_api"] == "blas"]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    for _ in in_order(lambda item: item, range(1), 2):
        child = context.Process(target=_products_in_a_child, args=(queue,))
        child.start()
        assert queue.get(timeout=60) == before
        assert queue.get(timeout=60) == list(range(9))
        child.join()


def within(seconds, work):
    """The result of work that must not take for ever."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it waits for what nobody does"
    return found[0]


def test_work_within_work_may_end_early():
    def inner(item):
        parts = in_order(lambda part: part, range(10), 2)
        next(parts)
        parts.close()
        return item

    assert within(30, lambda: [result for _, result in in_order(inner, range(4), 2)]) == [0, 1, 2, 3]


def test_who_fails_does_not_wait_for_others():
    go_on = threading.Event()
    other = threading.Thread(target=lambda: list(in_order(lambda _: go_on.wait(60), range(4), 2)))

    def fail(item):
        raise ValueError(item)

    def failed():
        with pytest.raises(ValueError, match="0"):
            list(in_order(fail, range(4), 2))
        return True

    other.start()
    try:
        assert within(30, failed)
    finally:
        go_on.set()
        other.join()


def test_a_gradient_leaves_no_second_copy_of_the_weights(monkeypatch):
    monkeypatch.setattr("qmoe_node.grad.WORTH_BYTES", 0)
    inputs, attributes = make_layer(hidden=64, inter=64, experts=5, block_size=32)
    own = []
    evaluate = QMoE.evaluate
    monkeypatch.setattr(QMoE, "evaluate", staticmethod(lambda *given: own.append(1) or evaluate(*given)))
    session = Session(graph_of(inputs, attributes))
    before = session.forward(fed(1, experts=5))["y"]
    assert not own
    session.backward({"y": np.ones_like(before)}, ["x"])
    after = session.forward(fed(1, experts=5))["y"]
    assert own, "NumPy's kernel reads the weights as they are"
    assert np.abs(after - before).max() <= 1e-6 * np.abs(before).max()
