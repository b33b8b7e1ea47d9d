"""The data set "list": list files and a label file of one's own, and a folder of videos.

Labels are held against the class folders where there are any.  Several well-known repositories
pair lists of HMDB-51 with a label file in another order, and score 120 of 1,530 test videos
against the wrong name: that is found here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bieff.extract.datasets.dataset import DataSet, Mislabelled, require_found
from bieff.extract.datasets.finder import Finder, folders_of
from bieff.extract.datasets.labels import ClassNames, read_class_names
from bieff.extract.datasets.lists import Listed, read_list
from bieff.extract.datasets.names import key, label_of_key, readable
from bieff.extract.datasets.scan import Folder, ids_of, scan
from bieff.features.errors import InputError
from bieff.features.schema import UNLABELLED, Video

LAYOUT = "the videos that the list names, by the same file name and parent folder"

PARTITIONS = ("train", "val", "all")


@dataclass(frozen=True, slots=True)
class Classes:
    """What a list's labels mean."""

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
        finder = Finder(folder, classes.by_key, part)
        found, wrong = _videos(part, listed, classes, finder, source=lists[part])
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
    part: str, listed: Sequence[Listed], classes: Classes, finder: Finder, *, source: Path
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
        path, size = finder.locate(row.path, where)
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
            wrong.append(
                Mislabelled(
                    partition=part, path=video.path, label=called[label], folder=called[lies_in]
                )
            )
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
