"""The editor's look: the colours of `runtime.drawing.style` as Qt's, the font that comes along, a style sheet."""

from __future__ import annotations

from functools import cache, lru_cache

from PySide6.QtGui import QColor, QFont, QFontDatabase, QPalette
from PySide6.QtWidgets import QApplication, QStyleFactory

from runtime.drawing.canvas import Colour
from runtime.drawing.font import FAMILY, FOLDER
from runtime.drawing.style import DARK, LIGHT, Theme, blend

_current = LIGHT


def current() -> Theme:
    """The theme that windows are drawn in."""
    return _current


@lru_cache(maxsize=512)
def colour(rgb: Colour, alpha: int = 255) -> QColor:
    """A colour as Qt's."""
    return QColor(*rgb, alpha)


def readable(rgb: Colour) -> Colour:
    """A colour as text has it: lighter on a dark background."""
    return rgb if _current is LIGHT else blend(rgb, _current.ink, 0.55)


@cache
def _family() -> str:
    """The name under which Qt knows the font; the application's own if it cannot be loaded."""
    families: list[str] = []
    for style in ("Regular", "SemiBold"):
        number = QFontDatabase.addApplicationFont(str(FOLDER / f"Inter-{style}.otf"))
        families += QFontDatabase.applicationFontFamilies(number) if number >= 0 else []
    return families[0] if families else QApplication.font().family()


@lru_cache(maxsize=32)
def font(size: float, bold: bool = False) -> QFont:
    """The font in pixels at a scale of 1, placed letter by letter as pictures have it."""
    found = QFont(_family())
    found.setPixelSize(round(size))
    found.setWeight(QFont.Weight.DemiBold if bold else QFont.Weight.Normal)
    found.setHintingPreference(QFont.HintingPreference.PreferNoHinting)
    found.setKerning(False)
    return found


def apply(application: QApplication, name: str) -> Theme:
    """Gives the application the theme "light" or "dark"."""
    global _current
    _current = theme = DARK if name == "dark" else LIGHT
    application.setStyle(QStyleFactory.create("Fusion"))
    application.setPalette(_palette(theme))
    # Qt draws the edge of a check box a good deal darker than its window, which in a dark one is not to be seen.
    boxes = application.palette()
    boxes.setColor(QPalette.ColorRole.Window, colour(theme.edge).lighter(140))
    application.setPalette(boxes, "QCheckBox")  # type: ignore[arg-type]  # it takes no bytes, whatever the stub says
    base = QFont(_family() or FAMILY)
    base.setPixelSize(12)
    application.setFont(base)
    application.setStyleSheet(_sheet(theme))
    return theme


def _palette(theme: Theme) -> QPalette:
    palette = QPalette()
    window = blend(theme.box, theme.background, 0.6)
    roles = {
        QPalette.ColorRole.Window: window,
        QPalette.ColorRole.WindowText: theme.ink,
        QPalette.ColorRole.Base: theme.background,
        QPalette.ColorRole.AlternateBase: theme.terminal,
        QPalette.ColorRole.Text: theme.ink,
        QPalette.ColorRole.PlaceholderText: theme.faint,
        QPalette.ColorRole.Button: theme.terminal,
        QPalette.ColorRole.ButtonText: theme.ink,
        QPalette.ColorRole.ToolTipBase: theme.box,
        QPalette.ColorRole.ToolTipText: theme.ink,
        QPalette.ColorRole.Highlight: theme.selected,
        QPalette.ColorRole.HighlightedText: (255, 255, 255),
        QPalette.ColorRole.Link: theme.selected,
        QPalette.ColorRole.BrightText: theme.error,
    }
    for role, rgb in roles.items():
        palette.setColor(role, colour(rgb))
    for role in (QPalette.ColorRole.WindowText, QPalette.ColorRole.Text, QPalette.ColorRole.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, role, colour(blend(theme.faint, theme.background, 0.6)))
    return palette


def css(rgb: Colour) -> str:
    """A colour in the words of a style sheet."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def _sheet(theme: Theme) -> str:
    line = css(blend(theme.edge, theme.background, 0.45))
    return f"""
    QToolTip {{ color: {css(theme.ink)}; background: {css(theme.box)}; border: 1px solid {line}; padding: 4px; }}
    QSplitter::handle {{ background: {line}; }}
    QTreeView, QListView, QTableView, QPlainTextEdit, QTextBrowser {{ border: none; }}
    QHeaderView::section {{ background: {css(theme.terminal)}; border: none; padding: 3px 6px; }}
    QStatusBar {{ border-top: 1px solid {line}; }}
    QToolBar {{ border: none; border-bottom: 1px solid {line}; spacing: 4px; padding: 3px; }}
    QToolButton {{ padding: 3px 8px; border-radius: 4px; }}
    QToolButton:hover {{ background: {css(blend(theme.selected, theme.background, 0.18))}; }}
    QToolButton:checked {{ background: {css(blend(theme.selected, theme.background, 0.32))}; }}
    QTabBar {{ qproperty-drawBase: 0; }}
    QTabWidget::pane {{ border: none; border-top: 1px solid {line}; }}
    QTabBar::tab {{ padding: 5px 12px; border: none; }}
    QTabBar::tab:selected {{ border-bottom: 2px solid {css(theme.selected)}; }}
    QLineEdit, QSpinBox, QDoubleSpinBox, QComboBox {{ padding: 1px 4px; min-height: 18px; }}
    QScrollArea QPlainTextEdit, QLineEdit {{ border: 1px solid {line}; border-radius: 3px; }}
    QScrollArea QPlainTextEdit:focus, QLineEdit:focus {{ border-color: {css(theme.selected)}; }}
    QComboBox QLineEdit, QAbstractSpinBox QLineEdit {{ border: none; }}
    """
