"""`bieff ablate`: every row of the paper's tables, made by the commands that anybody can type.

    runs/shapes-ablation/
      ablation.md                      the tables, for people; written anew after every run
      ablation.json                    the same for programs, and what the rows have in common
      table-4-baseline-seed-0.toml     the settings of a run
      table-4-baseline-seed-0/         a run folder, shared by all rows of the same settings

A run is `bieff train --config TOML`, `bieff eval`, and `bieff zeroshot` for each other set, in
processes of their own.  What is there already is not made again, so the same command goes on.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bieff.clip import ClipName
from bieff.features.errors import ConfigError, InputError, StoreMismatchError
from bieff.features.files import exclusive, parse_json, read_json, write_atomically
from bieff.features.store import FeatureStore
from bieff.train import config as settings
from bieff.train.config import CHANGE_NOTHING, TrainConfig
from bieff.train.evaluate.lists import test_lists
from bieff.train.evaluate.results import Result, load_results
from bieff.train.experiments.report import PAPER, PAPER_HOURS, as_markdown, spread
from bieff.train.experiments.rows import TITLES, Experiment, Row, experiments_of, rows_of
from bieff.train.fit.loop import stop_requests
from bieff.train.runs.ancestor import Ancestor, after, require_new
from bieff.train.runs.checkpoint import StoppedError
from bieff.train.runs.metrics import METRICS
from bieff.train.runs.run import MAY_DIFFER, RECORD, RESULTS, Run, claim_of, open_run
from bieff.train.text.wording import HAND_CRAFTED

STATE = "ablation.json"
REPORT = "ablation.md"

_SECONDS = 0.2
"""Seconds between two looks at the runs."""


@runtime_checkable
class Watch(Protocol):
    """Shows how far the runs are."""

    def begin(self, total: int, done: int) -> None:
        """There are so many runs, and so many of them were done before."""

    def update(self, name: str, what: str, share: float) -> None:
        """A run is so far: training, or evaluating."""

    def end(self, name: str, line: str) -> None:
        """A run has ended; `line` says how."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """An ablation as it was asked for."""

    store: FeatureStore
    zero_shot: Sequence[FeatureStore]
    tables: Sequence[int]
    seeds: int
    base: TrainConfig
    out: Path
    device: str | None
    named: ClipName | None = None
    """The CLIP that the user named; None takes the store's if it is here already."""

    start: Run | None = None
    """The run that every row starts from."""

    ancestors: Sequence[Ancestor] = ()
    """That run, and those before it."""

    command: Sequence[str] = ()

    @property
    def stores(self) -> dict[str, FeatureStore]:
        """Stores by the names of their folders, the closed set's first."""
        return {store.path.resolve().name: store for store in (self.store, *self.zero_shot)}

    def cannot(self, row: Row) -> str | None:
        """Reason why the store or the start does not serve a row, if it does not."""
        config = row.config(self.base)
        if self.start and (other := self.start.differences(config, besides=MAY_DIFFER)):
            return f"cannot start from run {self.start.id}: {'; '.join(other)}"
        wanted = config.frames or int(self.store.recipe["frames"])
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
        return experiments_of(row, self.base, self.seeds, int(self.store.recipe["frames"]))

    def figures(self, name: str) -> dict[str, dict[str, Result]]:
        """Results of a run's last weights and of frozen CLIP, by store as it is by now."""
        file = self.out / name / RESULTS
        found = load_results(file) if file.is_file() else []
        return {
            place: {
                result.model: result
                for result in found
                if result.store == store.recipe_hash
                and result.protocol == self._protocol(store)
                and result.weights != "best"
                and result.names is None
                and result.blend is None
                and (result.run is not None or result.template == HAND_CRAFTED)
            }
            for place, store in self.stores.items()
        }

    def is_done(self, name: str) -> bool:
        """True of a run that is finished and evaluated on every store."""
        return self._is_trained(name) and not self._left(name)

    def commands(self, run: Experiment) -> Iterator[tuple[str, list[str]]]:
        """Commands of a run, each as soon as the one before is done, and what it is for."""
        folder = self.out / run.name
        where = [] if self.device is None else ["--device", self.device]
        where += [] if self.named is None else self.named.words
        if not self._is_trained(run.name):
            resume = ["--resume"] if (folder / RECORD).is_file() else []
            if not resume and folder.is_dir():
                shutil.rmtree(folder)  # left by a process that died before there was a run
            file = self.out / f"{run.name}.toml"
            write_atomically(file, run.toml().encode())
            words = ["train", "--features", str(self.store.path), "--out", str(folder)]
            if self.start and not resume:
                words += ["--from", str(self.start.path)]
            yield "training", [*words, "--config", str(file), *resume, *where]
        for store in self._left(run.name):
            data_set = str(store.recipe["data_set"])
            words = ["zeroshot", data_set, "--run", str(folder)]
            if store is self.store:
                words = ["eval", str(folder)]
            asked = ["--features", str(store.path), "--protocol", self._protocol(store)]
            yield f"evaluating {data_set}", [*words, *asked, *where]

    def _is_trained(self, name: str) -> bool:
        folder = self.out / name
        return (folder / RECORD).is_file() and bool(open_run(folder).record["finished"])

    def _left(self, name: str) -> list[FeatureStore]:
        figures = self.figures(name)
        return [
            store
            for place, store in self.stores.items()
            if not {"bieff", "frozen"} <= figures[place].keys()
        ]

    def _protocol(self, store: FeatureStore) -> str:
        return "closed" if store is self.store else "splits3"


# --- processes


def make_run(
    asked: Ablation,
    run: Experiment,
    *,
    threads: int | None,
    is_stopping: Callable[[], bool],
    watch: Watch,
) -> Generator[None, None, str | None]:
    """Type a run's commands, one after the other; yields while one is at work.

    Returns why the run is not whole, or None.  Closed early, it ends the process at once.
    """
    folder = asked.out / run.name
    log = Path(f"{folder}.log")
    for what, words in asked.commands(run):
        with log.open("wb") as printed:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bieff.cli", *words],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                process_group=0,  # Ctrl-C in a terminal reaches the parent alone
                preexec_fn=_stop_with_parent,
                env=os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
            )
        try:
            while process.poll() is None:
                if is_stopping():
                    process.terminate()
                share = _share_trained(folder) if what == "training" else 1.0
                watch.update(run.name, what, share)
                yield
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            return _why(process.returncode, log)
        if is_stopping():
            return "stopped"
    log.unlink(missing_ok=True)
    return None


_LIBRARY = ctypes.CDLL(None)


def _stop_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies, at which training saves."""
    if hasattr(_LIBRARY, "prctl"):
        _LIBRARY.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG


def _share_trained(folder: Path) -> float:
    try:
        steps = int(open_run(folder).record["steps"])
        last = parse_json((folder / METRICS).read_text().rsplit("\n", 2)[-2])
        return min(1.0, (int(last["step"]) + 1) / steps)
    except (InputError, OSError, LookupError, TypeError, ValueError):
        return 0.0  # it has not begun


def _why(code: int, log: Path) -> str:
    _, error, sentence = log.read_text(errors="replace").rpartition("\nError: ")
    if code == 1 and error:
        log.unlink()
        return sentence.strip()
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"its process ended with {how}; {log} has what it printed"


def run_all(
    asked: Ablation,
    runs: Sequence[Experiment],
    *,
    jobs: int,
    watch: Watch,
    ended: Callable[[str, str | None], None],
) -> None:
    """Make the runs in processes, some at a time; several have one thread each.

    Calls `ended` with each run that has ended, and why it failed if it did.

    Raises:
        StoppedError: If it was asked to stop; all runs have saved by then.
    """
    waiting, done = deque(runs), 0
    working: dict[str, Generator[None, None, str | None]] = {}
    threads = 1 if jobs > 1 else None
    with stop_requests() as is_stopping:
        try:
            while working or (waiting and not is_stopping()):
                while waiting and len(working) < jobs and not is_stopping():
                    run = waiting.popleft()
                    working[run.name] = make_run(
                        asked, run, threads=threads, is_stopping=is_stopping, watch=watch
                    )
                for name, work in list(working.items()):
                    try:
                        next(work)
                    except StopIteration as end:
                        del working[name]
                        if end.value is None or not is_stopping():
                            done += 1
                            ended(name, end.value)
                time.sleep(_SECONDS)
        finally:
            for work in working.values():
                work.close()
    if done < len(runs):
        raise StoppedError(
            f"stopped and saved, {done} of the {len(runs)} runs left were made; the same "
            "command again goes on"
        )


# --- the whole


def ablate(
    features: Path,
    *,
    tables: Sequence[int],
    seeds: int,
    watch: Watch,
    overrides: Sequence[str] = (),
    start: Path | None = None,
    zero_shot: Sequence[str] = (),
    out: Path | None = None,
    jobs: int = 1,
    device: str | None = None,
    model: str | None = None,
    pretrained: str | None = None,
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
        start: A finished run that every row starts from; rows of another model are left out.
        zero_shot: Stores beside `features`, by name, to evaluate every run on too.
        out: Folder of the ablation; `runs/STORE-ablation` by default.
        jobs: Runs at a time, each in a process; with several, each has one thread.
        device: Where they run.
        model: The CLIP, named; None takes the store's if it is here already.
        pretrained: Its weights.
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
    parent = None if start is None else open_run(start)
    asked = Ablation(
        store=store,
        zero_shot=[FeatureStore.open(features.resolve().parent / name) for name in zero_shot],
        tables=tables,
        seeds=seeds,
        base=settings.load(overrides=overrides, base=parent.base if parent else "paper"),
        start=parent,
        ancestors=() if parent is None else parent.lineage(),
        out=out or Path("runs") / f"{features.resolve().name}-ablation",
        device=device,
        named=ClipName.given(model, pretrained),
        command=command,
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    with exclusive(asked.out):
        asked = _with_earlier(asked)
        _require_sets(asked)
        failed: dict[str, str] = {}
        _report(asked, failed)
        runs = dict.fromkeys(run for row in rows_of(tables) for run in asked.experiments(row))
        left = [run for run in runs if not asked.is_done(run.name)]
        watch.begin(len(runs), len(runs) - len(left))

        def ended(name: str, problem: str | None) -> None:
            if problem is not None:
                failed[name] = problem
            watch.end(name, problem or _line(asked, name))
            _report(asked, failed)

        run_all(asked, left, jobs=jobs, watch=watch, ended=ended)
    return asked.out / REPORT, failed


def _with_earlier(asked: Ablation) -> Ablation:
    """The ablation with the tables, seeds and stores of the one that it goes on with.

    Raises:
        ConfigError: If it has other settings.
        StoreMismatchError: If it is of another store.
    """
    file = asked.out / STATE
    if not file.exists():
        return asked
    kinds = {"store_recipe_hash": str, "base": dict, "numbers": list, "seeds": int}
    then = "remove it, and the same command makes it again"
    earlier = read_json(file, {**kinds, "zero_shot": list}, then=then)
    wanted, got = earlier["store_recipe_hash"], asked.store.recipe_hash
    if wanted != got:
        raise StoreMismatchError(
            f"{asked.out} is an ablation on another store: expected recipe {wanted[:12]}, got "
            f"{got[:12]}; choose another --out"
        )
    before = [one["sha256"] for one in earlier.get("ancestors", [])]
    if before != [one.sha256 for one in asked.ancestors]:
        raise StoreMismatchError(
            f"{asked.out} is an ablation that starts from another run, or anew; choose another "
            "--out"
        )
    base = _base(asked.base)
    held = {**_base(TrainConfig()), **earlier["base"]}  # which may lack what is newer
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
        ConfigError: If two have one name, one has no official test lists, or the run to start
            from has seen it.
        StoreMismatchError: If one comes from another CLIP, or that run does.
    """
    names = [store.path.resolve().name for store in (asked.store, *asked.zero_shot)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"--zeroshot: expected stores of different names, got {twice[0]} twice"
        )
    wanted = claim_of(asked.store).fingerprint
    if asked.start and asked.start.clip.fingerprint != wanted:
        raise StoreMismatchError(
            f"--from: run {asked.start.path} is of another CLIP than {asked.store.path}: "
            f"expected fingerprint {wanted[:12]}, got {asked.start.clip.fingerprint[:12]}"
        )
    for store in asked.zero_shot:
        require_new(asked.ancestors, store)
        whole = store.partitions.get("all")
        if whole is None or not test_lists(whole):
            raise ConfigError(
                f"--zeroshot: {store.path} has no official test lists, which runs are "
                "evaluated on; leave it out"
            )
        got = claim_of(store).fingerprint
        if got != wanted:
            raise StoreMismatchError(
                f"--zeroshot: {store.path} comes from another CLIP than {asked.store.path}: "
                f"expected fingerprint {wanted[:12]}, got {got[:12]}; extract it with the same"
            )


def _base(base: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in base.to_dict().items() if name not in CHANGE_NOTHING}


def _report(asked: Ablation, failed: Mapping[str, str]) -> None:
    tables = [
        {
            "table": number,
            "title": TITLES[number],
            "rows": [_row(asked, row, failed) for row in rows_of([number])],
        }
        for number in asked.tables
    ]
    runs = (run.name for row in rows_of(asked.tables) for run in asked.experiments(row))
    done = next((name for name in runs if asked.is_done(name)), None)
    # frozen CLIP's figures stand beside those of every run
    frozen = {} if done is None else asked.figures(done)
    record = None if done is None else open_run(asked.out / done).record
    state = {
        "store": str(asked.store.path.resolve()),
        "store_recipe_hash": asked.store.recipe_hash,
        "zero_shot": [str(store.path.resolve()) for store in asked.zero_shot],
        "ancestors": [asdict(one) for one in asked.ancestors],
        "after": after(asked.ancestors),
        "base": _base(asked.base),
        "seeds": asked.seeds,
        "numbers": list(asked.tables),
        "command": list(asked.command),
        "paper_column": f"{PAPER}: another data set and another CLIP",
        "paper_cost": PAPER_HOURS,
        "deviation": "sample standard deviation over seeds",
        "frozen": {name: of["frozen"].to_dict() for name, of in frozen.items()},
        "tables": tables,
    }
    page = as_markdown(state, list(asked.stores), record)
    write_atomically(asked.out / STATE, (json.dumps(state, indent=1) + "\n").encode())
    write_atomically(asked.out / REPORT, page.encode())


def _row(asked: Ablation, row: Row, failed: Mapping[str, str]) -> dict[str, Any]:
    names = [run.name for run in asked.experiments(row)]
    done = [name for name in names if asked.is_done(name)]
    problems = [f"{name}: {failed[name]}" for name in names if name in failed]
    values = {
        "row": row.name,
        "settings": dict(row.settings),
        "runs": names,
        "runs_done": len(done),
        "problem": asked.cannot(row) or "; ".join(problems) or None,
        "paper_top1": row.paper_top1,
        "paper_top5": row.paper_top5,
    }
    if not done:
        return values
    records = [open_run(asked.out / name).record for name in done]
    figures = [asked.figures(name) for name in done]
    results = {store: [of[store]["bieff"] for of in figures] for store in asked.stores}
    return {
        **values,
        "results": {
            store: {
                "protocol": of_store[0].protocol,
                "top1": spread([result.top1 for result in of_store]),
                "top5": spread([result.top5 for result in of_store]),
            }
            for store, of_store in results.items()
        },
        "parameters": records[0]["parameters"],
        "parameters_with_clip": records[0]["parameters_with_clip"],
        "batch": records[0]["cost"]["batch"],
        "seconds": spread([record["seconds"] for record in records]),
        "peak_memory_bytes": max(record["peak_memory_bytes"] for record in records),
    }


def _line(asked: Ablation, name: str) -> str:
    figures = asked.figures(name).items()
    listed = ", ".join(f"{store} {of['bieff'].top1:.2f}" for store, of in figures)
    seconds = open_run(asked.out / name).record["seconds"]
    return f"top-1 {listed}; {seconds:,.0f} s"
