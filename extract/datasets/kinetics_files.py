"""What the names of Kinetics' files and the rows of its tables say.

A Kinetics csv has the columns label, youtube_id, time_start, mostly time_end and split.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bieff.extract.datasets.names import key
from bieff.extract.datasets.scan import Folder, partition_of, stem, without_suffix
from bieff.features.errors import InputError

_CLIP = re.compile(r"([\w-]{11})(?:_(\d{1,6})_(\d{1,6}))?")

_COLUMNS = {"label", "youtube_id", "time_start"}

SECONDS = 10
"""Length of a clip."""


@dataclass(frozen=True, slots=True)
class ClipFile:
    """A video that lies there, and what its path says about it."""

    path: str
    youtube_id: str | None
    start: int | None
    """Seconds; None where the name does not say."""

    label: int | None
    """Of the class folder it lies in, if any."""

    partition: str | None
    """Of the folder it lies in, if any."""


@dataclass(frozen=True, slots=True)
class Row:
    """A clip that a Kinetics list names; times in seconds."""

    label: int
    youtube_id: str
    start: int
    end: int


def describe(paths: Iterable[str], labels: Mapping[str, int]) -> list[ClipFile]:
    """Read the paths; `labels` is by `names.key`."""
    of_folder: dict[str, tuple[int | None, str | None]] = {}
    files = []
    for path in paths:
        parent = path.rpartition("/")[0]
        if parent not in of_folder:
            classes = [labels.get(key(part)) for part in parent.split("/")]
            others = zip(parent.split("/"), classes, strict=True)
            label = next((label for label in reversed(classes) if label is not None), None)
            partition = partition_of(part for part, own in others if own is None)
            of_folder[parent] = (label, partition)
        match = _CLIP.fullmatch(stem(path))
        youtube_id, start = (match[1], match[2]) if match else (None, None)
        files.append(
            ClipFile(path, youtube_id, int(start) if start else None, *of_folder[parent])
        )
    return files


def row_of(file: ClipFile) -> Row:
    """The row that a file in a class folder stands for."""
    assert file.label is not None
    start = file.start or 0
    name = file.youtube_id or without_suffix(file.path)
    return Row(file.label, name, start, start + SECONDS)


def read_tables(folder: Folder, labels: Mapping[str, int]) -> dict[str, tuple[str, list[Row]]]:
    """Of "train" and "val": the first csv in the folder that lists it, and its rows.

    Raises:
        InputError: If a Kinetics csv names an unknown class or has a broken line.
    """
    lists: dict[str, tuple[str, list[Row]]] = {}
    for table in folder.tables:
        for part, row in _read(folder.root / table, labels):
            source, rows = lists.setdefault(part, (table, []))
            if source == table:
                rows.append(row)
    lists.pop("test", None)
    return lists


def parse_row(values: Mapping[str, str], labels: Mapping[str, int], source: str) -> Row:
    """A row of a Kinetics csv.

    Raises:
        InputError: If it names an unknown class, or a time is no number.
    """
    label = labels.get(key(values["label"] or ""))
    if label is None:
        raise InputError(
            f"{source}: unknown class {values['label']!r}; is it the list of another Kinetics?"
        )
    try:
        start = int(float(values["time_start"]))
        end = int(float(values.get("time_end") or start + SECONDS))
    except (TypeError, ValueError):
        raise InputError(
            f"{source}: expected times in seconds for {values['youtube_id']!r}, got "
            f"{values['time_start']!r} and {values.get('time_end')!r}"
        ) from None
    return Row(label, values["youtube_id"], start, end)


def _read(path: Path, labels: Mapping[str, int]) -> Iterator[tuple[str, Row]]:
    """Partition and row of each line of a Kinetics csv; nothing if it is another table."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        if not _COLUMNS.issubset(reader.fieldnames or ()):
            return
        by_name = partition_of([path.stem]) or "train"
        for values in reader:
            split = values.get("split") or by_name
            yield partition_of([split]) or by_name, parse_row(values, labels, str(path))
