"""The inside of a decoding process: take a task, decode, send the frames back, wait again.

It imports neither torch nor open_clip, so it starts in a fraction of a second, and it never
outlives the process that started it.
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
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import ArrayLike

from bieff.extract.decode.container import DecodeError, MissingVideoError
from bieff.extract.decode.reader import ChoiceError, Choose, Decoded, Preference
from bieff.features.schema import Status

_LENGTH = struct.Struct("<Q")


def anonymous_file(name: str) -> int:
    """Open a file in memory, without a name in any folder; the descriptor reads and writes."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def pack(message: object) -> bytes:
    """Pickle a message by itself, to be sent later."""
    return pickle.dumps(message)


def send(
    channel: socket.socket, message: object, frames: UInt8[np.ndarray, "n H W 3"] | None = None
) -> None:
    """Send a message, pickled or packed already, and frames with it.

    Raises:
        OSError: If the other side is gone, or memory for the frames is.
    """
    payload = message if isinstance(message, bytes) else pack(message)
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


def _receive_exactly(channel: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = channel.recv(min(length - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A video to decode."""

    row: int
    path: str | PathLike[str]
    choose: Choose
    """Called in the worker, so it must be importable there: best a dataclass of a module."""

    decoder: Preference | None = None
    """As for `decode_video`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """What became of a video, after one or two attempts."""

    row: int
    path: str
    status: Status
    frames: UInt8[np.ndarray, "n H W 3"] | None = None
    """Writable; the memory is free again when no array refers to it any more."""

    frame_numbers: Int64[np.ndarray, " n"] | None = None
    """Strictly ascending; one for each of `frames`."""

    num_frames: int = 0
    """Frames of the video that decode; 0 where none was decoded."""

    decoder: str = ""
    """Empty where the process died or hung before it could say."""

    message: str = ""
    """What went wrong, in every attempt; empty where nothing did."""

    attempt: int = 1
    seconds: float = 0.0
    """Of the last attempt: the decoding, or the time until it was given up."""

    def places(self, frame_numbers: ArrayLike) -> Int64[np.ndarray, "..."]:
        """Where in `frames` the frames of these numbers lie; the numbers must be among ours."""
        if self.frame_numbers is None:
            raise LookupError(f"row {self.row} has no frames: {self.message}")
        return np.searchsorted(self.frame_numbers, np.asarray(frame_numbers))


_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """The first message to a worker."""

    decode: str
    """The function that decodes, "module:name"; see `DecodeFunction`."""

    module_path: list[str]
    """`sys.path` of the parent, so that the worker finds the same modules."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One video to decode."""

    path: str
    choose: Choose
    decoder: Preference | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Report:
    """What became of a task; a shape says that frames come with it."""

    status: Status
    message: str = ""
    decoder: str = ""
    shape: tuple[int, ...] | None = None
    frame_numbers: Int64[np.ndarray, " n"] | None = None
    num_frames: int = 0
    seconds: float = 0.0
    is_final: bool = True
    """False where another decoder may do better."""

    bug: str | None = None
    """The traceback where the caller's own function failed, not the video."""


@runtime_checkable
class DecodeFunction(Protocol):
    """What decodes a video; `bieff.extract.decode.reader.decode_video` is one."""

    def __call__(
        self, path: str, choose: Choose, *, decoder: Preference | None = None
    ) -> Decoded:
        """Decode the frames that `choose` picks."""


class _ChooseFailed(Exception):
    """The caller's `choose` raised; its exception is the cause."""


def main(channel_number: int, parent: int) -> None:
    """Serve one parent over a socket until it hangs up.

    Args:
        channel_number: Descriptor of the socket.
        parent: Process id of the parent.
    """
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    channel = socket.socket(fileno=channel_number)
    with channel, contextlib.suppress(EOFError, ConnectionError):
        setup, _ = receive(channel)
        sys.path[:] = setup.module_path
        module, _, name = setup.decode.partition(":")
        decode = getattr(importlib.import_module(module), name)
        send(channel, None)  # ready
        while True:
            _serve(channel, decode)


def _serve(channel: socket.socket, decode: DecodeFunction) -> None:
    try:
        task, _ = receive(channel)
    except (EOFError, OSError):
        raise
    except Exception as error:  # the caller's `choose` cannot be imported here
        send(channel, _bug(error))
        return
    begin = time.perf_counter()
    try:
        decoded = decode(task.path, _guarded(task.choose), decoder=task.decoder)
    except Exception as error:  # whatever a hostile file provokes costs this one video
        send(channel, _report_of(error))
        return
    report = Report(
        status=Status.SALVAGED if decoded.is_salvaged else Status.OK,
        message=(decoded.doubt or "") if decoded.is_salvaged else "",
        decoder=decoded.decoder,
        shape=decoded.frames.shape,
        frame_numbers=decoded.frame_numbers,
        num_frames=decoded.num_frames,
        seconds=time.perf_counter() - begin,
    )
    send(channel, report, decoded.frames)


def _report_of(error: Exception) -> Report:
    if isinstance(error, MissingVideoError):
        return Report(status=Status.MISSING, message=str(error))
    if isinstance(error, DecodeError):
        return Report(status=Status.CORRUPT, message=str(error))
    if isinstance(error, (_ChooseFailed, ChoiceError)):
        return _bug(error.__cause__ or error)
    message = f"{type(error).__name__}: {error}"
    return Report(status=Status.CORRUPT, message=message, is_final=False)


def _bug(error: BaseException) -> Report:
    return Report(status=Status.CORRUPT, bug="".join(traceback.format_exception(error)))


def _guarded(choose: Choose) -> Choose:
    def guarded(num_frames: int) -> ArrayLike:
        try:
            return choose(num_frames)
        except Exception as error:
            raise _ChooseFailed from error

    return guarded


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, also in the middle of decoding.

    Elsewhere than on Linux a worker notices between two videos, by the end of its socket.
    """
    if sys.platform == "linux":
        libc: Any = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before that call
            os._exit(1)
