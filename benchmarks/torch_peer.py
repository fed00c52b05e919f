"""The same work in torch, run by the Python of an environment that has it: no dependency, and imported by nobody.

python torch_peer.py THREADS layer FOLDER FORM    the layer whose arrays lie in FOLDER; FORM: shifts, table, resident
python torch_peer.py THREADS digits FOLDER        training steps of the classifier of digits
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

RUNS = 3


def read(folder, *names):
    return [torch.from_numpy(np.load(Path(folder, f"{name}.npy"))) for name in names]


def swiglu(h):
    """With gpt-oss's constants, on interleaved gates and linear parts."""
    gate, linear = h[:, ::2].clamp(max=7.0), h[:, 1::2].clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (linear + 1)


TABLE = torch.tensor([[code % 16 - 8, code // 16 - 8] for code in range(256)], dtype=torch.float32)


def by_table(codes):
    """As transformers decodes gpt-oss's own weights: each byte looks up its two values."""
    return TABLE[codes.int()]


def by_shifts(codes):
    return torch.stack((codes & 15, codes >> 4), -1).to(torch.float32) - 8


def layer(folder, form):
    """Seconds of a forward and a backward pass: y, and the gradients of input, router, scales (or weights), biases.

    What belongs to one expert is a leaf of its own: slices of one leaf would each have a gradient as large as it all.
    """
    x, router, upstream = read(folder, "x", "router", "upstream")
    codes = list(zip(*(codes.unbind() for codes in read(folder, "fc1_codes", "fc2_codes")), strict=True))
    scales = list(zip(*(scales.unbind() for scales in read(folder, "fc1_scales", "fc2_scales")), strict=True))
    biases = list(zip(*(biases.unbind() for biases in read(folder, "fc1_bias", "fc2_bias")), strict=True))
    block = 2 * codes[0][0].shape[1] // scales[0][0].shape[1]
    unpack = by_table if form == "table" else by_shifts

    def dequantized(codes, scales):
        values = unpack(codes).reshape(len(codes), -1, block)
        return (values * scales[..., None]).reshape(len(codes), -1)

    def mlp(t, w1, w2, b1, b2):
        return swiglu(t @ w1.T + b1) @ w2.T + b2

    def packed_mlp(t, c1, c2, s1, s2, b1, b2):
        return mlp(t, dequantized(c1, s1), dequantized(c2, s2), b1, b2)

    if form == "resident":
        weights = [tuple(map(dequantized, *own)) for own in zip(codes, scales, strict=True)]
        trained = weights

        def expert(e, t):
            return mlp(t, *weights[e], *biases[e])
    else:
        trained = scales

        def expert(e, t):
            return checkpoint(packed_mlp, t, *codes[e], *scales[e], *biases[e], use_reentrant=False)

    leaves = [x, router, *(leaf for own in (*trained, *biases) for leaf in own)]
    for leaf in leaves:
        leaf.requires_grad_()
    times = []
    for _ in range(RUNS + 1):
        for leaf in leaves:
            leaf.grad = None
        start = time.perf_counter()
        top = torch.topk(router, 4)
        shares = torch.softmax(top.values, -1)
        y = torch.zeros_like(x)
        for e in range(len(codes)):
            tokens, choices = torch.where(top.indices == e)
            if len(tokens):
                y = y.index_add(0, tokens, expert(e, x[tokens]) * shares[tokens, choices, None])
        y.backward(upstream)
        times.append(time.perf_counter() - start)
    found = {"y": y.detach(), "x": x.grad, "router": router.grad}
    found |= {f"fc{i + 1}_experts_bias": torch.stack([own[i].grad for own in biases]) for i in range(2)}
    if form != "resident":
        found |= {f"fc{i + 1}_scales": torch.stack([own[i].grad for own in scales]) for i in range(2)}
    for name, array in found.items():
        np.save(Path(folder, f"{form} {name}.npy"), array.numpy())
    return {"seconds": statistics.median(times[1:])}


def digits(folder):
    """Seconds of a training step: forward, backward and Adam, of 8 experts with 2-bit codes that are unpacked once."""
    names = ["router", "c1", "c2", "s1", "s2", "b1", "b2", "classifier", "bias"]
    router, c1, c2, s1, s2, b1, b2, classifier, bias = read(folder, *names)  # codes less zero points, as floats
    trained = [p.requires_grad_() for p in (router, s1, s2, b1, b2, classifier, bias)]
    images, labels = read(folder, "images", "labels")
    block = c1.shape[2] // s1.shape[2]
    optimizer = torch.optim.Adam(trained, lr=1e-3)

    def dequantized(codes, scales):
        return (codes.view(*scales.shape, block) * scales[..., None]).view(codes.shape)

    def activate(h):
        return h[..., ::2] * torch.sigmoid(h[..., ::2]) * h[..., 1::2]

    def expert_by_expert(x, top, weights):
        w1, w2 = dequantized(c1, s1), dequantized(c2, s2)
        y = torch.zeros_like(x)
        for e in range(len(c1)):
            tokens, choices = torch.where(top.indices == e)
            out = activate(x[tokens] @ w1[e].T + b1[e]) @ w2[e].T + b2[e]
            y = y.index_add(0, tokens, out * weights[tokens, choices, None])
        return y

    def all_at_once(x, top, weights):
        w1, w2 = dequantized(c1, s1), dequantized(c2, s2)
        h = activate(torch.matmul(x, w1.transpose(1, 2)) + b1[:, None])
        out = torch.matmul(h, w2.transpose(1, 2)) + b2[:, None]
        shares = torch.zeros(len(x), len(c1)).scatter(1, top.indices, weights)
        return torch.einsum("te,eth->th", shares, out)

    found = {}
    for mixture in (expert_by_expert, all_at_once):
        times = []
        for step in range(200):
            rows = torch.arange(128) + 128 * (step % 11)
            start = time.perf_counter()
            x, y = images[rows], labels[rows]
            top = torch.topk(x @ router, 2)
            logits = mixture(x, top, torch.softmax(top.values, -1)) @ classifier + bias
            loss = torch.nn.functional.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            times.append(time.perf_counter() - start)
            if not step:
                found["loss"] = loss.item() if "loss" not in found else found["loss"]
        found[mixture.__name__] = statistics.median(times[20:])
    return found


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps({"layer": layer, "digits": digits}[sys.argv[2]](*sys.argv[3:])))
