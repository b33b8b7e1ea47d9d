"""When the frames of a video are shown, for people; nothing is ever sampled by time."""

from pathlib import Path

import av
import numpy as np
from jaxtyping import Float64, Int64

from bieff.extract.container import DecodeError, open_video


def frame_seconds(
    path: Path, frame_numbers: Int64[np.ndarray, "*shape"], num_frames: int
) -> Float64[np.ndarray, "*shape"] | None:
    """Seconds from the first frame to those of these numbers; None where nobody can say.

    By the packets' timestamps where there is one for every frame, so that a variable frame
    rate is right too; otherwise by the average rate (AVI has no timestamps, and in a damaged
    file they do not belong to the frames that decode).

    Args:
        path: A video that was decoded just now.
        frame_numbers: In [0, num_frames).
        num_frames: Frames of the video that decode.
    """
    stamps: list[int | None] = []
    try:
        with open_video(path) as (container, stream):
            rate, unit = stream.average_rate or stream.guessed_rate, stream.time_base
            try:
                for packet in container.demux(stream):
                    if packet.size and not packet.is_discard:
                        stamps.append(packet.pts)
            except av.FFmpegError:
                stamps = []
    except DecodeError:
        return None
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) == len(stamps) == num_frames and unit is not None:
        shown = np.sort(np.array(known, dtype=np.int64))
        seconds: Float64[np.ndarray, "*shape"] = (shown - shown[0])[frame_numbers] * float(unit)
        return seconds
    return frame_numbers / float(rate) if rate else None
