"""How frozen CLIP is asked: prompt templates by name.

bare      the class name alone
one       "This is a video about {}", the paper's hand-crafted prompt
person    "a video of a person {}."
16        those of ActionCLIP
28, 48    CLIP's own for Kinetics and for UCF-101

`wordings/SOURCES.md` says whose the sets are.
"""

import csv
import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bieff.features.errors import ConfigError, InputError

HAND_CRAFTED = "This is a video about {}"
"""The template of Table 5's second row."""


WORDINGS = Path(__file__).parent / "wordings"

SINGLE = {"bare": "{}", "one": HAND_CRAFTED, "person": "a video of a person {}."}
SETS = ("16", "28", "48")


@dataclass(frozen=True, slots=True)
class Templates:
    """One template or several, whose embeddings are averaged."""

    texts: tuple[str, ...]
    """Each with `{}` where the class name goes."""

    @property
    def label(self) -> str:
        """Name in results: the text itself, or how many there are."""
        return self.texts[0] if len(self.texts) == 1 else f"{len(self.texts)} templates"

    def fill(self, name: str) -> list[str]:
        """The texts with the name in its place."""
        return [text.replace("{}", name) for text in self.texts]


def find_templates(wanted: str) -> Templates:
    """The templates of that name, or a template as a user types it.

    Raises:
        ConfigError: If it is neither.
    """
    if wanted in SINGLE:
        return Templates((SINGLE[wanted],))
    if wanted in SETS:
        lines = (WORDINGS / f"{wanted}.txt").read_text(encoding="utf-8").splitlines()
        return Templates(tuple(lines))
    if "{}" not in wanted:
        names = ", ".join((*SINGLE, *SETS))
        raise ConfigError(
            f"template: expected one of {names}, or a text with {{}} in it, got {wanted!r}"
        )
    return Templates((wanted,))


@dataclass(frozen=True)
class Descriptions:
    """The texts of each class, by label."""

    texts: tuple[tuple[str, ...], ...]
    """At least one for each class."""

    source: str | None = None
    """Name of the file they come from; None for the store's class names."""

    @classmethod
    def of(cls, names: Sequence[str]) -> "Descriptions":
        """The class names as they are."""
        return cls(tuple((name,) for name in names))

    @cached_property
    def flat(self) -> list[str]:
        """All texts, class by class."""
        return [text for texts in self.texts for text in texts]

    @cached_property
    def owners(self) -> Int[Tensor, " texts"]:
        """The class of each text of `flat`."""
        counts = torch.tensor([len(texts) for texts in self.texts])
        return torch.arange(len(self.texts)).repeat_interleave(counts)

    @property
    def are_single(self) -> bool:
        """True if every class has one text."""
        return len(self.flat) == len(self.texts)

    @property
    def hash(self) -> str:
        """Digest of all texts in order, 16 hexadecimal digits; results are recognised by it."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()[:16]


def read_descriptions(file: Path, class_names: Sequence[str]) -> Descriptions:
    """Read the descriptions of all classes.

    Raises:
        InputError: If the file cannot be read, leaves a class out, names an unknown one, or
            describes a class by the name of another.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        by_label = _parse(file, text, class_names)
    except OSError as error:
        raise InputError(f"cannot read names {str(file)!r}: {error.strerror}") from None
    except ValueError as error:  # JSON, csv and Unicode errors are among them
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read names {str(file)!r}: {error}") from None
    texts = []
    for label, name in enumerate(class_names):
        found = tuple(" ".join(text.split()) for text in by_label.get(label, ()))
        if not found or not all(found):
            raise InputError(
                f"{file}: expected a description of each of {len(class_names)} classes, got "
                f"none of class {label}, {name!r}"
            )
        texts.append(found)
    _require_own_names(file, texts, class_names)
    return Descriptions(tuple(texts), file.name)


def _parse(file: Path, text: str, class_names: Sequence[str]) -> dict[int, list[str]]:
    """The descriptions by label."""
    kind = file.suffix.casefold()
    if kind == ".json":
        parsed = json.loads(text, object_pairs_hook=_Pairs)
        if isinstance(parsed, _Pairs):
            return _by_name(file, parsed, class_names)
        if isinstance(parsed, list):
            return _in_order(file, [_list(file, value) for value in parsed], class_names)
        raise InputError(f"{file}: expected a JSON object or list, got {parsed!r}")
    if kind == ".csv":
        return _parse_csv(file, text, class_names)
    return _in_order(file, [[line] for line in text.splitlines()], class_names)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, with every key that is written twice."""


def _by_name(file: Path, pairs: _Pairs, class_names: Sequence[str]) -> dict[int, list[str]]:
    by_label: dict[int, list[str]] = {}
    for name, value in pairs:
        label = _label(file, name, class_names)
        if label in by_label:
            raise InputError(
                f"{file}: expected each class once, got {class_names[label]!r} twice; give it "
                "a list of texts"
            )
        by_label[label] = _list(file, value)
    return by_label


def _parse_csv(file: Path, text: str, class_names: Sequence[str]) -> dict[int, list[str]]:
    rows = csv.DictReader(text.splitlines())
    if not {"id", "name"} <= set(rows.fieldnames or ()):
        raise InputError(f"{file}: expected a first line of id,name, got {rows.fieldnames}")
    by_label: dict[int, list[str]] = {}
    for row in rows:
        label = (row["id"] or "").strip()
        if not label.isdecimal() or int(label) >= len(class_names):
            raise InputError(
                f"{file}: expected ids from 0 to {len(class_names) - 1}, got {row['id']!r}"
            )
        by_label.setdefault(int(label), []).append(row["name"] or "")
    return by_label


def _in_order(
    file: Path, values: Sequence[list[str]], class_names: Sequence[str]
) -> dict[int, list[str]]:
    if len(values) != len(class_names):
        raise InputError(
            f"{file}: expected {len(class_names)} classes, as the store has, got {len(values)}"
        )
    return dict(enumerate(values))


def _list(file: Path, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{file}: expected a text or a list of texts, got {value!r}")
    return texts


def _label(file: Path, name: str, class_names: Sequence[str]) -> int:
    labels = {_key(known): label for label, known in enumerate(class_names)}
    if _key(name) not in labels:
        close = difflib.get_close_matches(name, class_names, n=1, cutoff=0.0)
        raise InputError(f"{file}: the store has no class {name!r}; did you mean {close[0]!r}?")
    return labels[_key(name)]


def _require_own_names(
    file: Path, texts: Sequence[tuple[str, ...]], class_names: Sequence[str]
) -> None:
    """Refuse a file in another order than the labels, as some of HMDB-51 are."""
    labels = {_key(name): label for label, name in enumerate(class_names)}
    for label, found in enumerate(texts):
        for text in found:
            other = labels.get(_key(text), label)
            if other != label:
                raise InputError(
                    f"{file}: class {label} is {class_names[label]!r}, but is described as "
                    f"{text!r}, which is class {other}; bring the file into the store's order"
                )


def _key(name: str) -> str:
    """The part that spellings of a class have in common."""
    return "".join(c for c in name.casefold() if c.isalnum()) or name
