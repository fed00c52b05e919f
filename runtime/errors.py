"""What can go wrong, as values (`Finding`) and as exceptions.

A finding is one sentence about one place in a graph. `check` collects them; whoever cannot go on raises
`GraphError` with the ones that stopped it. Everything this product raises on purpose is a `StudioError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Severity(StrEnum):
    """How bad a finding is: an error stops a run, a warning does not, a note is only worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing, at one place of a graph.

    `message` says what was expected and what came; `remedy` what to do, where that is known. `node` and `port` are
    empty when the finding is about the graph as a whole. `code` is a short stable word for programs
    ("missing-input", "shape", ...).
    """

    message: str
    node: str = ""
    port: str = ""
    severity: Severity = Severity.ERROR
    remedy: str = ""
    code: str = ""

    def __str__(self) -> str:
        place = f"{self.node}.{self.port}" if self.node and self.port else self.node or self.port
        text = f"{place}: {self.message}" if place else self.message
        return f"{text} {self.remedy}" if self.remedy else text


class StudioError(Exception):
    """Base of every error that this product raises on purpose."""


class GraphError(StudioError):
    """A graph, or a node of it, that cannot be used as it is. `findings` says why, in sentences."""

    def __init__(self, findings: Finding | Iterable[Finding]) -> None:
        self.findings: tuple[Finding, ...] = (findings,) if isinstance(findings, Finding) else tuple(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))

    @classmethod
    def at(cls, node: str, port: str, message: str, remedy: str = "", code: str = "") -> GraphError:
        """The error about one port (or parameter) of one node."""
        return cls(Finding(message, node=node, port=port, remedy=remedy, code=code))


class FileError(StudioError):
    """A file that cannot be read or written. `line` and `column` count from 1; 0 means unknown.

    `code` is "name" if not the file is at fault but the name that was asked for, "no-graph" for a picture without one.
    """

    def __init__(self, path: str | Path, message: str, *, line: int = 0, column: int = 0, code: str = "") -> None:
        self.path, self.line, self.column, self.message, self.code = Path(path), line, column, message, code
        place = f"{path}:{line}:{column}" if line else str(path)
        super().__init__(f"{place}: {message}")


class Cancelled(StudioError):
    """The user asked for work to stop, and it stopped."""
