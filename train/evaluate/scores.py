"""Scores of an evaluation, and their files beside the run.

    runs/k400/
      scores/closed-k400.h5                        of the last such evaluation
      partial/3fa9.../81-1767225600000000000.npz   of one that is under way

Both know what they are of by a key: a hash of everything that the bits of a score depend on.
So an evaluation that was stopped goes on, and one that is asked for again is read.  A partial
file holds the batches of a few seconds, and is whole or not there.
"""

import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import h5py
import numpy as np
from jaxtyping import Bool, Float64, Int

from bieff.features.errors import ConfigError, InputError, StoreError
from bieff.features.files import PARTIAL, disk_errors, parse_json, write_atomically
from bieff.features.hdf5 import require_own
from bieff.train.evaluate.lists import EvalList

ModelScores = Sequence[Float64[np.ndarray, "_ _"]]
"""Scores of one model, for each question; a row sums to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """Data, views and protocol of an evaluation, the same for all models."""

    protocol: str
    dataset: str
    store: str
    """Recipe hash of the feature store."""

    clips: int
    crops: int


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """The model that was asked, and how."""

    model: Literal["bieff", "frozen", "mix"]
    frames: int
    template: str
    """Template that frozen CLIP is asked in, or the trained prompt's name."""

    names: str | None
    """File of the descriptions of the classes; None for the store's class names."""

    names_hash: str | None
    """Hash of what the classes are called."""

    run: str | None
    """Id of the trained run; None for frozen CLIP."""

    weights: str | None
    """Weights of the run: after the last step, or at the best evaluation."""

    mix: float | None = None
    """Weight of ours in the mix of both."""

    blend: float | None = None
    """Share of the trained weights; the rest is those that the run started with."""

    shots: int | None = None
    """Videos a class that the run was trained on; None: all."""

    after: str | None = None
    """Data sets that the run's ancestors were trained on, in words."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScoreTable:
    """Scores on the lists of one protocol."""

    head: Head
    class_names: tuple[str, ...]
    lists: tuple[EvalList, ...]
    rows: Int[np.ndarray, " m"]
    """Rows of the partition: the videos on any list, ascending."""

    ids: tuple[str, ...]
    labels: Int[np.ndarray, " m"]
    usable: Bool[np.ndarray, " m"]
    """False where a video has no embeddings."""

    models: tuple[About, ...]
    scores: tuple[ModelScores, ...]
    """Scores of each model."""

    @property
    def questions(self) -> list[EvalList]:
        """Questions in the order of scores."""
        return questions_of(self.lists, self.rows[self.usable])

    def with_mix(self, weight: float) -> "ScoreTable":
        """Both combined: weight x the scores of ours + (1 - weight) x those of frozen CLIP.

        Scores are softmax scores over the categories, each at its model's own temperature,
        averaged over the views.

        Raises:
            ConfigError: If the weight is not from 0 to 1, or one of both is missing.
        """
        if not 0 <= weight <= 1:
            raise ConfigError(f"mix: expected a weight from 0 to 1, got {weight}")
        asked = [p for p in zip(self.models, self.scores, strict=True) if p[0].model != "mix"]
        known = {about.model: (about, scores) for about, scores in asked}
        if not {"bieff", "frozen"} <= set(known):
            raise ConfigError("mix: expected the scores of a run and of frozen CLIP, got one")
        (ours, our_scores), (frozen, frozen_scores) = known["bieff"], known["frozen"]
        mix = replace(
            ours, model="mix", mix=weight, template=f"{ours.template} + {frozen.template}"
        )
        mixed = [
            weight * a + (1 - weight) * b
            for a, b in zip(our_scores, frozen_scores, strict=True)
        ]
        models, scores = zip(*asked, (mix, mixed), strict=True)
        return replace(self, models=models, scores=scores)


def questions_of(lists: Sequence[EvalList], usable: Int[np.ndarray, " rows"]) -> list[EvalList]:
    """Lists with the same classes are one about all their usable videos, each asked once.

    Raises:
        StoreError: If no video of a list is usable.
    """
    grouped: dict[bytes, list[EvalList]] = {}
    for chosen in lists:
        if not np.isin(chosen.rows, usable).any():
            raise StoreError(
                f"no video of the list {chosen.name!r} is usable; `bieff extract --status` "
                "says what became of them"
            )
        grouped.setdefault(chosen.classes.tobytes(), []).append(chosen)
    return [
        EvalList(
            ", ".join(part.name for part in alike),
            np.intersect1d(np.concatenate([part.rows for part in alike]), usable),
            alike[0].classes,
        )
        for alike in grouped.values()
    ]


# --- one file

_FORMAT, _VERSION = "bieff scores", 1


def scores_file(folder: Path, head: Head) -> Path:
    """Path of a run's scores of a protocol and a data set."""
    return folder / "scores" / f"{head.protocol}-{head.dataset}.h5"


def save_scores(table: ScoreTable, file: Path, *, key: str | None = None) -> None:
    """Write scores, whole or not at all; a file that is there is replaced.

    Raises:
        StoreError: If the disk is full or refuses.
    """
    content = io.BytesIO()  # on a full disk the HDF5 library would end the whole process
    with h5py.File(content, "w") as out:
        if key is not None:
            out.attrs["key"] = key
        _write(table, out)
    with disk_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content.getvalue())


def require_place(file: Path) -> None:
    """Find out that a file cannot be written before there is something to write.

    Raises:
        StoreError: If the disk is full or refuses.
        InputError: If its folder is a file.
    """
    partial = file.with_name(file.name + PARTIAL)
    try:
        with disk_errors(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
            partial.unlink()
    except OSError as error:
        raise InputError(f"cannot write scores {str(file)!r}: {error.strerror}") from None


def load_scores(file: Path, *, key: str | None = None) -> ScoreTable:
    """Read what `save_scores` wrote, under that key if one is given.

    Raises:
        InputError: If there is no such file, or it is something else.
    """
    if not file.is_file():
        raise InputError(
            f"no scores at {file}; write some with `bieff eval --save-scores FILE`"
        )
    try:
        opened = h5py.File(file, "r")
    except OSError as error:
        raise InputError(f"cannot read scores {str(file)!r}: {error}") from None
    try:
        with opened:
            require_own(opened)
            if opened.attrs.get("format") != _FORMAT or opened.attrs["version"] != _VERSION:
                raise InputError(
                    f"{file}: expected scores of version {_VERSION} from --save-scores, got "
                    f"{opened.attrs.get('format', 'another HDF5 file')}"
                )
            if key is not None and opened.attrs.get("key") != key:
                raise InputError(f"{file} holds the scores of another evaluation")
            table = _read(opened)
            _require_fitting(table)
            if opened.attrs.get("sha256", _digest(table)) != _digest(table):  # older: none
                raise ValueError("they do not have the checksum that they were written with")
            return table
    except InputError:
        raise
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"scores {str(file)!r} are damaged: {error}") from None


def _write(table: ScoreTable, out: h5py.File) -> None:
    out.attrs.update({"format": _FORMAT, "version": _VERSION})
    out.attrs["head"] = json.dumps(asdict(table.head))
    out.attrs["sha256"] = _digest(table)
    text = h5py.string_dtype()
    out.create_dataset("classes", data=list(table.class_names), dtype=text)
    out.create_dataset("videos/id", data=list(table.ids), dtype=text)
    out["videos/row"] = table.rows
    out["videos/label"] = table.labels
    out["videos/usable"] = table.usable
    for index, chosen in enumerate(table.lists):
        group = out.create_group(f"lists/{index}")
        group.attrs["name"] = chosen.name
        group["rows"], group["categories"] = chosen.rows, chosen.classes
    for index, (about, scores) in enumerate(zip(table.models, table.scores, strict=True)):
        group = out.create_group(f"examinees/{index}")
        group.attrs["record"] = json.dumps(asdict(about))
        for number, (question, values) in enumerate(zip(table.questions, scores, strict=True)):
            part = group.create_group(str(number))
            part["rows"], part["categories"] = question.rows, question.classes
            part.create_dataset("scores", data=values, fletcher32=True)


def _read(opened: h5py.File) -> ScoreTable:
    videos, asked = opened["videos"], _numbered(opened["examinees"])
    return ScoreTable(
        head=Head(**parse_json(opened.attrs["head"])),
        class_names=tuple(opened["classes"].asstr()[:].tolist()),
        lists=tuple(
            EvalList(
                str(group.attrs["name"]),
                np.asarray(group["rows"][:]),
                np.asarray(group["categories"][:]),
            )
            for group in _numbered(opened["lists"])
        ),
        rows=np.asarray(videos["row"][:]),
        ids=tuple(videos["id"].asstr()[:].tolist()),
        labels=np.asarray(videos["label"][:]),
        usable=np.asarray(videos["usable"][:]),
        models=tuple(About(**parse_json(group.attrs["record"])) for group in asked),
        scores=tuple(
            [np.asarray(part["scores"][:]) for part in _numbered(group)] for group in asked
        ),
    )


def _digest(table: ScoreTable) -> str:
    """Checksum of all that is in a file of scores."""
    lists = [*table.lists, *table.questions]
    texts = [asdict(table.head), table.class_names, table.ids, [part.name for part in lists]]
    digest = hashlib.sha256(json.dumps([*texts, *map(asdict, table.models)]).encode())
    arrays = [table.rows, table.labels, table.usable]
    arrays += [array for part in lists for array in (part.rows, part.classes)]
    for array in (*arrays, *(part for scores in table.scores for part in scores)):
        digest.update(f"{array.dtype.kind}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _require_fitting(table: ScoreTable) -> None:
    """Refuse rows, labels or scores that no evaluation gives, as a damaged file may have."""
    num_videos, num_classes = len(table.rows), len(table.class_names)
    shapes = [(len(asked.rows), len(asked.classes)) for asked in table.questions]
    fits = (
        len(table.ids) == len(table.labels) == len(table.usable) == num_videos
        and bool((np.diff(table.rows) > 0).all())
        and bool(((table.labels >= 0) & (table.labels < num_classes)).all())
        and all(np.isin(chosen.rows, table.rows).all() for chosen in table.lists)
        and all(np.isin(part.classes, np.arange(num_classes)).all() for part in table.lists)
        and all([part.shape for part in scores] == shapes for scores in table.scores)
    )
    if not fits:
        raise ValueError("its rows, labels and scores do not fit together")


def _numbered(groups: h5py.Group) -> list[h5py.Group]:
    return [groups[str(index)] for index in range(len(groups))]


# --- parts of it, until all are there

BatchKey = tuple[int, int, int]
"""Model, question, and place of its first video: the key of a batch's scores."""

SECONDS = 5.0
"""Seconds between two writings; what a kill can cost."""


@dataclass(frozen=True, slots=True)
class PartialScores:
    """A folder of scores; several processes may write to it at the same time."""

    folder: Path

    def read(self) -> dict[BatchKey, Float64[np.ndarray, "_ _"]]:
        """Scores that earlier processes left."""
        found: dict[BatchKey, np.ndarray] = {}
        for file in sorted(self.folder.glob("*.npz")):
            try:
                with file.open("rb") as opened, np.load(opened) as parts:
                    read = {_batch(name): parts[name] for name in parts.files}
            except (OSError, EOFError, ValueError, BadZipFile):
                continue  # damaged by the disk: these videos are scored again
            found.update(read)
        return found

    def write(self, scored: Mapping[BatchKey, Float64[np.ndarray, "_ _"]]) -> None:
        """Keep some batches.

        Raises:
            StoreError: If the disk is full or refuses.
        """
        content = io.BytesIO()
        named = {"-".join(map(str, batch)): values for batch, values in scored.items()}
        np.savez(content, allow_pickle=False, **named)
        file = self.folder / f"{os.getpid()}-{time.time_ns()}.npz"
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, content.getvalue())

    def clear(self) -> None:
        """Forget everything: the evaluation is done."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()


def _batch(name: str) -> BatchKey:
    model, question, start = map(int, name.split("-"))
    return model, question, start
