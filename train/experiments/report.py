"""The tables of an ablation, for people: a page out of what ablation.json holds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

PAPER = "Kinetics-400, ViT-B/16, 8 frames but where a row says otherwise, 3 clips x 1 crop"
PAPER_HOURS = "152 RTX 3090 hours of training at 16 frames (Table 3)"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (n - 1) over seeds, of at least one value."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": values}


def spread_text(figures: Mapping[str, Any]) -> str:
    """Two places each."""
    std = figures["std"]
    return f"{figures['mean']:.2f}" + ("" if std is None else f" ± {std:.2f}")


def as_markdown(
    state: Mapping[str, Any], stores: Sequence[str], record: Mapping[str, Any] | None
) -> str:
    """The tables as a page that says what the figures are.

    Args:
        state: What ablation.json holds.
        stores: Names of the stores, the closed set's first.
        record: run.json of a run that is done, if one is.
    """
    lines = ["# Ablation", ""]
    if record is not None:
        lines += [*_preface(state, record), ""]
    problems: dict[str, None] = {}
    for table in state["tables"]:
        number, rows = table["table"], table["rows"]
        lines += [f"## {f'Table {number}' if number else 'Ours'}: {table['title']}", ""]
        lines += [*_table(rows, stores), ""]
        problems |= {
            f"- table {number}, {row['row']}: {row['problem']}": None
            for row in rows
            if row["problem"]
        }
    if problems:
        lines += ["## Not there", "", *problems, ""]
    return "\n".join(lines)


def _preface(state: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    frozen, clip, config = state["frozen"], record["clip"]["name"], record["config"]
    closed = next(iter(frozen.values()))
    model = "/".join(part for part in (clip["model"], clip["pretrained"]) if part)
    one = record["cost"]["stage_one"].values()
    seconds = sum(part["seconds"].get("total", 0.0) for part in one)
    parameters = record["parameters_with_clip"] - record["parameters"]["total"]
    seeds = range(state["base"]["seed"], state["base"]["seed"] + state["seeds"])
    asides = ", ".join(
        f"{store} {figures['top1']:.2f} ({figures['protocol']})"
        for store, figures in frozen.items()
    )
    after = f", after {state['after']}" if state["after"] else ""
    return [
        f"Ours: `{closed['dataset']}`, {record['videos']:,} training and "
        f"{closed['n_evaluated']:,} test videos{after}, {len(record['class_names'])} classes, "
        f"{model}, {closed['frames']} frames but where a row says otherwise, "
        f"{closed['clips']} clips x {closed['crops']} crops, {config['epochs']} epochs, "
        f"batch {config['batch_size']}, seeds {', '.join(map(str, seeds))}; the weights after "
        "the last step, none chosen on the test videos. Percent, mean ± sample standard "
        "deviation over the seeds.",
        "",
        f"Paper: {PAPER}. **Another data set and another CLIP**: the order of rows may be "
        "compared, figures may not.",
        "",
        f"Frozen CLIP on the same stores (prompt {closed['template']!r}), top-1: {asides}.",
        "",
        f"Cost: seconds are the wall clock of a run with its evaluations while training, on "
        f"{record['device']}, {record['threads']} threads, torch "
        f"{record['versions']['torch']}, commit {record['commit']}; runs side by side slow "
        "each other. Memory is the worst moment of the process, or of the device. FLOPs are "
        "those of a training video, forward and backward, matrix products only. Stage one, "
        f"once for all rows: {seconds:,.0f} s for {sum(part['videos'] for part in one):,} "
        f"videos. The paper: {PAPER_HOURS}. Frozen CLIP has {parameters / 1e6:.2f} M "
        "parameters, both towers and the token table.",
    ]


def _table(rows: Sequence[Mapping[str, Any]], stores: Sequence[str]) -> list[str]:
    closed, *others = stores
    header = [
        *("", f"{closed} top-1", "top-5", *(f"{name} top-1" for name in others)),
        *("tunable", "seconds", "memory", "text rows", "GFLOPs"),
        *("paper, K400 top-1", "paper, K400 top-5"),
    ]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        done, wanted, name = row["runs_done"], len(row["runs"]), row["row"]
        paper = [row["paper_top1"], row["paper_top5"]]
        lines.append(
            [
                name if done == wanted else f"{name} ({done} of {wanted} runs)",
                *(_cells(row, closed, others) if done else [""] * (len(header) - 3)),
                *("" if top is None else f"{top:.1f}" for top in paper),
            ]
        )
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _cells(row: Mapping[str, Any], closed: str, others: Sequence[str]) -> list[str]:
    results, batch = row["results"], row["batch"]
    return [
        *(spread_text(results[closed][top]) for top in ("top1", "top5")),
        *(spread_text(results[name]["top1"]) for name in others),
        f"{row['parameters']['total'] / 1e6:.2f} M",
        # the seconds of a table's rows are compared, so their spread is in the JSON alone
        f"{row['seconds']['mean']:,.0f}",
        f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
        f"{batch['text_rows'] / batch['videos']:.1f}",
        f"{batch['flops_a_video']['total'] / 1e9:.3g}",
    ]
