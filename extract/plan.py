"""Planning a store: what it will hold and what its numbers depend on, before any decoding."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import av

from bieff.clip import Clip
from bieff.extract.config import ExtractConfig
from bieff.extract.datasets.dataset import DataSet
from bieff.extract.sources.urls import url_of
from bieff.extract.tower import PATCH_NORM, patches_of
from bieff.extract.views import View, views_for
from bieff.features.errors import StoreError
from bieff.features.plan import geometry, plan_attributes
from bieff.features.schema import Geometry, PartitionPlan
from bieff.features.store import FeatureStore

PACKAGES = ("bieff", "torch", "torchvision", "open_clip_torch", "av", "decord", "numpy", "zarr")


DECODERS = ("av", "decord", "libavcodec")
"""Those of a shard's versions that decide its pixels."""


def version(package: str) -> str:
    """The installed version; "none" of decord on a machine without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


@cache
def versions_here() -> dict[str, str]:
    """Versions of the libraries that decode and encode in this process."""
    here = {name: version(name) for name in ("av", "decord", "torch")}
    return here | {"libavcodec": ".".join(map(str, av.library_versions["libavcodec"]))}


@dataclass(frozen=True, kw_only=True, slots=True)
class StorePlan:
    """A store as it is planned, not on the disk yet."""

    recipe: Mapping[str, Any]
    class_names: tuple[str, ...]
    partitions: Mapping[str, PartitionPlan]
    root: Path
    class_subsets: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, data: DataSet, config: ExtractConfig, clip: Clip) -> "StorePlan":
        """The plan for a data set, or for its first `config.limit` videos of each partition."""
        train, evaluation = views_for(
            config.train_views,
            config.clips,
            config.crops,
            mirror=data.mirror,
            is_square=clip.preprocessing.resize_mode == "shortest",
        )
        views = {part: train if part == "train" else evaluation for part in data.partitions}
        return cls(
            recipe=_recipe(data, config, clip, views),
            class_names=data.class_names,
            partitions={
                part: PartitionPlan(videos=videos[: config.limit], num_views=len(views[part]))
                for part, videos in data.partitions.items()
            },
            root=data.root if url_of(data.root) else data.root.resolve(),
            class_subsets=data.class_subsets,
        )

    def going_on(self, out: Path) -> "StorePlan":
        """The same plan, resized as a store at `out` was that an older bieff began."""
        try:
            held = FeatureStore.open(out).attributes["recipe"].get("preprocessing")
        except StoreError:
            return self  # nothing lies there, or what lies there is refused later
        asked = dict(self.recipe["preprocessing"])
        if isinstance(held, dict) and "resize" not in held:
            asked.pop("resize", None)
        return replace(self, recipe={**self.recipe, "preprocessing": asked})

    def geometries(self) -> dict[str, Geometry]:
        """Sizes of the partitions."""
        attributes = plan_attributes(
            recipe=self.recipe,
            class_names=self.class_names,
            partitions=self.partitions,
            versions={},
            root="",
        )
        return {name: geometry(attributes, name) for name in self.partitions}

    def write(self, out: Path, *, redo_replaced: bool = False) -> FeatureStore:
        """Plan the store at `out`, or open the one that was planned in the same way.

        Args:
            out: Folder of the store.
            redo_replaced: Have videos written again whose file was replaced since.

        Raises:
            StoreMismatchError: If another store lies there, shows the differences; or if a
                file was replaced.
            StoreError: If the folder cannot be written.
        """
        return FeatureStore.create(
            out,
            recipe=self.going_on(out).recipe,
            class_names=self.class_names,
            partitions=self.partitions,
            versions={name: version(name) for name in PACKAGES},
            root=self.root,
            class_subsets=self.class_subsets,
            redo_replaced=redo_replaced,
        )


def plan(
    data: DataSet, config: ExtractConfig, clip: Clip, out: Path, *, redo_replaced: bool = False
) -> FeatureStore:
    """Plan the store, or open the one that was planned in the same way; see `StorePlan.write`.

    Raises:
        StoreMismatchError: If another store lies there, shows the differences; or if a file
            was replaced.
        StoreError: If the folder cannot be written.
    """
    return StorePlan.of(data, config, clip).write(out, redo_replaced=redo_replaced)


def _recipe(
    data: DataSet, config: ExtractConfig, clip: Clip, views: Mapping[str, list[View]]
) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "data_set": data.name,
        "clip": {
            "model": clip.name.model,
            "pretrained": clip.name.pretrained,
            "fingerprint": clip.fingerprint,
        }
        | ({"read_as": clip.read_as} if clip.read_as else {}),
        "preprocessing": clip.preprocessing.to_json(),
        "frames": config.frames,
        "dim": clip.dim,
        "patches": patches_of(clip) if config.context == "patches" else None,
        "views": {part: [view.to_json() for view in chosen] for part, chosen in views.items()},
    }
    if config.context == "patches":
        recipe["patch_norm"] = PATCH_NORM
    if data.made_as:
        recipe["made_as"] = dict(data.made_as)
    return recipe if config.limit is None else recipe | {"limit": config.limit}
