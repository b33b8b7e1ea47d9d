"""`bieff store`, from options as a user types them."""

import csv
import importlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bieff.extract.datasets.files import ids_of
from bieff.features.check import describe, drop_bad, size, statistics, verify
from bieff.features.errors import InputError, StoreError
from bieff.features.files import PARTIAL, disk_errors, require_space, write_atomically
from bieff.features.hdf5 import export_hdf5, import_hdf5
from bieff.features.partition import Partition
from bieff.features.schema import UNLABELLED, Status, counted
from bieff.features.store import FeatureStore
from bieff.train.evaluate.scores import ScoreTable

Say = Callable[[str], None]

FORMATS = {"hdf5": ".h5", "npy": "-npy", "parquet": ".parquet"}
"""What a store is exported as -> ending of the name beside the store."""


def say_info(path: Path, say: Say, *, with_statistics: bool) -> None:
    """Say what a store holds; with statistics, read it all and say what looks broken."""
    store = FeatureStore.open(path)
    for line in describe(store):
        say(line)
    if not with_statistics:
        return
    for partition in store.partitions.values():
        found = statistics(partition)
        say(
            f"{found.partition}: {found.num_usable:,} usable videos; norm {found.norm}; cosine "
            f"of neighbouring frames {found.frame_cosine}; of videos {found.video_cosine}"
        )
        for finding in found.findings():
            say(f"  {finding}")


def verify_store(path: Path, say: Say, *, drop: bool) -> bool:
    """Read every checksum again and say which shards are bad; whether all is sound.

    Args:
        path: Folder of the store.
        say: Prints a line.
        drop: Remove the markers of bad shards, so that `bieff extract` writes them again.
    """
    store = FeatureStore.open(path)
    result = verify(store)
    for bad in (*result.bad, *result.bad_tables):
        say(str(bad))
    say(
        f"{path}: {counted(result.num_shards, 'shard')} read, {size(result.num_bytes)}, "
        f"{len(result.bad)} bad, {result.num_pending:,} not written yet"
    )
    if result.bad and drop:
        dropped = counted(drop_bad(store, result.bad), "marker")
        say(f"{dropped} dropped; run the same `bieff extract` again to redo them")
    elif result.bad:
        say("give --drop, then run the same `bieff extract` again to redo the bad shards")
    return result.is_sound


def export_store(path: Path, to: Path | None, say: Say, *, kind: str = "hdf5") -> None:
    """Write a store as one of `FORMATS`, beside it unless told otherwise.

    hdf5: one file, of which `bieff store import` makes the store again.  npy: a folder with a
    file for each video.  parquet: the table of the videos, without embeddings.

    Raises:
        StoreError: If the target exists, or cannot be written.
        StoreMismatchError: If the path of a video leads out of the folder.
        InputError: If what writes parquet is not installed.
    """
    store, name = FeatureStore.open(path), path.resolve().name
    target = to or path.resolve().with_name(name + FORMATS[kind])
    if kind == "hdf5":
        shards = export_hdf5(store, target)
        say(f"{target}: {counted(shards, 'shard')}, {size(target.stat().st_size)}")
    elif kind == "npy":
        count = export_npy(store, target)
        say(f"{target}: {counted(count, 'video')}, described by {target / NPY_DESCRIPTION}")
    else:
        rows = video_rows(store)
        write_parquet(
            target, rows, about={"recipe": store.recipe, "classes": store.class_names}
        )
        say(f"{target}: {counted(len(rows), 'video')}")


NPY_DESCRIPTION = "store.json"


def export_npy(store: FeatureStore, target: Path) -> int:
    """Write the embeddings of each usable video to a file of its own; returns how many.

        store.json            recipe, classes, shape and meaning of the files
        videos.csv            a line a video: what it is, its status, and its file if it has one
        train/<path>.npy      float16 (views, frames, width), not normalised

    Folders lie as those of the videos.  The folder appears when all of it is written.

    Raises:
        StoreError: If the target exists, the disk is full, or the path of a video is none
            that could lie in the folder.
    """
    if target.exists():
        raise StoreError(f"{target} exists; remove it or choose another name")
    partitions = store.partitions.values()
    rows = video_rows(store)
    files = [file for part in partitions for file in _npy_files(part)]
    folders = {str(parent) for file in files for parent in Path(file).parents}
    if both := folders & set(files):
        raise StoreError(
            f"{min(both)!r} would be the file of one video and the folder of another"
        )
    usable = [Status[row["status"].upper()].usable for row in rows]
    row_bytes = sum(
        p.geometry.arrays["embeddings"].row_bytes * p.num_videos for p in partitions
    )
    require_space(target, row_bytes + 4096 * sum(usable))
    partial = target.with_name(target.name + PARTIAL)
    with disk_errors(target):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        for row, file, is_usable in zip(rows, files, usable, strict=True):
            row["file"] = file if is_usable else None
            if is_usable:
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                part = store.partitions[row["partition"]]
                np.save(partial / file, part.read([row["row"]])[0], allow_pickle=False)
        with (partial / "videos.csv").open("w", newline="", encoding="utf-8") as table:
            writer = csv.DictWriter(table, list(rows[0]) if rows else ["file"])
            writer.writeheader()
            writer.writerows({**row, "splits": json.dumps(row["splits"])} for row in rows)
        about = {
            "array": "float16 (views, frames, width): CLIP's frame embeddings, not normalised",
            "videos": "videos.csv",
            "recipe": store.recipe,
            "recipe_hash": store.recipe_hash,
            "class_names": store.class_names,
        }
        write_atomically(partial / NPY_DESCRIPTION, f"{json.dumps(about, indent=1)}\n".encode())
        partial.replace(target)
    return sum(usable)


def _npy_files(partition: Partition) -> Iterator[str]:
    """Path in the export of each row: the video's, below the partition's name.

    Paths come from a store, whoever wrote it: each part must be a plain name.
    """
    paths = [video.path for video in partition.videos]
    names = ids_of(set(paths))
    count = Counter(paths)
    for row, path in enumerate(paths):
        name = names[path].lstrip("/") + (f"-row{row}" if count[path] > 1 else "")
        parts = name.split("/")
        if not all(map(_is_plain, parts)):
            raise StoreError(
                f"{partition.path.parent}: row {row} of {partition.name} has path {path!r}, "
                "which could not lie in one folder with the others; export as hdf5"
            )
        yield f"{partition.name}/{name}.npy"


def _is_plain(part: str) -> bool:
    return (
        part not in ("", ".", "..")
        and part.isprintable()
        and "\\" not in part
        and len(part.encode(errors="surrogateescape")) < 200
    )


def video_rows(store: FeatureStore) -> list[dict[str, Any]]:
    """The table of a store's videos: a row a video, in the order of partitions and rows."""
    rows = []
    for name, partition in store.partitions.items():
        reasons = {error.row: error.message for error in partition.errors()}
        for row, (video, status) in enumerate(
            zip(partition.videos, partition.status().tolist(), strict=True)
        ):
            rows.append(
                {"partition": name, "row": row, **asdict(video)}
                | {
                    "class": _class(store.class_names, video.label),
                    "status": Status(status).name.lower(),
                    "message": reasons.get(row),
                }
            )
    return rows


def _class(names: Sequence[str], label: int) -> str | None:
    return None if label == UNLABELLED else names[label]


def score_rows(table: ScoreTable) -> list[dict[str, Any]]:
    """The table of scores: a row for each model, question and usable video."""
    videos = {row: at for at, row in enumerate(table.rows.tolist())}
    rows = []
    for about, scores in zip(table.models, table.scores, strict=True):
        for question, values in zip(table.questions, scores, strict=True):
            names = [table.class_names[label] for label in question.classes.tolist()]
            for row, of_video in zip(question.rows.tolist(), values, strict=True):
                label = int(table.labels[videos[row]])
                best = int(of_video.argmax())
                rows.append(
                    {
                        "model": about.model,
                        "run": about.run,
                        "template": about.template,
                        "list": question.name,
                        "id": table.ids[videos[row]],
                        "row": row,
                        "class": table.class_names[label],
                        "predicted": names[best],
                        "right": names[best] == table.class_names[label],
                        "classes": names,
                        "scores": of_video.tolist(),
                    }
                )
    return rows


def export_scores(table: ScoreTable, target: Path, say: Say) -> None:
    """Write scores as parquet: a row for each model, question and video."""
    rows, head = score_rows(table), table.head
    about = {"protocol": head.protocol, "dataset": head.dataset, "store": head.store}
    write_parquet(target, rows, about=about)
    say(f"{target}: {counted(len(rows), 'row')}")


def write_parquet(
    target: Path, rows: Sequence[Mapping[str, Any]], *, about: Mapping[str, Any]
) -> None:
    """Write rows as one parquet file, whole or not at all; `about` goes to its metadata.

    Raises:
        InputError: If pyarrow is not installed.
        StoreError: If the file exists, or the disk is full.
    """
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InputError(
            "parquet is written by pyarrow, which is not here; pip install 'bieff[parquet]'"
        ) from None
    if target.exists():
        raise StoreError(f"{target} exists; remove it or choose another name")
    plain = [
        {k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items()} for row in rows
    ]
    table = pyarrow.Table.from_pylist(plain)
    content = pyarrow.BufferOutputStream()
    parquet.write_table(table.replace_schema_metadata({"bieff": json.dumps(about)}), content)
    write_atomically(target, content.getvalue().to_pybytes())


def import_store(source: Path, to: Path | None, say: Say) -> None:
    """Make a store of an exported file, in features/ unless told otherwise.

    Raises:
        InputError: If there is no such file, or it is not an exported store.
    """
    if not source.is_file():
        raise InputError(f"no file {source}; give one that `bieff store export` wrote")
    target = to or Path("features") / source.stem
    shards = import_hdf5(source, target)
    say(f"{target}: {counted(shards, 'shard')} written")
