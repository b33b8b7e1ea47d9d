"""Frames of a video by number, never a wrong one.

A frame's number is its place in the order in which a player shows the frames, counted from 0
behind any edit list; with a variable frame rate too it is one number a frame.

Files are decoded in sequence with PyAV (`sequential.py`), which is right for every one, or with
decord, which can begin at any keyframe, where it is proven to return the frame that was asked
for and skips at least half of the file.  Both give the same pixels, bit for bit.  Where decord
skips less it is the slower one (measured, cpu-ms: 32 of 300 frames 123 against 83; 8 of 1,000
frames 73 against 182), and it does not notice a damaged frame that still decodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import ArrayLike, NDArray

from bieff.extract.container import Contents, DecodeError, scan
from bieff.extract.sequential import decode_pass

Decoder = Literal["decord", "pyav"]

Preference = Literal["decord", "pyav", "other"]
"""decord where it is right; PyAV always; or, where both are right, not the one of the rule."""

Choose = Callable[[int], ArrayLike]
"""From the number of frames of a video to the numbers wanted, in any order, repeats allowed."""


class ChoiceError(IndexError, ValueError):
    """The frame numbers asked for are none, or not all of the video: the caller's bug."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a video holds."""

    num_frames: int
    """Frames that decode; counted by decoding where decord is not proven right."""

    height: int
    """Of a frame as players show it, pixels."""

    width: int
    is_salvaged: bool
    """True where the file is damaged and only its sound frames are counted."""

    doubt: str | None
    """Why decord may be wrong for this file; None where it is proven right."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Decoded:
    """The frames of one video that were asked for."""

    frames: UInt8[np.ndarray, "n H W 3"]
    """RGB; one for each of `frame_numbers`."""

    frame_numbers: Int64[np.ndarray, " n"]
    """Strictly ascending."""

    num_frames: int
    """Frames of the video that decode; the numbers were chosen from these."""

    is_salvaged: bool
    """True where the file is damaged; the numbers then count its sound frames."""

    decoder: Decoder
    doubt: str | None = None
    """What is damaged, or why decord may be wrong for this file."""

    def places(self, frame_numbers: ArrayLike) -> Int64[np.ndarray, "..."]:
        """Where in `frames` the frames of these numbers lie; the numbers must be among ours."""
        return np.searchsorted(self.frame_numbers, np.asarray(frame_numbers))


def probe(path: str | PathLike[str]) -> Probe:
    """Count the frames of a video that decode.

    A file that decord is proven right on is counted by its packets, in 1 to 3 ms for ten
    seconds of video (damage inside its frames shows only when they are decoded); any other is
    decoded to its end.

    Raises:
        MissingVideoError: If there is no such file.
        DecodeError: If it is not a video, or no frame of it decodes.
    """
    path = Path(path)
    contents = scan(path)
    num_frames, is_salvaged = contents.num_packets, False
    if contents.doubt is not None:
        counted = decode_pass(path, ())
        num_frames = len(counted.sound())
        is_salvaged = contents.is_cut_off or bool(counted.damaged)
        if num_frames == 0:
            raise _nothing_decodes(path, counted.error)
    return Probe(
        num_frames=num_frames,
        height=contents.height,
        width=contents.width,
        is_salvaged=is_salvaged,
        doubt=contents.doubt,
    )


def read_frames(
    path: str | PathLike[str],
    frame_numbers: Sequence[int | np.integer[Any]] | NDArray[np.integer[Any]],
) -> UInt8[np.ndarray, "n H W 3"]:
    """Read frames of a video by number, RGB, in the order asked for; numbers may repeat.

    Raises:
        MissingVideoError: If there is no such file.
        DecodeError: If it is not a video, or no frame of it decodes.
        ChoiceError: If there are no numbers, or one is negative or beyond the last frame that
            decodes.
    """
    numbers = np.asarray(frame_numbers)
    decoded = decode_video(path, lambda _: numbers)
    frames: UInt8[np.ndarray, "n H W 3"] = decoded.frames[decoded.places(numbers)]
    return frames


def decode_video(
    path: str | PathLike[str], choose: Choose, *, decoder: Preference | None = None
) -> Decoded:
    """Decode the frames that `choose` picks, once each, in one run through the file.

    `choose` is called with the number of frames.  Only when the file turns out to hold
    another number than it announces is it called again, with the number that really decodes.

    Args:
        path: The file.
        choose: From the number of frames to the numbers wanted.
        decoder: Departs from the rule above; decord is never used where it may be wrong.

    Raises:
        MissingVideoError: If there is no such file.
        DecodeError: If it is not a video, or no frame of it decodes.
        ChoiceError: If `choose` picks a frame that does not exist, or none.
    """
    path = Path(path)
    contents = scan(path)
    numbers = _chosen(choose, contents.num_packets, path)
    if contents.doubt is None and _wants_decord(decoder, numbers, contents):
        frames = _read_with_decord(path, numbers, contents)
        if frames is not None:
            return Decoded(
                frames=frames,
                frame_numbers=numbers,
                num_frames=contents.num_packets,
                is_salvaged=False,
                decoder="decord",
            )
    return _decode_in_sequence(path, choose, numbers, contents)


def _decode_in_sequence(
    path: Path, choose: Choose, numbers: Int64[np.ndarray, " n"], contents: Contents
) -> Decoded:
    run = decode_pass(path, numbers.tolist())
    sound = run.sound()
    if len(sound) == 0:
        raise _nothing_decodes(path, run.error)
    if len(sound) != contents.num_packets:
        numbers = _chosen(choose, len(sound), path)
    positions = sound[numbers].tolist()
    missing = set(positions) - run.kept.keys()
    if missing:
        run.kept.update(decode_pass(path, missing, to_the_end=False).kept)
    is_salvaged = contents.is_cut_off or bool(run.damaged)
    return Decoded(
        frames=np.stack([run.kept[position] for position in positions]),
        frame_numbers=numbers,
        num_frames=len(sound),
        is_salvaged=is_salvaged,
        decoder="pyav",
        doubt=_salvage(len(sound), run.error, contents) if is_salvaged else contents.doubt,
    )


def _wants_decord(
    decoder: Preference | None, numbers: Int64[np.ndarray, " n"], contents: Contents
) -> bool:
    """Whether to use decord on a file it is right for: by preference, or because it pays."""
    if decoder in ("decord", "pyav"):
        return decoder == "decord"
    starts = np.array(contents.group_starts)
    groups = np.searchsorted(starts, numbers, side="right") - 1
    is_last = np.append(groups[1:] != groups[:-1], True)  # of its group: decoded up to there
    num_decoded = int((numbers[is_last] - starts[groups[is_last]] + 1).sum())
    return (2 * num_decoded < contents.num_packets) != (decoder == "other")


def _read_with_decord(
    path: Path, numbers: Int64[np.ndarray, " n"], contents: Contents
) -> UInt8[np.ndarray, "n H W 3"] | None:
    """Read frames with decord; None where it refuses the file or counts otherwise than we."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != contents.num_packets:
            return None
        frames: UInt8[np.ndarray, "n H W 3"] = reader.get_batch(numbers).asnumpy()
    # decord asserts what FFmpeg reports, and encodes paths as UTF-8 whatever the system does
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError, UnicodeError):
        return None
    return frames if frames.shape[1:] == (contents.height, contents.width, 3) else None


def _chosen(choose: Choose, num_frames: int, path: Path) -> Int64[np.ndarray, " n"]:
    """The distinct numbers chosen, ascending."""
    numbers = np.unique(np.asarray(choose(num_frames)))
    if len(numbers) == 0 or numbers.dtype.kind not in "iu":
        raise ChoiceError(
            f"video {str(path)!r}: expected at least one frame number as an integer, "
            f"got {len(numbers)} of {numbers.dtype}"
        )
    if numbers[0] < 0 or numbers[-1] >= num_frames:
        wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
        raise ChoiceError(
            f"video {str(path)!r}: expected frame numbers in [0, {num_frames}), got {wrong}"
        )
    return numbers.astype(np.int64)


def _salvage(num_sound: int, error: str | None, contents: Contents) -> str:
    why = error or "the file ends early"
    if num_sound < contents.num_announced:
        return f"{num_sound} of {contents.num_announced} frames decode: {why}"
    return f"{num_sound} frames decode: {why}"


def _nothing_decodes(path: Path, error: str | None) -> DecodeError:
    return DecodeError(f"no frame of video {str(path)!r} decodes: {error or 'it holds none'}")
