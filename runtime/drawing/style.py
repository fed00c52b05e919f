"""Colours: of nodes by family, of wires by element type, in a light and a dark theme."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.drawing.canvas import Colour
from runtime.types import ElementType, TensorType, ValueType


def _rgb(text: str) -> Colour:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of a picture or a window."""

    name: str
    background: Colour
    grid: Colour
    box: Colour
    edge: Colour
    ink: Colour
    faint: Colour
    title_ink: Colour
    terminal: Colour
    error: Colour
    warning: Colour
    ok: Colour
    selected: Colour
    shade: float
    """How much of a title's or a wire's colour is left; the rest is that of the background."""

    def title(self, family: str) -> Colour:
        """The colour behind the title of a node of a family."""
        return blend(_rgb(FAMILY_COLOURS.get(family, "#5c6773")), self.background, self.shade)

    def wire(self, value: ValueType | None) -> Colour:
        """The colour of a wire that carries a value."""
        return blend(_rgb(_wire_colour(value)), self.background, self.shade if self.shade > 0.9 else 0.95)


LIGHT = Theme(
    "light",
    background=_rgb("#ffffff"),
    grid=_rgb("#eef1f4"),
    box=_rgb("#fbfcfd"),
    edge=_rgb("#a7b2be"),
    ink=_rgb("#1d252d"),
    faint=_rgb("#66727f"),
    title_ink=_rgb("#ffffff"),
    terminal=_rgb("#f0f3f6"),
    error=_rgb("#d3222a"),
    warning=_rgb("#c77700"),
    ok=_rgb("#16864a"),
    selected=_rgb("#1677d2"),
    shade=1.0,
)
DARK = Theme(
    "dark",
    background=_rgb("#1b1f24"),
    grid=_rgb("#252a31"),
    box=_rgb("#262c33"),
    edge=_rgb("#4b5560"),
    ink=_rgb("#e6eaee"),
    faint=_rgb("#9aa5b1"),
    title_ink=_rgb("#ffffff"),
    terminal=_rgb("#2d343c"),
    error=_rgb("#ff5c61"),
    warning=_rgb("#f0a63a"),
    ok=_rgb("#4cc283"),
    selected=_rgb("#4aa8ff"),
    shade=0.82,
)
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}

FAMILY_COLOURS = {
    "graph": "#5c6773",
    "mixture": "#7a3fb0",
    "math": "#2f6db3",
    "reduction": "#2f6db3",
    "tensor": "#4a6a7c",
    "logic": "#2c8a4b",
    "network": "#137c8b",
    "attention": "#0f6f9c",
    "recurrent": "#137c8b",
    "quantization": "#b0492f",
    "loss": "#b03a6b",
    "control": "#8a6d1f",
    "sequence": "#6b6f2a",
    "generator": "#4f7a3a",
    "image": "#137c8b",
    "text": "#a8458c",
    "classical": "#6f5b4b",
    "other": "#5c6773",
}

_WIRE_COLOURS = {
    "unknown": "#8b96a1",
    "float": "#e07b16",
    "half": "#c9971a",
    "eighth": "#b3541e",
    "integer": "#2468c8",
    "unsigned": "#1793a6",
    "bool": "#2f9e44",
    "string": "#c2379a",
    "complex": "#8a5a2b",
    "container": "#7a5cc4",
}

_CLASSES = {
    ElementType.FLOAT: "float",
    ElementType.DOUBLE: "float",
    ElementType.FLOAT16: "half",
    ElementType.BFLOAT16: "half",
    ElementType.BOOL: "bool",
    ElementType.STRING: "string",
    ElementType.COMPLEX64: "complex",
    ElementType.COMPLEX128: "complex",
}


def _wire_colour(value: ValueType | None) -> str:
    if value is None:
        return _WIRE_COLOURS["unknown"]
    if not isinstance(value, TensorType):
        return _WIRE_COLOURS["container"]
    if value.element is None:
        return _WIRE_COLOURS["unknown"]
    name = value.element.name
    kind = "eighth" if name.startswith(("FLOAT8", "FLOAT4")) else "unsigned" if name.startswith("UINT") else "integer"
    return _WIRE_COLOURS[_CLASSES.get(value.element, kind)]


def blend(colour: Colour, other: Colour, share: float) -> Colour:
    """`share` of a colour, the rest of another."""
    red, green, blue = (round(a * share + b * (1 - share)) for a, b in zip(colour, other, strict=True))
    return red, green, blue
