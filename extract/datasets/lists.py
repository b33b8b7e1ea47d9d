"""The data set "list": list files and a label file of one's own, and a folder of videos.

Labels are held against the class folders where there are any.  Several well-known repositories
pair lists of HMDB-51 with a label file in another order, and score 120 of 1,530 test videos
against the wrong name: that is found here.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from bieff.extract.datasets.dataset import DataSet, Mislabelled, require_found
from bieff.extract.datasets.files import (
    VIDEO_SUFFIXES,
    YOUTUBE_FILE,
    FileIndex,
    Folder,
    folders_of,
    ids_of,
    scan,
)
from bieff.extract.datasets.official import CLIP_SECONDS
from bieff.features.class_names import (
    DELIMITERS,
    ClassNames,
    LabelIndex,
    column_key,
    join_unquoted,
    read_class_names,
    read_text,
    readable,
    split_line,
)
from bieff.features.errors import InputError
from bieff.features.files import parse_json
from bieff.features.schema import UNLABELLED, Video

_SUFFIXES = "|".join(re.escape(suffix[1:]) for suffix in sorted(VIDEO_SUFFIXES))
_TO_SUFFIX = re.compile(
    rf'"?(.*\.(?:{_SUFFIXES}))"?(?:\s*([,;|\t])\s*(.*)|\s+(.*))?', re.IGNORECASE
)
_NUMBER = re.compile(r"-?\d{1,18}(?:\.\d+)?")

_PATH_COLUMNS = (
    "path", "videopath", "filepath", "video", "filename", "file", "videoname", "vidname",
    "clip", "clippath", "name", "videoid", "id",
)  # fmt: skip
_LABEL_COLUMNS = (
    "template", "label", "labelid", "classid", "classindex", "target", "class", "labelname",
    "classname", "category", "tag", "action", "labels",
)  # fmt: skip
"""Names of columns, by their key; the first of them that a header has is taken."""

_SEVERAL = {"labels", "labelids", "classes", "actions", "tags", "categories"}

_EDGE = re.compile(
    r"(t|time|frame|video|clip|seg|segment|action)?(?:(start|begin)|end|stop)"
    r"(t|time|timestamp|frame|index|idx|s|sec|seconds)?"
)
"""Columns where a part of a video begins or ends."""

_SEGMENTS = (
    "a video, or a part of it, has one class; for parts put a header above the columns: "
    "path,start,end,label, times in seconds or h:mm:ss"
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of a list."""

    line: int
    """Number from 1, for messages."""

    path: str
    label: int | str | None
    """Number, name, or None where the list says nothing (or -1)."""

    whole: str | None = None
    """The label with the number before it, which was taken as a number of frames."""

    times: tuple[float, float] | None = None
    """Start and end of a part, seconds; None: the whole video."""


def read_list(path: Path, part: str = "all", *, trim: bool = False) -> list[Listed]:
    """Read a list file of any form.

    Args:
        path: The file.
        part: "train", "val" or "all"; one json of ActivityNet or Kinetics holds both.
        trim: Lines with a YouTube id mean parts of whole videos, not files of their own.

    Raises:
        InputError: If the file cannot be read or is empty, or a line can be read in several
            ways.
    """
    text = read_text(path)
    lines = [(k, line.strip()) for k, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"list {path}: expected a video a line, got an empty file")
    if path.suffix.lower() in (".json", ".jsonl"):
        return _slashed(_from_json(text, lines, path, part, trim=trim))
    for delimiter in DELIMITERS:
        columns = [column_key(name) for name in split_line(lines[0][1], delimiter)]
        if len(columns) > 1 and _first(columns, (*_PATH_COLUMNS, "youtubeid")):
            return _slashed(_from_table(lines, columns, delimiter, path, trim=trim))
    words = [column_key(word) for word in lines[0][1].split()]
    if len(words) > 1 and words[0] in _PATH_COLUMNS and words[-1] in _LABEL_COLUMNS:
        lines = lines[1:]
    return _slashed(_from_rows([_split(line, lines) for line in lines], path))


def _slashed(rows: Iterable[Listed]) -> list[Listed]:
    """The rows, paths of Windows written as elsewhere."""
    return [replace(row, path=row.path.replace("\\", "/")) for row in rows]


@dataclass(frozen=True, slots=True)
class _Row:
    """A line without a header above it: a path, and the fields behind it."""

    line: int
    path: str
    fields: Sequence[str]
    delimiter: str

    @property
    def numbers(self) -> int:
        """Number of fields, if all are numbers; otherwise 0."""
        return len(self.fields) if all(map(_NUMBER.fullmatch, self.fields)) else 0

    def edges(self) -> tuple[int, int]:
        """Counts of the numbers before and behind the words."""
        is_number = [_NUMBER.fullmatch(field) is not None for field in self.fields]
        return is_number.index(False), is_number[::-1].index(False)


def _split(line: tuple[int, str], lines: Sequence[tuple[int, str]]) -> _Row:
    number, text = line
    if match := _TO_SUFFIX.fullmatch(text):
        path, delimiter, rest = match[1], match[2] or " ", match[3] or match[4] or ""
        if delimiter == " ":
            numbers = re.split(r"[\s,;]+", rest.strip(" ,;"))
            is_numeric = all(map(_NUMBER.fullmatch, numbers))
            return _Row(number, path, numbers if is_numeric else rest.split(), delimiter)
        fields = split_line(rest, delimiter)
        if len(fields) == 1 and all(map(_NUMBER.fullmatch, fields[0].split())):
            fields = fields[0].split()  # `a.mp4,120 3`
        return _Row(number, path, [field for field in fields if field], delimiter)
    if delimiters := sorted(filter(text.__contains__, DELIMITERS), key=text.index):
        delimiter = "\t" if "\t" in delimiters else delimiters[0]
        fields = [field.strip() for field in text.split(delimiter)]
        end = max((k for k, field in enumerate(fields[:-1]) if "/" in field), default=0) + 1
        path = f"{delimiter} ".join(fields[:end])
        return _Row(number, path, [field for field in fields[end:] if field], delimiter)
    # without a suffix only the whole file tells what belongs to the path
    has_frames = all(_ends_in_two_numbers(other) for _, other in lines)
    fields = text.rsplit(None, 2 if has_frames else 1)
    if len(fields) == 1 or not _NUMBER.fullmatch(fields[-1]):
        return _Row(number, text, (), " ")
    return _Row(number, fields[0], fields[1:], " ")


def _ends_in_two_numbers(line: str) -> bool:
    fields = line.rsplit(None, 2)
    return len(fields) == 3 and all(map(_NUMBER.fullmatch, fields[1:]))


def _from_rows(rows: Sequence[_Row], source: Path) -> list[Listed]:
    """Labels of the lines, which are read alike: a column is of frames or votes in all."""
    numeric = [row for row in rows if row.numbers]
    worded = [row for row in rows if row.fields and not row.numbers]
    several = [row for row in numeric if row.numbers > 1]
    for row in numeric:
        if row.numbers > 2 or any("." in field for field in row.fields):
            raise _refusal(
                row, source, f"got {row.numbers} numbers behind the path; {_SEGMENTS}"
            )
    has_zero = {int(row.fields[0]) == 0 for row in several}
    if several and (len(several) < len(numeric) or has_zero == {True, False}):
        raise _refusal(
            several[0],
            source,
            f"got {' '.join(several[0].fields)!r}, which are not frames and a label in every "
            "line; a video of several classes cannot be used",
        )
    first = min((row.edges()[0] for row in worded), default=0)
    is_table = all(row.delimiter != " " for row in worded)
    last = min((row.edges()[1] for row in worded), default=0) if is_table else 0
    listed = []
    for row in rows:
        if row.numbers or not row.fields:
            listed.append(Listed(row.line, row.path, _number(row.fields[-1:])))
            continue
        words = row.fields[first : len(row.fields) - last]
        separator = row.delimiter if row.delimiter == " " else f"{row.delimiter} "
        name = separator.join(words)
        got = f"got {separator.join(row.fields)!r}"
        if first > 1:
            raise _refusal(row, source, f"{got}; {_SEGMENTS}")
        if is_table and words[1:] and (row.delimiter != "," or _NUMBER.fullmatch(words[-1])):
            raise _refusal(row, source, f"{got}; put a header above the columns")
        whole = separator.join(row.fields[: len(row.fields) - last]) if first else None
        listed.append(Listed(row.line, row.path, name, whole))
    return listed


def _refusal(row: _Row, source: Path, got: str) -> InputError:
    return InputError(
        f"list {source}, line {row.line}: expected a path and a label, or a path, a number of "
        f"frames and a label, {got}"
    )


def _number(fields: Sequence[str]) -> int | None:
    return None if not fields or fields[0] == "-1" else int(fields[0])


def _from_table(
    lines: Sequence[tuple[int, str]],
    columns: list[str],
    delimiter: str,
    source: Path,
    *,
    trim: bool,
) -> list[Listed]:
    above = f"list {source}, line {lines[0][0]}"
    edges = _edge_columns(columns, above)
    label = _label_column(columns)
    is_charades = {"id", "actions", "length"} <= set(columns)
    several = next((column for column in columns if column in _SEVERAL), None)
    listed: list[Listed] = []
    for number, line in lines[1:]:
        where = f"list {source}, line {number}"
        fields = split_line(line, delimiter)
        if label is not None and not _NUMBER.fullmatch(fields[-1]):
            fields = join_unquoted(fields, len(columns), columns.index(label), delimiter)
        if len(fields) != len(columns):
            raise InputError(
                f"{where}: expected {len(columns)} columns as in the header, got {line!r}"
            )
        # of two columns of one name the first counts, as it names the label
        values = dict(zip(reversed(columns), reversed(fields), strict=True))
        is_one = label and (label != several or not re.search("[;|]", values[label]))
        if several and not is_one and not is_charades:
            raise InputError(
                f"{above}: expected a column of one class, such as label, got {several!r}; "
                "write a line for each class and the part that shows it: id,class,start,end"
            )
        if is_charades:
            listed += _from_charades(number, values, where)
        else:
            listed.append(_from_record(number, values, edges, where, trim=trim))
    return listed


def _from_charades(line: int, values: Mapping[str, str], where: str) -> Iterator[Listed]:
    """A part for each action of a video, as in `c092 11.90 21.20;c147 0.00 12.60`."""
    for action in filter(None, values["actions"].split(";")):
        try:
            label, start, end = action.split()
        except ValueError:
            raise InputError(
                f"{where}: expected actions such as 'c092 11.90 21.20', got {action!r}"
            ) from None
        times = (_seconds(start, where), _seconds(end, where))
        yield Listed(line, values["id"], label, times=times)


def _from_json(
    text: str, lines: Sequence[tuple[int, str]], source: Path, part: str, *, trim: bool
) -> list[Listed]:
    """Records with a path and a label, in a list or one a line; or labels by path."""
    is_one = source.suffix.lower() == ".json"
    try:
        value = parse_json(text) if is_one else [parse_json(line) for _, line in lines]
    except ValueError as error:
        raise InputError(f"list {source}: not json: {error}") from None
    if isinstance(value, dict) and all(isinstance(v, str | int) for v in value.values()):
        value = [{"path": path, "label": label} for path, label in value.items()]
    listed = []
    value = _annotations(value, part)
    for number, record in enumerate(value if isinstance(value, list) else [value], start=1):
        fields = record.items() if isinstance(record, dict) else ()
        values = {column_key(k): str(v) for k, v in fields if isinstance(v, str | int | float)}
        where = f"list {source}, entry {number}"
        for name, several in fields:
            if column_key(name) in _LABEL_COLUMNS and isinstance(several, list):
                raise InputError(
                    f"{where}: expected one class, got {several!r}; a video of several classes "
                    "cannot be used"
                )
        if values.get("startframe") == "0":  # of Diving48, whose clips are files
            del values["startframe"], values["endframe"]
        edges = _edge_columns(values, where)
        if _first(values, (*_PATH_COLUMNS, "youtubeid")) is None:
            raise InputError(
                f"{where}: expected a record such as {{'path': ..., 'label': ...}}, got "
                f"{str(record)[:60]!r}"
            )
        listed.append(_from_record(number, values, edges, where, trim=trim))
    return listed


def _annotations(value: Any, part: str) -> Any:
    """A record for each annotation of ActivityNet's json, or Kinetics'; any other as it is."""
    entries = value.get("database", value) if isinstance(value, dict) else None
    if not entries or not all(
        isinstance(entry, dict) and "annotations" in entry for entry in entries.values()
    ):
        return value
    records = []
    for name, entry in entries.items():
        if part != "all" and not str(entry.get("subset", part)).startswith(part):
            continue
        found = entry["annotations"]
        for one in found if isinstance(found, list) else [found]:
            start, end = one["segment"]
            record = {"label": one["label"], "timestart": start, "timeend": end}
            # files of ActivityNet are called v_<id>.mp4
            key = {"path": f"v_{name}"} if entries is not value else {"youtubeid": name}
            records.append(record | key)
    return records


def _edge_columns(columns: Iterable[str], where: str) -> tuple[str, str] | None:
    """The columns where parts begin and end; None: videos are whole."""
    matches = {column: match for column in columns if (match := _EDGE.fullmatch(column))}
    edges: dict[bool, str] = {}
    for column, match in matches.items():
        if not {"frame", "index", "idx"} & {match[1], match[3]}:
            edges.setdefault(match[2] is not None, column)
    if not matches or (edges and "youtubeid" in columns):
        return (edges[True], edges.get(False, "")) if True in edges else None
    if len(edges) < 2:
        raise InputError(
            f"{where}: expected columns of starts and of ends in seconds, got a column "
            f"{next(iter(matches))!r}; add the other, or leave the column out"
        )
    return edges[True], edges[False]


def _seconds(text: str, where: str) -> float:
    """A time as "12.5" or "00:00:12.50"."""
    try:
        parts = [float(part) for part in text.split(":")]
        seconds = sum(part * (1, 60, 3600)[k] for k, part in enumerate(reversed(parts)))
    except (ValueError, IndexError):
        seconds = -1.0
    if not 0 <= seconds < 10**7:
        raise InputError(f"{where}: expected times in seconds or h:mm:ss, got {text!r}")
    return round(seconds, 6)


def _label_column(columns: Iterable[str]) -> str | None:
    path = _first(columns, _PATH_COLUMNS)
    return _first((column for column in columns if column != path), _LABEL_COLUMNS)


def _from_record(
    line: int,
    values: Mapping[str, str],
    edges: tuple[str, str] | None,
    where: str,
    *,
    trim: bool,
) -> Listed:
    """A line by the keys of its columns; `youtubeid` makes it one of Kinetics."""
    column = _label_column(values)
    value = values[column] if column else ""
    label: int | str | None = value or None
    if re.fullmatch(r"-?\d{1,18}(\.0+)?", value):  # pandas writes 3.0 where some are missing
        label = _number([value.partition(".")[0]])
    elif column == "template":
        label = re.sub(r"[\[\]]", "", value)  # Something-Something's "Pushing [something]"
    times = None
    if edges is not None and (values[edges[0]] or values.get(edges[1])):
        start = _seconds(values[edges[0]] or "0", where)
        end = values.get(edges[1])
        times = (start, _seconds(end, where) if end else start + CLIP_SECONDS)
    if "youtubeid" not in values:
        return Listed(line, values[_first(values, _PATH_COLUMNS) or ""], label, times=times)
    if trim:
        return Listed(line, values["youtubeid"], label, times=times)
    first, last = map(int, times or (0, CLIP_SECONDS))
    return Listed(line, f"{values['youtubeid']}_{first:06d}_{last:06d}", label)


def _first(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    present = set(names)
    return next((name for name in wanted if name in present), None)


LAYOUT = "the videos that the list names, by the same file name and parent folder"

PARTITIONS = ("train", "val", "all")


@dataclass(frozen=True, slots=True)
class Classes:
    """Meaning of a list's labels."""

    names: ClassNames
    first: int
    """The number that the lists give to the first class."""

    index: LabelIndex

    def label(self, listed: Listed) -> int | None:
        """Label from 0, None if the line says nothing or nothing that is known."""
        if listed.label is None:
            return self.of_folder(listed.path)
        if isinstance(listed.label, str):
            whole = None if listed.whole is None else self.index.find(listed.whole)
            return self.index.find(listed.label) if whole is None else whole
        label = listed.label - self.first
        return label if 0 <= label < len(self.names.names) else None

    def of_folder(self, path: str) -> int | None:
        """Label of the nearest folder that is called as a class."""
        for folder in reversed(folders_of(path)):
            if (label := self.index.find(folder)) is not None:
                return label
        return None


def load_lists(
    lists: Mapping[str, Path],
    *,
    videos: Path | None = None,
    labels: Path | None = None,
    first_label: int | None = None,
    trim: bool = False,
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
    rows = {part: read_list(path, part, trim=trim) for part, path in lists.items()}
    together = [row for part in rows.values() for row in part]
    if trim and not any(row.times for row in together):
        raise InputError(
            "--trim: no list has columns youtube_id, time_start and time_end; leave it out"
        )
    if labels is None:
        for part, listed in rows.items():
            _refuse_several(listed, lists[part])
    names = read_class_names(labels) if labels else _names_from(together)
    classes, notes = _classes(names, together, first_label)
    folder = _folder(together, videos, next(iter(lists.values())).parent)
    partitions: dict[str, list[Video]] = {}
    missing: set[str] = set()
    recased: list[str] = []
    mislabelled: list[Mislabelled] = []
    for part, listed in rows.items():
        index = FileIndex(folder, classes.index, part)
        found, wrong = _videos(part, listed, classes, index, source=lists[part])
        partitions[part] = [video for video, _ in found]
        missing |= {video.id for video, is_there in found if not is_there}
        mislabelled += wrong
        recased += index.recased
    if recased:
        notes.append(
            f"videos whose file name is in another case than in the list: {len(recased):,}, "
            f"the first is {recased[0]!r}"
        )
    layout = LAYOUT
    matches = (YOUTUBE_FILE.fullmatch(row.path) for row in together)
    if uncut := [m[0] for m in matches if m and m[2] and folder.of_name(m[1])]:
        notes.append(
            f"lines that stand for clips of videos that lie there whole: {len(uncut):,}, the "
            f"first is {uncut[0]!r}; say --trim for these parts of them"
        )
        layout += f", {uncut[0]!r} first; as whole videos of these ids are there, say --trim"
    if frames := [
        row for row in together if row.whole and classes.index.find(row.whole) is None
    ]:
        notes.append(
            f"numbers before class names are taken for numbers of frames, as in "
            f"{frames[0].whole!r}; say with --labels if they are of the names"
        )
    unlabelled = sum(v.label == UNLABELLED for part in partitions.values() for v in part)
    if unlabelled:
        why = "" if names.names else ", as neither a column nor the folders say one"
        notes.append(f"videos without a label: {unlabelled:,}{why}")
    if {"train", "val"} <= set(partitions):
        both = {v.path for v in partitions["train"]} & {v.path for v in partitions["val"]}
        if both:
            notes.append(f"videos in both the train and the val list: {len(both):,}")
    used = {video.path for part in partitions.values() for video in part}
    data = DataSet(
        name="list",
        class_names=names.readable,
        partitions=partitions,
        root=folder.root,
        notes=(*folder.notes, *notes),
        missing=frozenset(missing),
        unlisted=tuple(path for path in folder.videos if path not in used),
        mislabelled=tuple(mislabelled),
    )
    return require_found(data, layout=layout)


def _videos(
    part: str, listed: Sequence[Listed], classes: Classes, index: FileIndex, *, source: Path
) -> tuple[list[tuple[Video, bool]], list[Mislabelled]]:
    """The partition's videos, whether each was found, and those in a wrong class's folder."""
    called = classes.names.readable
    ids = ids_of(row.path for row in listed)
    videos: dict[str, tuple[Video, bool]] = {}
    first_ids: dict[str, str] = {}
    labels_of: dict[tuple[str, object], set[int | None]] = {}
    for row in listed:
        labels_of.setdefault((ids[row.path], row.times), set()).add(classes.label(row))
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
        if path is None and row.path.startswith("v_"):  # of ActivityNet
            path, size = index.locate(row.path[2:], where)
        name = first_ids.setdefault(path or row.path, ids[row.path])
        start, end = row.times or (None, None)
        if start is not None:
            name += f"@{start}-{end}"
            if label is not None and len(labels_of[ids[row.path], row.times]) > 1:
                name += f":{classes.names.names[label]}"  # one part under several classes
        video = Video(
            id=name,
            path=path or row.path,
            label=UNLABELLED if label is None else label,
            size=size,
            splits={} if part == "all" else {part: part},
            start=start,
            end=end,
        )
        before, _ = videos.setdefault(video.id, (video, path is not None))
        if before.label != video.label:
            raise InputError(
                f"{where}: {row.path!r} was listed before with another label; a whole video "
                "has one class, parts of it (path,start,end,label) may have others"
            )
        lies_in = classes.of_folder(path or row.path)
        if before is video and label is not None and lies_in is not None and lies_in != label:
            wrong.append(Mislabelled(part, video.path, called[label], called[lies_in]))
    # the parts of a file side by side, so that few shards decode it
    place = {video.path: k for k, (video, _) in reversed([*enumerate(videos.values())])}
    ordered = sorted(videos.values(), key=lambda v: (place[v[0].path], v[0].start or 0.0))
    return ordered, wrong


def _refuse_several(rows: Sequence[Listed], source: Path) -> None:
    """Refuse labels as "kick;run" where other lines say "run"."""
    known = {row.label for row in rows}
    for row in rows:
        words = re.split(r"\s*[,;|]\s*", row.label) if isinstance(row.label, str) else []
        if words[1:] and not known.isdisjoint(words):
            raise InputError(
                f"list {source}, line {row.line}: expected one class, got {row.label!r}; a "
                "video of several classes cannot be used"
            )


def _names_from(rows: Sequence[Listed]) -> ClassNames:
    """Class names where there is no label file: from the labels, or from the folders."""
    labels = {row.label for row in rows if row.label is not None}
    if not labels:
        folders = {folders_of(row.path)[-1] for row in rows if folders_of(row.path)}
        names = sorted(folders) if len(folders) > 1 else []
    elif all(isinstance(label, str) for label in labels):
        names = sorted({unicodedata.normalize("NFC", str(label)) for label in labels})
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
    index = LabelIndex(names.names, source="classes", other_names=names.readable)
    numbers = {row.label for row in rows if isinstance(row.label, int)}
    if first_label is not None or not numbers:
        return Classes(names, first_label or 0, index), []
    if min(numbers) == 0:
        return Classes(names, 0, index), []
    if max(numbers) == len(names.names):
        return Classes(names, 1, index), ["labels count from 1"]
    both = [Classes(names, first, index) for first in (0, 1)]
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
