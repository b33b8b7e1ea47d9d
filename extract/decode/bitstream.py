"""Decoders, and what coded pictures say before they are decoded."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import av
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

MOST_PIXELS = 2**25
"""Pixels of the largest picture that is decoded; 8K passes."""

_OPTIONS = {"err_detect": "crccheck", "max_pixels": str(MOST_PIXELS)}
"""Look at checksums."""

_STRICTER = {
    "av1": {"strict": "strict"},  # looks at the padding of a picture's data
    "mpeg4": {"err_detect": "crccheck+buffer"},  # at how much is left of it
}


def open_decoder(stream: VideoStream) -> VideoCodecContext:
    """A decoder of one thread whose frames name the packet they came from.

    Timestamps cannot be trusted to do that.  VP9 is decoded by its makers' own decoder, to the
    same pictures, because FFmpeg's does not notice damage.
    """
    decoder: Any = stream.codec_context
    if codec_of(stream) == "vp9" and "libvpx-vp9" in av.codecs_available:
        decoder = av.CodecContext.create("libvpx-vp9", "r")
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


def can_begin_at(packet: Any, codec: str, header: bytes | None) -> bool | None:
    """True if nothing from this packet on refers to what is before it; None: not known here.

    Containers mark recovery points of H.264 as keyframes too, from which on the picture heals.

    Args:
        packet: The packet.
        codec: FFmpeg's name of its codec.
        header: The stream's extradata.
    """
    if codec == "vp8":
        return not bytes(packet)[0] & 1
    if codec == "vp9":
        first = bytes(packet)[0]
        place = 1 if first >> 4 & 3 == 3 else 2  # of profile 3 one bit is reserved
        return not first >> place & 3  # a key picture, not one shown again
    if codec == "h264":
        return any(unit[0] & 31 == 5 for unit in nal_units(packet, codec, header))
    if codec == "hevc":
        kinds = (unit[0] >> 1 & 63 for unit in nal_units(packet, codec, header))
        return next((16 <= kind <= 23 for kind in kinds if kind < 32), False)
    return None


def nal_units(packet: Any, codec: str, header: bytes | None) -> Iterator[bytes]:
    """The units of an H.264 or HEVC packet, as mp4 or as a transport stream packs them."""
    data, size, place = bytes(packet), prefix_size(codec, header), 0
    if not size:
        yield from (unit for unit in data.split(b"\0\0\1")[1:] if unit)
    while size and place + size < len(data):
        end = place + size + int.from_bytes(data[place : place + size], "big")
        if end > place + size:
            yield data[place + size : end]
        place = end


_FORBIDDEN = re.compile(rb"\0\0(?:[\0-\2]|\x03[\4-\xff])")


def is_overwritten(packet: Any, codec: str, header: bytes | None) -> bool:
    """True of a slice of H.264 or HEVC with bytes that no unit may hold (H.264, 7.4.1)."""
    return any(
        _FORBIDDEN.search(unit.rstrip(b"\0"))
        for unit in nal_units(packet, codec, header)
        if (1 <= unit[0] & 31 <= 5 if codec == "h264" else unit[0] >> 1 & 63 < 32)
    )


def prefix_size(codec: str, header: bytes | None) -> int:
    """Bytes of the length before each unit; 0 where start codes separate them."""
    place = 4 if codec == "h264" else 21
    if not header or header[0] != 1 or len(header) <= place:
        return 0
    return (header[place] & 3) + 1


def pack(units: Iterable[bytes], codec: str, header: bytes | None) -> bytes:
    """A packet of these units, for a stream with this extradata."""
    size = prefix_size(codec, header)
    return b"".join(
        (len(unit).to_bytes(size, "big") if size else b"\0\0\1") + unit for unit in units
    )


def taller_header(header: bytes | None) -> tuple[bytes | None, int]:
    """Extradata of H.264 for pictures that are taller, and by how many rows of blocks."""
    if not header:
        return None, _MORE
    if not prefix_size("h264", header):
        units = list(nal_units(header, "h264", None))
        rows = next((_rows(unit) for unit in units if unit[0] & 31 == 7), _MORE)
        return pack((taller(unit, rows) for unit in units), "h264", None), rows
    changed, place, rows = header[:6], 6, _MORE
    for i in range(header[5] & 31):
        end = place + 2 + int.from_bytes(header[place : place + 2], "big")
        unit = header[place + 2 : end]
        rows = rows if i else _rows(unit)
        unit = taller(unit, rows)
        changed += len(unit).to_bytes(2, "big") + unit
        place = end
    return changed + header[place:], rows


def taller(unit: bytes, rows: int) -> bytes:
    """A unit of H.264 that, where it states the size, states so many rows of blocks more.

    One of which that cannot be said comes back as it is.
    """
    with suppress(ValueError):
        place, end, step = _height(unit)
        if unit[0] & 31 == 7 and step * _MORE == rows:
            bits = _bits(unit)
            more = f"{int(bits[place:end], 2) + _MORE:b}"
            bits = f"{bits[:place]}{more.zfill(2 * len(more) - 1)}{bits[end:]}".rstrip("0")
            bits += "0" * (-len(bits) % 8)
            whole = int(bits, 2).to_bytes(len(bits) // 8, "big")
            return re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", whole)
    return unit


_MORE = 8
"""Units of height that are added; data that were misread may well fill one of them."""


def _rows(unit: bytes) -> int:
    try:
        return _MORE * _height(unit)[2]
    except ValueError:
        return _MORE


def _bits(unit: bytes) -> str:
    data = unit.rstrip(b"\0").replace(b"\0\0\3", b"\0\0")
    return bin(int.from_bytes(b"\1" + data))[3:]


_HIGH = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}
"""Profiles of H.264 whose parameter sets state the kind of colours (H.264, 7.3.2.1.1)."""


def _height(unit: bytes) -> tuple[int, int, int]:
    """Where a sequence parameter set states the height, and how many rows its unit has.

    Raises:
        ValueError: If it ends before.
    """
    bits = _bits(unit)
    place = 32  # behind profile, constraints and level

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    def golomb() -> int:
        return take(2 * (bits.index("1", place) - place) + 1) - 1

    def skip(count: int) -> None:
        for _ in range(count):
            golomb()

    skip(1)
    if unit[1] in _HIGH:
        kind = golomb()
        if kind == 3:
            take(1)
        skip(2)
        take(1)
        if take(1):
            for i in range(12 if kind == 3 else 8):
                if take(1):
                    _skip_scaling(golomb, 16 if i < 6 else 64)
    skip(1)
    order = golomb()
    if order == 0:
        skip(1)
    elif order == 1:
        take(1)
        skip(2)
        skip(golomb())
    skip(1)
    take(1)
    skip(1)
    begin = place
    skip(1)
    return begin, place, 2 - take(1)


def _skip_scaling(golomb: Callable[[], int], count: int) -> None:
    last = following = 8
    for _ in range(count):
        if following:
            step = golomb()
            following = (last + (step + 1) // 2 * (step % 2 * 2 - 1)) % 256
        last = following or last
