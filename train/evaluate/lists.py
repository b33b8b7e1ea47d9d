"""What each protocol asks: which videos, among which classes.

closed    the `val` list, all classes
splits3   the official test lists, all classes
full      every video, all classes
half10    ten draws of half of the classes, every video of these
k600      the three official choices of 160 classes outside Kinetics-400, their `val` videos
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from bieff.features.errors import ConfigError, StoreError
from bieff.features.store import FeatureStore, Partition

NUM_DRAWS = 10

TAKEN_FROM = {"closed": "val", "splits3": "all", "full": "all", "half10": "all", "k600": "val"}
"""Which partition each protocol asks about."""


@dataclass(frozen=True, slots=True, eq=False)
class EvalList:
    """A list of videos, and the classes they are to be told apart among."""

    name: str
    rows: Int[np.ndarray, " n"]
    """Of the partition, usable or not, ascending."""

    categories: Int[np.ndarray, " k"]
    """Labels, ascending."""


def lists_of(store: FeatureStore, protocol: str) -> tuple[Partition, list[EvalList]]:
    """The lists of a protocol, and the partition that all of them are of.

    A video without a label is on no list.

    Raises:
        ConfigError: If there is no such protocol.
        StoreError: If the store has nothing that it could be asked about.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    partition, lists = PROTOCOLS[protocol](store)
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


def half_of(num_classes: int, draw: int) -> Int[np.ndarray, " k"]:
    """Half of the classes, rounded down: `np.random.seed(draw); permutation(K)[:K // 2]`.

    The draws of the ER-ZSAR lineage (BIKE, Text4Vis); ascending.
    """
    stream = np.random.RandomState(draw)
    return np.sort(stream.permutation(num_classes)[: num_classes // 2]).astype(np.int64)


def _closed(store: FeatureStore) -> tuple[Partition, list[EvalList]]:
    partition = _partition(store, "closed")
    return partition, [EvalList("val", *_every(store, partition))]


def _splits3(store: FeatureStore) -> tuple[Partition, list[EvalList]]:
    partition = _partition(store, "splits3")
    lists = test_lists(partition)
    if not lists:
        raise StoreError(
            f"{store.path} lists no test splits; evaluate all of its videos with "
            "--protocol full"
        )
    labelled, classes = _every(store, partition)
    return partition, [
        EvalList(name, np.intersect1d(labelled, np.flatnonzero(listed)), classes)
        for name, listed in lists.items()
    ]


def _full(store: FeatureStore) -> tuple[Partition, list[EvalList]]:
    partition = _partition(store, "full")
    return partition, [EvalList("all", *_every(store, partition))]


def _half10(store: FeatureStore) -> tuple[Partition, list[EvalList]]:
    partition = _partition(store, "half10")
    halves = {f"draw {k}": half_of(len(store.class_names), k) for k in range(NUM_DRAWS)}
    return partition, _of_classes(partition, halves)


def _k600(store: FeatureStore) -> tuple[Partition, list[EvalList]]:
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
    return partition, _of_classes(partition, subsets)


def _of_classes(
    partition: Partition, subsets: Mapping[str, Int[np.ndarray, " k"]]
) -> list[EvalList]:
    """All videos of some classes, told apart among these alone."""
    return [
        EvalList(name, np.flatnonzero(np.isin(partition.labels, classes)), classes)
        for name, classes in subsets.items()
    ]


def _every(
    store: FeatureStore, partition: Partition
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " K"]]:
    """All labelled videos, and all classes."""
    classes = np.arange(len(store.class_names), dtype=np.int64)
    return np.flatnonzero(partition.labels >= 0), classes


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


PROTOCOLS: Mapping[str, Callable[[FeatureStore], tuple[Partition, list[EvalList]]]] = {
    "closed": _closed,
    "splits3": _splits3,
    "full": _full,
    "half10": _half10,
    "k600": _k600,
}
"""Each protocol by name -> the partition it looks at, and its lists."""
