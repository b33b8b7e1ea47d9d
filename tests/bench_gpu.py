"""All that is to be seen on a GPU, by one command and in ten minutes: `make gpu`.

    python tests/bench_gpu.py [--tiny] [--out FILE] [PART...]

Runs the parts below, each in a process of its own under a limit of time, so that none can
spoil or stop another.  Every part prints one JSON line with its device,
torch, commit, seconds and the peak of memory; all lines also go into FILE.  Where a part fails
its line says so, and so does the exit status at the end.

With --tiny the CLIP is the built-in one and there are few videos and steps: that shows on any
machine, a CPU too, that every part works.  Figures are then of no use.

Rates are those of ViT-B/16 with random weights, 400 names of Kinetics, B = 32.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_extract
import torch
import torch.nn.functional as F
from helpers.kernels import Kernels

from bieff.apps.bench.timing import ceilings, device_name, flops_of, seconds
from bieff.apps.bench.train import (
    make_store,
    measure_evaluation,
    measure_text,
    stepping,
)
from bieff.apps.demo import RECIPE, demo
from bieff.clip import TINYCLIP, Clip, ClipName, load, pick_device
from bieff.extract.config import ExtractConfig
from bieff.extract.shapes.clips import Edition
from bieff.features.store import FeatureStore
from bieff.train.config import load as settings
from bieff.train.fit.cost import forget_peak, peak_memory
from bieff.train.fit.loop import train
from bieff.train.fit.step import Trainer, prepare
from bieff.train.runs.run import commit, open_run

TESTS = Path(__file__).parent
OUT = Path("gpu.jsonl")

Line = dict[str, Any]


def clip_for(tiny: bool) -> Clip:
    """The CLIP that rates are taken of."""
    name = ClipName(model="ViT-B-16-quickgelu", pretrained="random")
    return load(
        ClipName(model=TINYCLIP, pretrained=None) if tiny else name, device=pick_device(None)
    )


@contextmanager
def trainers(clip: Clip, *overrides: str) -> Iterator[Trainer]:
    """A trainer on a store of random features."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = prepare(make_store(Path(folder), clip), clip, settings(overrides=overrides))
        with trainer.batches:
            yield trainer


def tower(tiny: bool) -> Line:
    """Images a second: tower alone, from uint8, decoding, from mp4; and what bounds them."""
    if tiny:
        return bench_extract.main(4, 1, ExtractConfig(frames=4, clips=1))
    return bench_extract.main(300, 10)


def steps(tiny: bool, frames: int) -> Line:
    """Steps a second, eager and compiled, beside the floor of their matrix products.

    `naive_s` is what the prompts of a batch take with every one of them encoded whole.
    """
    at_least = 0.0 if tiny else 5.0
    size = 8 if tiny else 32
    clip = clip_for(tiny)
    with trainers(clip, f"frames={frames}", f"batch_size={size}") as trainer:
        step = stepping(trainer)
        flops = flops_of(step)
        with Kernels() as kernels:
            step()
        forget_peak(clip.device)
        eager = seconds(step, at_least=at_least)
        peak = peak_memory(clip.device)
        names = trainer.batches.at(0)[0].labels.unique().tolist()
        tokens = clip.tokenize([trainer.class_names[label] for label in names])
        if tiny:
            text = measure_text(clip.model, tokens[:2], batch_size=2, device=clip.device)
        else:
            text = measure_text(clip.model, tokens, batch_size=size, device=clip.device)
        # the number of names changes from batch to batch; tiny, only what is traced counts
        backend = "eager" if tiny else "inductor"
        trainer.model.compile(dynamic=True, backend=backend)
        for _ in range(1 if tiny else 12):
            step()
        compiled = seconds(step, at_least=at_least)
    floor = flops / ceilings(clip.device).flops
    return {
        "frames": frames,
        "B": size,
        "steps_per_s": round(1 / eager, 2),
        "steps_per_s_compiled": round(1 / compiled, 2),
        "steps_per_s_ceiling": round(1 / floor, 2),
        "gflop": round(flops / 1e9, 1),
        "kernels": kernels.total,
        "kernels_by_name": dict(kernels.counts.most_common(12)),
        "step_peak_bytes": peak,
        "tree_s": round(text.tree, 5),
        "naive_s": round(text.whole, 5),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }


def evaluation(tiny: bool) -> Line:
    """Views a second beside all 400 names."""
    clip = clip_for(tiny)
    with trainers(clip, "frames=8") as trainer:
        (cost,) = measure_evaluation(trainer, clip, ("k400",))
    return {
        "names": cost.names,
        "views_per_s": round(1 / cost.seconds, 2),
        "gflop": round(cost.flops / 1e9, 1),
    }


def cosines(tiny: bool) -> Line:
    """A batch's scores in bfloat16 against float32: least cosines, largest difference."""
    clip = clip_for(tiny)
    size = 4 if tiny else 32
    found = []
    for precision in ("float32", "bfloat16"):
        options = ("frames=8", f"batch_size={size}", f"precision={precision}")
        with trainers(clip, *options) as trainer, torch.no_grad():
            index, batch = trainer.batches.at(0)
            found.append(trainer.score(batch, index.labels.unique()))
    exact, fast = found
    least = {
        name: F.cosine_similarity(
            getattr(exact, name).float(), getattr(fast, name).float(), dim=-1
        )
        .min()
        .item()
        for name in ("classes", "video")
    }
    assert exact.picked is not None
    assert fast.picked is not None
    return {
        "min_cosine": {name: round(value, 6) for name, value in least.items()},
        "max_logit_difference": round(float((exact.logits - fast.logits).abs().max()), 4),
        "same_words": round(float((exact.picked == fast.picked).float().mean()), 3),
    }


def points(tiny: bool) -> Line:
    """The demo, and its training again in each precision: percent right."""
    config = replace(RECIPE, epochs=2, warmup_epochs=1) if tiny else RECIPE
    edition = Edition(train_clips=1, val_clips=1, zero_shot_clips=1) if tiny else None
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        clip = load(ClipName(model=TINYCLIP, pretrained=None), device=pick_device(None))
        begin = time.perf_counter()
        results = demo(out, edition=edition, config=config).results
        demo_s = time.perf_counter() - begin
        store = FeatureStore.open(out / "features" / "shapes")
        found = {}
        for precision in ("float32", "bfloat16"):
            wanted = replace(config, precision=precision)
            train(store, clip, wanted, out / precision, watch=lambda *_: None)
            record = open_run(out / precision).record
            found[precision] = {
                "val_top1": record["evaluation"]["val_top1"],
                "seconds": record["seconds"],
                "peak_bytes": record["peak_memory_bytes"],
            }
    return {"demo_s": round(demo_s, 1), "results": len(results), **found}


PARTS: dict[str, tuple[Callable[[bool], Line], int]] = {
    "tower": (tower, 100),
    "steps_8": (lambda tiny: steps(tiny, 8), 80),
    "steps_32": (lambda tiny: steps(tiny, 32), 80),
    "evaluation": (evaluation, 50),
    "cosines": (cosines, 40),
    "points": (points, 100),
}
"""Parts in their order, and the seconds that each may take: with the tests ten minutes."""


def measure(part: str, tiny: bool) -> None:
    """One part, in this process; its line is the last that is printed."""
    device = pick_device(None)
    begin = time.perf_counter()
    found = PARTS[part][0](tiny)
    head = {
        "bench": part,
        "device": device_name(device),
        "torch": torch.__version__,
        "commit": commit() or os.environ.get("COMMIT"),
        "seconds": round(time.perf_counter() - begin, 1),
        "peak_bytes": peak_memory(device),
    }
    print(json.dumps({**found, **head}))


def run(part: str, *, tiny: bool, slack: float) -> Line:
    """One part in a process of its own."""
    command = [sys.executable, __file__, "--only", part, *(["--tiny"] if tiny else [])]
    try:
        done = subprocess.run(
            command, text=True, capture_output=True, timeout=slack * PARTS[part][1]
        )
    except subprocess.TimeoutExpired as error:
        return {"bench": part, "failed": f"not done after {error.timeout:.0f} s"}
    said = done.stdout.strip().splitlines()
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        return {"bench": part, "failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
    print(*said[:-1], sep="\n")
    line: Line = json.loads(said[-1])
    return line


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", default=[])
    parser.add_argument("--tiny", action="store_true", help="show only that it works")
    parser.add_argument("--out", type=Path, default=OUT, help="file of all lines")
    parser.add_argument("--slack", type=float, default=1.0, help="limits of time, multiplied")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        measure(given.only, given.tiny)
        return
    failed = False
    given.out.write_text("")
    for part in given.parts or PARTS:
        line = run(part, tiny=given.tiny, slack=given.slack)
        failed |= "failed" in line
        print(json.dumps(line), flush=True)
        with given.out.open("a") as file:  # what is done is kept, whatever comes
            file.write(json.dumps(line) + "\n")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
