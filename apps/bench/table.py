"""What `bieff bench` prints."""

from collections.abc import Sequence
from dataclasses import dataclass

from bieff.apps.bench.hours import PAPER_GPU_HOURS
from bieff.apps.bench.run import Bench

HEADER = ("what", "rate", "ceiling", "reached")
HOURS_HEADER = ("data set", "frames", "decode", "encode", "extract", "train", "evaluate", "all")

ASSUMPTIONS = (
    "videos: k400 240,000 to train on and 19,906 to evaluate; ucf101 13,320; hmdb51 6,766",
    "clips like those measured here; larger pictures take longer to decode, about in "
    "proportion to their pixels (`bieff extract --dry-run` tries your own)",
    "views: the centre grid and one random view to train on, 3 temporal clips to evaluate",
    "extract is decode and encode at the same time on a GPU, one after the other without one",
    "train is 50 epochs in batches of 32, with 5 evaluations on the way; the step of 16 frames "
    "lies between those of 8 and 32, which were measured",
    "disks and networks that keep up, one device, and no other work on the machine",
)


@dataclass(frozen=True, slots=True)
class Table:
    """One table: what it shows, its header and its rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def heading(bench: Bench) -> str:
    """What was measured, where."""
    revision = f"{bench.commit} " if bench.commit else ""
    return (
        f"{revision}bench {bench.clip} on {bench.device}, {bench.cores} cores, "
        f"torch {bench.versions['torch']}; measured in {bench.seconds:.0f} s"
    )


def rates(bench: Bench) -> Table:
    """Rates beside their ceilings."""
    best, tower, text, store = bench.ceilings, bench.tower, bench.text, bench.store
    rows = [
        _row(f"decode: {cost.clip}", 1 / cost.many, 1 / cost.ceiling, "clips/s")
        for cost in bench.decode
    ]
    rows.append(("cut and resize", f"{tower.cut:,.0f} images/s", "", ""))
    rows.append(_row("visual tower", tower.tower, best.flops / tower.flops, "images/s"))
    for step in bench.steps:
        what = f"training step: {step.videos} videos, {step.frames} frames"
        rows.append(_row(what, 1 / step.seconds, best.flops / step.flops, "steps/s"))
    for cost in bench.evaluation:
        what = f"evaluation: {cost.names} names of {cost.data_set}"
        rows.append(_row(what, 1 / cost.seconds, best.flops / cost.flops, "views/s"))
    what = f"text tower: {text.videos} videos x {text.names} names, forward and backward"
    rows.append(_row(what, 1 / text.tree, best.flops / text.flops, "batches/s"))
    rows.append(_row("store: random videos", store.videos, store.memmap, "videos/s"))
    return Table("rates, and what the ceilings below allow", HEADER, rows)


def ceiling_lines(bench: Bench) -> list[str]:
    """The ceilings, and the text tower beside the usual way."""
    best, text = bench.ceilings, bench.text
    upload = "" if best.upload_bytes is None else f", to the device {_giga(best.upload_bytes)}"
    return [
        f"ceilings: matrix products {best.flops / 1e9:,.0f} GFLOP/s in {best.precision}; "
        f"memory copy {_giga(best.copy_bytes)}{upload}; decoding: one process alone times "
        f"{bench.cores} cores; store: np.memmap of the same bytes, "
        f"{_giga(bench.store.memmap * bench.store.row_bytes)}",
        f"text tower: {text.tree:.3g} s a batch as a tree, {text.whole:.3g} s with every "
        f"prompt encoded whole: {text.whole / text.tree:,.0f} times",
        f"visual tower: {bench.tower.precision}",
    ]


def estimates(bench: Bench) -> Table:
    """The hours, by data set and frames."""
    rows = [
        (
            hours.data_set,
            str(hours.frames),
            _hours(hours.decode),
            _hours(hours.encode),
            _hours(hours.extract),
            "-" if hours.train is None else _hours(hours.train),
            _hours(hours.evaluate),
            _hours(hours.total),
        )
        for hours in bench.hours
    ]
    return Table("ESTIMATE of the hours on this machine, not measured", HOURS_HEADER, rows)


def closing_lines(bench: Bench) -> list[str]:
    """The paper's figure, the bottleneck and the assumptions."""
    ours = next(h for h in bench.hours if (h.data_set, h.frames) == ("k400", 16))
    return [
        f"beside it: the paper trained on k400 at 16 frames in {PAPER_GPU_HOURS} hours of an "
        f"RTX 3090 (Table 3); here it would be {_hours(ours.extract)} h to extract once and "
        f"{_hours(ours.train or 0)} h for each training, on another device",
        f"bottleneck: {bench.bottleneck}",
        *(f"assumed: {line}" for line in ASSUMPTIONS),
    ]


def _row(what: str, rate: float, ceiling: float, unit: str) -> tuple[str, str, str, str]:
    return (
        what,
        f"{_number(rate)} {unit}",
        f"{_number(ceiling)} {unit}",
        f"{rate / ceiling:.0%}",
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _hours(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _giga(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB/s"
