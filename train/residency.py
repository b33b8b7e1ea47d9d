"""Where cached features lie while they are used: on the device, in memory, or on disk.

n usable videos, V views, T frames of the store, t frames of the model, B videos of a batch,
P patches of width U.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor

from bieff.features.store import Partition

Place = Literal["device", "memory", "disk"]

DEVICE_SHARE = 0.6
"""Of the device's free memory that features may take; the rest is the training's."""

MEMORY_SHARE = 0.5
"""Of the machine's free memory."""

_COPIED = 64 << 20
"""Bytes that are on their way to the device at a time."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What features may take, in bytes, and where that ends."""

    device: float
    """0 where the device has no memory of its own."""

    memory: float

    def place(self, size: int) -> Place:
        """The fastest place that `size` bytes fit in."""
        if size <= self.device:
            return "device"
        return "memory" if size <= self.memory else "disk"


def budget(device: torch.device, gigabytes: float | None, *, sharers: int = 1) -> Budget:
    """What features may take on this machine.

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
    """What Linux says it could give; elsewhere half of what there is."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(found.split()[1])
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """Rows on their way to the model, in half precision as stored until `to`."""

    frames: Float[Tensor, "B t D"]
    patches: Float[Tensor, "B P U"] | None

    def pinned(self) -> "Picked":
        """Where a copy to the device need not be waited for."""
        return self._each(lambda part: part.pin_memory())

    def to(self, device: torch.device) -> "Picked":
        """Copy to the device, in float32."""
        return self._each(lambda part: part.to(device, non_blocking=True).float())

    def part(self, rows: slice) -> "Picked":
        """Some of the videos."""
        return self._each(lambda part: part[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Picked":
        return Picked(
            change(self.frames), None if self.patches is None else change(self.patches)
        )


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
class Mapped:
    """A partition left on disk, its rows copied out of the map as they are asked for."""

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
    ) -> Picked:
        """Take one view of each video, and some of its frames."""
        rows, chosen = self.rows[videos.numpy()], views.numpy()
        embeddings = self._views(self.partition.read, rows, chosen)
        at = np.arange(len(rows))[:, None]
        patches = None
        if self.has_patches:
            patches = torch.from_numpy(self._views(self.partition.read_patches, rows, chosen))
        return Picked(torch.from_numpy(embeddings[at, frames.numpy()]), patches)

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
