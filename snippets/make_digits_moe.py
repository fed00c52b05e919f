"""Trains, quantizes and tunes a mixture-of-experts classifier of handwritten digits: writes digits_moe*.yaml.

    python snippets/make_digits_moe.py [FOLDER]

A router, 8 experts with SwiGLU and a classifier are trained in float32. The experts are rounded to 4 and to 2 bits; 4
cost next to nothing, with 2 the accuracy falls. Then scales, biases, router and classifier are tuned on the quantized
graph, through QMoE's gradient, and it comes back. The graphs with 2 bits are written. The same seed gives the same
files on the same machine. The last 360 images are the test split: no training sees them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from qmoe_node.packing import pack
from runtime import Graph, Session, Tensor, save
from runtime.arrays import write_arrays
from runtime.training.fillers import glorot_uniform
from runtime.training.metrics import accuracy
from runtime.training.optimizers import AdamW
from runtime.training.schedules import Schedule
from runtime.training.trainer import Settings, Trainer

EXPERTS, TOP, PIXELS, INNER, CLASSES = 8, 2, 64, 32, 10
BLOCK = 32
TEST = 360
DATA = "digits_moe.data.npz"
SEED = 7
TRAINED = "trainable weight"


def images(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Training and test split: x float32 [images, 64] within 0 and 1, y int64 [images]."""
    with np.load(folder / "digits.npz") as archive:
        x, y = archive["images"].astype(np.float32) / 16, archive["digits"].astype(np.int64)
    return {"x": x[:-TEST], "y": y[:-TEST]}, {"x": x[-TEST:], "y": y[-TEST:]}


def classifier(name: str, doc: str, weights: dict[str, np.ndarray], *, bits: int | None = None) -> Graph:
    """x -> router -> experts -> classifier -> logits, and the loss beside y; experts are float without `bits`."""
    graph = Graph(name, opsets={"": 21, "com.microsoft": 1})
    graph.set("", "doc", doc, section="info")
    data = {"source": {"file": DATA}}
    graph.add("Input", "x", parameters={"type": "tensor(float)", "shape": ["images", PIXELS]}, layout=data)
    graph.add("Input", "y", parameters={"type": "tensor(int64)", "shape": ["images"]}, layout=data)
    for id, array in weights.items():
        parameters: dict[str, object] = {"tensor": Tensor.from_array(array)}
        if array.dtype == np.float32:
            parameters["training_type"] = TRAINED
        graph.add("Initializer", id, parameters=parameters)
    settings = {"k": TOP, "activation_type": "swiglu", "swiglu_fusion": 1, "normalize_routing_weights": 1}
    if bits:
        settings |= {"expert_weight_bits": bits, "block_size": BLOCK}
    graph.add("MatMul", "router")
    graph.add("com.microsoft.QMoE" if bits else "com.microsoft.MoE", "moe", parameters=settings)
    graph.add("Gemm", "classifier")
    graph.add("qmoe.loss.SparseCategoricalCrossentropy", "entropy", parameters={"from_logits": True})
    graph.add("qmoe.loss.LoadBalancing", "balance", parameters={"k": TOP})
    for id, source in (("logits", "classifier.Y"), ("loss", "entropy.loss"), ("balance_loss", "balance.loss")):
        graph.add("Output", id)
        graph.wire(source, f"{id}.value")
    wires = {
        "router.A": "x.value",
        "router.B": "router_weight.value",
        "moe.input": "x.value",
        "moe.router_probs": "router.Y",
        "classifier.A": "moe.output",
        "classifier.B": "classifier_weight.value",
        "classifier.C": "classifier_bias.value",
        "entropy.y_pred": "classifier.Y",
        "entropy.y_true": "y.value",
        "balance.router_logits": "router.Y",
    }
    wires |= {f"moe.{id}": f"{id}.value" for id in weights if id.startswith("fc")}
    for target, source in wires.items():
        graph.wire(source, target)
    return graph


def first_weights() -> dict[str, np.ndarray]:
    """The float weights before training."""
    random = np.random.default_rng(SEED)
    numbers = {
        "router_weight": glorot_uniform(random, (PIXELS, EXPERTS)),
        "fc1_experts_weights": glorot_uniform(random, (EXPERTS, 2 * INNER, PIXELS)),
        "fc1_experts_bias": np.zeros((EXPERTS, 2 * INNER)),
        "fc2_experts_weights": glorot_uniform(random, (EXPERTS, PIXELS, INNER)),
        "fc2_experts_bias": np.zeros((EXPERTS, PIXELS)),
        "classifier_weight": glorot_uniform(random, (PIXELS, CLASSES)),
        "classifier_bias": np.zeros(CLASSES),
    }
    return {name: array.astype(np.float32) for name, array in numbers.items()}


def weights_of(graph: Graph) -> dict[str, np.ndarray]:
    """The tensors of a graph by id."""
    return {id: s.parameters["tensor"].array() for id, s in graph.nodes.items() if s.type == "Initializer"}


def rounded(weights: dict[str, np.ndarray], bits: int) -> dict[str, np.ndarray]:
    """The experts with codes of `bits` bits: every block gets the scale and the zero point of its range."""
    result, most = dict(weights), 2**bits - 1
    for fc in ("fc1", "fc2"):
        own = result.pop(f"{fc}_experts_weights")
        blocks = own.reshape(*own.shape[:2], -1, BLOCK)
        low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
        scales = ((high - low) / most).astype(np.float32)
        zeros = np.rint(-low / scales).astype(np.uint8)
        codes = np.clip(np.rint(blocks / scales[..., None]) + zeros[..., None], 0, most).astype(np.uint8)
        result[f"{fc}_experts_weights"] = pack(codes.reshape(own.shape), bits)
        result[f"{fc}_scales"] = scales
        result[f"{fc}_zero_points"] = pack(zeros, bits)
    return dict(sorted(result.items()))


def trained(graph: Graph, data: dict[str, np.ndarray], rate: float, epochs: int) -> Graph:
    """The graph after training; a line for every tenth epoch."""
    batch = 32
    steps = epochs * -(-len(data["y"]) // batch)
    settings = Settings(
        losses={"loss": 1.0, "balance_loss": 0.01},
        optimizer=AdamW(weight_decay=0.01),
        schedule=Schedule(rate, "cosine", steps=steps),
        epochs=epochs,
        batch_size=batch,
        seed=SEED,
        clip_norm=1.0,
    )
    trainer = Trainer(graph, data, settings, threads=1)
    result = trainer.run()
    for epoch in range(9, len(trainer.history), 10):
        print(f"  epoch {epoch + 1}: loss {trainer.history[epoch]['loss']:.4f}")
    return result


def right(graph: Graph, data: dict[str, np.ndarray]) -> float:
    """The accuracy on a split."""
    return accuracy(Session(graph, threads=1).forward(data)["logits"], data["y"])


def main() -> None:
    """Writes the float graph, and those with 2 bits before and after they are tuned."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    training, test = images(Path(__file__).parent)

    def tell(graph: Graph) -> None:
        shares = f"{right(graph, training):.2%} of the training split, {right(graph, test):.2%} of the test split"
        print(f"{graph.name}: {shares}")

    print("float")
    start = classifier("digits_moe_float", "A mixture of 8 experts that tells handwritten digits.", first_weights())
    floats = trained(start, training, 3e-3, 40)
    tell(floats)
    for bits in (4, 2):
        suffix = "" if bits == 2 else f"_{bits}_bits"
        coarse = classifier(
            f"digits_moe_quantized{suffix}",
            f"The classifier of digits_moe_float with experts rounded to {bits} bits.",
            rounded(weights_of(floats), bits),
            bits=bits,
        )
        tell(coarse)
        print(f"{bits} bits, tuned")
        tuned = trained(coarse, training, 2e-3, 20)
        tuned.set("", "name", f"digits_moe{suffix}", section="info")
        tuned.set(
            "",
            "doc",
            f"A mixture of 8 experts with {bits}-bit weights that tells handwritten digits: scales, biases, router and "
            "classifier were tuned through QMoE's gradient.",
            section="info",
        )
        tell(tuned)
    write_arrays(folder / DATA, test)
    for graph in (floats, coarse, tuned):
        for form in ("yaml", "png"):
            save(graph, folder / f"{graph.name}.{form}")


if __name__ == "__main__":
    main()
