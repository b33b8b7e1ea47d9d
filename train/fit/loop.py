"""Stage two: train the tunable parts on cached features (paper Sec. 4.1).

`TrainingLoop.run` is the loop, what it calls stands below it; `train` begins a run or goes on
with one.
"""

import json
import math
import shlex
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from bieff.features.errors import BieffError, InputError
from bieff.features.files import LOCK_NAME, exclusive
from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig
from bieff.train.data import (
    Batch,
    Features,
    load_features,
)
from bieff.train.evaluate.classifier import batch_size_of
from bieff.train.evaluate.results import hits
from bieff.train.evaluate.scoring import probabilities
from bieff.train.fit.cost import forget_peak, peak_memory, slow_text
from bieff.train.fit.few_shot import FewShotDraw
from bieff.train.fit.record import (
    changed_circumstances,
    make_record,
    require_same,
    require_same_numbers,
    resumed,
)
from bieff.train.fit.step import Trainer, prepare
from bieff.train.method.model import BiEfficient
from bieff.train.runs.ancestor import Ancestor, after
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
from bieff.train.runs.run import RECORD, Run, open_run, write_record

Watch = Callable[[int, int, float], None]
"""Called after every step with (steps done, steps in all, loss)."""

Say = Callable[[str], None]
"""Called with what people should know, a line at a time."""

LOGGED = 10
"""Steps between lines of metrics."""


@dataclass(kw_only=True, slots=True)
class TrainingLoop:
    """A run from where it is to its end, or to where it is stopped."""

    trainer: Trainer
    validation: "Validation | None"
    out: Path
    watch: Watch
    record: dict[str, Any] = field(default_factory=dict)
    """Contents of run.json."""

    progress: Progress = field(default_factory=Progress)
    metrics: Metrics | None = None
    """None in a process that does not write the run."""

    average: AveragedModel | None = None
    """Mean of the weights after the last epochs, which training never sees."""

    unread: deque[tuple[int, Callable[[], float]]] = field(default_factory=deque)
    """Steps whose losses are on their way to the host."""

    loss: float = math.nan
    """Loss of the step that was read last."""

    saved_step: int | None = None
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.trainer.config.average_epochs:
            self.average = AveragedModel(self.trainer.model, avg_fn=get_swa_avg_fn())

    def run(self) -> None:
        """Take the steps that are left, and finish the run folder."""
        trainer, group, config = self.trainer, self.trainer.group, self.trainer.config
        started = time.monotonic() - self.progress.seconds
        with self._open_files(), stop_requests() as is_stopping:
            for step in range(self.progress.step, trainer.num_steps):
                self.unread.append((step, to_host(trainer.step(step))))
                self.progress.step = done = step + 1
                self.progress.seconds = time.monotonic() - started
                self.take_average()

                is_last = done == trainer.num_steps
                is_logged = step % LOGGED == 0 or is_last
                is_evaluated = self.validation is not None and (
                    is_last or done % (config.eval_every * trainer.epoch_steps) == 0
                )
                runs_ahead = trainer.device.type == "cuda" and not (is_logged or is_evaluated)
                self._read_losses(late=LATE if runs_ahead else 0)
                # several processes must agree, which they need not do at every step
                stops = (is_logged or group.size == 1) and group.any(is_stopping())
                if is_logged:
                    self._log()
                if is_evaluated:
                    self._evaluate()
                is_due = time.monotonic() - self.saved_at >= config.save_seconds
                if (is_evaluated or stops or is_due) and not is_last:
                    self._save()
                if stops and not is_last:
                    raise StoppedError(
                        f"stopped and saved after {done:,} of {trainer.num_steps:,} steps; "
                        f"`bieff train --resume --out {shlex.quote(str(self.out))}` goes on"
                    )
        if group.writes:
            self._finish()

    def _open_files(self) -> AbstractContextManager[Any]:
        if not self.trainer.group.writes:
            return nullcontext()
        write_record(self.out, self.record)
        size = (self.progress.sizes or {}).get(METRICS, 0)
        self.metrics = Metrics(self.out, step=self.progress.step, size=size)
        return self.metrics

    def take_average(self) -> None:
        """Take the weights into the average at the end of an epoch that counts."""
        is_end = self.progress.step % self.trainer.epoch_steps == 0
        if self.average is not None and is_end and self._num_averaged:
            self.average.update_parameters(self.trainer.model)

    @property
    def _num_averaged(self) -> int:
        config = self.trainer.config
        epochs = self.progress.step // self.trainer.epoch_steps
        return max(0, epochs - (config.epochs - config.average_epochs))

    @property
    def kept(self) -> BiEfficient:
        """The model that is evaluated and kept: the average, once there is one."""
        if self.average is None or not self._num_averaged:
            return self.trainer.model
        return cast(BiEfficient, self.average.module)

    def _read_losses(self, *, late: int) -> None:
        """Read losses but the last few; ends the run at one that is not a number."""
        while len(self.unread) > late:
            step, read = self.unread.popleft()
            self.loss = read()
            if not math.isfinite(self.loss):
                raise self._gone_astray(step)
            self.watch(step + 1, self.trainer.num_steps, self.loss)

    def _gone_astray(self, step: int) -> BieffError:
        drawn = self.trainer.batches.draw(step).videos
        rows = self.trainer.features.rows[drawn.numpy()].tolist()
        listed = ", ".join(f"{row} {self.trainer.videos[row].id}" for row in rows)
        good = "no checkpoint was written yet"
        if self.saved_step is not None:
            file = self.out / RESUME
            good = f"the last good checkpoint, after {self.saved_step} steps, is {file}"
        return BieffError(
            f"step {step}: the loss is {self.loss}; {good}; train again with a smaller lr or "
            f"clip_grad=1.0; the batch's rows and videos: {listed}"
        )

    def _log(self) -> None:
        if self.metrics is None:
            return
        figures = {"loss": self.loss, "lr": float(self.trainer.optimizer.param_groups[0]["lr"])}
        for name, parameter in self.trainer.model.named_parameters():
            if name.endswith(("alpha", "beta", "log_scale")):
                figures[name] = parameter.detach().float().mean().item()
        self.metrics.add(self.progress.step - 1, figures)

    def _evaluate(self) -> None:
        assert self.validation is not None
        figures = self.validation.accuracies(replace(self.trainer, model=self.kept))
        if self.metrics is None:
            return
        done, progress = self.progress.step, self.progress
        self.metrics.add(done - 1, {"epoch": done // self.trainer.epoch_steps, **figures})
        self.record["evaluation"] = {"steps": done, **figures}
        if progress.best_top1 is None or figures["val_top1"] > progress.best_top1:
            progress.best_top1, progress.best_step = figures["val_top1"], done
            save_weights(self.out / BEST, weights_of(self.kept))

    def _save(self) -> None:
        self._read_losses(late=0)
        self.saved_at = time.monotonic()
        if self.metrics is None:
            return
        self.progress.sizes = {METRICS: self.metrics.size()}
        trainer = self.trainer
        average = None if self.kept is trainer.model else self.kept
        save_checkpoint(self.out, trainer.model, trainer.optimizer, self.progress, average)
        self.saved_step = self.progress.step
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

    def _finish(self) -> None:
        weights = weights_of(self.kept)
        require_finite(weights, f"after {self.trainer.num_steps} steps")
        save_weights(self.out / LAST, weights)
        self._write_record(finished=datetime.now(UTC).isoformat(timespec="microseconds"))
        (self.out / RESUME).unlink(missing_ok=True)

    def _write_record(self, *, finished: str | None = None) -> None:
        progress, record = self.progress, self.record
        record["seconds"] = round(progress.seconds, 2)
        peak = max(record["peak_memory_bytes"], peak_memory(self.trainer.device))
        record["peak_memory_bytes"] = peak
        if progress.best_step is not None:
            record["best"] = {"steps": progress.best_step, "val_top1": progress.best_top1}
        record["finished"] = finished
        write_record(self.out, record)


def train(
    store: FeatureStore,
    clip: Clip,
    config: TrainConfig,
    out: Path,
    *,
    watch: Watch,
    say: Say = lambda line: None,
    resume: Run | None = None,
    command: Sequence[str] = (),
    shots: FewShotDraw | None = None,
    ancestors: Sequence[Ancestor] = (),
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
        resume: The run in `out`, to go on with it.
        command: What the user typed, for the record.
        shots: Few videos to train on; None: all, and `val` is evaluated on the way.
        ancestors: The run to start from, and those before it, see `run.lineage`.

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
        require_same(resume, store, clip, config, shots, ancestors)
    elif out.is_dir() and any(path.name != LOCK_NAME for path in out.iterdir()):
        raise InputError(
            f"{out} is not empty; name another folder with --out, remove it, or go on with its "
            "run with --resume"
        )
    forget_peak(clip.device)
    trainer = prepare(store, clip, config, shots=shots, run=resume, ancestors=ancestors)
    validation = Validation.load(store, trainer) if shots is None else None
    say(trainer.features.text())
    if ancestors:
        say(f"started from run {ancestors[0].run}, after {after(ancestors)}")
    if note := slow_text(trainer):
        say(note)
    if resume is not None:
        require_same_numbers(resume, trainer)
    trainer.group.wait()  # all have looked at the folder
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {out}: {error.strerror}; name another one with --out"
        ) from None
    with trainer.batches, exclusive(out) if trainer.group.writes else nullcontext():
        loop = TrainingLoop(trainer=trainer, validation=validation, out=out, watch=watch)
        if resume is None:
            loop.record = make_record(store, clip, trainer, command, shots, ancestors)
        else:
            loop.load()
            loop.record = resumed(resume.record, trainer, command, loop.progress.step)
            say(f"going on after {loop.progress.step:,} of {trainer.num_steps:,} steps")
            if changed := changed_circumstances(resume, trainer):
                say(
                    f"{changed}; the steps that follow are right, but need not be those of an "
                    "unbroken run bit for bit"
                )
        trainer.group.wait()  # all have read it
        loop.run()
    return Run(out, json.loads(json.dumps(loop.record)))


def train_or_go_on(
    store: FeatureStore,
    clip: Clip,
    config: TrainConfig,
    out: Path,
    *,
    shots: FewShotDraw | None = None,
    ancestors: Sequence[Ancestor] = (),
    **options: Any,
) -> Run:
    """The run in `out`, trained to its end whatever is there of it; options as of `train`.

    For folders that a command of ours keeps; what is there must be a run of these settings, or
    what a process left that died before it had one.

    Raises:
        BieffError: As `train` does.
    """
    begun = open_run(out) if (out / RECORD).exists() else None
    if begun is not None and begun.record["finished"]:
        require_same(begun, store, clip, config, shots, ancestors)
        return begun
    if begun is None and out.is_dir():
        shutil.rmtree(out)
    more = {"shots": shots, "ancestors": ancestors, **options}
    return train(store, clip, config, out, resume=begun, **more)


@dataclass(frozen=True, slots=True)
class Validation:
    """The videos to evaluate on while training."""

    features: Features
    clips: int
    """Temporal clips among the views."""

    @classmethod
    def load(cls, store: FeatureStore, trainer: Trainer) -> "Validation | None":
        """Read the partition; None if the store has none, or the config never evaluates."""
        config = trainer.config
        if not config.eval_every or "val" not in store.partitions:
            return None
        features = load_features(
            store.partitions["val"],
            device=trainer.device,
            wants_patches=config.prompts_see == "patches",
            gigabytes=config.feature_memory,
        )
        views = store.views("val")
        return cls(features, max(view.get("clips", 1) for view in views))

    def accuracies(self, trainer: Trainer) -> dict[str, float]:
        """Percent right, by name of the figure; several processes share the videos."""
        count, group = len(self.features), trainer.group
        share = group.part(count) if count >= group.size else slice(0, count)
        trainer.model.eval()
        scores = probabilities(
            self.features,
            lambda frames, patches: trainer.score(Batch(frames, patches), None).logits,
            num_frames=trainer.num_frames,
            clips=self.clips,
            batch_size=batch_size_of(trainer.text, trainer.model),
            videos=range(count)[share],
        )
        whole = np.concatenate(list(scores))
        trainer.model.train()
        labels = self.features.labels[share].numpy()
        counts = [float(hits(whole, labels, top).sum()) for top in (1, 5)]
        right = torch.tensor([*counts, len(labels)], device=trainer.device, dtype=torch.float64)
        group.add_up([right])
        top1, top5, total = right.tolist()
        return {"val_top1": 100 * top1 / total, "val_top5": 100 * top5 / total}


LATE = 2
"""Steps that the device may run ahead of the losses that are read."""


def to_host(loss: Tensor) -> Callable[[], float]:
    """Begin to copy a loss while the next step is computed; what comes back waits for it."""
    if loss.device.type != "cuda":
        return loss.item
    copy = torch.empty((), dtype=loss.dtype, pin_memory=True)
    copy.copy_(loss, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> float:
        copied.synchronize()
        return copy.item()

    return read


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Note the first request to stop instead of dying of it; the second kills as ever.

    Gives a function that says whether there was one.
    """
    requests: list[int] = []
    earlier: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        requests.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():  # elsewhere Python handles none
        earlier = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, note)
    try:
        yield lambda: bool(requests)
    finally:
        restore()
