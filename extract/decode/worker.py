"""The inside of a decoding process: take a job, decode, send the frames back, wait again.

It imports neither torch nor open_clip, so it starts in a fraction of a second, and it never
outlives the process that started it.  A message is a pickle behind its length; frames do not
go through the socket but in a file in memory, whose descriptor comes with the length.
"""

import contextlib
import ctypes
import importlib
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float64, Int64, UInt8
from numpy.typing import ArrayLike

from bieff.extract.decode.container import DecodeError, MissingVideoError
from bieff.extract.decode.reader import ChoiceError, Choose, Decoded, Preference
from bieff.extract.decode.segments import Segment, decode_segments
from bieff.extract.decode.source import at_hand
from bieff.extract.sources.tars import Member
from bieff.extract.sources.urls import url_of
from bieff.features.errors import InputError
from bieff.features.schema import Status


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A video to decode, or parts of it."""

    row: int
    """Of the first of several parts; the others have the next."""

    path: str | PathLike[str]
    choose: Choose | None = None
    """Called in the worker, so it must be importable there: best a dataclass of a module."""

    segments: tuple[Segment, ...] = ()
    """By their ends; then they choose."""

    decoder: Preference | None = None
    """Preference, as for `decode_video`; segments are always decoded by PyAV."""

    member: Member | None = None
    """Where it lies in a tar file; found by the pool."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Report:
    """Outcome of a job; a shape says that frames come with it."""

    status: Status
    message: str = ""
    decoder: str = ""
    shape: tuple[int, ...] | None = None
    frame_numbers: Int64[np.ndarray, " n"] | None = None
    times: Float64[np.ndarray, " n"] | None = None
    num_frames: int = 0
    first_frame: int = 0
    seconds: float = 0.0
    is_final: bool = True
    """False where another decoder may do better."""

    is_last: bool = True
    """False where reports of further segments follow, each when the parent asks for it."""

    bug: str | None = None
    """The traceback where the caller's own function failed, not the video."""


class _ChooseFailed(Exception):
    """The caller's `choose` raised; its exception is the cause."""


def main(channel_number: int, parent: int) -> None:
    """Serve one parent over a socket until it hangs up.

    The first message is (decode, deadline, sys.path): the name "module:function" of what
    decodes, called as `decode_video` is, the seconds that it may take beside those for its
    frames, and where the parent finds modules.  The answer None says "ready".

    Args:
        channel_number: Descriptor of the socket.
        parent: Process id of the parent.
    """
    _die_with(parent)
    _die_first()
    os.nice(15)  # the tower's threads wait for each other: decoders take what it leaves
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    channel = socket.socket(fileno=channel_number)
    with channel, contextlib.suppress(EOFError, ConnectionError):
        (name, deadline, sys.path[:]), _ = receive(channel)
        module, _, function = name.partition(":")
        decode = getattr(importlib.import_module(module), function)
        send(channel, pickle.dumps(None))
        while True:
            _serve(channel, decode, deadline)


_PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, also in the middle of decoding.

    Elsewhere than on Linux a worker notices between two videos, by the end of its socket.
    """
    if sys.platform == "linux":
        libc: Any = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before that call
            os._exit(1)


def _die_first() -> None:
    """Have the kernel kill this process before its parent when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")


_BYTES_A_FRAME = 50_000
"""Bytes that are fetched in the time that the parent gives for a frame: 1 MB a second."""


def _serve(channel: socket.socket, decode: Callable[..., Decoded], deadline: float) -> None:
    report: Report | None
    frames = None
    try:
        job, _ = receive(channel)
    except (EOFError, OSError):
        raise
    except Exception as error:  # the caller's `choose` cannot be imported here
        report = _bug(error)
    else:
        report, frames = _at_hand(job, decode, channel, deadline)
    if report is not None:
        send(channel, pickle.dumps(report), frames)


def _at_hand(
    job: Job, decode: Callable[..., Decoded], channel: socket.socket, deadline: float
) -> tuple[Report | None, UInt8[np.ndarray, "n H W 3"] | None]:
    """Decode a job from a file of this machine, which its messages do not name."""
    path, extra, own = os.fspath(job.path), 0, ""

    def told(num_frames: int) -> None:  # so long may it take
        send(channel, pickle.dumps(num_frames + extra))

    def coming(size: int) -> None:
        nonlocal extra
        extra = size // _BYTES_A_FRAME
        told(0)

    def named(report: Report) -> Report:
        name = url_of(path) or path
        if own in ("", path):
            return report
        return replace(report, message=report.message.replace(repr(own), repr(name)))

    try:
        with at_hand(path, job.member, deadline=deadline, coming=coming) as own:
            here = replace(job, path=own)
            if job.segments:
                report, frames = _decode_segments(here, channel, told, named), None
            else:
                report, frames = _decode(here, decode, told)
    except InputError as error:
        report, frames = _report_of(error), None
    return None if report is None else named(report), frames


def _decode(
    job: Job, decode: Callable[..., Decoded], told: Callable[[int], None]
) -> tuple[Report, UInt8[np.ndarray, "n H W 3"] | None]:
    begin = time.perf_counter()
    assert job.choose is not None
    try:
        decoded = decode(os.fspath(job.path), _guarded(job.choose, told), decoder=job.decoder)
    except Exception as error:  # whatever a hostile file provokes costs this one video
        return _report_of(error), None
    return _report(decoded, begin), decoded.frames


def _report(decoded: Decoded, begin: float) -> Report:
    return Report(
        status=Status.SALVAGED if decoded.is_salvaged else Status.OK,
        message=decoded.damage or "",
        decoder=decoded.decoder,
        shape=decoded.frames.shape,
        frame_numbers=decoded.frame_numbers,
        times=decoded.times,
        num_frames=decoded.num_frames,
        first_frame=decoded.first_frame,
        seconds=time.perf_counter() - begin,
    )


def _decode_segments(
    job: Job,
    channel: socket.socket,
    told: Callable[[int], None],
    named: Callable[[Report], Report],
) -> Report | None:
    """Report each segment as it is through; returns what befell the file, for those left."""
    segments = [replace(s, choose=_guarded(s.choose, None)) for s in job.segments]
    begin, left = time.perf_counter(), len(segments)
    try:
        for found in decode_segments(job.path, segments, told=told):
            left -= 1
            if isinstance(found, Decoded):
                report, frames = _report(found, begin), found.frames
            else:
                report, frames = _report_of(found), None
            send(channel, pickle.dumps(named(replace(report, is_last=not left))), frames)
            if left:
                receive(channel)
    except (EOFError, ConnectionError):
        raise
    except Exception as error:  # as above
        return _report_of(error)
    return None


def _guarded(choose: Choose, told: Callable[[int], None] | None) -> Choose:
    def guarded(num_frames: int) -> ArrayLike:
        if told is not None:
            told(num_frames)
        try:
            return choose(num_frames)
        except Exception as error:
            raise _ChooseFailed from error

    return guarded


_LIBRARY_ERRORS = (av.FFmpegError, OSError, MemoryError, OverflowError)
"""Errors that libraries raise at files; PyAV the last at numbers that do not fit."""


def _report_of(error: Exception) -> Report:
    if isinstance(error, MissingVideoError):
        return Report(status=Status.MISSING, message=str(error))
    if isinstance(error, DecodeError):
        return Report(status=Status.CORRUPT, message=str(error))
    if isinstance(error, (_ChooseFailed, ChoiceError)):
        return _bug(error.__cause__ or error)
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, _LIBRARY_ERRORS):
        return Report(status=Status.CORRUPT, message=message, is_final=False)
    frames = traceback.extract_tb(error.__traceback__)
    where = ", ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames)
    message = f"a bug, not the file's fault; please report it: {message} ({where})"
    return Report(status=Status.CRASHED, message=message, is_final=False)


def _bug(error: BaseException) -> Report:
    return Report(status=Status.CORRUPT, bug="".join(traceback.format_exception(error)))


_LENGTH = struct.Struct("<Q")


def send(
    channel: socket.socket, payload: bytes, frames: UInt8[np.ndarray, "n H W 3"] | None = None
) -> None:
    """Send a pickled message, and frames with it.

    Raises:
        OSError: If the other side is gone, or memory for the frames is.
    """
    header = _LENGTH.pack(len(payload))
    if frames is None:
        channel.sendall(header + payload)
        return
    file = anonymous_file("frames")
    try:
        left = np.ascontiguousarray(frames).data.cast("B")
        while left:
            left = left[os.write(file, left) :]
        socket.send_fds(channel, [header], [file])
    finally:
        os.close(file)
    channel.sendall(payload)


def receive(channel: socket.socket) -> tuple[Any, int | None]:
    """Wait for a message; return it, and the descriptor of its frames if it brings any.

    Raises:
        EOFError: If the other side is gone.
    """
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    header, files, _, _ = socket.recv_fds(channel, _LENGTH.size, 1, flags)
    if not header:
        raise EOFError
    header += _receive_exactly(channel, _LENGTH.size - len(header))
    (length,) = _LENGTH.unpack(header)
    return pickle.loads(_receive_exactly(channel, length)), files[0] if files else None


def _receive_exactly(channel: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = channel.recv(min(length - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def map_frames(file: int, shape: tuple[int, ...]) -> UInt8[np.ndarray, "n H W 3"]:
    """The frames in a file that was received, writable; the memory goes with the last view."""
    try:
        size = int(np.prod(shape))
        if os.fstat(file).st_size != size:
            raise EOFError  # the sender died while it wrote
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        pages = mmap.mmap(file, size, flags)
    finally:
        os.close(file)
    return np.frombuffer(pages, dtype=np.uint8).reshape(shape)


def anonymous_file(name: str) -> int:
    """Open a file in memory, without a name in any folder; the descriptor reads and writes."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
