"""Kinetics-400 and -600 as people have them.

Files are called `<youtube id>.mp4` or `<youtube id>_000417_000427.mp4` (any video suffix), in
class folders with spaces or underscores, under `train*/` and `val*/` or not, or flat.

    val     k400: the official list, shipped.  k600: the user's csv, or the class folders
    train   the user's Kinetics csv if one lies in the folder, or else the class folders

A Kinetics csv has the columns label, youtube_id, time_start, time_end and mostly split.
"""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bieff.extract.datasets import official
from bieff.extract.datasets.dataset import DataSet, Mislabelled, require_found
from bieff.extract.datasets.names import key, label_of_key
from bieff.extract.datasets.scan import Folder, partition_of, scan, stem, without_suffix
from bieff.features.errors import InputError
from bieff.features.schema import Video

LAYOUT = (
    "class folders, under train/ and val/ or not, with files such as "
    "<youtube id>_000417_000427.mp4 or <youtube id>.mp4"
)

_CLIP = re.compile(r"([\w-]{11})(?:_(\d{1,6})_(\d{1,6}))?")

_COLUMNS = {"label", "youtube_id", "time_start"}


@dataclass(frozen=True, slots=True)
class _File:
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
class _Row:
    """A line of a Kinetics list."""

    label: int
    youtube_id: str
    start: int
    end: int


def load_kinetics(name: str, videos: Path) -> DataSet:
    """Load "k400" or "k600" from the folder `videos`.

    A partition of which no video is found is left out, and `notes` says so.

    Raises:
        InputError: If the folder is missing or holds none of the set's videos, or a csv names
            an unknown class.
    """
    folder = scan(videos, layout=LAYOUT)
    names = [words for _, words in official.class_names(name)]
    labels = label_of_key(names, source=name)
    files = [_describe(path, labels) for path in folder.videos]
    lists, sources = _lists(name, folder, labels)
    matched = {part: _match(rows, files, part) for part, rows in lists.items()}
    listed = {row.youtube_id for rows in lists.values() for row in rows}
    free = [f for f in files if f.label is not None and f.youtube_id not in listed]
    for part in ("train", "val"):
        if part not in lists:
            derived = [f for f in free if _belongs(f, part, name)]
            matched[part] = [(_row_of(f), f) for f in _distinct(derived)]
            sources[part] = "the class folders (no Kinetics csv in the folder lists it)"
    partitions: dict[str, list[Video]] = {}
    missing: set[str] = set()
    mislabelled: list[Mislabelled] = []
    notes: list[str] = []
    for part in ("train", "val"):
        found = sum(file is not None for _, file in matched[part])
        notes.append(f"{part}: {found:,} of {len(matched[part]):,} listed by {sources[part]}")
        if not found:
            notes[-1] += "; left out"
            continue
        partitions[part] = _videos(name, part, matched[part], folder, names)
        ids = zip(partitions[part], matched[part], strict=True)
        missing |= {video.id for video, (_, file) in ids if file is None}
        mislabelled += [
            Mislabelled(
                partition=part, path=f.path, label=names[row.label], folder=names[f.label]
            )
            for row, f in matched[part]
            if f is not None and f.label is not None and f.label != row.label
        ]
    used = {f.path for pairs in matched.values() for _, f in pairs if f is not None}
    data = DataSet(
        name=name,
        class_names=tuple(names),
        partitions=partitions,
        root=videos,
        notes=tuple(notes),
        class_subsets=official.zero_shot_splits() if name == "k600" else {},
        missing=frozenset(missing),
        unlisted=tuple(path for path in folder.videos if path not in used),
        mislabelled=tuple(mislabelled),
    )
    return require_found(data, layout=LAYOUT)


def _describe(path: str, labels: Mapping[str, int]) -> _File:
    match = _CLIP.fullmatch(stem(path))
    parents = PurePosixPath(path).parent.parts
    own = [labels[key(part)] for part in parents if key(part) in labels]
    return _File(
        path=path,
        youtube_id=match[1] if match else None,
        start=int(match[2]) if match and match[2] else None,
        label=own[-1] if own else None,
        partition=partition_of(part for part in parents if key(part) not in labels),
    )


def _lists(
    name: str, folder: Folder, labels: Mapping[str, int]
) -> tuple[dict[str, list[_Row]], dict[str, str]]:
    """Rows of each partition that some list names, and where they come from."""
    lists: dict[str, list[_Row]] = {}
    sources: dict[str, str] = {}
    for table in folder.tables:
        for part, row in _read(folder.root / table, labels):
            if sources.setdefault(part, table) == table:
                lists.setdefault(part, []).append(row)
    lists.pop("test", None)
    if name == "k400":
        rows = official.kinetics_val()
        lists["val"] = [_row(row, labels, "the official list") for row in rows]
        sources["val"] = "the official list"
    return lists, sources


def _read(path: Path, labels: Mapping[str, int]) -> Iterator[tuple[str, _Row]]:
    """Partition and row of each line of a Kinetics csv; nothing if it is another table."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not _COLUMNS.issubset(reader.fieldnames or ()):
            return
        by_name = partition_of([path.stem]) or "train"
        for values in reader:
            split = values.get("split") or by_name
            yield partition_of([split]) or by_name, _row(values, labels, str(path))


def _row(values: Mapping[str, str], labels: Mapping[str, int], source: str) -> _Row:
    label = labels.get(key(values["label"]))
    if label is None:
        raise InputError(
            f"{source}: unknown class {values['label']!r}; is it the list of another Kinetics?"
        )
    start = int(float(values["time_start"]))
    end = int(float(values.get("time_end") or start + 10))
    return _Row(label, values["youtube_id"], start, end)


def _match(rows: list[_Row], files: list[_File], part: str) -> list[tuple[_Row, _File | None]]:
    """Each row with its file: the same youtube id, and the same start if the name has one."""
    by_id: dict[str, list[_File]] = {}
    for file in files:
        if file.youtube_id is not None:
            by_id.setdefault(file.youtube_id, []).append(file)

    def find(row: _Row) -> _File | None:
        fitting = [f for f in by_id.get(row.youtube_id, ()) if f.start in (None, row.start)]
        return min(
            fitting,
            key=lambda f: (f.partition not in (None, part), f.label != row.label, f.path),
            default=None,
        )

    return [(row, find(row)) for row in rows]


def _belongs(file: _File, part: str, name: str) -> bool:
    """Whether a file that no list names is one of the partition, by the folder it lies in."""
    if file.partition is None:  # Kinetics-600 without folders or lists is for evaluation
        return part == ("train" if name == "k400" else "val")
    return file.partition == part


def _distinct(files: list[_File]) -> list[_File]:
    """One file for each clip and class, the first by path."""
    first: dict[tuple[str, int | None, int | None], _File] = {}
    for file in files:
        first.setdefault((file.youtube_id or file.path, file.start, file.label), file)
    return list(first.values())


def _row_of(file: _File) -> _Row:
    assert file.label is not None
    start = file.start or 0
    return _Row(file.label, file.youtube_id or without_suffix(file.path), start, start + 10)


def _videos(
    name: str,
    part: str,
    matched: list[tuple[_Row, _File | None]],
    folder: Folder,
    names: list[str],
) -> list[Video]:
    """The partition's videos; ids are youtube ids, with the times where one has two."""
    counts: dict[str, int] = {}
    for row, _ in matched:
        counts[row.youtube_id] = counts.get(row.youtube_id, 0) + 1
    subsets = official.zero_shot_splits() if name == "k600" else {}
    roles = [
        {part: part} | {k: "test" for k, subset in subsets.items() if label in subset}
        for label in range(len(names))
    ]
    videos = []
    for row, file in matched:
        clip = f"{row.youtube_id}_{row.start:06d}_{row.end:06d}"
        path = file.path if file else f"{part}/{names[row.label]}/{clip}.mp4"
        videos.append(
            Video(
                id=row.youtube_id if counts[row.youtube_id] == 1 else clip,
                path=path,
                label=row.label,
                size=folder.videos[path] if file else 0,
                splits=roles[row.label],
            )
        )
    return videos
