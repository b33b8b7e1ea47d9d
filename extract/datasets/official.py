"""The official class names and lists that are shipped in `data/`; SOURCES.md says whose."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from bieff.extract.datasets.dataset import DataSet, Mislabelled, note_mislabelled, require_found
from bieff.extract.datasets.files import scan
from bieff.features.class_names import LabelIndex
from bieff.features.errors import InputError
from bieff.features.schema import Video

DATA = Path(__file__).parent / "data"

ROLES = {"1": "train", "2": "test"}
"""Codes of the roles in the split files; 0 is a video the split does not use."""


@cache
def class_names(name: str) -> tuple[tuple[str, str], ...]:
    """Official and readable name of each class of a set whose names are shipped."""
    if name in ("k400", "k600", "k700", "ssv2"):
        return tuple((line, line) for line in _lines(f"{name}_names.txt"))
    rows = csv.DictReader(_lines(f"{name}_names.csv"))
    return tuple((row["name"], row["readable"]) for row in rows)


@cache
def splits(name: str) -> tuple[tuple[str, dict[str, str]], ...]:
    """Every video of "ucf101" or "hmdb51" as `class/file name`, and its role in each split."""
    roles: dict[str, dict[str, str]] = {}
    videos = []
    for line in _lines(f"{name}_splits.txt"):
        path, codes = line.rsplit(" ", 1)
        if codes not in roles:  # one dictionary for all videos alike
            numbered = enumerate(codes, start=1)
            roles[codes] = {str(k): ROLES[code] for k, code in numbered if code in ROLES}
        videos.append((path, roles[codes]))
    return tuple(videos)


CLIP_SECONDS = 10


@dataclass(frozen=True, slots=True)
class KineticsClip:
    """A clip that a Kinetics list names; times in seconds."""

    label: int
    youtube_id: str
    start: int
    end: int


def kinetics_clip(row: Mapping[str, str], labels: LabelIndex, source: str) -> KineticsClip:
    """The clip that a row of a Kinetics csv names.

    Raises:
        InputError: If it names an unknown class, or a time is no number.
    """
    label = labels.find(row["label"] or "")
    if label is None:
        raise InputError(
            f"{source}: unknown class {row['label']!r}; is it the list of another Kinetics?"
        )
    try:
        start = int(float(row["time_start"]))
        end = int(float(row.get("time_end") or start + CLIP_SECONDS))
    except (TypeError, ValueError):
        raise InputError(
            f"{source}: expected times in seconds for {row['youtube_id']!r}, got "
            f"{row['time_start']!r} and {row.get('time_end')!r}"
        ) from None
    return KineticsClip(label, row["youtube_id"], start, end)


@cache
def kinetics_val() -> tuple[KineticsClip, ...]:
    """The official validation list of Kinetics-400."""
    labels = LabelIndex([name for name, _ in class_names("k400")], source="k400")
    rows = csv.DictReader(_lines("k400_val.csv"))
    return tuple(kinetics_clip(row, labels, "k400_val.csv") for row in rows)


@cache
def zero_shot_splits() -> dict[str, tuple[int, ...]]:
    """Labels in k600 of the 160 classes of each zero-shot split, "1" to "3" (protocol k600)."""
    label = {name: k for k, (name, _) in enumerate(class_names("k600"))}
    splits = {}
    for split in ("1", "2", "3"):
        rows = csv.DictReader(_lines(f"k600_zero_shot_{split}.csv"))
        splits[split] = tuple(label[row["name"]] for row in rows)
    return splits


def _lines(file: str) -> list[str]:
    return (DATA / file).read_text(encoding="utf-8").splitlines()


LAYOUT = {
    "ucf101": "the class folders of UCF-101 (ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi), "
    "at any depth, or all its videos in one folder",
    "hmdb51": "the class folders of HMDB-51 (brush_hair/*.avi, unpacked from the rar files), "
    "at any depth, or all its videos in one folder",
}


def load_three_splits(name: str, videos: Path) -> DataSet:
    """Load "ucf101" or "hmdb51" from the folder `videos`.

    Raises:
        InputError: If the folder is missing or holds none of the set's videos.
    """
    folder = scan(videos, layout=LAYOUT[name])
    classes = class_names(name)
    label_of = {folder_name: label for label, (folder_name, _) in enumerate(classes)}
    index = LabelIndex([raw for raw, _ in classes], source=name)
    rows, missing, mislabelled = [], [], []
    left = set(folder.videos)
    for listed, roles in splits(name):
        label = label_of[listed.split("/")[0]]
        anywhere = folder.of_name(listed)
        if anywhere:
            path = next(iter(folder.fitting(listed)), anywhere[0])
            left.discard(path)
            lies_in = index.find(PurePosixPath(path).parent.name)
            if lies_in is not None and lies_in != label:
                said, lies = classes[label][1], classes[lies_in][1]
                mislabelled.append(Mislabelled("all", path, said, lies))
        else:
            path = f"{listed}.avi"
            missing.append(listed)
        size = folder.videos.get(path, 0)
        rows.append(Video(id=listed, path=path, label=label, size=size, splits=roles))
    data = DataSet(
        name=name,
        class_names=tuple(words for _, words in classes),
        partitions={"all": rows},
        root=videos,
        notes=(*folder.notes, *note_mislabelled(mislabelled)),
        missing=frozenset(missing),
        unlisted=tuple(sorted(left)),
        mislabelled=tuple(mislabelled),
    )
    return require_found(data, layout=LAYOUT[name])
