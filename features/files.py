"""Files that are whole or not there, also after a power cut; locks of processes, and memory."""

import ctypes
import errno
import fcntl
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from bieff.features.errors import InputError, StoreError

PARTIAL = ".partial"
"""Suffix of a file that is being written."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends without an error.

    Readers see the old file or the new one, never a part.  What a killed writer leaves is
    overwritten by the next.
    """
    partial = path.with_name(path.name + PARTIAL)
    with disk_errors(path):
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all."""
    with writing(path) as file:
        file.write(data)


def parse_json(text: str | bytes, **options: Any) -> Any:
    """What JSON of anybody's says; `options` as for `json.loads`.

    Raises:
        ValueError: If it is none, or nests deeper than Python reads.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def read_json(path: Path, kinds: Mapping[str, type], *, then: str) -> dict[str, Any]:
    """A JSON object with values of these kinds, by key; it may hold others.

    Raises:
        InputError: If the file is torn, or of another version; ends with what to do then.
    """
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {path}: {reason}; {then}") from None
    held = found if isinstance(found, dict) else {}
    for key, kind in kinds.items():
        if not isinstance(held.get(key), kind):
            raise InputError(
                f"cannot read {path}: it has no {key!r} of type {kind.__name__}, and is "
                f"damaged or from another version; {then}"
            )
    return held


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk under `path` into one sentence.

    Raises:
        StoreError: In place of the operating system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreError(
                f"no space to write {path}: {error.strerror}, {_free(path):,} bytes are free; "
                "make room and run the same command again, what is finished is kept"
            ) from error
        if error.errno in _REFUSED:
            raise StoreError(
                f"cannot write {path}: {error.strerror}; choose another --out or change the "
                "folder's permissions"
            ) from error
        raise


def require_space(path: Path, num_bytes: int) -> None:
    """Refuse to begin what will not fit, where running out in the middle cannot be survived.

    Raises:
        StoreError: If the disk of `path` has less.
    """
    if _free(path) < num_bytes:
        raise StoreError(
            f"no space to write {path}: {num_bytes:,} bytes are needed, {_free(path):,} are "
            "free; make room or choose another disk"
        )


def _free(path: Path) -> int:
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(there).free


@contextmanager
def waiting_for(path: Path) -> Iterator[None]:
    """Wait for the only right to change a file, which others hold for milliseconds."""
    with disk_errors(path), path.with_suffix(".lock").open("a") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


LOCK_NAME = ".lock"

# A record lock does not stop a second one of the same process: remember ours.
_held: set[Path] = set()
_held_guard = threading.Lock()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the only right to write below `folder`.

    Raises:
        StoreError: If another process, or another part of this one, holds it.
    """
    key = folder.resolve()
    with _held_guard:
        if key in _held:
            raise StoreError(f"{folder} is already being written by this process")
        _held.add(key)
    try:
        with disk_errors(folder):
            file = (folder / LOCK_NAME).open("a+b", buffering=0)
        with file:
            _acquire(file, folder)
            with disk_errors(folder):
                file.truncate(0)
                file.write(json.dumps(_holder()).encode())
            try:
                yield
            finally:
                file.truncate(0)
    finally:
        with _held_guard:
            _held.discard(key)


def _acquire(file: BinaryIO, folder: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise StoreError(
                f"cannot lock {folder}: {error.strerror}; keep the store on a file system "
                "with locks"
            ) from error
        file.seek(0)
        raise StoreError(
            f"{folder} is being written by {_describe(file.read())}; wait for it or stop it"
        ) from None


def _holder() -> dict[str, str | int]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _describe(text: bytes) -> str:
    try:
        holder = parse_json(text)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        # it is about to write who it is, or just left
        return "another process"


_PARTITION_BYTES = 2**32
"""Bytes of the locks' file, none ever written, that stand for the shards of a partition."""


class ShardLocks:
    """The shards of one store that this process is writing.

    One descriptor for all: closing any descriptor of the file would free every lock in it.
    """

    def __init__(self, store: Path, partitions: tuple[str, ...]) -> None:
        self._partitions = partitions
        self._file = os.open(store / ".shards", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

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


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_KEPT = 2**30
"""Bytes of the largest block that is kept, and of how much is kept at the end of the heap."""


def keep_freed_memory() -> bool:
    """Have glibc keep the large blocks that arrays leave behind; True if it will.

    By default it gives blocks of some MiB back at once, and each new one costs a page fault
    every 4 KiB: on a CPU a quarter of the time of the visual tower, a third of that of drawing
    a clip (docs/LOG.md).  Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # glibc before 2.35 refuses a threshold this high; trimming alone would then make it worse
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
