"""QMoE token by token in Python loops and float64: slow, naive, and without a line of the product's code.

`oracle(inputs, attributes, inter)` returns float64. Codes are taken from the packed bytes one by one, unless `matrices`
holds the experts' weights by (projection, expert).
"""

import math

import numpy as np


def bit_field(data, bits, index):
    """The index-th field of `bits` bits in a sequence of bytes, lowest bits first."""
    value = 0
    for bit in range(bits):
        position = index * bits + bit
        value |= (int(data[position // 8]) >> (position % 8) & 1) << bit
    return value


def integer_matrix(inputs, attributes, fc, expert, columns):
    bits = attributes.get(f"{fc}_expert_weight_bits", attributes.get("expert_weight_bits", 4))
    block_size = attributes.get("block_size", 0)
    packed = inputs[f"{fc}_experts_weights"][expert]
    scales = inputs[f"{fc}_scales"][expert].astype(np.float64)
    zero_points = inputs.get(f"{fc}_zero_points")
    rows = packed.shape[0]
    matrix = np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            if attributes.get("weights_prepacked", -1) == 1:
                c = 16 // bits
                j = column % 64
                inner = (j // 32) * 32 + (j % 8) * 4 + (j % 32) // 8 if bits == 4 else (j % 8) * 8 + j // 8
                place = (row // c) * c * columns + (column // 64) * 64 * c + (row % c) * 64 + inner
                code = bit_field(packed.reshape(-1), bits, place)
            else:
                code = bit_field(packed[row], bits, column)
            by_block = block_size > 0 and scales.ndim == 2
            block = column // block_size if by_block else 0
            scale = scales[row, block] if scales.ndim == 2 else scales[row]
            if zero_points is None:
                zero = {2: 2, 3: 4, 4: 8, 8: 128}[bits]
            elif by_block:
                zero = bit_field(zero_points[expert, row], bits, block)
            else:
                zero = bit_field(zero_points[expert], bits, row)
            matrix[row, column] = (code - zero) * scale
    return matrix


E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def e8m0(byte):
    return math.nan if byte == 255 else 2.0 ** (byte - 127)


def float4_matrix(inputs, attributes, fc, expert, rows, columns):
    mxfp4 = attributes["quant_type"] == "fp4"
    size = 32 if mxfp4 else 16
    data = inputs[f"{fc}_experts_weights"][expert].reshape(-1)
    scales = inputs[f"{fc}_scales"][expert]
    overall = inputs.get(f"{fc}_global_scale")
    matrix = np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            by_row = attributes.get("weights_prepacked", -1) == 1
            code = bit_field(data, 4, row * columns + column if by_row else column * rows + row)
            value = E2M1[code & 7] * (-1 if code & 8 else 1)
            scale = scales[row, column // size]
            scale = e8m0(int(scale.view(np.uint8))) if mxfp4 else float(scale)
            matrix[row, column] = value * scale * (1.0 if overall is None else float(overall[expert]))
    return matrix


def float8_matrix(inputs, attributes, fc, expert):
    weights = inputs[f"{fc}_experts_weights"][expert]
    size = attributes.get("block_size", 0)
    matrix = np.zeros(weights.shape)
    for row in range(weights.shape[0]):
        for column in range(weights.shape[1]):
            if size:
                scale = float(inputs[f"{fc}_scales"][expert, row // size, column // size])
            else:
                scale = float(inputs[f"{fc}_global_scale"][expert])
            matrix[row, column] = float(weights[row, column]) * scale
    return matrix


def matrix_of(inputs, attributes, fc, expert, rows, columns):
    kind = attributes.get("quant_type", "int")
    if kind == "int":
        return integer_matrix(inputs, attributes, fc, expert, columns)
    if kind == "fp8":
        return float8_matrix(inputs, attributes, fc, expert)
    return float4_matrix(inputs, attributes, fc, expert, rows, columns)


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def gelu(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def plain(name, x):
    if name == "relu":
        return x if x > 0 else 0.0
    if name == "relu2":
        return math.nan if math.isnan(x) else max(0.0, x) ** 2
    return {"gelu": gelu, "silu": lambda v: v * sigmoid(v), "identity": lambda v: v}[name](x)


def swiglu(gate, linear, attributes):
    alpha = attributes.get("activation_alpha", 1.0)
    beta = attributes.get("activation_beta", 0.0)
    limit = attributes.get("swiglu_limit", math.inf)
    if math.isnan(limit):
        limit = math.inf
    if linear > limit:
        linear = limit
    if linear < -limit:
        linear = -limit
    if attributes.get("swiglu_limit_after_activation", 0):
        activated = gate * sigmoid(alpha * gate)
        activated = limit if activated > limit else activated
    else:
        gate = limit if gate > limit else gate
        activated = gate * sigmoid(alpha * gate)
    return activated * (linear + beta)


def sparse_mixer(logits):
    def first_largest(left_out):
        best = None
        for index, value in enumerate(logits):
            if index != left_out and (best is None or value > logits[best]):
                best = index
        return best

    def weight(winner, left_out):
        largest = logits[winner]
        total = 0.0
        for index, value in enumerate(logits):
            if index == left_out or largest - value > 2 * 0.01 * max(abs(value), largest):
                continue
            total += math.exp(value - largest)
        return 1 / total

    first = first_largest(None)
    second = first_largest(first)
    return [(first, weight(first, None)), (second, weight(second, first))]


def chosen(logits, row_weights, attributes):
    """[(expert, weight)] of one token."""
    if attributes.get("use_sparse_mixer", 0):
        return sparse_mixer(logits)
    order = sorted(range(len(logits)), key=lambda expert: (-logits[expert], expert))[: attributes.get("k", 1)]
    if row_weights is None:
        largest = max(logits)
        total = sum(math.exp(value - largest) for value in logits)
        weights = [math.exp(logits[expert] - largest) / total for expert in order]
    else:
        weights = [row_weights[expert] for expert in order]
    if attributes.get("normalize_routing_weights", 0):
        total = sum(weights)
        weights = [0.0 if total == 0 else weight / total for weight in weights]
    return list(zip(order, weights, strict=True))


def oracle(inputs, attributes, inter, matrices=None):
    given = inputs["input"]
    hidden = given.shape[-1]
    tokens = given.reshape(-1, hidden).astype(np.float64)
    logits = inputs["router_probs"].astype(np.float64)
    fused = attributes.get("swiglu_fusion", 0) if attributes.get("activation_type") in ("swiglu", "geglu") else 0
    result = np.zeros(tokens.shape)
    cache = dict(matrices or {})

    def apply(fc, expert, rows, vector):
        if (fc, expert) not in cache:
            cache[fc, expert] = matrix_of(inputs, attributes, fc, expert, rows, len(vector))
        bias = inputs.get(f"{fc}_experts_bias")
        product = cache[fc, expert] @ vector
        return product if bias is None else product + bias[expert].astype(np.float64)

    for token in range(len(tokens)):
        row_weights = inputs.get("router_weights")
        row_weights = None if row_weights is None else [float(value) for value in row_weights[token]]
        for expert, weight in chosen([float(value) for value in logits[token]], row_weights, attributes):
            first = apply("fc1", expert, inter * (2 if fused else 1), tokens[token])
            third = apply("fc3", expert, inter, tokens[token]) if "fc3_experts_weights" in inputs else None
            middle = np.zeros(inter)
            name = attributes.get("activation_type", "relu")
            for i in range(inter):
                if name in ("swiglu", "geglu"):
                    if fused == 1:
                        gate, linear = first[2 * i], first[2 * i + 1]
                    elif fused == 2:
                        gate, linear = first[i], first[inter + i]
                    else:
                        gate, linear = first[i], third[i]
                    middle[i] = gelu(gate) * linear if name == "geglu" else swiglu(gate, linear, attributes)
                else:
                    middle[i] = plain(name, first[i]) * (1 if third is None else third[i])
            result[token] += weight * apply("fc2", expert, hidden, middle)
    return result.reshape(given.shape)
