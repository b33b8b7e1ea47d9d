"""Stage one, measured in its parts: decoding, cutting, the visual tower."""

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bieff.apps.bench.clips import KINDS, ClipKind, write_clip
from bieff.apps.bench.clock import flops_of, seconds
from bieff.clip import Clip
from bieff.extract.config import ExtractConfig
from bieff.extract.decode.pool import DecodePool, Job
from bieff.extract.decode.reader import decode_video
from bieff.extract.shard import BATCH
from bieff.extract.tower import VisualTower, cut, normalise
from bieff.extract.views import View, ViewPlan, crop_of, views_for

FEW, MANY = 8, 32
"""Frames a view that decoding is measured at."""

SQUARES = {"cuda": BATCH["cuda"], "cpu": 8}
"""Squares that the tower is measured on: a batch, or a part of one where a batch takes long."""

_DECODE_SECONDS = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeCost:
    """What one clip costs all decoders together, in seconds of this machine."""

    kind: str
    clip: str
    views: int
    few: float
    """Seconds a clip for `FEW` frames a view; 1 / few are the clips a second."""

    many: float
    """Seconds a clip for `MANY` frames a view."""

    ceiling: float
    """The same, if one process without a pool is taken times the cores."""

    def seconds(self, images: int) -> float:
        """Of a clip that shows so many images: the file, and what every image adds."""
        low, high = (self.views * frames for frames in (FEW, MANY))
        an_image = max(0.0, (self.many - self.few) / (high - low))
        return self.few + an_image * (images - low)


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerRate:
    """Images a second, each with all of the device."""

    cut: float
    """From decoded frames to the tower's squares."""

    tower: float
    flops: float
    """Of one image."""

    precision: str


def measure_decoding(folder: Path, num_decoders: int) -> list[DecodeCost]:
    """Decode clips of every kind with all decoders; the views are those of an evaluation."""
    _, views = views_for(0, ExtractConfig().clips, ExtractConfig().crops)
    with DecodePool(num_decoders) as pool:
        return [_decode(kind, folder, pool, num_decoders, tuple(views)) for kind in KINDS]


def _decode(
    kind: ClipKind, folder: Path, pool: DecodePool, num_decoders: int, views: tuple[View, ...]
) -> DecodeCost:
    path = write_clip(kind, folder)
    few, many = (ViewPlan(views, frames, kind.name) for frames in (FEW, MANY))
    alone = seconds(lambda: decode_video(path, many), torch.device("cpu"), at_least=0.5)
    return DecodeCost(
        kind=kind.name,
        clip=str(kind),
        views=len(views),
        few=_pooled(pool, path, few, num_decoders),
        many=_pooled(pool, path, many, num_decoders),
        ceiling=alone / num_decoders,
    )


def _pooled(pool: DecodePool, path: Path, choose: ViewPlan, num_decoders: int) -> float:
    """Seconds a clip, once all decoders are at work."""
    jobs: Iterator[Job] = (Job(row=i, path=path, choose=choose) for i in itertools.count())
    outcomes: Any = pool.decode(jobs)
    with contextlib.closing(outcomes):
        for _ in range(2 * num_decoders):
            outcome = next(outcomes)
            if not outcome.status.usable:
                raise RuntimeError(f"the made clip does not decode: {outcome.message}")
        begin = time.perf_counter()
        for count, _ in enumerate(outcomes, start=1):
            taken = time.perf_counter() - begin
            if taken >= _DECODE_SECONDS and count >= 2 * num_decoders:
                return taken / count
    raise AssertionError("decoding has no end")


def measure_tower(clip: Clip, device: torch.device) -> TowerRate:
    """Cut squares out of decoded frames, and embed squares."""
    count = SQUARES.get(device.type, 8)
    tower = VisualTower(clip, device=device, batch_size=count)
    kind = KINDS[0]
    frames = torch.randint(0, 256, (MANY, kind.height, kind.width, 3), dtype=torch.uint8)
    size = tower.preprocessing.size
    crop = crop_of(View(), kind.height, kind.width, size)
    cutting = seconds(lambda: cut(tower.upload(frames), crop), device)
    squares = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8).to(device)
    return TowerRate(
        cut=MANY / cutting,
        tower=count / seconds(lambda: tower.encode(squares), device),
        flops=_tower_flops(clip, squares[:1], tower),
        precision=tower.precision,
    )


def _tower_flops(clip: Clip, square: Tensor, tower: VisualTower) -> float:
    """Of one image.

    With a graph: without one torch takes a fused attention that the counter does not know.
    """
    config = tower.preprocessing
    pixels = normalise(square, mean=config.mean, std=config.std).requires_grad_()
    model: Any = clip.model
    return flops_of(lambda: model.visual(pixels))


def num_cores() -> int:
    """Cores that this process may use; one decoder each."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="bieff-bench-") as folder:
        yield Path(folder)
