"""Node types: from schemas, from declarations, from plug-ins; and their manual pages."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import onnx.defs
import pytest

from runtime import catalog
from runtime.manual import page, summary
from runtime.node import FLOATS, In, Node, Out, Parameter


class Twice(Node):
    """Adds a tensor to itself."""

    domain = "test.arithmetic"
    x = In("T")
    y = Out("T", same_shape_as="x")
    factor = Parameter(float, default=0.0, means_default=0.0, operator_default=2.0)
    type_constraints = {"T": FLOATS}


def test_every_operator_of_the_newest_operator_sets_is_there() -> None:
    listed = {cls.type_name() for cls in catalog.all_types()}
    for schema in onnx.defs.get_all_schemas():
        if schema.deprecated or schema.domain.startswith("ai.onnx.preview"):
            continue
        name = f"{schema.domain}.{schema.name}" if schema.domain else schema.name
        assert name in listed
    contrib = {"MoE", "MatMulNBits", "GroupQueryAttention", "SkipSimplifiedLayerNormalization", "QMoE"}
    assert {f"com.microsoft.{name}" for name in contrib} <= listed
    assert {"Input", "Output", "Initializer", "SimplifiedLayerNormalization"} <= listed


def test_every_page_of_the_manual_can_be_written() -> None:
    for cls in catalog.all_types():
        assert page(cls).startswith(f"# {cls.type_name()}\n")
        assert "\n" not in summary(cls)


@pytest.mark.parametrize("version", [11, 13, 23])
def test_the_operator_set_version_decides_which_declaration_counts(version: int) -> None:
    found = catalog.find("Softmax", {"": version})
    assert found is not None
    assert found.since_version == onnx.defs.get_schema("Softmax", version).since_version
    axis = found.parameter("axis")
    assert axis is not None and axis.default == (1 if version < 13 else -1)


def test_an_operator_is_unknown_before_its_first_version() -> None:
    assert catalog.find("Gelu", {"": 19}) is None
    assert catalog.find("Gelu", {"": 20}) is not None
    assert catalog.find("no.such.Operator") is None


def test_ports_are_those_of_the_schema() -> None:
    concat, loop = catalog.find("Concat"), catalog.find("Loop")
    assert concat is not None and loop is not None
    assert concat.inputs[0].variadic and concat.input_port("inputs.7") is concat.inputs[0]
    assert concat.input_port("inputs.x") is None
    assert [port.optional for port in loop.inputs] == [True, True, False] and not loop.inputs[2].homogeneous


def test_the_common_parameters_have_the_names_of_the_manual() -> None:
    for name in ("MatMul", "com.microsoft.QMoE", "com.microsoft.MoE"):
        cls = catalog.find(name)
        assert cls is not None
        common = [parameter for parameter in cls.parameters if parameter.attribute is None]
        assert [parameter.name for parameter in common] == ["specified_outputs_name", "training?", "lda coeff", "name"]
        assert [parameter.default for parameter in common] == [(), True, 1.0, ""]


def test_a_zero_that_means_the_operators_default_is_not_exported() -> None:
    assert Twice.to_attributes({"factor": 0.0}) == {}
    assert Twice.to_attributes({"factor": 0.0, "factor override": 0.0}) == {"factor": 0.0}
    for attributes in ({}, {"factor": 0.0}, {"factor": 3.0}):
        assert Twice.to_attributes(Twice.to_parameters(attributes)) == attributes


def test_a_registered_type_comes_first_and_can_be_taken_back() -> None:
    catalog.register(Twice)
    try:
        assert catalog.find("test.arithmetic.Twice") is Twice
        assert Twice in catalog.all_types()
    finally:
        catalog.unregister(Twice)
    assert catalog.find("test.arithmetic.Twice") is None


def test_a_plug_in_that_fails_is_named_and_the_others_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = metadata.EntryPoint("broken", "no_such_package:Node", catalog.ENTRY_POINTS)
    wrong = metadata.EntryPoint("wrong", "builtins:int", catalog.ENTRY_POINTS)
    good = metadata.EntryPoint("good", "qmoe_node.node:QMoE", catalog.ENTRY_POINTS)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [broken, wrong, good])
    catalog._plug_ins.cache_clear()
    try:
        with pytest.warns(RuntimeWarning) as warned:
            types = catalog._plug_ins()
    finally:
        catalog._plug_ins.cache_clear()
    assert list(types) == ["com.microsoft.QMoE"]
    messages = [str(warning.message) for warning in warned]
    assert "broken" in messages[0] and "no_such_package" in messages[0] and "no node type" in messages[1]


def test_nothing_heavy_is_imported_before_an_operator_is_asked_for() -> None:
    program = (
        "import sys; from runtime import catalog; assert catalog.find('Input');"
        "assert not {'onnx', 'onnxruntime', 'onnx_ir'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
