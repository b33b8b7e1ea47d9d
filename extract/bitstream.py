"""What only the bytes of a file tell: what a keyframe is, and where the file should end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from av.video.codeccontext import VideoCodecContext

_H264_SLICE, _H264_IDR = 1, 5


def is_idr(packet: Any, codec: VideoCodecContext) -> bool:
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


def matroska_is_cut_off(path: Path) -> bool:
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
