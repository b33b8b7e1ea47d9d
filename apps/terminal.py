"""Text for a terminal or a log file; names of classes and files in it may hold anything.

Whoever names a file or a class must not move the cursor, recolour, retitle or reorder what the
terminal of somebody else shows: `clean` is the door that everything printed goes through.
"""

import contextlib
import io
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich import box, console, progress
from rich.table import Column, Table
from rich.text import Text

WIDE = 160
"""Columns of a table that goes to a file."""

_HARMLESS = "\t\u00a0\u200c\u200d\u3000"
"""Not printable for Python, but part of words and of pictures made of several characters."""


def clean(text: object, *, lines: bool = False) -> str:
    """A text whose control characters are shown escaped, but line ends where there are `lines`.

    So are marks that turn the direction of writing, and bytes of names that are not UTF-8.
    """
    said, kept = str(text), _HARMLESS + "\n" * lines
    if said.isprintable():
        return said
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in said)


def echo(text: object = "", *, err: bool = False) -> None:
    """Print something for people; it may have several lines."""
    click.echo(clean(text, lines=True), err=err)


def any_encoding() -> None:
    """Escape what standard output cannot write, in an ASCII locale say, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(io.UnsupportedOperation):
                stream.reconfigure(errors="backslashreplace")


class Console(console.Console):
    """A console that prints strings as they are, cleaned; markup in them is no markup."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print strings, tables, bars."""
        plain = [Text(clean(o, lines=True)) if isinstance(o, str) else o for o in objects]
        super().print(*plain, **options)


class TextColumn(progress.TextColumn):
    """Words of a bar, cleaned likewise."""

    def render(self, task: progress.Task) -> Text:
        """The words as they are now."""
        return Text(clean(self.text_format.format(task=task)), style=self.style)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, as wide as the terminal; nothing is cut off."""
    columns = [Column(name, overflow="fold") for name in header]
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    shown = Console()
    if not shown.is_terminal:
        shown = Console(width=WIDE)  # a file or a pipe has no width to wrap at
    shown.print(table)
