"""The videos of a partition, one JSON object a line: `videos/<partition>.jsonl`, line = row.

Frozen when planned.  Ids, labels and splits say which videos these are; paths and sizes only
say where they lie, and may be brought up to date.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from bieff.features.files import writing
from bieff.features.schema import Video

_BLOCK = 2**22


def table_file(store: Path, partition: str) -> Path:
    """The file with the list of a partition's videos."""
    return store / "videos" / f"{partition}.jsonl"


def identity(videos: Iterable[Video]) -> str:
    """SHA-256 over ids, labels and splits, in order; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for video in videos:
        splits = sorted(video.splits.items())
        digest.update(f"{json.dumps([video.id, video.label, splits])}\n".encode())
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
        """Videos of the rows from `start` to before `stop`."""
        begin, end = int(self._offsets[start]), int(self._offsets[stop])
        with self._path.open("rb") as file:
            file.seek(begin)
            lines = file.read(end - begin).splitlines()
        return [self._parse(line) for line in lines]

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

    def _parse(self, line: bytes) -> Video:
        values = json.loads(line)
        splits = values["splits"]
        # a data set has a handful of different splits: hold each once
        values["splits"] = self._splits.setdefault(str(splits), splits)
        return Video(**values)


def first_difference(stored: VideoTable, num_stored: int, asked: Sequence[Video]) -> str:
    """The place where two lists of videos part, in words."""
    if num_stored != len(asked):
        return f"store has {num_stored} videos, asked for {len(asked)}"
    for row, (old, new) in enumerate(zip(stored.read(0, num_stored), asked, strict=True)):
        for name in ("id", "label", "splits"):
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
    return f"{json.dumps(values)}\n".encode()
