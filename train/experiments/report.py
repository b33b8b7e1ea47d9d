"""The tables of an ablation, for people and for programs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bieff.train.evaluate.results import Result
from bieff.train.experiments.rows import TITLES, Row

PAPER = "Kinetics-400, ViT-B/16, 8 frames but where a row says otherwise, 3 clips x 1 crop"
PAPER_HOURS = "152 RTX 3090 hours of training at 16 frames (Table 3)"


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRuns:
    """A row and what there is of its runs."""

    row: Row
    names: Sequence[str]
    """Of all its runs, done or not."""

    records: Sequence[Mapping[str, Any]]
    """run.json of those that are done."""

    results: Mapping[str, Sequence[Result]]
    """Figures of those that are done, by store; the closed set's first."""

    problem: str | None = None
    """Why it has none, or fewer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over seeds."""

    mean: float
    std: float | None
    values: Sequence[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=statistics.fmean(values), std=std, values=list(values))

    def text(self) -> str:
        """Two places each."""
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")


def as_dict(rows: Sequence[RowRuns], frozen: Mapping[str, Result]) -> dict[str, Any]:
    """Tables of rows, ready for JSON; `frozen` are the figures of CLIP as it is, by store."""
    tables: dict[int, dict[str, Any]] = {}
    for runs in rows:
        number = runs.row.table
        title = {"table": number, "title": TITLES[number], "rows": []}
        tables.setdefault(number, title)["rows"].append(_row_dict(runs))
    return {
        "paper_column": f"{PAPER}: another data set and another CLIP",
        "paper_cost": PAPER_HOURS,
        "deviation": "sample standard deviation over seeds",
        "frozen": {name: result.to_dict() for name, result in frozen.items()},
        "tables": list(tables.values()),
    }


def _row_dict(runs: RowRuns) -> dict[str, Any]:
    row = runs.row
    values: dict[str, Any] = {
        "row": row.name,
        "settings": dict(row.settings),
        "runs": list(runs.names),
        "runs_done": len(runs.records),
        "problem": runs.problem,
        "paper_top1": row.paper_top1,
        "paper_top5": row.paper_top5,
    }
    if not runs.records:
        return values
    values["results"] = {
        name: {
            "protocol": results[0].protocol,
            "top1": asdict(Spread.of([result.top1 for result in results])),
            "top5": asdict(Spread.of([result.top5 for result in results])),
        }
        for name, results in runs.results.items()
    }
    first = runs.records[0]
    return {
        **values,
        "parameters": first["parameters"],
        "parameters_with_clip": first["parameters_with_clip"],
        "batch": first["cost"]["batch"],
        "seconds": asdict(Spread.of([record["seconds"] for record in runs.records])),
        "peak_memory_bytes": max(record["peak_memory_bytes"] for record in runs.records),
    }


def as_markdown(
    rows: Sequence[RowRuns], frozen: Mapping[str, Result], seeds: Sequence[int]
) -> str:
    """The tables as a page that says what the figures are."""
    done = [record for runs in rows for record in runs.records]
    lines = ["# Ablation", ""]
    if done:
        lines += [*_preface(done[0], frozen, seeds), ""]
    for number in dict.fromkeys(runs.row.table for runs in rows):
        table = f"Table {number}" if number else "Ours"
        lines += [f"## {table}: {TITLES[number]}", ""]
        lines += [*_table([runs for runs in rows if runs.row.table == number]), ""]
    problems = dict.fromkeys(
        f"- table {runs.row.table}, {runs.row.name}: {runs.problem}"
        for runs in rows
        if runs.problem
    )
    if problems:
        lines += ["## Not there", "", *problems, ""]
    return "\n".join(lines)


def _preface(
    record: Mapping[str, Any], frozen: Mapping[str, Result], seeds: Sequence[int]
) -> list[str]:
    result, clip, config = next(iter(frozen.values())), record["clip"]["name"], record["config"]
    model = "/".join(part for part in (clip["model"], clip["pretrained"]) if part)
    one = record["cost"]["stage_one"]
    seconds = sum(part["seconds"].get("total", 0.0) for part in one.values())
    parameters = record["parameters_with_clip"] - record["parameters"]["total"]
    asides = ", ".join(
        f"{store} {figures.top1:.2f} ({figures.protocol})" for store, figures in frozen.items()
    )
    return [
        f"Ours: `{result.dataset}`, {record['videos']:,} training and {result.n_evaluated:,} "
        f"test videos, {len(record['class_names'])} classes, {model}, {result.frames} frames "
        f"but where a row says otherwise, {result.clips} clips x {result.crops} crops, "
        f"{config['epochs']} epochs, batch {config['batch_size']}, seeds "
        f"{', '.join(map(str, seeds))}; the weights after the last step, none chosen on the "
        "test videos. Percent, mean ± sample standard deviation over the seeds.",
        "",
        f"Paper: {PAPER}. **Another data set and another CLIP**: the order of rows may be "
        "compared, figures may not.",
        "",
        f"Frozen CLIP on the same stores (prompt {result.template!r}), top-1: {asides}.",
        "",
        f"Cost: seconds are the wall clock of a run with its evaluations while training, on "
        f"{record['device']}, {record['threads']} threads, torch "
        f"{record['versions']['torch']}, commit {record['commit']}; runs side by side slow "
        "each other. Memory is the worst moment of the process, or of the device. FLOPs are "
        "those of a training video, forward and backward, matrix products only. Stage one, "
        f"once for all rows: {seconds:,.0f} s for "
        f"{sum(part['videos'] for part in one.values()):,} videos. The paper: {PAPER_HOURS}. "
        f"Frozen CLIP has {parameters / 1e6:.2f} M parameters, both towers and "
        "the token table.",
    ]


def _table(rows: Sequence[RowRuns]) -> list[str]:
    closed, *others = rows[0].results
    header = [
        *("", f"{closed} top-1", "top-5", *(f"{name} top-1" for name in others)),
        *("tunable", "seconds", "memory", "text rows", "GFLOPs"),
        *("paper, K400 top-1", "paper, K400 top-5"),
    ]
    lines = [header, ["---"] * len(header)]
    for runs in rows:
        row, done, wanted = runs.row, len(runs.records), len(runs.names)
        name = row.name if done == wanted else f"{row.name} ({done} of {wanted} runs)"
        cells = _cells(runs) if done else [""] * (len(header) - 3)
        paper = [
            "" if top is None else f"{top:.1f}" for top in (row.paper_top1, row.paper_top5)
        ]
        lines.append([name, *cells, *paper])
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _cells(runs: RowRuns) -> list[str]:
    closed, *others = runs.results.values()
    records, batch = runs.records, runs.records[0]["cost"]["batch"]
    return [
        Spread.of([result.top1 for result in closed]).text(),
        Spread.of([result.top5 for result in closed]).text(),
        *(Spread.of([result.top1 for result in results]).text() for results in others),
        f"{records[0]['parameters']['total'] / 1e6:.2f} M",
        f"{statistics.fmean(record['seconds'] for record in records):,.0f}",
        f"{max(record['peak_memory_bytes'] for record in records) / 1e9:.2f} GB",
        f"{batch['text_rows'] / batch['videos']:.1f}",
        f"{batch['flops_a_video']['total'] / 1e9:.3g}",
        # the seconds of a table's rows are compared, so their spread is in the JSON alone
    ]
