"""Where the snippets are that come along."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from runtime.errors import FileError

KNOWN = "digits_moe.yaml"


def snippets_folder() -> Path:
    """Where the snippets are that come along: in the checkout, or inside the installed package."""
    checkout = Path(__file__).parent.parent / "snippets"
    if (checkout / KNOWN).is_file():
        return checkout
    installed = Path(str(resources.files("qmoe_node") / "snippets"))
    if not (installed / KNOWN).is_file():
        raise FileError(installed / KNOWN, "is not there; the installation is incomplete.")
    return installed
