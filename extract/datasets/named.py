"""Data sets by name, of which the user has the official lists.

    ssv2       something-something-v2-train.json, -validation.json and -labels.json; or, as they
               are called by now, train.json, validation.json and labels.json
    jester     jester-v1-train.csv, -validation.csv and -labels.csv
    diving48   Diving48_V2_train.json, Diving48_V2_test.json and Diving48_vocab.json
    mit        trainingSet.csv, validationSet.csv and moments_categories.txt
    activitynet    activity_net.v1-3.min.json: a row for each annotated part

They lie in the videos' folder or in folders of it, or are named with --list and --labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bieff.extract.datasets.dataset import DataSet, note_mislabelled
from bieff.extract.datasets.lists import load_lists
from bieff.extract.datasets.official import DATA
from bieff.features.errors import InputError


@dataclass(frozen=True, slots=True)
class _Files:
    """File names of a set's lists as its owners give them, the newest first."""

    train: Sequence[str]
    val: Sequence[str]
    labels: Sequence[str] = ()
    """None: the lists name the classes."""

    num_classes: int | None = None
    """None where editions differ."""

    shipped: str | None = None
    """Class names that come with bieff, for those who have no label file."""


SETS = {
    "ssv2": _Files(
        train=("something-something-v2-train.json", "train.json"),
        val=("something-something-v2-validation.json", "validation.json"),
        labels=("something-something-v2-labels.json", "labels.json"),
        num_classes=174,
        shipped="ssv2_names.txt",
    ),
    "jester": _Files(
        train=("jester-v1-train.csv",),
        val=("jester-v1-validation.csv",),
        labels=("jester-v1-labels.csv",),
        num_classes=27,
    ),
    "diving48": _Files(
        train=("Diving48_V2_train.json", "Diving48_train.json"),
        val=("Diving48_V2_test.json", "Diving48_test.json"),
        labels=("Diving48_vocab.json",),
        num_classes=48,
    ),
    "mit": _Files(
        train=("trainingSet.csv",),
        val=("validationSet.csv",),
        labels=("moments_categories.txt",),
    ),
    "activitynet": _Files(
        train=("activity_net.v1-3.min.json",),
        val=("activity_net.v1-3.min.json",),
        num_classes=200,
    ),
}


def load_named(
    name: str,
    videos: Path,
    *,
    lists: Mapping[str, Path] | None = None,
    labels: Path | None = None,
) -> DataSet:
    """Load a set of `SETS` from its owners' lists.

    Args:
        name: Which.
        videos: Folder of the videos.
        lists: Partition -> list file, in place of those in the folder.
        labels: The label file, in place of that in the folder.

    Raises:
        InputError: If a file is missing or cannot be read, the label file is of another set,
            or none of the videos is found.
    """
    files = SETS[name]
    if not lists:
        wanted = {"train": files.train, "val": files.val}
        found = {part: _find(videos, names) for part, names in wanted.items()}
        lists = {part: path for part, path in found.items() if path is not None}
    if not lists:
        either = " or ".join(dict.fromkeys([*files.train, *files.val]))
        raise InputError(
            f"data set {name!r}: expected {either} in {videos} or a folder of it; put "
            "the official lists there, or name them with --list train=FILE and --list val=FILE"
        )
    labels = labels or _find(videos, files.labels)
    if labels is None and files.shipped is not None:
        labels = DATA / files.shipped
    if labels is None and files.labels:
        raise InputError(
            f"data set {name!r}: expected {files.labels[0]} in {videos} or a folder of it; put "
            "the official label file there, or name it with --labels"
        )
    data = load_lists(lists, videos=videos, labels=labels)
    if files.num_classes not in (None, len(data.class_names)):
        raise InputError(
            f"data set {name!r}: expected {files.num_classes} classes in "
            f"{labels or 'its lists'}, got {len(data.class_names)}; take the owners' files, or "
            "--dataset list"
        )
    read = dict.fromkeys([*lists.values(), *([labels] if labels else [])])
    return replace(
        data,
        name=name,
        notes=(
            f"read: {', '.join(path.name for path in read)}",
            *data.notes,
            *note_mislabelled(data.mislabelled),
        ),
    )


def _find(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these files that lies in a folder, or in one of its folders."""
    for name in names:
        if found := sorted([*folder.glob(name), *folder.glob(f"*/{name}")]):
            return found[0]
    return None
