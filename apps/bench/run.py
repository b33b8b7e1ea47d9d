"""`bieff bench`: what this machine does, beside what it could do, and the hours that follow."""

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bieff import clip as clips
from bieff.apps.bench.clock import Ceilings, ceilings
from bieff.apps.bench.extract import (
    DecodeCost,
    TowerRate,
    measure_decoding,
    measure_tower,
    num_cores,
    scratch,
)
from bieff.apps.bench.hours import Hours, Measured, bottleneck, hours
from bieff.apps.bench.text import TextCost, measure_text
from bieff.apps.bench.train import (
    FRAMES,
    EvalCost,
    StepCost,
    StoreRate,
    first_names,
    make_store,
    measure_evaluation,
    measure_steps,
    measure_store,
    trainer_for,
)
from bieff.clip import Clip, ClipName
from bieff.train.runs.run import commit, versions

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What was measured, and what follows from it."""

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
    """That the measuring took."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"bench": "machine", **asdict(self)}


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
        device: cpu, cuda, cuda:1; None takes a GPU if there is one.
        say: Called with what is being measured.

    Raises:
        InputError: If the model or the device cannot be had.
    """
    begin = time.monotonic()
    where = clips.pick_device(device)
    name = clip_name(model, pretrained)
    say(f"loading {name} on {where}")
    clip = clips.load(name, device=where)
    with scratch() as folder:
        say("ceilings")
        best = ceilings(where)
        say("decoding")
        decode = measure_decoding(folder, num_cores())
        say("visual tower")
        tower = measure_tower(clip, where)
        stage_two = _stage_two(clip, where, folder, say)
    measured = Measured(
        decode=decode,
        tower=tower,
        steps=stage_two["steps"],
        evaluation=stage_two["evaluation"],
        overlaps=where.type != "cpu",
    )
    estimates = hours(measured)
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
        hours=estimates,
        bottleneck=bottleneck(estimates, _shares(measured, best)),
        seconds=round(time.monotonic() - begin, 1),
        **stage_two,
    )


def _stage_two(clip: Clip, device: torch.device, folder: Path, say: Say) -> dict[str, Any]:
    say("store")
    store = make_store(folder, clip)
    few, many = (trainer_for(store, clip, frames) for frames in (FRAMES[0], FRAMES[-1]))
    say("training step")
    with few.batches, many.batches:
        steps = measure_steps(few, many)
        tokens = first_names(few, clip, store.class_names)
    say("evaluation")
    evaluation = measure_evaluation(few, clip)
    say("text tower")
    batch_size = steps[0].videos
    return {
        "store": measure_store(store.partitions["train"], folder, batch_size=batch_size),
        "steps": steps,
        "evaluation": evaluation,
        "text": measure_text(clip.model, tokens, batch_size=batch_size, device=device),
    }


def _shares(measured: Measured, best: Ceilings) -> dict[str, float]:
    """What each part reaches of its ceiling on Kinetics-400 at 32 frames."""
    decode, step, view = measured.decode[0], measured.steps[-1], measured.evaluation[0]
    return {
        "decoding": decode.ceiling / decode.many,
        "visual tower": measured.tower.tower * measured.tower.flops / best.flops,
        "training step": step.flops / step.seconds / best.flops,
        "evaluation": view.flops / view.seconds / best.flops,
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"cpu, {model}"
