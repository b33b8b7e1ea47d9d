"""The bytes of a video that is no file of its own: in memory, for as long as it is decoded."""

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from bieff.extract.decode.container import DecodeError, MissingVideoError
from bieff.extract.sources.tars import Member
from bieff.extract.sources.urls import address, file_system, said, url_of

ATTEMPTS = 3
"""Times that an object is fetched, before its video is given up."""

_PART = 1 << 20
_BLOCK = 1 << 22
"""Bytes that are asked for at once; so many have to come in a fifth of the deadline."""

_MOST_IN_MEMORY = 1 << 30
"""Bytes; larger videos lie in a temporary file, which has no name and goes with the process."""


@contextmanager
def at_hand(
    path: str,
    member: Member | None = None,
    *,
    deadline: float,
    coming: Callable[[int], None] = lambda size: None,
) -> Iterator[str]:
    """A file of this machine with the bytes of a video: itself, if it is one.

    Args:
        path: A path, or an address as `url_of` knows it.
        member: Where it lies in a tar file.
        deadline: Seconds; what comes from elsewhere is given up before they are over.
        coming: Called with the bytes that are to be fetched.

    Raises:
        MissingVideoError: If it is not there, or cannot be fetched.
        DecodeError: If its tar file ends within it, or is another one by now.
    """
    if member is not None:
        with _holder(member.size) as (file, name):
            _copy_member(path, member, file)
            yield name
    elif url := url_of(path):
        with contextlib.ExitStack() as stack:
            yield _fetch(url, stack, deadline, coming)
    else:
        yield path


@contextmanager
def _holder(size: int) -> Iterator[tuple[IO[bytes], str]]:
    """An open file and its name."""
    if sys.platform != "linux":
        with tempfile.NamedTemporaryFile() as file:
            yield file, file.name
        return
    in_memory = size <= _MOST_IN_MEMORY
    with (
        os.fdopen(os.memfd_create("video"), "w+b") if in_memory else tempfile.TemporaryFile()
    ) as file:
        yield file, f"/proc/self/fd/{file.fileno()}"


def _copy_member(path: str, member: Member, file: IO[bytes]) -> None:
    try:
        with open(member.tar, "rb") as tar:  # noqa: PTH123 - of text, as `Member` has it
            found = os.fstat(tar.fileno())
            if (found.st_size, found.st_mtime_ns) != member.version:
                raise DecodeError(
                    f"cannot read {path!r}: {member.tar!r} was changed since it was listed; "
                    "run the command again"
                )
            tar.seek(member.offset)
            left = member.size
            while left and (part := tar.read(min(left, _PART))):
                file.write(part)
                left -= len(part)
    except OSError as error:
        raise MissingVideoError(f"cannot read {path!r}: {error}") from None
    if left:
        raise DecodeError(
            f"cannot read {path!r}: {member.tar!r} ends {left:,} bytes before the end of it"
        )
    file.flush()


def _fetch(
    url: str, stack: contextlib.ExitStack, deadline: float, coming: Callable[[int], None]
) -> str:
    """Fetch an object into a file, and return its name."""
    files, failure = file_system(url), ""
    for attempt in range(ATTEMPTS):
        time.sleep(attempt * deadline / 20)
        try:
            with _patience(deadline / 5) as wait, _open(files, url) as object_:
                wait()
                coming(object_.size or 0)
                file, name = stack.enter_context(_holder(object_.size or 0))
                while part := object_.read(_PART):
                    file.write(part)
                    wait()
                file.flush()
                if file.tell() != (object_.size or file.tell()):
                    raise OSError(f"only {file.tell():,} of {object_.size:,} bytes came")
            return name
        except FileNotFoundError:
            raise MissingVideoError(f"no video at {url!r}; check the address") from None
        except Exception as error:  # each file system has errors of its own
            stack.close()
            failure = said(error)
            status = getattr(error, "status", 0)
            if isinstance(error, PermissionError) or 400 <= status < 500:
                break
    raise MissingVideoError(f"cannot fetch {url!r}: {failure}; try again with --retry-failed")


def _open(files: Any, url: str) -> Any:
    return files.open(address(url), "rb", block_size=_BLOCK)


@contextmanager
def _patience(seconds: float) -> Iterator[Callable[[], None]]:
    """Raise a TimeoutError in this thread, the main one, if it waits longer for the next call.

    Libraries have limits of their own, or none; in a signal's handler one holds for all.
    """

    def give_up(*_: object) -> None:
        raise TimeoutError(f"nothing came for {seconds:g} s")

    def wait() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.signal(signal.SIGALRM, give_up)
    try:
        wait()
        yield wait
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
