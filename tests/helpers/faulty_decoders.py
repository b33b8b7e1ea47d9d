"""Decoders that misbehave as native code does; the decoding pool finds them by name."""

import ctypes
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bieff.extract.decode.reader import Choose, Decoded, Preference, decode_video


@dataclass(frozen=True)
class Grid:
    """The evaluation grid: `count` frames evenly over the video."""

    count: int

    def __call__(self, num_frames: int) -> np.ndarray:
        return np.arange(self.count) * num_frames // self.count


@dataclass(frozen=True)
class Broken:
    """A caller's function with a bug."""

    def __call__(self, num_frames: int) -> np.ndarray:
        raise ZeroDivisionError("in the caller's own code")


@dataclass(frozen=True)
class Beyond:
    """Asks for one frame too many."""

    def __call__(self, num_frames: int) -> np.ndarray:
        return np.arange(num_frames + 1)


def faulty(path: str, choose: Choose, *, decoder: Preference | None = None) -> Decoded:
    """Decode, unless the name of the file orders a fault, in both attempts or the first."""
    name = Path(path).stem
    with Path(path).with_suffix(".tries").open("a") as tries:
        tries.write(f"{os.getpid()} {decoder or 'auto'}\n")
    if "once" not in name or decoder is None:
        if "hang" in name:
            # native code that neither returns nor looks at signals
            ctypes.PyDLL(None).sleep(1000)  # holds the interpreter's lock, too
        if "segfault" in name:
            ctypes.string_at(0)
        if "abort" in name:
            sys.stderr.write("free(): invalid pointer\n")
            sys.stderr.flush()
            os.abort()
        if "surprise" in name:
            raise OverflowError("a number that no library expected")
        if "slow" in name:
            time.sleep(0.3)
    return decode_video(path, choose, decoder=decoder)


def with_torch(path: str, choose: Choose, *, decoder: Preference | None = None) -> Decoded:
    """Say which heavy modules the process has imported."""
    heavy = {"torch", "open_clip", "torchvision", "zarr", "dask", "distributed"} & set(
        sys.modules
    )
    if heavy:
        raise RuntimeError(f"imported: {sorted(heavy)}")
    return decode_video(path, choose, decoder=decoder)
