"""What a video file says of itself, before more than its first picture is decoded.

Reading all packets costs 1 to 3 ms for a clip of ten seconds, and tells how many frames to
expect, whether the file ends early, and whether decord may be trusted with it.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from bieff.features.errors import InputError

IDENTITY = (1, 0, 0, 1)
"""The display matrix of a video that is shown as it is stored."""


class DecodeError(InputError):
    """A file holds no video that can be decoded."""


class MissingVideoError(DecodeError, FileNotFoundError):
    """There is no file at the path."""


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file for decoding on one thread, reading nothing but this file.

    Raises:
        MissingVideoError: If there is no such file.
        DecodeError: If it is empty, not a video, or cannot be read.
    """
    # an absolute path is never taken for a protocol, as in "concat:a|b"
    name = path.absolute()
    try:
        if name.stat().st_size == 0 and name.is_file():
            raise DecodeError(f"video {str(path)!r} is empty; copy or download it again")
        container = av.open(
            str(name), metadata_errors="replace", options={"protocol_whitelist": "file"}
        )
    except FileNotFoundError:
        raise MissingVideoError(f"no video at {str(path)!r}; check the path") from None
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(f"cannot open video {str(path)!r}: {reason(error)}") from None
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise DecodeError(f"file {str(path)!r} holds no video stream that can be decoded")
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        # every frame names the packet it came from; timestamps cannot be trusted to
        stream.codec_context.copy_opaque = True
        yield container, stream


def reason(error: Exception) -> str:
    """An error of PyAV or the system in a few words, without the path it repeats."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a video file holds, by its packets and its first frame."""

    num_packets: int
    """Packets that should each present one frame; not those an edit list hides."""

    num_announced: int
    """Frames by the file's header, without hidden ones; `num_packets` where it says nothing."""

    is_cut_off: bool
    """True where the file ends before its header says it should."""

    height: int
    """Height of a frame as players show it, pixels."""

    width: int
    group_starts: tuple[int, ...]
    """Numbers of the frames at which decoding can begin, ascending; of use without a doubt."""

    doubt: str | None
    """Why decord may return a wrong frame of this file; None where it is proven right."""


def scan(path: Path) -> Contents:
    """Read all packets of a video and decode its first frame.

    Raises:
        MissingVideoError: If there is no such file.
        DecodeError: If it is not a video, or not one frame of it decodes.
    """
    with open_video(path) as (container, stream):
        packets = _Packets(stream.codec_context)
        # the header of an mp4 counts even what an edit list takes off its end; the index not
        in_mp4 = "mp4" in container.format.name
        num_listed = len(stream.index_entries) if in_mp4 else stream.frames
        try:
            for packet in container.demux(stream):
                packets.add(packet)
        except av.FFmpegError:
            packets.is_complete = False
        packets.finish()
        frame = packets.first_frame
        if frame is None:
            detail = packets.error or "no frame of it decodes"
            raise DecodeError(f"cannot decode video {str(path)!r}: {detail}")
        kind = (container.format.name, stream.codec_context.name)
    num_announced = max(num_listed - packets.num_hidden, 0) or packets.num_shown
    is_cut_off = (
        not packets.is_complete
        or num_announced > packets.num_shown
        or ("matroska" in kind[0] and _matroska_is_cut_off(path))
    )
    matrix = display_matrix(frame)
    turned = matrix[0] == 0
    return Contents(
        num_packets=packets.num_shown,
        num_announced=max(num_announced, packets.num_shown),
        is_cut_off=is_cut_off,
        height=frame.width if turned else frame.height,
        width=frame.height if turned else frame.width,
        group_starts=packets.group_starts(),
        doubt=(
            (f"players turn it by the matrix {matrix}" if matrix != IDENTITY else None)
            or _doubt_format(kind, frame)
            or ("the file ends early" if is_cut_off else None)
            or packets.doubt()
        ),
    )


class _Packets:
    """Gathers what packets say: count, order, keyframes, damage."""

    def __init__(self, codec: VideoCodecContext) -> None:
        self.codec = codec
        self.first_frame: av.VideoFrame | None = None
        self.error: str | None = None
        self.num_shown = 0
        self.num_hidden = 0
        self.is_complete = True
        self._times: list[int | None] = []
        self._keyframes: list[int] = []
        self._are_closed = True

    def add(self, packet: Any) -> None:
        if not packet.size:
            return
        if packet.is_corrupt:
            self.is_complete = False
            return
        self._times.append(packet.pts)
        if packet.is_keyframe:
            self._keyframes.append(len(self._times) - 1)
            self._are_closed = self._are_closed and _is_idr(packet, self.codec)
        if packet.is_discard:
            self.num_hidden += 1
        else:
            self.num_shown += 1
        if self.first_frame is None:
            self._decode(packet)

    def finish(self) -> None:
        if self.first_frame is None:
            self._decode(None)

    def doubt(self) -> str | None:
        """Why decord may misplace frames, by timestamps and keyframes; None: no reason."""
        times = [time for time in self._times if time is not None]
        if len(times) < len(self._times) or len(set(times)) < len(times):
            return "its timestamps do not strictly increase"
        if self.num_hidden or min(times, default=0) < 0:
            return "it begins before time zero (an edit list)"
        if self._keyframes[:1] != [0] or not self._are_closed:
            return "a keyframe depends on what is before it (an open group of pictures)"
        return None

    def group_starts(self) -> tuple[int, ...]:
        if None in self._times:
            return ()
        times = np.array(self._times, dtype=np.int64)
        return tuple(np.searchsorted(np.sort(times), times[self._keyframes]).tolist())

    def _decode(self, packet: Any) -> None:
        try:
            frames = self.codec.decode(packet)
        except av.FFmpegError as error:
            self.error = self.error or reason(error)
            return
        if frames:
            self.first_frame = frames[0]


_H264_SLICE, _H264_IDR = 1, 5


def _is_idr(packet: Any, codec: VideoCodecContext) -> bool:
    """Whether an H.264 keyframe is an IDR picture, after which nothing refers to before it.

    Containers mark recovery points as keyframes too; decord seeks there and returns other
    frames (measured: open groups of pictures of x264).  Other codecs are not asked.
    """
    header = codec.extradata
    if codec.name != "h264" or not header or header[0] != 1 or len(header) < 5:
        return False  # not the length-prefixed form of mp4 and matroska: do not judge
    size = (header[4] & 3) + 1
    data, place = memoryview(packet), 0
    while place + size < len(data):
        kind = data[place + size] & 31
        if kind in (_H264_SLICE, _H264_IDR):
            return kind == _H264_IDR
        place += size + int.from_bytes(data[place : place + size], "big")
    return False


def _doubt_format(kind: tuple[str, str], frame: av.VideoFrame) -> str | None:
    """Why decord may be wrong for a container, codec or pixel format.

    decord 0.6.0 carries FFmpeg 4.1.  Measured on frame-stamped clips: it misplaces frames of
    AVI, MPEG-TS, HEVC and MPEG-4 with B-frames, and interpolates the colours of odd sizes and
    of more than 8 bits otherwise than PyAV; for the formats that pass here they agree in every
    bit.
    """
    container, codec = kind
    if codec != "h264" or not ("mp4" in container or "matroska" in container):
        return f"{codec} in {container.split(',')[0]} is not a format it is exact on"
    if frame.format.name not in ("yuv420p", "yuvj420p") or frame.width % 2 or frame.height % 2:
        return f"{frame.format.name} of {frame.width}x{frame.height} converts to other colours"
    return None


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """How players turn a frame: (a, b, c, d) of x' = a x + c y, y' = b x + d y.

    One of the eight turns and mirrorings by right angles; the identity for any other angle,
    which players show unturned too.
    """
    side_data: Any = frame.side_data  # iterates over data, though its stub says names
    for data in side_data:
        if data.type == SideDataType.DISPLAYMATRIX:
            values = struct.unpack("=5i", bytes(data)[:20])
            a, b, _, c, d = ((value > 0) - (value < 0) for value in values)
            if abs(a) == abs(d) != abs(b) == abs(c):
                return a, b, c, d
    return IDENTITY


def _matroska_is_cut_off(path: Path) -> bool:
    """Whether a matroska file is shorter than its one segment; False where it does not say."""
    with path.open("rb") as file:
        head = file.read(256) + bytes(16)
    place = 4  # behind the identifier of the EBML header
    length, size = _ebml_size(head, place)
    place += length + size
    if head[place : place + 4] != b"\x18\x53\x80\x67":
        return False
    length, size = _ebml_size(head, place + 4)
    is_unknown = size == (1 << 7 * length) - 1
    return not is_unknown and place + 4 + length + size > path.stat().st_size


def _ebml_size(data: Sequence[int], place: int) -> tuple[int, int]:
    """Length and value of the variable-length number at a place."""
    length = 9 - data[place].bit_length()
    value = int.from_bytes(bytes(data[place : place + length]), "big")
    return length, value - (1 << 7 * length)
