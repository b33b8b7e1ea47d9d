"""Few-shot training: some videos of each class, drawn once and written down.

A list to train on and a list to test on come from an official split of a store whose partition
is `all` (UCF-101, HMDB-51), or are a store's `train` and `val`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bieff.features.errors import ConfigError, StoreError, StoreMismatchError
from bieff.features.schema import Status
from bieff.features.selection import Selection, select
from bieff.features.store import FeatureStore
from bieff.train.runs.run import Run, open_run

FEW_SHOT = "fewshot"
"""Protocol: trained on few videos of a training list, tested on the whole test list."""

BASE = "base2novel-base"
"""Protocol: the same of half of the classes, see `base2novel.py`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shots:
    """A draw, plain JSON: what run.json keeps of it, and another run can train on again."""

    store: str
    """Recipe hash of the store it was drawn from."""

    split: str | None
    """Official split; None where the store has `train` and `val`."""

    shots: int
    """Videos asked for a class."""

    seed: int
    """Of the draw."""

    videos: Mapping[str, Sequence[str]]
    """Class -> ids of its videos; the classes in the order of their labels."""

    def to_dict(self) -> dict[str, Any]:
        """For run.json."""
        return asdict(self)

    @classmethod
    def of_run(cls, run: Run) -> "Shots | None":
        """The draw that a run was trained on; None if it had all videos."""
        kept = run.record.get("shots")
        return None if kept is None else cls(**kept)

    def text(self) -> str:
        """In words."""
        count = sum(map(len, self.videos.values()))
        fewer = sum(len(ids) < self.shots for ids in self.videos.values())
        note = f", {fewer} classes have fewer" if fewer else ""
        where = "" if self.split is None else f" of split {self.split}"
        return (
            f"{self.shots} videos a class{where}, draw {self.seed}: {count:,} videos of "
            f"{len(self.videos)} classes{note}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Few:
    """Few videos as a user asks for them."""

    shots: int | None
    """Videos a class."""

    split: str | None
    seed: int | None
    """Of the draw; None: 0."""

    same_as: Path | None
    """A run whose videos to take."""

    def draw(self, store: FeatureStore) -> Shots:
        """Draw, or take a run's draw again.

        Raises:
            ConfigError: If what was asked for contradicts itself or the store.
        """
        if self.same_as is None:
            if self.shots is None:
                raise ConfigError(
                    "--split and --draw need --shots, the number of videos a class"
                )
            return draw_shots(store, shots=self.shots, split=self.split, seed=self.seed or 0)
        if any(option is not None for option in (self.shots, self.split, self.seed)):
            raise ConfigError("--same-shots brings its shots, split and draw; leave these out")
        shots = Shots.of_run(open_run(self.same_as))
        if shots is None:
            raise ConfigError(f"run {self.same_as} was trained on all videos, not on few")
        return shots


def split_lists(store: FeatureStore, split: str | None) -> tuple[Selection, Selection]:
    """The list to train on and the list to test on.

    Raises:
        ConfigError: If the store has no such split.
        StoreError: If it has neither splits nor `train` and `val`.
    """
    if "all" not in store.partitions:
        if not {"train", "val"} <= store.partitions.keys():
            raise StoreError(
                f"{store.path}: expected official splits, or the partitions train and val, got "
                f"{', '.join(store.partitions)}"
            )
        if split is not None:
            raise ConfigError(
                f"{store.path} has no official splits, it has train and val; leave --split out"
            )
        train, val = (
            Selection(name, np.arange(store.partitions[name].num_videos))
            for name in ("train", "val")
        )
        return train, val
    roles = [video.splits.get(split or "1") for video in store.partitions["all"].videos]
    lists = [np.flatnonzero([given == role for given in roles]) for role in ("train", "test")]
    if not all(map(len, lists)):
        known = {name for video in store.partitions["all"].videos for name in video.splits}
        raise ConfigError(
            f"split: {store.path} has {', '.join(sorted(known)) or 'none'}, got {split!r}"
        )
    return Selection("all", lists[0]), Selection("all", lists[1])


def draw_shots(
    store: FeatureStore,
    *,
    shots: int,
    split: str | None = None,
    seed: int = 0,
    classes: Sequence[int] | None = None,
) -> Shots:
    """Draw videos of each class from a training list, among those that are usable.

    A class's draw depends on the seed and its label alone: fewer shots are a part of more, and
    a choice of classes changes none of them.  A class with fewer videos gives all it has.

    Args:
        store: With features.
        shots: Videos a class.
        split: Official split; None takes the first where there are splits.
        seed: Of the draw.
        classes: Labels to draw for; None: all.

    Raises:
        ConfigError: If `shots` is not positive, `seed` is negative, or the split is not
            there.
        StoreError: If a class has no usable video.
    """
    if shots < 1:
        raise ConfigError(f"shots must be positive, got {shots}")
    if seed < 0:
        raise ConfigError(f"draw must not be negative, got {seed}")
    listed, _ = split_lists(store, split)
    partition = store.partitions[listed.partition]
    is_usable = np.isin(partition.status()[listed.rows], [Status.OK, Status.SALVAGED])
    rows = listed.rows[is_usable]
    labels = partition.labels[rows]
    videos: dict[str, list[str]] = {}
    for label in range(len(store.class_names)) if classes is None else classes:
        own = rows[labels == label]
        if not len(own):
            raise StoreError(
                f"{store.path}: class {store.class_names[label]!r} has no usable video to "
                "train on"
            )
        chosen = np.random.default_rng([seed, label]).permutation(own)[:shots]
        videos[store.class_names[label]] = [
            partition.videos[row].id for row in np.sort(chosen).tolist()
        ]
    has_splits = listed.partition == "all"
    return Shots(
        store=store.recipe_hash,
        split=(split or "1") if has_splits else None,
        shots=shots,
        seed=seed,
        videos=videos,
    )


def training_view(store: FeatureStore, shots: Shots) -> FeatureStore:
    """The drawn videos as the `train` partition of a store with their classes alone.

    There is no `val`: the test list is for the end.

    Raises:
        StoreMismatchError: If the draw is of another store.
    """
    listed, _ = split_lists(store, shots.split)
    partition = store.partitions[listed.partition]
    row_of = {partition.videos[row].id: row for row in listed.rows.tolist()}
    wanted = [id_ for ids in shots.videos.values() for id_ in ids]
    missing = [id_ for id_ in wanted if id_ not in row_of]
    if shots.store != store.recipe_hash or missing:
        what = f"it lists no video {missing[0]!r}" if missing else "another recipe"
        raise StoreMismatchError(
            f"the draw is not of {store.path}: {what}; draw again, or name the store it is of"
        )
    rows = np.array(sorted(row_of[id_] for id_ in wanted), np.int64)
    parts = {"train": Selection(listed.partition, rows)}
    return select(store, parts, classes=labels_of(store, list(shots.videos)))


def evaluation_view(
    store: FeatureStore, split: str | None, *, classes: Sequence[int] | None = None
) -> FeatureStore:
    """A split's test list, or that of some classes, as the `val` partition of a store.

    All of it, whatever a run was trained on: with `protocol="closed"`.
    """
    _, listed = split_lists(store, split)
    if classes is not None:
        labels = store.partitions[listed.partition].labels[listed.rows]
        listed = Selection(listed.partition, listed.rows[np.isin(labels, classes)])
    return select(store, {"val": listed}, classes=classes)


def labels_of(store: FeatureStore, names: Sequence[str]) -> list[int]:
    """Index of each class name.

    Raises:
        StoreMismatchError: If the store has no such class.
    """
    index = {name: label for label, name in enumerate(store.class_names)}
    if unknown := [name for name in names if name not in index]:
        raise StoreMismatchError(f"{store.path} has no class {unknown[0]!r}")
    return [index[name] for name in names]
