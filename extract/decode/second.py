"""The second decoder, decord, for files on which the first one crashed or hung.

decord 0.6.0 carries FFmpeg 4.1.  Measured on frame-stamped clips: it misplaces frames of AVI,
MPEG-TS, HEVC and MPEG-4 with B-frames, of open groups of pictures and of files with an edit
list; it takes another of two streams; and it does not notice damage that still decodes.  For
what passes here it agrees with PyAV in every bit.
"""

from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
from jaxtyping import Int64, UInt8

from bieff.extract.decode.bitstream import codec_of, nal_units, open_decoder, parameter_sets
from bieff.extract.decode.container import IDENTITY, Contents, display_matrix, open_video


def read_with_decord(
    path: Path, numbers: Int64[np.ndarray, " n"], contents: Contents
) -> UInt8[np.ndarray, "n H W 3"] | None:
    """Read frames with decord; None where it refuses the file, or may be wrong about it."""
    import decord

    if contents.is_cut_off or contents.bad_bytes or why_not_decord(path) is not None:
        return None
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != contents.num_packets:
            return None
        first, frames = reader[0].asnumpy(), reader.get_batch(numbers).asnumpy()
    # decord asserts what FFmpeg reports, and encodes paths as UTF-8 whatever the system does
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError, UnicodeError):
        return None
    # one picture tells whether it takes the same stream and converts colours alike
    return frames if np.array_equal(first, _first_picture(path)) else None


def _first_picture(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    with av.logging.Capture(), open_video(path) as (container, stream):
        decoder = open_decoder(stream)
        for packet in container.demux(stream):
            for frame in decoder.decode(packet):
                return frame.to_ndarray(format="rgb24", threads=1)
    return np.empty((0, 0, 3), np.uint8)


def why_not_decord(path: Path) -> str | None:
    """Why decord may return a wrong frame of a file; None where it is proven right.

    Raises:
        DecodeError: If the file cannot be opened.
    """
    with av.logging.Capture(), open_video(path) as (container, stream):
        kind, codec = container.format.name, codec_of(stream)
        if codec != "h264" or not ("mp4" in kind or "matroska" in kind):
            return f"{codec} in {kind.split(',')[0]} is not a format it is exact on"
        decoder = open_decoder(stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        return (
            _doubt_of_times(packets)
            or _doubt_of_pictures(packets, stream.codec_context.extradata)
            or _doubt_of_frame(next(iter(decoder.decode(packets[0]) + decoder.decode(None))))
        )


def _doubt_of_times(packets: list[Any]) -> str | None:
    times = [packet.pts for packet in packets]
    if None in times or len(set(times)) < len(times):
        return "its timestamps do not strictly increase"
    if min(times, default=0) < 0 or any(packet.is_discard for packet in packets):
        return "it begins before time zero (an edit list)"
    return None


_SLICES, _IDR, _EXTRA, _SETS = (1, 5), 5, 6, (7, 8)
_ORIENTATION = 47


def _doubt_of_pictures(packets: list[Any], header: bytes | None) -> str | None:
    known = set(parameter_sets(header))
    for i, packet in enumerate(packets):
        units = list(nal_units(bytes(packet), "h264", header))
        kinds = [unit[0] & 31 for unit in units]
        first = next((kind for kind in kinds if kind in _SLICES), None)
        if (packet.is_keyframe or i == 0) and first != _IDR:
            return "a keyframe depends on what is before it (an open group of pictures)"
        if any(unit[0] & 31 in _SETS and unit not in known for unit in units):
            return "its pictures change in size or kind"
        if any(unit[0] & 31 == _EXTRA and unit[1] == _ORIENTATION for unit in units):
            return "players turn some of its pictures"
    return None


def _doubt_of_frame(frame: av.VideoFrame) -> str | None:
    matrix = display_matrix(frame)
    if matrix != IDENTITY:
        return f"players turn it by the matrix {matrix}"
    if frame.interlaced_frame:
        return "it is interlaced"
    if frame.format.name not in ("yuv420p", "yuvj420p") or frame.width % 2 or frame.height % 2:
        return f"{frame.format.name} of {frame.width}x{frame.height} converts to other colours"
    return None
