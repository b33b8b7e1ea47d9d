"""Decoders that misbehave as native code does; the decoding pool finds them by name.

Run as a program it decodes one video five times, for tests that kill it:

    python -m helpers.faulty_decoders VIDEO
"""

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bieff.extract.decode.pool import DecodePool, Job
from bieff.extract.decode.reader import Choose, Decoded, Preference, decode_video

FAULTY = "helpers.faulty_decoders:faulty"


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


class Gate:
    """Two pipes beside a video: one by which its decoder tells its process id when it begins,
    and one at which it then waits."""

    def __init__(self, path: Path) -> None:
        self._begun, self._go = path.with_suffix(".begun"), path.with_suffix(".go")

    @classmethod
    def before(cls, path: Path, *, waits: bool = True) -> "Gate":
        """Put it up, with or without the second pipe."""
        gate = cls(path)
        for pipe in (gate._begun, gate._go)[: 1 + waits]:
            os.mkfifo(pipe)
        return gate

    def wait_for_decoder(self) -> int:
        """Wait until a decoder begins; return its process id."""
        return int(self._begun.read_text())

    def open(self) -> None:
        """Let the decoder go on."""
        self._go.write_text("")

    def pass_through(self) -> None:
        """The decoder's side."""
        if self._begun.exists():
            self._begun.write_text(str(os.getpid()))
        if self._go.exists():
            self._go.read_text()


def faulty(path: str, choose: Choose, *, decoder: Preference | None = None) -> Decoded:
    """Decode, unless the name of the file orders a fault, in both attempts or the first."""
    name = Path(path).stem
    with Path(path).with_suffix(".tries").open("a") as tries:
        tries.write(f"{os.getpid()} {decoder or 'auto'}\n")
    if "once" not in name or decoder is None:
        Gate(Path(path)).pass_through()
        if "hang" in name:
            # native code that neither returns nor looks at signals
            ctypes.PyDLL(None).sleep(1000)  # holds the interpreter's lock, too
        if "segfault" in name:
            ctypes.string_at(0)
        if "abort" in name:
            sys.stderr.write("free(): invalid pointer\n")
            sys.stderr.flush()
            os.abort()
        if "bug" in name:
            raise AttributeError("'NoneType' object has no attribute 'thread_count'")
        if "surprise" in name:
            raise OverflowError("a number that no library expected")
    return decode_video(path, choose, decoder=decoder)


def tells_first(path: str, choose: Choose, *, decoder: Preference | None = None) -> Decoded:
    """Take longer than the deadline, but not before having told how many frames there are."""
    choose(29)
    Gate(Path(path)).pass_through()
    return decode_video(path, choose, decoder=decoder)


def with_torch(path: str, choose: Choose, *, decoder: Preference | None = None) -> Decoded:
    """Say which heavy modules the process has imported."""
    heavy = {"torch", "open_clip", "torchvision", "zarr", "dask", "distributed"} & set(
        sys.modules
    )
    if heavy:
        raise RuntimeError(f"imported: {sorted(heavy)}")
    return decode_video(path, choose, decoder=decoder)


def main(path: str) -> None:
    """Decode a video five times in two processes, telling the rows."""
    with DecodePool(2, deadline=100, decode=FAULTY) as pool:
        jobs = [Job(row=i, path=path, choose=Grid(3)) for i in range(5)]
        for outcome in pool.decode(jobs):
            print(outcome.row, flush=True)


if __name__ == "__main__":
    from helpers import faulty_decoders  # under the name by which a worker finds `Grid`

    faulty_decoders.main(sys.argv[1])
