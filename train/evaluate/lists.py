"""The question of each protocol: which videos of a partition, among which classes.

closed    the `val` list, all classes
splits3   the official test lists, all classes
full      every video, all classes
half10    ten draws of half of the classes, every video of these
k600      the three official choices of 160 classes outside Kinetics-400, their `val` videos
fewshot   one test list, all classes: of a run on few videos of the training list beside it
base2novel-base, base2novel-novel    that test list's videos of half of the classes, among these

docs/protocols.md says exactly what each one is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from bieff.features.errors import ConfigError, StoreError
from bieff.features.schema import UNLABELLED
from bieff.features.store import FeatureStore, Partition

FEW_SHOT, BASE, NOVEL = "fewshot", "base2novel-base", "base2novel-novel"
OF_FEW_VIDEOS = (FEW_SHOT, BASE, NOVEL)
"""Protocols of a run on few videos; the run decides which of them it is asked."""

PROTOCOLS: Mapping[str, str | None] = {
    "closed": "val",
    "splits3": "all",
    "full": "all",
    "half10": "all",
    "k600": "val",
    **dict.fromkeys(OF_FEW_VIDEOS),
}
"""Each protocol by name -> the partition it asks about; None: where `split_lists` has the test
list."""

NUM_DRAWS = 10


@dataclass(frozen=True, slots=True, eq=False)
class EvalList:
    """Videos of a partition, and the classes they are told apart among."""

    name: str
    rows: Int[np.ndarray, " n"]
    """Rows of the partition, ascending."""

    classes: Int[np.ndarray, " k"]
    """Labels, ascending."""


Listed = tuple[Partition, EvalList]


def lists_of(
    store: FeatureStore,
    protocol: str,
    *,
    split: str | None = None,
    base: Sequence[int] | None = None,
) -> tuple[Partition, list[EvalList]]:
    """The lists of a protocol, usable videos or not, and the partition that all are of.

    A video without a label is on no list.

    Args:
        store: With labels; it need not be finished.
        protocol: One of `PROTOCOLS`.
        split: Official split of fewshot and base2novel; None takes the first.
        base: Labels of the base classes; None takes those of `halves`.

    Raises:
        ConfigError: If there is no such protocol or split.
        StoreError: If the store has nothing that it could be asked about.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if (name := PROTOCOLS[protocol]) is None:
        partition, every = split_lists(store, split)[1]
    elif name in store.partitions:
        partition = store.partitions[name]
        every = _every(store, partition)
    else:
        fitting = [p for p, part in PROTOCOLS.items() if part in store.partitions]
        hint = f", take --protocol {' or '.join(fitting)}" if fitting else ""
        raise StoreError(
            f"{store.path} has no {name!r} partition, it has {', '.join(store.partitions)}; "
            f"{protocol} is not for it{hint}"
        )
    lists = _lists(store, protocol, partition, every, (split, base))
    for chosen in lists:
        if not len(chosen.rows):
            raise StoreError(
                f"{store.path}: {protocol} asks about {chosen.name!r}, of which the store "
                "lists no labelled video; extract the whole set, or choose another protocol"
            )
    return partition, lists


def default_protocol(store: FeatureStore) -> str:
    """The usual protocol of a set that a run was not trained on."""
    if store.class_subsets:
        return "k600"
    if "all" not in store.partitions:
        return "closed"
    return "splits3" if test_lists(store.partitions["all"]) else "full"


def test_lists(partition: Partition) -> dict[str, Bool[np.ndarray, " N"]]:
    """Name of each official split -> True where the video is in its test list."""
    tests = [
        {name for name, role in video.splits.items() if role == "test"}
        for video in partition.videos
    ]
    return {
        name: np.array([name in names for names in tests])
        for name in sorted(set().union(*tests))
    }


def split_lists(store: FeatureStore, split: str | None) -> tuple[Listed, Listed]:
    """The list to train on and the list to test on, of an official split or `train` and `val`.

    Where there are splits, None takes the first.

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
        return (train, _every(store, train)), (test, _every(store, test))
    whole = store.partitions["all"]
    every = _every(store, whole)
    videos = (whole.videos[row] for row in every.rows.tolist())
    roles = np.array([video.splits.get(split or "1") for video in videos])
    train_rows, test_rows = (every.rows[roles == role] for role in ("train", "test"))
    if not len(train_rows) or not len(test_rows):
        known = {name for video in whole.videos for name in video.splits}
        if (split or "1") in known:
            missing = "test" if len(train_rows) else "training"
            raise ConfigError(
                f"split {split or '1'} of {store.path} has no {missing} list; take a store "
                "whose splits have both, or one with the partitions train and val"
            )
        raise ConfigError(
            f"split: {store.path} has {', '.join(sorted(known)) or 'none'}, got {split!r}"
        )
    return (
        (whole, EvalList("train", train_rows, every.classes)),
        (whole, EvalList("test", test_rows, every.classes)),
    )


def halves(
    store: FeatureStore, split: str | None, base: Sequence[int] | None = None
) -> dict[str, Int[np.ndarray, " k"]]:
    """Labels of the "base" and of the "novel" classes, ascending.

    Base classes are the half that occurs more often in the training list, ties by label; of an
    odd number the base gets one more.  Where `base` says which these are, the others are novel.

    Raises:
        ConfigError: If there is a single class.
    """
    (partition, listed), _ = split_lists(store, split)
    number = len(store.class_names)
    if number < 2:
        raise ConfigError(f"base2novel needs two classes, {store.path} has {number}")
    if base is not None:
        chosen = np.unique(np.array(base, np.int64))
        return {"base": chosen, "novel": np.setdiff1d(listed.classes, chosen)}
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


def _lists(
    store: FeatureStore,
    protocol: str,
    partition: Partition,
    every: EvalList,
    divided: tuple[str | None, Sequence[int] | None],
) -> list[EvalList]:
    match protocol:
        case "closed" | "full" | "fewshot":
            return [every]
        case "splits3":
            if not (lists := test_lists(partition)):
                raise StoreError(
                    f"{store.path} lists no test splits; evaluate all of its videos with "
                    "--protocol full"
                )
            return [
                EvalList(name, every.rows[is_on[every.rows]], every.classes)
                for name, is_on in lists.items()
            ]
        case "half10":
            number = len(store.class_names)
            subsets = {f"draw {draw}": half_of(number, draw) for draw in range(NUM_DRAWS)}
        case "k600":
            if not store.class_subsets:
                raise StoreError(
                    f"{store.path} names no subsets of its classes; they come with `bieff "
                    "extract --dataset k600`, which brings a finished store up to date at once"
                )
            subsets = {
                f"split {name}": np.sort(np.array(labels, np.int64))
                for name, labels in store.class_subsets.items()
            }
        case _:
            half = protocol.removeprefix("base2novel-")
            subsets = {half: halves(store, *divided)[half]}
    labels = partition.labels[every.rows]
    return [
        EvalList(name, every.rows[np.isin(labels, classes)], classes)
        for name, classes in subsets.items()
    ]


def _every(store: FeatureStore, partition: Partition) -> EvalList:
    classes = np.arange(len(store.class_names), dtype=np.int64)
    return EvalList(partition.name, np.flatnonzero(partition.labels != UNLABELLED), classes)
