"""Evaluation: every model's score for every video of a protocol's lists, none twice.

Views of a video are scored one after the other and averaged.  Several processes share the
batches; which videos make a batch does not depend on them.

B videos, K classes, t frames.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from bieff.clip import Clip
from bieff.features.errors import InputError
from bieff.features.store import FeatureStore, Partition
from bieff.train.data import Features, frame_groups, load_features
from bieff.train.distributed import Group, current, device_name
from bieff.train.evaluate.classifier import (
    LARGEST_BATCH,
    Classifier,
    Frozen,
    Trained,
    mean_softmax,
)
from bieff.train.evaluate.lists import EvalList, lists_of
from bieff.train.evaluate.scores import (
    SECONDS,
    BatchKey,
    Head,
    ModelScores,
    PartialScores,
    ScoreTable,
    load_scores,
    questions_of,
    save_scores,
    scores_file,
)
from bieff.train.runs.run import Run, commit, versions

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
    base: Sequence[int] | None = None,
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
        base: Labels of the base classes, of those protocols; None takes the usual half.
        batch_size: Videos at a time; None takes each model's own.
        keep_in: Folder of a run, for the scores: what is there of the same evaluation is not
            scored again.

    Raises:
        ConfigError: If there is no such protocol, or the frames do not fit.
        StoreError: If the store does not fit the protocol, or is not finished.
        InputError: If a score is not a number.
    """
    partition, lists = lists_of(store, protocol, split=split, base=base)
    rows = np.unique(np.concatenate([chosen.rows for chosen in lists]))
    features = load_features(
        partition,
        rows,
        device=classifiers[0].device,
        wants_patches=any(classifier.wants_patches for classifier in classifiers),
    )
    views = store.views(partition.name)
    clips = max(view.get("clips", 1) for view in views)
    scoring = Scoring(
        features=features,
        classifiers=classifiers,
        questions=questions_of(lists, features.rows),
        sizes=agreed_sizes(classifiers, batch_size, current()),
        clips=clips,
        num_classes=len(store.class_names),
    )
    name, limit = str(store.recipe["data_set"]), store.recipe.get("limit")
    head = Head(
        protocol=protocol,
        dataset=name if limit is None else f"{name}-first-{limit}",
        store=store.recipe_hash,
        clips=clips,
        crops=len(views) // clips,
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


def evaluate_run(
    run: Run,
    clip: Clip,
    store: FeatureStore,
    protocol: str,
    *,
    watch: Watch,
    split: str | None = None,
    blend: float | None = None,
    base: Sequence[int] | None = None,
) -> ScoreTable:
    """Scores of a run's last weights and of frozen CLIP beside them, kept with the run."""
    ours = Trained(run, clip, store.class_names, blend=blend)
    frozen = Frozen(clip, store.class_names, num_frames=ours.about.frames)
    return evaluate(
        store,
        [ours, frozen],
        protocol,
        watch=watch,
        split=split,
        base=base,
        keep_in=run.path,
    )


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
    _, num_views, num_stored, _ = features.embeddings.shape
    for view in range(num_views):
        clip = view * clips // num_views
        chosen = strided(num_stored, num_frames, clip=clip, clips=clips)
        picked = features.chunk(part, view, chosen)
        yield logits(picked.frames, picked.patches)


def strided(num_stored: int, num_frames: int, *, clip: int, clips: int) -> Int[Tensor, " t"]:
    """Stored frames that an evaluation view of t frames takes: one from each group of T / t.

    The first clip takes the first of each group, which is the grid of t frames exactly; the
    last clip the last, which is where a store of t frames has it, within two frames.
    """
    group = frame_groups(num_stored, num_frames)
    gaps = max(clips - 1, 1)
    phase = (2 * (group - 1) * clip + gaps) // (2 * gaps)  # rounded to the nearest
    return torch.arange(num_frames) * group + phase


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scoring:
    """An evaluation under way: classifiers, questions, and the videos they are about."""

    features: Features
    classifiers: Sequence[Classifier]
    questions: Sequence[EvalList]
    sizes: Sequence[int]
    """Videos at a time, of each classifier."""

    clips: int
    """Temporal clips among the views."""

    num_classes: int
    """Classes of the store."""

    def run(self, watch: Watch, *, partial: PartialScores | None = None) -> list[ModelScores]:
        """Softmax scores of each model for each question, averaged over views, in float64.

        Of several processes each scores its share of the batches, and all get all scores.
        What `partial` holds is not scored again.
        """
        group = current()
        done = {} if partial is None else partial.read()
        group.wait()  # all have looked before anybody writes
        left = [(batch, rows) for batch, rows in self.batches() if batch not in done]
        mine = dict(left[group.rank :: group.size])
        num_done = sum(map(len, done.values()))
        new = self._score(mine, watch, partial, before=num_done // group.size)
        whole = [
            [np.full((len(q.rows), len(q.classes)), np.nan) for q in self.questions]
            for _ in self.classifiers
        ]
        for scored in (done, *group.collect(new)):
            for (model, question, start), values in scored.items():
                whole[model][question][start : start + len(values)] = values
        return list(whole)

    def batches(self) -> Iterator[tuple[BatchKey, Int[np.ndarray, " B"]]]:
        """All batches and their rows; frozen CLIP's come first, as they take the least time."""
        models = range(len(self.classifiers))
        for model in sorted(models, key=lambda m: self.classifiers[m].about.run is not None):
            size = self.sizes[model]
            for number, question in enumerate(self.questions):
                for start in range(0, len(question.rows), size):
                    yield (model, number, start), question.rows[start : start + size]

    def key(self, head: Head, partition: Partition) -> str:
        """A hash of everything that the bits of a score depend on."""
        depends = [
            [head.protocol, head.dataset, head.store, _contents(partition)],
            [[asked.rows.tolist(), asked.classes.tolist()] for asked in self.questions],
            [classifier.fingerprint() for classifier in self.classifiers],
            list(self.sizes),
            [device_name(self.features.device), commit(), versions()],
        ]
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]

    def _score(
        self,
        batches: Mapping[BatchKey, Int[np.ndarray, " B"]],
        watch: Watch,
        partial: PartialScores | None,
        *,
        before: int,
    ) -> dict[BatchKey, Float64[np.ndarray, "_ _"]]:
        scored: dict[BatchKey, np.ndarray] = {}
        unkept: dict[BatchKey, np.ndarray] = {}
        written, num_done = time.monotonic(), before
        total = before + sum(map(len, batches.values()))
        watch(num_done, total)
        try:
            for batch, rows in batches.items():
                scored[batch] = unkept[batch] = self._scores(batch, rows)
                num_done += len(scored[batch])
                watch(num_done, total)
                if partial is not None and time.monotonic() - written >= SECONDS:
                    partial.write(unkept)
                    unkept, written = {}, time.monotonic()
        finally:
            if partial is not None and unkept:
                partial.write(unkept)
        return scored

    def _scores(self, batch: BatchKey, rows: Int[np.ndarray, " B"]) -> np.ndarray:
        classifier, asked = self.classifiers[batch[0]], self.questions[batch[1]].classes
        classes = None if len(asked) == self.num_classes else torch.from_numpy(asked)
        (scores,) = probabilities(
            self.features,
            lambda frames, patches: classifier.logits(frames, patches, classes),
            num_frames=classifier.about.frames,
            clips=self.clips,
            batch_size=len(rows),
            videos=torch.from_numpy(np.searchsorted(self.features.rows, rows)),
        )
        return scores


def _known(file: Path, key: str, group: Group) -> ScoreTable | None:
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
    scores: Sequence[ModelScores], questions: Sequence[EvalList], partition: Partition
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
