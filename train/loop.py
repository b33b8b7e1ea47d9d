"""Stage two: train the tunable parts on cached features (paper Sec. 4.1)."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from bieff.clip import Clip
from bieff.features.errors import InputError, StoreError
from bieff.features.lock import LOCK_NAME, exclusive
from bieff.features.store import FeatureStore
from bieff.train.averaging import Average
from bieff.train.batches import Batches
from bieff.train.checkpoint import Progress, load_checkpoint
from bieff.train.config import TrainConfig
from bieff.train.cost import forget_peak
from bieff.train.data import draw_batch, frame_groups, load_features
from bieff.train.distributed import current, sharers
from bieff.train.frozen import class_embeddings
from bieff.train.pre_prompt import HAND_CRAFTED
from bieff.train.record import (
    changed_circumstances,
    make_record,
    patches_of,
    require_same,
    require_same_numbers,
    resumed,
)
from bieff.train.run import RECORD, Run, build_model, open_run
from bieff.train.sitting import Sitting, Watch
from bieff.train.step import Trainer, make_optimizer
from bieff.train.text import TextTower
from bieff.train.validation import Validation

Say = Callable[[str], None]
"""Called with what people should know, a line at a time."""


def prepare(
    store: FeatureStore, clip: Clip, config: TrainConfig, *, run: Run | None = None
) -> Trainer:
    """Put together what a run on this store needs.

    Args:
        store: Features to train on.
        clip: The CLIP they come from.
        config: Settings.
        run: A run that is to go on; its videos are shuffled as they were.

    Raises:
        StoreError: If the store has no training partition, or it is not finished.
        ConfigError: If a setting does not fit the store.
    """
    if "train" not in store.partitions:
        raise StoreError(
            f"{store.path} has no training partition, it has {', '.join(store.partitions)}; "
            "train on another store, or put the videos of a folder data set under train/ and "
            "val/ and extract them again"
        )
    device = next(clip.model.parameters()).device
    group = current()
    num_frames = config.frames or int(store.recipe["frames"])
    frame_groups(int(store.recipe["frames"]), num_frames)
    text = TextTower(clip.model, clip.tokenize(store.class_names)).to(device)
    model = build_model(config, clip, num_frames=num_frames, patches=patches_of(store))
    model = model.to(device)
    features = load_features(
        store.partitions["train"],
        device=device,
        wants_patches=config.prompts_see == "patches",
        gigabytes=config.feature_memory,
        sharers=sharers(),
    )
    window = features.window if run is None else run.record["features"]["window"]
    size = min(config.batch_size, len(features))
    batches = Batches(
        features,
        lambda step: draw_batch(
            features,
            step,
            batch_size=config.batch_size,
            num_frames=num_frames,
            seed=config.seed,
            window=window,
        ),
        group.part(size),
        last=config.epochs * (len(features) // size),
    )
    return Trainer(
        config=config,
        model=model,
        text=text,
        features=features,
        optimizer=make_optimizer(model, config),
        num_frames=num_frames,
        batches=batches,
        group=group,
        device=device,
        precision=_precision(config, device),
        window=window,
        frozen_classes=class_embeddings(clip, store.class_names, HAND_CRAFTED)
        if config.distill
        else None,
    )


def train(
    store: FeatureStore,
    clip: Clip,
    config: TrainConfig,
    out: Path,
    *,
    watch: Watch,
    say: Say = lambda line: None,
    resume: bool = False,
    command: Sequence[str] = (),
    shots: Mapping[str, Any] | None = None,
) -> Run:
    """Train to the last step, and write the run folder `out`.

    SIGINT or SIGTERM finish the step and save.  With `resume`, a run that was stopped, however
    it was stopped, goes on at its last checkpoint, bit for bit as if it had not been.

    Args:
        store: Features to train on.
        clip: The CLIP they come from.
        config: Settings; of a run that goes on, the same.
        out: Folder of the run.
        watch: Called after every step.
        say: Called with what people should know.
        resume: Go on with the run in `out`.
        command: What the user typed, for the record.
        shots: The draw of few videos that `store` shows, for the record.

    Raises:
        InputError: If `out` holds something already, or nothing to go on with.
        ConfigError: If a run is to go on with other settings.
        StoreError: If the store cannot be trained on.
        StoppedError: If it was asked to stop; says how to go on.
        BieffError: If the loss stops being a number.
    """
    run = None
    if resume:
        run = open_run(out)
        if run.record["finished"]:
            raise InputError(f"run {out} is finished; train again into another folder")
        require_same(run, store, clip, config, shots)
    elif out.is_dir() and any(path.name != LOCK_NAME for path in out.iterdir()):
        raise InputError(
            f"{out} is not empty; name another folder with --out, remove it, or go on with its "
            "run with --resume"
        )
    forget_peak(next(clip.model.parameters()).device)
    trainer = prepare(store, clip, config, run=run)
    validation = Validation.load(store, config, trainer.device)
    say(trainer.features.text())
    if run is not None:
        require_same_numbers(run, trainer)
    trainer.group.wait()  # all have looked at the folder
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {out}: {error.strerror}; name another one with --out"
        ) from None
    with trainer.batches, exclusive(out) if trainer.group.writes else nullcontext():
        progress, record = Progress(), make_record(store, clip, trainer, command, shots)
        average = Average(
            trainer.model,
            epochs=config.epochs,
            averaged=config.average_epochs,
            epoch_steps=trainer.epoch_steps,
        )
        if run is not None:
            progress = (
                load_checkpoint(out, trainer.model, trainer.optimizer, average.weights)
                or progress
            )
            record = resumed(run.record, trainer, command, progress.step)
            say(f"going on after {progress.step:,} of {trainer.num_steps:,} steps")
            if changed := changed_circumstances(run, trainer):
                say(
                    f"{changed}; the steps that follow are right, but need not be those of an "
                    "unbroken run bit for bit"
                )
        trainer.group.wait()  # all have read it
        sitting = Sitting(trainer, average, validation, store, out, record, progress, watch)
        sitting.run()
    return open_run(out)


def train_or_go_on(
    store: FeatureStore,
    clip: Clip,
    config: TrainConfig,
    out: Path,
    *,
    watch: Watch,
    command: Sequence[str] = (),
    shots: Mapping[str, Any] | None = None,
) -> Run:
    """The run in `out`, trained to its end whatever is there of it.

    For folders that a command of ours keeps; what is there must be a run of these settings, or
    what a process left that died before it had one.

    Raises:
        BieffError: As `train` does.
    """
    is_begun = (out / RECORD).exists()
    if is_begun and (run := open_run(out)).record["finished"]:
        require_same(run, store, clip, config, shots)
        return run
    if not is_begun and out.is_dir():
        shutil.rmtree(out)
    return train(
        store,
        clip,
        config,
        out,
        watch=watch,
        resume=is_begun,
        command=command,
        shots=shots,
    )


def _precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32
