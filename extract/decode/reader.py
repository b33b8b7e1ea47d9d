"""Frames of a video by number, never a wrong one.

A frame's number is its place in the order in which a player shows the frames, counted from 0
behind any edit list; with a variable frame rate too it is one number a frame.

Files are decoded in sequence with PyAV, which is right for every one, or with decord, which can
begin at any keyframe, where it is proven to return the frame that was asked for and skips at
least half of the file.  Both give the same pixels, bit for bit.  Where decord skips less it is
the slower one (measured, cpu-ms: 32 of 300 frames 123 against 83; 8 of 1,000 frames 73 against
182), and it does not notice a damaged frame that still decodes.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from jaxtyping import Float64, Int64, UInt8
from numpy.typing import ArrayLike, NDArray

from bieff.extract.decode.container import (
    Contents,
    DecodeError,
    display_matrix,
    open_video,
    reason,
    scan,
)

Decoder = Literal["decord", "pyav"]

Preference = Literal["decord", "pyav", "other"]
"""decord where it is right; PyAV always; or, where both are right, not the one of the rule."""

Choose = Callable[[int], ArrayLike]
"""From the number of frames of a video to the numbers wanted, in any order, repeats allowed."""


class ChoiceError(IndexError, ValueError):
    """The frame numbers asked for are none, or not all of the video: the caller's bug."""


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


def _decode_in_sequence(
    path: Path, choose: Choose, numbers: Int64[np.ndarray, " n"], contents: Contents
) -> Decoded:
    run = decode_pass(path, numbers.tolist())
    sound = run.sound()
    if len(sound) == 0:
        detail = run.error or "it holds none"
        raise DecodeError(f"no frame of video {str(path)!r} decodes: {detail}")
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


def _salvage(num_sound: int, error: str | None, contents: Contents) -> str:
    why = error or "the file ends early"
    if num_sound < contents.num_announced:
        return f"{num_sound} of {contents.num_announced} frames decode: {why}"
    return f"{num_sound} frames decode: {why}"


_NEVER = np.iinfo(np.int64).max


@dataclass(slots=True)
class Pass:
    """What one run through a file gave."""

    kept: dict[int, UInt8[np.ndarray, "H W 3"]] = field(default_factory=dict)
    """The frames asked for, RGB as players show them, by position in the order of showing."""

    origins: list[int] = field(default_factory=list)
    """Of each frame in the order of showing, damaged ones too: the packet it came from."""

    keyframes: list[int] = field(default_factory=list)
    """Packets at which decoding can begin."""

    damaged: set[int] = field(default_factory=set)
    """Packets that do not decode, or not fully."""

    error: str | None = None
    """The first thing that went wrong."""

    def note_damage(self, packet: int, error: str) -> None:
        """Remember that a packet is damaged, and the first error's text."""
        self.damaged.add(packet)
        self.error = self.error or error

    def sound(self) -> Int64[np.ndarray, " n"]:
        """Positions of the frames that no damage reaches, ascending.

        Damage reaches from its packet up to the next keyframe, and of the packets behind that
        keyframe those whose frames are shown before it.
        """
        origins = np.asarray(self.origins, dtype=np.int64)
        keyframes = np.asarray(self.keyframes, dtype=np.int64)
        is_hit = np.zeros(len(origins), dtype=bool)
        reach = 0
        for packet in sorted(self.damaged):
            if packet < reach:
                continue
            later = keyframes[keyframes > packet]
            reach = int(later[0]) if len(later) else _NEVER
            is_hit |= (origins >= packet) & (origins < reach)
            for place in np.flatnonzero(origins == reach):
                is_hit[:place] |= origins[:place] > reach
        return np.flatnonzero(~is_hit)


def decode_pass(path: Path, wanted: Collection[int], *, to_the_end: bool = True) -> Pass:
    """Decode a file from its beginning, keeping no more than the wanted frames.

    Args:
        path: The file.
        wanted: Positions in the order of showing, counted from 0.
        to_the_end: False stops behind the last wanted frame; the rest of the result is then
            not complete.

    Raises:
        DecodeError: If the file cannot be opened.
    """
    result = Pass()
    left = set(wanted)
    size: tuple[int, int] | None = None
    with open_video(path) as (container, stream):
        for frame, packet in _frames(container, stream, result):
            position = len(result.origins)
            result.origins.append(packet)
            if frame.is_corrupt:
                result.note_damage(packet, "a frame is damaged")
            size = size or (frame.width, frame.height)
            if position in left:
                left.discard(position)
                result.kept[position] = _to_rgb(frame, size)
                if not left and not to_the_end:
                    break
    return result


def _frames(
    container: InputContainer, stream: VideoStream, result: Pass
) -> Iterator[tuple[av.VideoFrame, int]]:
    """Yield each frame with the number of its packet, in the order of showing."""
    number = 0
    for packet in chain(_packets(container, stream, result), (None,)):
        number = number if packet is None else _number(packet, number)
        try:
            frames = stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            result.note_damage(number, reason(error))
            continue
        for frame in frames:
            yield frame, _number(frame, number)


def _packets(
    container: InputContainer, stream: VideoStream, result: Pass
) -> Iterator["Packet[VideoStream]"]:
    """Yield the whole packets, each numbered in `opaque`, to the end of what can be read."""
    number = -1
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue  # shows nothing, and the decoder would take it for the end
            number += 1
            packet.opaque = number
            if packet.is_keyframe:
                result.keyframes.append(number)
            if packet.is_corrupt:
                result.note_damage(number, "the file ends within a frame")
            else:
                yield packet
    except av.FFmpegError as error:
        result.note_damage(number + 1, reason(error))


def _number(numbered: "Packet[VideoStream] | av.VideoFrame", default: int) -> int:
    return numbered.opaque if isinstance(numbered.opaque, int) else default


def _to_rgb(frame: av.VideoFrame, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Convert a frame to RGB by the matrix and range it states, and turn it as players do.

    Where a file does not state its matrix it is taken for BT.601 of limited range, whatever
    its size, as FFmpeg, decord and OpenCV do.  Pixels stay as stored: a pixel's aspect
    ratio is not applied.

    Args:
        frame: The frame as decoded.
        size: Width and height of the video's first frame; later ones are scaled to it.
    """
    stored = frame.to_ndarray(format="rgb24", width=size[0], height=size[1], threads=1)
    a, b, c, d = display_matrix(frame)
    shown = stored if a else stored.transpose(1, 0, 2)
    right, down = (a, d) if a else (c, b)
    return shown[::down, ::right]


def frame_seconds(
    path: Path, frame_numbers: Int64[np.ndarray, "*shape"], num_frames: int
) -> Float64[np.ndarray, "*shape"] | None:
    """Seconds from the first frame to those of these numbers; None where nobody can say.

    By the packets' timestamps where there is one for every frame, so that a variable frame
    rate is right too; otherwise by the average rate (AVI has no timestamps, and in a damaged
    file they do not belong to the frames that decode).

    Args:
        path: A video that was decoded just now.
        frame_numbers: In [0, num_frames).
        num_frames: Frames of the video that decode.
    """
    stamps: list[int | None] = []
    try:
        with open_video(path) as (container, stream):
            rate, unit = stream.average_rate or stream.guessed_rate, stream.time_base
            try:
                for packet in container.demux(stream):
                    if packet.size and not packet.is_discard:
                        stamps.append(packet.pts)
            except av.FFmpegError:
                stamps = []
    except DecodeError:
        return None
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) == len(stamps) == num_frames and unit is not None:
        shown = np.sort(np.array(known, dtype=np.int64))
        seconds: Float64[np.ndarray, "*shape"] = (shown - shown[0])[frame_numbers] * float(unit)
        return seconds
    return frame_numbers / float(rate) if rate else None
