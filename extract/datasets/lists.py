"""List files, in every form people have them: which videos, with which label.

    path label                  the path may hold spaces; columns are split off from the right
    path num_frames label
    path,label                  or with tabs, or `path,num_frames,label`
    path                        the class is that of the folder
    path,...,label,...          csv with a header, columns in any order

Labels are numbers or names.  No character starts a comment: names of HMDB-51 hold
`# ( ) [ ] ! & ; + ~ @`.  Where a video's suffix ends the path, that decides, so a path may end
in ` 3.avi` or a label be several words.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bieff.extract.datasets.labels import read_text
from bieff.extract.datasets.scan import VIDEO_SUFFIXES
from bieff.features.errors import InputError

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
