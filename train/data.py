"""Cached features as training sees them: what is loaded, where it lies, what makes a batch.

n usable videos, V views, T frames of the store, t frames of the model, B videos of a batch,
P patches of width U.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor

from bieff.features.errors import ConfigError, StoreError
from bieff.features.schema import UNLABELLED, Status
from bieff.features.store import FeatureStore, Partition
from bieff.train.distributed import sharers

CPU = torch.device("cpu")


def bring(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy from memory; a device is not waited for, as it would be without pinned memory."""
    held = tensor.pin_memory() if device.type == "cuda" else tensor
    return held.to(device, non_blocking=True)


# --- what is loaded


def patches_of(store: FeatureStore) -> tuple[int, int] | None:
    """Number and width of the store's patch tokens, if it has them."""
    patches = store.recipe.get("patches")
    return None if patches is None else (int(patches[0]), int(patches[1]))


def load_features(
    partition: Partition,
    rows: Int[np.ndarray, " listed"] | None = None,
    *,
    device: torch.device,
    classes: Int[np.ndarray, " k"] | None = None,
    wants_patches: bool = False,
    gigabytes: float | None = None,
) -> "Features":
    """Hold videos on the device or in memory if they fit, else read them from the disk.

    Args:
        partition: Of a store.
        rows: Which of its videos, ascending; None takes all.
        device: Where the model is.
        classes: Labels in the store; a label becomes its place among them.  None: all.
        wants_patches: Also the patch tokens.
        gigabytes: What they may take; None takes a share of what is free.

    Raises:
        StoreError: If one of them is not extracted yet, or none is usable.
    """
    listed = np.arange(partition.num_videos) if rows is None else np.asarray(rows)
    status = partition.status()[listed]
    if pending := int((status == Status.PENDING).sum()):
        raise StoreError(
            f"{partition.path}: {pending:,} of {len(listed):,} videos are not extracted yet; "
            "run `bieff extract` again to finish"
        )
    usable = listed[np.isin(status, [Status.OK, Status.SALVAGED])]
    if not len(usable):
        raise StoreError(f"{partition.path}: none of its {len(listed):,} videos is usable")
    labels = partition.labels[usable]
    if classes is not None:
        place_of = {label: place for place, label in enumerate(classes.tolist())}
        place_of[UNLABELLED] = UNLABELLED
        labels = np.array([place_of[label] for label in labels.tolist()], np.int64)

    shape = (len(usable), partition.num_views)
    parts = [OnDisk(partition.read, usable, (*shape, partition.num_frames, partition.dim))]
    if wants_patches:
        if partition.geometry.patches is None:
            partition.read_patches(usable[:1])  # raises, and says what to do
        of_patches = (*shape, *(partition.geometry.patches or ()))
        parts.append(OnDisk(partition.read_patches, usable, of_patches))
    video_bytes = sum(part.num_bytes for part in parts) // len(usable)
    limits = budget(device, gigabytes, sharers=sharers())
    place = limits.place(video_bytes * len(usable))
    window = max(RUN, int(limits.memory / video_bytes)) if place == "disk" else None
    where = {"device": device, "memory": CPU, "disk": None}[place]
    held = [part if where is None else part.load(where) for part in parts]
    return Features(
        embeddings=held[0],
        labels=torch.from_numpy(labels),
        rows=usable,
        device=device,
        patches=held[1] if wants_patches else None,
        window=window,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The usable videos of a list, wherever they lie."""

    embeddings: "Float16[Tensor, 'n V T D'] | OnDisk"
    labels: Int[Tensor, " n"]
    """Index into the class names, int64, on the CPU."""

    rows: Int[np.ndarray, " n"]
    """Row in the partition of each video."""

    device: torch.device = CPU
    """The model's, where batches go."""

    patches: "Float16[Tensor, 'n V P U'] | OnDisk | None" = None
    window: int | None = None
    """Videos to be shuffled with one another; None for all, and fewer where they are read
    from the disk, so that what is read lies close together."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def place(self) -> "Place":
        """The fastest place that they fit in."""
        if isinstance(self.embeddings, OnDisk):
            return "disk"
        return "memory" if self.embeddings.device.type == "cpu" else "device"

    @property
    def num_bytes(self) -> int:
        """Bytes of the embeddings and patches."""
        patches = 0 if self.patches is None else math.prod(self.patches.shape)
        return 2 * (math.prod(self.embeddings.shape) + patches)

    def text(self) -> str:
        """A line for people: how many, how large, in which place."""
        where = {
            "device": f"on {self.device}",
            "memory": "in memory",
            "disk": "stay on disk, they are more than the memory set aside; read through the "
            f"map, shuffled {self.window or 0:,} at a time",
        }[self.place]
        return f"features: {len(self):,} videos, {self.num_bytes / 1e6:,.1f} MB, {where}"

    def pick(
        self, videos: Int[Tensor, " B"], views: Int[Tensor, " B"], frames: Int[Tensor, "B t"]
    ) -> "Batch":
        """Take a view of each video and some of its frames; `Batch.to` brings them."""
        if isinstance(self.embeddings, Tensor):
            where = self.embeddings.device
            videos, views, frames = (bring(index, where) for index in (videos, views, frames))
        embeddings = self.embeddings[videos, views]  # (B, T, D)
        batch = Batch(
            embeddings.gather(1, frames[:, :, None].expand(-1, -1, embeddings.shape[2])),
            None if self.patches is None else self.patches[videos, views],
        )
        if self.device.type == "cuda" and self.place != "device":
            # a copy from pinned memory to the device need not be waited for
            return batch.each(lambda part: part.pin_memory())
        return batch

    def chunk(self, videos: Int[Tensor, " B"], view: int, frames: Int[Tensor, " t"]) -> "Batch":
        """The same view and frames of some videos, on the model's device, in float32."""
        views = torch.full_like(videos, view)
        return self.pick(videos, views, frames.expand(len(videos), -1)).to(self.device)


# --- where it lies

Place = Literal["device", "memory", "disk"]

DEVICE_SHARE = 0.6
"""Part of the device's free memory that features may take; the rest is the training's."""

MEMORY_SHARE = 0.5
"""Part of the machine's free memory."""

_COPIED = 64 << 20
"""Bytes that are on their way to the device at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class OnDisk:
    """Rows left on disk, copied out of the store's map as they are asked for."""

    read: Callable[..., np.ndarray]
    """Reader of the partition: whole rows, or a slice of their views."""

    rows: Int[np.ndarray, " n"]
    shape: tuple[int, ...]
    """n, V, and what a view has."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return 2 * math.prod(self.shape)

    def __getitem__(
        self, index: tuple[Int[Tensor, " B"], Int[Tensor, " B"]]
    ) -> Float16[Tensor, "B rows width"]:
        """A view of each video, as of a tensor; the others are not read."""
        videos, views = (part.numpy() for part in index)
        rows = self.rows[videos]
        found = np.empty((len(rows), *self.shape[2:]), np.float16)
        for view in np.unique(views).tolist():
            at = np.flatnonzero(views == view)
            at = at[rows[at].argsort(kind="stable")]  # in the order of the file
            found[at] = self.read(rows[at], slice(view, view + 1))[:, 0]
        return torch.from_numpy(found)

    def load(self, place: torch.device) -> Float16[Tensor, "n V rows width"]:
        """All rows; what goes to a device passes through memory in parts."""
        if place.type == "cpu":
            return torch.from_numpy(self.read(self.rows))
        whole = torch.empty(self.shape, dtype=torch.float16, device=place)
        step = max(1, _COPIED // (2 * math.prod(self.shape[1:])))
        for start in range(0, len(self.rows), step):
            read = self.read(self.rows[start : start + step])
            whole[start : start + step] = torch.from_numpy(read)
        return whole


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that features may take, by place."""

    device: float
    """0 where the device has no memory of its own."""

    memory: float

    def place(self, size: int) -> Place:
        """The fastest place that `size` bytes fit in."""
        if size <= self.device:
            return "device"
        return "memory" if size <= self.memory else "disk"


def budget(device: torch.device, gigabytes: float | None, *, sharers: int = 1) -> Budget:
    """The user's word, or a share of what is free, where `sharers` processes hold the same."""
    wished = math.inf if gigabytes is None else gigabytes * 1e9
    on_device = 0.0
    if device.type == "cuda":
        on_one = -(-sharers // torch.cuda.device_count())
        on_device = min(wished, DEVICE_SHARE * free_bytes(device) / on_one)
    in_memory = MEMORY_SHARE * free_bytes(CPU) / sharers if gigabytes is None else wished
    return Budget(on_device, in_memory)


def free_bytes(device: torch.device) -> int:
    """Bytes free on a device with memory of its own; else here, a container's limit minded."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        free = 1024 * int(found.split()[1])
    except (OSError, StopIteration, ValueError):  # elsewhere than on Linux half of all memory
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free  # no limit, or none that we could read
    return min(free, max(0, limit - used))


# --- what makes a batch


@dataclass(frozen=True, slots=True, eq=False)
class BatchIndex:
    """Videos that a step trains on, with the view and the frames of each."""

    videos: Int[Tensor, " B"]
    """Index into the features."""

    views: Int[Tensor, " B"]
    frames: Int[Tensor, "B t"]
    labels: Int[Tensor, " B"]

    def pick(self, features: Features, part: slice) -> "Batch":
        """Take some of the batch out of the features."""
        return features.pick(self.videos[part], self.views[part], self.frames[part])


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Features on their way to the model, in half precision as stored until `to`."""

    frames: Float[Tensor, "B t D"]
    patches: Float[Tensor, "B P U"] | None

    def to(self, device: torch.device) -> "Batch":
        """Copy to the device, in float32."""
        return self.each(lambda part: part.to(device, non_blocking=True).float())

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Frames and patches, changed alike."""
        patches = None if self.patches is None else change(self.patches)
        return Batch(change(self.frames), patches)


class Batches(AbstractContextManager["Batches"]):
    """Batches by step.  Which they are does not depend on who gathers them, or when.

    `draw` says which videos a step has; this process computes the `part` of them.  On a CPU
    rows in memory are picked on the spot; all others by a thread that works one step ahead, up
    to `last`, the step after the last.  `lay_out` makes what else a step can have ready.
    """

    def __init__(
        self,
        features: Features,
        draw: Callable[[int], BatchIndex],
        part: slice,
        *,
        last: int,
        lay_out: Callable[[BatchIndex], object] = lambda index: None,
    ) -> None:
        self.draw = draw
        self._features, self._part, self._last = features, part, last
        self._lay_out = lay_out
        is_near = features.place == "memory" and features.device.type == "cpu"
        self._pool = None if is_near else ThreadPoolExecutor(1, "bieff-batches")
        self._ahead: dict[int, Future[tuple[BatchIndex, Batch]]] = {}

    def at(self, step: int) -> tuple[BatchIndex, Batch]:
        """The index, and this process's part of the batch on the model's device, in float32."""
        if self._pool is None:
            index, batch = self._gather(step)
        else:
            gathered = self._ahead.get(step) or self._pool.submit(self._gather, step)
            index, batch = gathered.result()
            self._ahead = {}
            if step + 1 < self._last:
                self._ahead[step + 1] = self._pool.submit(self._gather, step + 1)
        return index, batch.to(self._features.device)

    def _gather(self, step: int) -> tuple[BatchIndex, Batch]:
        index = self.draw(step)
        if self._pool is not None:
            self._lay_out(index)
        return index, index.pick(self._features, self._part)

    def __exit__(self, *exc_info: Any) -> None:
        """Leave no thread behind."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def draw_batch(
    features: Features,
    step: int,
    *,
    batch_size: int,
    num_frames: int,
    seed: int,
    window: int | None = None,
) -> BatchIndex:
    """The batch of a step, a function of its arguments alone.

    So a resumed run sees the batches the uninterrupted one would have seen.  Each epoch is a
    fresh permutation; its last, short batch is left out.  A video shows one of its views,
    drawn at random, and one frame at random from each group of T / t.
    """
    count, num_views, num_stored, _ = features.embeddings.shape
    size = min(batch_size, count)
    epoch, index = divmod(step, count // size)
    order = epoch_order(count, epoch=epoch, seed=seed, window=window)
    videos = order[index * size : (index + 1) * size]
    draws = _generator(seed, "step", step)
    view = torch.randint(num_views, (size,), generator=draws)
    group = frame_groups(num_stored, num_frames)
    frame = torch.arange(num_frames) * group + torch.randint(
        group, (size, num_frames), generator=draws
    )
    return BatchIndex(videos, view, frame, features.labels[videos])


RUN = 64
"""Videos that lie side by side in the store and stay together when disk reads are shuffled."""


@lru_cache(maxsize=2)  # an epoch of Kinetics takes milliseconds to shuffle
def epoch_order(
    count: int, *, epoch: int, seed: int, window: int | None = None
) -> Int[Tensor, " count"]:
    """All videos in the order of an epoch.

    With a window, runs of `RUN` neighbours are shuffled, then the videos within every
    `window` of them: reading from a disk stays within so many videos at a time.
    """
    generator = _generator(seed, "epoch", epoch)
    if window is None or window >= count:
        return torch.randperm(count, generator=generator)
    runs = torch.arange(count).split(RUN)
    order = torch.cat([runs[i] for i in torch.randperm(len(runs), generator=generator)])
    return torch.cat(
        [part[torch.randperm(len(part), generator=generator)] for part in order.split(window)]
    )


def frame_groups(num_stored: int, num_frames: int) -> int:
    """Stored frames that stand for one frame of the model: T / t.

    Raises:
        ConfigError: If t does not divide T.
    """
    if num_stored % num_frames:
        divisors = [str(n) for n in range(1, num_stored + 1) if num_stored % n == 0]
        raise ConfigError(
            f"frames: expected a divisor of the store's {num_stored} ({', '.join(divisors)}), "
            f"got {num_frames}"
        )
    return num_stored // num_frames


def _generator(seed: int, what: Literal["epoch", "step"], number: int) -> torch.Generator:
    salt = {"epoch": 0, "step": 1}[what]
    mixed = np.random.SeedSequence([seed, salt, number]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0] >> 1))
