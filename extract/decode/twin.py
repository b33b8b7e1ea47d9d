"""A second decoder beside the first, for damage that the first one does not notice.

FFmpeg's decoders do not look where the data of a picture end: too early or too late, they show
what came of it.  The twin is given each packet changed in a way that tells.  H.264 has none: it
finds nearly all damage by itself, and is what most videos are in.
"""

from typing import Any

import av
import av.logging
import numpy as np
from av.video.stream import VideoStream
from jaxtyping import UInt8

from bieff.extract.decode.bitstream import codec_of, nal_units, prefix_size, set_up

_DECODERS = {"hevc": "hevc", "vp8": "libvpx", "mjpeg": "mjpeg"}
_NOISE = bytes.fromhex("5aa7936c") * 8


class Twin:
    """The second decoder of one stream.

    hevc   It begins each row of blocks where the slice's header says, the first decoder where
           the row before ended; behind the slice it reads noise, the first one zeros.
    vp8    Another decoder, which reads noise behind the data.
    mjpeg  It lacks the last bytes, and so must show something else.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._codec = codec_of(stream)
        self._header = stream.codec_context.extradata
        decoder: Any = av.CodecContext.create(_DECODERS[self._codec], "r")
        set_up(decoder)
        decoder.extradata = self._header
        if self._codec == "hevc":
            decoder.thread_type, decoder.thread_count = "SLICE", 2
        self._decoder = decoder

    @classmethod
    def of(cls, stream: VideoStream) -> "Twin | None":
        """The twin of a stream's decoder, if it needs one."""
        name = _DECODERS.get(codec_of(stream))
        return cls(stream) if name in av.codecs_available else None

    def garbled(self, packet: Any, frames: list[av.VideoFrame]) -> set[int]:
        """Numbers of the packets that are found to be garbled.

        Args:
            packet: The next one, numbered in `opaque`; None at the end.
            frames: What the first decoder shows then.
        """
        with av.logging.Capture():
            try:
                twins = self._decoder.decode(None if packet is None else self._altered(packet))
            except av.FFmpegError:
                twins = []
        should_differ = self._codec == "mjpeg"
        if len(twins) != len(frames):
            return set() if should_differ else {_packet_of(frame) for frame in frames}
        pairs = zip(twins, frames, strict=True)
        return {_packet_of(b) for a, b in pairs if _are_alike(a, b) == should_differ}

    def _altered(self, packet: Any) -> Any:
        data = bytes(packet)
        if self._codec == "mjpeg":
            end = data.rfind(b"\xff\xd9")
            coded = data[: max(end, 0)].rstrip(b"\0\xff")  # a marker may be padded
            data = coded[:-8] + data[end:]
        elif self._codec == "vp8":
            data += _NOISE
        else:
            data = self._with_noise(packet)
        altered = av.Packet(data)
        altered.pts, altered.dts = packet.pts, packet.dts
        return altered

    def _with_noise(self, packet: Any) -> bytes:
        size = prefix_size("hevc", self._header)
        parts = []
        for unit in nal_units(packet, "hevc", self._header):
            whole = unit + _NOISE if unit[0] >> 1 & 63 < 32 else unit
            parts += [len(whole).to_bytes(size, "big") if size else b"\0\0\1", whole]
        return b"".join(parts)


def _packet_of(frame: Any) -> int:
    number: int = frame.opaque.number
    return number


def _are_alike(one: av.VideoFrame, other: av.VideoFrame) -> bool:
    kinds = {(frame.format.name, frame.width, frame.height) for frame in (one, other)}
    width = 1 + (one.format.components[0].bits > 8)  # bytes of a value
    return len(kinds) == 1 and all(
        np.array_equal(_values(a, width), _values(b, width))
        for a, b in zip(one.planes, other.planes, strict=True)
    )


def _values(plane: Any, width: int) -> UInt8[np.ndarray, "H W"]:
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[:, : plane.width * width]
