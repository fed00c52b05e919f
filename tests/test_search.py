"""A few letters find the node that is meant, with its parameters."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.catalog import all_types, find
from runtime.node import Node
from runtime.search import Match, parameter_of, read_value, search
from runtime.types import ElementType, TensorType


def best(text: str, **options: Any) -> Match:
    return search(text, **options)[0]


def kind(name: str) -> type[Node]:
    found = find(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qmoe", "com.microsoft.QMoE"),
        ("QMoE", "com.microsoft.QMoE"),
        ("experts", "com.microsoft.QMoE"),
        ("relu", "Relu"),
        ("mm", "MatMul"),
        ("matm", "MatMul"),
        ("layer norm", "LayerNormalization"),
        ("layernorm", "LayerNormalization"),
        ("multiply", "Mul"),
        ("plus", "Add"),
        ("nbits", "com.microsoft.MatMulNBits"),
        ("softm", "Softmax"),
        ("gqa", "com.microsoft.GroupQueryAttention"),
        ("huber", "qmoe.loss.Huber"),
        ("input", "Input"),
        ("weight", "Initializer"),
        ("cnct", "Concat"),
    ],
)
def test_what_is_meant_comes_first(text: str, expected: str) -> None:
    assert best(text).node_type.type_name() == expected


def test_every_type_is_found_by_its_own_name() -> None:
    for node_type in all_types():
        found = [match.node_type for match in search(node_type.type_name(), limit=3)]
        assert node_type in found, node_type.type_name()


def test_words_with_an_equals_sign_set_parameters() -> None:
    match = best("qmoe k=4 bits=4 block=32 activation_type=swiglu")
    assert match.parameters == {"k": 4, "expert_weight_bits": 4, "block_size": 32, "activation_type": "swiglu"}
    assert not match.problem
    assert best("concat axis=-1").parameters == {"axis": -1}
    assert best("transpose perm=1,0").parameters == {"perm": [1, 0]}
    assert best("input type=tensor(float) shape=tokens,64").parameters == {
        "type": "tensor(float)",
        "shape": ["tokens", 64],
    }


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("qmoe k=four", "k: expected a whole number, not 'four'"),
        ("qmoe k=-3", "at least"),
        ("qmoe colour=red", "QMoE has no parameter colour"),
        ("qmoe activation=red", "may be"),
        ("qmoe activation_type=red", "expected one of"),
        ("relu k=", "no parameter k"),
    ],
)
def test_what_cannot_be_understood_is_said(text: str, word: str) -> None:
    match = best(text)
    assert word in match.problem
    assert not match.parameters


def test_a_wire_leaves_only_what_takes_its_value() -> None:
    text = TensorType(ElementType.STRING, ("n",))
    names = {match.node_type.operator for match in search("", source=text, limit=1000)}
    assert "StringNormalizer" in names and "Relu" not in names and "Output" in names
    match = best("matmul", source=TensorType(ElementType.FLOAT, (2, 3)))
    assert match.port == "A"
    assert best("concat", source=TensorType(ElementType.FLOAT)).port == "inputs.0"
    assert best("relu", source=TensorType()).port == "X", "an unknown type fits everywhere"


def test_an_input_leaves_only_what_can_feed_it() -> None:
    moe = kind("com.microsoft.QMoE")
    matches = search("", target=(moe, "router_probs"), limit=1000)
    names = {match.node_type.operator for match in matches}
    assert {"MatMul", "Initializer", "Input"} <= names and "Shape" not in names
    assert best("matmul", target=(moe, "router_probs")).port == "Y"


def test_recent_types_come_first_among_equals() -> None:
    assert search("", recent=["Tanh", "Erf"])[0].node_type.operator == "Tanh"
    assert search("qmoe", recent=["Tanh"])[0].node_type.operator == "QMoE"


def test_values_are_read_by_their_declarations() -> None:
    moe = kind("com.microsoft.QMoE")
    bits = parameter_of(moe, "bits")
    assert not isinstance(bits, str) and read_value(bits, "2") == 2
    training = parameter_of(moe, "training")
    assert not isinstance(training, str) and read_value(training, "no") is False
    with pytest.raises(ValueError, match="true or false"):
        read_value(training, "perhaps")
