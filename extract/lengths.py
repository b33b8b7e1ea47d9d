"""Whole videos where a list means clips of ten seconds: lengths of files, by their headers."""

import multiprocessing
from pathlib import Path

import av

from bieff.extract.datasets.dataset import DataSet
from bieff.extract.decode.container import DecodeError, open_video

SAMPLE = 64
"""Files that are looked at before an extraction; `--check` looks at all."""

FACTOR = 1.5
"""A file that is so many times as long as its clip is no clip."""

PATIENCE = 30.0
"""Seconds that a file may take; a header that hangs or crashes its process ends the look."""


def seconds_of(path: Path) -> float:
    """Length of a video by its header; 0.0 where that does not say."""
    try:
        with open_video(path) as (container, stream):
            if stream.duration is not None and stream.time_base is not None:
                return float(stream.duration * stream.time_base)
            return (container.duration or 0) / av.time_base
    except DecodeError:
        return 0.0


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
    whole: list[tuple[Path, float]] = []
    looked = 0
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        lengths = pool.imap(seconds_of, paths)
        for path in paths:
            try:
                seconds = lengths.next(timeout=PATIENCE)
            except multiprocessing.TimeoutError:
                break
            looked += 1
            if seconds > FACTOR * data.clip_seconds:
                whole.append((path, seconds))
    if not whole:
        return None
    first, seconds = whole[0]
    return (
        f"whole videos instead of clips: {len(whole):,} of {looked:,} files looked at, which "
        f"have no seconds in their names, are longer than {FACTOR * data.clip_seconds:.0f} s, "
        f"the first is {str(first.relative_to(data.root))!r} with {seconds:.0f} s; their "
        f"labels are of {data.clip_seconds} s, cut these out"
    )
