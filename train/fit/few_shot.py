"""Few-shot training: some videos of each class, drawn once and written down.

They are drawn from the training list of an official split (UCF-101, HMDB-51), or from `train`;
`split_lists` says which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bieff.features.errors import ConfigError, InputError, StoreError, StoreMismatchError
from bieff.features.schema import Status
from bieff.features.store import FeatureStore
from bieff.train.evaluate.lists import BASE, FEW_SHOT, EvalList, Listed, split_lists
from bieff.train.runs.run import Run, open_run


@dataclass(frozen=True, kw_only=True, slots=True)
class FewShotDraw:
    """A draw, plain JSON: what run.json keeps of it, and another run can train on again."""

    store: str
    """Recipe hash of the store it was drawn from."""

    split: str | None
    """Official split; None where the store has `train` and `val`."""

    shots: int
    """Videos asked for a class."""

    seed: int | None
    """Seed of the draw; None where a list named the videos."""

    videos: Mapping[str, Sequence[str]]
    """Class -> ids of its videos; the classes in the order of their labels."""

    def to_dict(self) -> dict[str, Any]:
        """The draw as run.json keeps it."""
        return asdict(self)

    @classmethod
    def of_run(cls, run: Run) -> "FewShotDraw | None":
        """The draw that a run was trained on; None if it had all videos."""
        return cls.read(run.record.get("shots"), run.path)

    @classmethod
    def read(cls, kept: Any, run: object) -> "FewShotDraw | None":
        """The draw that a record keeps, of `run`; None if there is none."""
        try:
            return None if kept is None else cls(**kept)
        except TypeError as error:
            raise InputError(f"the draw of run {run} cannot be read: {error}") from None

    def protocol(self, store: FeatureStore) -> str:
        """The protocol that a run on it is evaluated by."""
        has_all = len(self.videos) == len(store.class_names)
        return FEW_SHOT if has_all else BASE  # of half of them in a run of `bieff base2novel`

    def base(self, store: FeatureStore) -> list[int] | None:
        """Labels of its classes; None where these are all of the store's.

        Raises:
            StoreMismatchError: If the store has no such class.
        """
        names = store.class_names
        if len(self.videos) == len(names):
            return None
        if other := sorted(set(self.videos) - set(names)):
            raise StoreMismatchError(f"{store.path} has no class {other[0]!r}, which was drawn")
        return [names.index(name) for name in self.videos]

    def listed(self, store: FeatureStore) -> Listed:
        """Rows of the videos in the store, and the classes they are told apart among.

        Raises:
            StoreMismatchError: If the draw is of another store.
        """
        (partition, whole), _ = split_lists(store, self.split)
        row_of = {partition.videos[row].id: row for row in whole.rows.tolist()}
        label_of = {name: label for label, name in enumerate(store.class_names)}
        wanted = [id_ for ids in self.videos.values() for id_ in ids]
        missing = [id_ for id_ in wanted if id_ not in row_of]
        if self.store != store.recipe_hash or missing or self.videos.keys() - label_of.keys():
            what = f"it lists no video {missing[0]!r}" if missing else "another recipe or names"
            raise StoreMismatchError(
                f"the draw is not of {store.path}: {what}; draw again, or name the store it is "
                "of"
            )
        rows = np.array(sorted(row_of[id_] for id_ in wanted), np.int64)
        classes = np.array(sorted(label_of[name] for name in self.videos), np.int64)
        return partition, EvalList("train", rows, classes)

    def text(self) -> str:
        """The draw in words."""
        count = sum(map(len, self.videos.values()))
        fewer = sum(len(ids) < self.shots for ids in self.videos.values())
        note = f", {fewer} classes have fewer" if fewer else ""
        where = "" if self.split is None else f" of split {self.split}"
        how = "as listed" if self.seed is None else f"draw {self.seed}"
        return (
            f"{self.shots} videos a class{where}, {how}: {count:,} videos of "
            f"{len(self.videos)} classes{note}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FewShotOptions:
    """Few videos as a user asks for them."""

    shots: int | None
    """Videos a class."""

    split: str | None
    seed: int | None
    """Seed of the draw; None: 0."""

    same_as: Path | None
    """A run whose videos to take."""

    def draw(self, store: FeatureStore) -> FewShotDraw:
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
        if (self.shots, self.split, self.seed) != (None, None, None):
            raise ConfigError("--same-shots brings its shots, split and draw; leave these out")
        shots = FewShotDraw.of_run(open_run(self.same_as))
        if shots is None:
            raise ConfigError(f"run {self.same_as} was trained on all videos, not on few")
        return shots


def draw_shots(
    store: FeatureStore,
    *,
    shots: int,
    split: str | None = None,
    seed: int = 0,
    classes: Sequence[int] | None = None,
) -> FewShotDraw:
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
    (partition, listed), _ = split_lists(store, split)
    is_usable = np.isin(partition.status()[listed.rows], [Status.OK, Status.SALVAGED])
    rows = listed.rows[is_usable]
    labels = partition.labels[rows]
    videos: dict[str, list[str]] = {}
    for label in range(len(store.class_names)) if classes is None else classes:
        own, name = rows[labels == label], store.class_names[label]
        if not len(own):
            raise StoreError(f"{store.path}: class {name!r} has no usable video to train on")
        chosen = np.random.default_rng([seed, label]).permutation(own)[:shots]
        videos[name] = [partition.videos[row].id for row in np.sort(chosen).tolist()]
    return FewShotDraw(
        store=store.recipe_hash,
        split=(split or "1") if partition.name == "all" else None,
        shots=shots,
        seed=seed,
        videos=videos,
    )
