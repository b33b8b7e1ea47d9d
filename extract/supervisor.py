"""The thread that keeps decoding processes at work: deals, listens, kills, replaces.

It runs beside the caller, so that processes go on, and hanging ones are killed, while the
caller is busy with a batch.
"""

import os
import selectors
import socket
import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from bieff.extract.decode_process import DecodeProcess
from bieff.extract.decode_worker import Report, Setup, Task
from bieff.extract.jobs import Job, Outcome
from bieff.extract.shared_frames import map_frames, pack
from bieff.features.schema import Status

START_SECONDS = 120.0
"""Longest that a process may take to start."""

_MAX_FAILED_STARTS = 3
_LAST_WORDS_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Attempt:
    """The first or second try at a job."""

    job: Job
    payload: bytes
    """The pickled task."""

    call: int
    """Which call of the pool it belongs to; results of a call that was given up are dropped."""

    number: int = 1
    history: str = ""
    """What went wrong before."""

    @classmethod
    def first(cls, job: Job, *, call: int) -> "Attempt":
        """The first try.  Pickles the job here, where the caller sees what cannot be."""
        task = Task(path=os.fspath(job.path), choose=job.choose, decoder=job.decoder)
        return cls(job=job, payload=pack(task), call=call)

    def second(self, message: str) -> "Attempt":
        """The try after a failure: with the other decoder, if that is right for the file."""
        task = Task(path=os.fspath(self.job.path), choose=self.job.choose, decoder="other")
        return replace(self, payload=pack(task), number=2, history=message)

    def outcome(self, report: Report, frames: UInt8[np.ndarray, "n H W 3"] | None) -> Outcome:
        """What a report says of it."""
        return Outcome(
            row=self.job.row,
            path=os.fspath(self.job.path),
            status=report.status,
            frames=frames,
            frame_numbers=report.frame_numbers,
            num_frames=report.num_frames,
            decoder=report.decoder,
            message="; then ".join(filter(None, (self.history, report.message))),
            attempt=self.number,
            seconds=report.seconds,
        )


class Supervisor:
    """Decoding processes and the thread that minds them."""

    def __init__(self, num_workers: int, *, deadline: float, setup: Setup) -> None:
        self._num_workers = num_workers
        self._deadline = deadline
        self._setup = setup
        self._changed = threading.Condition()
        self._pending: deque[Attempt] = deque()
        self._ready: deque[Outcome | Exception] = deque()
        self._call = 0
        self._is_closing = False
        self._failure: Exception | None = None
        self._processes: list[DecodeProcess] = []
        self._failed_starts = 0
        self._waker, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(
            target=self._mind, name="decode supervisor", daemon=True
        )
        self._thread.start()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in list(self._processes)]

    def begin_call(self) -> int:
        """Forget all that was submitted; return the number for new attempts."""
        with self._changed:
            self._call += 1
            self._pending.clear()
            self._ready.clear()
            return self._call

    def submit(self, attempt: Attempt) -> None:
        """Have a job done."""
        with self._changed:
            self._pending.append(attempt)
        self._wake()

    def take(self) -> Outcome:
        """Wait for the next result.

        Raises:
            RuntimeError: If the supervisor was closed, or cannot go on.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._is_closing)
            if not self._ready:
                why = f": {self._failure}" if self._failure else ""
                raise RuntimeError(f"the decoding pool is closed{why}") from self._failure
            result = self._ready.popleft()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Kill the processes, whatever they are doing, and wait for their end."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._wake()
        self._thread.join()
        self._waker.close()
        self._woken.close()

    def _wake(self) -> None:
        if self._waker.fileno() >= 0:
            self._waker.send(b"x")

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
        process = DecodeProcess(self._setup)
        self._processes.append(process)
        self._selector.register(process.channel, selectors.EVENT_READ, process)

    def _limit(self, process: DecodeProcess) -> float:
        if not process.is_ready:
            return START_SECONDS
        return self._deadline if process.task is not None else float("inf")

    def _patience(self) -> float | None:
        soonest = min(self._limit(process) - process.seconds for process in self._processes)
        return None if soonest == float("inf") else max(soonest, 0.0)

    def _deal(self) -> None:
        idle = [p for p in self._processes if p.is_ready and p.task is None]
        for process in idle:
            with self._changed:
                if not self._pending:
                    return
                attempt = self._pending.popleft()
            try:
                process.give(attempt, attempt.payload)
            except OSError:
                self._give_up(process, Status.CRASHED)

    def _hear(self, process: DecodeProcess) -> None:
        if process not in self._processes:
            return
        try:
            report, file = process.hear()
            frames = None
            if report is not None and report.shape is not None and file is not None:
                frames = map_frames(file, report.shape)
        except (EOFError, OSError):
            self._give_up(process, Status.CRASHED)
            return
        attempt, process.task = process.task, None
        if report is None:
            self._failed_starts = 0
        elif report.is_final:
            self._deliver(attempt, report, frames)
        else:
            self._retry(attempt, report)

    def _give_up(
        self, process: DecodeProcess, status: Literal[Status.TIMEOUT, Status.CRASHED]
    ) -> None:
        """Kill a process that hangs or is dead; the next round starts another."""
        self._selector.unregister(process.channel)
        self._processes.remove(process)
        seconds = process.seconds
        words = process.end(patience=_LAST_WORDS_SECONDS if status == Status.CRASHED else 0.0)
        if not process.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise RuntimeError(f"decoding processes do not start: {words}")
        elif process.task is not None:
            message = f"decoding crashed ({words})"
            if status == Status.TIMEOUT:
                message = f"decoding took longer than {self._deadline:g} s"
            self._retry(process.task, Report(status=status, message=message, seconds=seconds))

    def _retry(self, attempt: Attempt, report: Report) -> None:
        if attempt.number > 1:
            self._deliver(attempt, report, None)
            return
        with self._changed:
            if attempt.call == self._call:
                self._pending.appendleft(attempt.second(report.message))

    def _deliver(
        self, attempt: Attempt, report: Report, frames: UInt8[np.ndarray, "n H W 3"] | None
    ) -> None:
        result: Outcome | Exception = attempt.outcome(report, frames)
        if report.bug is not None:
            result = RuntimeError(
                f"choosing frames of row {attempt.job.row} failed in the worker:\n{report.bug}"
            )
        with self._changed:
            if attempt.call == self._call:
                self._ready.append(result)
                self._changed.notify_all()
