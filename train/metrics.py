"""What is measured while training: metrics.jsonl for programs, events for TensorBoard."""

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bieff.train.event_file import EVENTS, EventFile

METRICS = "metrics.jsonl"


class Metrics(AbstractContextManager["Metrics"]):
    """Appends lines; the same figures go to both files.

    No line holds a time, so that a run that was stopped has the lines of one that was not.
    """

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        """Open the files of a run, cut back to what they were at its checkpoint.

        Args:
            folder: Of the run.
            sizes: Bytes to keep of each file, by name; 0 of one that is not named.
        """
        self._folder = folder
        for name in (METRICS, EVENTS):
            with (folder / name).open("ab") as file:
                file.truncate(sizes.get(name, 0))
        self._lines = (folder / METRICS).open("a", encoding="utf-8")
        self._events = EventFile(folder / EVENTS)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write figures of a step."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        self._events.add(step, dict(values))

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, which are on the disk when this returns."""
        os.fsync(self._lines.fileno())
        return {name: (self._folder / name).stat().st_size for name in (METRICS, EVENTS)}

    def __exit__(self, *exc_info: Any) -> None:
        """Close both files."""
        self._lines.close()
        self._events.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run, in order."""
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
