"""Results for people: a table, a line for a paper, and what was mistaken for what."""

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import groupby

from bieff.features.errors import InputError
from bieff.train.evaluate.lists import BASE, FEW_SHOT, NOVEL
from bieff.train.evaluate.results import Result, protocol_name
from bieff.train.evaluate.scores import ScoreTable

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Header and rows."""

BEST = 5
"""Classes shown of a video."""

WHAT = {
    "closed": "val list",
    "splits3": "official test lists",
    "full": "every video",
    "half10": "draws of half of the classes",
    "k600": "choices of classes outside Kinetics-400",
    FEW_SHOT: "whole test list",
    BASE: "test list of the base classes",
    NOVEL: "test list of the novel classes",
}
"""Words for a protocol's lists, for a paper."""


def result_table(results: Sequence[Result]) -> Table:
    """A row a result; the column of all listed videos only where some were undecodable."""
    differ = any(result.n_undecodable for result in results)
    header = ["data set", "protocol", "model", "prompt", "top-1", "top-5", "videos", "views"]
    if differ:
        header.insert(5, "top-1 of all")
    rows = []
    for result in results:
        row = [
            result.dataset,
            protocol_name(result.protocol, result.shots, result.after),
            _model(result),
            result.template + ("" if result.names is None else f", {result.names}"),
            _percent(result.top1, result.top1_std),
            f"{result.top5:.2f}",
            f"{result.n_evaluated:,} of {result.n_listed:,}",
            f"{result.frames} x {result.clips} x {result.crops}",
        ]
        if differ:
            row.insert(5, _percent(result.top1_all, result.top1_all_std))
        rows.append(tuple(row))
    return tuple(header), rows


def class_table(result: Result) -> Table:
    """A row a class that was asked about, the worst first."""
    asked = [part for part in result.classes if part.n_listed]
    asked.sort(key=lambda part: (part.top1 is None, part.top1, part.name))
    worst = {
        result.classes[label].name: f"{result.classes[predicted].name} ({count:,})"
        for label, predicted, count in reversed(result.confusions)
    }
    header = ("class", "top-1", "right", "evaluated", "listed", "most often taken for")
    return header, [
        (
            part.name,
            "-" if part.top1 is None else f"{part.top1:.2f}",
            f"{part.n_right:,}",
            f"{part.n_evaluated:,}",
            f"{part.n_listed:,}",
            worst.get(part.name, ""),
        )
        for part in asked
    ]


def confusion_table(result: Result, top: int) -> Table:
    """The most frequent mistakes."""
    rows: list[tuple[str, ...]] = []
    for label, predicted, count in result.confusions[:top]:
        true, taken = result.classes[label], result.classes[predicted]
        share = f"{100 * count / true.n_evaluated:.1f} %"
        rows.append((true.name, taken.name, f"{count:,}", share))
    return ("class", "taken for", "videos", "of the class"), rows


def video_table(table: ScoreTable, video: str) -> Table:
    """The best classes of one video, as each model scores it in each question.

    Raises:
        InputError: If the video is on no list, or has no embeddings.
    """
    if video not in table.ids:
        close = get_close_matches(video, table.ids, n=1, cutoff=0.0)
        raise InputError(f"no scores of a video {video!r}; did you mean {close[0]!r}?")
    at = table.ids.index(video)
    if not table.usable[at]:
        raise InputError(f"video {video!r} has no embeddings; it counts as wrong in top1_all")
    true = int(table.labels[at])
    rows: list[tuple[str, ...]] = []
    for about, scores in zip(table.models, table.scores, strict=True):
        for question, values in zip(table.questions, scores, strict=True):
            for of_video in values[question.rows == table.rows[at]]:  # one, or none
                best = (-of_video).argsort(kind="stable")[:BEST]
                for rank, place in enumerate(best.tolist(), start=1):
                    label = int(question.classes[place])
                    name = table.class_names[label] + (" (true)" if label == true else "")
                    among = f"{len(question.classes)} classes"
                    score = f"{of_video[place]:.4f}"
                    rows.append((about.model, among, str(rank), name, score))
    return ("model", "among", "rank", "class", "score"), rows


def paper_lines(results: Sequence[Result]) -> list[str]:
    """One line for each protocol and data set, which can be pasted into a paper."""
    groups = groupby(results, key=lambda result: (result.dataset, result.protocol))
    return [_paper_line(list(group)) for _, group in groups]


def _paper_line(results: list[Result]) -> str:
    first = results[0]
    protocol = protocol_name(first.protocol, first.shots, None)  # `_figures` says after what
    what = f"{first.dataset}, {protocol} ({_lists(first)})"
    figures = "; ".join(_figures(result) for result in results)
    counted = f"{first.n_evaluated:,} of {first.n_listed:,} videos"
    if first.n_undecodable:
        counted += f", {first.n_undecodable:,} undecodable"
    names = first.names or "the data set's"
    return (
        f"{what}: {figures}; {counted}; {first.frames} frames x {first.clips} clips x "
        f"{first.crops} crops; class names: {names} ({first.names_hash}); store "
        f"{first.store[:12]}"
    )


def _figures(result: Result) -> str:
    of_run = "" if result.run is None else f"run {result.run}, {result.weights} weights, "
    of_run += "" if result.after is None else f"after {result.after}, "
    top1 = f"{_percent(result.top1, result.top1_std)} top-1"
    if result.n_undecodable:
        top1 += f" ({_percent(result.top1_all, result.top1_all_std)} of all listed)"
    return f"{_model(result)} [{of_run}{result.template}] {top1}, {result.top5:.2f} top-5"


def _lists(result: Result) -> str:
    what = WHAT.get(result.protocol, "lists")
    count = len(result.lists)
    classes = " or ".join(map(str, sorted({part.n_classes for part in result.lists})))
    if count < 2:
        return f"{what}, {classes} classes"
    return f"{count} {what}, {classes} classes each, mean ± population std"


def _model(result: Result) -> str:
    names = {"bieff": "bieff", "frozen": "frozen CLIP"}
    blend = "" if result.blend is None else f", blend {result.blend}"
    return names.get(result.model, f"mix {result.mix}") + blend


def _percent(value: float | None, deviation: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")
