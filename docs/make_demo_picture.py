"""Draws docs/demo.svg, the picture in the README: what `qmoe demo` prints.

python docs/make_demo_picture.py
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console

from runtime import reports

PICTURE = Path(__file__).parent / "demo.svg"


def main() -> None:
    """Runs the demonstration on a console that remembers what is printed."""
    # demonstration takes the console from reports when it is imported.
    reports.console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True, highlight=False)
    from runtime import demonstration

    demonstration.show()
    # rich's own frame would fetch a font from the network.
    frame = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    frame = frame.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")
    PICTURE.write_text(reports.console.export_svg(title="make run", code_format=frame, unique_id="demo"))


if __name__ == "__main__":
    main()
