"""A video file by what it says of itself, before more than its first picture is decoded.

Reading all packets costs 1 to 3 ms for a clip of ten seconds, and tells how many frames to
expect, and whether the file ends early or fails its own checksums.
"""

import mmap
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.logging
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from bieff.extract.decode.bitstream import MOST_PIXELS, codec_of, set_up
from bieff.features.errors import InputError

IDENTITY = (1, 0, 0, 1)
"""The display matrix of a video that is shown as it is stored."""

_MOST_SLENDER = 16
"""Longest side of a picture, in shorter ones: what a view cuts out of it is made that size."""


_STILLS = {"mjpeg", "png", "bmp", "webp", "gif"}


class DecodeError(InputError):
    """A file holds no video that can be decoded."""


class MissingVideoError(DecodeError, FileNotFoundError):
    """There is no file at the path."""


class _Log:
    """Has PyAV pass on all that FFmpeg logs, as long as a video is open in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_open = 0
        self._before: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._num_open == 0:
                self._before = av.logging.get_level()
                av.logging.set_level(av.logging.DEBUG)
                av.logging.set_skip_repeated(False)
            self._num_open += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_open -= 1
            if self._num_open == 0:
                av.logging.set_level(self._before)
                av.logging.set_skip_repeated(True)


_LOG = _Log()


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and the stream of it that players show, reading nothing but this file.

    Of several video streams that is the one marked as default; a cover picture is none.

    Raises:
        MissingVideoError: If there is no such file.
        DecodeError: If it is empty, not a video, or cannot be read.
    """
    # an absolute path is never taken for a protocol, as in "concat:a|b"
    name = path.absolute()
    with ExitStack() as opened:
        opened.enter_context(_LOG)
        try:
            if name.stat().st_size == 0 and name.is_file():
                raise DecodeError(f"video {str(path)!r} is empty; copy or download it again")
            options = {"protocol_whitelist": "file", "max_pixels": str(MOST_PIXELS)}
            container = av.open(str(name), metadata_errors="replace", options=options)
        except FileNotFoundError:
            todo = "rename it to UTF-8" if "\\x" in name.name else "check the path"
            raise MissingVideoError(f"no video at {str(path)!r}; {todo}") from None
        except (av.FFmpegError, OSError) as error:
            raise DecodeError(f"cannot open video {str(path)!r}: {reason(error)}") from None
        opened.enter_context(container)
        streams: list[Any] = [container.streams.best("video"), *container.streams.video]
        moving = [stream for stream in streams if _is_moving(stream)]
        if not moving:
            raise DecodeError(f"file {str(path)!r} holds no video stream that can be decoded")
        yield container, moving[0]


def _is_moving(stream: Any) -> bool:
    """True of a stream that can be decoded and is no cover picture."""
    still = Disposition.attached_pic | Disposition.timed_thumbnails
    has_decoder = isinstance(stream, VideoStream) and stream.codec_context is not None
    return has_decoder and not stream.disposition & still


def reason(error: Exception | str) -> str:
    """An error of PyAV or the system in a few words, without the path it repeats."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    printable = "".join(c if c.isprintable() else " " for c in str(text))
    return " ".join(printable.split())[:200]


ENDS_EARLY = "the file ends early"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """Contents of a video file, by its packets and its first frame."""

    num_packets: int
    """Packets that should each present one frame; not those an edit list hides."""

    num_announced: int
    """Frames by the file's header, without hidden ones; `num_packets` where it says nothing."""

    fault: str | None
    """What is wrong with the file as such, as that it ends before its header says."""

    matrix: tuple[int, int, int, int]
    """Turn that players give the first frame, see `display_matrix`."""

    height: int
    """Height of the first frame as players show it, pixels."""

    width: int
    bad_bytes: tuple[tuple[int, int], ...]
    """Parts of the file, begin and end, of wrong checksum; none between them: of wrong size."""


def scan(path: Path) -> Contents:
    """Read all packets of a video and decode its first frame.

    Raises:
        MissingVideoError: If there is no such file.
        DecodeError: If it is not a video, its pictures are too slender, or none decodes.
    """
    frame, error, may_be_cover = None, None, False
    num_shown, num_hidden, ends_early = 0, 0, False
    times: list[tuple[int | None, int | None]] = []
    places: list[int | None] = []
    logs: list[Any]
    with av.logging.Capture() as logs, open_video(path) as (container, stream):
        fault = _fault_of_tables(logs, stream.index)
        decoder, kind = stream.codec_context, container.format.name
        set_up(decoder)
        is_sized = decoder.width > 0
        # the header of an mp4 counts even what an edit list takes off its end, that of an AVI
        # empty chunks, and is often wrong; their indexes do not
        has_index = "mp4" in kind or kind == "avi"
        num_listed = len(stream.index_entries) if has_index else stream.frames
        try:
            for packet in _with_flush(container.demux(stream)):
                if packet is not None:
                    times.append((packet.pts, packet.dts))
                    places.append(packet.pos)
                    ends_early = ends_early or packet.is_corrupt
                    num_hidden += packet.is_discard
                    num_shown += not packet.is_discard and not packet.is_corrupt
                if frame is None:
                    frame, error = _first_frame(decoder, packet, error)
        except av.FFmpegError:
            ends_early = True
        num_counted = stream.frames
        index = stream.index
        may_be_cover = bool(container.streams.audio) and codec_of(stream) in _STILLS
    if num_shown == 1 and may_be_cover:
        raise DecodeError(f"file {str(path)!r} holds no video stream but a cover picture")
    if frame is None or not num_shown:
        detail = error or "no frame of it decodes"
        if not is_sized:
            detail = f"its pictures cannot be read, or have more than {MOST_PIXELS:,} pixels"
        raise DecodeError(f"cannot decode video {str(path)!r}: {detail}")
    _refuse_slender(path, frame.width, frame.height)
    checks = _Matroska(path) if "matroska" in kind else None
    skipped: list[int] = []
    if checks is not None:
        ends_early = ends_early or checks.is_cut_off
    elif kind == "avi":
        skipped = _skipped_by_index(path, index, places)
        if _riff_is_cut_off(path):
            ends_early, num_listed = True, num_counted
    elif kind == "mpegts":
        fault = fault or _fault_of_transport(path)
    num_announced = max(num_listed - num_hidden, num_shown)
    if ends_early or num_announced > num_shown:
        fault = ENDS_EARLY
    elif num_hidden and not fault and not _are_times_sound(times):
        fault = "its table of times is damaged"
    matrix = display_matrix(frame)
    turned = matrix[0] == 0
    return Contents(
        num_packets=num_shown,
        num_announced=num_announced,
        fault=fault,
        matrix=matrix,
        height=frame.width if turned else frame.height,
        width=frame.height if turned else frame.width,
        bad_bytes=tuple(checks.wrong if checks else ((place, place) for place in skipped)),
    )


def _fault_of_tables(logs: list[Any], stream: int) -> str | None:
    """What FFmpeg found wrong with the tables of an mp4 when it opened it."""
    for level, name, text in logs:
        is_odd = "is invalid" in text or text.startswith(f"stream {stream}, timescale not set")
        if name.startswith("mov") and (level <= av.logging.ERROR or is_odd):
            return reason(text)
    return None


_FAR = 32
"""Frames that none is shown after its turn; 16 are kept at most."""


def _are_times_sound(times: list[tuple[int | None, int | None]]) -> bool:
    """False if frames are hidden by damage of the table of times, not by an edit list.

    Args:
        times: When each packet is shown, and when it is decoded.
    """
    shown = sorted(pts for pts, _ in times if pts is not None)
    decoded = [dts for _, dts in times if dts is not None]
    if not len(shown) == len(decoded) == len(times) > 1:
        return True
    steps = {b - a for a, b in pairwise(decoded)}
    if len(steps) == 1:  # then frames are shown in the same steps
        return len({pts - dts for pts, dts in zip(shown, decoded, strict=True)}) == 1
    most = _FAR * (decoded[-1] - decoded[0]) / (len(decoded) - 1)
    return all(
        abs(pts - dts) <= most for pts, dts in times if pts is not None and dts is not None
    )


def _with_flush(packets: Iterator[Any]) -> Iterator[Any]:
    """The packets that hold something, then None; empty ones would read as the end."""
    yield from (packet for packet in packets if packet.size)
    yield None


def _first_frame(
    decoder: VideoCodecContext, packet: Any, error: str | None
) -> tuple[av.VideoFrame | None, str | None]:
    try:
        frames = decoder.decode(packet)
    except av.FFmpegError as failure:
        return None, error or reason(failure)
    return (frames[0] if frames else None), error


def _refuse_slender(path: Path, width: int, height: int) -> None:
    if max(width, height) > _MOST_SLENDER * min(width, height):
        raise DecodeError(
            f"video {str(path)!r} has pictures of {width} x {height}; expected one side to be "
            f"at most {_MOST_SLENDER} times the other"
        )


def display_matrix(
    frame: av.VideoFrame, before: tuple[int, int, int, int] = IDENTITY
) -> tuple[int, int, int, int]:
    """Turn that players give a frame: (a, b, c, d) of x' = a x + c y, y' = b x + d y.

    One of the eight turns and mirrorings by right angles; the identity for any other angle,
    which players show unturned too.

    Args:
        frame: The frame as decoded.
        before: Turn of the one before: a message in H.264 is of all pictures up to the next.
    """
    # not `frame.side_data`: the frame would keep that, and that the frame, until both are
    # collected as garbage, some videos later
    container: Any = SideDataContainer
    for data in container(frame):
        if data.type == SideDataType.DISPLAYMATRIX:
            values = struct.unpack("=5i", bytes(data)[:20])
            a, b, _, c, d = ((value > 0) - (value < 0) for value in values)
            return (a, b, c, d) if abs(a) == abs(d) != abs(b) == abs(c) else IDENTITY
    return before


def _name_unknown(kind: type[Any], value: object) -> Any:
    member = object.__new__(kind)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member


# PyAV 18 ends in a ValueError at side data it has no name for: Exif, LCEVC, spatial video
SideDataType._missing_ = classmethod(_name_unknown)  # type: ignore[assignment]


def _riff_is_cut_off(path: Path) -> bool:
    """True if an AVI is shorter than its chunks say; one of size 0 was never finished."""
    end = path.stat().st_size
    place = 0
    with path.open("rb") as file:
        while place < end:
            file.seek(place)
            head = file.read(8)
            size = int.from_bytes(head[4:], "little")
            if head[:4] != b"RIFF" or not size:
                return False
            place += 8 + size + size % 2
    return place > end + 1


def _skipped_by_index(path: Path, stream: int, places: Sequence[int | None]) -> list[int]:
    """Where an AVI has chunks of a stream that its index leaves out, or has out of their turn.

    Args:
        path: The file.
        stream: Number of the stream.
        places: Byte at which each of its packets was found.
    """
    known = [place for place in places if place is not None]
    wrong = [later for before, later in pairwise(known) if later <= before]
    listed, name, place = set(known), b"%02d" % stream, 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while known and place + 12 <= len(data):
            kind, size, form = struct.unpack_from("<4sI4s", data, place)
            if kind[:2] == name and size and place + 8 not in listed:
                wrong.append(place)
            if kind == b"RIFF" or (kind == b"LIST" and form in (b"movi", b"rec ")):
                place += 12
            elif kind.isalnum():
                place += 8 + size + size % 2
            else:
                break  # from here on the index alone tells
    return sorted(wrong)


def _fault_of_transport(path: Path) -> str | None:
    """What is wrong with a transport stream, whose packets have one size and begin alike."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for size, first in ((188, 0), (192, 4), (204, 0)):
            begins = data[first::size]
            if begins.count(b"G") == len(begins):
                return ENDS_EARLY if len(data) % size else None
    return "packets of the transport stream are damaged"


_SEGMENT = 0x18538067
_PARTS = {
    0x114D9B74,  # where the others are
    0x1549A966,  # information
    0x1654AE6B,  # tracks
    0x1F43B675,  # a cluster
    0x1C53BB6B,  # cues
    0x1941A469,  # attachments
    0x1043A770,  # chapters
    0x1254C367,  # tags
    0xEC,  # nothing
    0xBF,  # a checksum
}
"""What a segment consists of (RFC 9559, 5.1)."""

_CHECKSUM = b"\xbf\x84"  # of four bytes; the first element of what it is over


class _Matroska:
    """Damage of a file: shorter than its one segment, or parts of wrong size or checksum."""

    def __init__(self, path: Path) -> None:
        self.is_cut_off = False
        self.wrong: list[tuple[int, int]] = []
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            _, _, end = _element(data, 0)
            name, place, end = _element(data, end)
            if name != _SEGMENT:
                return
            self.is_cut_off = end > len(data)
            while place < min(end, len(data)):
                begin = place
                name, inside, place = _element(data, begin)
                if name not in _PARTS or place > end:
                    self.wrong.append((begin, begin))
                if name not in _PARTS or place > min(end, len(data)):
                    break
                is_checked = data[inside : inside + 2] == _CHECKSUM
                if is_checked and not _holds(data, inside + 2, place):
                    self.wrong.append((begin, place))


def _holds(data: mmap.mmap, place: int, end: int) -> bool:
    """True if the checksum at a place is that of what follows it."""
    with memoryview(data) as view, view[place + 4 : end] as content:
        return zlib.crc32(content) == int.from_bytes(view[place : place + 4], "little")


def _element(data: mmap.mmap, place: int) -> tuple[int, int, int]:
    """Name of the element at a place, and where its content begins and ends.

    One of unknown size, as live recordings have, reaches to the end of the file.
    """
    head = data[place : place + 16].ljust(16, b"\xff")
    length = 9 - head[0].bit_length()
    name = int.from_bytes(head[:length], "big")
    width = 9 - head[length].bit_length() if length < 9 else 9
    if length > 4 or width > 8:
        return 0, place, place
    size = int.from_bytes(head[length : length + width], "big") - (1 << 7 * width)
    begin = place + length + width
    is_unknown = size == (1 << 7 * width) - 1
    return name, begin, len(data) if is_unknown else begin + size
