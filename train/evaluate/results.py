"""Results: what was measured, on what, under which protocol."""

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
from bieff.train.evaluate.lists import (
    EvalList,
)
from bieff.train.evaluate.scores import Examination, Examinee, Question, Scores


def hits(
    scores: Float64[np.ndarray, "B K"], labels: Int[np.ndarray, " B"], top: int
) -> Bool[np.ndarray, " B"]:
    """True where the label is among the `top` best; a tie goes to the smaller index."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    found: Bool[np.ndarray, " B"] = (best == labels[:, None]).any(axis=1)
    return found


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


def confusion_matrix(result: Result) -> Int[np.ndarray, "K K"]:
    """Videos by label (row) and prediction (column)."""
    matrix = np.diag([part.n_right for part in result.classes])
    for label, predicted, count in result.confusions:
        matrix[label, predicted] = count
    return matrix


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
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read the results at {path}: {error}") from None


def merge_results(path: Path, results: Sequence[Result]) -> None:
    """Add results to those at `path`; one of the same question takes the old one's place."""
    with waiting_for(path):
        known = load_results(path) if path.exists() else []
        merged = {result.question: result for result in [*known, *results]}
        save_results(path, list(merged.values()))


def results_of(examination: Examination) -> list[Result]:
    """The figures of each examinee."""
    questions = examination.questions
    return [
        _result(examination, questions, examinee, scores)
        for examinee, scores in zip(examination.examinees, examination.scores, strict=True)
    ]


def _result(
    examination: Examination, questions: list[Question], examinee: Examinee, scores: Scores
) -> Result:
    lists, pooled = [], Pooled(len(examination.class_names))
    for chosen in examination.lists:
        lists.append(_count(examination, questions, chosen, scores, pooled))
    head = examination.head
    several = len(lists) > 1
    top1, top1_all = ([getattr(part, name) for part in lists] for name in ("top1", "top1_all"))
    n_listed, n_evaluated = (
        sum(getattr(p, n) for p in lists) for n in ("n_listed", "n_evaluated")
    )
    return Result(
        protocol=head.protocol,
        dataset=head.dataset,
        model=examinee.model,
        top1=float(np.mean(top1)),
        top1_std=float(np.std(top1)) if several else None,
        top1_all=float(np.mean(top1_all)),
        top1_all_std=float(np.std(top1_all)) if several else None,
        top5=float(np.mean([part.top5 for part in lists])),
        n_evaluated=n_evaluated,
        n_listed=n_listed,
        n_undecodable=n_listed - n_evaluated,
        frames=examinee.frames,
        clips=head.clips,
        crops=head.crops,
        template=examinee.template,
        names=examinee.names,
        names_hash=examinee.names_hash,
        store=head.store,
        run=examinee.run,
        weights=examinee.weights,
        mix=examinee.mix,
        lists=tuple(lists),
        classes=pooled.classes(examination.class_names),
        confusions=pooled.confusions(),
    )


def _count(
    examination: Examination,
    questions: list[Question],
    chosen: EvalList,
    scores: Scores,
    pooled: "Pooled",
) -> ListFigures:
    """The figures of one list; its classes' go to `pooled` too."""
    at = np.searchsorted(examination.rows, chosen.rows)
    labels, usable = examination.labels[at], examination.usable[at]
    asked = [np.array_equal(q.categories, chosen.categories) for q in questions].index(True)
    question = questions[asked]
    values = scores[asked][np.searchsorted(question.rows, chosen.rows[usable])]
    true = np.searchsorted(chosen.categories, labels[usable])
    first, fifth = (hits(values, true, top) for top in (1, 5))
    predicted = chosen.categories[values.argmax(axis=1)]  # a tie goes to the smaller label
    pooled.add(labels, labels[usable], predicted)
    return ListFigures(
        name=chosen.name,
        n_classes=len(chosen.categories),
        n_listed=len(labels),
        n_evaluated=len(true),
        n_top1=int(first.sum()),
        n_top5=int(fifth.sum()),
    )


class Pooled:
    """Counts by class over all lists of a protocol, a video once for each list it is on."""

    def __init__(self, num_classes: int) -> None:
        self._listed = np.zeros(num_classes, np.int64)
        self._pairs: Counter[tuple[int, int]] = Counter()

    def add(
        self,
        listed: Int[np.ndarray, " m"],
        labels: Int[np.ndarray, " n"],
        predicted: Int[np.ndarray, " n"],
    ) -> None:
        """Count a list."""
        self._listed += np.bincount(listed, minlength=len(self._listed))
        self._pairs.update(zip(labels.tolist(), predicted.tolist(), strict=True))

    def classes(self, names: Sequence[str]) -> tuple[ClassFigures, ...]:
        """Figures of each class, by label."""
        evaluated: Counter[int] = Counter()
        for (label, _), count in self._pairs.items():
            evaluated[label] += count
        return tuple(
            ClassFigures(
                name=name,
                n_listed=int(self._listed[label]),
                n_evaluated=evaluated[label],
                n_right=self._pairs[label, label],
            )
            for label, name in enumerate(names)
        )

    def confusions(self) -> tuple[tuple[int, int, int], ...]:
        """(label, predicted, videos) of the mistakes, the most frequent first."""
        wrong = [(a, b, count) for (a, b), count in self._pairs.items() if a != b and count]
        return tuple(sorted(wrong, key=lambda pair: (-pair[2], pair[0], pair[1])))
