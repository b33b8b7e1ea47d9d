"""Stage two: train the tunable parts on cached features (paper Sec. 4.1).

`train` begins a run or goes on with one, `TrainingLoop` takes its steps; what it needs stands
below it, in the order that it is needed.
"""

import json
import math
import shlex
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn

from bieff.clip import Clip
from bieff.features.errors import BieffError, InputError, StoreError
from bieff.features.files import LOCK_NAME, exclusive
from bieff.features.schema import Video
from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig
from bieff.train.data import (
    Batch,
    Batches,
    Features,
    VideoList,
    draw_batch,
    frame_groups,
    load_features,
    patches_of,
)
from bieff.train.distributed import current, sharers
from bieff.train.evaluate.classifier import batch_size_of, class_embeddings
from bieff.train.evaluate.results import hits
from bieff.train.evaluate.scoring import probabilities
from bieff.train.fit.cost import forget_peak, peak_memory
from bieff.train.fit.record import (
    changed_circumstances,
    make_record,
    require_same,
    require_same_numbers,
    resumed,
)
from bieff.train.fit.step import Trainer, make_optimizer
from bieff.train.method.model import BiEfficient
from bieff.train.runs.checkpoint import (
    BEST,
    LAST,
    RESUME,
    Progress,
    StoppedError,
    load_checkpoint,
    require_finite,
    save_checkpoint,
    save_weights,
    weights_of,
)
from bieff.train.runs.metrics import METRICS, Metrics
from bieff.train.runs.run import RECORD, Run, build_model, open_run, write_record
from bieff.train.text.tower import TextTower
from bieff.train.text.wording import HAND_CRAFTED

Watch = Callable[[int, int, float], None]
"""Called after every step with (steps done, steps in all, loss)."""

Say = Callable[[str], None]
"""Called with what people should know, a line at a time."""

EVERY_VIDEO = VideoList("train")

LOGGED = 10
"""Steps between lines of metrics."""


def train(
    store: FeatureStore,
    clip: Clip,
    config: TrainConfig,
    out: Path,
    *,
    watch: Watch,
    videos: VideoList = EVERY_VIDEO,
    say: Say = lambda line: None,
    resume: Run | None = None,
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
        videos: Which of them, among which classes; evaluated on the way where these are all.
        say: Called with what people should know.
        resume: The run in `out`, to go on with it.
        command: What the user typed, for the record.
        shots: The draw of few videos that `videos` are, for the record.

    Raises:
        InputError: If `out` holds something already, or a run that is finished.
        ConfigError: If a run is to go on with other settings.
        StoreError: If the store cannot be trained on.
        StoppedError: If it was asked to stop; says how to go on.
        BieffError: If the loss stops being a number.
    """
    if resume is not None:
        if resume.record["finished"]:
            raise InputError(f"run {out} is finished; train again into another folder")
        require_same(resume, store, clip, config, shots)
    elif out.is_dir() and any(path.name != LOCK_NAME for path in out.iterdir()):
        raise InputError(
            f"{out} is not empty; name another folder with --out, remove it, or go on with its "
            "run with --resume"
        )
    forget_peak(clip.device)
    trainer = prepare(store, clip, config, videos=videos, run=resume)
    group = trainer.group
    validation = Validation.load(store, config, trainer.device) if videos.rows is None else None
    say(trainer.features.text())
    if resume is not None:
        require_same_numbers(resume, trainer)
    group.wait()  # all have looked at the folder
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {out}: {error.strerror}; name another one with --out"
        ) from None
    with trainer.batches, exclusive(out) if group.writes else nullcontext():
        loop = TrainingLoop(
            trainer=trainer,
            validation=validation,
            listed=store.partitions[videos.partition].videos,
            out=out,
            watch=watch,
        )
        if resume is None:
            names = videos.class_names(store)
            loop.record = make_record(store, clip, trainer, names, command, shots)
        else:
            loop.load()
            loop.record = resumed(resume.record, trainer, command, loop.progress.step)
            say(f"going on after {loop.progress.step:,} of {trainer.num_steps:,} steps")
            if changed := changed_circumstances(resume, trainer):
                say(
                    f"{changed}; the steps that follow are right, but need not be those of an "
                    "unbroken run bit for bit"
                )
        group.wait()  # all have read it
        loop.run()
    return Run(out, json.loads(json.dumps(loop.record)))


def train_or_go_on(
    store: FeatureStore,
    clip: Clip,
    config: TrainConfig,
    out: Path,
    *,
    watch: Watch,
    videos: VideoList = EVERY_VIDEO,
    command: Sequence[str] = (),
    shots: Mapping[str, Any] | None = None,
) -> Run:
    """The run in `out`, trained to its end whatever is there of it.

    For folders that a command of ours keeps; what is there must be a run of these settings, or
    what a process left that died before it had one.

    Raises:
        BieffError: As `train` does.
    """
    begun = open_run(out) if (out / RECORD).exists() else None
    if begun is not None and begun.record["finished"]:
        require_same(begun, store, clip, config, shots)
        return begun
    if begun is None and out.is_dir():
        shutil.rmtree(out)
    return train(
        store,
        clip,
        config,
        out,
        watch=watch,
        videos=videos,
        resume=begun,
        command=command,
        shots=shots,
    )


def prepare(
    store: FeatureStore,
    clip: Clip,
    config: TrainConfig,
    *,
    videos: VideoList = EVERY_VIDEO,
    run: Run | None = None,
) -> Trainer:
    """Put together what a run on this store needs.

    Args:
        store: Features to train on.
        clip: The CLIP they come from.
        config: Settings.
        videos: Which of them, among which classes.
        run: A run that is to go on; its videos are shuffled as they were.

    Raises:
        StoreError: If the store has no training partition, or it is not finished.
        ConfigError: If a setting does not fit the store.
    """
    if videos.partition not in store.partitions:
        raise StoreError(
            f"{store.path} has no training partition, it has {', '.join(store.partitions)}; "
            "train on another store, or put the videos of a folder data set under train/ and "
            "val/ and extract them again"
        )
    device = clip.device
    group = current()
    class_names = videos.class_names(store)
    num_frames = config.frames or int(store.recipe["frames"])
    frame_groups(int(store.recipe["frames"]), num_frames)
    text = TextTower(clip.model, clip.tokenize(class_names)).to(device)
    model = build_model(config, clip, num_frames=num_frames, patches=patches_of(store))
    model = model.to(device)
    features = load_features(
        store.partitions[videos.partition],
        videos.rows,
        device=device,
        classes=videos.classes,
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
        frozen_classes=class_embeddings(clip, class_names, HAND_CRAFTED)
        if config.distill
        else None,
    )


def _precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


@dataclass(kw_only=True, slots=True)
class TrainingLoop:
    """A run from where it is to its end, or to where it is stopped."""

    trainer: Trainer
    validation: "Validation | None"
    listed: Sequence[Video]
    """Videos of the partition that is trained on."""

    out: Path
    watch: Watch
    record: dict[str, Any] = field(default_factory=dict)
    """Contents of run.json."""

    progress: Progress = field(default_factory=Progress)
    metrics: Metrics | None = None
    """None in a process that does not write the run."""

    average: AveragedModel | None = None
    """Mean of the weights after the last epochs, which training never sees."""

    loss: float = math.nan
    """Loss of the step that was read last."""

    saved_step: int | None = None
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.trainer.config.average_epochs:
            self.average = AveragedModel(self.trainer.model, avg_fn=get_swa_avg_fn())

    def run(self) -> None:
        """Take the steps that are left, and finish the run folder."""
        if not self.trainer.group.writes:
            self._steps()
            return
        write_record(self.out, self.record)
        sizes = self.progress.sizes or {}
        with Metrics(
            self.out, step=self.progress.step, size=sizes.get(METRICS, 0)
        ) as self.metrics:
            self._steps()
        weights = weights_of(self.kept)
        require_finite(weights, f"after {self.trainer.num_steps} steps")
        save_weights(self.out / LAST, weights)
        self._write_record(finished=datetime.now(UTC).isoformat(timespec="microseconds"))
        (self.out / RESUME).unlink(missing_ok=True)

    def _steps(self) -> None:
        trainer, group = self.trainer, self.trainer.group
        started = time.monotonic() - self.progress.seconds
        unread: deque[LossReading] = deque()
        with stop_requests() as is_stopping:
            for step in range(self.progress.step, trainer.num_steps):
                unread.append(LossReading(step, trainer.step(step)))
                spent = time.monotonic() - started
                self.progress = replace(self.progress, step=step + 1, seconds=spent)
                self.take_average()
                is_last = step + 1 == trainer.num_steps
                is_logged = step % LOGGED == 0 or is_last
                is_evaluated = self._is_evaluated()
                late = 0 if is_logged or is_evaluated else LossReading.late(trainer.device)
                self._read(unread, late=late)
                # several processes must agree, which they need not do at every step
                stops = (is_logged or group.size == 1) and group.any(is_stopping())
                is_saved = (is_evaluated or stops or self._is_due()) and not is_last
                if is_logged:
                    self._log()
                if is_evaluated:
                    self._evaluate()
                if is_saved:
                    self._read(unread, late=0)
                    self._save()
                if stops and not is_last:
                    self._stop()

    @property
    def kept(self) -> BiEfficient:
        """The model that is evaluated and kept: the average, once there is one."""
        if self.average is None or not self._num_averaged:
            return self.trainer.model
        return cast(BiEfficient, self.average.module)

    @property
    def _num_averaged(self) -> int:
        """Epochs in the average."""
        config = self.trainer.config
        epochs = self.progress.step // self.trainer.epoch_steps
        return max(0, epochs - (config.epochs - config.average_epochs))

    def take_average(self) -> None:
        """Take the weights into the average at the end of an epoch that counts."""
        is_end = self.progress.step % self.trainer.epoch_steps == 0
        if self.average is not None and is_end and self._num_averaged:
            self.average.update_parameters(self.trainer.model)

    def _read(self, unread: "deque[LossReading]", *, late: int) -> None:
        """Read losses but the last few; ends the run at one that is not a number."""
        while len(unread) > late:
            reading = unread.popleft()
            self.loss = reading.value()
            if not math.isfinite(self.loss):
                self._fail(reading.step, self.loss)
            self.watch(reading.step + 1, self.trainer.num_steps, self.loss)

    def _fail(self, step: int, loss: float) -> None:
        trainer = self.trainer
        draw = trainer.batches.draw(step)
        rows = trainer.features.rows[draw.videos.numpy()].tolist()
        listed = ", ".join(f"{row} {self.listed[row].id}" for row in rows)
        good = "no checkpoint was written yet"
        if self.saved_step is not None:
            good = (
                f"the last good checkpoint, after {self.saved_step} steps, is "
                f"{self.out / RESUME}"
            )
        raise BieffError(
            f"step {step}: the loss is {loss}; {good}; train again with a smaller lr or "
            f"clip_grad=1.0; the batch's rows and videos: {listed}"
        )

    def _log(self) -> None:
        """Write down the loss, the learning rate, and the method's learned numbers."""
        if self.metrics is None:
            return
        lr = float(self.trainer.optimizer.param_groups[0]["lr"])
        figures = {"loss": self.loss, "lr": lr}
        for name, parameter in self.trainer.model.named_parameters():
            if name.endswith(("alpha", "beta", "log_scale")):
                figures[name] = parameter.detach().float().mean().item()
        self.metrics.add(self.progress.step - 1, figures)

    def _is_evaluated(self) -> bool:
        if self.validation is None:
            return False
        done, every = self.progress.step, self.trainer.config.eval_every
        is_due = done % (every * self.trainer.epoch_steps) == 0
        return is_due or done == self.trainer.num_steps

    def _evaluate(self) -> None:
        """Evaluate what would be kept now, and keep it if it is the best."""
        assert self.validation is not None
        figures = self.validation.accuracies(replace(self.trainer, model=self.kept))
        if self.metrics is None:
            return
        done = self.progress.step
        self.metrics.add(done - 1, {"epoch": done // self.trainer.epoch_steps, **figures})
        self.record["evaluation"] = {"steps": done, **figures}
        best = self.progress.best_top1
        if best is None or figures["val_top1"] > best:
            self.progress = self.progress.better(figures["val_top1"])
            save_weights(self.out / BEST, weights_of(self.kept))

    def _is_due(self) -> bool:
        waited = time.monotonic() - self.saved_at
        return self.metrics is not None and waited >= self.trainer.config.save_seconds

    def _save(self) -> None:
        if self.metrics is None:
            return
        self.progress = replace(self.progress, sizes={METRICS: self.metrics.size()})
        trainer = self.trainer
        average = None if self.kept is trainer.model else self.kept
        save_checkpoint(self.out, trainer.model, trainer.optimizer, self.progress, average)
        self.saved_step, self.saved_at = self.progress.step, time.monotonic()
        self._write_record()

    def load(self) -> None:
        """Go back to the last checkpoint; to the beginning where there is none."""
        trainer = self.trainer
        average = None if self.average is None else self.average.module
        found = load_checkpoint(self.out, trainer.model, trainer.optimizer, average)
        if found is not None:
            self.progress, self.saved_step = found, found.step or None
        if self.average is not None:
            self.average.n_averaged.fill_(self._num_averaged)

    def _write_record(self, *, finished: str | None = None) -> None:
        progress = self.progress
        self.record["seconds"] = round(progress.seconds, 2)
        peak = max(self.record["peak_memory_bytes"], peak_memory(self.trainer.device))
        self.record["peak_memory_bytes"] = peak
        if progress.best_step is not None:
            self.record["best"] = {"steps": progress.best_step, "val_top1": progress.best_top1}
        self.record["finished"] = finished
        write_record(self.out, self.record)

    def _stop(self) -> None:
        raise StoppedError(
            f"stopped and saved after {self.progress.step:,} of {self.trainer.num_steps:,} "
            f"steps; `bieff train --resume --out {shlex.quote(str(self.out))}` goes on"
        )


@dataclass(frozen=True, slots=True)
class Validation:
    """The videos to evaluate on while training."""

    features: Features
    clips: int
    """Temporal clips among the views."""

    @classmethod
    def load(
        cls, store: FeatureStore, config: TrainConfig, device: torch.device
    ) -> "Validation | None":
        """Read the partition; None if the store has none, or the config never evaluates."""
        if not config.eval_every or "val" not in store.partitions:
            return None
        features = load_features(
            store.partitions["val"],
            device=device,
            wants_patches=config.prompts_see == "patches",
            gigabytes=config.feature_memory,
            sharers=sharers(),
        )
        views = store.recipe["views"]["val"]
        return cls(features, max(view.get("clips", 1) for view in views))

    def accuracies(self, trainer: Trainer) -> dict[str, float]:
        """Percent right, by name of the figure; several processes share the videos."""

        def logits(frames: Tensor, patches: Tensor | None) -> Tensor:
            return trainer.score(Batch(frames, patches), None).logits

        count, group = len(self.features), trainer.group
        share = group.part(count) if count >= group.size else slice(0, count)
        was_training = trainer.model.training
        trainer.model.eval()
        scores = probabilities(
            self.features,
            logits,
            num_frames=trainer.num_frames,
            clips=self.clips,
            batch_size=batch_size_of(trainer.text, trainer.model),
            videos=range(count)[share],
        )
        whole = np.concatenate(list(scores))
        trainer.model.train(was_training)
        labels = self.features.labels[share].numpy()
        counts = [float(hits(whole, labels, top).sum()) for top in (1, 5)]
        right = torch.tensor([*counts, len(labels)], device=trainer.device, dtype=torch.float64)
        group.add_up([right])
        top1, top5, total = right.tolist()
        return {"val_top1": 100 * top1 / total, "val_top5": 100 * top5 / total}


class LossReading:
    """The loss of a step, on its way to the host while the next step is computed."""

    def __init__(self, step: int, loss: Tensor) -> None:
        """Start the copy."""
        self.step = step
        self._loss, self._copied = loss, None
        if loss.device.type == "cuda":
            self._loss = torch.empty((), dtype=loss.dtype, pin_memory=True)
            self._loss.copy_(loss, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def value(self) -> float:
        """The loss; waits for it if need be."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._loss.item()

    @staticmethod
    def late(device: torch.device) -> int:
        """Readings that may be left for later: none where nothing runs ahead."""
        return 2 if device.type == "cuda" else 0


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Note the first request to stop instead of dying of it; the second kills as ever.

    Gives a function that says whether there was one.  Outside the main thread, where Python
    handles no signals, there never is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = False
    earlier = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        restore()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: requested
    finally:
        restore()
