"""How far an extraction is: a bar for people, a line a minute for log files.

Also the count that `--max-bad` is held against.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bieff.extract.tasks import Done, Task, Update
from bieff.features.errors import InputError
from bieff.features.schema import Status
from bieff.features.store import FeatureStore

LINE_SECONDS = 60.0
"""Between two lines where standard error is no terminal."""

_SPEED_SECONDS = 2.0
"""Of the last moments that the rate and the waiting are an average of, about."""


class Board:
    """Counts shards, videos and images of one store; use as a context manager.

    Updates may come from another thread; `check` is for the thread that runs the extraction.
    """

    def __init__(
        self,
        store: FeatureStore,
        pending: Mapping[str, list[Task]],
        *,
        max_bad: float | None,
        console: Console | None = None,
    ) -> None:
        self._name = str(store.recipe["data_set"])
        self._path = store.path
        self._max_bad = max_bad
        self._guard = threading.Lock()
        self._num_videos = sum(part.num_videos for part in store.partitions.values())
        self._bad = _bad_elsewhere(store, pending)
        self._under_way: dict[tuple[str, int], Update] = {}
        self._speed = _Speed()
        self._console = console or Console(stderr=True)
        self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("videos, {task.fields[shards]} shards, {task.fields[state]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._rows: dict[str, TaskID] = {}
        self._shards = {name: [0, len(tasks)] for name, tasks in pending.items()}
        self._total = dict.fromkeys(pending, 0)
        self._finished = dict.fromkeys(pending, 0)
        for name, tasks in pending.items():
            if tasks:
                geometry = store.partitions[name].geometry
                self._total[name] = sum(len(geometry.rows(task.shard)) for task in tasks)
                self._rows[name] = self._bar.add_task(
                    f"{self._name} {name}",
                    total=self._total[name],
                    shards=f"0/{len(tasks)}",
                    state="starting",
                )

    def __enter__(self) -> "Board":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        # what went wrong is not said below the bars of what went well
        self._bar.live.transient = error[:1] != (None,)
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def add(self, update: Update) -> None:
        """Take how far a shard is."""
        with self._guard:
            key = (update.partition, update.shard)
            self._speed.add(self._under_way.get(key), update)
            self._under_way[key] = update
            self._show(update.partition)

    def shard_done(self, done: Done) -> None:
        """Take a shard that is written."""
        with self._guard:
            name = done.task.partition
            self._under_way.pop((name, done.task.shard), None)
            self._shards[name][0] += 1
            self._finished[name] += sum(done.counts.values())
            self._bad += _num_failed(done.counts)
            self._show(name)

    def check(self) -> None:
        """Stop a run that has become pointless.

        Raises:
            InputError: If more videos are unusable than `max_bad` allows, whatever the others
                turn out to be.
        """
        if self._max_bad is None:
            return
        with self._guard:
            bad = self._bad + sum(update.bad for update in self._under_way.values())
        if bad > self._max_bad * self._num_videos:
            raise InputError(
                f"{self._path}: {bad:,} of {self._num_videos:,} videos are unusable already, "
                f"more than --max-bad {self._max_bad:.3%} allows; look at the reasons with "
                "--status, mend the files or allow more, and run the same command again"
            )

    def _show(self, name: str) -> None:
        part = [update for (of, _), update in self._under_way.items() if of == name]
        taken = self._finished[name] + sum(update.videos for update in part)
        bad = self._bad + sum(update.bad for update in self._under_way.values())
        shards = "/".join(map(str, self._shards[name]))
        state = f"{bad:,} bad, {self._speed.text()}"
        if name in self._rows:
            self._bar.update(self._rows[name], completed=taken, shards=shards, state=state)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.say(
                f"{self._name} {name}: {taken:,} of {self._total[name]:,} videos, {shards} "
                f"shards, {state}"
            )


class _Speed:
    """Images a second, and who waits for whom, over the last moments."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._rate = self._idle = 0.0

    def add(self, before: Update | None, now: Update) -> None:
        images = now.images - (before.images if before else 0)
        seconds = now.seconds - (before.seconds if before else 0.0)
        waiting = now.waiting - (before.waiting if before else 0.0)
        moment = time.monotonic()
        passed = max(moment - self._last, 1e-6)
        self._last = moment
        weight = min(1.0, passed / _SPEED_SECONDS) if self._rate else 1.0
        self._rate += weight * (images / passed - self._rate)
        if seconds > 0:
            self._idle += weight * (waiting / seconds - self._idle)

    def text(self) -> str:
        who = "tower waits for decoders" if self._idle > 0.5 else "decoders wait for tower"
        share = self._idle if self._idle > 0.5 else 1 - self._idle
        return f"{self._rate:,.0f} images/s, {who} {share:.0%}"


def _bad_elsewhere(store: FeatureStore, pending: Mapping[str, list[Task]]) -> int:
    """Videos that have failed in the shards that this run does not touch."""
    bad = 0
    for name, partition in store.partitions.items():
        redone = {task.shard for task in pending.get(name, ())}
        for shard in set(range(partition.num_shards)) - redone:
            marker = partition.marker(shard)
            bad += _num_failed(marker.counts) if marker else 0
    return bad


def _num_failed(counts: Mapping[str, int]) -> int:
    return sum(count for name, count in counts.items() if Status[name.upper()].failed)


class StepsBar:
    """A bar of training steps; call it with (steps done, steps in all, loss)."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress, self._what = progress, what
        self._task: TaskID | None = None  # no bar beside an error before the first step

    def __call__(self, done: int, total: int, loss: float) -> None:
        """Move on."""
        if self._task is None:
            self._task = self._progress.add_task(self._what, total=total, loss=loss)
        self._progress.update(self._task, completed=done, total=total, loss=loss)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def steps_bar(what: str, *, is_shown: bool = True) -> Iterator[StepsBar]:
    """A bar of training steps, or one that nobody sees."""
    with _progress("steps, loss {task.fields[loss]:.3f},", is_shown=is_shown) as progress:
        yield StepsBar(progress, what)


class VideoLines:
    """What a log file gets in place of a bar: a line a minute, with the time that is left."""

    def __init__(self, what: str, console: Console) -> None:
        self._what, self._console = what, console
        self._done, self._time = 0, time.monotonic()
        self._is_first = True

    def __call__(self, done: int, total: int) -> None:
        """Note how far it is."""
        waited = time.monotonic() - self._time
        if self._is_first:  # what an earlier process did says nothing of the speed
            self._is_first, self._done = False, done
            return
        if waited < LINE_SECONDS:
            return
        left = (total - done) * waited / max(done - self._done, 1)
        self._done, self._time = done, time.monotonic()
        line = f"{self._what}: {done:,} of {total:,} videos, about {left / 60:.0f} min left"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def videos_bar(what: str, *, is_shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar of evaluated videos; call it with (videos done, videos in all).

    Where standard error is no terminal, a line a minute.
    """
    console = Console(stderr=True, quiet=not is_shown)
    if not console.is_terminal:
        yield VideoLines(what, console)
        return
    with _progress("videos,", is_shown=is_shown) as progress:
        task = progress.add_task(what, total=None)

        def watch(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield watch


class RunsBar:
    """A bar for the runs of a command, and one for each that is running."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._all = progress.add_task("all runs", total=None)
        self._done = 0
        self._running: dict[str, tuple[TaskID, float]] = {}

    def begin(self, total: int, done: int) -> None:
        """There are so many runs, and so many of them were done before."""
        self._progress.reset(self._all, total=total - done)
        self.say(f"{total} runs, {done} of them done already" if done else f"{total} runs")

    def update(self, name: str, what: str, share: float) -> None:
        """A run is so far: training, or evaluating."""
        if name not in self._running:
            self._running[name] = (self._progress.add_task(name, total=1.0), 0.0)
        task, _ = self._running[name]
        self._progress.update(task, completed=share, description=f"{name}, {what}")
        if what == "training":  # the rest is short
            self._running[name] = (task, share)
        shares = sum(share for _, share in self._running.values())
        self._progress.update(self._all, completed=self._done + shares)

    def end(self, name: str, line: str) -> None:
        """A run has ended; `line` says how."""
        if name in self._running:
            self._progress.remove_task(self._running.pop(name)[0])
        self._done += 1
        self._progress.update(self._all, completed=self._done)
        self.say(f"{name}: {line}")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def runs_bar() -> Iterator[RunsBar]:
    """Bars of several runs."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        speed_estimate_period=600,  # a run's training is even, its beginning is not
        console=Console(stderr=True),
    ) as progress:
        yield RunsBar(progress)


def _progress(what: str, *, is_shown: bool = True) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(what),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, quiet=not is_shown),
    )
