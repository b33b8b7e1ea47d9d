"""The steps of a run in one sitting: evaluate, write down, save, stop."""

import math
import shlex
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bieff.features.errors import BieffError
from bieff.features.store import FeatureStore
from bieff.train.averaging import Average
from bieff.train.checkpoint import (
    BEST,
    LAST,
    RESUME,
    Progress,
    StoppedError,
    require_finite,
    save_checkpoint,
    save_weights,
    weights_of,
)
from bieff.train.cost import peak_memory
from bieff.train.interrupt import stop_requests
from bieff.train.metrics import Metrics
from bieff.train.reading import LossReading
from bieff.train.run import write_record
from bieff.train.step import Trainer
from bieff.train.validation import Validation

Watch = Callable[[int, int, float], None]
"""Called after every step with (steps done, steps in all, loss)."""

LOGGED = 10
"""Steps between lines of metrics."""


@dataclass(slots=True)
class Sitting:
    """A run from where it is to its end, or to where it is stopped."""

    trainer: Trainer
    average: Average
    validation: Validation | None
    store: FeatureStore
    out: Path
    record: dict[str, Any]
    progress: Progress
    watch: Watch
    saved_at: float = 0.0
    saved_step: int | None = None
    started_at: float = 0.0
    loss: float = math.nan
    """Of the step that was read last."""

    def run(self) -> None:
        """Take the steps that are left, and finish the run folder."""
        trainer, progress = self.trainer, self.progress
        self.saved_step = progress.step or None
        self.saved_at = self.started_at = time.monotonic()
        if not trainer.group.writes:
            self._steps(None)
            return
        write_record(self.out, self.record)
        with Metrics(self.out, progress.sizes or {}) as metrics:
            self._steps(metrics)
        with self.average.applied():
            weights = weights_of(trainer.model)
            require_finite(weights, f"after {trainer.num_steps} steps")
            save_weights(self.out / LAST, weights)
        finished = datetime.now(UTC).isoformat(timespec="microseconds")
        self._write_record(finished=finished)
        (self.out / RESUME).unlink(missing_ok=True)

    def _steps(self, metrics: Metrics | None) -> None:
        trainer, group = self.trainer, self.trainer.group
        before = self.progress.seconds
        unread: deque[LossReading] = deque()
        with stop_requests() as is_stopping:
            for step in range(self.progress.step, trainer.num_steps):
                unread.append(LossReading(step, trainer.step(step)))
                spent = before + time.monotonic() - self.started_at
                self.progress = replace(self.progress, step=step + 1, seconds=spent)
                self.average.add(step + 1)
                is_last = step + 1 == trainer.num_steps
                is_logged = step % LOGGED == 0 or is_last
                is_evaluated = self._is_evaluated(step + 1)
                self._read(unread, late=0 if is_logged else LossReading.late(trainer.device))
                # several processes must agree, which they need not do at every step
                stops = (is_logged or group.size == 1) and group.any(is_stopping())
                is_saved = (is_evaluated or stops or self._is_due()) and not is_last
                if is_saved or is_evaluated:
                    self._read(unread, late=0)
                if metrics is not None and is_logged:
                    metrics.add(step, {"loss": self.loss, **self._state()})
                if is_evaluated:
                    self._evaluate(metrics)
                if metrics is not None and is_saved:
                    self._save(metrics)
                if stops and not is_last:
                    self._stop()

    def _read(self, unread: deque[LossReading], *, late: int) -> None:
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
        videos = self.store.partitions["train"].videos
        listed = ", ".join(f"{row} {videos[row].id}" for row in rows)
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

    def _state(self) -> dict[str, float]:
        """The learning rate, and the method's learned numbers."""
        state = {"lr": float(self.trainer.optimizer.param_groups[0]["lr"])}
        for name, parameter in self.trainer.model.named_parameters():
            if name.endswith(("alpha", "beta", "log_scale")):
                state[name] = parameter.detach().float().mean().item()
        return state

    def _is_evaluated(self, done: int) -> bool:
        if self.validation is None:
            return False
        every = self.trainer.config.eval_every * self.trainer.epoch_steps
        return done % every == 0 or done == self.trainer.num_steps

    def _evaluate(self, metrics: Metrics | None) -> None:
        """Evaluate what would be kept now: the average, once there is one."""
        assert self.validation is not None
        with self.average.applied():
            figures = self.validation.accuracies(self.trainer, self.trainer.group)
            if metrics is not None:
                self._note(metrics, figures)

    def _note(self, metrics: Metrics, figures: dict[str, float]) -> None:
        """Write figures down, and keep the weights that gave them if they are the best."""
        done = self.progress.step
        metrics.add(done - 1, {"epoch": done // self.trainer.epoch_steps, **figures})
        self.record["evaluation"] = {"steps": done, **figures}
        best = self.progress.best_top1
        if best is None or figures["val_top1"] > best:
            self.progress = self.progress.better(figures["val_top1"])
            save_weights(self.out / BEST, weights_of(self.trainer.model))

    def _is_due(self) -> bool:
        waited = time.monotonic() - self.saved_at
        return self.trainer.group.writes and waited >= self.trainer.config.save_seconds

    def _save(self, metrics: Metrics) -> None:
        self.progress = replace(self.progress, sizes=metrics.sizes())
        trainer = self.trainer
        save_checkpoint(
            self.out, trainer.model, trainer.optimizer, self.progress, self.average.weights
        )
        self.saved_step, self.saved_at = self.progress.step, time.monotonic()
        self._write_record()

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
