"""What goes into the decoding pool, and what comes out."""

from dataclasses import dataclass
from os import PathLike

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import ArrayLike

from bieff.extract.decode import Choose, Preference
from bieff.features.schema import Status


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A video to decode."""

    row: int
    path: str | PathLike[str]
    choose: Choose
    """Called in the worker, so it must be importable there: best a dataclass of a module."""

    decoder: Preference | None = None
    """As for `decode_video`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """What became of a video, after one or two attempts."""

    row: int
    path: str
    status: Status
    frames: UInt8[np.ndarray, "n H W 3"] | None = None
    """Writable; the memory is free again when no array refers to it any more."""

    frame_numbers: Int64[np.ndarray, " n"] | None = None
    """Strictly ascending; one for each of `frames`."""

    num_frames: int = 0
    """Frames of the video that decode; 0 where none was decoded."""

    decoder: str = ""
    """Empty where the process died or hung before it could say."""

    message: str = ""
    """What went wrong, in every attempt; empty where nothing did."""

    attempt: int = 1
    seconds: float = 0.0
    """Of the last attempt: the decoding, or the time until it was given up."""

    def places(self, frame_numbers: ArrayLike) -> Int64[np.ndarray, "..."]:
        """Where in `frames` the frames of these numbers lie; the numbers must be among ours."""
        if self.frame_numbers is None:
            raise LookupError(f"row {self.row} has no frames: {self.message}")
        return np.searchsorted(self.frame_numbers, np.asarray(frame_numbers))
