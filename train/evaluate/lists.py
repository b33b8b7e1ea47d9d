"""What each protocol asks: which videos of a partition, among which classes.

closed    the `val` list, all classes
splits3   the official test lists, all classes
full      every video, all classes
half10    ten draws of half of the classes, every video of these
k600      the three official choices of 160 classes outside Kinetics-400, their `val` videos
fewshot   one test list, all classes: of a run on few videos of the training list beside it
base2novel-base, base2novel-novel    that test list's videos of half of the classes, among these

docs/protocols.md says exactly what each one is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from bieff.features.errors import ConfigError, StoreError
from bieff.features.schema import UNLABELLED
from bieff.features.store import FeatureStore, Partition

NUM_DRAWS = 10

TAKEN_FROM = {"closed": "val", "splits3": "all", "full": "all", "half10": "all", "k600": "val"}
"""Which partition a protocol asks about; the others take that of `split_lists`."""


@dataclass(frozen=True, slots=True, eq=False)
class EvalList:
    """Videos of a partition, and the classes they are told apart among."""

    name: str
    rows: Int[np.ndarray, " n"]
    """Of the partition, ascending."""

    classes: Int[np.ndarray, " k"]
    """Labels, ascending."""


Listed = tuple[Partition, EvalList]


def lists_of(
    store: FeatureStore, protocol: str, *, split: str | None = None
) -> tuple[Partition, list[EvalList]]:
    """The lists of a protocol, usable videos or not, and the partition that all are of.

    A video without a label is on no list.

    Args:
        store: With labels; it need not be finished.
        protocol: One of `PROTOCOLS`.
        split: Official split of fewshot and base2novel; None takes the first.

    Raises:
        ConfigError: If there is no such protocol or split.
        StoreError: If the store has nothing that it could be asked about.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    partition, lists = PROTOCOLS[protocol](store, split)
    for chosen in lists:
        if not len(chosen.rows):
            raise StoreError(
                f"{store.path}: {protocol} asks about {chosen.name!r}, of which the store "
                "lists no labelled video; extract the whole set, or choose another protocol"
            )
    return partition, lists


def default_protocol(store: FeatureStore) -> str:
    """How a set that a run was not trained on is usually evaluated."""
    if store.class_subsets:
        return "k600"
    if "all" not in store.partitions:
        return "closed"
    return "splits3" if test_lists(store.partitions["all"]) else "full"


def test_lists(partition: Partition) -> dict[str, Bool[np.ndarray, " N"]]:
    """Name of each official split -> True where the video is in its test list."""
    videos = partition.videos
    names = sorted({name for video in videos for name in video.splits})
    lists = {
        name: np.array([video.splits.get(name) == "test" for video in videos]) for name in names
    }
    return {name: listed for name, listed in lists.items() if listed.any()}


def split_lists(store: FeatureStore, split: str | None) -> tuple[Listed, Listed]:
    """The list to train on and the list to test on, of an official split or `train` and `val`.

    Args:
        store: With either.
        split: None takes the first where there are splits.

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
        train, test = (store.partitions[name] for name in ("train", "val"))
        return (train, _every(store, train, "train")), (test, _every(store, test, "val"))
    whole = store.partitions["all"]
    labelled = _every(store, whole, "all")
    roles = np.array([video.splits.get(split or "1", "") for video in whole.videos])
    train_rows, test_rows = (
        labelled.rows[roles[labelled.rows] == role] for role in ("train", "test")
    )
    if not len(train_rows) or not len(test_rows):
        known = {name for video in whole.videos for name in video.splits}
        raise ConfigError(
            f"split: {store.path} has {', '.join(sorted(known)) or 'none'}, got {split!r}"
        )
    return (
        (whole, EvalList("train", train_rows, labelled.classes)),
        (whole, EvalList("test", test_rows, labelled.classes)),
    )


def halves(store: FeatureStore, split: str | None) -> dict[str, Int[np.ndarray, " k"]]:
    """Labels of the "base" and of the "novel" classes, ascending.

    Base classes are the half that occurs more often in the training list, ties by label; of an
    odd number the base gets one more.

    Raises:
        ConfigError: If there is a single class.
    """
    (partition, listed), _ = split_lists(store, split)
    number = len(store.class_names)
    if number < 2:
        raise ConfigError(f"base2novel needs two classes, {store.path} has {number}")
    counts = np.bincount(partition.labels[listed.rows], minlength=number)
    often = np.argsort(-counts, kind="stable")
    middle = (number + 1) // 2
    return {"base": np.sort(often[:middle]), "novel": np.sort(often[middle:])}


def half_of(num_classes: int, draw: int) -> Int[np.ndarray, " k"]:
    """Half of the classes, rounded down: `np.random.seed(draw); permutation(K)[:K // 2]`.

    The draws of the ER-ZSAR lineage (BIKE, Text4Vis); ascending.
    """
    stream = np.random.RandomState(draw)
    return np.sort(stream.permutation(num_classes)[: num_classes // 2]).astype(np.int64)


Lists = tuple[Partition, list[EvalList]]


def _closed(store: FeatureStore, _: str | None) -> Lists:
    partition = _partition(store, "closed")
    return partition, [_every(store, partition, "val")]


def _splits3(store: FeatureStore, _: str | None) -> Lists:
    partition = _partition(store, "splits3")
    lists = test_lists(partition)
    if not lists:
        raise StoreError(
            f"{store.path} lists no test splits; evaluate all of its videos with "
            "--protocol full"
        )
    every = _every(store, partition, "all")
    return partition, [
        EvalList(name, np.intersect1d(every.rows, np.flatnonzero(listed)), every.classes)
        for name, listed in lists.items()
    ]


def _full(store: FeatureStore, _: str | None) -> Lists:
    partition = _partition(store, "full")
    return partition, [_every(store, partition, "all")]


def _half10(store: FeatureStore, _: str | None) -> Lists:
    partition = _partition(store, "half10")
    number = len(store.class_names)
    drawn = {f"draw {draw}": half_of(number, draw) for draw in range(NUM_DRAWS)}
    return partition, _of_classes(partition, drawn, _every(store, partition, "").rows)


def _k600(store: FeatureStore, _: str | None) -> Lists:
    partition = _partition(store, "k600")
    if not store.class_subsets:
        raise StoreError(
            f"{store.path} names no subsets of its classes; they come with "
            "`bieff extract --dataset k600`, which brings a finished store up to date at once"
        )
    subsets = {
        f"split {name}": np.sort(np.array(labels, np.int64))
        for name, labels in store.class_subsets.items()
    }
    return partition, _of_classes(partition, subsets, _every(store, partition, "").rows)


def _few_shot(store: FeatureStore, split: str | None) -> Lists:
    _, (partition, listed) = split_lists(store, split)
    return partition, [listed]


def _base_to_novel(half: str) -> "Protocol":
    def lists(store: FeatureStore, split: str | None) -> Lists:
        _, (partition, listed) = split_lists(store, split)
        classes = {half: halves(store, split)[half]}
        return partition, _of_classes(partition, classes, listed.rows)

    return lists


def _of_classes(
    partition: Partition,
    subsets: Mapping[str, Int[np.ndarray, " k"]],
    rows: Int[np.ndarray, " n"],
) -> list[EvalList]:
    """Those of some videos that are of some classes, told apart among these alone."""
    labels = partition.labels[rows]
    return [
        EvalList(name, rows[np.isin(labels, classes)], classes)
        for name, classes in subsets.items()
    ]


def _every(store: FeatureStore, partition: Partition, name: str) -> EvalList:
    """All labelled videos, and all classes."""
    classes = np.arange(len(store.class_names), dtype=np.int64)
    return EvalList(name, np.flatnonzero(partition.labels != UNLABELLED), classes)


def _partition(store: FeatureStore, protocol: str) -> Partition:
    name = TAKEN_FROM[protocol]
    if name not in store.partitions:
        fitting = [p for p, part in TAKEN_FROM.items() if part in store.partitions]
        hint = f", take --protocol {' or '.join(fitting)}" if fitting else ""
        raise StoreError(
            f"{store.path} has no {name!r} partition, it has {', '.join(store.partitions)}; "
            f"{protocol} is not for it{hint}"
        )
    return store.partitions[name]


Protocol = Callable[[FeatureStore, str | None], Lists]

FEW_SHOT, BASE, NOVEL = "fewshot", "base2novel-base", "base2novel-novel"

PROTOCOLS: Mapping[str, Protocol] = {
    "closed": _closed,
    "splits3": _splits3,
    "full": _full,
    "half10": _half10,
    "k600": _k600,
    FEW_SHOT: _few_shot,
    BASE: _base_to_novel("base"),
    NOVEL: _base_to_novel("novel"),
}
"""Each protocol by name -> the partition it looks at, and its lists, of a store and a split."""
