"""Progress bars of stage two, on standard error; standard output is for results."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 60.0
"""Between two lines where standard error is no terminal."""


class StepsBar:
    """A bar of training steps; call it with (steps done, steps in all, loss)."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=None, loss=float("nan"))

    def __call__(self, done: int, total: int, loss: float) -> None:
        """Move on."""
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
