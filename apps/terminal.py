"""What people read in a terminal or a log file: tables."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

WIDE = 160
"""Columns of a table that goes to a file."""


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, as wide as the terminal; nothing is cut off."""
    table = Table(
        *(Column(name, overflow="fold") for name in header), box=box.SIMPLE_HEAD, pad_edge=False
    )
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)  # a file or a pipe has no width to wrap at
    console.print(table)
