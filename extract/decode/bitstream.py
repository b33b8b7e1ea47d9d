"""Decoders, and what coded pictures say before they are decoded."""

from collections.abc import Iterator
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


def prefix_size(codec: str, header: bytes | None) -> int:
    """Bytes of the length before each unit; 0 where start codes separate them."""
    place = 4 if codec == "h264" else 21
    if not header or header[0] != 1 or len(header) <= place:
        return 0
    return (header[place] & 3) + 1
