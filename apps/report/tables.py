"""Figures of a report: the closed set by class and by video, and what the run cost."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from bieff.apps.train import millions
from bieff.features.store import FeatureStore
from bieff.train.evaluate.results import Result
from bieff.train.evaluate.scores import ScoreTable
from bieff.train.fit.cost import stage_one
from bieff.train.runs.run import Run


@dataclass(frozen=True, slots=True)
class Cell:
    """Videos of one class that were taken for one class; places count from 0."""

    true: int
    said: int
    count: int
    share: float
    """Share of the true class's videos."""


def class_rows(ours: Result, frozen: Result) -> list[dict[str, Any]]:
    """Accuracy of every class that has videos in percent, the worst first."""
    worst = {true: (said, count) for true, said, count in reversed(ours.confusions)}
    rows = []
    for label, (mine, other) in enumerate(zip(ours.classes, frozen.classes, strict=True)):
        if not mine.n_evaluated:
            continue
        said, times = worst.get(label, (None, 0))
        rows.append(
            {
                "name": mine.name,
                "videos": mine.n_evaluated,
                "ours": mine.top1,
                "frozen": other.top1,
                "taken_for": None if said is None else ours.classes[said].name,
                "times": times,
            }
        )
    return sorted(rows, key=lambda row: (row["ours"], row["name"]))


def cells(ours: Result) -> list[Cell]:
    """Cells of the confusion matrix that are not zero, row by row."""
    right = [(i, i, one.n_right) for i, one in enumerate(ours.classes) if one.n_right]
    return [
        Cell(true, said, count, count / ours.classes[true].n_evaluated)
        for true, said, count in sorted([*right, *ours.confusions])
    ]


def top_confusions(ours: Result, count: int) -> list[Cell]:
    """The cells beside the diagonal with the most videos."""
    wrong = [cell for cell in cells(ours) if cell.true != cell.said]
    return sorted(wrong, key=lambda cell: (-cell.count, -cell.share))[:count]


def examples(found: ScoreTable, count: int, *, are_right: bool) -> Int[np.ndarray, " c"]:
    """The surest of the videos that were named rightly, or the furthest off of the others.

    By the score of their own class; a class comes twice only when all have come once.  A video
    is given by its place among the usable ones.
    """
    labels, (ours,) = found.labels[found.usable], found.scores[0]
    truth = ours[np.arange(len(labels)), labels]
    order = np.argsort(-truth if are_right else truth, kind="stable")
    order = order[(ours.argmax(axis=1) == labels)[order] == are_right]
    _, first = np.unique(labels[order], return_index=True)
    leaders = np.sort(first)
    others = np.setdiff1d(np.arange(len(order)), leaders)
    chosen: Int[np.ndarray, " c"] = order[np.concatenate([leaders, others])[:count]]
    return chosen


def cost(run: Run, store: FeatureStore | None) -> list[tuple[str, str]]:
    """Time of both stages, and the size of the model, line by line."""
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
    parts = ", ".join(f"{name} {millions(n)}" for name, n in counts.items() if n)
    lines.append(("Tunable parameters", f"{millions(total)} ({parts or 'none'})"))
    whole = int(record["parameters_with_clip"])
    lines.append(("With frozen CLIP, both towers", millions(whole)))
    lines.append(("Features", f"{record['features']['bytes'] / 1e6:,.1f} MB in training"))
    return lines


def _stage_one(store: FeatureStore) -> str:
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
