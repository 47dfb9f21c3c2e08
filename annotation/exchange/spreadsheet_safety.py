"""Texts in CSV tables that people open in a spreadsheet."""

from __future__ import annotations

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A cell that starts so is a formula to a spreadsheet, or may become one."""


def harmless(cell: object) -> object:
    """A text that cannot be taken for a formula; anything else stays as it is."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip(" ").startswith(FORMULA_STARTS) else cell
