"""The operator's attributes: their types, ranges and defaults, which of them go together, and with which inputs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from math import inf
from typing import Any

from qmoe_node.activations import NAMES
from qmoe_node.layer import GATED, Settings
from qmoe_node.packing import WIDTHS
from runtime.errors import Severity

QUANT_TYPES = ("int", "fp4", "nvfp4", "fp8", "wfp4afp8")
PROJECTIONS = ("fc1", "fc2", "fc3")
ACTIVATION_SCALES = ("fc1_act_scale", "fc2_act_scale", "fc1_act_block_scale", "fc2_act_block_scale")
GLOBAL_SCALES = ("fc1_global_scale", "fc2_global_scale")

Complain = Callable[..., None]
"""complain(port, message, remedy="", code=...) records a finding."""


def power_of_two(value: int) -> bool:
    """Whether `value` is 1, 2, 4, ..."""
    return value > 0 and value & (value - 1) == 0


INTEGERS: Mapping[str, tuple[int, Callable[[int], bool], str]] = {
    "k": (1, lambda value: value >= 1, "at least 1"),
    "expert_weight_bits": (4, lambda value: value in WIDTHS, "2, 3, 4 or 8"),
    "fc1_expert_weight_bits": (4, lambda value: value in WIDTHS, "2, 3, 4 or 8"),
    "fc2_expert_weight_bits": (4, lambda value: value in WIDTHS, "2, 3, 4 or 8"),
    "fc3_expert_weight_bits": (4, lambda value: value in WIDTHS, "2, 3, 4 or 8"),
    "block_size": (0, lambda value: value >= 0, "0 (no blocks) or a positive number of columns"),
    "swiglu_fusion": (0, lambda value: value in (0, 1, 2), "0 (not fused), 1 (interleaved) or 2 (concatenated)"),
    "swiglu_limit_after_activation": (0, lambda value: value in (0, 1), "0 or 1"),
    "normalize_routing_weights": (0, lambda value: value in (0, 1), "0 or 1"),
    "use_sparse_mixer": (0, lambda value: value in (0, 1), "0 or 1"),
    "weights_prepacked": (-1, lambda value: value in (-1, 0, 1), "-1, 0 or 1"),
    "accuracy_level": (0, lambda value: True, "an integer"),
}
NUMBERS: Mapping[str, float] = {"activation_alpha": 1.0, "activation_beta": 0.0, "swiglu_limit": inf}
STRINGS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "activation_type": ("relu", NAMES),
    "quant_type": ("int", QUANT_TYPES),
}
ATTRIBUTES = (*INTEGERS, *NUMBERS, *STRINGS)


def read_settings(attributes: Mapping[str, Any], complain: Complain) -> Settings:
    """The settings that operator attributes stand for; what is malformed is complained about and read as absent."""
    integers = {name: _integer(name, attributes, complain) for name in INTEGERS}
    numbers = {name: _number(name, attributes, complain) for name in NUMBERS}
    strings = {name: _string(name, attributes, complain) for name in STRINGS}
    common = integers["expert_weight_bits"]
    bits = tuple(
        integers[f"{fc}_expert_weight_bits"] if f"{fc}_expert_weight_bits" in attributes else common
        for fc in PROJECTIONS
    )
    settings = Settings(
        k=integers["k"],
        activation_type=strings["activation_type"],
        activation_alpha=numbers["activation_alpha"],
        activation_beta=numbers["activation_beta"],
        swiglu_fusion=integers["swiglu_fusion"],
        swiglu_limit=numbers["swiglu_limit"],
        swiglu_limit_after_activation=bool(integers["swiglu_limit_after_activation"]),
        normalize_routing_weights=bool(integers["normalize_routing_weights"]),
        use_sparse_mixer=bool(integers["use_sparse_mixer"]),
        block_size=integers["block_size"],
        quant_type=strings["quant_type"],
        weights_prepacked=integers["weights_prepacked"],
        bits=(bits[0], bits[1], bits[2]),
    )
    _combinations(settings, attributes, complain)
    return settings


def _integer(name: str, attributes: Mapping[str, Any], complain: Complain) -> int:
    default, allowed, expected = INTEGERS[name]
    if name not in attributes:
        return default
    given = attributes[name]
    try:
        value = operator.index(given)
    except TypeError:
        complain(name, f"expected an integer, {expected}; got {given!r}.", code="attribute")
        return default
    if not allowed(value):
        complain(name, f"expected {expected}; got {value}.", code="attribute")
        return default
    return value


def _number(name: str, attributes: Mapping[str, Any], complain: Complain) -> float:
    given = attributes.get(name, NUMBERS[name])
    try:
        if isinstance(given, str | bytes):
            raise TypeError
        value = float(given)
    except (TypeError, ValueError, OverflowError):
        complain(name, f"expected a number that a float holds; got {given!r:.40}.", code="attribute")
        return NUMBERS[name]
    if name == "swiglu_limit" and value < 0:
        complain(
            name,
            f"expected a limit of at least 0; got {value:g}.",
            "Leave the attribute out for no limit.",
            code="attribute",
        )
        return NUMBERS[name]
    return value


def _string(name: str, attributes: Mapping[str, Any], complain: Complain) -> str:
    default, choices = STRINGS[name]
    given = attributes.get(name, default)
    if isinstance(given, bytes):
        given = given.decode("utf-8", "replace")
    if isinstance(given, str) and given in choices:
        return given
    complain(name, f"expected one of {', '.join(choices)}; got {given!r}.", code="attribute")
    return default


def _combinations(settings: Settings, attributes: Mapping[str, Any], complain: Complain) -> None:
    """What the operator does not define, as far as the attributes alone tell."""

    def refuse(port: str, message: str, remedy: str = "") -> None:
        complain(port, message, remedy, code="combination")

    activation = settings.activation_type
    if settings.swiglu_fusion and activation not in GATED and "activation_type" not in _unread(attributes):
        refuse(
            "swiglu_fusion",
            f"a gated layout (swiglu_fusion={settings.swiglu_fusion}) needs a gated activation, swiglu or geglu; "
            f"activation_type is {activation!r}.",
            "Set swiglu_fusion to 0 or choose swiglu.",
        )
    if activation == "geglu":
        if settings.swiglu_fusion == 0:
            refuse("swiglu_fusion", "geglu needs gate and linear part in fc1: expected swiglu_fusion 1 or 2, got 0.")
        if settings.quant_type != "int":
            refuse("activation_type", f"geglu is defined for quant_type 'int' only; got {settings.quant_type!r}.")
    if settings.swiglu_limit_after_activation and activation != "swiglu":
        refuse(
            "swiglu_limit_after_activation",
            f"clamping after the activation is defined for swiglu only; activation_type is {activation!r}.",
        )
    if settings.use_sparse_mixer and settings.k != 2:
        refuse("k", f"the sparse mixer chooses two experts: expected k=2 with use_sparse_mixer, got k={settings.k}.")
    if settings.quant_type == "wfp4afp8":
        refuse(
            "quant_type",
            "quant_type 'wfp4afp8' rounds activations to float8 in a way that no published formula defines, "
            "so it is not computed here.",
            "Use 'fp4' with the same weights for unrounded activations.",
        )
    if settings.quant_type == "int":
        _integer_combinations(settings, attributes, refuse)


def _unread(attributes: Mapping[str, Any]) -> set[str]:
    """The string attributes whose value is not one of the choices, about which there is a finding already."""
    return {name for name, (_, choices) in STRINGS.items() if attributes.get(name, choices[0]) not in choices}


def _integer_combinations(settings: Settings, attributes: Mapping[str, Any], refuse: Complain) -> None:
    block_size = settings.block_size
    if block_size and (block_size < 16 or not power_of_two(block_size)):
        refuse("block_size", f"expected 0 or a power of two of at least 16; got {block_size}.")
    if settings.swiglu_fusion and settings.bits[2] != settings.bits[0]:
        refuse(
            "fc3_expert_weight_bits",
            f"with swiglu_fusion={settings.swiglu_fusion} fc3 is stored in fc1 and has its width, "
            f"{settings.bits[0]} bits; got {settings.bits[2]}.",
            "Leave fc3_expert_weight_bits out or make it equal to fc1's width.",
        )
    if settings.weights_prepacked == 1 and (settings.bits[0] not in (2, 4) or settings.bits[1] not in (2, 4)):
        refuse(
            "weights_prepacked",
            f"the prepacked layout is defined for 2 and 4 bit weights; got {settings.bits[0]} (fc1) and "
            f"{settings.bits[1]} (fc2) bits.",
            "Store the weights unpacked by row and set weights_prepacked to 0.",
        )
    if 3 not in settings.bits:
        return
    where = next((f"{fc}_expert_weight_bits" for fc in PROJECTIONS if f"{fc}_expert_weight_bits" in attributes), "")
    where = where or "expert_weight_bits"
    demands = {
        "activation_type": (settings.activation_type, "swiglu", settings.activation_type == "swiglu"),
        "swiglu_fusion": (settings.swiglu_fusion, "1", settings.swiglu_fusion == 1),
        "weights_prepacked": (settings.weights_prepacked, "0", settings.weights_prepacked == 0),
        "block_size": (block_size, "32, 64 or 128", block_size in (32, 64, 128)),
    }
    for name, (value, expected, fits) in demands.items():
        if not fits:
            refuse(name, f"3-bit weights ({where}) are defined for {name} {expected} only; got {value!r}.")


def check_presence(settings: Settings, present: Collection[str], complain: Complain) -> None:
    """Inputs that must be there, must not be there, or do nothing; `present` are the names of the connected ones."""
    quant_type = settings.quant_type
    fc3 = "fc3_experts_weights" in present
    gated = settings.activation_type in GATED
    if gated and settings.swiglu_fusion and fc3:
        complain(
            "fc3_experts_weights",
            f"{settings.activation_type} with swiglu_fusion={settings.swiglu_fusion} has gate and linear part in "
            "fc1: expected no fc3.",
            "Remove fc3 or set swiglu_fusion to 0.",
            code="combination",
        )
    if settings.activation_type == "geglu" and not settings.swiglu_fusion and fc3:
        complain("fc3_experts_weights", "geglu is not defined with a separate fc3.", code="combination")
    if settings.activation_type == "swiglu" and not settings.swiglu_fusion and not fc3:
        complain(
            "fc3_experts_weights",
            "swiglu with swiglu_fusion=0 takes the gate from fc1 and the linear part from fc3: expected fc3's "
            "weights; nothing is connected.",
            "Connect fc3 or set swiglu_fusion to 1 or 2.",
            code="missing-input",
        )
    if not fc3:
        for name in ("fc3_scales", "fc3_experts_bias", "fc3_zero_points"):
            if name in present:
                complain(name, "expected fc3_experts_weights with it; nothing is connected there.", code="combination")
    if settings.use_sparse_mixer and "router_weights" in present:
        complain(
            "router_weights",
            "the sparse mixer computes its own mixing weights: expected no router_weights with use_sparse_mixer.",
            code="combination",
        )
    wants_global = quant_type == "fp8" and not settings.block_size
    for fc in PROJECTIONS if fc3 else PROJECTIONS[:2]:
        scales, global_scale = f"{fc}_scales", f"{fc}_global_scale"
        if wants_global and scales in present:
            complain(
                scales,
                "float8 weights without block_size are scaled by one global scale per expert: expected no scales.",
                "Set block_size to the size of the square blocks.",
                code="combination",
            )
        if not wants_global and scales not in present:
            complain(scales, f"expected the scales of {fc}'s weights; nothing is connected.", code="missing-input")
        if wants_global or quant_type == "nvfp4":
            if fc == "fc3":
                complain(
                    "fc3_experts_weights",
                    f"quant_type {quant_type!r} needs a global scale for each projection, and the operator has "
                    "none for fc3: expected no fc3.",
                    code="combination",
                )
            elif global_scale not in present:
                complain(
                    global_scale,
                    f"quant_type {quant_type!r} needs {fc}'s global scales; nothing is connected.",
                    code="missing-input",
                )
        if quant_type != "int" and f"{fc}_zero_points" in present:
            complain(f"{fc}_zero_points", f"quant_type {quant_type!r} has no zero points.", code="combination")
    _unused(settings, present, complain)


def _unused(settings: Settings, present: Collection[str], complain: Complain) -> None:
    """Inputs that the operator takes but that the quantization does not use."""
    quant_type = settings.quant_type
    refused = (quant_type == "int" and 3 in settings.bits) or quant_type == "fp8"
    unused: tuple[str, ...] = ACTIVATION_SCALES
    if quant_type == "int" or (quant_type == "fp8" and settings.block_size):
        unused += GLOBAL_SCALES
    for name in unused:
        if name in present:
            error = refused and (quant_type == "int" or name in ACTIVATION_SCALES)
            complain(
                name,
                f"quant_type {quant_type!r} with these attributes does not use {name}.",
                "Disconnect it.",
                code="combination" if error else "unused",
                severity=Severity.ERROR if error else Severity.WARNING,
            )
