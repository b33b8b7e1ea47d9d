"""What goes from the scheduler to whoever writes a shard, and what comes back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One shard to write."""

    partition: str
    shard: int
    retry_failed: bool = False
    """Of a finished shard: decode again only the videos that failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """How far a shard is; each update replaces the one before."""

    partition: str
    shard: int
    videos: int
    bad: int
    """Of the videos, those that have failed."""

    images: int
    """Squares given to the tower."""

    seconds: float
    waiting: float
    """Of the seconds, those in which the tower had nothing to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A shard that is written."""

    task: Task
    counts: Mapping[str, int]
    """All its videos by status, in lower case."""


Watch = Callable[[Update], None]
