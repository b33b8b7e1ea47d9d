"""Results: what was measured, on what, under which protocol."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bieff.features.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One figure one can trust: it says what it is."""

    protocol: str
    dataset: str
    model: Literal["bieff", "frozen"]
    top1: float
    """Percent of the evaluated videos; the mean over splits where there are several."""

    top1_std: float | None
    """Population standard deviation over the splits; None for one list."""

    top5: float
    n_evaluated: int
    n_listed: int
    n_undecodable: int
    """Listed, but without embeddings: not in `top1`."""

    frames: int
    clips: int
    crops: int
    template: str
    """How frozen CLIP was asked, or the trained prompt's name."""

    store: str
    """Recipe hash of the feature store."""

    run: str | None
    """Id of the run; None for frozen CLIP."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def save_results(path: Path, results: Sequence[Result]) -> None:
    """Write a list of records, whole or not at all."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps([r.to_dict() for r in results], indent=2) + "\n")
    unfinished.rename(path)


def load_results(path: Path) -> list[Result]:
    """Read what `save_results` wrote.

    Raises:
        InputError: If there is no such file.
    """
    if not path.is_file():
        raise InputError(f"no results at {path}")
    return [Result(**record) for record in json.loads(path.read_text())]
