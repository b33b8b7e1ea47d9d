"""The settings of a stage, as a table for people: name, default, what it is."""

import ast
import inspect
import textwrap
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Header and rows."""


def settings_table(config: type[Any]) -> Table:
    """A row for each field of a config dataclass whose fields all have defaults."""
    defaults, documents, types = config(), attribute_docs(config), get_type_hints(config)
    rows: list[tuple[str, ...]] = []
    for field in fields(config):
        kind = types[field.name]
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        one_of = f"  One of {', '.join(map(str, choices))}." if choices else ""
        what = documents.get(field.name, "") + one_of
        rows.append((field.name, _shown(getattr(defaults, field.name)), what))
    return ("setting", "default", "what it is"), rows


def attribute_docs(owner: type[Any]) -> dict[str, str]:
    """The string below each annotated attribute of a class, on one line; read from its source.

    Python keeps no docstrings of attributes.
    """
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for attribute, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(attribute, ast.AnnAssign)
            and isinstance(attribute.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[attribute.target.id] = " ".join(below.value.value.split())
    return found


def _shown(value: object) -> str:
    """A default as `--set` takes it."""
    return str(value).lower() if isinstance(value, bool | None) else str(value)
