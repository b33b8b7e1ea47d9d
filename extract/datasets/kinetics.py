"""Kinetics-400, -600 and -700 as people have them.

Files are called `<youtube id>.mp4` or `<youtube id>_000417_000427.mp4` (any video suffix), in
class folders with spaces or underscores, under `train*/` and `val*/` or not, or flat.

    val     k400: the official list, shipped.  Others: the user's csv, or else the class folders
    train   the user's Kinetics csv if one lies in the folder, or else the class folders

A video's id is its youtube id, whichever of these named it.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bieff.extract.datasets import official
from bieff.extract.datasets.dataset import DataSet, Mislabelled, note_mislabelled, require_found
from bieff.extract.datasets.files import (
    YOUTUBE_FILE,
    Folder,
    partition_of,
    scan,
    stem,
    without_suffix,
)
from bieff.extract.datasets.official import CLIP_SECONDS, KineticsClip, kinetics_clip
from bieff.features.class_names import LabelIndex
from bieff.features.schema import Video

LAYOUT = (
    "class folders, under train/ and val/ or not, with files such as "
    "<youtube id>_000417_000427.mp4 or <youtube id>.mp4"
)

_COLUMNS = {"label", "youtube_id", "time_start"}


@dataclass(frozen=True, slots=True)
class _File:
    """A video that lies there, and what its path says about it."""

    path: str
    youtube_id: str | None
    start: int | None
    """Seconds; None where the name does not say."""

    label: int | None
    """Class of the folder it lies in, if any."""

    partition: str | None
    """Role of the folder it lies in, if any."""

    @property
    def clip(self) -> KineticsClip:
        """The clip that a file in a class folder stands for."""
        assert self.label is not None
        start = self.start or 0
        name = self.youtube_id or without_suffix(self.path)
        return KineticsClip(self.label, name, start, start + CLIP_SECONDS)


@dataclass(frozen=True, slots=True)
class _Part:
    """A partition: the clips it lists, each with its file if that was found."""

    name: str
    source: str
    """Name of who lists them."""

    clips: Sequence[tuple[KineticsClip, _File | None]]
    is_listed: bool = True
    """False where the folders alone tell, which do not know when a clip begins."""

    @property
    def num_found(self) -> int:
        return sum(file is not None for _, file in self.clips)

    def __str__(self) -> str:
        found = f"{self.num_found:,} of {len(self.clips):,} videos found"
        left_out = "" if self.num_found else "; left out"
        return f"{self.name}: {found}, listed by {self.source}{left_out}"


def load_kinetics(name: str, videos: Path, *, trim: bool = False) -> DataSet:
    """Load "k400", "k600" or "k700" from the folder `videos`.

    A partition of which no video is found is left out, and `notes` says so.  With `trim` files
    without seconds in their names are whole videos, of which the listed part is meant.

    Raises:
        InputError: If the folder is missing or holds none of the set's videos, or a csv names
            an unknown class.
    """
    folder = scan(videos, layout=LAYOUT)
    names = [words for _, words in official.class_names(name)]
    all_parts = _parts(name, folder, LabelIndex(names, source=name))
    parts = [part for part in all_parts if part.num_found]
    partitions = {part.name: _videos(name, part, folder, names, trim) for part in parts}
    used = {file.path for part in parts for _, file in part.clips if file is not None}
    mislabelled = tuple(
        Mislabelled(part.name, file.path, names[clip.label], names[file.label])
        for part in parts
        for clip, file in part.clips
        if file is not None and file.label not in (None, clip.label)
    )
    data = DataSet(
        name=name,
        class_names=tuple(names),
        partitions=partitions,
        root=videos,
        notes=(*folder.notes, *map(str, all_parts), *note_mislabelled(mislabelled)),
        class_subsets=official.zero_shot_splits() if name == "k600" else {},
        missing=frozenset(
            video.id
            for part in parts
            for video, (_, file) in zip(partitions[part.name], part.clips, strict=True)
            if file is None
        ),
        unlisted=tuple(path for path in folder.videos if path not in used),
        mislabelled=mislabelled,
        uncut=tuple(
            file.path
            for part in parts
            for _, file in part.clips
            if file is not None and file.start is None and not (trim and part.is_listed)
        ),
        clip_seconds=CLIP_SECONDS,
    )
    return require_found(data, layout=LAYOUT)


def _parts(name: str, folder: Folder, labels: LabelIndex) -> list[_Part]:
    """Each partition from the list that names it, or else from the class folders."""
    files = _describe(folder.videos, labels)
    lists = _read_tables(folder, labels)
    if name == "k400":
        lists["val"] = ("the official list", list(official.kinetics_val()))
    listed = {clip.youtube_id for _, clips in lists.values() for clip in clips}
    free = [f for f in files if f.label is not None and f.youtube_id not in listed]
    # Kinetics-600 without folders or lists is for evaluation
    elsewhere = "val" if name == "k600" else "train"
    parts = []
    for part in ("train", "val"):
        if part in lists:
            source, clips = lists[part]
            parts.append(_Part(part, source, _match(clips, files, part)))
            continue
        # one file for each clip and class, the first by path
        first: dict[tuple[object, ...], _File] = {}
        for file in free:
            if (file.partition or elsewhere) == part:
                first.setdefault((file.youtube_id or file.path, file.start, file.label), file)
        source = "the class folders, as no Kinetics csv in the folder does"
        clips_found = [(file.clip, file) for file in first.values()]
        parts.append(_Part(part, source, clips_found, is_listed=False))
    return parts


def _describe(paths: Iterable[str], labels: LabelIndex) -> list[_File]:
    @cache
    def of_folder(parent: str) -> tuple[int | None, str | None]:
        folders = parent.split("/")
        classes = [labels.find(folder) for folder in folders]
        label = next((label for label in reversed(classes) if label is not None), None)
        others = [f for f, own in zip(folders, classes, strict=True) if own is None]
        return label, partition_of(others)

    files = []
    for path in paths:
        match = YOUTUBE_FILE.fullmatch(stem(path))
        youtube_id, start = (match[1], match[2]) if match else (None, None)
        seconds = int(start) if start else None
        files.append(_File(path, youtube_id, seconds, *of_folder(path.rpartition("/")[0])))
    return files


def _read_tables(
    folder: Folder, labels: LabelIndex
) -> dict[str, tuple[str, list[KineticsClip]]]:
    """Partition -> the first csv in the folder that lists it, and its clips.

    Raises:
        InputError: If a Kinetics csv names an unknown class or has a broken line.
    """
    lists: dict[str, tuple[str, list[KineticsClip]]] = {}
    for table in folder.tables:
        for part, clip in _read_table(folder.root / table, labels):
            source, clips = lists.setdefault(part, (table, []))
            if source == table:
                clips.append(clip)
    lists.pop("test", None)
    return lists


def _read_table(path: Path, labels: LabelIndex) -> Iterator[tuple[str, KineticsClip]]:
    """Partition and clip of each line of a Kinetics csv; nothing if it is another table."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        if not _COLUMNS.issubset(reader.fieldnames or ()):
            return
        by_name = partition_of([path.stem]) or "train"
        for row in reader:
            split = partition_of([row.get("split") or by_name])
            yield split or by_name, kinetics_clip(row, labels, str(path))


def _match(
    clips: Sequence[KineticsClip], files: Sequence[_File], part: str
) -> list[tuple[KineticsClip, _File | None]]:
    """Each clip with its file: the same youtube id, and the same start if the name has one."""
    by_id: dict[str | None, list[_File]] = {}
    for file in files:
        by_id.setdefault(file.youtube_id, []).append(file)

    def best(clip: KineticsClip) -> _File | None:
        fitting = [f for f in by_id.get(clip.youtube_id, ()) if f.start in (None, clip.start)]
        # one in the folders that the list says, then in no particular, then in any
        return min(
            fitting,
            key=lambda f: (f.partition not in (None, part), f.label != clip.label, f.path),
            default=None,
        )

    return [(clip, best(clip)) for clip in clips]


def _videos(
    name: str, part: _Part, folder: Folder, names: Sequence[str], trim: bool
) -> list[Video]:
    """The partition's videos; where it lists one youtube id twice, ids say more."""
    subsets = official.zero_shot_splits() if name == "k600" else {}
    roles = [
        {part.name: part.name} | {k: "test" for k, subset in subsets.items() if label in subset}
        for label in range(len(names))
    ]
    count = Counter(clip.youtube_id for clip, _ in part.clips)
    videos = []
    for clip, file in part.clips:
        full = f"{names[clip.label]}/{clip.youtube_id}_{clip.start:06d}_{clip.end:06d}"
        is_cut = trim and part.is_listed and file is not None and file.start is None
        videos.append(
            Video(
                id=clip.youtube_id if count[clip.youtube_id] == 1 else full,
                path=file.path if file else f"{part.name}/{full}.mp4",
                label=clip.label,
                size=folder.videos[file.path] if file else 0,
                splits=roles[clip.label],
                start=float(clip.start) if is_cut else None,
                end=float(clip.end) if is_cut else None,
            )
        )
    return videos
