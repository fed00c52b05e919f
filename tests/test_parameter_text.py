"""Typed values of parameters: what is written is read back, and what is wrong is said."""

from math import inf

import pytest

from runtime import catalog
from runtime.graph import ABSENT, Graph
from runtime.node import Parameter
from runtime.parameter_text import default_text, read, stepped, write
from runtime.port_facts import ports_of


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, -3),
        (float, 0.1),
        (float, 1e-300),
        (float, inf),
        (float, 2.0),
        (str, ""),
        (str, "a, b"),
        (str, ' "x'),
        (str, "one\ntwo"),
        ("ints", []),
        ("ints", [1, -2]),
        ("floats", [0.5, 2.0]),
        ("strings", ["a", "b c"]),
        ("strings", ["a,b", ""]),
        ("shape", ["tokens", 64, None]),
        ("shape", []),
    ],
)
def test_what_is_written_is_read_back(kind, value):
    assert read(write(value), Parameter(kind)) == value


@pytest.mark.parametrize(
    ("kind", "text", "sentence"),
    [
        (int, "4.5", "Expected a whole number; got '4.5'."),
        (int, "1" * 30, "does not fit"),
        (float, "0,5", r"Write 0\.5"),
        ("ints", "1,,2", "between two commas"),
        ("ints", "[1", "bracket"),
        ("shape", "-1", "not negative"),
        ("strings", '["a"', "JSON"),
    ],
)
def test_what_is_wrong_is_said(kind, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(text, Parameter(kind))


def test_bounds_and_choices_hold():
    with pytest.raises(ValueError, match="at least 0"):
        read("-1", Parameter(int, minimum=0))
    with pytest.raises(ValueError, match="one of 2, 4"):
        read("3", Parameter(int, choices=(2, 4)))
    assert read("  ", Parameter(int, minimum=0)) is ABSENT


def test_defaults_are_told_as_the_manual_tells_them():
    moe = catalog.find("com.microsoft.QMoE")
    assert default_text(moe.parameter("expert_weight_bits")) == "0 (operator default: 4)"
    assert default_text(moe.parameter("swiglu_limit")) == "0 (operator default: no limit)"
    assert default_text(moe.parameter("training?")) == "true"
    assert default_text(catalog.find("com.microsoft.MatMulNBits").parameter("N")) == "required"


def test_steps_stay_in_bounds():
    assert stepped(1, Parameter(int, minimum=0), -5) == 0
    assert stepped(0.5, Parameter(float), 3) == 0.53
    assert stepped(0.0, Parameter(float, maximum=0.015), 3) == 0.015


def test_ports_say_what_is_expected_and_what_is_there():
    graph = Graph()
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["tokens", 64]})
    graph.add("com.microsoft.QMoE", "moe")
    graph.wire("x.value", "moe.input")
    ports = {(facts.ref.port, facts.is_output): facts for facts in ports_of(graph, "moe", graph.checker.findings())}
    given = ports["input", False]
    assert given.demand == "required" and given.there == "float[tokens, 64]" and str(given.source) == "x.value"
    assert given.expected == "T; T is float, float16 or bfloat16"
    missing = ports["router_probs", False]
    assert missing.expected.startswith("T [tokens, experts]") and missing.there == "nothing is connected"
    assert missing.findings
    assert ports["fc1_scales", False].demand == "optional"
    assert ports["output", True].targets == ()
