"""How frozen CLIP is asked: prompt templates by name.

bare      the class name alone
one       "This is a video about {}", the paper's hand-crafted prompt
person    "a video of a person {}."
16        those of ActionCLIP
28, 48    CLIP's own for Kinetics and for UCF-101

`wordings/SOURCES.md` says whose the sets are.
"""

from dataclasses import dataclass
from pathlib import Path

from bieff.features.errors import ConfigError
from bieff.train.pre_prompt import HAND_CRAFTED

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
        """What results call it: the text itself, or how many there are."""
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
