"""`bieff ablate`: every row of the paper's tables, trained and evaluated by one command.

    runs/shapes-ablation/
      ablation.md                      the tables, for people; written anew after every run
      ablation.json                    the same for programs, and what the rows have in common
      table-4-baseline-seed-0/         a run folder, shared by all rows of the same settings
        closed-shapes.json             its figures, beside frozen CLIP's
        splits3-shapes-unseen.json

Rows that are the same settings share their runs; the same command again goes on.
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
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bieff.features.errors import ConfigError, StoreMismatchError
from bieff.features.files import exclusive, write_atomically
from bieff.features.store import FeatureStore
from bieff.train import config as settings
from bieff.train.config import CHANGE_NOTHING, TrainConfig
from bieff.train.evaluate.lists import test_lists
from bieff.train.evaluate.results import Result, load_results, save_results
from bieff.train.experiments.report import RowRuns, as_dict, as_markdown
from bieff.train.experiments.rows import (
    TITLES,
    Experiment,
    Row,
    distinct,
    experiments_of,
    rows_of,
)
from bieff.train.fit.loop import stop_requests
from bieff.train.runs.checkpoint import StoppedError
from bieff.train.runs.run import RECORD, open_run

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
        entry = f"from bieff.train.experiments.ablation import main; main({write})"
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
    from bieff.train.evaluate.scoring import closed, frozen, splits3, trained
    from bieff.train.fit.loop import train_or_go_on
    from bieff.train.runs.run import clip_of

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


STATE = "ablation.json"
REPORT = "ablation.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """What was asked for."""

    store: FeatureStore
    zero_shot: Sequence[FeatureStore]
    tables: Sequence[int]
    seeds: int
    base: TrainConfig
    out: Path
    device: str | None
    command: Sequence[str] = ()

    @property
    def stores(self) -> dict[str, FeatureStore]:
        """By name of their folders, the closed set's first."""
        return {store.path.resolve().name: store for store in (self.store, *self.zero_shot)}

    @property
    def frames(self) -> int:
        """T of the store."""
        return int(self.store.recipe["frames"])

    def cannot(self, row: Row) -> str | None:
        """Why the store does not serve a row, if it does not."""
        wanted = row.config(self.base).frames or self.frames
        for name, store in self.stores.items():
            frames = int(store.recipe["frames"])
            if frames % wanted:
                which = "the store" if store is self.store else name
                return f"needs {wanted} frames, {which} has {frames}"
        return None

    def experiments(self, row: Row) -> list[Experiment]:
        """The runs of a row; none where the store does not serve it."""
        if self.cannot(row):
            return []
        return experiments_of(row, self.base, self.seeds, self.frames)

    def is_done(self, experiment: Experiment) -> bool:
        """Whether a run is finished and evaluated on every store, as it is by now."""
        folder = self.out / experiment.name
        if not (folder / RECORD).is_file() or not open_run(folder).record["finished"]:
            return False
        files = self.result_files(folder)
        return all(is_evaluated(files[name], store) for name, store in self.stores.items())

    def result_files(self, run: Path) -> dict[str, Path]:
        """Where the figures of a run lie, by store."""
        return {
            name: results_file(run, store.path, is_closed=store is self.store)
            for name, store in self.stores.items()
        }

    def task(self, experiment: Experiment, threads: int | None) -> Task:
        """A run for a process."""
        return Task(
            name=experiment.name,
            out=str(self.out / experiment.name),
            features=str(self.store.path),
            zero_shot=[str(store.path) for store in self.zero_shot],
            config=experiment.config.to_dict(),
            device=self.device,
            threads=threads,
            command=list(self.command),
        )


def ablate(
    features: Path,
    *,
    tables: Sequence[int],
    seeds: int,
    watch: Watch,
    overrides: Sequence[str] = (),
    zero_shot: Sequence[str] = (),
    out: Path | None = None,
    jobs: int = 1,
    device: str | None = None,
    command: Sequence[str] = (),
) -> tuple[Path, Mapping[str, str]]:
    """Train and evaluate the rows of some tables; returns the report, and which runs failed.

    SIGINT or SIGTERM let running runs save; the same call again goes on with them.

    Args:
        features: A store with `train` and `val`.
        tables: Numbers of the paper's tables.
        seeds: Runs a row, of the seeds from the base's on.
        watch: Shows how far it is.
        overrides: `name=value` of what rows do not set.
        zero_shot: Stores beside `features`, by name, to evaluate every run on too.
        out: Folder of the ablation; `runs/STORE-ablation` by default.
        jobs: Runs at a time, each in a process; with several, each has one thread.
        device: Where they run.
        command: What the user typed, for the record.

    Raises:
        ConfigError: If an option does not fit, or `out` holds an ablation of other settings.
        StoreMismatchError: If `out` holds one of another store, or stores do not go together.
        StoppedError: If it was asked to stop.
    """
    for name, value in (("seeds", seeds), ("jobs", jobs)):
        if value < 1:
            raise ConfigError(f"{name} must be positive, got {value}")
    store = FeatureStore.open(features)
    asked = Ablation(
        store=store,
        zero_shot=[FeatureStore.open(features.resolve().parent / name) for name in zero_shot],
        tables=tables,
        seeds=seeds,
        base=settings.load(overrides=overrides),
        out=out or Path("runs") / f"{features.resolve().name}-ablation",
        device=device,
        command=command,
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    with exclusive(asked.out):
        asked = _with_earlier(asked)
        _require_sets(asked)
        failed: dict[str, str] = {}
        _report(asked, failed)
        runs = list(distinct(run for row in rows_of(tables) for run in asked.experiments(row)))
        left = [run for run in runs if not asked.is_done(run)]
        watch.begin(len(runs), len(runs) - len(left))
        threads = 1 if jobs > 1 else None
        tasks = [asked.task(run, threads) for run in left]

        def ended(task: Task, problem: str | None) -> None:
            if problem is not None:
                failed[task.name] = problem
            watch.end(task.name, problem or _line(asked, task.name))
            _report(asked, failed)

        run_all(tasks, jobs=jobs, watch=watch, ended=ended)
    return asked.out / REPORT, failed


def _with_earlier(asked: Ablation) -> Ablation:
    """What was asked for, and the tables, seeds and stores of an ablation that goes on.

    Raises:
        ConfigError: If it has other settings.
        StoreMismatchError: If it is of another store.
    """
    file = asked.out / STATE
    if not file.exists():
        return asked
    earlier = json.loads(file.read_text())
    wanted, got = earlier["store_recipe_hash"], asked.store.recipe_hash
    if wanted != got:
        raise StoreMismatchError(
            f"{asked.out} is an ablation on another store: expected recipe {wanted[:12]}, got "
            f"{got[:12]}; choose another --out"
        )
    held, base = _base(TrainConfig.from_dict(earlier["base"])), _base(asked.base)
    changed = [
        f"{name}: it has {held[name]!r}, asked for {base[name]!r}"
        for name in base
        if base[name] != held[name]
    ]
    if changed:
        raise ConfigError(
            f"{asked.out} is an ablation with other settings; choose another --out:\n  "
            + "\n  ".join(changed)
        )
    known = {store.path.resolve() for store in asked.zero_shot}
    more = [Path(path) for path in earlier["zero_shot"] if Path(path).resolve() not in known]
    return replace(
        asked,
        tables=[table for table in TITLES if table in {*earlier["numbers"], *asked.tables}],
        seeds=max(asked.seeds, earlier["seeds"]),
        zero_shot=[*asked.zero_shot, *map(FeatureStore.open, more)],
    )


def _require_sets(asked: Ablation) -> None:
    """Find out now, not when a run is trained, that a store is none to evaluate it on.

    Raises:
        ConfigError: If two have one name, or one has no official test lists.
        StoreMismatchError: If one comes from another CLIP.
    """
    names = [store.path.resolve().name for store in (asked.store, *asked.zero_shot)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"--zeroshot: expected stores of different names, got {twice[0]} twice"
        )
    wanted = asked.store.recipe["clip"]["fingerprint"]
    for store in asked.zero_shot:
        whole = store.partitions.get("all")
        if whole is None or not test_lists(whole):
            raise ConfigError(
                f"--zeroshot: {store.path} has no official test lists, which runs are "
                "evaluated on; leave it out"
            )
        got = store.recipe["clip"]["fingerprint"]
        if got != wanted:
            raise StoreMismatchError(
                f"--zeroshot: {store.path} comes from another CLIP than {asked.store.path}: "
                f"expected fingerprint {wanted[:12]}, got {got[:12]}; extract it with the same"
            )


def _base(base: TrainConfig) -> dict[str, Any]:
    """The settings that numbers depend on."""
    return {name: value for name, value in base.to_dict().items() if name not in CHANGE_NOTHING}


def _report(asked: Ablation, failed: Mapping[str, str]) -> None:
    """Write both reports of what there is by now."""
    rows = [_row_runs(asked, row, failed) for row in rows_of(asked.tables)]
    frozen = _frozen(asked)
    seeds = range(asked.base.seed, asked.base.seed + asked.seeds)
    state = {
        "store": str(asked.store.path.resolve()),
        "store_recipe_hash": asked.store.recipe_hash,
        "zero_shot": [str(store.path.resolve()) for store in asked.zero_shot],
        "base": _base(asked.base),
        "seeds": asked.seeds,
        "numbers": list(asked.tables),
        "command": list(asked.command),
        **as_dict(rows, frozen),
    }
    write_atomically(asked.out / STATE, (json.dumps(state, indent=1) + "\n").encode())
    write_atomically(asked.out / REPORT, as_markdown(rows, frozen, seeds).encode())


def _row_runs(asked: Ablation, row: Row, failed: Mapping[str, str]) -> RowRuns:
    runs = asked.experiments(row)
    done = [asked.out / run.name for run in runs if asked.is_done(run)]
    problems = [f"{run.name}: {failed[run.name]}" for run in runs if run.name in failed]
    figures = [_figures(asked, folder) for folder in done]
    return RowRuns(
        row=row,
        names=[run.name for run in runs],
        records=[open_run(folder).record for folder in done],
        results={name: [by_store[name] for by_store in figures] for name in asked.stores},
        problem=asked.cannot(row) or "; ".join(problems) or None,
    )


def _frozen(asked: Ablation) -> dict[str, Result]:
    """Figures of frozen CLIP on each store, which every run has beside its own."""
    for row in rows_of(asked.tables):
        for run in asked.experiments(row):
            if asked.is_done(run):
                return _figures(asked, asked.out / run.name, model="frozen")
    return {}


def _figures(asked: Ablation, folder: Path, *, model: str = "bieff") -> dict[str, Result]:
    """What a run came to, by store."""
    return {
        name: next(result for result in load_results(file) if result.model == model)
        for name, file in asked.result_files(folder).items()
    }


def _line(asked: Ablation, name: str) -> str:
    folder = asked.out / name
    figures = _figures(asked, folder)
    listed = ", ".join(f"{store} {result.top1:.2f}" for store, result in figures.items())
    return f"top-1 {listed}; {open_run(folder).record['seconds']:,.0f} s"
