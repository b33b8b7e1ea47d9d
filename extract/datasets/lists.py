"""The data set "list": list files and a label file of one's own, and a folder of videos.

Labels are held against the class folders where there are any.  Several well-known repositories
pair lists of HMDB-51 with a label file in another order, and score 120 of 1,530 test videos
against the wrong name: that is found here.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bieff.extract.datasets.dataset import DataSet, Mislabelled, require_found
from bieff.extract.datasets.files import (
    VIDEO_SUFFIXES,
    FileIndex,
    Folder,
    folders_of,
    ids_of,
    scan,
)
from bieff.features.class_names import (
    ClassNames,
    key,
    label_of_key,
    read_class_names,
    read_text,
    readable,
)
from bieff.features.errors import InputError
from bieff.features.schema import UNLABELLED, Video

_SUFFIXES = "|".join(re.escape(suffix[1:]) for suffix in sorted(VIDEO_SUFFIXES))
_TO_SUFFIX = re.compile(rf'"?(.*\.(?:{_SUFFIXES}))"?(?:[\s,;]+(.*))?', re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+")

_PATH_COLUMNS = (
    "path", "video_path", "filepath", "file_path", "video", "filename", "file_name", "file",
    "video_name", "clip", "clip_path", "name", "video_id", "id",
)  # fmt: skip
_LABEL_COLUMNS = (
    "label", "label_id", "class_id", "class_index", "target", "class", "label_name",
    "class_name", "category", "tag", "action",
)  # fmt: skip
"""The first of them that a header has is taken."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of a list."""

    line: int
    """From 1, for messages."""

    path: str
    label: int | str | None
    """Number, name, or None where the list says nothing (or -1)."""


def read_list(path: Path) -> list[Listed]:
    """Read a list file of any form.

    Raises:
        InputError: If the file cannot be read or is empty, or a line has too many columns.
    """
    lines = read_text(path).splitlines()
    rows = [(k, line.strip()) for k, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise InputError(f"list {path}: expected a video a line, got an empty file")
    header = _header(rows[0][1])
    if header is not None:
        return _from_table(rows, header, path)
    if _is_plain_header(rows[0][1]):
        rows = rows[1:]
    has_frames = all(_ends_in_two_numbers(line) for _, line in rows)
    return [_from_line(k, line, path, has_frames=has_frames) for k, line in rows]


def _from_line(number: int, line: str, source: Path, *, has_frames: bool) -> Listed:
    """A line without a header above it."""
    match = _TO_SUFFIX.fullmatch(line)
    if match:
        return Listed(number, match[1], _label(match[2] or "", f"{source}, line {number}"))
    separator = "," if "," in line else None
    fields = line.rsplit(separator, 2 if has_frames else 1)
    last = fields[-1].strip()
    if len(fields) == 1 or (separator is None and not _NUMBER.fullmatch(last)):
        return Listed(number, line, None)
    return Listed(number, fields[0].strip(), _label(last, f"{source}, line {number}"))


def _label(columns: str, where: str) -> int | str | None:
    """The label in what stands behind a path: nothing, a label, or frames and a label."""
    fields = re.split(r"[\s,;]+", columns.strip()) if columns.strip() else []
    if not fields:
        return None
    if all(_NUMBER.fullmatch(field) for field in fields):
        if len(fields) > 2:
            raise InputError(
                f"list {where}: expected a path and a label, or a path, a number of frames and "
                f"a label, got {len(fields)} numbers behind the path"
            )
        return _number(fields[-1])
    first, _, rest = columns.strip().partition(" ")
    name = rest if _NUMBER.fullmatch(first) and rest else columns
    return name.strip().strip('"')


def _number(text: str) -> int | None:
    return None if text == "-1" else int(text)


def _header(line: str) -> tuple[str, list[str]] | None:
    """Delimiter and column names, if the line is a table's header."""
    for delimiter in (",", "\t", ";"):
        names = [name.strip().strip('"').casefold() for name in line.split(delimiter)]
        if len(names) > 1 and _first(names, (*_PATH_COLUMNS, "youtube_id")):
            return delimiter, names
    return None


def _is_plain_header(line: str) -> bool:
    words = line.casefold().split()
    return len(words) > 1 and words[0] in _PATH_COLUMNS and words[-1] in _LABEL_COLUMNS


def _from_table(
    rows: Sequence[tuple[int, str]], header: tuple[str, list[str]], source: Path
) -> list[Listed]:
    delimiter, names = header
    table = csv.DictReader((line for _, line in rows), fieldnames=names, delimiter=delimiter)
    next(table)
    path_column = _first(names, _PATH_COLUMNS)
    label_column = _first([name for name in names if name != path_column], _LABEL_COLUMNS)
    listed = []
    for (number, _), values in zip(rows[1:], table, strict=True):
        if None in values or None in values.values():
            raise InputError(
                f"list {source}, line {number}: expected {len(names)} columns as in the header"
            )
        path = values[path_column] if path_column else _kinetics_name(values)
        label = values[label_column].strip() if label_column else ""
        is_number = _NUMBER.fullmatch(label) is not None
        listed.append(
            Listed(number, path.strip(), _number(label) if is_number else label or None)
        )
    return listed


def _kinetics_name(values: dict[str, str]) -> str:
    """The file that a row of a Kinetics csv means."""
    start = int(float(values.get("time_start") or 0))
    end = int(float(values.get("time_end") or start + 10))
    return f"{values['youtube_id']}_{start:06d}_{end:06d}"


def _first(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    present = set(names)
    return next((name for name in wanted if name in present), None)


def _ends_in_two_numbers(line: str) -> bool:
    fields = line.replace(",", " ").rsplit(None, 2)
    return len(fields) == 3 and all(_NUMBER.fullmatch(field) for field in fields[1:])


LAYOUT = "the videos that the list names, by the same file name and parent folder"

PARTITIONS = ("train", "val", "all")


@dataclass(frozen=True, slots=True)
class Classes:
    """Meaning of a list's labels."""

    names: ClassNames
    first: int
    """The number that the lists give to the first class."""

    by_key: Mapping[str, int]

    def label(self, listed: Listed) -> int | None:
        """Label from 0, None if the line says nothing or nothing that is known."""
        if listed.label is None:
            return self.of_folder(listed.path)
        if isinstance(listed.label, str):
            return self.by_key.get(key(listed.label))
        label = listed.label - self.first
        return label if 0 <= label < len(self.names.names) else None

    def of_folder(self, path: str) -> int | None:
        """Label of the nearest folder that is called as a class."""
        for folder in reversed(folders_of(path)):
            if key(folder) in self.by_key:
                return self.by_key[key(folder)]
        return None


def load_lists(
    lists: Mapping[str, Path],
    *,
    videos: Path | None = None,
    labels: Path | None = None,
    first_label: int | None = None,
) -> DataSet:
    """Load lists; see `bieff.extract.datasets.load`.

    Raises:
        InputError: If a file cannot be read, a label is out of range or has no name, or none
            of the videos is found.
    """
    if not lists or not set(lists) <= set(PARTITIONS):
        raise InputError(
            f"data set 'list': expected a list file for some of {', '.join(PARTITIONS)}, got "
            f"{', '.join(lists) or 'none'}; give --list val=PATH"
        )
    rows = {part: read_list(path) for part, path in lists.items()}
    together = [row for part in rows.values() for row in part]
    names = read_class_names(labels) if labels else _names_from(together)
    classes, notes = _classes(names, together, first_label)
    folder = _folder(together, videos, next(iter(lists.values())).parent)
    partitions: dict[str, list[Video]] = {}
    missing: set[str] = set()
    mislabelled: list[Mislabelled] = []
    for part, listed in rows.items():
        index = FileIndex(folder, classes.by_key, part)
        found, wrong = _videos(part, listed, classes, index, source=lists[part])
        partitions[part] = [video for video, _ in found]
        missing |= {video.id for video, is_there in found if not is_there}
        mislabelled += wrong
    unlabelled = sum(v.label == UNLABELLED for part in partitions.values() for v in part)
    if unlabelled and names.names:
        notes.append(f"videos without a label: {unlabelled:,}")
    if {"train", "val"} <= set(partitions):
        both = {v.id for v in partitions["train"]} & {v.id for v in partitions["val"]}
        if both:
            notes.append(f"videos in both the train and the val list: {len(both):,}")
    used = {video.path for part in partitions.values() for video in part}
    data = DataSet(
        name="list",
        class_names=names.readable,
        partitions=partitions,
        root=folder.root,
        notes=tuple(notes),
        missing=frozenset(missing),
        unlisted=tuple(path for path in folder.videos if path not in used),
        mislabelled=tuple(mislabelled),
    )
    return require_found(data, layout=LAYOUT)


def _videos(
    part: str, listed: Sequence[Listed], classes: Classes, index: FileIndex, *, source: Path
) -> tuple[list[tuple[Video, bool]], list[Mislabelled]]:
    """The partition's videos, whether each was found, and those in a wrong class's folder."""
    called = classes.names.readable
    ids = ids_of(row.path for row in listed)
    videos: dict[str, tuple[Video, bool]] = {}
    wrong = []
    for row in listed:
        label = classes.label(row)
        where = f"list {source}, line {row.line}"
        if label is None and row.label is not None:
            raise InputError(
                f"{where}: label {row.label!r} has no name among the {len(called)} classes; is "
                "it the right label file?"
            )
        path, size = index.locate(row.path, where)
        video = Video(
            id=ids[row.path],
            path=path or row.path,
            label=UNLABELLED if label is None else label,
            size=size,
            splits={} if part == "all" else {part: part},
        )
        before, _ = videos.setdefault(video.id, (video, path is not None))
        if before.label != video.label:
            raise InputError(f"{where}: {row.path!r} was listed before with another label")
        lies_in = classes.of_folder(path or row.path)
        if before is video and label is not None and lies_in is not None and lies_in != label:
            wrong.append(Mislabelled(part, video.path, called[label], called[lies_in]))
    return list(videos.values()), wrong


def _names_from(rows: Sequence[Listed]) -> ClassNames:
    """Class names where there is no label file: from the labels, or from the folders."""
    labels = {row.label for row in rows}
    if labels == {None}:
        folders = {folders_of(row.path)[-1] for row in rows if folders_of(row.path)}
        names = sorted(folders) if len(folders) > 1 else []
    elif all(isinstance(label, str) for label in labels):
        names = sorted(str(label) for label in labels)
    else:
        names = _names_by_folder(rows)
    return ClassNames(tuple(names), tuple(map(readable, names)), first_id=None)


def _names_by_folder(rows: Sequence[Listed]) -> list[str]:
    """Each number's folder, if numbers and folders go together one to one."""
    folders: dict[int, set[str]] = {}
    for row in rows:
        if isinstance(row.label, int):
            folders.setdefault(row.label, set()).add((folders_of(row.path) or [""])[-1])
    numbers = sorted(folders)
    names = [next(iter(folders[number])) for number in numbers]
    is_one_to_one = all(len(f) == 1 for f in folders.values()) and len(set(names)) == len(names)
    is_counted = numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))
    if not (is_one_to_one and is_counted and all(names)):
        raise InputError(
            "data set 'list': the labels are numbers and the folders do not tell their names; "
            "give a label file with --labels"
        )
    return names


def _classes(
    names: ClassNames, rows: Sequence[Listed], first_label: int | None
) -> tuple[Classes, list[str]]:
    """Find out whether the lists count labels from 0 or from 1."""
    by_key = label_of_key(names.names, source="classes")
    for label, words in enumerate(names.readable):
        by_key.setdefault(key(words), label)
    numbers = {row.label for row in rows if isinstance(row.label, int)}
    if first_label is not None or not numbers:
        return Classes(names, first_label or 0, by_key), []
    if min(numbers) == 0:
        return Classes(names, 0, by_key), []
    if max(numbers) == len(names.names):
        return Classes(names, 1, by_key), ["labels count from 1"]
    both = [Classes(names, first, by_key) for first in (0, 1)]
    agree = [sum(c.label(r) == c.of_folder(r.path) for r in rows) for c in both]
    if agree[0] != agree[1]:
        first = int(agree[1] > agree[0])
        return both[first], [f"labels count from {first}: so they agree with the class folders"]
    first = names.first_id or 0
    return both[first], [f"labels are taken to count from {first}; say --first-label if not"]


def _folder(rows: Sequence[Listed], videos: Path | None, beside: Path) -> Folder:
    """The videos' folder; without one, absolute paths stand alone, others lie by the list."""
    if videos is None and all(PurePosixPath(row.path).is_absolute() for row in rows):
        return Folder(Path("/"), {})
    return scan(videos or beside, layout=LAYOUT)
