"""The second decoder, decord, for files on which the first one crashed or hung.

decord 0.6.0 carries FFmpeg 4.1.  Measured on frame-stamped clips: it misplaces frames of AVI,
MPEG-TS, HEVC and MPEG-4 with B-frames, of open groups of pictures and of files with an edit
list; it takes another of two streams; and it does not notice damage that still decodes.  For
what passes here it agrees with PyAV in every bit.  Where it is not installed, PyAV tries again.
"""

from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
from jaxtyping import Int64, UInt8

from bieff.extract.decode.bitstream import can_begin_at, codec_of, nal_units, open_decoder
from bieff.extract.decode.container import IDENTITY, Contents, display_matrix, open_video


def read_with_decord(
    path: Path, numbers: Int64[np.ndarray, " n"], contents: Contents
) -> UInt8[np.ndarray, "n H W 3"] | None:
    """Read frames with decord; None where it refuses the file, or may be wrong about it."""
    if not is_here():
        return None
    import decord

    doubt, right = examine(path)
    if doubt or right is None or contents.fault or contents.bad_bytes:
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
    return frames if np.array_equal(first, right) else None


def is_here() -> bool:
    """True if decord is installed, which has no wheel but for x86-64."""
    try:
        import decord  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def examine(path: Path) -> tuple[str | None, UInt8[np.ndarray, "H W 3"] | None]:
    """Reason why decord may return a wrong frame of a file, if any; and the first frame.

    Raises:
        DecodeError: If the file cannot be opened.
    """
    with av.logging.Capture(), open_video(path) as (container, stream):
        kind, codec = container.format.name, codec_of(stream)
        if codec != "h264" or not ("mp4" in kind or "matroska" in kind):
            return f"{codec} in {kind.split(',')[0]} is not a format it is exact on", None
        packets = [packet for packet in container.demux(stream) if packet.size]
        decoder = open_decoder(stream)
        frame = next(iter(decoder.decode(packets[0]) + decoder.decode(None)), None)
        doubt = _doubt_of_packets(packets, stream.codec_context.extradata)
        if frame is None:
            return doubt or "its first packet shows nothing", None
        return doubt or _doubt_of_frame(frame), frame.to_ndarray(format="rgb24", threads=1)


_IDR, _EXTRA, _SETS = 5, 6, (7, 8)
_ORIENTATION = 47


def _doubt_of_packets(packets: list[Any], header: bytes | None) -> str | None:
    times = [packet.pts for packet in packets]
    if None in times or len(set(times)) < len(times):
        return "its timestamps do not strictly increase"
    if min(times, default=0) < 0 or any(packet.is_discard for packet in packets):
        return "it begins before time zero (an edit list)"
    keyframes = [packet for i, packet in enumerate(packets) if packet.is_keyframe or i == 0]
    if not all(can_begin_at(packet, "h264", header) for packet in keyframes):
        return "a keyframe depends on what is before it (an open group of pictures)"
    units = [unit for packet in packets for unit in nal_units(packet, "h264", header)]
    if any(unit[0] & 31 in _SETS for unit in units):
        return "its pictures may change in size or kind"
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
