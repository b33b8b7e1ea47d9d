"""Damaged copies of stamped clips, and how they differ from the whole ones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from helpers import stamped

_QUIET = {"preset": "ultrafast", "x265-params": "log-level=none:bframes=2"}
FAMILIES = {
    "h264.mp4": {"gop": 12, "b_frames": 2},
    "h264.mkv": {"gop": 12, "b_frames": 2},
    "hevc.mkv": {"codec": "libx265", "gop": 12, "options": _QUIET},
    "vp9.webm": {"codec": "libvpx-vp9", "gop": 12, "options": {"cpu-used": "8"}},
    "mpeg4.avi": {"codec": "mpeg4", "gop": 12, "b_frames": 2},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mpeg2.ts": {"codec": "mpeg2video", "gop": 12, "b_frames": 2},
    "av1.mp4": {"codec": "libsvtav1", "gop": 12, "options": {"preset": "10"}},
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


KINDS = ("noise", "zeros", "lost", "doubled", "cut", "swapped", "noise", "zeros")


def mutate(data: bytes, seed: int) -> bytes:
    """A damaged copy: noise, zeros, bytes lost, doubled or swapped, the end cut off."""
    draw = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    length = int(draw.integers(64, 512))
    at, other = (int(place) for place in draw.integers(400, len(data) - 512, 2))
    copy = bytearray(data)
    if kind == "cut":
        del copy[at:]
    elif kind == "noise":
        copy[at : at + length] = draw.bytes(length)
    elif kind == "zeros":
        copy[at : at + length] = bytes(length)
    elif kind == "lost":
        del copy[at : at + length]
    elif kind == "doubled":
        copy[at:at] = data[at : at + length]
    else:
        copy[at : at + length] = data[other : other + length]
    return bytes(copy)


def unlike(frames: np.ndarray, whole: np.ndarray) -> list[int]:
    """Frames that show something else than those of the whole clip, by more than noise."""
    blocks = np.abs(frames.astype(np.int16) - whole).reshape(len(frames), 15, 16, 20, 16, 3)
    worst = blocks.mean(axis=(2, 4, 5)).reshape(len(frames), -1).max(axis=1, initial=0)
    return np.flatnonzero(worst > 4).tolist()
