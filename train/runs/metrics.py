"""Figures measured while training: metrics.jsonl for programs, events for TensorBoard."""

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from bieff.features.files import disk_errors

METRICS = "metrics.jsonl"

SHOWN_SECONDS = 10
"""Until TensorBoard can see a figure, at most."""


class Metrics(AbstractContextManager["Metrics"]):
    """Appends lines; the same figures go to metrics.jsonl and to TensorBoard.

    No line holds a time, so that a run that was stopped has the lines of one that was not.
    """

    def __init__(self, folder: Path, *, step: int = 0, size: int = 0) -> None:
        """Open the files of a run, as they were at its checkpoint after so many steps.

        TensorBoard forgets what it was told of later ones, metrics.jsonl keeps `size` bytes.
        """
        file = folder / METRICS
        file.touch()
        os.truncate(file, size)
        self._lines = file.open("a", encoding="utf-8")
        self._events = SummaryWriter(
            str(folder),
            purge_step=step,
            flush_secs=SHOWN_SECONDS,
            filename_suffix=f".{step:09}",  # the name is else that of the second
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write figures of a step."""
        with disk_errors(Path(self._lines.name)):
            self._lines.write(json.dumps({"step": step, **values}) + "\n")
            self._lines.flush()
        for tag, value in values.items():
            self._events.add_scalar(tag, value, step)

    def size(self) -> int:
        """Bytes of metrics.jsonl, which are on the disk when this returns."""
        os.fsync(self._lines.fileno())
        return os.fstat(self._lines.fileno()).st_size

    def __exit__(self, *exc_info: Any) -> None:
        """Close both files."""
        self._lines.close()
        self._events.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run, in order."""
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
