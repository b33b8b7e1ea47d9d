"""What a report counts: the closed set by class and by video, and what the run cost.

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
from bieff.train.fit.cost import stage_one
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
    places, sums = np.argwhere(table), table.sum(axis=1)
    return [
        Cell(true=i, said=j, count=int(table[i, j]), share=float(table[i, j] / sums[i]))
        for i, j in places.tolist()
    ]


def top_confusions(table: Int64[np.ndarray, "K K"], count: int) -> list[Cell]:
    """The cells beside the diagonal with the most videos."""
    wrong = [cell for cell in cells(table) if cell.true != cell.said]
    return sorted(wrong, key=lambda cell: (-cell.count, -cell.share))[:count]


def surest(found: ClosedSet, count: int) -> Int64[np.ndarray, " c"]:
    """Videos named rightly, the highest scores first, one of each class."""
    truth = _truth(found)
    right = found.ours.argmax(axis=1) == found.labels
    order = np.argsort(-truth, kind="stable")
    return _one_a_class(order[right[order]], found.labels, count)


def furthest_off(found: ClosedSet, count: int) -> Int64[np.ndarray, " c"]:
    """Videos named wrongly, the lowest scores of their class first, one of each class."""
    truth = _truth(found)
    wrong = found.ours.argmax(axis=1) != found.labels
    order = np.argsort(truth, kind="stable")
    return _one_a_class(order[wrong[order]], found.labels, count)


def _truth(found: ClosedSet) -> Float64[np.ndarray, " n"]:
    """Score of each video's own class."""
    scores: Float64[np.ndarray, " n"] = found.ours[np.arange(len(found.labels)), found.labels]
    return scores


def _one_a_class(
    order: Int64[np.ndarray, " m"], labels: Int64[np.ndarray, " n"], count: int
) -> Int64[np.ndarray, " c"]:
    """The first `count` of an order; a class comes twice only when all have come once."""
    _, first = np.unique(labels[order], return_index=True)
    leaders = np.sort(first)
    others = np.setdiff1d(np.arange(len(order)), leaders)
    chosen: Int64[np.ndarray, " c"] = order[np.concatenate([leaders, others])[:count]]
    return chosen


def cost(run: Run, store: FeatureStore | None) -> list[tuple[str, str]]:
    """What both stages took, and what the model weighs, line by line."""
    record = run.record
    lines = []
    if store is not None:
        lines.append(("Stage one, extraction", _stage_one(store)))
    seconds, steps = float(record["seconds"]), int(record["steps"])
    lines.append(
        (
            "Stage two, training",
            f"{duration(seconds)} for {steps:,} steps of {record['config']['batch_size']} "
            f"videos on {record['device']}, {record['precision']}",
        )
    )
    if record.get("peak_memory_bytes"):
        lines.append(("Peak memory", f"{record['peak_memory_bytes'] / 1e9:.2f} GB"))
    batch = (record.get("cost") or {}).get("batch") or {}
    if flops := (batch.get("flops_a_video") or {}).get("total"):
        lines.append(("Arithmetic of a training video", f"{flops / 1e9:,.2f} GFLOPs"))
    counts = dict(record["parameters"])
    total = counts.pop("total")
    parts = ", ".join(f"{name} {_count(n)}" for name, n in counts.items() if n)
    lines.append(("Tunable parameters", f"{_count(total)} ({parts or 'none'})"))
    whole = int(record["parameters_with_clip"])
    lines.append(("With frozen CLIP, both towers", _count(whole)))
    lines.append(("Features", f"{record['features']['bytes'] / 1e6:,.1f} MB in training"))
    return lines


def _stage_one(store: FeatureStore) -> str:
    """Seconds of all shards, as their markers say."""
    parts = stage_one(store).values()
    busy, waiting = (
        sum(float(part["seconds"].get(name, 0)) for part in parts)
        for name in ("cutting and encoding", "waiting for decoders")
    )
    videos = sum(int(part["videos"]) for part in parts)
    return (
        f"{duration(waiting + busy)} for {videos:,} videos: {duration(busy)} cutting and "
        f"encoding, {duration(waiting)} waiting for decoders"
    )


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 120 else f"{hours:.1f} h"


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"
