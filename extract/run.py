"""Stage one, whole: plan a store for a data set, then write its shards.

A shard is written once and for all; a run that was stopped, however it was stopped, goes on
with the next one.
"""

import importlib.metadata
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from bieff.clip import Clip
from bieff.extract.config import ExtractConfig
from bieff.extract.datasets.dataset import DataSet
from bieff.extract.shard import ShardExtractor
from bieff.extract.views import View, views_for
from bieff.features.schema import PartitionPlan, Status, VideoError
from bieff.features.store import FeatureStore

PACKAGES = ("bieff", "torch", "torchvision", "open_clip_torch", "av", "decord", "numpy", "zarr")

SHOWN = 20
"""Reasons a summary lists."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of a data set."""

    store: Path
    counts: Mapping[str, int]
    """Videos by status, over the whole store."""

    shards_written: int
    """By this run; the others were there."""

    seconds: float
    bad: Sequence[VideoError] = ()
    """Why a video is not ok, by partition and row."""

    @property
    def num_videos(self) -> int:
        """Videos listed."""
        return sum(self.counts.values())

    def text(self) -> str:
        """What there is to say of it."""
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        line = f"{self.store}: {self.num_videos:,} videos ({counts}) in {self.seconds:.0f} s"
        if not self.bad:
            return line
        reasons = [f"  {e.status.name.lower()} {e.path}: {e.message}" for e in self.bad[:SHOWN]]
        if len(self.bad) > SHOWN:
            reasons.append(f"  and {len(self.bad) - SHOWN:,} more, see {self.store / 'errors'}")
        return "\n".join([line, *reasons])

    @property
    def is_whole(self) -> bool:
        """Whether every video gave every frame that was asked of it."""
        return set(self.counts) <= {Status.OK.name.lower()}


def plan(data: DataSet, config: ExtractConfig, clip: Clip, out: Path) -> FeatureStore:
    """Plan the store, or open the one that was planned in the same way.

    Raises:
        StoreMismatchError: If another store lies there; shows the differences.
        StoreError: If the folder cannot be written.
    """
    train_views, val_views = views_for(
        config.train_views, config.clips, config.crops, mirror=data.mirror
    )
    views = {name: train_views if name == "train" else val_views for name in data.partitions}
    return FeatureStore.create(
        out,
        recipe=make_recipe(data.name, config, clip, views),
        class_names=data.class_names,
        partitions={
            name: PartitionPlan(videos=videos, num_views=len(views[name]))
            for name, videos in data.partitions.items()
        },
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        root=data.root.resolve(),
    )


def make_recipe(
    name: str, config: ExtractConfig, clip: Clip, views: Mapping[str, list[View]]
) -> dict[str, Any]:
    """Everything the numbers of a store depend on."""
    preprocessing = clip.preprocessing
    return {
        "data_set": name,
        "clip": {
            "model": clip.name.model,
            "pretrained": clip.name.pretrained,
            "fingerprint": clip.fingerprint,
        },
        "preprocessing": {
            "size": preprocessing.size,
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "interpolation": "bicubic",
        },
        "frames": config.frames,
        "dim": clip.dim,
        "patches": _patches(clip) if config.context == "patches" else None,
        "views": {part: [view.to_json() for view in chosen] for part, chosen in views.items()},
    }


def extract(
    store: FeatureStore,
    clip: Clip,
    config: ExtractConfig,
    *,
    device: torch.device,
    retry_failed: bool = False,
) -> Summary:
    """Write the shards that are missing, one after the other, in this process.

    Raises:
        StoreError: If another run is writing the store, or the disk is full.
    """
    start = time.monotonic()
    written = 0
    with store.exclusive():
        pending = {
            name: part.pending(retry_failed=retry_failed)
            for name, part in store.partitions.items()
        }
        if any(pending.values()):
            with ShardExtractor(clip, config, device=device) as worker, _progress() as progress:
                for name, shards in pending.items():
                    watch = _watcher(progress, store, name, shards)
                    for shard in shards:
                        worker.extract(
                            store,
                            store.partitions[name],
                            shard,
                            retry_failed=retry_failed,
                            watch=watch,
                        )
                        written += 1
    return Summary(
        store=store.path,
        counts=counts_of(store),
        shards_written=written,
        seconds=time.monotonic() - start,
        bad=[error for part in store.partitions.values() for error in part.errors()],
    )


def counts_of(store: FeatureStore) -> dict[str, int]:
    """Videos of the whole store by status, the failed ones last."""
    statuses = Counter(
        int(value) for part in store.partitions.values() for value in part.status()
    )
    return {Status(value).name.lower(): statuses[value] for value in sorted(statuses)}


def _patches(clip: Clip) -> tuple[int, int]:
    """P and U: patches of a frame, and the tower's width."""
    visual: Any = clip.model.visual
    rows, columns = visual.grid_size
    return rows * columns, int(visual.transformer.width)


def _watcher(
    progress: Progress, store: FeatureStore, name: str, shards: Sequence[int]
) -> Callable[[Status], None]:
    """Counts videos into a bar of their own."""
    part = store.partitions[name]
    total = sum(len(part.shard_videos(shard)) for shard in shards)
    task = progress.add_task(f"{store.recipe['data_set']} {name}", total=total, bad=0)
    bad = 0

    def watch(status: Status) -> None:
        nonlocal bad
        bad += status.failed
        progress.update(task, advance=1, bad=bad)

    return watch


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("videos, {task.fields[bad]} bad,"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
