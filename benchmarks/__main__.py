"""`make bench`: what users would run instead, in the same run on the same machine; writes docs/benchmarks.md.

python -m benchmarks            everything, within half an hour
python -m benchmarks --quick    less of it, within five minutes
python -m benchmarks forward    one part, printed only
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

PARTS = {
    "daily": "Every day",
    "forward": "Forward passes",
    "backward": "Backward passes",
    "files": "Large files",
    "quantizers": "Quantizing",
    "editor": "The editor",
    "cluster": "Workers on Ray",
    "growth": "Growth",
}
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Written by `make bench` (`make bench QUICK=1` takes a part of it; `python -m benchmarks PART` prints one section).
Figures are medians, ± half the distance between the quartiles; a peer is run in turn with ours in the same process, or
each in processes of their own. The layer is a block of gpt-oss-20b: 32 experts, hidden = inter = 2880, k = 4, SwiGLU,
400 MB packed. Peers are ONNX Runtime on the same file as it is, where nothing else is said.

"""


def main() -> None:
    """Runs parts, each in a process of its own."""
    words = [word for word in sys.argv[1:] if word != "--quick"]
    quick, as_json = "--quick" in sys.argv, "--json" in words
    chosen = [word for word in words if word != "--json"]
    unknown = [word for word in chosen if word not in PARTS]
    if unknown:
        sys.exit(f"{unknown[0]}: expected parts of {', '.join(PARTS)}, --quick")
    if as_json:
        (part,) = chosen
        for figure in importlib.import_module(f"benchmarks.{part}").figures(quick):
            print(json.dumps(figure.as_dict()), flush=True)
        return
    text = "" if chosen else HEAD + _machine(quick)
    for part in chosen or PARTS:
        begun = time.monotonic()
        section = _section(part, quick)
        print(section, flush=True)
        print(f"{part}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        text += section
    if not chosen:
        PAGE.write_text(text.rstrip() + "\n", encoding="utf-8")
        print(f"Written to {PAGE}.")


def _section(part: str, quick: bool) -> str:
    from benchmarks.figures import THREADS, Figure

    command = [sys.executable, "-m", "benchmarks", part, "--json", *(["--quick"] if quick else [])]
    # Products have as many threads as ONNX Runtime has, which does not ask for them here.
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "OPENBLAS_NUM_THREADS": str(THREADS)}
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # NumPy's products are those of this processor
        environment.pop(name, None)
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    lines = [f"## {PARTS[part]}\n", "| what | here | peer | compared | target | |", "|---|---|---|---|---|---|"]
    for line in run.stdout.splitlines():
        if line.startswith("{"):
            lines.append(_row(Figure(**json.loads(line))))
    return "\n".join(lines) + "\n\n" + _limits(part)


def _limits(part: str) -> str:
    """What is said below a section: why a target is missed, and how that was found."""
    text = (Path(__file__).parent / "limits.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {part}\n\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return f"{found[1].strip()}\n\n" if found else ""


def _row(figure: object) -> str:
    from benchmarks.figures import Figure

    assert isinstance(figure, Figure)
    here = f"{_number(figure.ours)} {figure.unit}" + (f" ± {_number(figure.spread)}" if figure.spread else "")
    peer = f"{_number(figure.peer)} {figure.unit}" if figure.peer is not None else ""
    value = figure.value
    compared = "" if value is None or figure.compared in ("ours", "") else f"{value:.2f}x"
    if compared:
        compared += " as fast" if figure.compared == "speed" else " of it"
    target = ""
    if figure.target is not None:
        sign = "≥" if figure.compared == "speed" else "≤"
        unit = f" {figure.unit}" if figure.compared == "ours" else "x"
        target = f"{sign} {_number(figure.target)}{unit}" + (" ✓" if figure.is_met else " **missed**")
    return f"| {figure.what} | {here} | {peer} | {compared} | {target} | {figure.note} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _machine(quick: bool) -> str:
    import numpy
    import onnx
    import onnxruntime

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    versions = f"Python {platform.python_version()}, NumPy {numpy.__version__}, ONNX {onnx.__version__}, "
    form = "the quick form" if quick else "the full form"
    machine = f"{day}, {form}: {model}, {os.cpu_count()} cores, two threads"
    return f"{machine}; {versions}ONNX Runtime {onnxruntime.__version__}.\n\n"


if __name__ == "__main__":
    main()
