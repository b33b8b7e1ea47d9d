"""Cached features as training sees them, and which of them make a batch.

n usable videos, V views, T frames of the store, t frames of the model, B videos of a batch,
P patches of width U.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float16, Int
from torch import Tensor

from bieff.features.errors import ConfigError, StoreError
from bieff.features.schema import Status
from bieff.features.store import Partition
from bieff.train.residency import Mapped, Picked, Place, budget, load_rows

RUN = 64
"""Videos that lie side by side in the store and stay together when disk reads are shuffled."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The usable videos of one partition, wherever they lie."""

    embeddings: Float16[Tensor, "n V T D"] | None
    """On the device or in memory; None where they stay on disk."""

    labels: Int[Tensor, " n"]
    """Index into the class names, int64, on the CPU."""

    rows: Int[np.ndarray, " n"]
    """Row in the store of each video."""

    num_listed: int
    """Videos of the partition, usable or not."""

    patches: Float16[Tensor, "n V P U"] | None = None
    mapped: Mapped | None = None
    """Reads them, where they stay on disk."""

    target: torch.device | None = None
    """Where batches go; None: to where the embeddings lie."""

    window: int | None = None
    """Videos to be shuffled with one another; None for all, and fewer where they are read
    from the disk, so that what is read lies close together."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """n, V, T, D."""
        if self.embeddings is None:
            assert self.mapped is not None
            return self.mapped.shape
        videos, views, frames, dim = self.embeddings.shape
        return videos, views, frames, dim

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        if self.target is not None:
            return self.target
        return torch.device("cpu") if self.embeddings is None else self.embeddings.device

    @property
    def place(self) -> Place:
        """Where they lie."""
        if self.embeddings is None:
            return "disk"
        return "memory" if self.embeddings.device.type == "cpu" else "device"

    def pick(
        self, videos: Int[Tensor, " B"], views: Int[Tensor, " B"], frames: Int[Tensor, "B t"]
    ) -> Picked:
        """Take a view of each video and some of its frames; `Picked.to` brings them."""
        if self.embeddings is None:
            assert self.mapped is not None
            picked = self.mapped.pick(videos, views, frames)
        else:
            where = self.embeddings.device
            videos, views, frames = (index.to(where) for index in (videos, views, frames))
            picked = Picked(
                self.embeddings[videos[:, None], views[:, None], frames],
                None if self.patches is None else self.patches[videos, views],
            )
        is_sent = self.device.type == "cuda" and self.place != "device"
        return picked.pinned() if is_sent else picked

    def chunk(self, videos: Int[Tensor, " B"], view: int, frames: Int[Tensor, " t"]) -> Picked:
        """The same view and frames of some videos, on the model's device, in float32."""
        picked = self.pick(
            videos, torch.full_like(videos, view), frames.expand(len(videos), -1)
        )
        return picked.to(self.device)

    def text(self) -> str:
        """Where they lie, for people."""
        where = {"device": f"on {self.device}", "memory": "in memory"}.get(self.place)
        if where is None:
            where = (
                "stay on disk, they are more than the memory set aside; read through the map, "
                f"shuffled {self.window:,} at a time"
            )
        return f"features: {len(self):,} videos, {self.num_bytes / 1e6:,.1f} MB, {where}"

    @property
    def num_bytes(self) -> int:
        """Of the embeddings and patches."""
        if self.mapped is not None:
            return len(self) * self.mapped.video_bytes
        held = (self.embeddings, self.patches)
        return sum(part.numel() * part.element_size() for part in held if part is not None)


def load_features(
    partition: Partition,
    *,
    device: torch.device,
    wants_patches: bool = False,
    gigabytes: float | None = None,
    sharers: int = 1,
) -> Features:
    """Hold a partition on the device or in memory if it fits, else read it from the disk.

    Args:
        partition: Of a store.
        device: Where the model is.
        wants_patches: Also the patch tokens.
        gigabytes: What they may take; None takes a share of what is free.
        sharers: Processes on this machine that do the same.

    Raises:
        StoreError: If it is not finished, or no video of it is usable.
    """
    status = partition.status()
    pending = int((status == Status.PENDING).sum())
    if pending:
        raise StoreError(
            f"{partition.path}: {pending:,} of {len(status):,} videos are not extracted yet; "
            "run `bieff extract` again to finish"
        )
    rows = np.flatnonzero(np.isin(status, [Status.OK, Status.SALVAGED]))
    if not len(rows):
        raise StoreError(f"{partition.path}: none of its {len(status):,} videos is usable")
    if wants_patches and partition.geometry.patches is None:
        partition.read_patches(rows[:1])  # raises, and says what to do
    mapped = Mapped(partition, rows, wants_patches)
    limits = budget(device, gigabytes, sharers=sharers)
    place = limits.place(mapped.video_bytes * len(rows))
    embeddings = patches = window = None
    if place == "disk":
        window = max(RUN, int(limits.memory / mapped.video_bytes))
    else:
        where = device if place == "device" else torch.device("cpu")
        embeddings = load_rows(partition.read, rows, mapped.shape[1:], where)
        if wants_patches:
            shape = (partition.num_views, *(partition.geometry.patches or ()))
            patches = load_rows(partition.read_patches, rows, shape, where)
    return Features(
        embeddings=embeddings,
        labels=torch.from_numpy(partition.labels[rows]),
        rows=rows,
        num_listed=len(status),
        patches=patches,
        mapped=mapped if place == "disk" else None,
        target=device,
        window=window,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """What a step trains on: which videos, and what of them."""

    videos: Int[Tensor, " B"]
    """Index into the features."""

    views: Int[Tensor, " B"]
    frames: Int[Tensor, "B t"]
    labels: Int[Tensor, " B"]

    def pick(self, features: Features, part: slice) -> Picked:
        """Take some of the batch out of the features."""
        return features.pick(self.videos[part], self.views[part], self.frames[part])


def draw_batch(
    features: Features,
    step: int,
    *,
    batch_size: int,
    num_frames: int,
    seed: int,
    window: int | None = None,
) -> Draw:
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
    return Draw(videos, view, frame, features.labels[videos])


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


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches of an epoch over `count` videos."""
    return count // min(batch_size, count)


def frame_groups(num_stored: int, num_frames: int) -> int:
    """How many stored frames stand for one frame of the model: T / t.

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
