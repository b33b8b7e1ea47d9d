"""Class names: readable before CLIP sees them, and comparable however they are spelled.

CLIP's tokenizer takes `ApplyEyeMakeup` apart as app|l|ye|ye|makeup, so a name is spaced out
first.  Folders, lists and label files spell one class in many ways (`riding_a_bike`,
`riding a bike`); `key` is what they have in common.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from bieff.features.errors import InputError

_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

_SIDES = frozenset({"left", "right", "leftward", "rightward", "clockwise", "anticlockwise"})


def readable(name: str) -> str:
    """The name in words: `ApplyEyeMakeup` -> `Apply Eye Makeup`, `brush_hair` -> `brush hair`.

    A name that has spaces or underscores, or starts small, is not taken apart at capitals.
    """
    if name[:1].isupper() and not re.search(r"[\s_]", name):
        name = _WORD_STARTS.sub(" ", name)
    return " ".join(name.replace("_", " ").split())


@lru_cache(maxsize=1 << 16)  # a scan asks for the same few folders 260,000 times
def key(name: str) -> str:
    """What the spellings of a class have in common: its letters and digits, in small."""
    return "".join(c for c in name.casefold() if c.isalnum()) or name


def label_of_key(names: Sequence[str], *, source: str) -> dict[str, int]:
    """Each class's key -> its label.

    Raises:
        InputError: If two classes have one key.
    """
    labels: dict[str, int] = {}
    for label, name in enumerate(names):
        other = labels.setdefault(key(name), label)
        if other != label:
            raise InputError(
                f"{source}: classes {other} and {label} are both called {name!r}; "
                "give every class its own name"
            )
    return labels


def has_sides(names: Sequence[str]) -> bool:
    """Whether mirroring a video could change its class: some name tells left from right."""
    return any(not _SIDES.isdisjoint(name.casefold().split()) for name in names)
