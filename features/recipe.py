"""The recipe of a store: everything its numbers depend on, its hash, and how two differ."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

_ABSENT = object()


def canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as JSON gives them back: tuples are lists, keys are strings.

    Raises:
        ValueError: If they are not JSON, or hold a number that is not finite.
    """
    try:
        parsed: dict[str, Any] = json.loads(_text(values))
    except TypeError as error:
        raise ValueError(f"expected a recipe of plain JSON values: {error}") from None
    return parsed


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of the recipe; the order of keys does not matter.  64 hexadecimal digits."""
    return hashlib.sha256(_text(recipe).encode()).hexdigest()


def differences(
    stored: Mapping[str, Any], asked: Mapping[str, Any], *, only_asked: bool = False
) -> list[str]:
    """One line for each key that differs, dotted where nested, sorted by key.

    Args:
        stored: Recipe of the store.
        asked: Recipe asked for.
        only_asked: Leave out the keys that `asked` does not mention.
    """
    old, new = dict(leaves(stored)), dict(leaves(asked))
    keys = sorted(new if only_asked else old | new)
    return [
        f"{key}: store has {_show(old, key)}, asked for {_show(new, key)}"
        for key in keys
        if old.get(key, _ABSENT) != new.get(key, _ABSENT)
    ]


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, allow_nan=False)


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a recipe, keys dotted where nested, in its order."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(leaves: Mapping[str, Any], key: str) -> str:
    if key not in leaves:
        return "nothing"
    text = json.dumps(leaves[key], ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
