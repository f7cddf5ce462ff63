"""Rows of a table."""

from __future__ import annotations

from torch import Tensor


def look_up(table: Tensor, rows: Tensor) -> Tensor:
    """table[rows]"""
    return table.index_select(0, rows)
