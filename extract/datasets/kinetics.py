"""Kinetics-400 and -600 as people have them.

Files are called `<youtube id>.mp4` or `<youtube id>_000417_000427.mp4` (any video suffix), in
class folders with spaces or underscores, under `train*/` and `val*/` or not, or flat.

    val     k400: the official list, shipped.  k600: the user's csv, or else the class folders
    train   the user's Kinetics csv if one lies in the folder, or else the class folders

A video's id is its youtube id, whichever of these named it.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bieff.extract.datasets import official
from bieff.extract.datasets.dataset import DataSet, Mislabelled, note_mislabelled, require_found
from bieff.extract.datasets.files import Folder, partition_of, scan, stem, without_suffix
from bieff.extract.datasets.lists import SECONDS, Row, parse_row
from bieff.features.class_names import key, label_of_key
from bieff.features.schema import Video

_CLIP = re.compile(r"([\w-]{11})(?:_(\d{1,6})_(\d{1,6}))?")

_COLUMNS = {"label", "youtube_id", "time_start"}


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


LAYOUT = (
    "class folders, under train/ and val/ or not, with files such as "
    "<youtube id>_000417_000427.mp4 or <youtube id>.mp4"
)

PARTITIONS = ("train", "val")


@dataclass(frozen=True, slots=True)
class _Part:
    """A partition: the clips it lists, each with its file if that was found."""

    name: str
    source: str
    """Who lists them."""

    clips: Sequence[tuple[Row, ClipFile | None]]

    @property
    def note(self) -> str:
        found = f"{self.num_found:,} of {len(self.clips):,} videos found"
        left_out = "" if self.num_found else "; left out"
        return f"{self.name}: {found}, listed by {self.source}{left_out}"

    @property
    def num_found(self) -> int:
        return sum(file is not None for _, file in self.clips)


def load_kinetics(name: str, videos: Path) -> DataSet:
    """Load "k400" or "k600" from the folder `videos`.

    A partition of which no video is found is left out, and `notes` says so.

    Raises:
        InputError: If the folder is missing or holds none of the set's videos, or a csv names
            an unknown class.
    """
    folder = scan(videos, layout=LAYOUT)
    names = [words for _, words in official.class_names(name)]
    all_parts = _parts(name, folder, label_of_key(names, source=name))
    parts = [part for part in all_parts if part.num_found]
    partitions = {part.name: _videos(name, part, folder, names) for part in parts}
    used = {file.path for part in parts for _, file in part.clips if file is not None}
    mislabelled = tuple(wrong for part in parts for wrong in _mislabelled(part, names))
    data = DataSet(
        name=name,
        class_names=tuple(names),
        partitions=partitions,
        root=videos,
        notes=(*(part.note for part in all_parts), *note_mislabelled(mislabelled)),
        class_subsets=official.zero_shot_splits() if name == "k600" else {},
        missing=frozenset(
            video.id
            for part in parts
            for video, (_, file) in zip(partitions[part.name], part.clips, strict=True)
            if file is None
        ),
        unlisted=tuple(path for path in folder.videos if path not in used),
        mislabelled=mislabelled,
    )
    return require_found(data, layout=LAYOUT)


def _parts(name: str, folder: Folder, labels: Mapping[str, int]) -> list[_Part]:
    """Each partition from the list that names it, or else from the class folders."""
    files = describe(folder.videos, labels)
    lists = read_tables(folder, labels)
    if name == "k400":
        lists["val"] = ("the official list", list(official.kinetics_val()))
    listed = {row.youtube_id for _, rows in lists.values() for row in rows}
    free = [f for f in files if f.label is not None and f.youtube_id not in listed]
    parts = []
    for part in PARTITIONS:
        if part in lists:
            source, rows = lists[part]
            parts.append(_Part(part, source, _match(rows, files, part)))
        else:
            derived = _distinct([f for f in free if _belongs(f, part, name)])
            source = "the class folders, as no Kinetics csv in the folder does"
            parts.append(_Part(part, source, [(row_of(f), f) for f in derived]))
    return parts


def _match(
    rows: Sequence[Row], files: Sequence[ClipFile], part: str
) -> list[tuple[Row, ClipFile | None]]:
    """Each row with its file: the same youtube id, and the same start if the name has one."""
    by_id: dict[str, list[ClipFile]] = {}
    for file in files:
        if file.youtube_id is not None:
            by_id.setdefault(file.youtube_id, []).append(file)

    matched: list[tuple[Row, ClipFile | None]] = []
    for row in rows:
        fitting = [f for f in by_id.get(row.youtube_id, ()) if f.start in (None, row.start)]
        # one in the folders that the row says, then in no particular, then in any
        fitting.sort(
            key=lambda f: (f.partition not in (None, part), f.label != row.label, f.path)
        )
        matched.append((row, fitting[0] if fitting else None))
    return matched


def _belongs(file: ClipFile, part: str, name: str) -> bool:
    """Whether a file that no list names is one of the partition, by the folder it lies in."""
    if file.partition is None:  # Kinetics-600 without folders or lists is for evaluation
        return part == ("train" if name == "k400" else "val")
    return file.partition == part


def _distinct(files: Sequence[ClipFile]) -> list[ClipFile]:
    """One file for each clip and class, the first by path."""
    first: dict[tuple[str, int | None, int | None], ClipFile] = {}
    for file in files:
        first.setdefault((file.youtube_id or file.path, file.start, file.label), file)
    return list(first.values())


def _videos(name: str, part: _Part, folder: Folder, names: Sequence[str]) -> list[Video]:
    """The partition's videos; where it lists one youtube id twice, ids say more."""
    subsets = official.zero_shot_splits() if name == "k600" else {}
    roles = [
        {part.name: part.name} | {k: "test" for k, subset in subsets.items() if label in subset}
        for label in range(len(names))
    ]
    count = Counter(row.youtube_id for row, _ in part.clips)
    videos = []
    for row, file in part.clips:
        clip = f"{names[row.label]}/{row.youtube_id}_{row.start:06d}_{row.end:06d}"
        path = file.path if file else f"{part.name}/{clip}.mp4"
        videos.append(
            Video(
                id=row.youtube_id if count[row.youtube_id] == 1 else clip,
                path=path,
                label=row.label,
                size=folder.videos[path] if file else 0,
                splits=roles[row.label],
            )
        )
    return videos


def _mislabelled(part: _Part, names: Sequence[str]) -> list[Mislabelled]:
    wrong = []
    for row, file in part.clips:
        if file is not None and file.label is not None and file.label != row.label:
            label, folder = names[row.label], names[file.label]
            wrong.append(
                Mislabelled(partition=part.name, path=file.path, label=label, folder=folder)
            )
    return wrong
