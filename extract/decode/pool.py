"""A pool of decoding processes that can be killed: a bad video costs itself and nothing else.

decord can hang for ever in native code, and a hostile file can crash the process.  So each
video has a deadline; a process that misses it or dies is replaced, the video is tried once more
in another process with the other decoder, and then recorded as failed.  (Where decord is not
right for the file both attempts are with PyAV: a wrong frame is worse than none.)
"""

import contextlib
import fcntl
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from numpy.typing import ArrayLike

from bieff.extract.decode.worker import Job, Report, anonymous_file, map_frames, receive, send
from bieff.extract.sources.tars import member_at
from bieff.extract.sources.urls import url_of
from bieff.features.schema import Status

__all__ = ["DecodePool", "Job", "Outcome"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """Outcome of a video, after one or two attempts."""

    row: int
    path: str
    status: Status
    frames: UInt8[np.ndarray, "n H W 3"] | None = None
    """Writable; the memory is free again when no array refers to it any more."""

    frame_numbers: Int64[np.ndarray, " n"] | None = None
    """Strictly ascending; one for each of `frames`."""

    times: Float64[np.ndarray, " n"] | None = None
    """Seconds from the first frame to each of `frames`; None where nobody can say."""

    num_frames: int = 0
    """Frames of the video, or of the part of it, that decode; 0 where none was decoded."""

    first_frame: int = 0
    """Frames of the video before this part of it."""

    decoder: str = ""
    """Empty where the process died or hung before it could say."""

    message: str = ""
    """Faults of all attempts, in words; empty where there were none."""

    attempt: int = 1
    seconds: float = 0.0
    """Time of the last attempt: the decoding, or until it was given up."""

    is_last: bool = True
    """False where further segments of the job follow."""

    def places(self, frame_numbers: ArrayLike) -> Int64[np.ndarray, "..."]:
        """Places in `frames` of the frames of these numbers, which must be among ours."""
        if self.frame_numbers is None:
            raise LookupError(f"row {self.row} has no frames: {self.message}")
        return np.searchsorted(self.frame_numbers, np.asarray(frame_numbers))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Attempt:
    """The first or second try at a job."""

    job: Job
    payload: bytes
    """The pickled job, made where the caller sees what cannot be pickled."""

    call: int
    """Call of the pool that it belongs to; results of a call that was given up are dropped."""

    number: int = 1
    history: str = ""
    """Faults of earlier attempts, in words."""

    num_done: int = 0
    """Segments that were delivered."""

    def second(self, message: str) -> "_Attempt":
        """The try after a failure: with the other decoder, if that is right for the file."""
        left = self.job.segments[self.num_done :]
        payload = pickle.dumps(replace(self.job, decoder="other", segments=left))
        return replace(self, payload=payload, number=2, history=message)

    def outcomes(
        self, report: Report, frames: UInt8[np.ndarray, "n H W 3"] | None
    ) -> Iterator[Outcome]:
        """The outcome of a video or a segment; of all segments left if the file failed."""
        count = max(len(self.job.segments), 1)
        places = range(self.num_done, count if report.is_last else self.num_done + 1)
        for place in places:
            yield self._outcome(report, frames, place, is_last=place == count - 1)

    def _outcome(
        self,
        report: Report,
        frames: UInt8[np.ndarray, "n H W 3"] | None,
        place: int,
        *,
        is_last: bool,
    ) -> Outcome:
        return Outcome(
            row=self.job.row + place,
            path=os.fspath(self.job.path),
            status=report.status,
            frames=frames,
            frame_numbers=report.frame_numbers,
            times=report.times,
            num_frames=report.num_frames,
            first_frame=report.first_frame,
            decoder=report.decoder,
            message="; then ".join(filter(None, (self.history, report.message))),
            attempt=self.number,
            seconds=report.seconds,
            is_last=is_last,
        )


START_SECONDS = 120.0
"""Longest that a process may take to start."""

SECONDS_A_FRAME = 0.05
"""Seconds that a frame adds to the deadline: an hour at 30 frames/s may take 90 minutes."""

_BYTES_A_WORKER = 3 * 2**27
"""Bytes of frames that wait or are expected, before another video is begun."""

_MAX_FAILED_STARTS = 3
_LAST_WORDS_SECONDS = 2.0


class DecodePool:
    """Decodes videos in processes of one thread each; use as a context manager.

    The processes are killed when the pool is closed, and by the kernel if the caller dies.
    Frames lie in memory that the caller shares with nobody any more when they arrive; it is
    free again when no array refers to them.  At most two videos a process are waiting, decoded
    or not, while the caller is busy, and fewer where their frames would take too much memory.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        deadline: float = 60.0,
        decode: str = "bieff.extract.decode.reader:decode_video",
    ) -> None:
        """Start the processes; they get ready while the caller goes on.

        Args:
            num_workers: Processes, one decoding thread each.
            deadline: Seconds that one attempt at a video may take, beside `SECONDS_A_FRAME`
                for each frame that it holds.
            decode: The function that decodes, "module:name", called as `decode_video` is.
        """
        if num_workers < 1 or not deadline > 0:
            raise ValueError(
                f"expected num_workers >= 1 and deadline > 0, got {num_workers} and {deadline}"
            )
        self._num_workers = num_workers
        self._deadline = deadline
        self._setup = (decode, deadline, list(sys.path))
        self._is_decoding = False
        # shared with the thread, under the condition
        self._changed = threading.Condition()
        self._pending: deque[_Attempt] = deque()
        self._ready: deque[Outcome | Exception] = deque()
        self._call = 0
        self._most_bytes = _BYTES_A_WORKER * max(num_workers, 4)
        self._largest = 0
        self._is_closing = False
        self._failure: Exception | None = None
        # the thread's own
        self._processes: list[_DecodeProcess] = []
        self._failed_starts = 0
        self._waker, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(
            target=self._mind, name="decode supervisor", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in list(self._processes)]

    def close(self) -> None:
        """Kill the processes, whatever they are doing, and wait for their end."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._wake()
        self._thread.join()
        self._waker.close()
        self._woken.close()

    def decode(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Decode videos; yield what became of each, as they complete.

        Segments of a video come one by one, in their order.  Jobs are drawn as there is room
        for them.  One call at a time; a call that is not exhausted gives up what is left when
        its iterator is closed.

        Raises:
            RuntimeError: If the processes do not start, if a job's `choose` fails, or if the
                pool is closed or decoding for another call.
        """
        if self._is_decoding:
            raise RuntimeError("the decoding pool is at work for another call")
        call = self._begin_call()
        self._is_decoding = True
        try:
            source = iter(jobs)
            num_inside, has_more = 0, True
            while True:
                while has_more and num_inside < 2 * self._num_workers:
                    job = next(source, None)
                    has_more = job is not None
                    if job is not None:
                        if url_of(job.path) is None:
                            job = replace(job, member=member_at(job.path))
                        self._submit(_Attempt(job=job, payload=pickle.dumps(job), call=call))
                        num_inside += 1
                if num_inside == 0:
                    return
                taken = [self._take()]
                num_inside -= taken[0].is_last
                yield taken.pop()  # its frames are to be free as soon as they are used
        finally:
            self._begin_call()
            self._is_decoding = False

    def _begin_call(self) -> int:
        """Forget all that was submitted; return the number for new attempts."""
        with self._changed:
            self._call += 1
            self._pending.clear()
            self._ready.clear()
            return self._call

    def _submit(self, attempt: _Attempt) -> None:
        with self._changed:
            self._pending.append(attempt)
        self._wake()

    def _wake(self) -> None:
        if self._waker.fileno() >= 0:
            self._waker.send(b"x")

    def _take(self) -> Outcome:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._is_closing)
            if not self._ready:
                why = f": {self._failure}" if self._failure else ""
                raise RuntimeError(f"the decoding pool is closed{why}") from self._failure
            result = self._ready.popleft()
        self._wake()  # there is room again
        if isinstance(result, Exception):
            raise result
        return result

    # From here on in the thread.

    def _mind(self) -> None:
        try:
            while not self._is_closing:
                while len(self._processes) < self._num_workers:
                    self._start()
                self._deal()
                for key, _ in self._selector.select(self._patience()):
                    if key.data is None:
                        self._woken.recv(1 << 16)
                    else:
                        self._hear(key.data)
                for process in [p for p in self._processes if p.seconds >= self._limit(p)]:
                    self._give_up(process, Status.TIMEOUT)
        except Exception as error:
            with self._changed:
                self._is_closing, self._failure = True, error
                self._ready.append(error)
                self._changed.notify_all()
        finally:
            for process in self._processes:
                process.end()
            self._processes.clear()
            self._selector.close()

    def _start(self) -> None:
        process = _DecodeProcess(pickle.dumps(self._setup))
        self._processes.append(process)
        self._selector.register(process.channel, selectors.EVENT_READ, process)

    def _limit(self, process: "_DecodeProcess") -> float:
        if not process.is_ready:
            return START_SECONDS
        if process.attempt is None or process.is_paused:
            return float("inf")
        return self._deadline + SECONDS_A_FRAME * process.num_frames

    def _patience(self) -> float | None:
        left = (self._limit(process) - process.seconds for process in self._processes)
        soonest = min(left, default=0.0)  # the last one may just have been given up
        return None if soonest == float("inf") else max(soonest, 0.0)

    def _deal(self) -> None:
        for process in [p for p in self._processes if p.is_paused]:
            self._resume(process)
        idle = [p for p in self._processes if p.is_ready and p.attempt is None]
        for process in idle:
            with self._changed:
                if not self._pending or not self._has_room():
                    return
                attempt = self._pending.popleft()
            try:
                process.give(attempt)
            except OSError:
                self._give_up(process, Status.CRASHED)

    def _resume(self, process: "_DecodeProcess") -> None:
        """Have a process go on with its segments if there is room; end it if unwanted."""
        assert process.attempt is not None
        with self._changed:
            is_wanted = process.attempt.call == self._call
            has_room = not self._ready or self._fits(self._num_busy())
        try:
            if not is_wanted:
                raise BrokenPipeError
            if has_room:
                process.go_on()
        except OSError:
            self._give_up(process, Status.CRASHED)

    def _has_room(self) -> bool:
        """True if another video may be begun, as large as the largest until now.

        One may be where nothing else is under way or waits.
        """
        num_busy = self._num_busy()
        return num_busy + self._num_waiting() == 0 or self._fits(num_busy)

    def _num_busy(self) -> int:
        return sum(p.attempt is not None and not p.is_paused for p in self._processes)

    def _num_waiting(self) -> int:
        """Bytes of the outcomes that nobody has taken yet."""
        return sum(_num_bytes(outcome) for outcome in self._ready)

    def _fits(self, num_busy: int) -> bool:
        return self._num_waiting() + (num_busy + 1) * self._largest <= self._most_bytes

    def _hear(self, process: "_DecodeProcess") -> None:
        if process not in self._processes:
            return
        try:
            report, file = process.hear()
            frames = None
            if report is None:
                self._failed_starts = 0
                return
            if isinstance(report, int):
                process.num_frames = report
                return
            if report.shape is not None and file is not None:
                frames = map_frames(file, report.shape)
        except (EOFError, OSError):
            self._give_up(process, Status.CRASHED)
            return
        attempt, process.attempt = process.attempt, None
        assert attempt is not None
        if report.is_final:
            self._deliver(attempt, report, frames)
            if not report.is_last:
                process.pause(replace(attempt, num_done=attempt.num_done + 1))
        else:
            self._retry(attempt, report)

    def _give_up(
        self, process: "_DecodeProcess", status: Literal[Status.TIMEOUT, Status.CRASHED]
    ) -> None:
        """Kill a process that hangs or is dead; the next round starts another."""
        self._selector.unregister(process.channel)
        self._processes.remove(process)
        seconds, limit = process.seconds, self._limit(process)
        words = process.end(patience=_LAST_WORDS_SECONDS if status == Status.CRASHED else 0.0)
        if not process.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise RuntimeError(f"decoding processes do not start: {words}")
        elif process.attempt is not None:
            message = f"decoding crashed ({words})"
            if status == Status.TIMEOUT:
                message = f"decoding took longer than {limit:g} s"
            report = Report(status=status, message=message, seconds=seconds)
            self._retry(process.attempt, report)

    def _retry(self, attempt: _Attempt, report: Report) -> None:
        if attempt.number > 1:
            self._deliver(attempt, report, None)
            return
        with self._changed:
            if attempt.call == self._call:
                self._pending.appendleft(attempt.second(report.message))

    def _deliver(
        self, attempt: _Attempt, report: Report, frames: UInt8[np.ndarray, "n H W 3"] | None
    ) -> None:
        results: list[Outcome | Exception] = list(attempt.outcomes(report, frames))
        self._largest = max(self._largest, *map(_num_bytes, results))
        if report.bug is not None:
            results = [
                RuntimeError(
                    f"choosing frames of row {attempt.job.row} failed in the worker:\n"
                    f"{report.bug}"
                )
            ]
        with self._changed:
            if attempt.call == self._call:
                self._ready += results
                self._changed.notify_all()


def _num_bytes(result: Outcome | Exception) -> int:
    frames = result.frames if isinstance(result, Outcome) else None
    return 0 if frames is None else frames.nbytes


_HANG_UP_SECONDS = 10.0
"""Longest that one read or write on a socket may take between two live processes."""


class _DecodeProcess:
    """One process that decodes on one thread.

    A program of its own and not a `multiprocessing.Process`: that would import the parent's
    main module again, torch and all, and may not be started from a daemonic parent.
    """

    def __init__(self, setup: bytes) -> None:
        self.attempt: _Attempt | None = None
        """The attempt that it works on; None while it waits."""

        self.num_frames = 0
        """Frames of the video, as far as it has told."""

        self.is_ready = False
        self.is_paused = False
        """True while it waits to be asked for its next segment."""

        self.began = time.monotonic()
        """When it got its attempt, or was started."""

        self.channel, theirs = socket.socketpair()
        # what native code prints goes into a file in memory: its last line may say why it died
        self._output = anonymous_file("output")
        fcntl.fcntl(self._output, fcntl.F_SETFL, os.O_APPEND)
        number = theirs.fileno()
        entry = f"from bieff.extract.decode.worker import main; main({number}, {os.getpid()})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", entry],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=[number],
                process_group=0,  # Ctrl-C in a terminal reaches the parent alone
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self.channel.settimeout(_HANG_UP_SECONDS)
        send(self.channel, setup)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def seconds(self) -> float:
        """Time since its attempt, or its start, began."""
        return time.monotonic() - self.began

    def give(self, attempt: _Attempt) -> None:
        """Send an attempt to an idle process.

        Raises:
            OSError: If the process is dead.
        """
        os.ftruncate(self._output, 0)
        self.attempt, self.began, self.num_frames = attempt, time.monotonic(), 0
        send(self.channel, attempt.payload)

    def pause(self, attempt: _Attempt) -> None:
        """Let its time stand still; it has delivered a segment and waits."""
        self.attempt, self.is_paused = attempt, True
        self._paused = time.monotonic()

    def go_on(self) -> None:
        """Ask for its next segment.

        Raises:
            OSError: If the process is dead.
        """
        self.is_paused = False
        self.began += time.monotonic() - self._paused
        send(self.channel, pickle.dumps(None))

    def hear(self) -> tuple[Report | int | None, int | None]:
        """Receive its report and the file with the frames; before it, how many there are.

        None comes once, when it is ready.

        Raises:
            EOFError: If it is dead.
            OSError: If it is dead, or hangs in the middle of a report.
        """
        report, file = receive(self.channel)
        self.is_ready = True
        return report, file

    def end(self, *, patience: float = 0.0) -> str:
        """Kill it, and return how it ended and the last line it printed.

        Args:
            patience: Seconds to let a dying process finish its last words.
        """
        self.channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:  # the kernel does not let it go: a hanging disk
            code = -signal.SIGKILL
        words = self._last_words(code)
        os.close(self._output)
        return words

    def _last_words(self, code: int) -> str:
        ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        lines = os.pread(self._output, 1 << 16, 0).decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{ending}: {last[:300]}" if last else ending
