"""Evaluation: every model's score for every video of a protocol's lists, none twice.

Views of a video are scored one after the other and averaged.  Several processes share the
batches; which videos make a batch does not depend on them.

B videos, K classes, t frames.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from bieff.features.errors import InputError
from bieff.features.store import FeatureStore, Partition
from bieff.train.data import Features, frame_groups, load_features
from bieff.train.distributed import Group, current, device_name, sharers
from bieff.train.evaluate.classifier import LARGEST_BATCH, Classifier, mean_softmax
from bieff.train.evaluate.lists import EvalList, lists_of
from bieff.train.evaluate.scores import (
    SECONDS,
    Batch,
    Head,
    PartialScores,
    Scores,
    ScoreTable,
    load_scores,
    questions_of,
    save_scores,
    scores_file,
)
from bieff.train.runs.run import commit, versions

Watch = Callable[[int, int], None]
"""Called with (videos done, videos in all), as far as this process scores them."""

Logits = Callable[[Tensor, Tensor | None], Tensor]
"""(frames (B, t, D) float32, patches or None) -> logits (B, K)."""


def evaluate(
    store: FeatureStore,
    classifiers: Sequence[Classifier],
    protocol: str,
    *,
    watch: Watch,
    split: str | None = None,
    batch_size: int | None = None,
    keep_in: Path | None = None,
) -> ScoreTable:
    """Ask all models what the protocol asks; `results_of` counts what they got right.

    Under `torchrun` the processes share the videos, and each gets all scores.

    Args:
        store: Finished, of the CLIP that the models come from.
        classifiers: Who is asked, about the store's classes.
        protocol: One of `PROTOCOLS`.
        watch: Called after every batch.
        split: Official split, of protocols that take one.
        batch_size: Videos at a time; None takes each model's own.
        keep_in: Folder of a run, for the scores: what is there of the same evaluation is not
            scored again.

    Raises:
        ConfigError: If there is no such protocol, or the frames do not fit.
        StoreError: If the store does not fit the protocol, or is not finished.
        InputError: If a score is not a number.
    """
    partition, lists = lists_of(store, protocol, split=split)
    rows = np.unique(np.concatenate([chosen.rows for chosen in lists]))
    features = load_features(
        partition,
        rows,
        device=classifiers[0].device,
        wants_patches=any(classifier.wants_patches for classifier in classifiers),
        sharers=sharers(),
    )
    clips, crops = _views(store, partition.name)
    scoring = Scoring(
        features=features,
        classifiers=classifiers,
        questions=questions_of(lists, features.rows),
        sizes=agreed_sizes(classifiers, batch_size, current()),
        clips=clips,
        num_classes=len(store.class_names),
    )
    head = Head(
        protocol=protocol,
        dataset=_name(store),
        store=store.recipe_hash,
        clips=clips,
        crops=crops,
    )
    models = tuple(classifier.about for classifier in classifiers)
    partial = None
    if keep_in is not None:
        key, file = scoring.key(head, partition), scores_file(keep_in, head)
        if (known := _known(file, key, current())) is not None:
            return replace(known, models=models)  # which may have other names by now
        partial = PartialScores(keep_in / "partial" / key)
    scores = scoring.run(watch, partial=partial)
    _require_numbers(scores, scoring.questions, partition)
    table = ScoreTable(
        head=head,
        class_names=tuple(store.class_names),
        lists=tuple(lists),
        rows=rows,
        ids=tuple(partition.videos[row].id for row in rows.tolist()),
        labels=partition.labels[rows],
        usable=np.isin(rows, features.rows),
        models=models,
        scores=tuple(scores),
    )
    if partial is not None and current().writes:
        save_scores(table, file, key=key)
        partial.clear()
    return table


def probabilities(
    features: Features,
    logits: Logits,
    *,
    num_frames: int,
    clips: int,
    batch_size: int = LARGEST_BATCH,
    videos: range | Int[Tensor, " n"] | None = None,
) -> Iterator[Float64[np.ndarray, "B K"]]:
    """Softmax scores of all videos in order, averaged over their views, in float64.

    Args:
        features: The videos; their views are `clips` temporal clips, each at every crop.
        logits: Of a batch.
        num_frames: t, frames the model takes.
        clips: Temporal clips among the views, clip by clip.
        batch_size: Videos at a time; changes nothing but memory and speed.
        videos: Which of them, by their place in the features; None takes all.
    """
    chosen = range(len(features)) if videos is None else videos
    if isinstance(chosen, range):
        chosen = torch.arange(chosen.start, chosen.stop)
    for part in chosen.split(batch_size):
        # a decorated generator would not be without gradients while it runs
        with torch.no_grad():
            mean = mean_softmax(_views_of(features, part, logits, num_frames, clips))
        yield mean.cpu().numpy()


def _views_of(
    features: Features, part: Int[Tensor, " B"], logits: Logits, num_frames: int, clips: int
) -> Iterator[Tensor]:
    """Logits of some videos, view by view."""
    _, num_views, num_stored, _ = features.shape
    for view in range(num_views):
        clip = view * clips // num_views
        chosen = strided(num_stored, num_frames, clip=clip, clips=clips)
        picked = features.chunk(part, view, chosen)
        yield logits(picked.frames, picked.patches)


def strided(num_stored: int, num_frames: int, *, clip: int, clips: int) -> Int[Tensor, " t"]:
    """Which stored frames an evaluation view of t frames takes: one from each group of T / t.

    The first clip takes the first of each group, which is the grid of t frames exactly; the
    last clip the last, which is where a store of t frames has it, within two frames.
    """
    group = frame_groups(num_stored, num_frames)
    gaps = max(clips - 1, 1)
    phase = (2 * (group - 1) * clip + gaps) // (2 * gaps)  # rounded to the nearest
    return torch.arange(num_frames) * group + phase


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scoring:
    """Who is asked what, about which videos."""

    features: Features
    classifiers: Sequence[Classifier]
    questions: Sequence[EvalList]
    sizes: Sequence[int]
    """Videos at a time, of each classifier."""

    clips: int
    """Temporal clips among the views."""

    num_classes: int
    """Of the store."""

    def run(self, watch: Watch, *, partial: PartialScores | None = None) -> list[Scores]:
        """Softmax scores of each model for each question, averaged over views, in float64.

        Of several processes each scores its share of the batches, and all get all scores.

        Args:
            watch: Called after every batch.
            partial: Where scores are kept until all are there; these are not scored again.
        """
        group = current()
        done = {} if partial is None else partial.read()
        group.wait()  # all have looked before anybody writes
        left = [batch for batch in self.batches() if batch not in done]
        mine = left[group.rank :: group.size]
        num_done = sum(len(values) for values in done.values())
        new = self._score(mine, watch, partial, before=num_done // group.size)
        whole = [
            [np.full((len(q.rows), len(q.classes)), np.nan) for q in self.questions]
            for _ in self.classifiers
        ]
        for scored in (done, *group.collect(new)):
            for (model, question, start), values in scored.items():
                whole[model][question][start : start + len(values)] = values
        return list(whole)

    def batches(self) -> list[Batch]:
        """All batches; frozen CLIP's come first, as they take the least time."""
        models = range(len(self.classifiers))
        return [
            (model, number, start)
            for model in sorted(models, key=lambda m: self.classifiers[m].about.run is not None)
            for number, question in enumerate(self.questions)
            for start in range(0, len(question.rows), self.sizes[model])
        ]

    def key(self, head: Head, partition: Partition) -> str:
        """A hash of everything that the bits of a score depend on."""
        depends = [
            [head.protocol, head.dataset, head.store, _contents(partition)],
            [
                [question.rows.tolist(), question.classes.tolist()]
                for question in self.questions
            ],
            [classifier.fingerprint() for classifier in self.classifiers],
            list(self.sizes),
            [device_name(self.features.device), commit(), versions()],
        ]
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]

    def _score(
        self,
        batches: Sequence[Batch],
        watch: Watch,
        partial: PartialScores | None,
        *,
        before: int,
    ) -> dict[Batch, Float64[np.ndarray, "_ _"]]:
        """Score some batches, and keep them every few seconds, whatever ends it."""
        scored: dict[Batch, np.ndarray] = {}
        unkept: dict[Batch, np.ndarray] = {}
        written, num_done = time.monotonic(), before
        total = before + sum(len(self._rows(batch)) for batch in batches)
        watch(num_done, total)
        try:
            for batch in batches:
                scored[batch] = unkept[batch] = self._scores(batch)
                num_done += len(scored[batch])
                watch(num_done, total)
                if partial is not None and time.monotonic() - written >= SECONDS:
                    partial.write(unkept)
                    unkept, written = {}, time.monotonic()
        finally:
            if partial is not None and unkept:
                partial.write(unkept)
        return scored

    def _scores(self, batch: Batch) -> Float64[np.ndarray, "B k"]:
        classifier, question = self.classifiers[batch[0]], self.questions[batch[1]]
        every = len(question.classes) == self.num_classes
        classes = None if every else torch.from_numpy(question.classes)
        rows = self._rows(batch)
        (scores,) = probabilities(
            self.features,
            lambda frames, patches: classifier.logits(frames, patches, classes),
            num_frames=classifier.about.frames,
            clips=self.clips,
            batch_size=len(rows),
            videos=torch.from_numpy(np.searchsorted(self.features.rows, rows)),
        )
        return scores

    def _rows(self, batch: Batch) -> Int[np.ndarray, " B"]:
        model, question, start = batch
        return self.questions[question].rows[start : start + self.sizes[model]]


def _known(file: Path, key: str, group: Group) -> ScoreTable | None:
    """The scores in the file, if all processes find those of this very evaluation there."""
    try:
        known = load_scores(file, key=key)
    except InputError:
        known = None
    return known if all(group.collect(known is not None)) else None


def agreed_sizes(
    classifiers: Sequence[Classifier], batch_size: int | None, group: Group
) -> list[int]:
    """The same batches in all processes, also where one of them has less memory free."""
    own = [batch_size or classifier.batch_size for classifier in classifiers]
    return [min(sizes) for sizes in zip(*group.collect(own), strict=True)]


def _views(store: FeatureStore, partition: str) -> tuple[int, int]:
    """Temporal clips and crops among the partition's views."""
    views = store.recipe["views"][partition]
    clips = max(view.get("clips", 1) for view in views)
    return clips, len(views) // clips


def _name(store: FeatureStore) -> str:
    """The data set, and that it is not the whole of it."""
    name, limit = str(store.recipe["data_set"]), store.recipe.get("limit")
    return name if limit is None else f"{name}-first-{limit}"


def _contents(partition: Partition) -> str:
    """A hash of the videos and their embeddings, which the recipe does not say."""
    digest = hashlib.sha256()
    for video in partition.videos:
        digest.update(f"{video.id}\n".encode())
    for shard in range(partition.num_shards):
        if (marker := partition.marker(shard)) is not None:
            sums = {name: file.sha256 for name, file in sorted(marker.files.items())}
            digest.update(json.dumps([shard, sums]).encode())
    return digest.hexdigest()


def _require_numbers(
    scores: Sequence[Scores], questions: Sequence[EvalList], partition: Partition
) -> None:
    for of_model in scores:
        for values, question in zip(of_model, questions, strict=True):
            wrong = question.rows[~np.isfinite(values).all(axis=1)]
            if len(wrong):
                video = partition.videos[int(wrong[0])].id
                raise InputError(
                    f"the scores of {len(wrong):,} videos are not numbers, the first is "
                    f"{video!r}; train again with a smaller lr, or look at the store with "
                    "`bieff store verify`"
                )
