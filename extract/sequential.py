"""Exact decoding: every frame in the order of showing, counted one by one, with PyAV.

Right for every family of files, whatever their timestamps say, and the only way to learn how
many frames really decode.  A damaged file yields its sound frames: a decoder papers over damage
and hands out wrong pictures up to the next keyframe, so what lies between is left out.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from jaxtyping import Int64, UInt8

from bieff.extract.container import display_matrix, open_video, reason

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
