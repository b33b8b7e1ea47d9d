"""Files that are whole or not there, also after a power cut."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bieff.features.errors import StoreError

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
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all."""
    with writing(path) as file:
        file.write(data)


def sync_file(path: Path) -> None:
    """Wait until the file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the folder's entries are on the disk."""
    sync_file(path)


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
                "make room and run the same command again, finished shards are kept"
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
