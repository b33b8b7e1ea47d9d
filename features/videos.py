"""The videos of a partition, one JSON object a line: `videos/<partition>.jsonl`, line = row.

Frozen when planned.  Ids, labels, splits and times say which videos, or parts of videos, these
are; paths and sizes only say where they lie, and may be brought up to date.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from bieff.features.errors import StoreError
from bieff.features.files import parse_json, writing
from bieff.features.schema import UNLABELLED, Video

_BLOCK = 2**22

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def table_file(store: Path, partition: str) -> Path:
    """The file with the list of a partition's videos."""
    return store / "videos" / f"{partition}.jsonl"


def is_local(path: object) -> bool:
    """True for the text of a path; FFmpeg would take "http://host/a.mp4" for an address."""
    return isinstance(path, str) and "\0" not in path and not _ADDRESS.match(path)


def identity(videos: Iterable[Video]) -> str:
    """SHA-256 over ids, labels, splits and times, in order; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for video in videos:
        splits = sorted(video.splits.items())
        times = () if video.start is None else (video.start, video.end)
        digest.update(f"{json.dumps([video.id, video.label, splits, *times])}\n".encode())
    return digest.hexdigest()


def is_up_to_date(path: Path, videos: Iterable[Video]) -> bool:
    """True if the file at `path` holds exactly these videos, paths and sizes included."""
    with path.open("rb") as file:
        same = all(file.readline() == _line(video) for video in videos)
        return same and not file.read(1)


def write_videos(path: Path, videos: Iterable[Video]) -> None:
    """Write the table, whole or not at all."""
    with writing(path) as file:
        file.writelines(_line(video) for video in videos)


class VideoTable:
    """Reads some rows of a table without the others."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._splits: dict[str, dict[str, str]] = {}

    def read(self, start: int, stop: int) -> list[Video]:
        """Videos of the rows from `start` to before `stop`.

        Raises:
            StoreError: If the table is not there, too short, or a line of it is no video.
        """
        try:
            begin, end = int(self._offsets[start]), int(self._offsets[stop])
            with self._path.open("rb") as file:
                file.seek(begin)
                lines = file.read(end - begin).splitlines()
        except (OSError, IndexError) as error:
            raise StoreError(
                f"cannot read row {stop - 1} of {self._path}: {error}; run the `bieff extract` "
                "that made the store again"
            ) from None
        return [self.parse(line, row) for row, line in enumerate(lines, start)]

    @cached_property
    def _offsets(self) -> Int64[np.ndarray, " N_plus_1"]:
        """Bytes before each line, and before the end of the last one."""
        found = [np.zeros(1, np.int64)]
        with self._path.open("rb") as file:
            position = 0
            while block := file.read(_BLOCK):
                ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
                found.append(ends + position + 1)
                position += len(block)
        return np.concatenate(found)

    def parse(self, line: bytes, row: int) -> Video:
        """The video of a line.

        Raises:
            StoreError: If there is none, or its path is no path.
        """
        try:
            values = parse_json(line)
            splits = values["splits"]
            # a data set has a handful of different splits: hold each once
            values["splits"] = self._splits.setdefault(str(splits), splits)
            video = Video(**values)
        except (ValueError, LookupError, TypeError, AttributeError):
            video = None
        if video is None or not _is_sound(video):
            raise StoreError(
                f"{self._path}, line {row + 1}: expected a video with id, path, label, size "
                f"and splits, got {line[:80]!r}; it is damaged, or was not written by bieff"
            )
        return video


def _is_sound(video: Video) -> bool:
    return (
        isinstance(video.id, str)
        and is_local(video.path)
        and 0 < len(video.path) <= _LONGEST
        and type(video.label) is int
        and video.label >= UNLABELLED
        and type(video.size) is int
        and video.size >= 0
        and isinstance(video.splits, dict)
        and all(isinstance(text, str) for pair in video.splits.items() for text in pair)
        and (
            video.start is video.end is None
            or all(type(time) is float and isfinite(time) for time in (video.start, video.end))
        )
    )


_LONGEST = 4096
"""Characters of a path that a system can open."""


def first_difference(stored: VideoTable, num_stored: int, asked: Sequence[Video]) -> str:
    """The place where two lists of videos part, in words."""
    if num_stored != len(asked):
        what = "videos" if all(video.start is None for video in asked) else "videos and parts"
        return f"store has {num_stored} {what}, asked for {len(asked)}"
    for row, (old, new) in enumerate(zip(stored.read(0, num_stored), asked, strict=True)):
        for name in ("id", "label", "splits", "start", "end"):
            if getattr(old, name) != getattr(new, name):
                return (
                    f"{name} of row {row}: store has {getattr(old, name)!r}, "
                    f"asked for {getattr(new, name)!r}"
                )
    return "no difference"


def _line(video: Video) -> bytes:
    values: dict[str, Any] = {
        "id": video.id,
        "path": video.path,
        "label": video.label,
        "size": video.size,
        "splits": dict(video.splits),
    }
    if video.start is not None:
        values |= {"start": video.start, "end": video.end}
    return f"{json.dumps(values)}\n".encode()
