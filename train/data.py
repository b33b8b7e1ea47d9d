"""Cached features as training sees them: which videos, where they lie, what makes a batch.

n usable videos, V views, T frames of the store, t frames of the model, B videos of a batch,
P patches of width U.
"""

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

CPU = torch.device("cpu")

# --- which videos


@dataclass(frozen=True, slots=True, eq=False)
class VideoList:
    """Some videos of a store's partition, told apart among some of its classes."""

    partition: str
    rows: Int[np.ndarray, " n"] | None = None
    """Ascending, usable or not; None: all of the partition."""

    classes: Int[np.ndarray, " k"] | None = None
    """Labels in the store; a class is called by its place among them.  None: all."""

    def class_names(self, store: FeatureStore) -> list[str]:
        """Names of the classes, in their order here."""
        if self.classes is None:
            return list(store.class_names)
        return [store.class_names[label] for label in self.classes.tolist()]


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
    sharers: int = 1,
) -> "Features":
    """Hold videos on the device or in memory if they fit, else read them from the disk.

    Args:
        partition: Of a store.
        rows: Which of its videos, ascending; None takes all.
        device: Where the model is.
        classes: As in `VideoList`; each labelled video has one of them.
        wants_patches: Also the patch tokens.
        gigabytes: What they may take; None takes a share of what is free.
        sharers: Processes on this machine that do the same.

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
    if wants_patches and partition.geometry.patches is None:
        partition.read_patches(usable[:1])  # raises, and says what to do
    disk = OnDisk(partition, usable, wants_patches)
    limits = budget(device, gigabytes, sharers=sharers)
    place = limits.place(disk.video_bytes * len(usable))
    embeddings = patches = window = None
    if place == "disk":
        window = max(RUN, int(limits.memory / disk.video_bytes))
    else:
        where = device if place == "device" else CPU
        embeddings = load_rows(partition.read, usable, disk.shape[1:], where)
        if wants_patches:
            shape = (partition.num_views, *(partition.geometry.patches or ()))
            patches = load_rows(partition.read_patches, usable, shape, where)
    return Features(
        embeddings=embeddings,
        labels=torch.from_numpy(_labels(partition.labels[usable], classes)),
        rows=usable,
        device=device,
        patches=patches,
        disk=disk if place == "disk" else None,
        window=window,
    )


def _labels(
    labels: Int[np.ndarray, " n"], classes: Int[np.ndarray, " k"] | None
) -> Int[np.ndarray, " n"]:
    """Place of each label among the classes."""
    if classes is None:
        return labels
    place = {UNLABELLED: UNLABELLED, **{label: i for i, label in enumerate(classes.tolist())}}
    return np.array([place[label] for label in labels.tolist()], np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The usable videos of a list, wherever they lie."""

    embeddings: Float16[Tensor, "n V T D"] | None
    """On the device or in memory; None where they stay on disk."""

    labels: Int[Tensor, " n"]
    """Index into the class names, int64, on the CPU."""

    rows: Int[np.ndarray, " n"]
    """Row in the partition of each video."""

    device: torch.device = CPU
    """The model's, where batches go."""

    patches: Float16[Tensor, "n V P U"] | None = None
    disk: "OnDisk | None" = None
    """Reads them, where they stay there."""

    window: int | None = None
    """Videos to be shuffled with one another; None for all, and fewer where they are read
    from the disk, so that what is read lies close together."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """n, V, T, D."""
        if self.disk is not None:
            return self.disk.shape
        assert self.embeddings is not None
        videos, views, frames, dim = self.embeddings.shape
        return videos, views, frames, dim

    @property
    def place(self) -> "Place":
        """The fastest place that they fit in."""
        if self.embeddings is None:
            return "disk"
        return "memory" if self.embeddings.device.type == "cpu" else "device"

    def pick(
        self, videos: Int[Tensor, " B"], views: Int[Tensor, " B"], frames: Int[Tensor, "B t"]
    ) -> "Batch":
        """Take a view of each video and some of its frames; `Batch.to` brings them."""
        if self.disk is not None:
            batch = self.disk.pick(videos, views, frames)
        else:
            assert self.embeddings is not None
            where = self.embeddings.device
            videos, views, frames = (index.to(where) for index in (videos, views, frames))
            batch = Batch(
                self.embeddings[videos[:, None], views[:, None], frames],
                None if self.patches is None else self.patches[videos, views],
            )
        is_sent = self.device.type == "cuda" and self.place != "device"
        return batch.pinned() if is_sent else batch

    def chunk(self, videos: Int[Tensor, " B"], view: int, frames: Int[Tensor, " t"]) -> "Batch":
        """The same view and frames of some videos, on the model's device, in float32."""
        views = torch.full_like(videos, view)
        return self.pick(videos, views, frames.expand(len(videos), -1)).to(self.device)

    def text(self) -> str:
        """A line for people: how many, how large, in which place."""
        where = {"device": f"on {self.device}", "memory": "in memory"}.get(self.place)
        if where is None:
            where = (
                "stay on disk, they are more than the memory set aside; read through the map, "
                f"shuffled {self.window:,} at a time"
            )
        return f"features: {len(self):,} videos, {self.num_bytes / 1e6:,.1f} MB, {where}"

    @property
    def num_bytes(self) -> int:
        """Bytes of the embeddings and patches."""
        if self.disk is not None:
            return len(self) * self.disk.video_bytes
        held = (self.embeddings, self.patches)
        return sum(part.numel() * part.element_size() for part in held if part is not None)


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

    def pinned(self) -> "Batch":
        """In pinned memory, from where a copy to the device need not be waited for."""
        return self.each(lambda part: part.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """Copy to the device, in float32."""
        return self.each(lambda part: part.to(device, non_blocking=True).float())

    def part(self, rows: slice) -> "Batch":
        """Some of the videos."""
        return self.each(lambda part: part[rows])

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Frames and patches, changed alike."""
        patches = None if self.patches is None else change(self.patches)
        return Batch(change(self.frames), patches)


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
    count, num_views, num_stored, _ = features.shape
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


def _generator(seed: int, what: str, number: int) -> torch.Generator:
    """A stream of its own for each epoch and each step."""
    salt = {"epoch": 0, "step": 1}[what]
    mixed = np.random.SeedSequence([seed, salt, number]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0] >> 1))


class Batches(AbstractContextManager["Batches"]):
    """Batches by step.  Which they are does not depend on who gathers them, or when.

    Rows that lie where the model is are picked on the spot; others, in memory or on disk, by
    a thread that works one step ahead.

    Args:
        features: To pick from.
        draw: The index of a step.
        part: Of each batch, what this process computes.
        last: The step after the last.
    """

    def __init__(
        self, features: Features, draw: Callable[[int], BatchIndex], part: slice, *, last: int
    ) -> None:
        self.draw = draw
        self._features, self._part, self._last = features, part, last
        is_far = features.place == "disk" or (
            features.place == "memory" and features.device.type != "cpu"
        )
        self._pool = ThreadPoolExecutor(1, "bieff-batches") if is_far else None
        self._next: tuple[int, Future[tuple[BatchIndex, Batch]]] | None = None

    def at(self, step: int) -> tuple[BatchIndex, Batch]:
        """The index, and this process's part of the batch on the model's device, in float32."""
        if self._pool is None:
            index, batch = self._gather(step)
            return index, batch.to(self._features.device)
        if self._next is None or self._next[0] != step:
            self._next = (step, self._pool.submit(self._gather, step))
        index, batch = self._next[1].result()
        self._next = None
        if step + 1 < self._last:
            self._next = (step + 1, self._pool.submit(self._gather, step + 1))
        return index, batch.to(self._features.device)

    def __exit__(self, *exc_info: Any) -> None:
        """Leave no thread behind."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _gather(self, step: int) -> tuple[BatchIndex, Batch]:
        index = self.draw(step)
        return index, index.pick(self._features, self._part)


# --- where they lie

Place = Literal["device", "memory", "disk"]

DEVICE_SHARE = 0.6
"""Part of the device's free memory that features may take; the rest is the training's."""

MEMORY_SHARE = 0.5
"""Part of the machine's free memory."""

_COPIED = 64 << 20
"""Bytes that are on their way to the device at a time."""


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
    """Bytes that features may take on this machine.

    Args:
        device: Where the model is.
        gigabytes: The user's word; None takes a share of what is free.
        sharers: Processes on this machine that hold the same features.
    """
    wished = float("inf") if gigabytes is None else gigabytes * 1e9
    on_device = 0.0
    if device.type == "cuda":
        on_device = min(wished, DEVICE_SHARE * free_bytes(device))
    in_memory = MEMORY_SHARE * free_memory() / sharers if gigabytes is None else wished
    return Budget(on_device, in_memory)


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device with memory of its own, else on this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


def free_memory() -> int:
    """Bytes of memory that may still be used here, a container's limit minded."""
    free = _available()
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free  # no limit that we could read
    return free if limit == "max" else min(free, max(0, int(limit) - used))


def _available() -> int:
    """Bytes that Linux could give; elsewhere half of all memory."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(found.split()[1])
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def load_rows(
    read: Any, rows: Int[np.ndarray, " n"], shape: tuple[int, ...], place: torch.device
) -> Float16[Tensor, "n ..."]:
    """Read some rows whole; what goes to a device passes through memory in parts."""
    if place.type == "cpu":
        return torch.from_numpy(read(rows))
    whole = torch.empty((len(rows), *shape), dtype=torch.float16, device=place)
    step = max(1, _COPIED // (2 * int(np.prod(shape))))
    for start in range(0, len(rows), step):
        whole[start : start + step] = torch.from_numpy(read(rows[start : start + step]))
    return whole


@dataclass(frozen=True, slots=True, eq=False)
class OnDisk:
    """Videos left on disk, copied out of the store's map as they are asked for."""

    partition: Partition
    rows: Int[np.ndarray, " n"]
    has_patches: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """n, V, T, D."""
        part = self.partition
        return len(self.rows), part.num_views, part.num_frames, part.dim

    @property
    def video_bytes(self) -> int:
        """Bytes of one video's embeddings, and of its patches where these are read too."""
        views, frames, dim = self.shape[1:]
        patches = self.partition.geometry.patches if self.has_patches else None
        num_patches, width = patches or (0, 0)
        return 2 * views * (frames * dim + num_patches * width)

    def pick(
        self, videos: Int[Tensor, " B"], views: Int[Tensor, " B"], frames: Int[Tensor, "B t"]
    ) -> Batch:
        """Take one view of each video, and some of its frames."""
        rows, chosen = self.rows[videos.numpy()], views.numpy()
        embeddings = self._views(self.partition.read, rows, chosen)
        at = np.arange(len(rows))[:, None]
        patches = None
        if self.has_patches:
            patches = torch.from_numpy(self._views(self.partition.read_patches, rows, chosen))
        return Batch(torch.from_numpy(embeddings[at, frames.numpy()]), patches)

    @staticmethod
    def _views(read: Any, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Read a view of each row, and not the others; in the order of the file."""
        found: np.ndarray | None = None
        for view in np.unique(views).tolist():
            at = np.flatnonzero(views == view)
            at = at[rows[at].argsort(kind="stable")]
            part = read(rows[at], slice(view, view + 1))[:, 0]
            if found is None:
                found = np.empty((len(rows), *part.shape[1:]), part.dtype)
            found[at] = part
        assert found is not None
        return found
