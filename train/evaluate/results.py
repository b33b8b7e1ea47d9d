"""Results: what was measured, on what, under which protocol; counted from scores."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int

from bieff.features.errors import InputError
from bieff.features.files import waiting_for, write_atomically
from bieff.train.evaluate.lists import EvalList
from bieff.train.evaluate.scores import About, Scores, ScoreTable


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
    """How frozen CLIP was asked, or the trained prompt's name."""

    store: str
    """Recipe hash of the feature store."""

    run: str | None
    """Id of the run; None for frozen CLIP."""

    top1_all: float | None = None
    """Percent of the listed videos: undecodable ones are wrong.  None in old records."""

    top1_all_std: float | None = None
    weights: str | None = None
    """Of the run: "last", or "best" on `val`."""

    mix: float | None = None
    """Weight of ours in a mix with frozen CLIP."""

    names: str | None = None
    """File of the descriptions of the classes; None for the store's class names."""

    names_hash: str | None = None
    """Of what the classes were called."""

    lists: tuple[ListFigures, ...] = ()
    classes: tuple[ClassFigures, ...] = ()
    """By label."""

    confusions: tuple[tuple[int, int, int], ...] = ()
    """(label, predicted, videos) of the mistakes, the most frequent first."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Result":
        """What `to_dict` gave."""
        nested = {
            "lists": tuple(ListFigures(**part) for part in record.get("lists", ())),
            "classes": tuple(ClassFigures(**part) for part in record.get("classes", ())),
            "confusions": tuple((a, b, n) for a, b, n in record.get("confusions", ())),
        }
        return cls(**{**record, **nested})

    @property
    def question(self) -> tuple[Any, ...]:
        """What was asked; two results of one question are the same, measured again."""
        return (
            *(self.protocol, self.dataset, self.model, self.run, self.weights, self.mix),
            *(self.template, self.names_hash, self.frames, self.clips, self.crops, self.store),
        )


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
        return [Result.from_dict(record) for record in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
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


def _result(table: ScoreTable, about: About, scores: Scores) -> Result:
    counted = [_count(table, chosen, scores) for chosen in table.lists]
    lists = [figures for figures, _, _ in counted]
    listed = Counter(label for _, labels, _ in counted for label in labels)
    pairs = Counter(pair for _, _, answers in counted for pair in answers)
    top1, top1_all = ([getattr(part, name) for part in lists] for name in ("top1", "top1_all"))
    n_listed, n_evaluated = listed.total(), pairs.total()
    several = len(lists) > 1
    return Result(
        **asdict(table.head),
        **asdict(about),
        top1=float(np.mean(top1)),
        top1_std=float(np.std(top1)) if several else None,
        top1_all=float(np.mean(top1_all)),
        top1_all_std=float(np.std(top1_all)) if several else None,
        top5=float(np.mean([part.top5 for part in lists])),
        n_evaluated=n_evaluated,
        n_listed=n_listed,
        n_undecodable=n_listed - n_evaluated,
        lists=tuple(lists),
        classes=_classes(table.class_names, listed, pairs),
        confusions=_confusions(pairs),
    )


def _count(
    table: ScoreTable, chosen: EvalList, scores: Scores
) -> tuple[ListFigures, list[int], list[tuple[int, int]]]:
    """The figures of one list, its labels, and (label, predicted) of the evaluated videos."""
    at = np.searchsorted(table.rows, chosen.rows)
    labels, usable = table.labels[at], table.usable[at]
    question, values = next(
        (question, values)
        for question, values in zip(table.questions, scores, strict=True)
        if np.array_equal(question.classes, chosen.classes)
    )
    values = values[np.searchsorted(question.rows, chosen.rows[usable])]
    true = np.searchsorted(chosen.classes, labels[usable])
    first, fifth = (hits(values, true, top) for top in (1, 5))
    predicted = chosen.classes[values.argmax(axis=1)]  # a tie goes to the smaller label
    figures = ListFigures(
        name=chosen.name,
        n_classes=len(chosen.classes),
        n_listed=len(labels),
        n_evaluated=len(true),
        n_top1=int(first.sum()),
        n_top5=int(fifth.sum()),
    )
    answers = list(zip(labels[usable].tolist(), predicted.tolist(), strict=True))
    return figures, labels.tolist(), answers


def _classes(
    names: Sequence[str], listed: Counter[int], pairs: Counter[tuple[int, int]]
) -> tuple[ClassFigures, ...]:
    evaluated: Counter[int] = Counter()
    for (label, _), count in pairs.items():
        evaluated[label] += count
    return tuple(
        ClassFigures(
            name=name,
            n_listed=listed[label],
            n_evaluated=evaluated[label],
            n_right=pairs[label, label],
        )
        for label, name in enumerate(names)
    )


def _confusions(pairs: Counter[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
    wrong = [(a, b, count) for (a, b), count in pairs.items() if a != b]
    return tuple(sorted(wrong, key=lambda pair: (-pair[2], pair[0], pair[1])))
