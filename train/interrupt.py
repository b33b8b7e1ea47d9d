"""Ctrl-C, and a cluster's SIGTERM: finish the step, save, and say how to go on."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Note the first request to stop instead of dying of it; the second kills as ever.

    Gives a function that says whether there was one.  Outside the main thread, where Python
    handles no signals, there never is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = False
    earlier = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        restore()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: requested
    finally:
        restore()
