"""Error files: `errors/<partition>-<shard>.jsonl`, a line for each video that is not ok."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from bieff.features.durable import sync_folder, write_atomically
from bieff.features.schema import Status, VideoError


def write_errors(path: Path, errors: Sequence[VideoError]) -> None:
    """Replace the error file of a shard; without errors there is none."""
    if errors:
        write_atomically(path, "".join(_line(error) for error in errors).encode())
    elif path.exists():
        path.unlink()
        sync_folder(path.parent)


def read_errors(path: Path) -> list[VideoError]:
    """The errors of a shard, in the order in which they were written."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [_parse(line) for line in lines]


def require_reasons(
    status: UInt8[np.ndarray, " n"], errors: Sequence[VideoError], rows: range
) -> None:
    """Refuse a shard with a video that has no embeddings and no error that says why.

    Raises:
        ValueError: Naming the row; also for an error of another shard.
    """
    explained = {error.row for error in errors}
    if strange := explained - set(rows):
        raise ValueError(
            f"errors: expected rows {rows.start} to {rows.stop - 1}, got {min(strange)}"
        )
    for row, value in zip(rows, status.tolist(), strict=True):
        if not Status(value).usable and row not in explained:
            raise ValueError(f"row {row}: not usable, and no error says why")


def _line(error: VideoError) -> str:
    return json.dumps({**asdict(error), "status": error.status.name.lower()}) + "\n"


def _parse(line: bytes) -> VideoError:
    values = json.loads(line)
    values["status"] = Status[values["status"].upper()]
    return VideoError(**values)
