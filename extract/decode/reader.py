"""Frames of a video by number, never a wrong one.

A frame's number is its place in the order in which a player shows the frames, counted from 0
behind any edit list; with a variable frame rate too it is one number a frame.

Files are decoded in sequence with PyAV, to the end, whichever frames are asked for: damage is
then found, and found alike, whatever is wanted.  decord stands by for a second attempt.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Float64, Int64, UInt8
from numpy.typing import ArrayLike, NDArray

from bieff.extract.decode.bitstream import (
    can_begin_at,
    codec_of,
    is_overwritten,
    open_decoder,
)
from bieff.extract.decode.container import (
    Contents,
    DecodeError,
    display_matrix,
    open_video,
    reason,
    scan,
)
from bieff.extract.decode.second import read_with_decord
from bieff.extract.decode.twin import twins_of

Decoder = Literal["decord", "pyav"]

Preference = Literal["decord", "pyav", "other"]
"""decord where it is right; PyAV always, as without a preference; "other" is decord again."""

Choose = Callable[[int], ArrayLike]
"""Number of frames of a video -> the numbers wanted, in any order, repeats allowed."""


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
    damage: str | None = None
    """Damage in words; None where there is none."""

    times: Float64[np.ndarray, " n"] | None = None
    """Seconds from the first frame of the video to each of `frames`; None: nobody can say."""

    first_frame: int = 0
    """Frames of the video before those counted: of a part of it, see `segments`."""

    def places(self, frame_numbers: ArrayLike) -> Int64[np.ndarray, "..."]:
        """Places in `frames` of the frames of these numbers, which must be among ours."""
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
        decoder: decord is never used where it may be wrong.

    Raises:
        MissingVideoError: If there is no such file.
        DecodeError: If it is not a video, or no frame of it decodes.
        ChoiceError: If `choose` picks a frame that does not exist, or none.
    """
    path = Path(path)
    contents = scan(path)
    numbers = _chosen(choose, contents.num_packets, path)
    if decoder in ("decord", "other"):
        frames = read_with_decord(path, numbers, contents)
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


def _decode_in_sequence(
    path: Path, choose: Choose, numbers: Int64[np.ndarray, " n"], contents: Contents
) -> Decoded:
    run = decode_pass(path, numbers.tolist(), contents)
    sound = run.sound()
    if len(sound) == 0:
        raise DecodeError(
            f"no frame of video {str(path)!r} decodes: {run.why or 'it holds none'}"
        )
    if len(sound) != contents.num_packets:
        numbers = _chosen(choose, len(sound), path)
    positions = sound[numbers].tolist()
    missing = set(positions) - run.kept.keys()
    if missing:
        run.kept.update(decode_pass(path, missing, contents, again=True).kept)
    frames = np.empty((len(positions), *run.kept[positions[0]].shape), np.uint8)
    for i, position in enumerate(positions):
        frames[i] = run.kept.pop(position)  # never twice in memory
    is_salvaged = bool(contents.fault or run.damaged or contents.bad_bytes)
    return Decoded(
        frames=frames,
        frame_numbers=numbers,
        num_frames=len(sound),
        is_salvaged=is_salvaged,
        decoder="pyav",
        damage=_describe(len(sound), run.why, contents) if is_salvaged else None,
        times=run.seconds(numbers, len(sound)),
    )


def _describe(num_sound: int, why: str | None, contents: Contents) -> str:
    why = why or contents.fault or _WRONG
    if num_sound < contents.num_announced:
        return f"{num_sound} of {contents.num_announced} frames decode: {why}"
    return f"{num_sound} frames decode: {why}"


_NEVER = np.iinfo(np.int64).max
_WRONG = "a size or checksum in the file is wrong"


@dataclass(frozen=True, slots=True)
class _Packet:
    """A packet as it is remembered, and named by the frames that come from it.

    PyAV tells what is hung on a packet by its identity, so it must not be a small number.
    """

    number: int
    place: int
    """Byte of the file at which it begins; -1: unknown."""

    size: int
    stamp: int | None
    """When it is shown, in units of the stream."""

    is_shown: bool
    """False where an edit list hides it."""


@dataclass(slots=True)
class Pass:
    """Frames and findings of one run through a file."""

    kept: dict[int, UInt8[np.ndarray, "H W 3"]] = field(default_factory=dict)
    """The frames asked for, RGB as players show them, by position in the order of showing."""

    origins: list[int] = field(default_factory=list)
    """Packet that each frame came from, in the order of showing, damaged ones too."""

    packets: list[_Packet] = field(default_factory=list)
    keyframes: set[int] = field(default_factory=set)
    """Packets at which decoding can begin."""

    damaged: set[int] = field(default_factory=set)
    """Packets that do not decode, or not fully."""

    garbled: set[int] = field(default_factory=set)
    """Packets whose data are misread, by the decoder's twins."""

    error: str | None = None
    """The first thing that was refused."""

    hint: str | None = None
    """The first damage of which the decoder made something."""

    unit: Fraction | None = None
    rate: Fraction | None = None
    is_interlaced: bool = False

    @property
    def why(self) -> str | None:
        """The reason to tell."""
        return self.error or self.hint

    def note_error(self, packet: int, error: Exception) -> None:
        """Remember that a packet is refused."""
        self.damaged.add(packet)
        self.error = self.error or reason(error)

    def note_damage(self, packet: int, hint: str) -> None:
        """Remember that a packet is damaged, whatever was made of it."""
        self.damaged.add(packet)
        self.hint = self.hint or reason(hint)

    def sound(self) -> Int64[np.ndarray, " n"]:
        """Positions of the frames that no damage reaches, ascending.

        Damage reaches from its packet up to the next keyframe, and of the packets behind that
        keyframe those whose frames are shown before it.
        """
        origins = np.asarray(self.origins, dtype=np.int64)
        keyframes = np.array(sorted(self.keyframes), dtype=np.int64)
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

    def seconds(
        self, frame_numbers: Int64[np.ndarray, " n"], num_frames: int
    ) -> Float64[np.ndarray, " n"] | None:
        """Seconds from the first frame to those of these numbers; None where nobody can say.

        By the packets' timestamps where there is one for every frame, so that a variable frame
        rate is right too; otherwise by the average rate (in a damaged file the stamps do not
        belong to the frames that decode).
        """
        stamps = [packet.stamp for packet in self.packets if packet.is_shown]
        known = sorted(stamp for stamp in stamps if stamp is not None)
        if len(known) == len(stamps) == num_frames and self.unit is not None:
            ticks = np.array(known, dtype=np.int64) - known[0]
            seconds: Float64[np.ndarray, " n"] = ticks[frame_numbers] * float(self.unit)
            return seconds
        return frame_numbers / float(self.rate) if self.rate else None


def decode_pass(
    path: Path, wanted: Collection[int], contents: Contents, *, again: bool = False
) -> Pass:
    """Decode a file from its beginning, keeping no more than the wanted frames.

    Args:
        path: The file.
        wanted: Positions in the order of showing, counted from 0.
        contents: Of the file.
        again: Stop behind the last wanted frame and look for no damage; only the wanted frames
            of the result are of use then.

    Raises:
        DecodeError: If the file cannot be opened, or its colours cannot be converted.
    """
    result = Pass()
    left = set(wanted)
    size = _bounded(contents.height, contents.width)
    reformatter = VideoReformatter()
    with av.logging.Capture(), open_video(path) as (container, stream):
        result.unit, result.rate = stream.time_base, stream.average_rate or stream.guessed_rate
        matrix = contents.matrix  # of all frames in VP9, whose decoder is not told
        for frame, packet in _frames(container, stream, result, is_watched=not again):
            position = len(result.origins)
            result.origins.append(packet)
            result.is_interlaced = result.is_interlaced or frame.interlaced_frame
            matrix = display_matrix(frame, matrix)
            if position in left:
                left.discard(position)
                result.kept[position] = _to_rgb(frame, size, path, reformatter, matrix)
                if again and not left:
                    return result
        _judge(result, codec_of(stream), contents.bad_bytes)
    return result


_TELL_KEYFRAMES = {"mpeg4", "mpeg2video", "mpeg1video", "av1", "flv1", "h263"}
"""Codecs whose decoders are better believed than their containers."""


def _frames(
    container: InputContainer,
    stream: VideoStream,
    result: Pass,
    *,
    is_watched: bool = True,
    only: Callable[[Iterator[Any]], Iterator[Any]] | None = None,
) -> Iterator[tuple[av.VideoFrame, int]]:
    """Yield each frame with the number of its packet, in the order of showing.

    With `is_watched` the decoder's twins look for damage.  With `only` it decodes what that
    lets through, and begins again behind every None.
    """
    decoder, codec, header = (
        open_decoder(stream),
        codec_of(stream),
        stream.codec_context.extradata,
    )
    twins = twins_of(stream) if is_watched else []
    before = result.garbled
    number = -1
    packets = _packets(container, stream, result)
    for packet in packets if only is None else only(packets):
        with _listening(result, number if packet is None else packet.opaque.number):
            if packet is not None:
                number = packet.opaque.number
                can_begin = can_begin_at(packet, codec, header)
                if can_begin is None and codec not in _TELL_KEYFRAMES:
                    can_begin = packet.is_keyframe
                if can_begin:
                    result.keyframes.add(number)
                if codec in ("h264", "hevc") and is_overwritten(packet, codec, header):
                    result.note_damage(number, "a picture is garbled")
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError as error:
                frames = []
                result.note_error(number, error)
                if codec == "vp9" and number:  # it may be the one before
                    result.note_error(number - 1, error)
            for twin in twins:
                twin.take(packet, frames)
            result.garbled = before.union(*(twin.garbled() for twin in twins))
        for frame in frames:
            origin = frame.opaque.number if isinstance(frame.opaque, _Packet) else number
            if frame.key_frame and not result.origins and codec == "h264":
                result.keyframes.add(origin)  # a recovery point will do to begin with
            if frame.is_corrupt:
                result.note_damage(origin, "a picture is damaged")
            if frame.key_frame and codec in _TELL_KEYFRAMES:
                result.keyframes.add(origin)
            yield frame, origin
        if packet is None and only is not None:
            decoder.flush_buffers()
            twins, before = twins_of(stream) if is_watched else [], result.garbled


def _packets(container: InputContainer, stream: VideoStream, result: Pass) -> Iterator[Any]:
    """Yield the whole packets, each with a `_Packet` hung on, and None where they end."""
    packets = container.demux(stream)
    while True:
        number = len(result.packets)
        with _listening(result, max(number - 1, 0)):
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                result.note_error(number, error)
                break
        if packet is None:
            break
        if not packet.size:
            continue  # shows nothing, and the decoder would take it for the end
        place = -1 if packet.pos is None else packet.pos
        packet.opaque = _Packet(number, place, packet.size, packet.pts, not packet.is_discard)
        result.packets.append(packet.opaque)
        if packet.is_discard and packet.is_keyframe:
            result.keyframes.add(number)  # no frame of it will tell
        if packet.is_corrupt:
            result.note_damage(number, "the file ends within a frame")
        else:
            yield packet
    yield None


_HARMLESS = ("SEI", "mmco", "VUI", "SAR", "ICC", "Exif")
"""Words of FFmpeg's errors that pictures do not suffer from."""

_GAP = "Frame num gap"  # of H.264: a reference picture is missing
_TELLING = ("concealing", "bytestream overread", _GAP)
"""Beginnings of lesser messages whose pictures do suffer."""


@contextmanager
def _listening(result: Pass, packet: int) -> Iterator[None]:
    """Take what FFmpeg logs meanwhile for damage of a packet."""
    logs: list[Any]
    with av.logging.Capture() as logs:
        yield
    for level, _, text in logs:
        if packet == 0 and text.startswith(_GAP):
            continue  # before the first packet everything is missing
        if text.startswith(_TELLING):
            result.note_damage(packet, "a picture is damaged, or one before it is missing")
        elif level <= av.logging.ERROR and not any(word in text for word in _HARMLESS):
            result.note_damage(packet, text)


_SHOW_EACH = {"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "png"}
"""Codecs of whose packets each shows a frame, but for second fields and skipped frames."""

_SKIPPED_BYTES = 16


def _judge(result: Pass, codec: str, bad_bytes: Sequence[tuple[int, int]]) -> None:
    """Note the damage that shows only at the end."""
    for number in sorted(result.garbled):
        result.note_damage(number, "a picture is garbled")
    if codec != "h264" and result.packets and 0 not in result.keyframes:
        result.note_damage(0, "it begins between keyframes")
    if result.origins:
        _judge_missing(result, codec)
    for begin, end in bad_bytes:
        inside = _inside(result, begin, end)
        if not inside & result.damaged:
            for number in inside:
                result.note_damage(number, _WRONG)


def _inside(result: Pass, begin: int, end: int) -> set[int]:
    """Packets of some bytes of the file; of no bytes, the first one behind them."""
    if begin == end:  # what stood there is not read
        behind = [packet.number for packet in result.packets if packet.place >= end]
        return set(behind[:1])
    return {packet.number for packet in result.packets if begin <= packet.place < end}


def _judge_missing(result: Pass, codec: str) -> None:
    first = result.packets[result.origins[0]]
    if codec == "h264" and min(result.damaged, default=_NEVER) > first.number:
        result.keyframes.add(first.number)  # FFmpeg shows nothing until it has healed
    if codec not in _SHOW_EACH or result.is_interlaced:
        return
    missing = {p.number for p in result.packets if p.is_shown} - set(result.origins)
    for packet in (result.packets[number] for number in sorted(missing)):
        begin, stamp = first.stamp, packet.stamp
        comes_first = begin is not None and stamp is not None and stamp < begin
        if comes_first and packet.number > first.number:
            result.damaged.discard(packet.number)  # it refers to what is before the file
        elif packet.size > _SKIPPED_BYTES:
            result.note_damage(packet.number, "a frame is missing")


_MOST_PIXELS = 2**21
"""Pixels of the largest frame that is handed on as it is: 1920 x 1088 and a little more."""


def _bounded(height: int, width: int) -> tuple[int, int]:
    """Height and width of the frames that are handed on; large ones are halved at least."""
    if height * width <= _MOST_PIXELS:
        return height, width
    shrink = (_MOST_PIXELS / 2 / (height * width)) ** 0.5
    return max(round(height * shrink), 1), max(round(width * shrink), 1)


def _to_rgb(
    frame: av.VideoFrame,
    size: tuple[int, int],
    path: Path,
    reformatter: VideoReformatter,
    matrix: tuple[int, int, int, int],
) -> UInt8[np.ndarray, "H W 3"]:
    """Convert a frame to RGB by the matrix and range it states, and turn it as players do.

    Where a file does not state its matrix it is taken for BT.601 of limited range, whatever
    its size, as FFmpeg, decord and OpenCV do.  Pixels stay as stored: a pixel's aspect
    ratio is not applied.

    Args:
        frame: The frame as decoded.
        size: Height and width of what comes back; a frame of another size is scaled to it.
        path: The file, for the error.
        reformatter: The same for all frames, whose tables it keeps.
        matrix: How to turn it, see `display_matrix`.
    """
    a, b, c, d = matrix
    height, width = size if a else size[::-1]
    is_smaller = height * width < frame.height * frame.width
    try:
        stored = reformatter.reformat(
            frame,
            format="rgb24",
            width=width,
            height=height,
            interpolation="AREA" if is_smaller else None,
            threads=1,
        ).to_ndarray()
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(
            f"cannot convert the colours of video {str(path)!r} (matrix {frame.colorspace}): "
            f"{reason(error)}"
        ) from None
    shown = stored if a else stored.transpose(1, 0, 2)
    right, down = (a, d) if a else (c, b)
    return shown[::down, ::right]
