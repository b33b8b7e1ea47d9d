"""A folder of class folders, or a flat folder of clips.

    train/<class>/*, val/<class>/*   partitions "train" and "val"; test/ stands in for val/
                                     where that is missing
    <class>/*                        one partition "all"
    *                                one partition "all", nothing labelled

Videos may lie deeper in a class folder, and the whole below a folder that holds nothing else.
Classes are in the order of their folders' names, or in that of a label file.
"""

import unicodedata
from collections.abc import Mapping
from pathlib import Path

from bieff.extract.datasets.dataset import DataSet
from bieff.extract.datasets.files import ids_of, is_tar, partition_of, roles_of, scan
from bieff.extract.sources.tars import SUFFIX as TAR
from bieff.features.class_names import ClassNames, LabelIndex, readable
from bieff.features.errors import InputError
from bieff.features.schema import UNLABELLED, Video

LAYOUT = "class folders with videos in them, under train/ and val/ or not, or videos alone"


def load_folder(videos: Path, *, classes: ClassNames | None = None) -> DataSet:
    """Load any folder of videos.

    Args:
        videos: The folder.
        classes: Their order and readable names; None takes the folders' own.

    Raises:
        InputError: If the folder is missing, holds no video, or a class folder has no name
            in `classes`.
    """
    folder = scan(videos, layout=LAYOUT)
    places, notes = _places(list(folder.videos))
    class_folders = sorted({inside for _, inside in places.values() if inside is not None})
    if classes is None:
        words = tuple(readable(name) for name in class_folders)
        classes = ClassNames(tuple(class_folders), words, first_id=None)
    labels = _labels(class_folders, classes)
    deep = {f for path, (_, f) in places.items() if f and "/" in path.rpartition(f"{f}/")[2]}
    shards = sorted(name for name in deep if is_tar(videos / f"{name}{TAR}"))
    if len(shards) > 1:
        notes.append(
            f"tar files stand for classes, {shards[0]!r} is one, though their members lie in "
            "folders of their own; if these are the classes, say so in a list (--dataset list)"
        )
    ids = ids_of(places)
    partitions: dict[str, list[Video]] = {}
    for path, (partition, inside) in places.items():
        if inside is None and class_folders:
            continue  # beside the class folders: of no class
        partitions.setdefault(partition, []).append(
            Video(
                id=ids[path],
                path=path,
                label=UNLABELLED if inside is None else labels[inside],
                size=folder.videos[path],
                splits={} if partition == "all" else {partition: partition},
            )
        )
    listed = {video.path for rows in partitions.values() for video in rows}
    return DataSet(
        name="folder",
        class_names=classes.readable if class_folders else (),
        partitions=partitions,
        root=videos,
        notes=(*folder.notes, *notes),
        missing=frozenset(ids[path] for path in places if path in folder.unreadable),
        unlisted=tuple(path for path in folder.videos if path not in listed),
    )


def _places(paths: list[str]) -> tuple[dict[str, tuple[str, str | None]], list[str]]:
    """Partition and class folder of each video, and what to tell the user."""
    parts = {path: path.split("/") for path in paths}
    while len({tuple(p[:1]) for p in parts.values()}) == 1 and all(
        len(p) > 2 and partition_of(p[:1]) is None for p in parts.values()
    ):
        parts = {path: p[1:] for path, p in parts.items()}
    tops = {p[0] for p in parts.values() if len(p) > 1}
    roles = roles_of(tops, hold_classes=any(len(p) > 2 for p in parts.values()))
    if not roles or len(roles) < len(tops):
        return {
            path: ("all", _nfc(p[0]) if len(p) > 1 else None) for path, p in parts.items()
        }, []
    notes = []
    if "val" not in roles.values() and "test" in roles.values():
        notes.append("val: taken from the folder test, there is no folder val")
        roles = {top: "val" if role == "test" else role for top, role in roles.items()}
    elif "test" in roles.values():
        notes.append("test: not used, val is")
    places: dict[str, tuple[str, str | None]] = {}
    for wanted in ("train", "val"):
        for path, p in parts.items():
            if roles.get(p[0]) == wanted:
                places[path] = (wanted, _nfc(p[1]) if len(p) > 2 else None)
    return places, notes


def _nfc(name: str) -> str:
    """One name for a folder whose accents are characters of their own, as on a Mac."""
    return unicodedata.normalize("NFC", name)


def _labels(class_folders: list[str], classes: ClassNames) -> Mapping[str, int]:
    index = LabelIndex(classes.names, source="classes", other_names=classes.readable)
    labels = {name: index.find(name) for name in class_folders}
    unknown = [name for name, label in labels.items() if label is None]
    if unknown:
        raise InputError(
            f"{len(unknown)} class folders have no name in the label file, the first is "
            f"{unknown[0]!r}; add them to it, or leave --labels out"
        )
    return {name: label for name, label in labels.items() if label is not None}
