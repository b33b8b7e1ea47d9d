"""Evaluation protocols by name; docs/protocols.md says exactly what each one is.

closed    the `val` partition, all of its classes
splits3   the official test lists, all classes, mean and standard deviation over the lists
full      every video, all classes
half10    ten draws of half of the classes, mean and standard deviation over the draws
k600      three official choices of 160 classes outside Kinetics-400
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bieff.features.errors import InputError
from bieff.features.store import FeatureStore, Partition
from bieff.train.counting import results_of
from bieff.train.data import Features, load_features
from bieff.train.distributed import current, sharers
from bieff.train.eval_lists import PROTOCOLS, default_protocol, lists_of, test_lists
from bieff.train.examination import Examination, Examinee, Head, questions_of
from bieff.train.kept_scores import KeptScores
from bieff.train.record import device_name
from bieff.train.results import Result
from bieff.train.run import commit, versions
from bieff.train.scoring import Question, Scoring, Watch
from bieff.train.subjects import Subject, frozen, trained

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
