"""Stage one, measured in its parts: decoding, cutting, the visual tower.

The clips are made here, like those of the data sets in codec, size, length and bit rate, which
decide what decoding costs.  They show a textured picture that pans, another that crosses it,
and grain.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8

from bieff.apps.bench.timing import flops_of, seconds
from bieff.clip import Clip
from bieff.extract.config import ExtractConfig
from bieff.extract.decode import second
from bieff.extract.decode.pool import DecodePool, Job
from bieff.extract.decode.reader import decode_video
from bieff.extract.shard import BATCH
from bieff.extract.tower import VisualTower, cut, normalise
from bieff.extract.views import View, ViewPlan, crop_of, views_for

BIT_RATE = 500_000
"""Bits a second; the data sets' files, by their size on the disk, have 400,000 to 750,000."""

FEW, MANY = 8, 32
"""Frames a view that decoding is measured at."""

CROPS = {"cuda": BATCH["cuda"], "cpu": 8}
"""Crops that the tower is measured on: a batch, or a part of one where a batch takes long."""

_DECODE_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class ClipKind:
    """Encoding of the clips of a data set."""

    name: str
    codec: str
    container: str
    width: int
    height: int
    fps: int
    num_frames: int

    def __str__(self) -> str:
        codec = {"libx264": "H.264", "mpeg4": "MPEG-4"}[self.codec]
        length = f"{self.num_frames / self.fps:.0f} s"
        return f"{length}, {self.width} x {self.height}, {codec} {self.container}"


KINDS = (
    # Kinetics as it is passed around: ten seconds, shorter side near 256 pixels
    ClipKind("k400", "libx264", "mp4", width=340, height=256, fps=30, num_frames=300),
    # 27 hours in 13,320 clips (Soomro et al., CRCV-TR-12-01)
    ClipKind("ucf101", "mpeg4", "avi", width=320, height=240, fps=25, num_frames=180),
    # about three seconds
    ClipKind("hmdb51", "mpeg4", "avi", width=320, height=240, fps=30, num_frames=95),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeCost:
    """Seconds of this machine that one clip costs all decoders together."""

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
        """Seconds of a clip that shows so many images: the file, and what every image adds."""
        low, high = (self.views * frames for frames in (FEW, MANY))
        an_image = max(0.0, (self.many - self.few) / (high - low))
        return self.few + an_image * (images - low)


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerRate:
    """Images a second, each with all of the device."""

    cut: float
    """Crops a second, cut out of decoded frames."""

    tower: float
    flops: float
    """FLOP of one image."""

    precision: str


def decoder_lines() -> list[str]:
    """What is lost where decord is not installed."""
    return (
        []
        if second.is_here()
        else [
            "decoding: without decord, which has no wheel for this machine; frames are the "
            "same, but a file on which PyAV crashes or hangs is tried again by PyAV alone"
        ]
    )


def num_cores() -> int:
    """Cores that this process may use; one decoder each."""
    return len(os.sched_getaffinity(0))


def measure_decoding(folder: Path, kinds: Sequence[ClipKind] = KINDS) -> list[DecodeCost]:
    """Decode clips of every kind with a decoder a core; the views are an evaluation's."""
    views = tuple(views_for(0, ExtractConfig().clips, ExtractConfig().crops)[1])
    costs = []
    with DecodePool(num_cores()) as pool:
        for kind in kinds:
            path = write_clip(kind, folder)
            few, many = (ViewPlan(views, frames, kind.name) for frames in (FEW, MANY))
            alone = seconds(partial(decode_video, path, many), at_least=0.5)
            costs.append(
                DecodeCost(
                    kind=kind.name,
                    clip=str(kind),
                    views=len(views),
                    few=_pooled(pool, path, few),
                    many=_pooled(pool, path, many),
                    ceiling=alone / num_cores(),
                )
            )
    return costs


def _pooled(pool: DecodePool, path: Path, choose: ViewPlan) -> float:
    jobs: Iterator[Job] = (Job(row=i, path=path, choose=choose) for i in itertools.count())
    outcomes: Any = pool.decode(jobs)
    with contextlib.closing(outcomes):
        for _ in range(2 * num_cores()):
            outcome = next(outcomes)
            if not outcome.status.usable:
                raise RuntimeError(f"the made clip does not decode: {outcome.message}")
        begin = time.perf_counter()
        for count, _ in enumerate(outcomes, start=1):
            taken = time.perf_counter() - begin
            if taken >= _DECODE_SECONDS and count >= 2 * num_cores():
                return taken / count
    raise AssertionError("decoding has no end")


def measure_tower(clip: Clip, device: torch.device) -> TowerRate:
    """Cut crops out of decoded frames, and embed crops."""
    count, kind = CROPS.get(device.type, 8), KINDS[0]
    tower = VisualTower(clip, device=device, batch_size=count)
    looks = tower.preprocessing
    frames = torch.randint(0, 256, (MANY, kind.height, kind.width, 3), dtype=torch.uint8)
    crop = crop_of(View(), kind.height, kind.width, looks.size, looks.resize_mode)
    shape = (count, 3, looks.size, looks.size)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    # with a graph: without one torch takes a fused attention that the counter does not know
    pixels = normalise(crops[:1], mean=looks.mean, std=looks.std).requires_grad_()
    model: Any = clip.model
    return TowerRate(
        cut=MANY / seconds(lambda: cut(tower.upload(frames), crop, looks)),
        tower=count / seconds(lambda: tower.encode(crops)),
        flops=flops_of(lambda: model.visual(pixels)),
        precision=tower.precision,
    )


def write_clip(kind: ClipKind, folder: Path) -> Path:
    """Encode one clip; its name is that of the kind."""
    path = folder / f"{kind.name}.{kind.container}"
    options = {"preset": "veryfast", "threads": "1"} if kind.codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(kind.codec, rate=kind.fps, options=options)
        stream.width, stream.height = kind.width, kind.height
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = BIT_RATE
        for picture in _pictures(kind):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def _pictures(kind: ClipKind) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    height, width = kind.height, kind.width
    generator = torch.Generator().manual_seed(0)
    back = _texture(height + 64, width + 64, generator)
    front = _texture(height // 3, width // 4, generator)
    high, wide = front.shape[:2]
    grain = np.random.default_rng(0).integers(-4, 5, (8, height, width, 1), dtype=np.int16)
    for number in range(kind.num_frames):
        place = number / kind.num_frames
        top, left = int(32 * (1 + np.sin(9 * place))), int(63 * place)
        picture = back[top : top + height, left : left + width].copy()
        top, left = height // 3, int((width - wide) * abs(np.sin(7 * place)))
        picture[top : top + high, left : left + wide] = front
        picture += grain[number % len(grain)]
        yield np.clip(picture, 0, 255).astype(np.uint8)


def _texture(height: int, width: int, generator: torch.Generator) -> np.ndarray:
    total = torch.full((1, 3, height, width), 128.0)
    for cells, strength in ((3, 160), (9, 80), (27, 40), (81, 20)):
        coarse = torch.rand(1, 3, cells, cells, generator=generator) - 0.5
        total += strength * F.interpolate(coarse, size=(height, width), mode="bicubic")
    picture: np.ndarray = total[0].permute(1, 2, 0).short().numpy()
    return picture
