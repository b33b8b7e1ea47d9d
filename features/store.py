"""The feature store: what stage one writes and stage two reads.

A zarr v3 group, so that anything that reads zarr reads it; rows are videos:

    zarr.json                     attributes: schema version, recipe and its hash, class names
    videos/train.jsonl            line = row: id, path, label, bytes, splits
    train/embeddings  f2 [N, V, T, D]     not normalised; NaN where a video is not usable
    train/patches     f2 [N, V, P, W]     only where the recipe has patches
    train/frames      i4 [N, V, T]        frame numbers really decoded, or -1
    train/status      u1 [N]              `schema.Status`
    train/labels      i4 [N]              index into the class names
    ledger/train-00017.json       the shard's marker: sizes, checksums, recipe hash, counts
    errors/train-00017.jsonl      a line for each video that is not ok

N is padded to whole shards.  A shard counts only if its marker says so (`ledger`).
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from bieff.features.durable import PARTIAL, disk_errors
from bieff.features.errors import InputError, StoreError, StoreMismatchError, StoreMissingError
from bieff.features.group import METADATA_NAME, create_arrays, write_root
from bieff.features.layout import Geometry, rows_per_shard
from bieff.features.lock import LOCK_NAME, exclusive
from bieff.features.partition import Partition
from bieff.features.recipe import canonical, differences, recipe_hash
from bieff.features.schema import SCHEMA_VERSION, PartitionPlan
from bieff.features.video_table import (
    VideoTable,
    first_difference,
    identity,
    is_up_to_date,
    write_videos,
)

__all__ = ["FeatureStore", "Partition"]

_FOLDERS = ("videos", "ledger", "errors")


class FeatureStore:
    """A store that has been planned; its shards may be written or not."""

    def __init__(self, path: Path, attributes: Mapping[str, Any]) -> None:
        """Use `create` or `open`."""
        self.path = path
        self.attributes = attributes
        self.recipe: Mapping[str, Any] = attributes["recipe"]
        self.recipe_hash: str = attributes["recipe_hash"]
        self.class_names: list[str] = attributes["class_names"]
        self.versions: Mapping[str, str] = attributes["versions"]
        self.root: str = attributes["root"]
        """Folder that the videos' paths start from."""
        self.partitions: dict[str, Partition] = {
            name: Partition(path, name, _geometry(self.recipe, sizes), self.recipe_hash)
            for name, sizes in attributes["partitions"].items()
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
    ) -> "FeatureStore":
        """Plan a store, or open the one that was planned there in the same way.

        An existing store keeps its rows; videos that lie elsewhere by now (path, size, root)
        are brought up to date.  Nothing is ever deleted for a new plan.

        Args:
            path: Folder of the store.
            recipe: Everything the numbers depend on, plain JSON.  "frames" is T, "dim" is D,
                "patches" is [P, W] or None.
            class_names: By label.
            partitions: What to hold, by name.
            versions: Of the libraries at work; written down, not compared.
            root: Folder that relative paths of videos start from.

        Raises:
            StoreMismatchError: If the store there has another recipe, class names or videos.
            StoreError: If the folder is not a store and not empty, or cannot be written.
            InputError: If a partition is empty or a label has no class name.
        """
        path = Path(path)
        attributes = _attributes(recipe, class_names, partitions, versions, root)
        if not (path / METADATA_NAME).is_file():
            with disk_errors(path.parent):
                path.mkdir(parents=True, exist_ok=True)
            with exclusive(path), disk_errors(path):
                # another run may have planned it while this one came here
                if not (path / METADATA_NAME).is_file():
                    _plan(path, attributes, partitions)
        store = cls.open(path)
        _require_same_plan(store, attributes, partitions)
        _bring_up_to_date(store, partitions, str(root))
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
        attributes = _read_attributes(path)
        if expect is not None:
            lines = differences(attributes["recipe"], canonical(expect), only_asked=True)
            if lines:
                raise StoreMismatchError(_recipe_message(path, lines))
        return cls(path, attributes)

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the only right to write, for as long as the block lasts.

        Raises:
            StoreError: If another run holds it; says which.
        """
        return exclusive(self.path)


def _attributes(
    recipe: Mapping[str, Any],
    class_names: Sequence[str],
    partitions: Mapping[str, PartitionPlan],
    versions: Mapping[str, str],
    root: Path | str,
) -> dict[str, Any]:
    recipe = canonical(recipe)
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe,
        "recipe_hash": recipe_hash(recipe),
        "class_names": list(class_names),
        "versions": dict(versions),
        "root": str(root),
        "partitions": {
            name: _sizes(name, plan, recipe, len(class_names))
            for name, plan in partitions.items()
        },
    }


def _sizes(
    name: str, plan: PartitionPlan, recipe: Mapping[str, Any], num_classes: int
) -> dict[str, Any]:
    """What the attributes say of a partition."""
    if not re.fullmatch(r"[a-z0-9_]+", name) or name in _FOLDERS:
        raise ValueError(
            f"partition name: expected lower-case letters and digits, got {name!r}"
        )
    if not plan.videos:
        raise InputError(f"partition {name!r} has no videos; check the list and the folder")
    for video in plan.videos:
        if not 0 <= video.label < num_classes:
            raise InputError(
                f"label of video {video.id!r}: expected 0 to {num_classes - 1}, as there are "
                f"{num_classes} class names, got {video.label}"
            )
    row_bytes = 2 * plan.num_views * recipe["frames"] * recipe["dim"]
    if recipe.get("patches") is not None:
        row_bytes = max(row_bytes, 2 * plan.num_views * math.prod(recipe["patches"]))
    return {
        "num_videos": len(plan.videos),
        "num_views": plan.num_views,
        "rows_per_shard": plan.rows_per_shard or rows_per_shard(len(plan.videos), row_bytes),
        "videos": identity(plan.videos),
    }


def _geometry(recipe: Mapping[str, Any], sizes: Mapping[str, Any]) -> Geometry:
    patches = recipe.get("patches")
    return Geometry(
        num_videos=sizes["num_videos"],
        num_views=sizes["num_views"],
        num_frames=recipe["frames"],
        dim=recipe["dim"],
        patches=None if patches is None else (patches[0], patches[1]),
        rows_per_shard=sizes["rows_per_shard"],
    )


def _plan(
    path: Path, attributes: Mapping[str, Any], partitions: Mapping[str, PartitionPlan]
) -> None:
    """Write everything but shards; the metadata of the root last, so that it is all or none."""
    known = {*_FOLDERS, *partitions, LOCK_NAME, METADATA_NAME + PARTIAL}
    strange = sorted(entry.name for entry in path.iterdir() if entry.name not in known)
    if strange or any((path / "ledger").glob("*")):
        found = strange[0] if strange else "a ledger without zarr.json"
        raise StoreError(
            f"{path} is not a feature store and not empty, it has {found}; choose another --out"
        )
    for folder in _FOLDERS:
        (path / folder).mkdir(exist_ok=True)
    for name, plan in partitions.items():
        geometry = _geometry(attributes["recipe"], attributes["partitions"][name])
        labels = np.array([video.label for video in plan.videos], np.int64)
        create_arrays(path / name, geometry, labels)
        write_videos(path / "videos" / f"{name}.jsonl", plan.videos)
    write_root(path, attributes, partitions)


def _read_attributes(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads((path / METADATA_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise StoreMissingError(
            f"no feature store at {path}; make one with `bieff extract`"
        ) from None
    except ValueError as error:
        raise StoreMismatchError(f"{path / METADATA_NAME} is not JSON: {error}") from None
    attributes: dict[str, Any] = metadata.get("attributes", {})
    version = attributes.get("schema_version")
    if version != SCHEMA_VERSION:
        got = "no feature store" if version is None else f"schema version {version}"
        raise StoreMismatchError(
            f"{path}: expected a feature store of schema version {SCHEMA_VERSION}, got {got}"
        )
    return attributes


def _require_same_plan(
    store: FeatureStore, asked: Mapping[str, Any], partitions: Mapping[str, PartitionPlan]
) -> None:
    lines = differences(store.recipe, asked["recipe"])
    if lines:
        raise StoreMismatchError(_recipe_message(store.path, lines))
    if store.class_names != asked["class_names"]:
        lines = differences(_numbered(store.class_names), _numbered(asked["class_names"]))
        raise StoreMismatchError(
            f"{store.path} has other class names; choose another --out:\n  {lines[0]}"
        )
    if set(store.partitions) != set(partitions):
        raise StoreMismatchError(
            f"{store.path} has partitions {sorted(store.partitions)}, asked for "
            f"{sorted(partitions)}; choose another --out"
        )
    for name, sizes in asked["partitions"].items():
        held = store.attributes["partitions"][name]
        if held["num_views"] != sizes["num_views"]:
            raise StoreMismatchError(
                f"{store.path / name} has {held['num_views']} views a video, asked for "
                f"{sizes['num_views']}; choose another --out"
            )
        if held["videos"] != sizes["videos"]:
            table = VideoTable(store.path / "videos" / f"{name}.jsonl")
            where = first_difference(table, held["num_videos"], partitions[name].videos)
            raise StoreMismatchError(
                f"{store.path / name} was planned for other videos; choose another --out, or "
                f"give the list it was planned with:\n  {where}"
            )


def _bring_up_to_date(
    store: FeatureStore, partitions: Mapping[str, PartitionPlan], root: str
) -> None:
    """Where the videos lie is no part of the plan; files may have moved or come since."""
    tables = {name: store.path / "videos" / f"{name}.jsonl" for name in partitions}
    stale = [
        name
        for name, plan in partitions.items()
        if not is_up_to_date(tables[name], plan.videos)
    ]
    if not stale and root == store.root:
        return
    with store.exclusive(), disk_errors(store.path):
        for name in stale:
            write_videos(tables[name], partitions[name].videos)
        write_root(store.path, {**store.attributes, "root": root}, store.partitions)


def _recipe_message(path: Path, lines: Sequence[str]) -> str:
    return (
        f"{path} was written with another recipe; choose another --out, or ask for the same:\n"
        + "\n".join(f"  {line}" for line in lines)
    )


def _numbered(names: Sequence[str]) -> dict[str, str]:
    return {f"class_names.{i:05d}": name for i, name in enumerate(names)}
