"""An examination: whose scores on which lists; all that figures are counted from.

It holds no model and no features, so that a result can be looked at again without them.

m videos on any list, n usable ones of a question, k categories.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int

from bieff.features.errors import ConfigError, StoreError
from bieff.train.eval_lists import EvalList
from bieff.train.scoring import Question


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What was examined, for all who were."""

    protocol: str
    dataset: str
    store: str
    """Recipe hash of the feature store."""

    clips: int
    crops: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Examinee:
    """Who was asked, and how."""

    model: Literal["bieff", "frozen", "mix"]
    frames: int
    template: str
    names: str | None
    names_hash: str | None
    run: str | None
    weights: str | None
    mix: float | None = None
    """Weight of ours in the mix of both."""


Scores = Sequence[Float64[np.ndarray, "_ _"]]
"""Of one examinee, for each question; a row sums to 1."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Examination:
    """Scores on the lists of one protocol."""

    head: Head
    class_names: tuple[str, ...]
    lists: tuple[EvalList, ...]
    rows: Int[np.ndarray, " m"]
    """Of the partition: the videos on any list, ascending."""

    ids: tuple[str, ...]
    labels: Int[np.ndarray, " m"]
    usable: Bool[np.ndarray, " m"]
    """False where a video has no embeddings."""

    examinees: tuple[Examinee, ...]
    scores: tuple[Scores, ...]
    """Of each examinee."""

    @property
    def questions(self) -> list[Question]:
        """What was asked, in the order of scores."""
        return questions_of(self.lists, self.rows[self.usable])

    def with_mix(self, weight: float) -> "Examination":
        """Both combined: weight x the scores of ours + (1 - weight) x those of frozen CLIP.

        Scores are softmax scores over the categories, each at its model's own temperature,
        averaged over the views.

        Raises:
            ConfigError: If the weight is not from 0 to 1, or one of both is missing.
        """
        if not 0 <= weight <= 1:
            raise ConfigError(f"mix: expected a weight from 0 to 1, got {weight}")
        places = {examinee.model: at for at, examinee in enumerate(self.examinees)}
        if not {"bieff", "frozen"} <= set(places):
            raise ConfigError("mix: expected the scores of a run and of frozen CLIP, got one")
        ours, beside = (self.scores[places[model]] for model in ("bieff", "frozen"))
        mixed = [weight * a + (1 - weight) * b for a, b in zip(ours, beside, strict=True)]
        one = self.examinees[places["bieff"]]
        prompt = f"{one.template} + {self.examinees[places['frozen']].template}"
        examinee = replace(one, model="mix", mix=weight, template=prompt)
        kept = [at for at, known in enumerate(self.examinees) if known.model != "mix"]
        return replace(
            self,
            examinees=(*(self.examinees[at] for at in kept), examinee),
            scores=(*(self.scores[at] for at in kept), mixed),
        )


def questions_of(lists: Sequence[EvalList], usable: Int[np.ndarray, " rows"]) -> list[Question]:
    """Lists with the same classes are one question about all their videos, each asked once.

    Raises:
        StoreError: If no video of a list is usable.
    """
    grouped: dict[bytes, list[EvalList]] = {}
    for chosen in lists:
        if not np.isin(chosen.rows, usable).any():
            raise StoreError(
                f"no video of the list {chosen.name!r} is usable; `bieff extract --status` "
                "says what became of them"
            )
        grouped.setdefault(chosen.categories.tobytes(), []).append(chosen)
    return [
        Question(
            alike[0].categories,
            np.intersect1d(np.concatenate([part.rows for part in alike]), usable),
        )
        for alike in grouped.values()
    ]
