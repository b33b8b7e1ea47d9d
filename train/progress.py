"""Progress bars of stage two, on standard error; standard output is for results."""

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


@contextmanager
def videos_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of evaluated videos; call it with (videos done, videos in all)."""
    with _progress("videos,") as progress:
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
