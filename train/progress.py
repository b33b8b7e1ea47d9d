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


@contextmanager
def steps_bar(what: str) -> Iterator[Callable[[int, int, float], None]]:
    """A bar of training steps; call it with (steps done, steps in all, loss)."""
    with _progress("steps, loss {task.fields[loss]:.3f},") as progress:
        task = progress.add_task(what, total=None, loss=float("nan"))

        def watch(done: int, total: int, loss: float) -> None:
            progress.update(task, completed=done, total=total, loss=loss)

        yield watch


@contextmanager
def videos_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of evaluated videos; call it with (videos done, videos in all)."""
    with _progress("videos,") as progress:
        task = progress.add_task(what, total=None)

        def watch(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield watch


def _progress(what: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(what),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
