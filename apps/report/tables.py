"""What a report counts: the closed set by class and by video, and what the run cost.

n evaluated videos, K categories.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from bieff.clip import Clip
from bieff.features.store import FeatureStore
from bieff.train.evaluate.classifier import Frozen, Trained
from bieff.train.evaluate.results import Result, results_of
from bieff.train.evaluate.scores import ScoreTable
from bieff.train.evaluate.scoring import evaluate
from bieff.train.fit.cost import stage_one
from bieff.train.runs.run import Run

PARTITION = "val"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClosedSet:
    """What was found on all videos of the partition that are usable."""

    names: list[str]
    rows: Int64[np.ndarray, " n"]
    """Row in the store of each video."""

    labels: Int64[np.ndarray, " n"]
    scores: Float64[np.ndarray, "n K"]
    """Of the run's model."""

    ours: Result
    frozen: Result

    @classmethod
    def of(cls, table: ScoreTable) -> "ClosedSet":
        """The scores of a run and of frozen CLIP, in this order, of the protocol `closed`."""
        (scores,), _ = table.scores
        ours, frozen = results_of(table)
        return cls(
            names=list(table.class_names),
            rows=table.rows[table.usable].astype(np.int64),
            labels=table.labels[table.usable].astype(np.int64),
            scores=scores,
            ours=ours,
            frozen=frozen,
        )


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
    """Score all videos of `val` as `bieff eval` does, or read what it left beside the run.

    Raises:
        StoreError: If the store has no such partition, or is not finished.
    """
    ours = Trained(run, clip, store.class_names)
    beside = Frozen(clip, store.class_names, num_frames=ours.about.frames)
    return ClosedSet.of(
        evaluate(store, [ours, beside], "closed", watch=watch, keep_in=run.path)
    )


def class_rows(ours: Result, frozen: Result) -> list[dict[str, Any]]:
    """Accuracy in percent of every class that has videos, the worst first.

    `taken_for` is the class that its videos are most often taken for, so many `times`.
    """
    wrong = {true: (said, count) for true, said, count in reversed(ours.confusions)}
    rows = []
    for label, (mine, other) in enumerate(zip(ours.classes, frozen.classes, strict=True)):
        said, times = wrong.get(label, (None, 0))
        row = {"name": mine.name, "videos": mine.n_evaluated, "times": times}
        row |= {"ours": mine.top1, "frozen": other.top1}
        rows.append(row | {"taken_for": None if said is None else ours.classes[said].name})
    rows = [row for row in rows if row["videos"]]
    return sorted(rows, key=lambda row: (row["ours"], row["name"]))


def cells(result: Result) -> list[Cell]:
    """What of the confusion matrix is not zero, row by row."""
    right = [(i, i, part.n_right) for i, part in enumerate(result.classes) if part.n_right]
    return [
        Cell(true=i, said=j, count=count, share=count / result.classes[i].n_evaluated)
        for i, j, count in sorted([*right, *result.confusions])
    ]


def top_confusions(result: Result, count: int) -> list[Cell]:
    """The cells beside the diagonal with the most videos."""
    wrong = [cell for cell in cells(result) if cell.true != cell.said]
    return sorted(wrong, key=lambda cell: (-cell.count, -cell.share))[:count]


def surest(found: ClosedSet, count: int) -> Int64[np.ndarray, " c"]:
    """Videos named rightly, the highest scores first, one of each class."""
    truth = _truth(found)
    right = found.scores.argmax(axis=1) == found.labels
    order = np.argsort(-truth, kind="stable")
    return _one_a_class(order[right[order]], found.labels, count)


def furthest_off(found: ClosedSet, count: int) -> Int64[np.ndarray, " c"]:
    """Videos named wrongly, the lowest scores of their class first, one of each class."""
    truth = _truth(found)
    wrong = found.scores.argmax(axis=1) != found.labels
    order = np.argsort(truth, kind="stable")
    return _one_a_class(order[wrong[order]], found.labels, count)


def _truth(found: ClosedSet) -> Float64[np.ndarray, " n"]:
    """Score of each video's own class."""
    scores: Float64[np.ndarray, " n"] = found.scores[np.arange(len(found.labels)), found.labels]
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
