"""Cached features as training sees them: one tensor in memory, and which rows make a batch.

n usable videos, V views, T frames of the store, t frames of the model, B videos of a batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor

from bieff.features.errors import ConfigError, StoreError
from bieff.features.schema import Status
from bieff.features.store import Partition


@dataclass(frozen=True, slots=True)
class Features:
    """The usable videos of one partition, resident on one device."""

    embeddings: Float16[Tensor, "n V T D"]
    labels: Int[Tensor, " n"]
    """Index into the class names, int64, on the CPU."""

    rows: Int[np.ndarray, " n"]
    """Row in the store of each video."""

    num_listed: int
    """Videos of the partition, usable or not."""

    patches: Float16[Tensor, "n V P U"] | None = None

    def __len__(self) -> int:
        return len(self.rows)


def load_features(
    partition: Partition, *, device: torch.device, wants_patches: bool = False
) -> Features:
    """Read a partition into memory.

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
    patches = partition.read_patches(rows) if wants_patches else None
    return Features(
        embeddings=torch.from_numpy(partition.read(rows)).to(device),
        labels=torch.from_numpy(partition.labels[rows]),
        rows=rows,
        num_listed=len(status),
        patches=None if patches is None else torch.from_numpy(patches).to(device),
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step trains on."""

    frames: Float[Tensor, "B t D"]
    labels: Int[Tensor, " B"]
    videos: Int[Tensor, " B"]
    """Index into the features."""

    patches: Float[Tensor, "B P U"] | None = None


def batch_of(
    features: Features, step: int, *, batch_size: int, num_frames: int, seed: int
) -> Batch:
    """The batch of a step, a function of its arguments alone.

    So a resumed run sees the batches the uninterrupted one would have seen.  Each epoch is a
    fresh permutation; its last, short batch is left out.  A video shows one of its views,
    drawn at random, and one frame at random from each group of T / t.
    """
    size, count = min(batch_size, len(features)), len(features)
    epoch, index = divmod(step, count // size)
    order = torch.randperm(count, generator=_generator(seed, "epoch", epoch))
    videos = order[index * size : (index + 1) * size]
    draws = _generator(seed, "step", step)
    num_views, num_stored = features.embeddings.shape[1:3]
    view = torch.randint(num_views, (size,), generator=draws)
    group = frame_groups(num_stored, num_frames)
    frame = torch.arange(num_frames) * group + torch.randint(
        group, (size, num_frames), generator=draws
    )
    device = features.embeddings.device
    at, view, frame = videos.to(device), view.to(device), frame.to(device)
    return Batch(
        frames=features.embeddings[at[:, None], view[:, None], frame].float(),
        labels=features.labels[videos],
        videos=videos,
        patches=None if features.patches is None else features.patches[at, view].float(),
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
