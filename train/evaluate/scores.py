"""Scores of an evaluation that is under way, on disk until all are there.

    runs/k400/partial/3fa9.../81-1767225600000000000.npz

A folder belongs to one evaluation; its name is a hash of everything that the scores depend on.
A file holds the batches of a few seconds, and is whole or not there.
"""

import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import h5py
import numpy as np
from jaxtyping import Bool, Float64, Int

from bieff.features.errors import ConfigError, InputError, StoreError
from bieff.features.files import (
    PARTIAL,
    disk_errors,
    require_space,
    sync,
    write_atomically,
)
from bieff.train.evaluate.lists import (
    EvalList,
)


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """Which videos are to be told apart among which classes."""

    categories: Int[np.ndarray, " k"]
    """Labels, ascending."""

    rows: Int[np.ndarray, " n"]
    """Of the partition, usable, ascending."""


Batch = tuple[int, int, int]
"""Subject, question, and place of its first video: the key of a batch's scores."""

Scored = Mapping[Batch, Float64[np.ndarray, "_ _"]]

SECONDS = 5.0
"""Between two writings; what a kill can cost."""


@dataclass(frozen=True, slots=True)
class KeptScores:
    """A folder of scores; several processes may write to it at the same time."""

    folder: Path

    def read(self) -> dict[Batch, Float64[np.ndarray, "_ _"]]:
        """What earlier processes left."""
        found: dict[Batch, np.ndarray] = {}
        for file in sorted(self.folder.glob("*.npz")):
            try:
                with file.open("rb") as opened, np.load(opened) as parts:
                    read = {name: parts[name] for name in parts.files}
            except (OSError, EOFError, ValueError, BadZipFile):
                continue  # damaged by the disk: these videos are scored again
            for name, values in read.items():
                subject, question, start = map(int, name.split("-"))
                found[subject, question, start] = values
        return found

    def write(self, scored: Scored) -> None:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What was examined, for all who were."""

    protocol: str
    dataset: str
    store: str
    """Recipe hash of the feature store."""

    clips: int
    crops: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Examinee:
    """Who was asked, and how."""

    model: Literal["bieff", "frozen", "mix"]
    frames: int
    template: str
    names: str | None
    names_hash: str | None
    run: str | None
    weights: str | None
    mix: float | None = None
    """Weight of ours in the mix of both."""


Scores = Sequence[Float64[np.ndarray, "_ _"]]
"""Of one examinee, for each question; a row sums to 1."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Examination:
    """Scores on the lists of one protocol."""

    head: Head
    class_names: tuple[str, ...]
    lists: tuple[EvalList, ...]
    rows: Int[np.ndarray, " m"]
    """Of the partition: the videos on any list, ascending."""

    ids: tuple[str, ...]
    labels: Int[np.ndarray, " m"]
    usable: Bool[np.ndarray, " m"]
    """False where a video has no embeddings."""

    examinees: tuple[Examinee, ...]
    scores: tuple[Scores, ...]
    """Of each examinee."""

    @property
    def questions(self) -> list[Question]:
        """What was asked, in the order of scores."""
        return questions_of(self.lists, self.rows[self.usable])

    def with_mix(self, weight: float) -> "Examination":
        """Both combined: weight x the scores of ours + (1 - weight) x those of frozen CLIP.

        Scores are softmax scores over the categories, each at its model's own temperature,
        averaged over the views.

        Raises:
            ConfigError: If the weight is not from 0 to 1, or one of both is missing.
        """
        if not 0 <= weight <= 1:
            raise ConfigError(f"mix: expected a weight from 0 to 1, got {weight}")
        places = {examinee.model: at for at, examinee in enumerate(self.examinees)}
        if not {"bieff", "frozen"} <= set(places):
            raise ConfigError("mix: expected the scores of a run and of frozen CLIP, got one")
        ours, beside = (self.scores[places[model]] for model in ("bieff", "frozen"))
        mixed = [weight * a + (1 - weight) * b for a, b in zip(ours, beside, strict=True)]
        one = self.examinees[places["bieff"]]
        prompt = f"{one.template} + {self.examinees[places['frozen']].template}"
        examinee = replace(one, model="mix", mix=weight, template=prompt)
        kept = [at for at, known in enumerate(self.examinees) if known.model != "mix"]
        return replace(
            self,
            examinees=(*(self.examinees[at] for at in kept), examinee),
            scores=(*(self.scores[at] for at in kept), mixed),
        )


def questions_of(lists: Sequence[EvalList], usable: Int[np.ndarray, " rows"]) -> list[Question]:
    """Lists with the same classes are one question about all their videos, each asked once.

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
        grouped.setdefault(chosen.categories.tobytes(), []).append(chosen)
    return [
        Question(
            alike[0].categories,
            np.intersect1d(np.concatenate([part.rows for part in alike]), usable),
        )
        for alike in grouped.values()
    ]


_FORMAT, _VERSION = "bieff scores", 1


def save_scores(examination: Examination, file: Path) -> None:
    """Write an examination, whole or not at all; a file that is there is replaced.

    Raises:
        StoreError: If the disk is full or refuses.
    """
    needed = sum(values.nbytes for scores in examination.scores for values in scores)
    partial = file.with_name(file.name + PARTIAL)
    with disk_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        # on a full disk the HDF5 library ends the whole process
        require_space(file, 2**20 + 2 * needed)
        with h5py.File(partial, "w") as out:
            _write(examination, out)
        sync(partial)
        partial.replace(file)


def _write(examination: Examination, out: h5py.File) -> None:
    out.attrs.update({"format": _FORMAT, "version": _VERSION})
    out.attrs["head"] = json.dumps(asdict(examination.head))
    text = h5py.string_dtype()
    out.create_dataset("classes", data=list(examination.class_names), dtype=text)
    out.create_dataset("videos/id", data=list(examination.ids), dtype=text)
    out["videos/row"] = examination.rows
    out["videos/label"] = examination.labels
    out["videos/usable"] = examination.usable
    for index, chosen in enumerate(examination.lists):
        group = out.create_group(f"lists/{index}")
        group.attrs["name"] = chosen.name
        group["rows"], group["categories"] = chosen.rows, chosen.categories
    questions = examination.questions
    for index, (examinee, scores) in enumerate(
        zip(examination.examinees, examination.scores, strict=True)
    ):
        group = out.create_group(f"examinees/{index}")
        group.attrs["record"] = json.dumps(asdict(examinee))
        for number, (question, values) in enumerate(zip(questions, scores, strict=True)):
            part = group.create_group(str(number))
            part["rows"], part["categories"] = question.rows, question.categories
            part.create_dataset("scores", data=values, fletcher32=True)


def load_scores(file: Path) -> Examination:
    """Read what `save_scores` wrote.

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
    with opened, _damage(file):
        if opened.attrs.get("format") != _FORMAT or opened.attrs["version"] != _VERSION:
            raise InputError(
                f"{file}: expected scores of version {_VERSION} from --save-scores, got "
                f"{opened.attrs.get('format', 'another HDF5 file')}"
            )
        return _read(opened)


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    """Turn what is missing in a file, or fails its checksum, into one sentence."""
    try:
        yield
    except InputError:
        raise
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"scores {str(file)!r} are damaged: {error}") from None


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


def _read(opened: h5py.File) -> Examination:
    videos, lists, examinees = (opened[name] for name in ("videos", "lists", "examinees"))
    asked = [examinees[str(index)] for index in range(len(examinees))]
    return Examination(
        head=Head(**json.loads(opened.attrs["head"])),
        class_names=tuple(opened["classes"].asstr()[:].tolist()),
        lists=tuple(
            EvalList(
                str(group.attrs["name"]),
                np.asarray(group["rows"][:]),
                np.asarray(group["categories"][:]),
            )
            for group in (lists[str(index)] for index in range(len(lists)))
        ),
        rows=np.asarray(videos["row"][:]),
        ids=tuple(videos["id"].asstr()[:].tolist()),
        labels=np.asarray(videos["label"][:]),
        usable=np.asarray(videos["usable"][:]),
        examinees=tuple(Examinee(**json.loads(group.attrs["record"])) for group in asked),
        scores=tuple(
            [np.asarray(group[str(number)]["scores"][:]) for number in range(len(group))]
            for group in asked
        ),
    )
