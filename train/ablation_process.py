"""The runs of an ablation, each in a process of its own: trained, evaluated, saved.

A process each, because its peak of memory is then its own, and two can share two cores.  It
tells its parent how far it is, a JSON object a line; when nobody listens any more it ends.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bieff.features.store import FeatureStore
from bieff.train.checkpoint import StoppedError
from bieff.train.interrupt import stop_requests
from bieff.train.results import load_results, save_results

Tell = Callable[[Mapping[str, Any]], None]

_SECONDS = 0.2
"""Between two reports of progress, and between two looks whether to stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A run to be made, plain JSON."""

    name: str
    out: str
    """Folder of the run."""

    features: str
    zero_shot: Sequence[str]
    """Stores of other classes, to be evaluated on too."""

    config: Mapping[str, Any]
    device: str | None
    threads: int | None
    """Of torch; None: its own choice."""

    command: Sequence[str]


def results_file(folder: Path, store: Path, *, is_closed: bool) -> Path:
    """Where the figures of a run on a store lie."""
    return folder / f"{'closed' if is_closed else 'splits3'}-{store.resolve().name}.json"


def is_evaluated(file: Path, store: FeatureStore) -> bool:
    """Whether a file has figures on this store, not on one that lay there before it."""
    return file.is_file() and load_results(file)[0].store == store.recipe_hash


@runtime_checkable
class Watch(Protocol):
    """Shows how far the runs are."""

    def begin(self, total: int, done: int) -> None:
        """There are so many runs, and so many of them were done before."""

    def update(self, name: str, what: str, share: float) -> None:
        """A run is so far: training, or evaluating."""

    def end(self, name: str, line: str) -> None:
        """A run has ended; `line` says how."""


class RunProcess:
    """The parent's hold on one."""

    def __init__(self, task: Task) -> None:
        """Start it; what it prints, such as why it died, goes to a file beside its folder."""
        self.task = task
        self.what, self.share = "starting", 0.0
        """What it is doing, and how much of that is done."""

        self._problem: str | None = None
        self._is_told = False
        self._log = Path(f"{task.out}.log")
        self._read, write = os.pipe()
        entry = f"from bieff.train.ablation_process import main; main({write})"
        threads = {} if task.threads is None else {"OMP_NUM_THREADS": str(task.threads)}
        with self._log.open("wb") as printed:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", entry],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=printed,
                pass_fds=[write],
                process_group=0,  # Ctrl-C in a terminal reaches the parent alone
                env={**os.environ, **threads},
            )
        os.close(write)
        self._unread = b""
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write(json.dumps(asdict(task)).encode())

    def fileno(self) -> int:
        """For a selector: what it tells."""
        return self._read

    def hear(self) -> bool:
        """Read what it told since; false: it has ended."""
        data = os.read(self._read, 1 << 16)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "problem" in message:
                self._problem = message["problem"]
            else:
                self.what, self.share = message["what"], message["share"]
        return bool(data)

    def stop(self) -> None:
        """Ask it to save and end; once is enough."""
        if not self._is_told:
            self._is_told = True
            self._process.terminate()

    def end(self, *, kill: bool = False) -> str | None:
        """Wait for its end; returns why its run is not whole, if it is not."""
        if kill:
            self._process.kill()
        code = self._process.wait()
        os.close(self._read)
        if code == 0:
            self._log.unlink()
            return self._problem
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process ended with {how}; {self._log} has what it printed"


def run_all(
    tasks: Sequence[Task],
    *,
    jobs: int,
    watch: Watch,
    ended: Callable[[Task, str | None], None],
) -> None:
    """Do the tasks in processes, some at a time.

    Args:
        tasks: In order.
        jobs: Processes at a time.
        watch: Hears how far each is.
        ended: Called with each task that has ended, and why it failed if it did.

    Raises:
        StoppedError: If it was asked to stop; all runs have saved by then.
    """
    waiting, done = deque(tasks), 0
    running: set[RunProcess] = set()
    with selectors.DefaultSelector() as selector, stop_requests() as is_stopping:
        try:
            while running or (waiting and not is_stopping()):
                while waiting and len(running) < jobs and not is_stopping():
                    process = RunProcess(waiting.popleft())
                    running.add(process)
                    selector.register(process, selectors.EVENT_READ)
                if is_stopping():
                    for process in running:
                        process.stop()
                for process in _ready(selector):
                    if process.hear():
                        watch.update(process.task.name, process.what, process.share)
                        continue
                    selector.unregister(process)
                    running.discard(process)
                    problem = process.end()
                    if problem is None or not is_stopping():
                        done += 1
                        ended(process.task, problem)
        finally:
            for process in running:
                process.end(kill=True)
    if done < len(tasks):
        raise StoppedError(
            f"stopped and saved, {done} of the {len(tasks)} runs left were made; the same "
            "command again goes on"
        )


def _ready(selector: selectors.BaseSelector) -> list[RunProcess]:
    """The processes that have told something, or ended."""
    found = [key.fileobj for key, _ in selector.select(timeout=_SECONDS)]
    return [process for process in found if isinstance(process, RunProcess)]


def main(number: int) -> None:
    """What the process does; `number` is the pipe to its parent."""
    task = Task(**json.loads(sys.stdin.read()))
    from bieff.features.errors import BieffError

    with os.fdopen(number, "w", buffering=1) as pipe:

        def tell(message: Mapping[str, Any]) -> None:
            pipe.write(json.dumps(message) + "\n")

        try:
            work(task, tell)
        except BrokenPipeError:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
            sys.exit("the process that asked for this run has gone")
        except BieffError as error:  # also that it was stopped
            tell({"problem": str(error)})


def work(task: Task, tell: Tell) -> None:
    """Train the run or go on with it, and evaluate it; what is done already is kept."""
    from bieff.clip import pick_device
    from bieff.train.config import TrainConfig
    from bieff.train.loop import train_or_go_on
    from bieff.train.protocols import closed, frozen, splits3, trained
    from bieff.train.run import clip_of

    device = pick_device(task.device)
    store = FeatureStore.open(Path(task.features))
    often = _Throttled(tell)
    run = train_or_go_on(
        store,
        clip_of(store, device=device),
        TrainConfig.from_dict(task.config),
        Path(task.out),
        watch=lambda done, total, loss: often("training", done, total),
        command=task.command,
    )
    for place in (task.features, *task.zero_shot):
        is_closed = place == task.features
        file = results_file(run.path, Path(place), is_closed=is_closed)
        store = FeatureStore.open(Path(place))
        if is_evaluated(file, store):
            continue
        clip = clip_of(store, device=device)
        ours = trained(run, clip, store)
        subjects = [ours, frozen(clip, store, num_frames=ours.num_frames)]
        protocol = closed if is_closed else splits3
        watch = partial(often, f"evaluating {store.recipe['data_set']}")
        save_results(file, protocol(store, subjects, watch=watch))


class _Throttled:
    """Tells how far something is, now and then and at its end."""

    def __init__(self, tell: Tell) -> None:
        self._tell, self._told_at = tell, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._told_at >= _SECONDS:
            self._told_at = now
            self._tell({"what": what, "share": done / total})
