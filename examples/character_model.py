"""Trains, quantizes and tunes a small language model of characters with a mixture of experts.

    python examples/character_model.py [--quick] [--picture FILE] [--threads N]

The text is that of Python's own help topics (`pydoc_data.topics`), so that nothing is downloaded. Two layers of causal
attention and 8 experts with SwiGLU are trained in float32. The experts are rounded to 4 and to 2 bits, and the
perplexity rises. Then scales, biases and router are tuned on the quantized graph, through QMoE's gradient, and it
falls again. At the end the tuned 2-bit model writes a few lines.

The same seed gives the same numbers on the same machine and with the same number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from time import perf_counter
from typing import Any

import numpy as np

from qmoe_node.packing import pack
from runtime import Graph, Session, Tensor
from runtime.training.curve import save_curve
from runtime.training.fillers import glorot_uniform
from runtime.training.metrics import perplexity
from runtime.training.optimizers import AdamW
from runtime.training.schedules import Schedule
from runtime.training.trainer import Progress, Settings, Trainer

LENGTH, HIDDEN, HEADS, LAYERS = 128, 96, 4, 2
EXPERTS, TOP, INNER = 8, 2, 64
BLOCK = 32
BATCH = 16
HELD_BACK = 0.1
RATE = 3e-3
TUNING_RATES = {4: 5e-5, 2: 3e-3}
"""By bits. 4 bits cost little, and large steps would only learn the training text by heart."""
SEED = 7
TABLE = "---+"
"""What paragraphs that are tables have in them."""
OPSETS = {"": 23, "com.microsoft": 1}
TRAINED = "trainable weight"
TUNED = ("router_weight", "fc1_experts_bias", "fc2_experts_bias", "fc1_scales", "fc2_scales")
"""What is tuned after quantization; all else stays as it is."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Plan:
    """How much is done: the text's first characters, and how often the model sees them."""

    characters: int | None = None
    training_epochs: int = 8
    tuning_epochs: int = 2
    sample: int = 400


QUICK = Plan(characters=12_000, training_epochs=3, sample=40)


@dataclass(frozen=True)
class Corpus:
    """A text as numbers: every character is its place in `alphabet`."""

    text: str
    alphabet: str
    training: np.ndarray
    validation: np.ndarray

    @property
    def fingerprint(self) -> str:
        """The first digits of the text's SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


# -- text -------------------------------------------------------------------------------------------------------------


def corpus(characters: int | None = None) -> Corpus:
    """The help topics in the order of their names, the last tenth of their text held back for validation.

    A paragraph that comes again is left out: else the model would have read a good part of the last tenth before. So
    are tables, which are mostly blanks.
    """
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    text = "\n\n".join(p for p in dict.fromkeys(paragraphs) if TABLE not in p)[:characters]
    alphabet = "".join(sorted(set(text)))
    places = {character: place for place, character in enumerate(alphabet)}
    numbers = np.array([places[character] for character in text], np.int64)
    cut = round(len(numbers) * (1 - HELD_BACK))
    return Corpus(text, alphabet, numbers[:cut], numbers[cut:])


def windows(numbers: np.ndarray, stride: int) -> Arrays:
    """Stretches of LENGTH characters (x), and the character that follows each of these (y)."""
    starts = np.arange(0, len(numbers) - LENGTH, stride)
    rows = starts[:, None] + np.arange(LENGTH)
    return {"x": numbers[rows], "y": numbers[rows + 1]}


def trigram_cross_entropy(training: np.ndarray, validation: np.ndarray, size: int) -> float:
    """The cross-entropy of a trigram model in nats: each character is told from the two before it.

    Counts are smoothed with a shorter context: p = (count + s q) / (all + s), where q is the probability from one
    character less. s is the one of a few that does best on the validation text, which is to the trigrams' favour.
    """
    best = np.inf
    for strength in (1, 2, 3, 5, 8, 12):
        probability = np.full(len(validation) - 2, 1 / size)
        for count in range(3):
            seen, asked = contexts(training, count, size), contexts(validation, count, size)
            together = np.bincount(seen * size + training[2:], minlength=size**3)[asked * size + validation[2:]]
            alone = np.bincount(seen, minlength=size**2)[asked]
            probability = (together + strength * probability) / (alone + strength)
        best = min(best, float(-np.log(probability).mean()))
    return best


def contexts(numbers: np.ndarray, count: int, size: int) -> np.ndarray:
    """For every character from the third on, the `count` characters before it as one number."""
    result = np.zeros(len(numbers) - 2, np.int64)
    for back in range(count, 0, -1):
        result = result * size + numbers[2 - back : -back]
    return result


# -- graph ------------------------------------------------------------------------------------------------------------


def first_weights(size: int) -> Arrays:
    """The float weights before training, for an alphabet of that size."""
    random = np.random.default_rng(SEED)
    numbers: Arrays = {
        "embedding_weight": 0.5 * random.standard_normal((size, HIDDEN)),
        "positions": 0.1 * random.standard_normal((LENGTH, HIDDEN)),
    }
    for layer in range(1, LAYERS + 1):
        numbers[f"norm{layer}_scale"] = np.ones(HIDDEN)
        for part in ("queries", "keys", "values", "mix"):
            numbers[f"{part}{layer}_weight"] = glorot_uniform(random, (HIDDEN, HIDDEN))
    numbers |= {
        "moe_norm_scale": np.ones(HIDDEN),
        "router_weight": glorot_uniform(random, (HIDDEN, EXPERTS)),
        "fc1_experts_weights": glorot_uniform(random, (EXPERTS, 2 * INNER, HIDDEN)),
        "fc1_experts_bias": np.zeros((EXPERTS, 2 * INNER)),
        "fc2_experts_weights": glorot_uniform(random, (EXPERTS, HIDDEN, INNER)),
        "fc2_experts_bias": np.zeros((EXPERTS, HIDDEN)),
        "last_norm_scale": np.ones(HIDDEN),
        "classifier_weight": glorot_uniform(random, (HIDDEN, size)),
    }
    return {name: array.astype(np.float32) for name, array in numbers.items()}


def add(graph: Graph, type: str, id: str, wires: Mapping[str, str], **parameters: Any) -> None:
    """A node, and wires from what it reads: "port": "node.port", or "port": "initializer"."""
    graph.add(type, id, parameters=parameters)
    for port, source in wires.items():
        graph.wire(source if "." in source else f"{source}.value", f"{id}.{port}")


def language_model(name: str, weights: Arrays, *, bits: int | None = None) -> Graph:
    """Characters -> causal attention -> experts -> logits of the next characters, and two losses.

    Experts are float without `bits`, and all weights are trained; with `bits`, only those of TUNED.
    """
    graph = Graph(name, opsets=OPSETS)
    for port in "xy":
        graph.add("Input", port, parameters={"type": "tensor(int64)", "shape": ["windows", LENGTH]})
    for id, array in weights.items():
        parameters: dict[str, Any] = {"tensor": Tensor.from_array(array)}
        if bits is None or id in TUNED:
            parameters["training_type"] = TRAINED
        graph.add("Initializer", id, parameters=parameters)
    add(graph, "Gather", "embedding", {"data": "embedding_weight", "indices": "x"})
    add(graph, "Add", "placed", {"A": "embedding.output", "B": "positions"})
    stream = "placed.C"
    for layer in range(1, LAYERS + 1):
        stream = add_attention(graph, stream, layer)
    graph.add("Initializer", "token_shape", parameters={"tensor": Tensor.from_array(np.array([-1, HIDDEN]))})
    graph.add("Initializer", "flat_shape", parameters={"tensor": Tensor.from_array(np.array([-1]))})
    add(graph, "Reshape", "tokens", {"data": stream, "shape": "token_shape"})
    add_experts(graph, "tokens.reshaped", weights, bits)
    add(graph, "Add", "mixed", {"A": "tokens.reshaped", "B": "moe.output"})
    add(graph, "RMSNormalization", "last_norm", {"X": "mixed.C", "scale": "last_norm_scale"})
    add(graph, "MatMul", "classifier", {"A": "last_norm.Y", "B": "classifier_weight"})
    add(graph, "Reshape", "next", {"data": "y", "shape": "flat_shape"})
    add(
        graph,
        "qmoe.loss.SparseCategoricalCrossentropy",
        "entropy",
        {"y_pred": "classifier.Y", "y_true": "next.reshaped"},
        from_logits=True,
    )
    for id, source in (("logits", "classifier.Y"), ("loss", "entropy.loss"), ("balance_loss", "balance.loss")):
        add(graph, "Output", id, {"value": source})
    return graph


def add_attention(graph: Graph, stream: str, layer: int) -> str:
    """A layer of causal attention with its norm and its residual; returns where its values are."""
    norm, attention, mix = f"norm{layer}", f"attention{layer}", f"mix{layer}"
    add(graph, "RMSNormalization", norm, {"X": stream, "scale": f"{norm}_scale"})
    for part in ("queries", "keys", "values"):
        add(graph, "MatMul", f"{part}{layer}", {"A": f"{norm}.Y", "B": f"{part}{layer}_weight"})
    wires = {"Q": f"queries{layer}.Y", "K": f"keys{layer}.Y", "V": f"values{layer}.Y"}
    add(graph, "Attention", attention, wires, is_causal=1, q_num_heads=HEADS, kv_num_heads=HEADS)
    add(graph, "MatMul", mix, {"A": f"{attention}.Y", "B": f"{mix}_weight"})
    add(graph, "Add", f"attended{layer}", {"A": stream, "B": f"{mix}.Y"})
    return f"attended{layer}.C"


def add_experts(graph: Graph, stream: str, weights: Arrays, bits: int | None) -> None:
    """The norm, the router with its loss, and the experts."""
    settings = {"k": TOP, "activation_type": "swiglu", "swiglu_fusion": 1, "normalize_routing_weights": 1}
    if bits:
        settings |= {"expert_weight_bits": bits, "block_size": BLOCK}
    add(graph, "RMSNormalization", "moe_norm", {"X": stream, "scale": "moe_norm_scale"})
    add(graph, "MatMul", "router", {"A": "moe_norm.Y", "B": "router_weight"})
    wires = {"input": "moe_norm.Y", "router_probs": "router.Y"}
    wires |= {id: id for id in weights if id.startswith("fc")}
    add(graph, "com.microsoft.QMoE" if bits else "com.microsoft.MoE", "moe", wires, **settings)
    add(graph, "qmoe.loss.LoadBalancing", "balance", {"router_logits": "router.Y"}, k=TOP)


# -- training and quantization ----------------------------------------------------------------------------------------


def weights_of(graph: Graph) -> Arrays:
    """The weights of a graph by id."""
    return {
        id: s.parameters["tensor"].array()
        for id, s in graph.nodes.items()
        if s.type == "Initializer" and not id.endswith("_shape")
    }


def rounded(weights: Arrays, bits: int) -> Arrays:
    """The experts in codes of `bits` bits: every block gets the scale and the zero point of its range."""
    result, most = dict(weights), 2**bits - 1
    for projection in ("fc1", "fc2"):
        own = result.pop(f"{projection}_experts_weights")
        blocks = own.reshape(*own.shape[:2], -1, BLOCK)
        low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
        scales = ((high - low) / most).astype(np.float32)
        zeros = np.rint(-low / scales).astype(np.uint8)
        codes = np.clip(np.rint(blocks / scales[..., None]) + zeros[..., None], 0, most).astype(np.uint8)
        result[f"{projection}_experts_weights"] = pack(codes.reshape(own.shape), bits)
        result[f"{projection}_scales"] = scales
        result[f"{projection}_zero_points"] = pack(zeros, bits)
    return result


def trained(graph: Graph, text: Corpus, rate: float, epochs: int, threads: int) -> tuple[Graph, list[dict[str, float]]]:
    """The graph after training and its losses in each epoch; a line for every epoch."""
    training, held_back = windows(text.training, LENGTH // 2), windows(text.validation, LENGTH)
    data = {name: np.concatenate([training[name], held_back[name]]) for name in training}
    steps = epochs * -(-len(training["x"]) // BATCH)
    warm_up = min(100, steps // 10)
    settings = Settings(
        losses={"loss": 1.0, "balance_loss": 0.01},
        optimizer=AdamW(weight_decay=0.1),
        schedule=Schedule(rate, "cosine", steps=steps - warm_up, warm_up=warm_up),
        epochs=epochs,
        batch_size=BATCH,
        seed=SEED,
        validation=len(held_back["x"]) / len(data["x"]),
        clip_norm=1.0,
    )
    trainer = Trainer(graph, data, settings, threads=threads)
    shown, start = 0, perf_counter()

    def tell(progress: Progress | None = None) -> None:
        nonlocal shown
        for entry in trainer.history[shown:]:
            shown += 1
            numbers = f"training loss {entry['loss']:.4f}, validation loss {entry['validation loss']:.4f}"
            print(f"  epoch {shown}: {numbers}", flush=True)

    result = trainer.run(tell)
    tell()
    print(f"  {steps:,} steps in {perf_counter() - start:.0f} s")
    return result, trainer.history


def cross_entropy(graph: Graph, text: Corpus, threads: int) -> float:
    """The mean loss on the validation text, in nats a character."""
    data = windows(text.validation, LENGTH)
    session, total = Session(graph, threads=threads), 0.0
    for start in range(0, len(data["x"]), BATCH):
        batch = {name: array[start : start + BATCH] for name, array in data.items()}
        total += float(session.forward(batch)["loss"]) * len(batch["x"])
    return total / len(data["x"])


def expert_bytes(graph: Graph) -> int:
    """The bytes of the experts: weights, biases, scales and zero points."""
    return sum(array.nbytes for id, array in weights_of(graph).items() if id.startswith("fc"))


# -- writing ----------------------------------------------------------------------------------------------------------


def written(graph: Graph, text: Corpus, start: str, count: int, temperature: float = 0.6, threads: int = 1) -> str:
    """`start` and `count` characters that the model draws after it; a temperature of 0 takes the likeliest."""
    random, session = np.random.default_rng(SEED), Session(graph, threads=threads)
    numbers = [text.alphabet.index(character) for character in start]
    for _ in range(count):
        known = numbers[-LENGTH:]
        window = np.zeros((1, LENGTH), np.int64)  # the zeros behind what is known do not count: all is causal
        window[0, : len(known)] = known
        logits = session.forward({"x": window, "y": window})["logits"][len(known) - 1].astype(np.float64)
        numbers.append(drawn(random, logits, temperature))
    return "".join(text.alphabet[number] for number in numbers)


def drawn(random: np.random.Generator, logits: np.ndarray, temperature: float) -> int:
    """One number by its probability."""
    if temperature == 0:
        return int(logits.argmax())
    odds = np.exp((logits - logits.max()) / temperature)
    return int(random.choice(len(odds), p=odds / odds.sum()))


# -- all of it --------------------------------------------------------------------------------------------------------


def run(plan: Plan, picture: Path | None = None, threads: int = 2) -> dict[str, float]:
    """Does everything and prints it; returns the validation losses by name."""
    begin = perf_counter()
    text = corpus(plan.characters)
    size = len(text.alphabet)
    print(f"Python {platform.python_version()}: {len(text.text):,} characters, {size} different, {text.fingerprint}")
    losses = {"trigrams": trigram_cross_entropy(text.training, text.validation, size)}
    show("trigrams", losses)

    print("float experts")
    start = language_model("character_model_float", first_weights(size))
    floats, history = trained(start, text, RATE, plan.training_epochs, threads)
    losses["first epoch"] = history[0]["validation loss"]
    losses["float"] = cross_entropy(floats, text, threads)
    show("float", losses, floats)
    if picture is not None:
        save_curve(picture, history, ["loss", "validation loss"])

    tuned = floats
    for bits in (4, 2):
        print(f"{bits}-bit experts")
        coarse = language_model(f"character_model_{bits}_bits", rounded(weights_of(floats), bits), bits=bits)
        losses[f"{bits} bits"] = cross_entropy(coarse, text, threads)
        show(f"{bits} bits", losses, coarse)
        tuned, _ = trained(coarse, text, TUNING_RATES[bits], plan.tuning_epochs, threads)
        losses[f"{bits} bits, tuned"] = cross_entropy(tuned, text, threads)
        show(f"{bits} bits, tuned", losses, tuned)

    print("The tuned 2-bit model writes:")
    print(written(tuned, text, "The ", plan.sample, threads=threads))
    print(f"{(perf_counter() - begin) / 60:.1f} minutes")
    return losses


def show(name: str, losses: Mapping[str, float], graph: Graph | None = None) -> None:
    """A line with the perplexity on the validation text."""
    size = "" if graph is None else f"; experts of {expert_bytes(graph):,} bytes"
    print(f"{name}: perplexity {perplexity(losses[name]):.3f} on the validation text{size}", flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Trains, quantizes and tunes a small language model of characters.")
    parser.add_argument("--quick", action="store_true", help="a small part of the text: seconds, not minutes")
    parser.add_argument("--picture", type=Path, help="where the losses go as a PNG")
    parser.add_argument("--threads", type=int, default=2, help="of ONNX Runtime; other numbers, other roundings")
    arguments = parser.parse_args()
    run(QUICK if arguments.quick else Plan(), arguments.picture, arguments.threads)


if __name__ == "__main__":
    main()
