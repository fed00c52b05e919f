"""Random QMoE nodes for tests: inputs and operator attributes of every form that the operator defines."""

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

TYPES = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
PLAIN = ("relu", "gelu", "silu", "identity", "relu2")


def make_layer(
    seed=0,
    *,
    tokens=5,
    experts=4,
    hidden=32,
    inter=48,
    kind="float",
    scale_kind=None,
    bits=(4, 4, 4),
    block_size=0,
    row_rank=2,
    zero_points=False,
    biases=True,
    fc3=False,
    router_weights=False,
    batch=None,
    **attributes,
):
    """(inputs, attributes) of an integer layer. `batch` makes the input 3-D; `row_rank` 3 gives [E, N, 1] scales."""
    rng = np.random.default_rng(seed)
    dtype, scale_dtype = TYPES[kind], TYPES[scale_kind or kind]
    gated = attributes.get("activation_type") in ("swiglu", "geglu") and attributes.get("swiglu_fusion", 0)
    sizes = {"fc1": ((2 if gated else 1) * inter, hidden), "fc2": (hidden, inter)}
    if fc3:
        sizes["fc3"] = (inter, hidden)

    def floats(*shape):
        return rng.standard_normal(shape).astype(dtype)

    inputs = {"input": floats(tokens, hidden), "router_probs": floats(tokens, experts)}
    if batch:
        inputs["input"] = inputs["input"].reshape(batch, tokens // batch, hidden)
    if router_weights:
        inputs["router_weights"] = floats(tokens, experts)
    for number, (fc, (rows, columns)) in enumerate(sizes.items()):
        width = bits[number]
        inputs[f"{fc}_experts_weights"] = random_bytes(rng, experts, rows, -(-columns * width // 8))
        blocks = -(-columns // block_size) if block_size else 1
        shape = (experts, rows, blocks) if block_size or row_rank == 3 else (experts, rows)
        size = 1.5 / np.sqrt(columns) / 2 ** (width - 1)
        inputs[f"{fc}_scales"] = (rng.uniform(0.2, 1.8, shape) * size).astype(scale_dtype)
        if zero_points:
            shape = (experts, rows, -(-blocks * width // 8)) if block_size else (experts, -(-rows * width // 8))
            inputs[f"{fc}_zero_points"] = random_bytes(rng, *shape)
        if biases:
            inputs[f"{fc}_experts_bias"] = floats(experts, rows)
    attributes.setdefault("k", 2)
    if set(bits) != {4}:
        attributes["expert_weight_bits"] = bits[0]
    for fc, width in zip(("fc1", "fc2", "fc3"), bits, strict=True):
        if width != bits[0]:
            attributes[f"{fc}_expert_weight_bits"] = width
    if block_size:
        attributes["block_size"] = block_size
    return inputs, attributes


def make_float_layer(
    seed=0, *, quant_type, tokens=3, experts=3, hidden=32, inter=64, fc3=False, prepacked=-1, block_size=0, **attributes
):
    """(inputs, attributes) of a layer with 4 or 8 bit floats as weights."""
    rng = np.random.default_rng(seed)
    gated = attributes.get("activation_type") == "swiglu" and attributes.get("swiglu_fusion", 0)
    sizes = {"fc1": ((2 if gated else 1) * inter, hidden), "fc2": (hidden, inter)}
    if fc3:
        sizes["fc3"] = (inter, hidden)
    inputs = {
        "input": rng.standard_normal((tokens, hidden)).astype(np.float32),
        "router_probs": rng.standard_normal((tokens, experts)).astype(np.float32),
    }
    for fc, (rows, columns) in sizes.items():
        global_scale = rng.uniform(0.5, 1.5, experts).astype(np.float32)
        if quant_type == "fp8":
            weights = rng.standard_normal((experts, rows, columns)) / np.sqrt(columns)
            inputs[f"{fc}_experts_weights"] = weights.astype(ml_dtypes.float8_e4m3fn)
            if block_size:
                shape = (experts, -(-rows // block_size), -(-columns // block_size))
                inputs[f"{fc}_scales"] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            else:
                inputs[f"{fc}_global_scale"] = global_scale
            continue
        shape = (experts, rows, columns // 2) if prepacked == 1 else (experts, columns, rows // 2)
        inputs[f"{fc}_experts_weights"] = random_bytes(rng, *shape)
        if quant_type == "fp4":
            exponents = rng.integers(122, 126, (experts, rows, columns // 32), dtype=np.uint8)
            inputs[f"{fc}_scales"] = exponents.view(ml_dtypes.float8_e8m0fnu)
        else:
            scales = rng.uniform(0.02, 0.2, (experts, rows, columns // 16))
            inputs[f"{fc}_scales"] = scales.astype(ml_dtypes.float8_e4m3fn)
        if fc != "fc3":
            inputs[f"{fc}_global_scale"] = global_scale
    attributes |= {"quant_type": quant_type, "k": 2}
    if prepacked != -1:
        attributes["weights_prepacked"] = prepacked
    if block_size:
        attributes["block_size"] = block_size
    return inputs, attributes


def random_bytes(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


@st.composite
def layers(draw):
    """(inputs, attributes, inter) over all options of integer layers."""
    experts = draw(st.integers(1, 6))
    tokens = draw(st.sampled_from([0, 1, 2, 6]))
    sparse = experts >= 2 and draw(st.integers(0, 7)) == 0
    k = 2 if sparse else draw(st.integers(1, experts))
    form = draw(st.sampled_from(["plain", "plain+fc3", "swiglu+fc3", "swiglu", "geglu"]))
    attributes = {"k": k}
    if form.startswith("plain"):
        attributes["activation_type"] = draw(st.sampled_from(PLAIN))
    else:
        attributes["activation_type"] = form.split("+")[0]
        if "fc3" not in form:
            attributes["swiglu_fusion"] = draw(st.sampled_from([1, 2]))
    if form.startswith("swiglu"):
        attributes |= draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "activation_alpha": st.sampled_from([0.0, 1.0, 1.702, -0.5]),
                    "activation_beta": st.sampled_from([0.0, 1.0, -0.25]),
                    "swiglu_limit": st.sampled_from([0.0, 0.5, 7.0, float("inf"), float("nan")]),
                    "swiglu_limit_after_activation": st.sampled_from([0, 1]),
                },
            )
        )
    if draw(st.booleans()):
        attributes["normalize_routing_weights"] = draw(st.sampled_from([0, 1]))
    if sparse:
        attributes["use_sparse_mixer"] = 1
    width = st.sampled_from([2, 4, 8])
    first = draw(width)
    bits = (first, draw(width), draw(width) if "fc3" in form else first)
    kind = draw(st.sampled_from(list(TYPES)))
    inter = draw(st.sampled_from([4, 16, 24, 36]))
    inputs, attributes = make_layer(
        draw(st.integers(0, 2**20)),
        tokens=tokens,
        experts=experts,
        hidden=draw(st.sampled_from([4, 16, 20, 40])),
        inter=inter,
        kind=kind,
        scale_kind=draw(st.sampled_from([kind, "float16"])),
        bits=bits,
        block_size=draw(st.sampled_from([0, 16, 32])),
        row_rank=draw(st.sampled_from([2, 3])),
        zero_points=draw(st.booleans()),
        biases=draw(st.booleans()),
        fc3="fc3" in form,
        router_weights=not sparse and draw(st.booleans()),
        batch=2 if tokens in (2, 6) and draw(st.booleans()) else None,
        **attributes,
    )
    if attributes.get("normalize_routing_weights") and "router_weights" in inputs:
        # A sum of weights that nearly cancel has few correct digits in any precision.
        inputs["router_weights"] = np.abs(inputs["router_weights"])
    return inputs, attributes, inter
