"""A pool of decoding processes that can be killed: a bad video costs itself and nothing else.

decord can hang for ever in native code, and a hostile file can crash the process.  So each
video has a deadline; a process that misses it or dies is replaced, the video is tried once more
in another process with the other decoder, and then recorded as failed.  (Where decord is not
right for the file both attempts are with PyAV: a wrong frame is worse than none.)
"""

import sys
from collections.abc import Iterable, Iterator
from types import TracebackType

from bieff.extract.decode_worker import Setup
from bieff.extract.jobs import Job, Outcome
from bieff.extract.supervisor import Attempt, Supervisor

__all__ = ["DecodePool", "Job", "Outcome"]


class DecodePool:
    """Decodes videos in processes of one thread each; use as a context manager.

    The processes are killed when the pool is closed, and by the kernel if the caller dies.
    Frames lie in memory that the caller shares with nobody any more when they arrive; it is
    free again when no array refers to them.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        deadline: float = 60.0,
        ahead: int | None = None,
        decode: str = "bieff.extract.decode:decode_video",
    ) -> None:
        """Start the processes; they get ready while the caller goes on.

        Args:
            num_workers: Processes, one decoding thread each.
            deadline: Seconds that one attempt at a video may take.
            ahead: Videos beyond `num_workers` that may be waiting, decoded or not, while the
                caller is busy; bounds the memory.  `num_workers` by default.
            decode: The function that decodes, "module:name"; see `DecodeFunction`.
        """
        if num_workers < 1 or not deadline > 0 or (ahead is not None and ahead < 0):
            raise ValueError(
                "expected num_workers >= 1, deadline > 0 and ahead >= 0, "
                f"got {num_workers}, {deadline} and {ahead}"
            )
        self._window = num_workers + (num_workers if ahead is None else ahead)
        self._is_decoding = False
        setup = Setup(decode=decode, module_path=list(sys.path))
        self._supervisor = Supervisor(num_workers, deadline=deadline, setup=setup)

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
        return self._supervisor.pids

    def close(self) -> None:
        """Kill the processes, whatever they are doing, and wait for their end."""
        self._supervisor.close()

    def decode(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Decode videos; yield what became of each, as they complete.

        Jobs are drawn as there is room for them.  One call at a time; a call that is not
        exhausted gives up what is left when its iterator is closed.

        Raises:
            RuntimeError: If the processes do not start, if a job's `choose` fails, or if the
                pool is closed or decoding for another call.
        """
        if self._is_decoding:
            raise RuntimeError("the decoding pool is at work for another call")
        call = self._supervisor.begin_call()
        self._is_decoding = True
        try:
            source = iter(jobs)
            num_inside, has_more = 0, True
            while True:
                while has_more and num_inside < self._window:
                    job = next(source, None)
                    has_more = job is not None
                    if job is not None:
                        self._supervisor.submit(Attempt.first(job, call=call))
                        num_inside += 1
                if num_inside == 0:
                    return
                yield self._supervisor.take()
                num_inside -= 1
        finally:
            self._supervisor.begin_call()
            self._is_decoding = False
