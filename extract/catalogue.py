"""Which videos there are, what each shows, and which split uses it: `load` and `check`.

ucf101, hmdb51   three official splits that overlap      three_splits.py
k400, k600       Kinetics as people have it              kinetics.py
folder           class folders, or a flat folder         folder.py
list             list files and a label file             list_file.py
shapes...        made by the project itself              bieff.extract.shapes
"""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from bieff.extract.datasets.dataset import DataSet, Mislabelled, Report, refuse_mislabelled
from bieff.extract.datasets.folder import load_folder
from bieff.extract.datasets.kinetics import load_kinetics
from bieff.extract.datasets.lists import load_lists
from bieff.extract.datasets.official import load_three_splits
from bieff.features.class_names import read_class_names
from bieff.features.errors import InputError

HEADER = ("name", "what", "classes", "videos", "partitions", "found")

_CLOSED = "train, val"
_SPLITS = "all, three splits"

_ROWS: tuple[tuple[str, ...], ...] = (
    ("shapes", "moving shapes, made here on first use", "31", "1,364", _CLOSED),
    (
        "shapes-combinations",
        "zero-shot: new combinations",
        "15",
        "225",
        _SPLITS,
    ),
    ("shapes-unseen", "zero-shot: new shapes", "24", "360", _SPLITS),
    (
        "k400",
        "Kinetics-400; train from your csv or folders",
        "400",
        "19,906 val",
        _CLOSED,
    ),
    ("k600", "Kinetics-600; lists from your csv or folders", "600", "as found", _CLOSED),
    ("ucf101", "UCF-101", "101", "13,320", _SPLITS),
    ("hmdb51", "HMDB-51", "51", "6,766", _SPLITS),
    ("folder", "class folders, or a flat folder of clips", "by folder", "as found", "any"),
    ("list", "your list files and label file", "by file", "as listed", "any"),
)


def table(data: Path = Path("data")) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows; the last column is the videos' folder under `data`, if it is there."""
    folders = [data / row[0] for row in _ROWS]
    found = [str(folder) if folder.is_dir() else "" for folder in folders]
    return HEADER, [(*row, folder) for row, folder in zip(_ROWS, found, strict=True)]


__all__ = ["DataSet", "Mislabelled", "Report", "check", "load", "names", "table"]


def _load_shapes(name: str, videos: Path, *, make: bool = True) -> DataSet:
    from bieff.extract.shapes.sets import load_shapes

    return load_shapes(name, videos, make_clips=make)


NAMED: dict[str, Callable[[str, Path], DataSet]] = {
    "k400": load_kinetics,
    "k600": load_kinetics,
    "ucf101": load_three_splits,
    "hmdb51": load_three_splits,
    "shapes": _load_shapes,
    "shapes-combinations": _load_shapes,
    "shapes-unseen": _load_shapes,
}
"""Data sets that need no more than a folder: name -> function of the name and the folder."""


def names() -> tuple[str, ...]:
    """Every name that `load` takes."""
    return (*NAMED, "folder", "list")


def load(
    name: str,
    *,
    videos: Path | None = None,
    lists: Mapping[str, Path] | None = None,
    labels: Path | None = None,
    first_label: int | None = None,
    trust_labels: bool = False,
    make: bool = True,
) -> DataSet:
    """Find the videos of a data set, with labels and splits; nothing is decoded.

    Args:
        name: One of `names()`.
        videos: Folder of the videos; None is `data/<name>`.
        lists: Of "list": partition ("train", "val", "all") -> list file.
        labels: Of "list" and "folder": the label file.
        first_label: Of "list": whether labels count from 0 or from 1; None finds out.
        trust_labels: Of "list": accept videos that lie in the folder of another class than
            their label says.  Official labels are always kept, and `notes` counts the videos.
        make: Of the data sets that the project makes itself: make what is not there yet;
            otherwise it is missing.

    Raises:
        InputError: If the name is unknown, an option does not fit it, the folder is missing or
            holds none of the videos, a list or label file cannot be read, or the labels of a
            list and the class folders disagree.
    """
    _check_options(name, lists=lists, labels=labels, first_label=first_label)
    folder = videos or Path("data") / name
    if name == "folder":
        classes = read_class_names(labels) if labels else None
        return load_folder(folder, classes=classes)
    if name == "list":
        data = load_lists(lists or {}, videos=videos, labels=labels, first_label=first_label)
        return data if trust_labels else refuse_mislabelled(data)
    if NAMED[name] is _load_shapes:
        return _load_shapes(name, folder, make=make)
    return NAMED[name](name, folder)


def check(
    name: str,
    *,
    videos: Path | None = None,
    lists: Mapping[str, Path] | None = None,
    labels: Path | None = None,
    first_label: int | None = None,
) -> Report:
    """What is listed, found, missing, unlisted and mislabelled, before any decoding.

    Arguments and errors as for `load`, but mislabelled videos are reported, and nothing is
    made.
    """
    data = load(
        name,
        videos=videos,
        lists=lists,
        labels=labels,
        first_label=first_label,
        trust_labels=True,
        make=False,
    )
    return Report(data)


def _check_options(
    name: str, *, lists: object | None, labels: object | None, first_label: int | None
) -> None:
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(
            f"unknown data set {name!r}{hint}: expected one of {', '.join(names())}"
        )
    if lists and name != "list":
        raise InputError(f"data set {name!r} has its own lists; use --dataset list with yours")
    if labels and name not in ("list", "folder"):
        raise InputError(
            f"data set {name!r} has its own class names; use --dataset list or folder"
        )
    if first_label is not None and name != "list":
        raise InputError(f"data set {name!r} has its own labels, got first_label={first_label}")
    if first_label not in (None, 0, 1):
        raise InputError(f"first label: expected 0 or 1, got {first_label}")
