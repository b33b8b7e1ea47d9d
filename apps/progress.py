"""Progress of long work: a bar for people, a line a minute for log files."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from bieff.apps.terminal import Console, TextColumn, clean
from bieff.extract.tasks import PartProgress

LINE_SECONDS = 60.0
"""Seconds between two lines where standard error is no terminal."""


class RunProgress:
    """Progress of an extraction: the watcher of `extract`; use as a context manager."""

    def __init__(self, console: rich.console.Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._last_line = time.monotonic()
        self._rows: dict[str, TaskID] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("videos, {task.fields[state]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(self, *error: object) -> None:
        # what went wrong is not said below the bars of what went well
        self._bar.live.transient = error[:1] != (None,)
        self._bar.stop()

    def __call__(self, news: PartProgress | str) -> None:
        """Show how far a partition is, or print a line."""
        if isinstance(news, str):
            _say(self._console, news)
            return
        self._bar.start()
        name = f"{news.data_set} {news.partition}"
        state = f"{news.shards}/{news.num_shards} shards, {news.bad:,} bad, {news.speed}"
        if name not in self._rows:
            self._rows[name] = self._bar.add_task(name, total=news.num_videos, state="")
        self._bar.update(self._rows[name], completed=news.videos, state=state)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self(f"{name}: {news.videos:,} of {news.num_videos:,} videos, {state}")


@contextmanager
def clips_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of clips that are made, gone at its end; call it with (clips made, in all)."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task(what, total=None, visible=False)  # until something is made
        yield lambda done, total: bar.update(row, completed=done, total=total, visible=True)


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
        _say(self._progress.console, line)


@contextmanager
def steps_bar(what: str, *, is_shown: bool = True) -> Iterator[StepsBar]:
    """A bar of training steps, or one that nobody sees."""
    with _progress("steps, loss {task.fields[loss]:.3f},", is_shown=is_shown) as progress:
        yield StepsBar(progress, what)


class VideoLines:
    """A log file's lines in place of a bar: one a minute, with the time that is left."""

    def __init__(self, what: str, console: Console, nouns: str = "videos") -> None:
        self._what, self._console, self._nouns = what, console, nouns
        self._said: tuple[int, float] | None = None

    def __call__(self, done: int, total: int) -> None:
        """Note how far it is."""
        now = time.monotonic()
        # what an earlier process did says nothing of the speed, nor do another video's windows
        if self._said is None or done < self._said[0]:
            self._said = done, now
        before, then = self._said
        if now - then >= LINE_SECONDS:
            self._said = done, now
            left = (total - done) * (now - then) / max(done - before, 1) / 60
            line = (
                f"{self._what}: {done:,} of {total:,} {self._nouns}, about {left:.0f} min left"
            )
            _say(self._console, line)


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
        row = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(row, completed=done, total=total)


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
        _say(self._progress.console, line)


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


def _say(console: rich.console.Console, line: str) -> None:
    console.print(Text(clean(line)), soft_wrap=True)


def _progress(what: str, *, is_shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(what),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, quiet=not is_shown),
    )
