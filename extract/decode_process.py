"""The parent's hold on a decoding process: start it, give it a task, hear from it, kill it."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from bieff.extract.decode_worker import Report, Setup
from bieff.extract.shared_frames import anonymous_file, receive, send

_HANG_UP_SECONDS = 10.0
"""Longest that one read or write on a socket may take between two live processes."""


class DecodeProcess:
    """One process that decodes on one thread.

    A program of its own and not a `multiprocessing.Process`: that would import the parent's
    main module again, torch and all, and may not be started from a daemonic parent.
    """

    def __init__(self, setup: Setup) -> None:
        self.task: Any = None
        """What it works on, the pool's to say; None: nothing."""

        self.is_ready = False
        self.began = time.monotonic()
        """When it got its task, or was started."""

        self.channel, theirs = socket.socketpair()
        # what native code prints goes into a file in memory: its last line may say why it died
        self._output = anonymous_file("output")
        fcntl.fcntl(self._output, fcntl.F_SETFL, os.O_APPEND)
        number = theirs.fileno()
        entry = f"from bieff.extract.decode_worker import main; main({number}, {os.getpid()})"
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
        """Process id."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """How long it has been at its task, or at starting."""
        return time.monotonic() - self.began

    def give(self, task: Any, payload: bytes) -> None:
        """Send a pickled task to an idle process.

        Raises:
            OSError: If the process is dead.
        """
        os.ftruncate(self._output, 0)
        self.task, self.began = task, time.monotonic()
        send(self.channel, payload)

    def hear(self) -> tuple[Report | None, int | None]:
        """Receive its report and the file with the frames; None once, when it is ready.

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
