"""Results: what was measured, on what, under which protocol; counted from scores."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int

from bieff.features.errors import InputError
from bieff.features.files import parse_json, waiting_for, write_atomically
from bieff.train.evaluate.lists import OF_FEW_VIDEOS, EvalList
from bieff.train.evaluate.scores import About, ModelScores, ScoreTable

QUESTION = (
    *("protocol", "dataset", "model", "run", "weights", "mix", "blend"),
    *("template", "names_hash", "frames", "clips", "crops", "store"),
)
"""Fields of a result that say what was asked; the others are the answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListFigures:
    """Figures of one list of a protocol: a split, or a draw of classes."""

    name: str
    n_classes: int
    """Classes that the videos were told apart among."""

    n_listed: int
    n_evaluated: int
    n_top1: int
    """Videos whose class scored best."""

    n_top5: int
    """Videos whose class was among the best five."""

    @property
    def top1(self) -> float:
        """Percent of the evaluated videos."""
        return 100 * self.n_top1 / self.n_evaluated

    @property
    def top1_all(self) -> float:
        """Percent of the listed videos: undecodable ones are wrong."""
        return 100 * self.n_top1 / self.n_listed

    @property
    def top5(self) -> float:
        """Percent of the evaluated videos."""
        return 100 * self.n_top5 / self.n_evaluated


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassFigures:
    """Videos of one class; one that is on several lists counts once for each."""

    name: str
    n_listed: int
    n_evaluated: int
    n_right: int

    @property
    def top1(self) -> float | None:
        """Percent of the evaluated videos; None without any."""
        return 100 * self.n_right / self.n_evaluated if self.n_evaluated else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One figure one can trust: it says what it is."""

    protocol: str
    dataset: str
    model: Literal["bieff", "frozen", "mix"]
    top1: float
    """Percent of the evaluated videos; the mean over splits where there are several."""

    top1_std: float | None
    """Population standard deviation over the splits; None for one list."""

    top5: float
    n_evaluated: int
    n_listed: int
    n_undecodable: int
    """Listed, but without embeddings: not in `top1`."""

    frames: int
    clips: int
    crops: int
    template: str
    """Template that frozen CLIP was asked in, or the trained prompt's name."""

    store: str
    """Recipe hash of the feature store."""

    run: str | None
    """Id of the run; None for frozen CLIP."""

    top1_all: float | None = None
    """Percent of the listed videos: undecodable ones are wrong.  None in old records."""

    top1_all_std: float | None = None
    weights: str | None = None
    """Weights of the run: "last", or "best" on `val`."""

    mix: float | None = None
    """Weight of ours in a mix with frozen CLIP."""

    blend: float | None = None
    """Share of the trained weights; the rest is those that the run started with."""

    shots: int | None = None
    """Videos a class that the run was trained on; None: all."""

    after: str | None = None
    """Data sets that the run's ancestors were trained on, in words."""

    names: str | None = None
    """File of the descriptions of the classes; None for the store's class names."""

    names_hash: str | None = None
    """Hash of what the classes were called."""

    lists: tuple[ListFigures, ...] = ()
    classes: tuple[ClassFigures, ...] = ()
    """Figures by label."""

    confusions: tuple[tuple[int, int, int], ...] = ()
    """(label, predicted, videos) of the mistakes, the most frequent first."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Result":
        """The result that gave a record by `to_dict`."""
        nested = {
            "lists": tuple(ListFigures(**part) for part in record.get("lists", ())),
            "classes": tuple(ClassFigures(**part) for part in record.get("classes", ())),
            "confusions": tuple((a, b, n) for a, b, n in record.get("confusions", ())),
        }
        return cls(**{**record, **nested})

    @property
    def question(self) -> tuple[Any, ...]:
        """The question asked; two results of one question are the same, measured again."""
        return tuple(getattr(self, name) for name in QUESTION)


def protocol_name(protocol: str, shots: object, after: object) -> str:
    """A protocol and what the run had seen: "fewshot 4 after k400"."""
    few = f" {shots}" if shots and protocol in OF_FEW_VIDEOS else ""
    return f"{protocol}{few}" + (f" after {after}" if after else "")


def save_results(path: Path, results: Sequence[Result]) -> None:
    """Write a list of records, whole or not at all; a field a line."""
    records = []
    for result in results:
        fields = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in result.to_dict().items()]
        records.append("  {\n" + ",\n".join(fields) + "\n  }")
    write_atomically(path, ("[\n" + ",\n".join(records) + "\n]\n").encode())


def load_results(path: Path) -> list[Result]:
    """Read what `save_results` wrote.

    Raises:
        InputError: If there is no such file, or it is something else.
    """
    if not path.is_file():
        raise InputError(f"no results at {path}")
    try:
        return [Result.from_dict(record) for record in parse_json(path.read_text())]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read the results at {path}: {error}") from None


def merge_results(path: Path, results: Sequence[Result]) -> None:
    """Add results to those at `path`; one of the same question takes the old one's place."""
    with waiting_for(path):
        known = load_results(path) if path.exists() else []
        merged = {result.question: result for result in [*known, *results]}
        save_results(path, list(merged.values()))


# --- counting


def hits(
    scores: Float64[np.ndarray, "B K"], labels: Int[np.ndarray, " B"], top: int
) -> Bool[np.ndarray, " B"]:
    """True where the label is among the `top` best; a tie goes to the smaller index."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    found: Bool[np.ndarray, " B"] = (best == labels[:, None]).any(axis=1)
    return found


def results_of(table: ScoreTable) -> list[Result]:
    """The figures of each model."""
    return [
        _result(table, about, scores)
        for about, scores in zip(table.models, table.scores, strict=True)
    ]


def _result(table: ScoreTable, about: About, scores: ModelScores) -> Result:
    number = len(table.class_names)
    listed = np.zeros(number, np.int64)
    answers = np.zeros((number, number), np.int64)  # true class x predicted class
    lists = []
    for chosen in table.lists:
        figures, labels, pairs = _count(table, chosen, scores)
        lists.append(figures)
        np.add.at(listed, labels, 1)
        np.add.at(answers, pairs, 1)
    counts = (listed, answers.sum(axis=1), answers.diagonal())
    mistakes = [(a, b, int(answers[a, b])) for a, b in np.argwhere(answers).tolist() if a != b]
    top1, top1_all = ([getattr(part, name) for part in lists] for name in ("top1", "top1_all"))
    several = len(lists) > 1
    return Result(
        **asdict(table.head),
        **asdict(about),
        top1=float(np.mean(top1)),
        top1_std=float(np.std(top1)) if several else None,
        top1_all=float(np.mean(top1_all)),
        top1_all_std=float(np.std(top1_all)) if several else None,
        top5=float(np.mean([part.top5 for part in lists])),
        n_evaluated=int(answers.sum()),
        n_listed=int(listed.sum()),
        n_undecodable=int(listed.sum() - answers.sum()),
        lists=tuple(lists),
        classes=tuple(
            ClassFigures(name=name, n_listed=n_listed, n_evaluated=n_evaluated, n_right=n_right)
            for name, n_listed, n_evaluated, n_right in zip(
                table.class_names, *(count.tolist() for count in counts), strict=True
            )
        ),
        confusions=tuple(sorted(mistakes, key=lambda mistake: -mistake[2])),
    )


def _count(
    table: ScoreTable, chosen: EvalList, scores: ModelScores
) -> tuple[ListFigures, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    at = np.searchsorted(table.rows, chosen.rows)
    labels, usable = table.labels[at], table.usable[at]
    question, values = next(
        (question, values)
        for question, values in zip(table.questions, scores, strict=True)
        if np.array_equal(question.classes, chosen.classes)
    )
    values = values[np.searchsorted(question.rows, chosen.rows[usable])]
    true = np.searchsorted(chosen.classes, labels[usable])
    first, fifth = (int(hits(values, true, top).sum()) for top in (1, 5))
    figures = ListFigures(
        name=chosen.name,
        n_classes=len(chosen.classes),
        n_listed=len(labels),
        n_evaluated=len(true),
        n_top1=first,
        n_top5=fifth,
    )
    predicted = chosen.classes[values.argmax(axis=1)]  # a tie goes to the smaller label
    return figures, labels, (labels[usable], predicted)
