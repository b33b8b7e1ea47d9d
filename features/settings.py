"""The settings of a stage: laid over its defaults, and as a table for people.

A file and `--set name=value` are both TOML, so there is one parser and one set of types.
"""

import ast
import difflib
import inspect
import math
import sys
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from bieff.features.errors import ConfigError

Config = TypeVar("Config", bound=Any)
"""A frozen dataclass whose fields are bool, int, float, str or one of some words, or None."""

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Header and rows."""

_LARGEST = 2**63 - 1
"""Largest of TOML's whole numbers."""


def with_settings(
    base: Config, values: Mapping[str, Any], overrides: Sequence[str] = ()
) -> Config:
    """A copy of `base` with values by name, and then with overrides as a user types them.

    An override is "name=value".  Its value is TOML on one line; a bare word stands for a
    string (`design=a1`), and `none` for no value.

    Raises:
        ConfigError: If a name is unknown, or a value is of another type, not finite, or out
            of range.
    """
    types = get_type_hints(type(base))
    found = dict(values)
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set: expected name=value, got {_short(text)}")
        found[name.strip()] = _parsed(value.strip())
    return replace(base, **{name: _checked(name, found[name], types) for name in found})


def read_settings(path: Path) -> dict[str, Any]:
    """The values of a TOML file, not yet checked.

    Raises:
        ConfigError: If the file cannot be read or parsed.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read settings {str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also of a number with 5,000 digits
        raise ConfigError(f"settings {str(path)!r} are not TOML: {error}") from None


def _parsed(text: str) -> Any:
    """The TOML value, or the text itself when it is a bare word."""
    if len(text.splitlines()) > 1:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _checked(name: str, value: Any, types: Mapping[str, Any]) -> Any:
    """The value in its field's type, an int for a float allowed and nothing else changed."""
    if name not in types:
        close = difflib.get_close_matches(name, types, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(types)}"
        raise ConfigError(f"unknown setting {_short(name)}; {hint}")
    kinds = get_args(types[name]) or (types[name],)
    if get_origin(types[name]) is Literal:
        if value not in kinds:
            listed = ", ".join(map(repr, kinds))
            raise ConfigError(f"{name} must be one of {listed}, got {_short(value)}")
        return value
    if NoneType in kinds and value in (None, "none"):
        return None
    if float in kinds and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if type(value) not in kinds or not _is_ordinary(value):
        words = {
            **{bool: "true or false", int: "a whole number", float: "a number"},
            str: "words on one line",
        }
        or_none = " or none" if NoneType in kinds else ""
        raise ConfigError(f"{name} must be {words[kinds[0]]}{or_none}, got {_short(value)}")
    return value


def _is_ordinary(value: float | str) -> bool:
    if isinstance(value, str):
        return value.isprintable()
    return abs(value) <= _LARGEST if isinstance(value, int) else math.isfinite(value)


def _short(value: object) -> str:
    try:
        shown = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of too many digits"
    return shown if len(shown) <= 80 else f"{shown[:60]}... ({len(shown)} characters)"


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
