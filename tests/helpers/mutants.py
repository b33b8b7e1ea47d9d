"""Damaged copies of stamped clips, and how they differ from the whole ones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from helpers import stamped

_X265 = {
    "codec": "libx265",
    "gop": 12,
    "options": {"preset": "ultrafast", "x265-params": "log-level=none:bframes=2"},
}
FAMILIES = {
    "h264.mp4": {"gop": 12, "b_frames": 2},
    "h264.mkv": {"gop": 12, "b_frames": 2},
    "h264.ts": {"gop": 12, "b_frames": 2},
    "hevc.mp4": _X265,
    "hevc.mkv": _X265,
    "vp9.webm": {"codec": "libvpx-vp9", "gop": 12, "options": {"cpu-used": "8"}},
    "vp8.webm": {"codec": "libvpx", "gop": 12, "options": {"cpu-used": "8"}},
    "mpeg4.avi": {"codec": "mpeg4", "gop": 12, "b_frames": 2},
}
NUM_FRAMES = 48
SIZE = (320, 240)


@dataclass(frozen=True)
class All:
    """Every frame."""

    def __call__(self, num_frames: int) -> np.ndarray:
        return np.arange(num_frames)


def write_family(folder: Path, name: str) -> Path:
    """The whole clip of a family."""
    path = folder / name
    return stamped.write(path, stamped.Clip(num_frames=NUM_FRAMES, size=SIZE, **FAMILIES[name]))


KINDS = ("bit", "byte", "noise", "zeros", "cut", "lost", "doubled", "swapped")


def mutate(data: bytes, seed: int) -> bytes:
    """A damaged copy: a bit turned, a byte, noise, zeros, bytes lost, swapped, and so on."""
    draw = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    length = int(draw.integers(2, 512))
    at, other = (int(place) for place in draw.integers(0, len(data) - length, 2))
    copy = bytearray(data)
    if kind == "bit":
        copy[at] ^= 1 << int(draw.integers(8))
    elif kind == "byte":
        copy[at] ^= int(draw.integers(1, 256))
    elif kind == "noise":
        copy[at : at + length] = draw.bytes(length)
    elif kind == "zeros":
        copy[at : at + length] = bytes(length)
    elif kind == "cut":
        del copy[at:]
    elif kind == "lost":
        del copy[at : at + length]
    elif kind == "doubled":
        copy[at:at] = data[at : at + length]
    else:
        copy[at : at + length], copy[other : other + length] = (
            data[other : other + length],
            data[at : at + length],
        )
    return bytes(copy)


def unlike(frames: np.ndarray, whole: np.ndarray) -> list[int]:
    """Frames that show something else than those of the whole clip, by more than noise."""
    blocks = np.abs(frames.astype(np.int16) - whole).reshape(len(frames), 15, 16, 20, 16, 3)
    worst = blocks.mean(axis=(2, 4, 5)).reshape(len(frames), -1).max(axis=1, initial=0)
    return np.flatnonzero(worst > 4).tolist()
