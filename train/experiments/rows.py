"""The rows of the paper's tables as settings, each with the figure the paper prints for it.

Every setting that a table varies is said in every row, so that a base with other values does
not change what a row is.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bieff.features.errors import ConfigError
from bieff.train.config import PRESETS, TrainConfig

OURS = 0
"""Number of a table of our own."""

FULL = {
    "prompt": "pre-prompt",
    "design": "paper",
    "post_prompt": True,
    "word_guided": True,
    "mean_pool": True,
    "word_source": "classes",
    "alpha": 0.1,
    "beta": 0.1,
}
"""The whole method: the rows in grey of the paper's tables."""

BASELINE = {**FULL, "prompt": "none", "post_prompt": False, "word_guided": False}
PRE_PROMPT = {**BASELINE, "prompt": "pre-prompt"}
POST_PROMPT = {**PRE_PROMPT, "post_prompt": True}

PLAIN = {
    "context_start": "random",
    "normalise": "video",
    "temperature": 0.01,
    "distill": 0.0,
    "average_epochs": 0,
}
WORDS = {**FULL, **PLAIN, **PRESETS["words"]}
KEEPING = {"distill": 1.0, "average_epochs": 10}
"""Chosen beforehand and looked at once; not tuned on what they are measured on."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table."""

    table: int
    name: str
    settings: Mapping[str, Any]
    paper_top1: float | None = None
    """On Kinetics-400, ViT-B/16, 3 views; 8 frames but where the row says otherwise.
    None: the paper has no such row."""

    paper_top5: float | None = None

    def config(self, base: TrainConfig) -> TrainConfig:
        """Settings that the row trains with.

        Raises:
            ConfigError: If the base does not go together with it.
        """
        try:
            return TrainConfig.from_dict(self.settings, base=base)
        except ConfigError as error:
            raise ConfigError(f"table {self.table}, {self.name}: {error}") from None


TITLES = {
    1: "frames",
    3: "training cost",
    4: "components",
    5: "textual prompt",
    6: "designs of the Pre-Prompt",
    7: "mean pooling",
    8: "source of the top-1 words",
    9: "alpha at the start",
    10: "beta at the start",
    OURS: "keeping what frozen CLIP knows, not in the paper",
}

# The paper does not say which parts are there in Tables 6 and 9.  Its figures do: the chosen
# row of Table 6 is Table 4's "+ Pre-Prompt" (82.0), that of Table 9 its "+ Post-Prompt" (82.4).
ROWS = (
    Row(4, "baseline", BASELINE, 80.4),
    Row(4, "+ Pre-Prompt", PRE_PROMPT, 82.0),
    Row(4, "+ Post-Prompt", POST_PROMPT, 82.4),
    Row(4, "+ Word-Guided", FULL, 82.8),
    Row(5, "none", {**FULL, "prompt": "none", "post_prompt": False}, 80.6),
    Row(5, "hand-crafted", {**FULL, "prompt": "hand-crafted", "post_prompt": False}, 80.9),
    Row(5, "learnable", {**FULL, "prompt": "learnable", "post_prompt": False}, 82.0),
    Row(5, "Pre-Prompt only", {**FULL, "post_prompt": False}, 82.4),
    Row(5, "Post-Prompt only", {**FULL, "prompt": "none"}, 82.5),
    Row(5, "both", FULL, 82.8),
    Row(6, "A1 frames as tokens", {**PRE_PROMPT, "design": "a1"}, 81.0, 95.8),
    Row(6, "A2 context asks frames", {**PRE_PROMPT, "design": "a2"}, 81.2, 95.8),
    Row(6, "A3 no Adapter", {**PRE_PROMPT, "design": "a3"}, 81.7, 96.0),
    Row(6, "Pre-Prompt", PRE_PROMPT, 82.0, 96.1),
    Row(7, "without", {**FULL, "mean_pool": False}, 82.5, 96.3),
    Row(7, "with", FULL, 82.8, 96.3),
    Row(8, "words", {**FULL, "word_source": "words"}, 82.5, 96.3),
    Row(8, "classes", FULL, 82.8, 96.3),
    Row(9, "1", {**POST_PROMPT, "alpha": 1.0}, 82.1),
    Row(9, "0.1", POST_PROMPT, 82.4),
    Row(9, "0.01", {**POST_PROMPT, "alpha": 0.01}, 82.3),
    Row(10, "1", {**FULL, "beta": 1.0}, 81.8),
    Row(10, "0.1", FULL, 82.8),
    Row(10, "0.01", {**FULL, "beta": 0.01}, 82.5),
    Row(1, "8 frames", {**FULL, "frames": 8}, 82.8, 96.3),
    Row(1, "16 frames", {**FULL, "frames": 16}, 83.1, 96.6),
    Row(1, "32 frames", {**FULL, "frames": 32}, 83.4, 96.7),
    Row(3, "16 frames", {**FULL, "frames": 16}, 83.1, 96.6),
    Row(OURS, "as the paper", {**FULL, **PLAIN}),
    Row(OURS, "preset words", WORDS),
    Row(OURS, "preset words, distilled, weight 1", {**WORDS, "distill": 1.0}),
    Row(OURS, "preset words, average of 10 epochs", {**WORDS, "average_epochs": 10}),
    Row(OURS, "preset words, distilled, averaged", {**WORDS, **KEEPING}),
)


@dataclass(frozen=True, slots=True)
class Experiment:
    """A run that one or several rows ask for."""

    name: str
    """Name of its folder: the first row that asks for it, and the seed."""

    config: TrainConfig

    def toml(self) -> str:
        """Its settings, for `bieff train --config`."""
        values = self.config.to_dict().items()
        return "".join(f"{k} = {json.dumps('none' if v is None else v)}\n" for k, v in values)


def parse_tables(text: str) -> list[int]:
    """The tables of "4,5,6", in that order.

    Raises:
        ConfigError: If one is no table of the paper's ablations.
    """
    known = {str(number): number for number in TITLES}
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if part not in known]:
        raise ConfigError(f"tables: expected some of {', '.join(known)}, got {wrong[0]!r}")
    return list(dict.fromkeys(known[part] for part in parts))


def rows_of(tables: Iterable[int]) -> list[Row]:
    """The rows of some tables, table by table."""
    return [row for table in tables for row in ROWS if row.table == table]


def experiments_of(row: Row, base: TrainConfig, seeds: int, frames: int) -> list[Experiment]:
    """The runs of a row, one a seed from the base's on; rows of one config share them.

    A folder is named by the first row of all tables that asks for it, so that it does not
    depend on which tables were chosen.  A config without a number of frames means `frames`,
    those of the store.
    """

    def resolved(row: Row) -> TrainConfig:
        config = row.config(base)
        return replace(config, frames=config.frames or frames)

    wanted = resolved(row)
    first = next(other for other in ROWS if resolved(other) == wanted)
    slug = re.sub(r"[^a-z0-9.]+", "-", first.name.lower()).strip("-")
    name = f"table-{first.table}-{slug}"
    return [
        Experiment(f"{name}-seed-{seed}", replace(wanted, seed=seed))
        for seed in range(base.seed, base.seed + seeds)
    ]
