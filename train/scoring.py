"""Scores of many videos: in batches that depend on nothing, by several processes, resumable.

A question is a choice of classes and the videos that are to be told apart among them.  Its
videos are cut into batches in the order of rows, whatever the number of processes and whatever
was done before; so neither changes a bit of a score.

n videos of a question, k categories, B videos of a batch.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int

from bieff.train.data import Features
from bieff.train.distributed import current
from bieff.train.evaluate import probabilities
from bieff.train.kept_scores import SECONDS, Batch, KeptScores
from bieff.train.subjects import Subject

Watch = Callable[[int, int], None]
"""Called with (videos done, videos in all), as far as this process scores them."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """Which videos are to be told apart among which classes."""

    categories: Int[np.ndarray, " k"]
    """Labels, ascending."""

    rows: Int[np.ndarray, " n"]
    """Of the partition, usable, ascending."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scoring:
    """Who is asked what, about which videos."""

    features: Features
    subjects: Sequence[Subject]
    questions: Sequence[Question]
    clips: int
    """Temporal clips among the views."""

    num_classes: int
    """Of the store."""

    batch_size: int | None = None
    """Videos at a time; None takes each subject's own."""

    def run(
        self, watch: Watch, *, kept: KeptScores | None = None
    ) -> list[list[Float64[np.ndarray, "_ _"]]]:
        """Softmax scores of each subject for each question, averaged over views, in float64.

        Of several processes each scores its share of the batches, and all get all scores.

        Args:
            watch: Called after every batch.
            kept: Where scores are kept until all are there; what is there is not done again.
        """
        group = current()
        done = {} if kept is None else kept.read()
        group.wait()  # all have looked before anybody writes
        left = [batch for batch in self.batches() if batch not in done]
        mine = left[group.rank :: group.size]
        kept_videos = sum(len(values) for values in done.values())
        new = self._score(mine, watch, kept, before=kept_videos // group.size)
        whole = [
            [np.full((len(q.rows), len(q.categories)), np.nan) for q in self.questions]
            for _ in self.subjects
        ]
        for scored in (done, *group.collect(new)):
            for (subject, question, start), values in scored.items():
                whole[subject][question][start : start + len(values)] = values
        return whole

    def batches(self) -> list[Batch]:
        """All batches; the frozen subjects come first, as they take the least time."""
        order = sorted(
            range(len(self.subjects)), key=lambda s: self.subjects[s].run is not None
        )
        return [
            (s, q, start)
            for s in order
            for q, question in enumerate(self.questions)
            for start in range(0, len(question.rows), self._size(s))
        ]

    def _score(
        self, batches: Sequence[Batch], watch: Watch, kept: KeptScores | None, *, before: int
    ) -> dict[Batch, Float64[np.ndarray, "_ _"]]:
        """Score some batches, and keep them every few seconds, whatever ends it."""
        sizes = [len(self._rows(batch)) for batch in batches]
        scored: dict[Batch, np.ndarray] = {}
        unkept: dict[Batch, np.ndarray] = {}
        written, num_done, total = time.monotonic(), before, before + sum(sizes)
        watch(num_done, total)
        try:
            for batch, size in zip(batches, sizes, strict=True):
                scored[batch] = unkept[batch] = self._scores(batch)
                num_done += size
                watch(num_done, total)
                if kept is not None and time.monotonic() - written >= SECONDS:
                    kept.write(unkept)
                    unkept, written = {}, time.monotonic()
        finally:
            if kept is not None and unkept:
                kept.write(unkept)
        return scored

    def _scores(self, batch: Batch) -> Float64[np.ndarray, "B k"]:
        subject, question = self.subjects[batch[0]], self.questions[batch[1]]
        every = len(question.categories) == self.num_classes
        categories = None if every else torch.from_numpy(question.categories)
        rows = self._rows(batch)
        videos = torch.from_numpy(np.searchsorted(self.features.rows, rows))
        (scores,) = probabilities(
            self.features,
            subject.on(categories),
            num_frames=subject.num_frames,
            clips=self.clips,
            batch_size=len(rows),
            videos=videos,
        )
        return scores

    def _rows(self, batch: Batch) -> Int[np.ndarray, " B"]:
        subject, question, start = batch
        return self.questions[question].rows[start : start + self._size(subject)]

    def _size(self, subject: int) -> int:
        return self.batch_size or self.subjects[subject].batch_size
