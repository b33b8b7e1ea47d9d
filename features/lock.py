"""One writer at a time: an advisory lock on a store's folder.

A POSIX record lock: it ends with the process however that dies, child processes do not
inherit it, and it holds between machines on file systems that share locks (NFS, Lustre).
"""

import errno
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from bieff.features.durable import disk_errors
from bieff.features.errors import StoreError

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
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it is about to write who it is, or just left
        return "another process"
