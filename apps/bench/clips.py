"""Clips like those of the data sets, made here: the same codec, size, length and bit rate.

What they show is a textured picture that pans, with another that crosses it, and grain: the
decoder's work follows from the codec, the number of pixels and the bit rate.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8

BIT_RATE = 500_000
"""Bits a second; the data sets' files, by their size on the disk, have 400,000 to 750,000."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipKind:
    """How the clips of a data set are encoded."""

    name: str
    codec: str
    container: str
    width: int
    height: int
    fps: int
    num_frames: int

    def __str__(self) -> str:
        codec = {"libx264": "H.264", "mpeg4": "MPEG-4"}[self.codec]
        return (
            f"{self.num_frames / self.fps:.0f} s, {self.width} x {self.height}, {codec} "
            f"{self.container}"
        )


KINDS = (
    # Kinetics as it is passed around: ten seconds, shorter side near 256 pixels
    ClipKind(
        name="k400",
        codec="libx264",
        container="mp4",
        width=340,
        height=256,
        fps=30,
        num_frames=300,
    ),
    # 27 hours in 13,320 clips (Soomro et al., CRCV-TR-12-01)
    ClipKind(
        name="ucf101",
        codec="mpeg4",
        container="avi",
        width=320,
        height=240,
        fps=25,
        num_frames=180,
    ),
    # about three seconds
    ClipKind(
        name="hmdb51",
        codec="mpeg4",
        container="avi",
        width=320,
        height=240,
        fps=30,
        num_frames=95,
    ),
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
        scene = _Scene(kind)
        for number in range(kind.num_frames):
            frame = av.VideoFrame.from_ndarray(scene.draw(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


class _Scene:
    def __init__(self, kind: ClipKind) -> None:
        self.kind = kind
        generator = torch.Generator().manual_seed(0)
        self.back = _texture(kind.height + 64, kind.width + 64, generator)
        self.front = _texture(kind.height // 3, kind.width // 4, generator)
        size = (8, kind.height, kind.width, 1)
        self.grain = np.random.default_rng(0).integers(-4, 5, size, dtype=np.int16)

    def draw(self, number: int) -> UInt8[np.ndarray, "H W 3"]:
        height, width = self.kind.height, self.kind.width
        place = number / self.kind.num_frames
        top, left = int(32 * (1 + np.sin(9 * place))), int(63 * place)
        picture = self.back[top : top + height, left : left + width].copy()
        high, wide = self.front.shape[:2]
        top, left = height // 3, int((width - wide) * abs(np.sin(7 * place)))
        picture[top : top + high, left : left + wide] = self.front
        picture += self.grain[number % len(self.grain)]
        pixels: np.ndarray = np.clip(picture, 0, 255).astype(np.uint8)
        return pixels


def _texture(height: int, width: int, generator: torch.Generator) -> np.ndarray:
    """Noise at several scales, int16 (height, width, 3)."""
    total = torch.full((1, 3, height, width), 128.0)
    for cells, strength in ((3, 160), (9, 80), (27, 40), (81, 20)):
        coarse = torch.rand(1, 3, cells, cells, generator=generator) - 0.5
        total += strength * F.interpolate(coarse, size=(height, width), mode="bicubic")
    picture: np.ndarray = total[0].permute(1, 2, 0).short().numpy()
    return picture
