"""Tables: for terminals and logs, and in Markdown."""

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

Rows = Sequence[Sequence[Any]]


def text_table(header: Sequence[str], rows: Rows, left: int = 1) -> str:
    """Aligned columns for a terminal, cells as they are; the first `left` flush left, the others right."""
    align = ["left"] * left + ["right"] * (len(header) - left)
    cells = [[str(cell) for cell in row] for row in rows]
    return tabulate(
        cells, header, tablefmt="plain", colalign=align, headersalign=align, disable_numparse=True
    )


def markdown_table(header: Sequence[str], rows: Rows) -> str:
    """A Markdown table, cells as they are."""
    return tabulate(
        [[str(cell) for cell in row] for row in rows], header, tablefmt="github", disable_numparse=True
    )
