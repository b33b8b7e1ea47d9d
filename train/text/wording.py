"""Words that frozen CLIP is asked in: prompt templates by name, and descriptions.

bare      the class name alone
one       "This is a video about {}", the paper's hand-crafted prompt
person    "a video of a person {}."
16        those of ActionCLIP
28, 48    CLIP's own for Kinetics and for UCF-101

`wordings/SOURCES.md` says whose the sets are.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from bieff.features.class_names import read_texts
from bieff.features.errors import ConfigError

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
    if "{}" in wanted:
        return Templates((wanted,))
    names = ", ".join((*SINGLE, *SETS))
    raise ConfigError(
        f"template: expected one of {names}, or a text with {{}} in it, got {wanted!r}"
    )


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
        InputError: If `read_texts` does not take the file.
    """
    return Descriptions(tuple(read_texts(file, class_names)), file.name)
