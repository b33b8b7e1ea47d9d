"""run.json: everything that a run's numbers came from, and what they cost."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from bieff.clip import Clip, fingerprint
from bieff.features.errors import ConfigError, InputError, StoreMismatchError
from bieff.features.store import FeatureStore
from bieff.train.config import CHANGE_NOTHING, TrainConfig
from bieff.train.data import Features, patches_of
from bieff.train.distributed import device_name
from bieff.train.fit.cost import stage_one, step_cost
from bieff.train.fit.few_shot import FewShotDraw
from bieff.train.fit.step import Trainer
from bieff.train.runs.ancestor import Ancestor
from bieff.train.runs.run import Run, commit, versions


def make_record(
    store: FeatureStore,
    clip: Clip,
    trainer: Trainer,
    command: Sequence[str],
    shots: FewShotDraw | None,
    ancestors: Sequence[Ancestor] = (),
) -> dict[str, Any]:
    """A record before the first step; `shots` is the draw of few videos, if it was one."""
    counts = trainer.model.parameter_counts()
    features = trainer.features
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
        "patches": patches_of(store),
        "class_names": list(trainer.class_names),
        "videos": len(features),
        "shots": None if shots is None else shots.to_dict(),
        "ancestors": [asdict(one) for one in ancestors],
        "start": fingerprint(trainer.model),
        "rows_hash": rows_hash(features),
        "features": {
            "place": features.place,
            "bytes": features.num_bytes,
            "window": trainer.window,
        },
        "steps": trainer.num_steps,
        "parameters": counts,
        "parameters_with_clip": counts["total"]
        + sum(p.numel() for p in clip.model.parameters()),
        "cost": {
            "stage_one": stage_one(store),
            "batch": step_cost(trainer),
        },
        **_circumstances(trainer),
        "command": list(command),
        "resumed": [],
        "seconds": 0.0,
        "peak_memory_bytes": 0,
        "evaluation": None,
        "best": None,
        "finished": None,
    }


def _circumstances(trainer: Trainer) -> dict[str, Any]:
    return {
        "device": device_name(trainer.device),
        "precision": str(trainer.precision).removeprefix("torch."),
        "processes": trainer.group.size,
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "versions": versions(),
        "started": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def resumed(
    record: Mapping[str, Any], trainer: Trainer, command: Sequence[str], step: int
) -> dict[str, Any]:
    """The record of a run that goes on: as it was begun, and a line for this process."""
    process = {**_circumstances(trainer), "step": step, "command": list(command)}
    return {**record, "resumed": [*record["resumed"], process]}


def require_same(
    run: Run,
    store: FeatureStore,
    clip: Clip,
    config: TrainConfig,
    shots: FewShotDraw | None,
    ancestors: Sequence[Ancestor] = (),
) -> None:
    """Refuse something else than the run began with.

    Raises:
        ConfigError: If a setting differs that numbers depend on; shows each.
        StoreMismatchError: If the store, the CLIP, the draw of few videos or the weights it
            started from are others.
    """
    record = run.record
    if changed := run.differences(config, besides=CHANGE_NOTHING):
        lines = "\n  ".join(changed)
        raise ConfigError(
            f"run {run.path} has other settings; go on with its own, or train into another "
            f"folder:\n  {lines}"
        )
    for what, wanted, got in (
        ("store recipe", record["store_recipe_hash"], store.recipe_hash),
        ("CLIP", record["clip"]["fingerprint"], clip.fingerprint),
    ):
        if wanted != got:
            raise StoreMismatchError(
                f"run {run.path} began with another {what}: expected {wanted[:12]}, got "
                f"{got[:12]}; name the store it began with, {record['store']}"
            )
    if record.get("shots") != (None if shots is None else shots.to_dict()):
        raise StoreMismatchError(
            f"run {run.path} began with another draw of few videos, or without one; go on "
            "with its own, or train into another folder"
        )
    if [one.sha256 for one in run.ancestors] != [one.sha256 for one in ancestors]:
        raise StoreMismatchError(
            f"run {run.path} began with the weights of another run, or anew; go on with its "
            "own, or train into another folder"
        )


def require_same_numbers(run: Run, trainer: Trainer) -> None:
    """Refuse to go on where the next steps would not be those of the same run.

    Raises:
        StoreMismatchError: If other videos are usable by now.
        InputError: If this device computes in another precision, or processes differ.
    """
    if rows_hash(trainer.features) != run.record["rows_hash"]:
        raise StoreMismatchError(
            f"run {run.path} began with {run.record['videos']:,} usable videos, now there are "
            f"{len(trainer.features):,}, or others; train again into another folder"
        )
    now = _circumstances(trainer)
    for what, name in (("precision", "precision"), ("number of processes", "processes")):
        if run.record[name] != now[name]:
            raise InputError(
                f"run {run.path} began with another {what}: expected {run.record[name]}, got "
                f"{now[name]}; go on where it began"
            )


def changed_circumstances(run: Run, trainer: Trainer) -> str:
    """Changes since the last process that may round otherwise; "" if there are none."""
    last = {**run.record, **(run.record["resumed"] or [{}])[-1]}
    now = _circumstances(trainer)
    pairs = {what: (last[what], now[what]) for what in ("device", "threads")}
    for package in ("torch", "open_clip_torch"):
        pairs[package] = (last["versions"].get(package), now["versions"][package])
    return ", ".join(
        f"{what} {before} before, {after} now"
        for what, (before, after) in pairs.items()
        if before != after
    )


def rows_hash(features: Features) -> str:
    """Digest of the rows that are trained on, in order."""
    return hashlib.sha256(features.rows.astype("<i8").tobytes()).hexdigest()[:16]
