"""A layer whose experts are spread over workers, modelled from measured terms: `python -m benchmarks.scale MS CALL`.

MS is what a token takes of one thread in the layer of gpt-oss-20b, in milliseconds (`python -m benchmarks cluster`),
CALL what handing out one part takes, in milliseconds. The command's process sends tokens and takes results, one after
the other: its network is the narrow place. Prints a table as Markdown.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

WORKERS = (1, 2, 8, 64, 256, 1024)
NETWORKS = {"1 Gbit/s": 1.25e8, "10 Gbit/s": 1.25e9, "100 Gbit/s": 1.25e10}
"""Bytes a second."""
TOKENS = 4096
"""In a batch."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A layer: `weights` counts those of one expert."""

    name: str
    experts: int
    k: int
    hidden: int
    weights: int

    @property
    def sent(self) -> int:
        """Bytes for each token, there and back: float32, once for each choice."""
        return 2 * self.k * self.hidden * 4

    @property
    def packed(self) -> float:
        """Bytes of all weights, 4 bits in blocks of 32 with float32 scales."""
        return self.experts * self.weights * (0.5 + 4 / 32)


GPT_OSS = Shape("32 experts, 4 a token, hidden 2880 (gpt-oss-20b)", 32, 4, 2880, 3 * 2880 * 2880)
DEEPSEEK = Shape("256 experts, 8 a token, hidden 7168 (DeepSeek-V3)", 256, 8, 7168, 3 * 7168 * 2048)


def table(shape: Shape, seconds: float, call: float) -> str:
    """A row for each number of workers; `seconds` a token takes of one thread, `call` one part of handing out."""
    lines = [
        f"**{shape.name}**: {shape.sent:,} bytes a token, {seconds * 1e3:.2f} ms a token on one thread.\n",
        "| workers | weights each | kernels | " + " | ".join(NETWORKS) + " | decides at 10 Gbit/s |",
        "|---|---|---|" + "---|" * (len(NETWORKS) + 1),
    ]
    for workers in WORKERS:
        used = min(workers, shape.experts)
        kernels = TOKENS * seconds / used
        handing = call * used
        networks = [TOKENS * shape.sent / speed for speed in NETWORKS.values()]
        ten = networks[list(NETWORKS).index("10 Gbit/s")]
        decides = max((kernels, "kernels"), (ten, "network"), (handing, "handing out"))[1]
        cells = [f"{TOKENS / max(kernels, network, handing):,.0f}" for network in networks]
        row = [f"{workers:,}", f"{shape.packed / used / 1e6:,.0f} MB", f"{TOKENS / kernels:,.0f}", *cells, decides]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def crossing(shape: Shape, seconds: float, speed: float) -> float:
    """The number of workers from which on the network decides."""
    return seconds / (shape.sent / speed)


def main() -> None:
    """Prints the tables."""
    own, call = float(sys.argv[1]) / 1e3, float(sys.argv[2]) / 1e3
    for shape in (GPT_OSS, DEEPSEEK):
        seconds = own * shape.k * shape.weights / (GPT_OSS.k * GPT_OSS.weights)
        print(table(shape, seconds, call))
        points = ", ".join(f"{crossing(shape, seconds, speed):.1f} at {name}" for name, speed in NETWORKS.items())
        print(f"\nThe network decides from so many workers on: {points}.\n")


if __name__ == "__main__":
    main()
