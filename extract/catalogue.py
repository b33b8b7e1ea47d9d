"""The data sets there are: what `bieff datasets` lists, and `load` for each name."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bieff.extract.datasets.dataset import DataSet, Report, refuse_mislabelled
from bieff.extract.datasets.folder import load_folder
from bieff.extract.datasets.kinetics import load_kinetics
from bieff.extract.datasets.lists import load_lists
from bieff.extract.datasets.named import SETS, load_named
from bieff.extract.datasets.official import load_three_splits
from bieff.extract.shapes.clips import load_shapes
from bieff.extract.sources.urls import require_open
from bieff.features.class_names import read_class_names
from bieff.features.errors import InputError

HEADER = ("name", "what", "classes", "videos", "partitions", "found")

_CLOSED = "train, val"
_SPLITS = "all, three splits"

_ROWS = (
    ("shapes", "moving shapes, made here on first use", "31", "1,364", _CLOSED),
    ("shapes-combinations", "zero-shot: new combinations", "15", "225", _SPLITS),
    ("shapes-unseen", "zero-shot: new shapes", "24", "360", _SPLITS),
    ("k400", "Kinetics-400; train from your csv or folders", "400", "19,906 val", _CLOSED),
    ("k600", "Kinetics-600; lists from your csv or folders", "600", "as found", _CLOSED),
    ("k700", "Kinetics-700; lists from your csv or folders", "700", "as found", _CLOSED),
    ("ucf101", "UCF-101", "101", "13,320", _SPLITS),
    ("hmdb51", "HMDB-51", "51", "6,766", _SPLITS),
    ("ssv2", "Something-Something v2; your official lists", "174", "193,690", _CLOSED),
    ("jester", "Jester; your official lists", "27", "133,349", _CLOSED),
    ("diving48", "Diving48; your official lists", "48", "as listed", _CLOSED),
    ("mit", "Moments in Time; your official lists", "by file", "as listed", _CLOSED),
    ("activitynet", "ActivityNet, its parts; your official list", "200", "as listed", _CLOSED),
    ("folder", "class folders, or a flat folder of clips", "by folder", "as found", "any"),
    ("list", "your list files and label file", "by file", "as listed", "any"),
)

LOADERS: dict[str, Callable[..., DataSet]] = {
    "k400": load_kinetics,
    "k600": load_kinetics,
    "k700": load_kinetics,
    "ucf101": load_three_splits,
    "hmdb51": load_three_splits,
    "shapes": load_shapes,
    "shapes-combinations": load_shapes,
    "shapes-unseen": load_shapes,
}
"""Data sets that need no more than a folder: name -> function of the name and the folder."""

NAMES = (*LOADERS, *SETS, "folder", "list")
"""Every name that `load` takes."""


def table(data: Path = Path("data")) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows; the last column is the videos' folder under `data`, if it is there."""
    folders = [data / row[0] for row in _ROWS]
    found = [str(folder) if folder.is_dir() else "" for folder in folders]
    return HEADER, [(*row, folder) for row, folder in zip(_ROWS, found, strict=True)]


def load(
    name: str,
    *,
    videos: Path | None = None,
    lists: Mapping[str, Path] | None = None,
    labels: Path | None = None,
    first_label: int | None = None,
    trust_labels: bool = False,
    trim: bool = False,
    make: bool = True,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> DataSet:
    """Find the videos of a data set, with labels and splits; nothing is decoded.

    Args:
        name: One of `NAMES`.
        videos: Folder of the videos; None is `data/<name>`.
        lists: Of "list": partition ("train", "val", "all") -> list file.  Of sets with lists of
            the user's, such as "ssv2": in place of those in the folder.
        labels: Of "list", "folder" and such sets: the label file.
        first_label: Of "list": whether labels count from 0 or from 1; None finds out.
        trust_labels: Of "list": accept videos that lie in the folder of another class than
            their label says.  Official labels are always kept, and `notes` counts the videos.
        trim: Of Kinetics, and of "list" with columns of Kinetics: files are whole videos, of
            which the listed part is meant.
        make: Of the data sets that the project makes itself: make what is not there yet;
            otherwise it is missing.
        watch: Called with clips made and clips to make.

    Raises:
        InputError: If the name is unknown, an option does not fit it, the folder is missing or
            holds none of the videos, a list or label file cannot be read, or the labels of a
            list and the class folders disagree.
    """
    require_open(videos or "")
    _check_options(name, lists=lists, labels=labels, first_label=first_label, trim=trim)
    folder = videos or Path("data") / name
    if name == "folder":
        return load_folder(folder, classes=read_class_names(labels) if labels else None)
    if name == "list":
        data = load_lists(
            lists or {}, videos=videos, labels=labels, first_label=first_label, trim=trim
        )
        return data if trust_labels else refuse_mislabelled(data)
    if name in SETS:
        return load_named(name, folder, lists=lists, labels=labels)
    if LOADERS[name] is load_shapes:
        return load_shapes(name, folder, make=make, watch=watch)
    if LOADERS[name] is load_kinetics:
        return load_kinetics(name, folder, trim=trim)
    return LOADERS[name](name, folder)


def check(name: str, **options: Any) -> Report:
    """Report of what is listed, found, missing, unlisted and mislabelled, before any decoding.

    Options and errors as for `load`, but mislabelled videos are reported, and nothing is made.
    """
    return Report(load(name, **options, trust_labels=True, make=False))


def _check_options(
    name: str,
    *,
    lists: object | None,
    labels: object | None,
    first_label: int | None,
    trim: bool,
) -> None:
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"unknown data set {name!r}{hint}: expected one of {', '.join(NAMES)}")
    if lists and name != "list" and name not in SETS:
        raise InputError(f"data set {name!r} has its own lists; use --dataset list with yours")
    if labels and name not in ("list", "folder", *SETS):
        raise InputError(
            f"data set {name!r} has its own class names; use --dataset list or folder"
        )
    if first_label is not None and name != "list":
        raise InputError(f"data set {name!r} has its own labels, got first_label={first_label}")
    if trim and name != "list" and LOADERS.get(name) is not load_kinetics:
        raise InputError(f"data set {name!r} has no list of parts to trim; leave --trim out")
    if first_label not in (None, 0, 1):
        raise InputError(f"first label: expected 0 or 1, got {first_label}")
