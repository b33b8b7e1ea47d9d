"""A second decoder beside the first, for damage that the first one does not notice.

FFmpeg's decoders do not look where the data of a picture end: too early or too late, they show
what came of it.  A twin gets the same packets, changed in a way that tells.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

import av
import av.logging
import numpy as np
from av.video.stream import VideoStream
from jaxtyping import UInt8

from bieff.extract.decode.bitstream import (
    can_begin_at,
    codec_of,
    nal_units,
    pack,
    set_up,
    taller,
    taller_header,
)

_NOISE = bytes.fromhex("5aa7936c") * 8


class Twin(ABC):
    """The second decoder of one stream."""

    def __init__(self, codec: str, header: bytes | None) -> None:
        self._codec, self._header = codec, header
        self._garbled: set[int] = set()

    @abstractmethod
    def take(self, packet: Any, frames: list[av.VideoFrame]) -> None:
        """Decode a packet too.

        Args:
            packet: The next one, numbered in `opaque`; None at the end.
            frames: What the first decoder shows then.
        """

    def garbled(self) -> set[int]:
        """Numbers of the packets that are found to be garbled."""
        return self._garbled


def twins_of(stream: VideoStream) -> list[Twin]:
    """The twins of a stream's decoder, as far as it needs some."""
    codec, header = codec_of(stream), stream.codec_context.extradata
    if codec == "h264":
        return [Taller(codec, header)]
    if codec == "mjpeg":
        return [Lacking(codec, header)]
    if codec == "hevc" or (codec == "vp8" and "libvpx" in av.codecs_available):
        return [Noisy(codec, header), Lacking(codec, header)]
    if codec.startswith(("wmv", "msmpeg4")):
        return [Strict(codec, header, stream)]
    return []


class Taller(Twin):
    """H.264 with rows of blocks more below each picture, of which it must find nothing.

    Where it does, the data last longer than the picture: something in them was misread.
    """

    def __init__(self, codec: str, header: bytes | None) -> None:
        super().__init__(codec, header)
        self._decoder: Any = av.CodecContext.create(codec, "r")
        set_up(self._decoder)
        self._decoder.extradata, self._rows = taller_header(header)
        # it expects them to be missing, and logs any other number of blocks
        options = {"skip_bottom": str(self._rows), "skip_loop_filter": "all"}
        self._decoder.options = self._decoder.options | options

    def take(self, packet: Any, frames: list[av.VideoFrame]) -> None:
        """See `Twin`."""
        if packet is None:
            return
        logs: list[Any]
        with av.logging.Capture() as logs, suppress(av.FFmpegError):
            self._decoder.decode(self._altered(packet))
        if any(text.startswith("concealing") for _, _, text in logs):
            self._garbled.add(packet.opaque.number)

    def _altered(self, packet: Any) -> Any:
        units = list(nal_units(packet, "h264", self._header))
        if all(unit[0] & 31 != 7 for unit in units):
            return packet
        return _like(packet, pack((taller(u, self._rows) for u in units), "h264", self._header))


class Strict(Twin):
    """WMV 1 and 2 and what came before, told to look at how much is left of the data.

    FFmpeg then conceals the whole picture, which the first decoder must not do to a sound one.
    """

    def __init__(self, codec: str, header: bytes | None, stream: VideoStream) -> None:
        super().__init__(codec, header)
        self._decoder = cast("Any", av.CodecContext.create(codec, "r"))
        set_up(self._decoder)
        self._decoder.extradata = header
        self._decoder.width, self._decoder.height = stream.width, stream.height
        self._decoder.options = self._decoder.options | {"err_detect": "crccheck+buffer"}
        self._num_taken = 0

    def take(self, packet: Any, frames: list[av.VideoFrame]) -> None:
        """See `Twin`."""
        if packet is None:
            return
        self._num_taken += 1
        logs: list[Any]
        with av.logging.Capture() as logs, suppress(av.FFmpegError):
            self._decoder.decode(packet)
        if any(text.startswith("discarding") for _, _, text in logs):
            self._garbled.add(packet.opaque.number)

    def garbled(self) -> set[int]:
        """See `Twin`; where more is left of every picture, that is padding."""
        return set() if 1 < self._num_taken == len(self._garbled) else self._garbled


class Noisy(Twin):
    """HEVC or VP8 with noise behind its data, which must show the same.

    hevc   It begins each row of blocks where the slice's header says, the first decoder where
           the row before ended.
    vp8    Another decoder; the noise stands behind the first partition too.
    """

    def __init__(self, codec: str, header: bytes | None) -> None:
        super().__init__(codec, header)
        self._decoder: Any = av.CodecContext.create("libvpx" if codec == "vp8" else codec, "r")
        set_up(self._decoder)
        self._decoder.extradata = header
        if codec == "hevc":
            self._decoder.thread_type, self._decoder.thread_count = "SLICE", 2

    def take(self, packet: Any, frames: list[av.VideoFrame]) -> None:
        """See `Twin`."""
        with av.logging.Capture():
            try:
                altered = packet and _like(packet, self._altered(packet))
                twins = self._decoder.decode(altered)
            except av.FFmpegError:
                twins = []
        if len(twins) != len(frames):
            self._garbled |= {_packet_of(frame) for frame in frames}
        for twin, frame in zip(twins, frames, strict=False):
            if not _are_alike(twin, frame):
                self._garbled.add(_packet_of(frame))

    def _altered(self, packet: Any) -> bytes:
        if self._codec == "hevc":
            units = nal_units(packet, "hevc", self._header)
            return pack(
                (unit + _NOISE * _is_slice(unit) for unit in units), "hevc", self._header
            )
        data = bytes(packet)
        kind = int.from_bytes(data[:3], "little")
        end = (3 if kind & 1 else 10) + (kind >> 5)  # of the first partition
        kind += len(_NOISE) << 5
        return kind.to_bytes(4, "little")[:3] + data[3:end] + _NOISE + data[end:] + _NOISE


class Lacking(Twin):
    """Pictures that refer to no others, without the end of their data: they must differ.

    Where they do not, the data last longer than the picture.
    """

    def __init__(self, codec: str, header: bytes | None) -> None:
        super().__init__(codec, header)
        self._waiting: dict[int, Any] = {}
        """Packets whose frames are still to come."""

        self._num_compared = 0

    def take(self, packet: Any, frames: list[av.VideoFrame]) -> None:
        """See `Twin`."""
        if packet and can_begin_at(packet, self._codec, self._header) is not False:
            self._waiting[packet.opaque.number] = packet
        for frame in frames:
            origin = self._waiting.pop(_packet_of(frame), None)
            if origin is not None:
                self._num_compared += 1
                if all(_are_alike(frame, other) for other in self._shown(origin)):
                    self._garbled.add(_packet_of(frame))

    def garbled(self) -> set[int]:
        """See `Twin`; where every picture can do without its end, that is padding."""
        return set() if 1 < self._num_compared == len(self._garbled) else self._garbled

    def _shown(self, packet: Any) -> Iterator[av.VideoFrame | None]:
        for change in b"\x5a\xa5":
            decoder: Any = av.CodecContext.create(self._codec, "r")
            set_up(decoder)
            decoder.extradata = self._header
            with av.logging.Capture():
                try:
                    altered = _like(packet, self._altered(packet, change))
                    frames = decoder.decode(altered) + decoder.decode(None)
                except av.FFmpegError:
                    frames = []
            yield frames[0] if frames else None

    def _altered(self, packet: Any, change: int) -> bytes:
        if self._codec == "hevc":
            units = list(nal_units(packet, "hevc", self._header))
            last = max(i for i, unit in enumerate(units) if _is_slice(unit))
            units[last] = _other_end(units[last].rstrip(b"\0\3"), change)
            return pack(units, "hevc", self._header)
        data = bytes(packet)
        if self._codec == "vp8":
            return _other_end(data.rstrip(b"\0"), change)
        end = data.rfind(b"\xff\xd9")
        coded = data[: max(end, 0)].rstrip(b"\0\xff")  # a marker may be padded
        return coded[:-8] + data[end:]


def _is_slice(unit: bytes) -> bool:
    return unit[0] >> 1 & 63 < 32


def _other_end(data: bytes, change: int) -> bytes:
    return data[:-_END] + bytes(byte ^ change for byte in data[-_END:])


_END = 6
"""Bytes that no picture can do without, behind which zeros are padding."""


def _like(packet: Any, data: bytes) -> Any:
    altered = av.Packet(data)
    altered.pts, altered.dts = packet.pts, packet.dts
    return altered


def _packet_of(frame: Any) -> int:
    number: int = frame.opaque.number
    return number


def _are_alike(one: av.VideoFrame, other: av.VideoFrame | None) -> bool:
    if other is None:
        return False
    kinds = {(frame.format.name, frame.width, frame.height) for frame in (one, other)}
    width = 1 + (one.format.components[0].bits > 8)  # bytes of a value
    return len(kinds) == 1 and all(
        np.array_equal(_values(a, width), _values(b, width))
        for a, b in zip(one.planes, other.planes, strict=True)
    )


def _values(plane: Any, width: int) -> UInt8[np.ndarray, "H W"]:
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[:, : plane.width * width]
