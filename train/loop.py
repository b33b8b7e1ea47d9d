"""Stage two: train the tunable parts on cached features (paper Sec. 4.1)."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bieff.clip import Clip
from bieff.features.errors import BieffError, InputError, StoreError
from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig
from bieff.train.data import Batch, Features, batch_of, load_features, steps_per_epoch
from bieff.train.loss import positive_pairs, symmetric_loss
from bieff.train.model import BiEfficient
from bieff.train.run import (
    METRICS,
    RECORD,
    WEIGHTS,
    Run,
    build_model,
    commit,
    open_run,
    save_weights,
    versions,
    write_record,
)
from bieff.train.schedule import lr_factor
from bieff.train.text import TextTower

Watch = Callable[[int, int, float], None]
"""Called after every step with (steps done, steps in all, loss)."""


@dataclass(frozen=True, slots=True)
class Trainer:
    """Everything a step needs."""

    config: TrainConfig
    model: BiEfficient
    text: TextTower
    features: Features
    optimizer: torch.optim.Optimizer
    num_frames: int

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.epoch_steps

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(len(self.features), self.config.batch_size)

    def step(self, step: int) -> Tensor:
        """Take one step; returns its loss."""
        config = self.config
        batch = batch_of(
            self.features,
            step,
            batch_size=config.batch_size,
            num_frames=self.num_frames,
            seed=config.seed,
        )
        factor = lr_factor(
            step,
            warmup_steps=config.warmup_epochs * self.epoch_steps,
            total_steps=self.num_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
        loss = batch_loss(self.model, self.text, batch, config)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.optimizer.step()
        return loss.detach()


def batch_loss(
    model: BiEfficient, text: TextTower, batch: Batch, config: TrainConfig
) -> Tensor:
    """Eq. 10 on a batch; its categories are the distinct labels in it."""
    categories = batch.labels.unique()
    scores = model(batch.frames, text, categories=categories, patches=batch.patches)
    positives = positive_pairs(batch.labels, categories).to(scores.logits.device)
    return symmetric_loss(scores.logits, positives, targets=config.targets)


def make_optimizer(model: BiEfficient, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, as usual for transformers (the paper is silent).

    Learned tokens, positions, norms, offsets, alpha and beta are not decayed: their zero has
    no meaning of its own.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_matrix = parameter.ndim == 2 and name.endswith("weight")
            (decayed if is_matrix else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr)


def prepare(store: FeatureStore, clip: Clip, config: TrainConfig) -> Trainer:
    """Put together what a run on this store needs.

    Raises:
        StoreError: If the store has no training partition, or it is not finished.
    """
    if "train" not in store.partitions:
        raise StoreError(
            f"{store.path} has no training partition, it has {', '.join(store.partitions)}; "
            "train on another store"
        )
    device = next(clip.model.parameters()).device
    num_frames = config.frames or int(store.recipe["frames"])
    text = TextTower(clip.model, clip.tokenize(store.class_names)).to(device)
    model = build_model(config, clip, num_frames=num_frames, patches=_patches(store)).to(device)
    features = load_features(
        store.partitions["train"], device=device, wants_patches=config.prompts_see == "patches"
    )
    return Trainer(config, model, text, features, make_optimizer(model, config), num_frames)


def train(
    store: FeatureStore, clip: Clip, config: TrainConfig, out: Path, *, watch: Watch
) -> Run:
    """Train from the first step to the last, and write the run folder `out`.

    Raises:
        InputError: If `out` holds something already.
        StoreError: If the store cannot be trained on.
        BieffError: If the loss stops being a number.
    """
    if (out / RECORD).exists() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out} is not empty; name another folder with --out, or remove it")
    trainer = prepare(store, clip, config)
    out.mkdir(parents=True, exist_ok=True)
    record = _record(store, clip, trainer)
    write_record(out, record)
    start = time.monotonic()
    with (out / METRICS).open("w") as metrics:
        for step in range(trainer.num_steps):
            loss = trainer.step(step).item()
            if not math.isfinite(loss):
                raise BieffError(
                    f"step {step}: the loss is {loss}; the run so far is in {out}, try a "
                    "smaller lr or clip_grad=1.0"
                )
            if step % 10 == 0 or step + 1 == trainer.num_steps:
                print(json.dumps(_metrics(trainer, step, loss)), file=metrics, flush=True)
            watch(step + 1, trainer.num_steps, loss)
    save_weights(out / WEIGHTS, trainer.model)
    record["seconds"] = round(time.monotonic() - start, 2)
    record["finished"] = datetime.now(UTC).isoformat(timespec="microseconds")
    write_record(out, record)
    return open_run(out)


def _metrics(trainer: Trainer, step: int, loss: float) -> dict[str, float]:
    line = {"step": step, "loss": loss, "lr": trainer.optimizer.param_groups[0]["lr"]}
    for name, parameter in trainer.model.named_parameters():
        if name.endswith(("alpha", "beta")):
            line[name] = parameter.detach().float().mean().item()
    return line


def _record(store: FeatureStore, clip: Clip, trainer: Trainer) -> dict[str, Any]:
    return {
        "config": trainer.config.to_dict(),
        "store": str(store.path.resolve()),
        "store_recipe_hash": store.recipe_hash,
        "data_set": store.recipe["data_set"],
        "clip": {
            "name": {"model": clip.name.model, "pretrained": clip.name.pretrained},
            "fingerprint": clip.fingerprint,
        },
        "frames": trainer.num_frames,
        "patches": _patches(store),
        "class_names": list(store.class_names),
        "videos": len(trainer.features),
        "steps": trainer.num_steps,
        "parameters": trainer.model.parameter_counts(),
        "commit": commit(),
        "versions": versions(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
    }


def _patches(store: FeatureStore) -> tuple[int, int] | None:
    patches = store.recipe.get("patches")
    return None if patches is None else (int(patches[0]), int(patches[1]))
