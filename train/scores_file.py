"""Scores of every video in one HDF5 file: what a result can be looked at again from.

    /                     attributes: format, version, head (JSON)
    /classes              names by label
    /videos/id, row, label, usable        of every video on any list
    /lists/0, 1, ...      attribute name; rows, categories
    /examinees/0, 1, ...  attribute record (JSON: model, run, template, ...)
      /0, 1, ...          of each question: rows, categories, scores f8 (videos, categories)

Lists with the same classes are one question; a video is asked each question once.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np

from bieff.features.durable import PARTIAL, disk_errors, require_space, sync_file
from bieff.features.errors import InputError
from bieff.train.eval_lists import EvalList
from bieff.train.examination import Examination, Examinee, Head

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
        sync_file(partial)
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
