"""Scores of an evaluation that is under way, on disk until all are there.

    runs/k400/partial/3fa9.../81-1767225600000000000.npz

A folder belongs to one evaluation; its name is a hash of everything that the scores depend on.
A file holds the batches of a few seconds, and is whole or not there.
"""

import io
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float64

from bieff.features.durable import disk_errors, write_atomically

Batch = tuple[int, int, int]
"""Subject, question, and place of its first video: the key of a batch's scores."""

Scored = Mapping[Batch, Float64[np.ndarray, "_ _"]]

SECONDS = 5.0
"""Between two writings; what a kill can cost."""


@dataclass(frozen=True, slots=True)
class KeptScores:
    """A folder of scores; several processes may write to it at the same time."""

    folder: Path

    def read(self) -> dict[Batch, Float64[np.ndarray, "_ _"]]:
        """What earlier processes left."""
        found: dict[Batch, np.ndarray] = {}
        for file in sorted(self.folder.glob("*.npz")):
            try:
                with file.open("rb") as opened, np.load(opened) as parts:
                    read = {name: parts[name] for name in parts.files}
            except (OSError, EOFError, ValueError, BadZipFile):
                continue  # damaged by the disk: these videos are scored again
            for name, values in read.items():
                subject, question, start = map(int, name.split("-"))
                found[subject, question, start] = values
        return found

    def write(self, scored: Scored) -> None:
        """Keep some batches.

        Raises:
            StoreError: If the disk is full or refuses.
        """
        content = io.BytesIO()
        named = {"-".join(map(str, batch)): values for batch, values in scored.items()}
        np.savez(content, allow_pickle=False, **named)
        file = self.folder / f"{os.getpid()}-{time.time_ns()}.npz"
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, content.getvalue())

    def clear(self) -> None:
        """Forget everything: the evaluation is done."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()
