"""`bieff ablate`: every row of the paper's tables, trained and evaluated by one command.

    runs/shapes-ablation/
      ablation.md                      the tables, for people; written anew after every run
      ablation.json                    the same for programs, and what the rows have in common
      table-4-baseline-seed-0/         a run folder, shared by all rows of the same settings
        closed-shapes.json             its figures, beside frozen CLIP's
        splits3-shapes-unseen.json

Rows that are the same settings share their runs; the same command again goes on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bieff.features.durable import write_atomically
from bieff.features.errors import ConfigError, StoreMismatchError
from bieff.features.lock import exclusive
from bieff.features.store import FeatureStore
from bieff.train import config as settings
from bieff.train.ablation_process import Task, Watch, is_evaluated, results_file, run_all
from bieff.train.ablation_report import RowRuns, as_dict, as_markdown
from bieff.train.ablation_rows import (
    TITLES,
    Experiment,
    Row,
    distinct,
    experiments_of,
    rows_of,
)
from bieff.train.config import CHANGE_NOTHING, TrainConfig
from bieff.train.eval_lists import test_lists
from bieff.train.results import Result, load_results
from bieff.train.run import RECORD, open_run

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
