"""From scores to figures: nothing is dropped, and nothing is counted twice within a list.

n videos of a list, k categories, K classes.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from bieff.train.eval_lists import EvalList
from bieff.train.evaluate import hits
from bieff.train.examination import Examination, Examinee, Scores
from bieff.train.results import ClassFigures, ListFigures, Result
from bieff.train.scoring import Question


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
