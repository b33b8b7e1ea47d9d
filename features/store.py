"""The feature store: what stage one writes and stage two reads.

A zarr v3 group, so that anything that reads zarr reads it; rows are videos:

    zarr.json                     attributes: schema version, recipe and its hash, class names
                                  and official subsets of them
    videos/train.jsonl            line = row: id, path, label, bytes, splits, start and end
    train/embeddings  f2 [N, V, T, D]     not normalised; NaN where a video is not usable
    train/patches     f2 [N, V, P, W]     only where the recipe has patches
    train/frames      i4 [N, V, T]        frame numbers really decoded, or -1
    train/status      u1 [N]              `schema.Status`
    train/labels      i4 [N]              index into the class names
    train/start, end  f8 [N]              only where rows are parts of videos: seconds
    ledger/train-00017.json       the shard's marker: sizes, checksums, recipe hash, counts
    errors/train-00017.jsonl      a line for each video that is not ok

N is padded to whole shards.  A shard counts only if its marker says so (`ledger`).
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bieff.features import plan
from bieff.features.errors import StoreMismatchError
from bieff.features.files import disk_errors, exclusive
from bieff.features.partition import Partition
from bieff.features.plan import canonical
from bieff.features.schema import PartitionPlan, Status, Video, counted
from bieff.features.videos import is_up_to_date, table_file

__all__ = ["FeatureStore", "Partition"]


class FeatureStore:
    """A store that has been planned; its shards may be written or not."""

    def __init__(self, path: Path, attributes: Mapping[str, Any]) -> None:
        """Use `create` or `open`."""
        self.path = path
        self.attributes = attributes
        self.recipe: Mapping[str, Any] = _Recipe(path, attributes["recipe"])
        self.recipe_hash: str = attributes["recipe_hash"]
        self.class_names: list[str] = attributes["class_names"]
        self.versions: Mapping[str, str] = attributes["versions"]
        self.root: str = attributes["root"]
        """Folder that the videos' paths start from."""
        subsets = attributes.get("class_subsets", {})  # older stores have none
        self.class_subsets: dict[str, tuple[int, ...]] = {
            name: tuple(labels) for name, labels in subsets.items()
        }
        """Official subsets of the classes by name, such as the zero-shot splits of k600."""
        self.partitions: dict[str, Partition] = {
            name: Partition(path, name, plan.geometry(attributes, name), self.recipe_hash)
            for name in attributes["partitions"]
        }

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r})"

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        recipe: Mapping[str, Any],
        class_names: Sequence[str],
        partitions: Mapping[str, PartitionPlan],
        versions: Mapping[str, str],
        root: Path | str = "",
        class_subsets: plan.Subsets = MappingProxyType({}),
        redo_replaced: bool = False,
    ) -> "FeatureStore":
        """Plan a store, or open the one that was planned there in the same way.

        An existing store keeps its rows; videos that lie elsewhere by now (path, size, root)
        are brought up to date, and so are the subsets of the classes.  Nothing is ever deleted
        for a new plan.

        Args:
            path: Folder of the store.
            recipe: Everything the numbers depend on, plain JSON.  "frames" is T, "dim" is D,
                "patches" is [P, W] or None.
            class_names: By label.
            partitions: What to hold, by name.
            versions: Of the libraries at work; written down, not compared.
            root: Folder that relative paths of videos start from.
            class_subsets: Labels of official subsets of the classes, by name.
            redo_replaced: Forget the shards of videos whose file has another size than when
                it was extracted, so that they are written again; otherwise refuse.

        Raises:
            StoreMismatchError: If the store there has another recipe, class names or videos,
                or features of files that have been replaced.
            StoreError: If the folder is not a store and not empty, or cannot be written.
            InputError: If a partition is empty, or a label or a subset has no class name.
        """
        path = Path(path)
        asked = plan.plan_attributes(
            recipe=recipe,
            class_names=class_names,
            partitions=partitions,
            versions=versions,
            root=str(root),
            class_subsets=class_subsets,
        )
        if not plan.is_planned(path):
            with disk_errors(path.parent):
                path.mkdir(parents=True, exist_ok=True)
            with exclusive(path), disk_errors(path):
                # another run may have planned it since
                if not plan.is_planned(path):
                    plan.write_plan(path, asked, partitions)
                    return cls.open(path)
        stored = plan.read_attributes(path)
        plan.require_same_plan(path, stored, asked, partitions)
        store = cls(path, stored)
        replaced = [
            (store.partitions[name], row)
            for name, wanted in partitions.items()
            for row in _replaced(store.partitions[name], wanted.videos, redo=redo_replaced)
        ]
        if replaced:
            with store.exclusive(), disk_errors(path):
                for partition, row in replaced:
                    partition.drop(row // partition.rows_per_shard)
        plan.bring_up_to_date(path, stored, asked, partitions)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, *, expect: Mapping[str, Any] | None = None) -> "FeatureStore":
        """Open a store to read it, or to go on writing it.

        Args:
            path: Folder of the store.
            expect: What the recipe must say, as far as it matters; other keys may differ.

        Raises:
            StoreMissingError: If there is no store.
            StoreMismatchError: If it is of another format, or its recipe is not as expected.
        """
        path = Path(path)
        attributes = plan.read_attributes(path)
        if expect is not None:
            asked = canonical(expect)
            plan.require_recipe(path, attributes["recipe"], asked, only_asked=True)
        return cls(path, attributes)

    def views(self, partition: str) -> list[dict[str, Any]]:
        """How each view of a partition looks at a video, by the recipe.

        Raises:
            StoreMismatchError: If the recipe does not say so, as it may come from anybody.
        """
        held = self.recipe["views"]
        views = held.get(partition) if isinstance(held, dict) else None
        count = self.partitions[partition].num_views
        if (
            not isinstance(views, list)
            or len(views) != count
            or not all(isinstance(view, dict) for view in views)
            or not all(type(view.get("clips", 1)) is int for view in views)
        ):
            raise StoreMismatchError(
                f"{self.path}: expected {counted(count, 'view')} of partition {partition!r} in "
                f"its recipe, got {str(views)[:60]}; the store was not written by bieff extract"
            )
        return views

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the only right to write, for as long as the block lasts.

        Raises:
            StoreError: If another run holds it; says which.
        """
        return exclusive(self.path)


class _Recipe(dict[str, Any]):
    """What features were made from; a store from elsewhere may say less than we ask."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise StoreMismatchError(
            f"{self._path}: its recipe says nothing of {key!r}; the store was not written by "
            "bieff extract"
        )


def _replaced(partition: Partition, videos: Sequence[Video], *, redo: bool) -> list[int]:
    """Rows with features of a file of another size than the one that lies there now.

    A file that is not there (size 0) is no other file: its features stay.

    Raises:
        StoreMismatchError: If there are any, and they are not to be redone; names the first.
    """
    if is_up_to_date(table_file(partition.path.parent, partition.name), videos):
        return []
    rows = [
        row
        for row, (old, new) in enumerate(zip(partition.videos, videos, strict=True))
        if old.size and new.size and old.size != new.size
    ]
    status = partition.status() if rows else ()
    rows = [row for row in rows if Status(int(status[row])).usable]
    if rows and not redo:
        old, new = partition.videos[rows[0]], videos[rows[0]]
        raise StoreMismatchError(
            f"{partition.path}: {len(rows):,} of the videos extracted are other files now, "
            f"the first is {old.id!r}: it had {old.size:,} bytes, {new.path!r} has "
            f"{new.size:,}; choose another --out, or say --retry-failed to extract them again"
        )
    return rows
