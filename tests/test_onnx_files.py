"""ONNX files: what comes in goes out again, bad files are refused, and the old file survives every failure."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtime.attributes import Typed
from runtime.compile import compile_graph
from runtime.errors import FileError, GraphError
from runtime.files import load, save
from runtime.graph import Graph, PortRef
from runtime.onnx_files import TARGETS, load_onnx, save_onnx
from runtime.onnx_import import import_model
from runtime.tensors import Tensor
from tests.onnx_compare import differences, value_info

DATA = Path(__file__).parent / "data"
GENAI = DATA / "genai_gptoss_int4"
FLOAT = TensorProto.FLOAT


def through(model: onnx.ModelProto, folder: Path) -> tuple[onnx.ModelProto, Graph]:
    """A model after import and export, and its document."""
    source, result = folder / "source.onnx", folder / "result.onnx"
    source.write_bytes(model.SerializeToString())
    graph = load_onnx(source)
    save_onnx(graph, result, "schema")
    again = load_onnx(result)
    assert (again.nodes, again.section("info"), again.section("extra")) == (
        graph.nodes,
        graph.section("info"),
        graph.section("extra"),
    )
    assert again == graph
    return onnx.load(result), graph


def value(name: str, shape: Any = ("n", 4), element: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def model_of(nodes: list[onnx.NodeProto], inputs: Any, outputs: Any, opset: int = 21, **more: Any) -> onnx.ModelProto:
    functions = more.pop("functions", [])
    imports = more.pop("imports", [])
    graph = helper.make_graph(nodes, "g", inputs, outputs, **more)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), *imports],
        functions=functions,
        producer_name="somebody",
        ir_version=11,
    )


def outputs_of(model: onnx.ModelProto | str, feeds: dict[str, np.ndarray]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feeds)


# -- unharmed ---------------------------------------------------------------------------------------------------------


def test_a_real_model_comes_through_unharmed(tmp_path: Path) -> None:
    graph = load_onnx(GENAI / "model.onnx")
    save_onnx(graph, tmp_path / "out.onnx", "schema")
    before = onnx.load(GENAI / "model.onnx", load_external_data=False)
    after = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert differences(before, after, (GENAI, tmp_path)) == []
    told, kept = value_info(before.graph), value_info(after.graph)
    assert kept.items() <= told.items()
    # The exporter says that these two constants of one element have no dimensions.
    assert set(told) - set(kept) == {"/model/constants/INT64/[1]", "/model/constants/INT64/[-1, 8]"}
    reference = np.load(GENAI / "ort_reference.npz")
    feeds = {key[3:]: reference[key] for key in reference if key.startswith("in.")}
    names = [output.name for output in after.graph.output]
    results = outputs_of(str(tmp_path / "out.onnx"), feeds)
    originals = outputs_of(str(GENAI / "model.onnx"), feeds)
    for name, result, original in zip(names, results, originals, strict=True):
        np.testing.assert_array_equal(result, original)
        np.testing.assert_allclose(result, reference[f"out.{name}"], rtol=1e-4, atol=1e-4)


CASES = """
test_if test_if_opt test_if_seq test_loop11 test_loop13_seq test_loop16_seq_none test_scan_sum test_scan9_sum
test_sequence_map_add_2_sequences test_sequence_insert_at_back test_optional_get_element_optional_sequence
test_optional_has_element_empty_no_input_name_optional_input test_split_to_sequence_1 test_identity_opt
test_adagrad_multiple test_string_concat test_strnormalizer_nostopwords_nochangecase test_constant
test_lstm_with_peepholes
test_cast_FLOAT_to_INT4 test_cast_FLOAT16_to_FLOAT8E4M3FN test_dequantizelinear_uint4 test_castlike_BFLOAT16_to_FLOAT
test_gelu_tanh_1_expanded test_layer_normalization_2d_axis0_expanded test_affine_grid_2d test_batchnorm_epsilon
test_training_dropout_mask test_unique_sorted_with_axis test_ai_onnx_ml_tree_ensemble_single_tree test_momentum
test_ai_onnx_ml_label_encoder_string_int test_split_variable_parts_2d_opset18
test_cumsum_1d test_resize_upsample_sizes_nearest
""".split()


@lru_cache(maxsize=1)
def node_cases() -> dict[str, Any]:
    from onnx.backend.test.case.node import collect_testcases

    return {case.name: case for case in collect_testcases(None)}


@pytest.mark.parametrize("name", CASES)
def test_onnx_own_node_models_come_through_unharmed(name: str) -> None:
    from runtime.compile import compile_graph
    from runtime.onnx_export import parts_of

    model = node_cases()[name].model
    graph = import_model(model)
    checker = graph.checker
    compiled = compile_graph(graph)
    ports = {name: port for port, name in compiled.values.items()}
    written = parts_of(compiled.model, lambda name: checker.type_of(ports[name])).message
    assert differences(model, written) == []
    assert import_model(written) == graph


def test_functions_come_through_with_attributes_references_and_overloads(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 11, opset_import: ["" : 21, "local" : 1], producer_name: "somebody", doc_string: "what it is">
        agraph (float[N, 4] x, bool c) => (float[N, 4] y)
        <float[4] w = {1.0, 2.0, 3.0, 4.0}>
        {
            h = local.scaled <alpha = 0.5> (x, w)
            y = If (c) <
                then_branch = t () => (float[N, 4] a) { a = Add (h, w) },
                else_branch = e () => (float[N, 4] b) { b = local.twice (h) }
            >
        }
        <domain: "local", opset_import: ["" : 21, "local" : 1]>
        scaled <alpha> (a, b) => (c) {
            k = Constant <value_float: float = @alpha> ()
            p = Mul (a, k)
            q = local.twice (p)
            c = Add (q, b)
        }
        <domain: "local", opset_import: ["" : 21]>
        twice <unused: int = 3> (a) => (b) { b = Add (a, a) }
        """
    )
    written, graph = through(model, tmp_path)
    assert differences(model, written) == []
    assert set(graph.section("functions")) == {"local::scaled", "local::twice"}
    feeds = {"x": np.ones((2, 4), np.float32)}
    for condition in (True, False):
        both = [outputs_of(m, {**feeds, "c": np.array(condition)})[0] for m in (model, written)]
        np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("version", [8, 9, 11])
@pytest.mark.parametrize("target", TARGETS)
def test_what_a_file_says_of_a_function_and_its_values_is_kept(tmp_path: Path, version: int, target: str) -> None:
    leaky = helper.make_node("LeakyRelu", ["a"], ["h"])
    leaky.attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    body = [leaky, helper.make_node("Identity", ["h"], ["b"])]
    function = helper.make_function("f.d", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)], ["alpha"])
    function.doc_string = "what it does"
    function.metadata_props.add(key="who", value="me")
    function.value_info.extend([value("b"), value("h", None), value("a"), value("nobody")])
    function.value_info[0].doc_string = "the result"
    function.value_info[2].metadata_props.add(key="unit", value="metre")
    model = model_of(
        [helper.make_node("F", ["x"], ["y"], domain="f.d", alpha=0.5)],
        [value("x")],
        [value("y")],
        opset=17,
        functions=[function],
        imports=[helper.make_opsetid("f.d", 1)],
    )
    model.ir_version = version
    source, snippet, result = (tmp_path / name for name in ("source.onnx", "graph.yaml", "result.onnx"))
    source.write_bytes(model.SerializeToString())
    save(load(source), snippet)
    graph = load(snippet)
    assert graph == load(source)
    save(graph, result, target=target)
    (written,) = onnx.load(result).functions
    assert (written.doc_string, written.metadata_props) == (function.doc_string, function.metadata_props)
    infos = {info.name: info for info in function.value_info}
    assert {info.name: info for info in written.value_info} == infos
    assert len(written.value_info) == len(infos)
    assert len(onnx.load(result).graph.value_info) == 0
    feeds = {"x": np.array([[-1, 2, -3, 4]], np.float32)}
    np.testing.assert_array_equal(outputs_of(model, feeds), outputs_of(str(result), feeds))


def test_layout_and_types_in_a_function_are_kept(tmp_path: Path) -> None:
    body = Graph(opsets={"": 17})
    body.add("Input", "a", parameters={"type": "tensor(float)"}, layout={"position": [1, 2]})
    body.add("Relu", "r", layout={"position": [3, 4]})
    body.add("Output", "b", layout={"position": [5, 6]})
    body.wire("a.value", "r.X")
    body.wire("r.Y", "b.value")
    graph = Graph("g", opsets={"": 17, "f.d": 1})
    graph.set("", "f.d::F", body, section="functions")
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": [2]})
    graph.add("f.d.F", "f")
    graph.add("Output", "y")
    graph.wire("x.value", "f.input.0")
    graph.wire("f.output.0", "y.value")
    save_onnx(graph, tmp_path / "m.onnx")
    again = load_onnx(tmp_path / "m.onnx").section("functions")["f.d::F"]
    assert [dict(state.layout) for state in again.nodes.values()] == [dict(s.layout) for s in body.nodes.values()]
    assert again.nodes["a"].extra == {"values": {"value": {"type": "tensor(float)"}}}
    assert outputs_of(str(tmp_path / "m.onnx"), {"x": np.array([-1, 1], np.float32)})[0].tolist() == [0, 1]


def map_type() -> onnx.TypeProto:
    return helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(FLOAT, ["a, b", 2]))


def sparse_tensor() -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.array([1, 2], np.float32), "values"),
        indices=numpy_helper.from_array(np.array([3, 5]), "indices"),
        dims=[10],
    )


@pytest.mark.parametrize(
    "type_",
    [
        onnx.TypeProto(opaque_type={"domain": "d", "name": "n"}),
        onnx.TypeProto(sequence_type={"elem_type": {"opaque_type": {"name": "n"}}}),
        helper.make_tensor_type_proto(99, ["n"]),
    ],
    ids=["opaque", "sequence", "element"],
)
def test_values_of_types_that_nobody_knows_are_kept(type_: onnx.TypeProto, tmp_path: Path) -> None:
    infos = {name: helper.make_value_info(name, type_) for name in "xhzy"}
    body = helper.make_graph([helper.make_node("Odd", ["h"], ["z"], domain="some.body")], "b", [], [infos["z"]])
    nodes = [
        helper.make_node("Odd", ["x"], ["h"], domain="some.body"),
        helper.make_node("Odd", ["h"], ["y"], domain="some.body", body=body),
    ]
    imports = [helper.make_opsetid("some.body", 1)]
    model = model_of(nodes, [infos["x"]], [infos["y"]], imports=imports, value_info=[infos["h"]])
    written, graph = through(model, tmp_path)
    assert differences(model, written) == []
    assert value_info(written.graph) == value_info(model.graph)
    save(graph, tmp_path / "g.yaml")
    assert load(tmp_path / "g.yaml") == graph
    for target in TARGETS:
        save(graph, tmp_path / "m.onnx", target=target)
        assert differences(model, onnx.load(tmp_path / "m.onnx")) == []


@pytest.mark.parametrize(
    ("indices", "values"),
    [([3, 5], [1, 2]), ([5, 3], [1, 2]), ([[0, 3], [1, 1]], [1, 2]), ([1, 3, 5], [-0.0, 0, 2])],
    ids=["as usual", "in another order", "by dimension", "with zeros"],
)
def test_sparse_initializers_keep_their_form(indices: Any, values: Any, tmp_path: Path) -> None:
    sparse = onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.array(values, np.float32), "s"),
        indices=numpy_helper.from_array(np.array(indices, np.int64), "its indices"),
        dims=[2, 4],
    )
    for part in (sparse.values, sparse.indices):
        part.doc_string = "said"
        part.metadata_props.add(key="a", value="b")
    node = helper.make_node("Add", ["x", "s"], ["y"])
    model = model_of([node], [value("x")], [value("y", None)], sparse_initializer=[sparse])
    written, graph = through(model, tmp_path)
    assert differences(model, written) == []
    save(graph, tmp_path / "g.yaml")
    assert load(tmp_path / "g.yaml") == graph
    graph.set("s", "tensor", Tensor.from_array(np.arange(4, dtype=np.float32)))
    save(graph, tmp_path / "m.onnx", target="schema")
    (changed,) = onnx.load(tmp_path / "m.onnx").graph.sparse_initializer
    assert (changed.dims, numpy_helper.to_array(changed.indices).tolist()) == ([4], [1, 2, 3])
    assert numpy_helper.to_array(changed.values).tolist() == [1, 2, 3]


@pytest.mark.parametrize("target", TARGETS)
def test_outputs_that_are_listed_again_are_listed_again(target: str, tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    again = value("y")
    again.doc_string = "again"
    model = model_of(nodes, [value("x")], [value("y"), value("z"), again, value("y")])
    written, graph = through(model, tmp_path)
    assert differences(model, written) == []
    save(graph, tmp_path / "g.yaml")
    assert load(tmp_path / "g.yaml") == graph
    save(graph, tmp_path / "m.onnx", target=target)
    assert [info.name for info in onnx.load(tmp_path / "m.onnx").graph.output] == ["y", "z", "y", "y"]
    feeds = {"x": np.array([[-1, 2, -3, 4]], np.float32)}
    np.testing.assert_array_equal(outputs_of(model, feeds), outputs_of(str(tmp_path / "m.onnx"), feeds))
    graph.set("y", "name", "other")
    graph.set("relu_0", "specified_outputs_name", ["other"])
    save(graph, tmp_path / "m.onnx", target=target)
    assert [info.name for info in onnx.load(tmp_path / "m.onnx").graph.output] == ["other", "z"]


@pytest.mark.parametrize("target", TARGETS)
def test_outputs_that_a_function_or_subgraph_lists_again_keep_their_places(target: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        agraph (float[N] x, bool c) => (float[N] a, float[N] b, float[N] d, float[N] e)
        {
            a, b = If (c) <
                then_branch = t () => (float[N] y, float[N] y) { y = Relu (x) },
                else_branch = e () => (float[N] z, float[N] w) { z = Neg (x) w = Exp (x) }
            >
            d, e = local.twice (x)
        }
        <domain: "local", opset_import: ["" : 17]>
        twice (a) => (b, b) { b = Add (a, a) }
        """
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    graph = load(tmp_path / "m.onnx")
    save(graph, tmp_path / "result.onnx", target=target)
    x = np.array([-1, 2], np.float32)
    results = outputs_of(str(tmp_path / "result.onnx"), {"x": x, "c": np.array(True)})
    np.testing.assert_array_equal(results, [[0, 2], [0, 2], [-2, 4], [-2, 4]])


def described_tensor(content: Any) -> TensorProto:
    tensor = numpy_helper.from_array(np.array(content), "its name")
    tensor.doc_string = "its doc"
    tensor.metadata_props.add(key="its", value="metadata")
    return tensor


ODD_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "SPARSE_TENSOR": {"sparse_tensor": sparse_tensor()},
    "SPARSE_TENSORS": {"sparse_tensors": [sparse_tensor(), sparse_tensor()]},
    "TENSOR": {"t": described_tensor([1.0])},
    "TENSOR of texts": {"t": described_tensor(["a"])},
    "TENSORS": {"tensors": [numpy_helper.from_array(np.array(1)), described_tensor([2])]},
    "STRING": {"s": b"\xff"},
    "STRINGS": {"strings": [b"\xff", b"ok"]},
    "TYPE_PROTO of a map": {"tp": map_type()},
    "TYPE_PROTO of nothing": {"tp": onnx.TypeProto()},
    "TYPE_PROTO of a shape": {"tp": helper.make_tensor_type_proto(0, [2])},
    "TYPE_PROTO of a denotation": {"tp": onnx.TypeProto(tensor_type={"elem_type": FLOAT}, denotation="IMAGE")},
    "TYPE_PROTO of an opaque kind": {"tp": onnx.TypeProto(opaque_type={"domain": "d", "name": "n"})},
    "TYPE_PROTOS": {"type_protos": [map_type(), onnx.TypeProto(), helper.make_tensor_type_proto(FLOAT, None)]},
}


@pytest.mark.parametrize("where", ["node", "function", "subgraph"])
@pytest.mark.parametrize("case", ODD_ATTRIBUTES)
def test_attributes_that_few_readers_know_are_kept(tmp_path: Path, case: str, where: str) -> None:
    kind = onnx.AttributeProto.AttributeType.Value(case.split()[0])
    attribute = onnx.AttributeProto(name="odd", type=kind, doc_string="said", **ODD_ATTRIBUTES[case])
    node = helper.make_node("Odd", ["x"], ["y"], domain="some.body")
    functions = []
    if where == "node":
        node.attribute.append(attribute)
    elif where == "function":
        body = [helper.make_node("Odd", ["x"], ["y"], domain="other")]
        body[0].attribute.append(attribute)
        functions = [helper.make_function("some.body", "Odd", ["x"], ["y"], body, [helper.make_opsetid("other", 1)])]
        functions[0].attribute_proto.append(attribute)
    else:
        inner = helper.make_node("Odd", ["x"], ["z"], domain="some.body")
        inner.attribute.append(attribute)
        node.attribute.append(helper.make_attribute("body", helper.make_graph([inner], "b", [], [value("z")])))
    imports = [helper.make_opsetid("some.body", 1)] + [helper.make_opsetid("other", 1)] * len(functions)
    model = model_of([node], [value("x")], [value("y")], functions=functions, imports=imports)
    written, graph = through(model, tmp_path)
    assert differences(model, written) == []
    save(graph, tmp_path / "g.yaml")
    assert load(tmp_path / "g.yaml") == graph
    for target in TARGETS:
        save(graph, tmp_path / "m.onnx", target=target)
        assert differences(model, onnx.load(tmp_path / "m.onnx")) == []


@pytest.mark.parametrize(
    "wrong",
    [
        Typed("sparse_tensor", b"\xff"),
        Typed("sparse_tensors", 3),
        Typed("type", "float"),
        Typed("types", [3]),
        Typed("strings", [3]),
        Typed("str", 3),
        Typed("floats", ["a"]),
        Typed("graph", None),
    ],
)
def test_a_value_that_is_not_of_the_kind_it_names_is_refused(wrong: Typed, tmp_path: Path) -> None:
    graph = Graph("g", opsets={"": 21, "some.body": 1})
    graph.add("some.body.Odd", "odd", parameters={"a": wrong})
    graph.add("Output", "y")
    graph.wire("odd.output.0", "y.value")
    with pytest.raises(GraphError, match=rf"odd.a: expected {wrong.kind}, got"):
        save(graph, tmp_path / "m.onnx")


def test_captures_through_two_levels_and_names_that_shadow_nothing(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        agraph (float[N] x, bool c, bool d) => (float[N] y, float[N] z)
        {
            h = Relu (x)
            y = If <
                then_branch = t () => (float[N] a) {
                    m = Neg (h)
                    a = If (d) <
                        then_branch = tt () => (float[N] aa) { aa = Add (m, h) },
                        else_branch = te () => (float[N] ab) { ab = Identity (x) }
                    >
                },
                else_branch = e () => (float[N] b) { b = Mul (h, h) }
            > (c)
            z = Exp (y)
        }
        """
    )
    written, _ = through(model, tmp_path)
    assert differences(model, written) == []
    feeds = {"x": np.array([1.0, -2.0], np.float32)}
    for c in (True, False):
        for d in (True, False):
            more = {"c": np.array(c), "d": np.array(d)}
            for one, two in zip(outputs_of(model, feeds | more), outputs_of(written, feeds | more), strict=True):
                np.testing.assert_array_equal(one, two)


def test_all_that_a_model_can_say_is_kept(tmp_path: Path) -> None:
    unknown = helper.make_node("Weird.Op", ["x", "", "w", "s"], ["u", "", "v"], name="a/b", domain="some.body")
    for key, thing in {
        "number": 3,
        "real": 2.0,
        "text": "no",
        "raw": b"\xff\xfe",
        "reals": [1.0, 2.0],
        "numbers": [1, 2],
        "texts": ["a", "b"],
        "name": "mine",
        "training?": 7,
        "part": helper.make_graph([], "empty", [], []),
        "tensor": numpy_helper.from_array(np.array([b"\xff", "é".encode()], dtype=object)),
        "tensors": [numpy_helper.from_array(np.array(1 + 2j, np.complex64))],
        "type": helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.INT4, None)),
    }.items():
        unknown.attribute.append(helper.make_attribute(key, thing))
    unknown.attribute.append(helper.make_attribute("nothing", [], attr_type=onnx.AttributeProto.INTS))
    unknown.attribute.append(onnx.AttributeProto(name="sparse", type=onnx.AttributeProto.SPARSE_TENSOR))
    del unknown.attribute[-1]  # sparse tensors are constants of a Constant
    unknown.attribute[0].doc_string = "a number"
    unknown.doc_string, unknown.overload = "what it does", "second"
    unknown.metadata_props.add(key="who", value="me")
    unknown.device_configurations.add(configuration_id="gpu", pipeline_stage=2)
    indices = numpy_helper.from_array(np.array([[0, 1], [1, 3]], np.int64))
    sparse = onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.array([1.5, 2.5], np.float32), "s"),
        indices=numpy_helper.from_array(np.array([1, 7], np.int64)),
        dims=[2, 4],
    )
    in_constant = onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.array([4.0, 5.0], np.float32)), indices=indices, dims=[2, 4]
    )
    same = [helper.make_node("Relu", [name], [f"{name}_out"], name="same") for name in ("x", "w")]
    weights = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(2, 4), "w")
    weights.doc_string = "weights"
    weights.metadata_props.add(key="trained", value="yes")
    model = model_of(
        [unknown, *same, helper.make_node("Constant", [], ["k"], sparse_value=in_constant)],
        [value("x", ["batch,size", None]), value("w", ["rows", 4])],
        [value("u", None), value("v", ["?", 2]), value("x_out"), value("k", (2, 4)), value("x", ["batch,size", None])],
        imports=[helper.make_opsetid("some.body", 7), helper.make_opsetid("unused", 2)],
        initializer=[weights],
        sparse_initializer=[sparse],
        value_info=[value("w_out", (2, 4)), value("nobody", (1,))],
        doc_string="of the graph",
    )
    model.graph.input.append(
        helper.make_value_info(
            "m", helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(FLOAT, []))
        )
    )
    model.graph.input[0].type.denotation = "IMAGE"
    model.graph.input[0].doc_string = "pixels"
    model.graph.input[0].metadata_props.add(key="unit", value="none")
    model.graph.output[1].metadata_props.add(key="unit", value="metre")
    model.graph.value_info[0].metadata_props.add(key="seen", value="no")
    model.graph.metadata_props.add(key="graph", value="one")
    model.graph.node[3].attribute[0].doc_string = "mostly zeros"
    for name in ("w_out", "nobody"):
        annotation = model.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    model.metadata_props.add(key="model", value="two")
    model.producer_version, model.domain, model.model_version, model.doc_string = "1.2", "org", 5, "of the model"
    model.training_info.add(algorithm=helper.make_graph([], "step", [], []))
    model.configuration.add(name="gpu", num_devices=2)
    written, graph = through(model, tmp_path)
    assert differences(model, written) == []
    told, kept = value_info(model.graph), value_info(written.graph)
    assert {name: info for name, info in kept.items() if name != "s"} == told
    assert [node.name for node in written.graph.node[:3]] == ["a/b", "same", "same"]
    assert graph.nodes["s"].parameters["tensor"].shape == (2, 4)


ELEMENTS = [
    np.float32, np.float64, np.float16, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32,
    np.uint64, np.bool_, np.complex64, np.complex128, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu,
    ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float4_e2m1fn, ml_dtypes.int2, ml_dtypes.uint2,
]  # fmt: skip


@pytest.mark.parametrize("dtype", ELEMENTS, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "listed"])
def test_initializers_of_every_element_type(tmp_path: Path, dtype: Any, raw: bool) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    tensor = numpy_helper.from_array(array, "w") if raw else helper.make_tensor("w", kind, [2, 3], array.reshape(-1))
    empty = helper.make_tensor("none", kind, [0, 3], [])
    model = model_of([], [], [value("w", (2, 3), kind), value("none", (0, 3), kind)], initializer=[tensor, empty])
    model.ir_version = 13
    written, graph = through(model, tmp_path)
    assert differences(model, written) == []
    assert graph.nodes["w"].parameters["tensor"].array().tobytes() == array.tobytes()


def test_a_file_of_ours_gives_the_same_document_back(tmp_path: Path) -> None:
    graph = Graph("block", opsets={"": 21})
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["tokens", 4]}, layout={"position": [1, 2.5]})
    tensor = Tensor.from_array(np.ones((4, 4), np.float32))
    own = {"tensor": tensor, "training_type": "trainable weight", "name": "layers.0.w"}
    graph.add("Initializer", "w", parameters=own, layout={"position": [0, 0], "colour": "red"})
    graph.add("MatMul", "product", parameters={"lda coeff": 0.5, "training?": False, "name": "a b"})
    graph.add("Relu", "relu", layout={"position": [3, 4]})
    graph.add("Output", "y", layout={"position": [9, 9]})
    graph.add("Output", "z", parameters={"name": "other", "type": "tensor(float)"})
    for source, target in (("x.value", "product.A"), ("w.value", "product.B"), ("product.Y", "relu.X")):
        graph.wire(source, target)
    graph.wire("relu.Y", "y.value")
    graph.wire("product.Y", "z.value")
    graph.set("", "groups", [["product", "relu"]], section="layout")
    save_onnx(graph, tmp_path / "a.onnx", "schema")
    again = load_onnx(tmp_path / "a.onnx")
    assert dict(again.nodes) | {"y": again.nodes["y"]} == {
        **graph.nodes,
        # An ONNX file says the types of its outputs.
        "y": graph.nodes["y"].__class__(
            "y", "Output", {"type": "tensor(float)", "shape": ["tokens", 4]}, {"position": [9, 9]}
        ),
    }
    assert again.wires == graph.wires
    assert again.section("layout") == graph.section("layout")
    assert again.section("info") == graph.section("info")


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_random_models_come_through_unharmed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    names = st.text("abc/.:_- é", min_size=1, max_size=6)
    values = ["x", "w"]
    nodes = []
    for _ in range(data.draw(st.integers(1, 6))):
        operator = data.draw(st.sampled_from(["Add", "Relu", "Max", "Clip", "LayerNormalization", "Split", "Custom"]))
        taken = [data.draw(st.sampled_from(values)) for _ in range({"Add": 2, "Max": 3, "Custom": 3}.get(operator, 1))]
        inputs = {"Clip": [taken[0], "", "one"], "LayerNormalization": [taken[0], "row"]}.get(operator, taken)
        made = [data.draw(names) + str(len(values))]
        values += made
        if operator == "Split":
            made += [f"{made[0]}!", ""][: data.draw(st.integers(1, 2))]
            values += made[1:2]
        domain = "some.where" if operator == "Custom" else ""
        attributes = {"num_outputs": len([m for m in made if m])} if operator == "Split" else {}
        node = helper.make_node(operator, inputs, made, data.draw(names | st.just("")), domain=domain, **attributes)
        nodes.append(node)
    constants = [
        numpy_helper.from_array(np.ones((4, 4), np.float32), "w"),
        numpy_helper.from_array(np.float32(1), "one"),
        numpy_helper.from_array(np.ones(4, np.float32), "row"),
    ]
    given_out = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
    model = model_of(
        nodes,
        [value("x", (4, 4))],
        [value(name, None) for name in given_out],
        initializer=constants,
        imports=[helper.make_opsetid("some.where", 1)],
    )
    for output in model.graph.output:
        output.ClearField("type")
        output.type.tensor_type.elem_type = FLOAT
    graph = import_model(model)
    from runtime.compile import compile_graph
    from runtime.onnx_export import parts_of
    from runtime.types import TensorType

    written = parts_of(compile_graph(graph).model, lambda name: TensorType()).message
    assert differences(model, written) == []
    assert import_model(written) == graph


# -- data files -------------------------------------------------------------------------------------------------------


def external_model(folder: Path, location: str = "m.data", array: np.ndarray | None = None, **entries: str) -> Path:
    array = np.arange(12, dtype=np.float32).reshape(3, 4) if array is None else array
    tensor = numpy_helper.from_array(array, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, "offset": "4", "length": str(array.nbytes), **entries}.items():
        tensor.external_data.add(key=key, value=text)
    model = model_of(
        [helper.make_node("MatMul", ["w", "x"], ["y"])],
        [value("x", (4, 2))],
        [value("y", (3, 2))],
        initializer=[tensor],
    )
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def write_data(path: Path) -> None:
    path.write_bytes(b"skip" + np.arange(12, dtype=np.float32).tobytes())


def test_data_files_are_mapped(tmp_path: Path) -> None:
    write_data(tmp_path / "m.data")
    tensor = load_onnx(external_model(tmp_path)).nodes["w"].parameters["tensor"]
    assert tensor.is_mapped
    np.testing.assert_array_equal(tensor.array(), np.arange(12, dtype=np.float32).reshape(3, 4))


def test_more_than_two_gigabytes_load_without_being_read(tmp_path: Path) -> None:
    tensor = helper.make_tensor("w", TensorProto.UINT8, [0], b"", raw=True)
    tensor.ClearField("raw_data")
    tensor.dims[:] = [5, 1 << 30]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="huge.bin")
    with open(tmp_path / "huge.bin", "wb") as file:
        file.truncate(5 << 30)  # a hole: no such room is taken
    model = model_of([], [], [value("w", None, TensorProto.UINT8)], initializer=[tensor])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    loaded = load_onnx(tmp_path / "m.onnx").nodes["w"].parameters["tensor"]
    assert loaded.is_mapped and loaded.shape == (5, 1 << 30)


@pytest.mark.parametrize(
    ("location", "entries", "message"),
    [
        ("missing.data", {}, "no such file"),
        ("../m.data", {}, "own folder"),
        ("sub/../../m.data", {}, "own folder"),
        ("..\\m.data", {}, "own folder"),
        ("/etc/passwd", {}, "own folder"),
        ("C:\\m.data", {}, "own folder"),
        ("link.data", {}, "link that leaves"),
        ("linked/m.data", {}, "link that leaves"),
        ("", {}, "not named"),
        (".", {}, "no such file"),
        ("m.data", {"offset": "8"}, "needs bytes"),
        ("m.data", {"offset": "-4"}, "needs bytes"),
        ("m.data", {"offset": "many"}, "no number"),
        ("m.data", {"length": "47"}, "needs 48 bytes"),
    ],
)
def test_bad_data_files_are_refused(tmp_path: Path, location: str, entries: dict[str, str], message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_data(tmp_path / "m.data")
    write_data(folder / "m.data")
    (folder / "sub").mkdir()
    (folder / "link.data").symlink_to(tmp_path / "m.data")
    (folder / "linked").symlink_to(tmp_path)
    path = external_model(folder, location, **entries)
    with pytest.raises(FileError, match=message):
        load_onnx(path)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.onnx_files.LARGEST_IN_ONE", 1000)
    monkeypatch.setattr("runtime.onnx_export.BULK", 64)


@pytest.mark.usefixtures("small_limits")
def test_large_models_go_to_two_files_and_over_themselves(tmp_path: Path) -> None:
    arrays = {f"w{index}": np.random.default_rng(index).normal(size=(9, 50)).astype(np.float32) for index in range(3)}
    names = ["x", "a", "b", "y"]
    nodes = [helper.make_node("Add", [names[i], f"w{i}"], [names[i + 1]]) for i in range(3)]
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    model = model_of(nodes, [value("x", (9, 50))], [value("y", (9, 50))], initializer=constants)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    feeds = {"x": np.ones((9, 50), np.float32)}
    expected = outputs_of(model, feeds)[0]
    for location in ("m.onnx.data", "m.onnx.1.data", "m.onnx.data"):
        graph = load_onnx(path)
        save_onnx(graph, path, "schema")
        assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", location}
        again = load_onnx(path)
        assert again.nodes["w1"].parameters["tensor"].is_mapped
        assert again == graph  # whose tensors are mapped from a file that is gone by now
        written = onnx.load(path, load_external_data=False)
        assert written.metadata_props.pop().value == location
        assert differences(model, written, (tmp_path, tmp_path)) == []
        np.testing.assert_array_equal(outputs_of(str(path), feeds)[0], expected)


def test_large_tensors_stream_into_one_file_over_itself(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(300, 300))
    write = numpy_helper.from_array(array, "w")
    model = model_of(
        [helper.make_node("Neg", ["w"], ["y"])], [], [value("y", (300, 300), TensorProto.DOUBLE)], initializer=[write]
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    for _ in range(2):
        save_onnx(load_onnx(path), path, "schema")
        assert differences(model, onnx.load(path)) == []
    np.testing.assert_array_equal(outputs_of(str(path), {})[0], -array)


# -- bad files --------------------------------------------------------------------------------------------------------


def bad_models() -> dict[str, tuple[onnx.ModelProto, str]]:
    x, y = [value("x")], [value("y")]
    relu = helper.make_node("Relu", ["x"], ["y"], "relu")
    found: dict[str, tuple[onnx.ModelProto, str]] = {
        "cycle": (
            model_of([helper.make_node("Relu", ["y"], ["z"]), helper.make_node("Relu", ["z"], ["y"])], x, y),
            "cycle",
        ),
        "duplicate value": (model_of([relu, helper.make_node("Neg", ["x"], ["y"])], x, y), "two values are called 'y'"),
        "no source": (model_of([helper.make_node("Relu", ["nowhere"], ["y"])], x, y), "'nowhere', which nothing makes"),
        "no output": (model_of([relu], x, [value("z")]), "'z', which nothing makes"),
        "too many inputs": (model_of([helper.make_node("Relu", ["x", "x"], ["y"])], x, y), "at most 1"),
        "two inputs": (model_of([relu], [*x, *x], y), "two values are called 'x'"),
        "type": (model_of([helper.make_node("Input", ["x"], ["y"])], x, y), "no operator"),
    }
    wrong = numpy_helper.from_array(np.ones(3, np.float32), "w")
    for name, change, message in (
        ("short tensor", {"raw_data": b"\0" * 11}, "12 bytes, not 11"),
        ("negative dimension", {"dims": [-3]}, "negative dimension"),
        ("huge dimension", {"dims": [1 << 62]}, "bytes, not 12"),
        ("empty and huge", {"dims": [0, 1 << 62, 1 << 62], "raw_data": b""}, "larger than any array"),
        ("element type", {"data_type": 99}, "unknown here"),
        ("no element type", {"data_type": 0}, "unknown here"),
    ):
        tensor = TensorProto()
        tensor.CopyFrom(wrong)
        for key, changed in change.items():
            tensor.ClearField(key)
            if isinstance(changed, list):
                getattr(tensor, key).extend(changed)
            else:
                setattr(tensor, key, changed)
        found[name] = model_of([relu], x, y, initializer=[tensor]), message
    nameless = TensorProto()
    nameless.CopyFrom(wrong)
    nameless.name = ""
    found["nameless"] = model_of([relu], x, y, initializer=[nameless]), "no name"
    found["twice"] = model_of([relu], x, y, initializer=[wrong, wrong]), "two initializers"
    kindless = helper.make_node("Relu", ["x"], ["y"])
    kindless.attribute.add(name="odd")
    found["attribute kind"] = model_of([kindless], x, y), "no kind"
    doubled = helper.make_node("Concat", ["x"], ["y"], axis=0)
    doubled.attribute.append(doubled.attribute[0])
    found["attribute twice"] = model_of([doubled], x, y), "two attributes"
    sparse = onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.ones(1, np.float32), "s"),
        indices=numpy_helper.from_array(np.array([9], np.int64)),
        dims=[4],
    )
    found["sparse"] = model_of([relu], x, y, sparse_initializer=[sparse]), "do not fit"
    huge = onnx.SparseTensorProto(values=sparse.values, indices=sparse.indices, dims=[1 << 14, 1 << 13])
    found["sparse and huge"] = model_of([relu], x, y, sparse_initializer=[huge]), "takes 536870912 bytes"
    below = onnx.SparseTensorProto(values=sparse.values, indices=sparse.indices, dims=[-4])
    found["sparse and negative"] = model_of([relu], x, y, sparse_initializer=[below]), "negative dimension"
    return found


BAD = bad_models()


@pytest.mark.parametrize("name", BAD)
def test_bad_models_are_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    model, message = BAD[name]
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FileError, match=message) as caught:
        load_onnx(path)
    assert caught.value.path == path
    assert [file.name for file in tmp_path.iterdir()] == ["bad.onnx"]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    good = (GENAI / "model.onnx").read_bytes()
    for content in (b"", b"hello, world\n", b"\x89PNG\r\n\x1a\n", good[: len(good) // 2], os.urandom(500), b"{}"):
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        with pytest.raises(FileError, match="no ONNX model"):
            load_onnx(path)
    with pytest.raises(FileError, match="folder"):
        load_onnx(tmp_path)
    with pytest.raises(FileError, match="No such file"):
        load_onnx(tmp_path / "missing.onnx")
    with open(tmp_path / "huge.onnx", "wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(FileError, match="less than 2 GiB"):
        load_onnx(tmp_path / "huge.onnx")


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damaged_files_are_refused_or_read_but_never_crash(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray((GENAI / "model.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "model.onnx.data").symlink_to("/nonexistent")
    os.unlink(folder / "model.onnx.data")
    shutil.copy(GENAI / "model.onnx.data", folder)
    (folder / "model.onnx").write_bytes(content)
    try:
        load_onnx(folder / "model.onnx")
    except FileError:
        pass
    finally:
        shutil.rmtree(folder)


# -- export -----------------------------------------------------------------------------------------------------------


def test_a_wrong_graph_is_refused_with_what_is_wrong(tmp_path: Path) -> None:
    graph = Graph("g", opsets={"": 21})
    graph.add("Add", "sum")
    graph.add("Output", "y")
    graph.wire("sum.C", "y.value")
    with pytest.raises(GraphError) as caught:
        save_onnx(graph, tmp_path / "a.onnx")
    assert {(finding.node, finding.port) for finding in caught.value.findings} >= {("sum", "A"), ("sum", "B")}
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(GraphError, match="onnxruntime, schema, portable"):
        save_onnx(graph, tmp_path / "a.onnx", "tensorrt")


def simple_graph() -> Graph:
    model = model_of([helper.make_node("Relu", ["x"], ["y"], "relu")], [value("x")], [value("y")])
    return import_model(model)


def test_an_input_without_a_type_is_named(tmp_path: Path) -> None:
    graph = Graph("g", opsets={"": 21})
    graph.add("Input", "x")
    graph.add("Output", "y")
    graph.wire("x.value", "y.value")
    with pytest.raises(GraphError, match="x.type: An input of an ONNX file needs a type"):
        save_onnx(graph, tmp_path / "a.onnx", "schema")


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")
    with pytest.raises(FileError, match="cannot be written"):
        save_onnx(simple_graph(), tmp_path / "missing" / "a.onnx", "schema")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="No space left"):
        save_onnx(simple_graph(), path, "schema")
    monkeypatch.undo()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.onnx_files.write_in_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_onnx(simple_graph(), path, "schema")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("failing", [1, 2])
def test_a_failure_between_the_two_files_leaves_the_old_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    constant = numpy_helper.from_array(np.arange(1000, dtype=np.float32), "w")
    model = model_of([helper.make_node("Neg", ["w"], ["y"])], [], [value("y", (1000,))], initializer=[constant])
    path = tmp_path / "m.onnx"
    save_onnx(import_model(model), path, "schema")
    graph = load_onnx(path)
    replaced = os.replace
    calls = []

    def replace(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        replaced(*paths)

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(FileError, match="Input/output error"):
        save_onnx(graph, path, "schema")
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert load_onnx(path) == graph


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    save_onnx(simple_graph(), path, "schema")
    before = path.read_bytes()
    program = f"""
import os, runtime.atomic, runtime.onnx_files as files
os.fsync = lambda handle: os.kill(os.getpid(), {int(signal.SIGKILL)})
files.save_onnx(files.load_onnx({str(path)!r}), {str(path)!r}, "schema")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert load_onnx(path).nodes.keys() == simple_graph().nodes.keys()


def test_a_link_stays_a_link_and_permissions_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.onnx", tmp_path / "link.onnx"
    save_onnx(simple_graph(), real, "schema")
    real.chmod(0o640)
    link.symlink_to(real)
    save_onnx(simple_graph(), link, "schema")
    assert link.is_symlink() and real.stat().st_mode & 0o777 == 0o640


@pytest.mark.usefixtures("small_limits")
def test_data_lies_beside_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    files, links = tmp_path / "files", tmp_path / "links"
    files.mkdir()
    links.mkdir()
    real, link = files / "real.onnx", links / "link.onnx"
    link.symlink_to(real)
    constant = numpy_helper.from_array(np.zeros(1000, np.float32), "w")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = import_model(model_of(nodes, [value("x", (1000,))], [value("y", (1000,))], initializer=[constant]))
    for value_now in (1, 2):
        for path in (real, link):
            graph.nodes["w"].parameters["tensor"] = Tensor.from_array(np.full(1000, value_now, np.float32))
            save_onnx(graph, path, "schema")
            assert [file.suffix for file in sorted(files.iterdir())] == [".onnx", ".data"]
            assert list(links.iterdir()) == [link]
            for other in (real, link):
                assert load_onnx(other).nodes["w"].parameters["tensor"].array()[0] == value_now


@pytest.mark.usefixtures("small_limits")
def test_a_data_file_that_another_model_names_stays(tmp_path: Path) -> None:
    constant = numpy_helper.from_array(np.arange(1000, dtype=np.float32), "w")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = import_model(model_of(nodes, [value("x", (1000,))], [value("y", (1000,))], initializer=[constant]))
    save_onnx(graph, tmp_path / "a.onnx", "schema")
    assert "metadata" not in load_onnx(tmp_path / "a.onnx").section("info")
    shutil.copy(tmp_path / "a.onnx", tmp_path / "b.onnx")
    save_onnx(load_onnx(tmp_path / "a.onnx"), tmp_path / "a.onnx", "schema")
    for name in ("a.onnx", "b.onnx"):
        assert load_onnx(tmp_path / name).nodes["w"].parameters["tensor"].array()[999] == 999
    (tmp_path / "b.onnx").unlink()
    save_onnx(load_onnx(tmp_path / "a.onnx"), tmp_path / "a.onnx", "schema")
    assert {file.name for file in tmp_path.iterdir()} == {"a.onnx", "a.onnx.data", "a.onnx.2.data"}


def test_a_data_file_of_somebody_elses_making_stays(tmp_path: Path) -> None:
    write_data(tmp_path / "m.onnx.data")
    path = external_model(tmp_path, "m.onnx.data")
    save_onnx(load_onnx(path), path, "schema")
    assert (tmp_path / "m.onnx.data").is_file()


def test_a_store_of_files_that_links_give_names(tmp_path: Path) -> None:
    """As caches of downloads do it: the files by their hashes, and a folder of links to them."""
    files, links = tmp_path / "blobs", tmp_path / "snapshots"
    files.mkdir()
    links.mkdir()
    write_data(files / "0a1b")
    external_model(files, "m.data").rename(files / "2c3d")
    (links / "model.onnx").symlink_to(files / "2c3d")
    (links / "m.data").symlink_to(files / "0a1b")
    graph = load_onnx(links / "model.onnx")
    assert graph.nodes["w"].parameters["tensor"].is_mapped


def test_what_a_file_said_of_a_value_goes_when_it_is_no_longer_so(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Relu", ["x"], ["h"], "relu"), helper.make_node("Neg", ["h"], ["y"], "neg")],
        [value("x", (2, 4))],
        [value("y", None)],
        value_info=[value("h", (2, 4))],
    )
    graph = import_model(model)
    save_onnx(graph, tmp_path / "a.onnx", "schema")
    assert list(value_info(onnx.load(tmp_path / "a.onnx").graph)) == ["h"]
    graph.set("x", "shape", [3, 4])
    save_onnx(graph, tmp_path / "a.onnx", "schema")
    assert value_info(onnx.load(tmp_path / "a.onnx").graph) == {}
    assert graph.wires[PortRef("neg", "X")] == PortRef("relu", "Y")


# -- targets ----------------------------------------------------------------------------------------------------------


def moe_graph(case: str) -> tuple[Graph, dict[str, np.ndarray], np.ndarray]:
    """One QMoE layer of a real model with its inputs, and what torch makes of them."""
    import json

    data = np.load(DATA / "qmoe" / f"{case}.npz")
    graph = Graph(case, opsets={"": 21, "com.microsoft": 1})
    attributes = {key: value for key, value in json.loads(str(data["attrs"])).items() if value is not None}
    graph.add("com.microsoft.QMoE", "moe", parameters=attributes)
    feeds = {}
    for key in data.files:
        if not key.startswith("in."):
            continue
        port, array = key[3:], data[key]
        if port in ("input", "router_probs", "router_weights"):
            shape = ["tokens", array.shape[1]]
            graph.add("Input", port, parameters={"type": "tensor(float)", "shape": shape})
            feeds[port] = array
        else:
            graph.add("Initializer", port, parameters={"tensor": Tensor.from_array(array)})
        graph.wire(f"{port}.value", f"moe.{port}")
    graph.add("Output", "y")
    graph.wire("moe.output", "y.value")
    return graph, feeds, data["expected_routed"] / data["output_scale"]


@pytest.mark.parametrize("case", ["qwen3_moe_int4_b32", "gpt_oss_int8_col"])
def test_a_layer_gives_the_same_numbers_for_every_target(tmp_path: Path, case: str) -> None:
    from onnx.reference import ReferenceEvaluator

    graph, feeds, expected = moe_graph(case)
    path = tmp_path / "a.onnx"
    results = {}
    for target in ("schema", "onnxruntime", "portable"):
        assert save_onnx(graph, path, target) == []
        results[target] = outputs_of(str(path), feeds)[0]
    results["reference"] = ReferenceEvaluator(str(path)).run(None, feeds)[0]
    assert {entry.domain for entry in onnx.load(path).opset_import} == {"", "qmoe.portable"}
    for result in results.values():
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_whole_model_for_every_target(tmp_path: Path) -> None:
    graph = load_onnx(GENAI / "model.onnx")
    reference = np.load(GENAI / "ort_reference.npz")
    feeds = {key[3:]: reference[key] for key in reference if key.startswith("in.")}
    for target in ("schema", "onnxruntime", "portable"):
        findings = save_onnx(graph, tmp_path / "a.onnx", target)
        written = onnx.load(tmp_path / "a.onnx")
        for output, result in zip(written.graph.output, outputs_of(str(tmp_path / "a.onnx"), feeds), strict=True):
            np.testing.assert_allclose(result, reference[f"out.{output.name}"], rtol=1e-4, atol=1e-4)
        assert not any(entry.key.startswith("qmoe.") for node in written.graph.node for entry in node.metadata_props)
        told = {finding.message.split()[0] for finding in findings if finding.code == "not-portable"}
        kept = {f"{node.domain}.{node.op_type}" for node in written.graph.node if node.domain == "com.microsoft"}
        assert told == (kept if target == "portable" else set())


@pytest.mark.parametrize("name", ["", "same"])
def test_many_nodes_without_names_of_their_own_load_and_compile_fast(name: str) -> None:
    count = 20_000
    nodes = [helper.make_node("Relu", [f"v{index}"], [f"v{index + 1}"], name=name) for index in range(count)]
    model = model_of(nodes, [value("v0")], [value(f"v{count}")])
    start = time.process_time()
    graph = import_model(model)
    compile_graph(graph)
    assert time.process_time() - start < 10  # 60 and more where each search for a free name begins anew
    ids = list(graph.nodes)[1:-1]
    assert ids[:3] == (["same", "same_2", "same_3"] if name else ["relu_0", "relu_1", "relu_2"])
