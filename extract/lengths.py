"""Lengths of files, by their headers: whole videos in place of clips, and windows over them."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np

from bieff.extract.datasets.dataset import DataSet
from bieff.extract.decode.container import DecodeError, open_video
from bieff.extract.decode.pool import DecodePool, Job
from bieff.extract.decode.reader import Choose, Decoded, Preference
from bieff.features.errors import ConfigError
from bieff.features.schema import Video

SAMPLE = 64
"""Files that are looked at before an extraction; `--check` looks at all."""

FACTOR = 1.5
"""A file that is so many times as long as its clip is no clip."""

PATIENCE = 30.0
"""Seconds that a file may take, whose header may hang or crash its process."""

MOST_WINDOWS = 10**6
"""Windows of one video."""

_SLACK = 0.25
"""Seconds at the end of a file, of sound or of nothing, that are worth no window."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Parts of equal length along a video.

    Raises:
        ConfigError: If a length is not positive, or windows leave gaps.
    """

    length: float
    """Seconds."""

    every: float
    """Seconds from the beginning of one to that of the next."""

    def __post_init__(self) -> None:
        if not 0 < self.every <= self.length < math.inf:
            raise ConfigError(
                "--windows: expected seconds above 0, and --every above 0 and at most as many, "
                f"got {self.length:g} and {self.every:g}"
            )

    @classmethod
    def of(cls, length: float | None, every: float | None) -> "Windows | None":
        """Windows side by side where `every` is None; None where there are to be none."""
        if length is None and every is not None:
            raise ConfigError("--every: expected --windows beside it, as in --windows 10")
        return None if length is None else cls(length, length if every is None else every)

    def over(self, seconds: float) -> list[tuple[float, float]]:
        """Start and end of each window of a video; the last may reach beyond its end."""
        steps = (seconds - _SLACK - self.length) / self.every
        count = max(math.ceil(steps) + 1, 1)
        if count > MOST_WINDOWS:
            raise ConfigError(
                f"--every: expected at most {MOST_WINDOWS:,} windows of a video, got {count:,}"
            )
        starts = [round(float(k * self.every), 6) for k in range(count)]
        return [(start, round(start + self.length, 6)) for start in starts]


def seconds_of(path: Path) -> float:
    """Length of a video by its header, or by its packets; 0.0 where it is none."""
    try:
        with open_video(path) as (container, stream):
            unit, rate = float(stream.time_base or 0), stream.average_rate
            if stream.duration is not None and unit:
                return stream.duration * unit
            kind = container.format.name
            if container.duration and ("matroska" in kind or "flv" in kind):
                return container.duration / av.time_base
            packets = [packet.pts for packet in container.demux(stream) if packet.size]
            stamps = [stamp for stamp in packets if stamp is not None]
            by_rate = len(packets) / float(rate) if rate else 0.0
            return max(unit * (max(stamps) - min(stamps)), by_rate) if stamps else by_rate
    except (DecodeError, av.FFmpegError):
        return 0.0


def look(path: str, choose: Choose, *, decoder: Preference | None) -> Decoded:
    """The length of a video, as a decoding process hands things on."""
    return Decoded(
        frames=np.zeros((1, 1, 1, 3), np.uint8),
        frame_numbers=np.zeros(1, np.int64),
        num_frames=0,
        is_salvaged=False,
        decoder="pyav",
        times=np.array([seconds_of(Path(path))]),
    )


def lengths_of(paths: Sequence[Path]) -> Iterator[float | None]:
    """Seconds of each file, looked at in another process; None where that did not survive."""
    with DecodePool(1, deadline=PATIENCE, decode=f"{__name__}:look") as pool:
        jobs = (Job(row=row, path=path, choose=range) for row, path in enumerate(paths))
        for outcome in pool.decode(jobs):  # one process takes them in turn
            yield None if outcome.times is None else float(outcome.times[0])


def windowed(data: DataSet, windows: Windows) -> DataSet:
    """The data set with a row for each window of each video; parts that are rows stay so.

    A file whose length nobody can say keeps its one row, which says why when it is decoded.
    """
    listed = [video for videos in data.partitions.values() for video in videos]
    there = dict.fromkeys(v.path for v in listed if v.size and v.start is None)
    lengths = dict(zip(there, lengths_of([data.root / path for path in there]), strict=True))

    def parts(video: Video) -> list[Video]:
        seconds = lengths.get(video.path) if video.start is None else None
        if not seconds:
            return [video]
        return [
            replace(video, id=f"{video.id}@{start}-{end}", start=start, end=end)
            for start, end in windows.over(seconds)
        ]

    return replace(
        data,
        partitions={
            name: [part for video in videos for part in parts(video)]
            for name, videos in data.partitions.items()
        },
    )


def note_whole_videos(data: DataSet, *, most: int | None = SAMPLE) -> str | None:
    """A sentence with counts if files are longer than the clips that they stand for.

    Args:
        data: Files in `data.uncut` are looked at, in a process of their own.
        most: Look at so many of them, evenly spread; None: all.
    """
    step = 1 if most is None else max(1, len(data.uncut) // most)
    paths = [data.root / path for path in data.uncut[::step]][:most]
    if not paths:
        return None
    lengths = list(itertools.takewhile(lambda seconds: seconds is not None, lengths_of(paths)))
    limit = FACTOR * data.clip_seconds
    found = zip(paths, lengths, strict=False)
    whole = [(path, seconds) for path, seconds in found if seconds and seconds > limit]
    if not whole:
        return None
    first, seconds = whole[0]
    return (
        f"whole videos instead of clips: {len(whole):,} of {len(lengths):,} files looked at, "
        f"which have no seconds in their names, are longer than {limit:.0f} s, "
        f"the first is {str(first.relative_to(data.root))!r} with {seconds:.0f} s; their "
        f"labels are of {data.clip_seconds} s, say --trim or cut these out"
    )
