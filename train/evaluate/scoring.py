"""Evaluation protocols by name; docs/protocols.md says exactly what each one is.

closed    the `val` partition, all of its classes
splits3   the official test lists, all classes, mean and standard deviation over the lists
full      every video, all classes
half10    ten draws of half of the classes, mean and standard deviation over the draws
k600      three official choices of 160 classes outside Kinetics-400
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
from bieff.train.distributed import current, device_name, sharers
from bieff.train.evaluate.classifier import (
    LARGEST_BATCH,
    Score,
    Subject,
    frozen,
    trained,
)
from bieff.train.evaluate.lists import PROTOCOLS, default_protocol, lists_of, test_lists
from bieff.train.evaluate.results import Result, results_of
from bieff.train.evaluate.scores import (
    SECONDS,
    Batch,
    Examination,
    Examinee,
    Head,
    KeptScores,
    Question,
    questions_of,
)
from bieff.train.runs.run import commit, versions


def probabilities(
    features: Features,
    score: Score,
    *,
    num_frames: int,
    clips: int,
    batch_size: int = LARGEST_BATCH,
    videos: range | Int[Tensor, " n"] | None = None,
) -> Iterator[Float64[np.ndarray, "B K"]]:
    """Softmax scores of all videos in order, averaged over their views, in float64.

    Args:
        features: The videos; their views are `clips` temporal clips, each at every crop.
        score: Logits of a batch.
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
            mean = _mean_softmax(features, part, score, num_frames=num_frames, clips=clips)
        yield mean.cpu().numpy()


def _mean_softmax(
    features: Features, part: Int[Tensor, " B"], score: Score, *, num_frames: int, clips: int
) -> Float64[Tensor, "B K"]:
    """Softmax scores of some videos, averaged over their views."""
    _, num_views, num_stored, _ = features.shape
    total: Tensor | None = None
    for view in range(num_views):
        clip = view * clips // num_views
        chosen = strided(num_stored, num_frames, clip=clip, clips=clips)
        picked = features.chunk(part, view, chosen)
        softmax = score(picked.frames, picked.patches).double().softmax(dim=-1)
        total = softmax if total is None else total + softmax
    assert total is not None
    return total / num_views


def strided(num_stored: int, num_frames: int, *, clip: int, clips: int) -> Int[Tensor, " t"]:
    """Which stored frames an evaluation view of t frames takes: one from each group of T / t.

    The first clip takes the first of each group, which is the grid of t frames exactly; the
    last clip the last, which is where a store of t frames has it, within two frames.
    """
    group = frame_groups(num_stored, num_frames)
    gaps = max(clips - 1, 1)
    phase = (2 * (group - 1) * clip + gaps) // (2 * gaps)  # rounded to the nearest
    return torch.arange(num_frames) * group + phase


Watch = Callable[[int, int], None]
"""Called with (videos done, videos in all), as far as this process scores them."""


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


__all__ = [
    "PROTOCOLS",
    "Subject",
    "Watch",
    "closed",
    "default_protocol",
    "examine",
    "frozen",
    "full",
    "half10",
    "k600",
    "splits3",
    "test_lists",
    "trained",
]


def closed(store: FeatureStore, subjects: Sequence[Subject], *, watch: Watch) -> list[Result]:
    """Top-1 and top-5 over the `val` partition."""
    return results_of(examine(store, subjects, "closed", watch=watch))


def splits3(store: FeatureStore, subjects: Sequence[Subject], *, watch: Watch) -> list[Result]:
    """Top-1 and top-5 over each official test list, mean and standard deviation."""
    return results_of(examine(store, subjects, "splits3", watch=watch))


def full(store: FeatureStore, subjects: Sequence[Subject], *, watch: Watch) -> list[Result]:
    """Top-1 and top-5 over every video."""
    return results_of(examine(store, subjects, "full", watch=watch))


def half10(store: FeatureStore, subjects: Sequence[Subject], *, watch: Watch) -> list[Result]:
    """Top-1 and top-5 over ten draws of half of the classes."""
    return results_of(examine(store, subjects, "half10", watch=watch))


def k600(store: FeatureStore, subjects: Sequence[Subject], *, watch: Watch) -> list[Result]:
    """Top-1 and top-5 over the three choices of 160 classes."""
    return results_of(examine(store, subjects, "k600", watch=watch))


def examine(
    store: FeatureStore,
    subjects: Sequence[Subject],
    protocol: str,
    *,
    watch: Watch,
    batch_size: int | None = None,
    keep_in: Path | None = None,
) -> Examination:
    """Ask all subjects what the protocol asks, and keep every score.

    Under `torchrun` the processes share the videos, and each gets the whole examination.

    Args:
        store: Finished, of the CLIP that the subjects come from.
        subjects: Who is asked.
        protocol: One of `PROTOCOLS`.
        watch: Called after every batch.
        batch_size: Videos at a time; None takes each subject's own.
        keep_in: Folder for scores while the examination is under way; a later call that asks
            the same goes on with them.

    Raises:
        ConfigError: If there is no such protocol, or the frames do not fit.
        StoreError: If the store does not fit the protocol, or is not finished.
        InputError: If a score is not a number.
    """
    partition, lists = lists_of(store, protocol)
    subjects = _agreed(subjects)
    features = load_features(
        partition,
        device=_device(subjects),
        wants_patches=_wants_patches(store, subjects),
        sharers=sharers(),
    )
    questions = questions_of(lists, features.rows)
    clips, crops = _views(store, partition.name)
    head = Head(
        protocol=protocol,
        dataset=_name(store),
        store=store.recipe_hash,
        clips=clips,
        crops=crops,
    )
    kept = None
    if keep_in is not None:
        key = _key(head, partition, questions, features, subjects, batch_size)
        kept = KeptScores(keep_in / key)
    scoring = Scoring(
        features=features,
        subjects=subjects,
        questions=questions,
        clips=clips,
        num_classes=len(store.class_names),
        batch_size=batch_size,
    )
    scores = scoring.run(watch, kept=kept)
    if kept is not None and current().writes:
        kept.clear()
    rows = np.unique(np.concatenate([chosen.rows for chosen in lists]))
    _require_numbers(scores, [question.rows for question in questions], partition)
    videos = partition.videos
    return Examination(
        head=head,
        class_names=tuple(store.class_names),
        lists=tuple(lists),
        rows=rows,
        ids=tuple(videos[row].id for row in rows.tolist()),
        labels=partition.labels[rows],
        usable=np.isin(rows, features.rows),
        examinees=tuple(map(_examinee, subjects)),
        scores=tuple(scores),
    )


def _agreed(subjects: Sequence[Subject]) -> list[Subject]:
    """The same batches in all processes, also where one of them has less memory free."""
    sizes = current().collect([subject.batch_size for subject in subjects])
    return [
        replace(subject, batch_size=min(of_each))
        for subject, of_each in zip(subjects, zip(*sizes, strict=True), strict=True)
    ]


def _examinee(subject: Subject) -> Examinee:
    return Examinee(
        model=subject.model,
        frames=subject.num_frames,
        template=subject.template,
        names=subject.names,
        names_hash=subject.names_hash,
        run=subject.run,
        weights=subject.weights,
    )


def _device(subjects: Sequence[Subject]) -> torch.device:
    named = next((s.device for s in subjects if s.device is not None), None)
    return named or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wants_patches(store: FeatureStore, subjects: Sequence[Subject]) -> bool:
    has = store.recipe.get("patches") is not None
    return any(has if s.wants_patches is None else s.wants_patches for s in subjects)


def _views(store: FeatureStore, partition: str) -> tuple[int, int]:
    """Temporal clips and crops among the partition's views."""
    views = store.recipe["views"][partition]
    clips = max(view.get("clips", 1) for view in views)
    return clips, len(views) // clips


def _name(store: FeatureStore) -> str:
    """The data set, and that it is not the whole of it."""
    name, limit = str(store.recipe["data_set"]), store.recipe.get("limit")
    return name if limit is None else f"{name}-first-{limit}"


def _key(
    head: Head,
    partition: Partition,
    questions: Sequence[Question],
    features: Features,
    subjects: Sequence[Subject],
    batch_size: int | None,
) -> str:
    """Of everything that the bits of a score depend on."""
    if any(subject.fingerprint is None for subject in subjects):
        raise ValueError("keep_in: expected a fingerprint of every subject, got none")
    depends = [
        [head.protocol, head.dataset, head.store, _contents(partition)],
        [[question.rows.tolist(), question.categories.tolist()] for question in questions],
        [subject.fingerprint for subject in subjects],
        [batch_size or subject.batch_size for subject in subjects],
        [device_name(features.device), commit(), versions()],
    ]
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]


def _contents(partition: Partition) -> str:
    """Of the videos and their embeddings: a recipe says how they were made, not of what."""
    digest = hashlib.sha256()
    for video in partition.videos:
        digest.update(f"{video.id}\n".encode())
    for shard in range(partition.num_shards):
        if (marker := partition.marker(shard)) is not None:
            sums = {name: file.sha256 for name, file in sorted(marker.files.items())}
            digest.update(json.dumps([shard, sums]).encode())
    return digest.hexdigest()


def _require_numbers(
    scores: Sequence[Sequence[np.ndarray]], rows: Sequence[np.ndarray], partition: Partition
) -> None:
    for of_subject in scores:
        for values, asked in zip(of_subject, rows, strict=True):
            wrong = asked[~np.isfinite(values).all(axis=1)]
            if len(wrong):
                video = partition.videos[int(wrong[0])].id
                raise InputError(
                    f"the scores of {len(wrong):,} videos are not numbers, the first is "
                    f"{video!r}; train again with a smaller lr, or look at the store with "
                    "`bieff store verify`"
                )
