"""The inside of a decoding process: take a task, decode, send the frames back, wait again.

It imports neither torch nor open_clip, so it starts in a fraction of a second, and it never
outlives the process that started it.
"""

import contextlib
import ctypes
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from numpy.typing import ArrayLike

from bieff.extract.container import DecodeError, MissingVideoError
from bieff.extract.decode import ChoiceError, Choose, Decoded, Preference
from bieff.extract.shared_frames import receive, send
from bieff.features.schema import Status

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
    """What decodes a video; `bieff.extract.decode.decode_video` is one."""

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
