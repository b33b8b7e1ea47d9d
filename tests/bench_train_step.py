"""Where the time of a training step goes.

    python tests/bench_train_step.py

The whole step of `bieff train`, batch of 32 out of a store, at the size of the demo (tinyclip,
the classes of `shapes`) and of ViT-B/16 with random weights (32 names of Kinetics-400), T = 8,
M = 16.  Each part is also run alone, forward and backward, on inputs of the same shapes; its
share is its time alone by that of the whole step, "other" is what is left.  On CUDA where there
is one.  The last line is one JSON object.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from helpers import fake_store
from torch import Tensor

from bieff.apps.bench.timing import device_name, once
from bieff.clip import TINYCLIP, Clip, ClipName, load, pick_device
from bieff.extract.datasets.official import DATA
from bieff.extract.shapes.clips import Edition, clips_of
from bieff.train.config import load as settings
from bieff.train.fit.step import Trainer, prepare
from bieff.train.method.loss import cosine, positive_pairs, symmetric_loss
from bieff.train.runs.run import commit

FRAMES, VIDEOS = 8, 640
LABELS = DATA / "k400_names.txt"


class Parts:
    """The parts of a trainer's step, each to be run alone."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.model = trainer, trainer.model
        self.index, self.batch = trainer.batches.at(0)
        self.categories = self.index.labels.unique()
        half = trainer.precision != torch.float32
        autocast = torch.autocast(trainer.device.type, trainer.precision, enabled=half)
        with torch.no_grad(), autocast:
            frames = self.batch.frames
            self.prompt = self.model.prompt(frames)
            self.prompted = trainer.text(*self.prompt, categories=self.categories)
            self.temporal_out = self.model.temporal(frames)
            picked = torch.zeros(len(frames), dtype=torch.int64, device=trainer.device)
            self.words = self.prompted.words(picked)
        self.step_number = 0

    def whole(self) -> None:
        """What a run does, on the batch that the parts have: how many names differ counts."""
        index, batch = self.trainer.batches.at(0)
        self.trainer.update(self.step_number, batch, index.labels)
        self.step_number += 1

    def data(self) -> None:
        """Draw the batch and bring it."""
        self.step_number += 1
        self.trainer.batches.at(self.step_number)

    def text(self) -> None:
        """The frozen tower on the tree, classes and picked words."""
        context, video = (_leaf(part) for part in self.prompt)
        prompted = self.trainer.text(context, video, categories=self.categories)
        picked = torch.zeros(len(self.batch.frames), dtype=torch.int64)
        words, _ = prompted.words(picked.to(self.trainer.device))
        (prompted.classes.sum() + words.sum()).backward()

    def prompts(self) -> None:
        """Pre-Prompt before the tower and Post-Prompt after it."""
        frames = self.batch.frames
        prompt = self.model.prompt(frames)
        classes = self.model.post_prompt(_leaf(self.prompted.classes), frames)
        (prompt.context.sum() + prompt.video.sum() + classes.sum()).backward()

    def temporal(self) -> None:
        """The temporal transformer."""
        self.model.temporal(self.batch.frames).sum().backward()

    def loss(self) -> None:
        """Word guidance, cosines and Eq. 10."""
        video, _ = self.model.word_guided(_leaf(self.temporal_out), *self.words)
        logits = cosine(video[:, None], _leaf(self.prompted.classes))[:, 0] * 100
        positives = positive_pairs(self.index.labels, self.categories).to(logits.device)
        symmetric_loss(logits, positives).backward()

    def optimiser(self) -> None:
        """AdamW; gradients are those of the last whole step."""
        self.trainer.optimizer.step()


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


PARTS = ("text", "prompts", "temporal", "loss", "optimiser", "data")


def run(trainer: Trainer, repeats: int) -> dict[str, Any]:
    """Median seconds of the whole step and of each part, by turns."""
    parts = Parts(trainer)
    names = ("whole", "optimiser", *(name for name in PARTS if name != "optimiser"))
    times: dict[str, list[float]] = {name: [] for name in ("whole", *PARTS)}
    for repeat in range(repeats + 1):
        for name in names:
            alone = name != "whole" and trainer.precision != torch.float32
            with torch.autocast(trainer.device.type, trainer.precision, enabled=alone):
                taken = once(getattr(parts, name))
            if repeat:  # the first is to warm up
                times[name].append(taken)
    median = {name: statistics.median(values) for name, values in times.items()}
    whole = median.pop("whole")
    share = {name: round(taken / whole, 4) for name, taken in median.items()}
    share["other"] = round(1 - sum(share.values()), 4)
    return {"seconds": round(whole, 5), "steps_per_second": round(1 / whole, 2), "share": share}


def case(clip: Clip, names: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Make a store and measure on it."""
    with tempfile.TemporaryDirectory() as folder:
        store = fake_store.write_store(
            Path(folder) / "store", clip, counts={"train": VIDEOS}, frames=FRAMES, names=names
        )
        trainer = prepare(store, clip, settings())
        with trainer.batches:
            measured = run(trainer, repeats)
    head = {"clip": str(clip.name), "B": 32, "names": len(names), "T": FRAMES, "D": clip.dim}
    shares = ", ".join(f"{name} {part:.1%}" for name, part in measured["share"].items())
    print(f"{head}: {measured['seconds'] * 1e3:.1f} ms a step: {shares}", flush=True)
    return {**head, **measured}


def main() -> None:
    """Measure both sizes."""
    device = pick_device(None)
    where = "cpu" if device.type == "cpu" else device_name(device)
    print(
        f"{commit() or '(no git)'} train_step | {where}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    shapes = tuple(dict.fromkeys(c.name for c in clips_of(Edition())["shapes"]))
    generator = torch.Generator().manual_seed(0)
    kinetics = LABELS.read_text(encoding="utf-8").splitlines()
    chosen = tuple(kinetics[i] for i in torch.randperm(400, generator=generator)[:32].tolist())
    cases = [case(load(ClipName(model=TINYCLIP, pretrained=None), device=device), shapes, 15)]
    vit = ClipName(model="ViT-B-16-quickgelu", pretrained="random")
    cases.append(case(load(vit, device=device), chosen, 30 if device.type == "cuda" else 3))
    head = {"bench": "train_step", "device": where, "torch": torch.__version__}
    print(json.dumps({**head, "cases": cases}))


if __name__ == "__main__":
    main()
