"""Some videos of a store as a store of its own, to be read: nothing is copied.

Few-shot lists, official splits and halves of the classes are such views, so that training and
evaluation need not know of them.  N videos of the partition, n of the view.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float16, Int64, UInt8

from bieff.features.partition import Partition
from bieff.features.rows import Rows
from bieff.features.schema import UNLABELLED, Video
from bieff.features.store import FeatureStore


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Rows of a partition."""

    partition: str
    rows: Int64[np.ndarray, " n"]


class SelectedPartition(Partition):
    """Some rows of a partition, counted from 0 again, with labels of their own.

    Only for reading; shards, markers and `geometry` stay those of the whole.
    """

    def __init__(
        self,
        whole: Partition,
        name: str,
        rows: Int64[np.ndarray, " n"],
        labels: Int64[np.ndarray, " n"],
    ) -> None:
        """Use `select`."""
        super().__init__(whole.path.parent, whole.name, whole.geometry, whole.recipe_hash)
        self.name = name
        self.num_videos = len(rows)
        self._whole, self._rows = whole, rows
        self.labels = labels

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """A copy in another process opens its own map."""
        return (SelectedPartition, (self._whole, self.name, self._rows, self.labels))

    @cached_property
    def videos(self) -> list[Video]:
        """The chosen videos, by row of the view; their labels are those of the whole."""
        return [self._whole.videos[row] for row in self._rows.tolist()]

    def status(self) -> UInt8[np.ndarray, " n"]:
        """Status of each chosen video."""
        status: UInt8[np.ndarray, " n"] = self._whole.status()[self._rows]
        return status

    def read(
        self,
        rows: Rows,
        views: slice | None = None,
        *,
        frames: slice | None = None,
        out: Float16[np.ndarray, "n V T D"] | None = None,
    ) -> Float16[np.ndarray, "n V T D"]:
        """Embeddings of some rows of the view, as `Partition.read` gives them."""
        return self._whole.read(self._of_whole(rows), views, frames=frames, out=out)

    def read_patches(
        self, rows: Rows, views: slice | None = None
    ) -> Float16[np.ndarray, "n V P W"]:
        """Patch tokens of some rows of the view."""
        return self._whole.read_patches(self._of_whole(rows), views)

    def _of_whole(self, rows: Rows) -> Int64[np.ndarray, " k"]:
        return self._rows[rows if isinstance(rows, slice) else np.asarray(rows, np.int64)]


def select(
    store: FeatureStore,
    parts: Mapping[str, Selection],
    *,
    classes: Sequence[int] | None = None,
) -> FeatureStore:
    """The store with other partitions.

    Args:
        store: That holds the videos.
        parts: New partition -> which videos of which one.
        classes: Labels to keep, in the order that they get; every labelled video of `parts`
            has one of them.  None: all.
    """
    number = len(store.class_names)
    kept = list(range(number)) if classes is None else list(classes)
    label = np.full(number, number, np.int64)
    label[kept] = np.arange(len(kept))
    views = {name: store.recipe["views"][part.partition] for name, part in parts.items()}
    attributes = {
        **store.attributes,
        "class_names": [store.class_names[index] for index in kept],
        "class_subsets": {} if classes is not None else store.class_subsets,
        "recipe": {**store.recipe, "views": views},
    }
    view = FeatureStore(store.path, attributes)
    view.partitions = {}
    for name, part in parts.items():
        whole = store.partitions[part.partition]
        labels = whole.labels[part.rows]
        labels = np.where(labels == UNLABELLED, UNLABELLED, label[labels])
        if (labels == number).any():
            raise ValueError(f"partition {name!r}: a video has none of the classes to keep")
        view.partitions[name] = SelectedPartition(whole, name, part.rows, labels)
    return view
