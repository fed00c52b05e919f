"""A scene as pixels."""

from __future__ import annotations

from runtime.drawing import font
from runtime.drawing.canvas import Canvas
from runtime.drawing.scene import (
    PADDING,
    PARAMETER_ROW,
    PILL_HEIGHT,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_HEIGHT,
    TITLE_SIZE,
    Box,
    Chip,
    Link,
    Scene,
    Terminal,
)
from runtime.drawing.style import Theme, blend
from runtime.errors import Severity
from runtime.types import TensorType

MARGIN = 16.0
FOOTER = 22.0
RADIUS = 6.0
DOT = 3.6


def paint(scene: Scene, theme: Theme, scale: float, footer: str = "") -> Canvas:
    """The picture of a scene with a margin around it and, if given, a line of text below it."""
    left, top, _, _ = scene.bounds()
    text = font.regular()
    width, height = size(scene, footer)
    canvas = Canvas(width, height, scale, theme.background)
    painter = _Painter(canvas, theme, MARGIN - left, MARGIN - top)
    for link in scene.links:
        painter.link(link)
    for box in scene.boxes:
        painter.box(box)
    for chip in scene.chips:
        painter.chip(chip)
    if footer:
        canvas.text(MARGIN, height - MARGIN + 3, footer, text, SMALL_SIZE, theme.faint)
    return canvas


def size(scene: Scene, footer: str = "") -> tuple[float, float]:
    """Width and height of a picture in units."""
    left, top, right, bottom = scene.bounds()
    width = max(right - left, font.regular().width(footer, SMALL_SIZE)) + 2 * MARGIN
    return width, bottom - top + 2 * MARGIN + (FOOTER if footer else 0)


class _Painter:
    """Draws the parts of a scene, moved by (dx, dy)."""

    def __init__(self, canvas: Canvas, theme: Theme, dx: float, dy: float) -> None:
        self._canvas, self._theme, self._dx, self._dy = canvas, theme, dx, dy
        self._text, self._bold = font.regular(), font.bold()

    def link(self, link: Link) -> None:
        a, b, c, d = link.curve
        dx, dy = self._dx, self._dy
        curve = (a[0] + dx, a[1] + dy), (b[0] + dx, b[1] + dy), (c[0] + dx, c[1] + dy), (d[0] + dx, d[1] + dy)
        if link.broken:
            self._canvas.curve(curve, self._theme.error, 2.0, dash=6.0, gap=4.0)
            return
        scalar = isinstance(link.type, TensorType) and link.type.shape == ()
        self._canvas.curve(curve, self._theme.wire(link.type), 1.3 if scalar else 2.0)

    def chip(self, chip: Chip) -> None:
        x, y = chip.x + self._dx, chip.y + self._dy
        width = self._text.width(chip.text, SMALL_SIZE)
        self._canvas.box(x - 2, y - 9, width + 4, 12, radius=2, fill=self._theme.background)
        self._canvas.text(x, y, chip.text, self._text, SMALL_SIZE, self._theme.faint)

    def box(self, box: Box) -> None:
        if box.pill:
            self._pill(box)
        else:
            self._node(box)
        for terminal in box.inputs:
            self._terminal(box, terminal, box.x)
        for terminal in box.outputs:
            self._terminal(box, terminal, box.x + box.width)

    def _node(self, box: Box) -> None:
        canvas, theme = self._canvas, self._theme
        x, y = box.x + self._dx, box.y + self._dy
        edge, thickness = self._edge(box)
        canvas.box(x, y, box.width, box.height, radius=RADIUS, fill=theme.box)
        canvas.box(x, y, box.width, box.height, radius=RADIUS, fill=theme.title(box.family), only=(y, y + TITLE_HEIGHT))
        canvas.box(x, y, box.width, box.height, radius=RADIUS, line=edge, thickness=thickness)
        canvas.text(x + PADDING, y + 18, box.title, self._bold, TITLE_SIZE, theme.title_ink)
        faint = blend(theme.title_ink, theme.title(box.family), 0.75)
        width = self._text.width(box.detail, TEXT_SIZE)
        canvas.text(x + box.width - PADDING - width, y + 17.5, box.detail, self._text, TEXT_SIZE, faint)
        for terminal in box.inputs:
            ink = theme.ink if terminal.connected or terminal.required else theme.faint
            canvas.text(x + PADDING, y + terminal.y + 4, terminal.label, self._text, TEXT_SIZE, ink)
        for terminal in box.outputs:
            width = self._text.width(terminal.label, TEXT_SIZE)
            right = x + box.width - PADDING - width
            canvas.text(right, y + terminal.y + 4, terminal.label, self._text, TEXT_SIZE, theme.ink)
        if box.parameters:
            top = y + box.height - PARAMETER_ROW * len(box.parameters) - 8
            canvas.box(x + 1, top - 1, box.width - 2, 1, fill=blend(theme.edge, theme.box, 0.5))
            for number, (name, value) in enumerate(box.parameters):
                base = top + PARAMETER_ROW * (number + 0.5) + 6
                canvas.text(x + PADDING, base, name, self._text, SMALL_SIZE, theme.faint)
                width = self._text.width(value, SMALL_SIZE)
                canvas.text(x + box.width - PADDING - width, base, value, self._text, SMALL_SIZE, theme.ink)

    def _pill(self, box: Box) -> None:
        canvas, theme = self._canvas, self._theme
        x, y = box.x + self._dx, box.y + self._dy
        terminal = (box.inputs or box.outputs)[0]
        edge, thickness = self._edge(box)
        radius = PILL_HEIGHT / 2 if box.kind != "Initializer" else 3.0
        canvas.box(x, y, box.width, box.height, radius=radius, fill=theme.terminal, line=edge, thickness=thickness)
        colour = theme.wire(terminal.type)
        if box.kind == "Initializer":
            # What training changes has a full bar at its edge; what is frozen, one with a gap; a constant, none.
            if box.training_type == "trainable weight":
                canvas.box(x, y, 4, box.height, radius=1.5, fill=colour)
            elif box.training_type == "frozen weight":
                canvas.box(x, y, 4, 7, radius=1.5, fill=colour)
                canvas.box(x, y + box.height - 7, 4, 7, radius=1.5, fill=colour)
        else:
            canvas.box(x, y, box.width, box.height, radius=radius, line=blend(colour, theme.edge, 0.8), thickness=1.4)
        canvas.text(x + PADDING + 2, y + 14, box.title, self._bold, TEXT_SIZE, theme.ink)
        after = x + PADDING + 2 + self._bold.width(box.title, TEXT_SIZE) + 8
        canvas.text(after, y + 13.7, box.detail, self._text, SMALL_SIZE, theme.faint)

    def _terminal(self, box: Box, terminal: Terminal, x: float) -> None:
        theme = self._theme
        centre = x + self._dx, box.y + terminal.y + self._dy
        if terminal.connected:
            self._canvas.dot(*centre, DOT, theme.wire(terminal.type))
        elif terminal.required and terminal in box.inputs:
            self._canvas.dot(*centre, DOT, theme.box, theme.error)
        else:
            self._canvas.dot(*centre, DOT, theme.box, theme.edge)

    def _edge(self, box: Box) -> tuple[tuple[int, int, int], float]:
        if box.severity is Severity.ERROR:
            return self._theme.error, 1.8
        if box.severity is Severity.WARNING:
            return self._theme.warning, 1.5
        return self._theme.edge, 1.0
