"""`bieff bench`: what this machine does, beside what it could do, and the hours that follow."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bieff import clip as clips
from bieff.apps.bench.extract import (
    DecodeCost,
    TowerRate,
    decoder_lines,
    measure_decoding,
    measure_tower,
    num_cores,
)
from bieff.apps.bench.hours import Hours, bottleneck, hours
from bieff.apps.bench.timing import Ceilings, ceilings, device_name
from bieff.apps.bench.train import (
    FRAMES,
    EvalCost,
    StepCost,
    StoreRate,
    TextCost,
    make_store,
    measure_evaluation,
    measure_steps,
    measure_store,
    measure_text,
)
from bieff.clip import ClipName
from bieff.features.errors import InputError
from bieff.train.config import TrainConfig
from bieff.train.fit.step import prepare
from bieff.train.runs.run import commit, versions
from bieff.train.text.tower import not_a_tree

PAPER_GPU_HOURS = 152
"""Hours of RTX 3090, Kinetics-400, 16 frames, the whole training (Table 3)."""

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

Row = Sequence[str]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Measurements, and the hours that follow from them."""

    clip: str
    device: str
    cores: int
    threads: int
    versions: dict[str, str]
    commit: str | None
    ceilings: Ceilings
    decode: list[DecodeCost]
    tower: TowerRate
    text: TextCost
    steps: list[StepCost]
    evaluation: list[EvalCost]
    store: StoreRate
    hours: list[Hours]
    bottleneck: str
    seconds: float
    """Seconds that the measuring took."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"bench": "machine", **asdict(self)}

    def heading(self) -> str:
        """One line: the CLIP, the machine, and how long the measuring took."""
        revision = f"{self.commit} " if self.commit else ""
        return (
            f"{revision}bench {self.clip} on {self.device}, {self.cores} cores, "
            f"torch {self.versions['torch']}; measured in {self.seconds:.0f} s"
        )

    def tables(self) -> Iterator[tuple[str, Row, list[Row], list[str]]]:
        """Title, header and rows of what people read, and the lines below."""
        yield (
            "rates, and what the ceilings below allow",
            ("what", "rate", "ceiling", "reached"),
            _rates(self),
            _ceiling_lines(self),
        )
        yield (
            "ESTIMATE of the hours on this machine, not measured",
            ("data set", "frames", "decode", "encode", "extract", "train", "evaluate", "all"),
            [
                (
                    *(row.data_set, str(row.frames)),
                    *map(_short, (row.decode, row.encode, row.extract)),
                    *map(_short, (row.train, row.evaluate, row.total)),
                )
                for row in self.hours
            ],
            _closing_lines(self),
        )


def clip_name(model: str | None, pretrained: str | None) -> ClipName:
    """The CLIP to measure with; random weights take as long as trained ones, and no download.

    Raises:
        InputError: If model and weights do not go together.
    """
    model = model or ClipName().model
    brings_weights = model == clips.TINYCLIP or ":" in model
    return ClipName.of(model, pretrained or (None if brings_weights else clips.RANDOM))


def bench(
    model: str | None = None,
    pretrained: str | None = None,
    device: str | None = None,
    *,
    say: Say = lambda line: None,
) -> Bench:
    """Measure every stage on clips and features made here; about a minute.

    Args:
        model: As for `bieff extract`.
        pretrained: The same; random weights by default.
        device: None takes a GPU if there is one.
        say: Called with what is being measured.

    Raises:
        InputError: If the model or the device cannot be had, or its prompts form no tree.
    """
    begin = time.monotonic()
    where = clips.pick_device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)  # whose end the clock waits for
    name = clip_name(model, pretrained)
    say(f"loading {name} on {where}")
    clip = clips.load(name, device=where)
    if reason := not_a_tree(clip.model):
        raise InputError(
            f"CLIP {name}: expected a text tower whose prompts form a tree, {reason}; "
            "`bieff extract --dry-run` estimates stage one for it, `bieff train --dry-run` two"
        )
    with tempfile.TemporaryDirectory(prefix="bieff-bench-") as temporary:
        folder = Path(temporary)
        say("ceilings")
        best = ceilings(where)
        say("decoding")
        decode = measure_decoding(folder)
        say("visual tower")
        tower = measure_tower(clip, where)
        say("store")
        store = make_store(folder, clip)
        few, many = (
            prepare(store, clip, TrainConfig(frames=t)) for t in (min(FRAMES), max(FRAMES))
        )
        say("training step")
        with few.batches, many.batches:
            steps = measure_steps(few, many)
            labels = few.batches.at(0)[0].labels.unique().tolist()
        say("evaluation")
        evaluation = measure_evaluation(few, clip)
        say("text tower")
        tokens = clip.tokenize([store.class_names[label] for label in labels])
        size = steps[0].videos
        text = measure_text(clip.model, tokens, batch_size=size, device=where)
        rate = measure_store(store.partitions["train"], folder, batch_size=size)
    estimates = hours(
        decode=decode,
        tower=tower,
        steps=steps,
        evaluation=evaluation,
        overlaps=where.type != "cpu",
    )
    shares = {  # of the ceilings, on Kinetics-400 at 32 frames
        "decoding": decode[0].ceiling / decode[0].many,
        "visual tower": tower.tower * tower.flops / best.flops,
        "training step": steps[-1].flops / steps[-1].seconds / best.flops,
        "evaluation": evaluation[0].flops / evaluation[0].seconds / best.flops,
    }
    return Bench(
        clip=str(name),
        device=device_name(where),
        cores=num_cores(),
        threads=torch.get_num_threads(),
        versions=versions(),
        commit=commit(),
        ceilings=best,
        decode=decode,
        tower=tower,
        text=text,
        steps=steps,
        evaluation=evaluation,
        store=rate,
        hours=estimates,
        bottleneck=bottleneck(estimates, shares),
        seconds=round(time.monotonic() - begin, 1),
    )


def _rates(bench: Bench) -> list[Row]:
    best, tower, text, store = bench.ceilings.flops, bench.tower, bench.text, bench.store
    rows = [
        _rate(f"decode: {cost.clip}", 1 / cost.many, 1 / cost.ceiling, "clips/s")
        for cost in bench.decode
    ]
    rows.append(("cut and resize", f"{tower.cut:,.0f} images/s", "", ""))
    rows.append(_rate("visual tower", tower.tower, best / tower.flops, "images/s"))
    for step in bench.steps:
        what = f"training step: {step.videos} videos, {step.frames} frames"
        rows.append(_rate(what, 1 / step.seconds, best / step.flops, "steps/s"))
    for cost in bench.evaluation:
        what = f"evaluation: {cost.names} names of {cost.data_set}"
        rows.append(_rate(what, 1 / cost.seconds, best / cost.flops, "views/s"))
    what = f"text tower: {text.videos} videos x {text.names} names, forward and backward"
    rows.append(_rate(what, 1 / text.tree, best / text.flops, "batches/s"))
    rows.append(_rate("store: random videos", store.videos, store.memmap, "videos/s"))
    return rows


def _rate(what: str, rate: float, ceiling: float, unit: str) -> Row:
    shown = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (rate, ceiling)]
    return (what, *(f"{number} {unit}" for number in shown), f"{rate / ceiling:.0%}")


def _ceiling_lines(bench: Bench) -> list[str]:
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
        *decoder_lines(),
    ]


def _giga(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB/s"


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _closing_lines(bench: Bench) -> list[str]:
    ours = next(h for h in bench.hours if (h.data_set, h.frames) == ("k400", 16))
    return [
        f"beside it: the paper trained on k400 at 16 frames in {PAPER_GPU_HOURS} hours of an "
        f"RTX 3090 (Table 3); here it would be {_short(ours.extract)} h to extract once and "
        f"{_short(ours.train or 0)} h for each training, on another device",
        f"bottleneck: {bench.bottleneck}",
        *(f"assumed: {line}" for line in ASSUMPTIONS),
    ]
