"""The tokens of an expert as a table, of which only what is seen is made."""

from __future__ import annotations

import numpy as np
from PySide6.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, Qt

Index = QModelIndex | QPersistentModelIndex

HEADS = ("Token", "Choice", "Weight")


class TokensModel(QAbstractTableModel):
    """What `runtime.experts.tokens_of` lists: token, which of its choices the expert is, mixing weight."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: np.ndarray | None = None

    def show(self, tokens: np.ndarray | None) -> None:
        """Lists the tokens of an expert."""
        self.beginResetModel()
        self.tokens = tokens
        self.endResetModel()

    def token(self, row: int) -> int:
        """The number of the token in a row."""
        assert self.tokens is not None
        return int(self.tokens[row]["token"])

    def rowCount(self, parent: Index | None = None) -> int:  # noqa: N802
        return 0 if self.tokens is None or (parent is not None and parent.isValid()) else len(self.tokens)

    def columnCount(self, parent: Index | None = None) -> int:  # noqa: N802
        return 0 if parent is not None and parent.isValid() else len(HEADS)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        """The text of a cell."""
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        if role != Qt.ItemDataRole.DisplayRole or self.tokens is None:
            return None
        token, rank, weight = self.tokens[index.row()].item()
        return (f"{token:,}", str(rank + 1), f"{weight:.4g}")[index.column()]

    def headerData(  # noqa: N802
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> object:
        is_head = role == Qt.ItemDataRole.DisplayRole and orientation == Qt.Orientation.Horizontal
        return HEADS[section] if is_head else None
