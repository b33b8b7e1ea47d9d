"""What coded pictures say of themselves: where decoding can begin, and what is lost.

FFmpeg's decoders conceal: they show a picture whose references are missing, or whose data end
too early or too late, and not all of them log it.  Here is the little that tells.
"""

from collections.abc import Iterator
from typing import Any

import av
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

_DECODERS = {"vp9": "libvpx-vp9"}
"""Decoders that notice damage where FFmpeg's own do not; sound pictures are the same."""

_OPTIONS = {"err_detect": "crccheck", "max_pixels": str(2**25)}
"""Look at checksums; 8K is the largest picture."""

_STRICTER = {
    "av1": {"strict": "strict"},  # looks at the padding of a picture's data
    "mpeg4": {"err_detect": "crccheck+buffer"},  # at how much is left of it
}


def open_decoder(stream: VideoStream) -> VideoCodecContext:
    """A decoder of one thread whose frames name the packet they came from.

    Timestamps cannot be trusted to do that.
    """
    name = _DECODERS.get(codec_of(stream), "")
    decoder: Any = stream.codec_context
    if name in av.codecs_available:
        decoder = av.CodecContext.create(name, "r")
    set_up(decoder)
    decoder.options = decoder.options | _STRICTER.get(codec_of(stream), {})
    opened: VideoCodecContext = decoder
    return opened


def set_up(decoder: Any) -> None:
    """Have a decoder use one thread and our options."""
    decoder.thread_type = "NONE"
    decoder.thread_count = 1
    decoder.copy_opaque = True
    decoder.options = dict(_OPTIONS)


def codec_of(stream: VideoStream) -> str:
    """FFmpeg's name of a stream's codec, whatever decodes it."""
    return str(stream.codec_context.codec.canonical_name)


class Pictures:
    """Follows the packets of a stream in the order of decoding."""

    def __init__(self, stream: VideoStream) -> None:
        self._codec = codec_of(stream)
        self._header = stream.codec_context.extradata
        self._frame_numbers = FrameNumbers(self._header)

    def look(self, data: bytes) -> tuple[bool | None, bool]:
        """Whether decoding can begin at a packet, None: ask the decoder; whether one is lost.

        A recovery point of H.264 is no place to begin: from there on the picture heals.
        """
        if self._codec in ("vp8", "vp9"):
            return _is_key(self._codec, data[0]), False
        if self._codec not in ("h264", "hevc"):
            return None, False
        units = list(nal_units(data, self._codec, self._header))
        if self._codec == "hevc":
            kinds = (unit[0] >> 1 & 63 for unit in units)
            return next((16 <= kind <= 23 for kind in kinds if kind < 32), False), False
        are_whole = [self._frame_numbers.follow(unit) for unit in units]
        return any(unit[0] & 31 == 5 for unit in units), not all(are_whole)


def _is_key(codec: str, first: int) -> bool:
    if codec == "vp8":
        return not first & 1
    place = 3 if first >> 4 & 3 == 3 else 4  # of profile 3 one bit is reserved
    return not first >> (place - 1) & 1 and not first >> (place - 2) & 1


def nal_units(data: bytes, codec: str, header: bytes | None) -> Iterator[bytes]:
    """The units of an H.264 or HEVC packet, as mp4 or as a transport stream packs them.

    Args:
        data: The packet.
        codec: "h264" or "hevc".
        header: The stream's extradata, which tells how.
    """
    size = prefix_size(codec, header)
    if not size:
        yield from (unit for unit in data.split(b"\0\0\1")[1:] if unit)
    place = 0
    while size and place + size < len(data):
        end = place + size + int.from_bytes(data[place : place + size], "big")
        if end > place + size:
            yield data[place + size : end]
        place = end


def prefix_size(codec: str, header: bytes | None) -> int:
    """Bytes of the length before each unit; 0 where start codes separate them."""
    place = 4 if codec == "h264" else 21
    if not header or header[0] != 1 or len(header) <= place:
        return 0
    return (header[place] & 3) + 1


class FrameNumbers:
    """The numbers that H.264 gives its reference pictures; a gap means that one is lost.

    FFmpeg fills the gap with a copy and says so only to those who debug it.
    """

    def __init__(self, header: bytes | None) -> None:
        self._sets: dict[int, SequenceSet] = {}
        self._set_of: dict[int, int] = {}
        """Sequence parameter set of each picture parameter set."""

        self._last: int | None = None
        for unit in parameter_sets(header):
            self.follow(unit)

    def follow(self, unit: bytes) -> bool:
        """Read one unit; False if a reference picture before it is missing."""
        kind = unit[0] & 31
        if kind not in (1, 5, 7, 8):
            return True
        bits = Bits(unit[1:400] if kind == 7 else unit[1:40])
        if kind == 7:
            found = SequenceSet(bits)
            self._sets[found.number] = found
        elif kind == 8:
            number = bits.golomb()
            self._set_of[number] = bits.golomb()
        else:
            return self._follow_slice(bits, is_idr=kind == 5, is_reference=bool(unit[0] & 96))
        return True

    def _follow_slice(self, bits: "Bits", *, is_idr: bool, is_reference: bool) -> bool:
        bits.golomb()
        bits.golomb()
        found = self._sets.get(self._set_of.get(bits.golomb(), -1))
        if found is None:
            return True
        number, last = bits.take(found.width), self._last
        if is_reference or is_idr:
            self._last = number
        if is_idr or found.may_have_gaps or last is None or number < 2:  # 0, 1: begun anew
            return True
        return number in (last, (last + 1) % (1 << found.width))


def parameter_sets(header: bytes | None) -> list[bytes]:
    """The parameter sets in the extradata of an H.264 stream."""
    if not prefix_size("h264", header) or header is None or len(header) < 7:
        return list(nal_units(header or b"", "h264", None))
    found = []
    place, left = 6, header[5] & 31
    for _ in range(2):  # sequence parameter sets, then those of pictures
        for _ in range(left):
            end = place + 2 + int.from_bytes(header[place : place + 2], "big")
            found.append(header[place + 2 : end])
            place = end
        left = header[place] if place < len(header) else 0
        place += 1
    return [unit for unit in found if unit]


_WITH_CHROMA_FORMAT = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)


class SequenceSet:
    """What H.264 says of a sequence of pictures, as far as it is needed here."""

    def __init__(self, bits: "Bits") -> None:
        profile = bits.take(24) >> 16
        self.number = bits.golomb()
        if profile in _WITH_CHROMA_FORMAT:
            chroma = bits.golomb()
            bits.take(int(chroma == 3))
            bits.golomb()
            bits.golomb()
            bits.take(1)
            if bits.take(1):
                _skip_scaling_lists(bits, 12 if chroma == 3 else 8)
        self.width = min(bits.golomb() + 4, 16)
        """Bits of a frame number."""

        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.take(1)
            bits.golomb()
            bits.golomb()
            for _ in range(min(bits.golomb(), 255)):
                bits.golomb()
        bits.golomb()
        self.may_have_gaps = bool(bits.take(1))


def _skip_scaling_lists(bits: "Bits", count: int) -> None:
    for i in range(count):
        if bits.take(1):
            last = following = 8
            for _ in range(16 if i < 6 else 64):
                if following:
                    code = bits.golomb()
                    change = (code + 1) // 2 if code % 2 else -(code // 2)
                    following = (last + change) % 256
                last = following or last


class Bits:
    """Reads numbers bit by bit; behind the end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self.data = data.replace(b"\0\0\3", b"\0\0")
        self.place = 0
        self._value = int.from_bytes(self.data[:400], "big")
        self._count = 8 * min(len(self.data), 400)

    def take(self, count: int) -> int:
        """The next bits as a number."""
        self.place += count
        if self.place > self._count:
            return 0
        return self._value >> (self._count - self.place) & ((1 << count) - 1)

    def golomb(self) -> int:
        """An Exp-Golomb code, unsigned."""
        zeros = 0
        while self.place < self._count and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)
