"""One writer of a shard, also after the run that sent it has died.

A run holds the right to write the store (`FeatureStore.exclusive`); but when it is killed, a
worker on another machine goes on with its shard, and the next run may give that shard to
somebody else.  So whoever writes a shard locks one byte of a file beside it.  POSIX record
locks: they end with the process, and hold between machines on file systems that share locks.
"""

import fcntl
import os
from pathlib import Path

FILE = ".shards"

_PARTITION_BYTES = 2**32
"""Bytes of the file, none of them ever written, that stand for the shards of a partition."""


class ShardLocks:
    """The shards of one store that this process is writing.

    One descriptor for all: closing any descriptor of the file would free every lock in it.
    """

    def __init__(self, store: Path, partitions: tuple[str, ...]) -> None:
        self._partitions = partitions
        self._file = os.open(store / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def acquire(self, partition: str, shard: int) -> None:
        """Wait until nobody else writes the shard."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, self._place(partition, shard))

    def release(self, partition: str, shard: int) -> None:
        """Let others write it."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._place(partition, shard))

    def close(self) -> None:
        """Release all."""
        os.close(self._file)

    def _place(self, partition: str, shard: int) -> int:
        return self._partitions.index(partition) * _PARTITION_BYTES + shard
