"""Damaged copies of stamped clips, and how they differ from the whole ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from helpers import stamped

_X264 = {"gop": 12, "b_frames": 2, "sound": "aac"}
_X265 = {
    "codec": "libx265",
    "sound": "aac",
    "gop": 12,
    "options": {"preset": "ultrafast", "x265-params": "log-level=none:bframes=2"},
}
_VPX = {"sound": "libopus", "gop": 12, "options": {"cpu-used": "8"}}
FAMILIES = {
    "h264.mp4": _X264,
    "h264.mkv": _X264,
    "h264.ts": _X264,
    "hevc.mp4": _X265,
    "hevc.mkv": _X265,
    "vp9.webm": {"codec": "libvpx-vp9", **_VPX},
    "vp8.webm": {"codec": "libvpx", **_VPX},
    "mpeg4.avi": {"codec": "mpeg4", "gop": 12, "b_frames": 2, "sound": "libmp3lame"},
}
"""With a sound track each, as clips have."""

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


KINDS = ("noise", "zeros", "lost", "doubled", "swapped", "cut", "edge")
"""Damage as storage and transfer do it, to runs of bytes, the end, headers and indexes."""

SMALL = ("bit", "byte")


def mutate(data: bytes, seed: int, kinds: Sequence[str] = KINDS) -> bytes:
    """A damaged copy; a run has 16 to 4096 bytes, as many short ones as long ones."""
    draw = np.random.default_rng(seed)
    kind = kinds[seed % len(kinds)]
    length = int(2 ** draw.uniform(4, 12))
    at, other = (int(place) for place in draw.integers(0, len(data) - length, 2))
    copy = bytearray(data)
    if kind == "edge":  # where files of all containers have their headers and indexes
        length = min(length, 256)
        at = int(draw.integers(0, 2048)) % (len(data) - length)
        at = at if draw.integers(2) else len(data) - length - at
    if kind == "bit":
        copy[at] ^= 1 << int(draw.integers(8))
    elif kind == "byte":
        copy[at] ^= int(draw.integers(1, 256))
    elif kind in ("noise", "edge"):
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
        first, second = sorted((at, other))
        length = min(length, second - first)
        copy[first : first + length] = data[second : second + length]
        copy[second : second + length] = data[first : first + length]
    return bytes(copy)


def unlike(frames: np.ndarray, whole: np.ndarray) -> list[int]:
    """Frames that show something else than those of the whole clip, by more than noise."""
    blocks = np.abs(frames.astype(np.int16) - whole).reshape(len(frames), 15, 16, 20, 16, 3)
    worst = blocks.mean(axis=(2, 4, 5)).reshape(len(frames), -1).max(axis=1, initial=0)
    return np.flatnonzero(worst > 4).tolist()
