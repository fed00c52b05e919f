"""What methods and tuning do to the outputs of small real blocks, on tokens that they have not seen.

python -m benchmarks.quality

The blocks are those in tests/data/peers (hidden 64, 8 experts of 96); tokens are random, of the size that the peers'
own reference inputs have. 2,048 are for calibration and tuning, 1,024 others for the error.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from qmoe_node.block_graphs import block_graph, samples_of
from qmoe_node.checkpoints import Checkpoint
from qmoe_node.conversion import Plan, convert, relative
from qmoe_node.families import blocks
from qmoe_node.tuning import tuned
from runtime import Session

PEERS = Path(__file__).resolve().parents[1] / "tests" / "data" / "peers"
FAMILIES = ("gpt_oss", "mixtral", "qwen3_moe")
METHODS = ("nearest", "least-squares", "half-quadratic", "awq", "gptq")
SIZE, STEPS = 1.96, 1000


def main() -> None:
    """Prints a table."""
    table = Table("block", "bits", *METHODS, f"nearest, tuned {STEPS} steps", "change", title="error of the outputs, %")
    for family in FAMILIES:
        checkpoint = Checkpoint(PEERS / family)
        block = list(blocks(checkpoint))[-1]
        random = np.random.default_rng(0)
        tokens = (SIZE * random.standard_normal((3072, block.hidden))).astype(np.float32)
        samples, unseen = samples_of(checkpoint, block, tokens[:2048]), tokens[None, 2048:]
        alone = replace(block, shared=None)
        expected = Session(block_graph(checkpoint, alone)).forward({"hidden_states": unseen})["output"]
        for bits in (4, 2):
            errors = []
            for method in METHODS:
                plan = Plan(bits, 32, method == "half-quadratic", method)  # type: ignore[arg-type]
                graph = block_graph(checkpoint, alone, convert(block.mixture, plan, samples))
                errors.append(relative(Session(graph).forward({"hidden_states": unseen})["output"], expected))
            made = convert(block.mixture, Plan(bits, 32), samples)
            graph = block_graph(checkpoint, alone, made)
            assert made.outputs is not None
            weights = tuned(graph, {"hidden_states": samples.tokens[:, None]}, made.outputs[:, None], STEPS)
            for id, tensor in weights.items():
                graph.set(id, "tensor", tensor)
            error = relative(Session(graph).forward({"hidden_states": unseen})["output"], expected)
            change = f"{error / errors[0] - 1:+.1%}"
            table.add_row(family, str(bits), *(f"{100 * e:.2f}" for e in errors), f"{100 * error:.2f}", change)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
