"""The closed set, video by video: what a run's model and frozen CLIP say of each class.

n evaluated videos, K categories.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from bieff.clip import Clip
from bieff.features.store import FeatureStore
from bieff.train.evaluate.classifier import Frozen, Trained
from bieff.train.evaluate.scoring import evaluate
from bieff.train.runs.run import Run

PARTITION = "val"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClosedSet:
    """Scores of all videos of the partition that are usable."""

    names: list[str]
    rows: Int64[np.ndarray, " n"]
    """Row in the store of each video."""

    labels: Int64[np.ndarray, " n"]
    ours: Float64[np.ndarray, "n K"]
    frozen: Float64[np.ndarray, "n K"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassFigures:
    """One class; accuracies in percent."""

    name: str
    videos: int
    ours: float
    frozen: float
    taken_for: str | None
    """The class that its videos are most often taken for; None where all are right."""

    times: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Videos of one class that were taken for one class; places count from 0."""

    true: int
    said: int
    count: int
    share: float
    """Of the true class's videos."""


def closed_set(
    run: Run, clip: Clip, store: FeatureStore, *, watch: Callable[[int, int], None]
) -> ClosedSet:
    """Scores of all videos of `val`, of the run's model and of frozen CLIP, as of `bieff eval`.

    Those that it left beside the run are read; else they are made, and left there.

    Raises:
        StoreError: If the store has no such partition, or is not finished.
    """
    ours = Trained(run, clip, store.class_names)
    beside = Frozen(clip, store.class_names, num_frames=ours.about.frames)
    table = evaluate(store, [ours, beside], "closed", watch=watch, keep_in=run.path)
    (scores,), (scores_beside,) = table.scores
    return ClosedSet(
        names=list(store.class_names),
        rows=table.rows[table.usable].astype(np.int64),
        labels=table.labels[table.usable].astype(np.int64),
        ours=scores,
        frozen=scores_beside,
    )


def class_figures(found: ClosedSet) -> list[ClassFigures]:
    """Accuracy of every class that has videos, the worst first."""
    table = confusion(found)
    right = found.frozen.argmax(axis=1) == found.labels
    figures = []
    for label, name in enumerate(found.names):
        of_class = found.labels == label
        if not of_class.any():
            continue
        wrong = table[label].copy()
        wrong[label] = 0
        times = int(wrong.max())
        figures.append(
            ClassFigures(
                name=name,
                videos=int(of_class.sum()),
                ours=100 * float(table[label, label] / of_class.sum()),
                frozen=100 * float(right[of_class].mean()),
                taken_for=found.names[int(wrong.argmax())] if times else None,
                times=times,
            )
        )
    return sorted(figures, key=lambda figure: (figure.ours, figure.name))


def confusion(found: ClosedSet) -> Int64[np.ndarray, "K K"]:
    """How many videos of each true class (row) were taken for each class (column)."""
    table = np.zeros((len(found.names), len(found.names)), np.int64)
    np.add.at(table, (found.labels, found.ours.argmax(axis=1)), 1)
    return table


def cells(table: Int64[np.ndarray, "K K"]) -> list[Cell]:
    """What of the confusion matrix is not zero, row by row."""
    sums = table.sum(axis=1)
    return [
        Cell(
            true=true,
            said=said,
            count=int(table[true, said]),
            share=float(table[true, said] / sums[true]),
        )
        for true, said in np.argwhere(table).tolist()
    ]


def top_confusions(table: Int64[np.ndarray, "K K"], count: int) -> list[Cell]:
    """The cells beside the diagonal with the most videos."""
    wrong = [cell for cell in cells(table) if cell.true != cell.said]
    return sorted(wrong, key=lambda cell: (-cell.count, -cell.share))[:count]
