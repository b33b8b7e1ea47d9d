"""`bieff train`, from options as a user types them."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from bieff.apps.progress import steps_bar
from bieff.clip import Clip, ClipName, pick_device
from bieff.extract.datasets.files import Folder
from bieff.extract.datasets.lists import read_list
from bieff.features.class_names import LabelIndex
from bieff.features.errors import ConfigError, InputError, StoreError
from bieff.features.schema import Status
from bieff.features.store import FeatureStore
from bieff.train import config as settings
from bieff.train.distributed import current, joined
from bieff.train.evaluate.lists import split_lists
from bieff.train.fit.cost import slow_text
from bieff.train.fit.few_shot import FewShotDraw, FewShotOptions
from bieff.train.fit.loop import train
from bieff.train.fit.step import prepare
from bieff.train.runs.ancestor import Ancestor, after
from bieff.train.runs.run import Run, clip_of, lineage, newest_run, open_run

RUNS = Path("runs")
FEATURES = Path("features")


def train_run(
    *,
    features: Path | None = None,
    out: Path | None = None,
    frames: int | None = None,
    preset: str | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    dry_run: bool = False,
    model: str | None = None,
    pretrained: str | None = None,
    resume: bool = False,
    command: Sequence[str] = (),
    few: FewShotOptions | None = None,
    start: Path | None = None,
    shots_list: Path | None = None,
) -> str:
    """Train a run, or go on with one; returns what there is to say of it.

    One that starts from the run in `start` has its settings but where others are asked for.
    `shots_list` names the videos to train on, of the split that `few` names, if any.

    Raises:
        BieffError: If an option, the store, its CLIP or the run is not as it must be.
    """
    if resume and dry_run:
        raise ConfigError("--resume and --dry-run contradict each other; leave one out")
    if resume and (few is not None or shots_list is not None):
        raise ConfigError("--resume goes on with the run's own videos; leave --shots out")
    if resume and start is not None:
        raise ConfigError("--resume goes on with the run's own weights; leave --from out")
    if (
        few is not None
        and shots_list is not None
        and (few.shots, few.seed, few.same_as) != (None,) * 3
    ):
        raise ConfigError(
            "--shots-list names the videos; leave --shots, --draw and --same-shots out"
        )
    if frames is not None:
        if any(text.partition("=")[0].strip() == "frames" for text in overrides):
            raise ConfigError("frames are given by --frames and by --set; leave one out")
        overrides = [f"frames={frames}", *overrides]
    earlier = None
    if resume:
        earlier = newest_run(RUNS, finished=False) if out is None else open_run(out)
        features = features or Path(earlier.record["store"])
    parent = None if start is None else open_run(start)
    base: str | settings.TrainConfig = preset or settings.DEFAULT_PRESET
    if earlier is not None and preset is None and config is None:
        base = earlier.config
    if parent is not None and preset is None:
        base = parent.base
    chosen = settings.load(config, overrides, base=base)
    if features is None:
        raise ConfigError("no store is named; add --features, such as features/k400")
    store = FeatureStore.open(features)
    if earlier is not None:
        shots = FewShotDraw.of_run(earlier)
    elif shots_list is not None:
        shots = shots_of_list(store, shots_list, split=None if few is None else few.split)
    else:
        shots = None if few is None else few.draw(store)
    with joined(pick_device(device)) as where:
        loaded = clip_of(store, device=where, named=ClipName.given(model, pretrained))
        ancestors = () if parent is None else lineage(parent, loaded, chosen)
        if earlier is not None:
            ancestors = earlier.ancestors
        if dry_run:
            return _plan(store, loaded, chosen, shots, ancestors)
        folder = earlier.path if earlier else out or free(RUNS / store.path.resolve().name)
        with steps_bar("training", is_shown=current().writes) as bar:
            run = train(
                store,
                loaded,
                chosen,
                folder,
                watch=bar,
                say=bar.say,
                resume=earlier,
                command=command,
                shots=shots,
                ancestors=ancestors,
            )
        return _summary(run, loaded) if current().writes else ""


def shots_of_list(store: FeatureStore, file: Path, *, split: str | None) -> FewShotDraw:
    """The videos of a list, such as the few-shot lists that ViFi-CLIP published.

    A line is a path and a label, in any form that `bieff extract` takes.  The class is the
    store's: the list's own numbers may begin anew, as those of base classes do, but each must
    mean one class.  Videos that the store could not use are left out.

    Raises:
        InputError: If a video is on the test list, or the labels are not those of the store.
        StoreError: If a label has no usable video.
    """
    (partition, listed), (test_part, test) = split_lists(store, split)
    status, names = partition.status(), store.class_names
    train_rows = {partition.videos[row].path: row for row in listed.rows.tolist()}
    if len(train_rows) < len(listed.rows):
        raise InputError(
            f"list {file}: {store.path} has several rows of one file, which a path does not "
            "tell apart; draw with --shots"
        )
    test_paths = [test_part.videos[row].path for row in test.rows.tolist()]
    train, tested = (Folder(file, dict.fromkeys(p, 0)) for p in (train_rows, test_paths))
    index = LabelIndex(names, source=str(store.path))
    meant: dict[int | str, int] = {}
    shots: dict[int, set[str]] = {}
    lines = read_list(file)
    for line in lines:
        where, fitting = f"list {file}, line {line.line}", train.fitting(line.path)
        if len(fitting) > 1:
            raise InputError(
                f"{where}: {line.path!r} may be {fitting[0]!r} or {fitting[1]!r}; write paths "
                "that tell them apart"
            )
        if not fitting and tested.fitting(line.path):
            raise InputError(
                f"{where}: {line.path!r} is on the test list of {store.path}; name the split "
                "that the list is of with --split"
            )
        if not fitting or not Status(status[row := train_rows[fitting[0]]]).usable:
            continue
        label = int(partition.labels[row])
        if line.label is not None:
            known = index.find(line.label) if isinstance(line.label, str) else label
            means = meant.setdefault(line.label, -1 if known is None else known)
            if means != label or (len({*meant.values()}) < len(meant)):
                raise InputError(
                    f"{where}: label {line.label!r} is not that of {names[label]!r}, which "
                    f"{line.path!r} shows in {store.path}; is it the list of this data set?"
                )
        shots.setdefault(label, set()).add(partition.videos[row].id)
    lost = {str(line.label) for line in lines if line.label is not None} - {*map(str, meant)}
    if lost or not shots:
        raise StoreError(
            f"list {file}: {store.path} has no usable training video of label "
            f"{min(lost, default='any')!r}; is it the list of this data set and split?"
        )
    return FewShotDraw(
        store=store.recipe_hash,
        split=(split or "1") if partition.name == "all" else None,
        shots=max(map(len, shots.values())),
        seed=None,
        videos={names[label]: sorted(shots[label]) for label in sorted(shots)},
    )


def _plan(
    store: FeatureStore,
    clip: Clip,
    config: settings.TrainConfig,
    shots: FewShotDraw | None,
    ancestors: Sequence[Ancestor],
) -> str:
    trainer = prepare(store, clip, config, shots=shots, ancestors=ancestors)
    with trainer.batches:
        lines = [
            f"{len(trainer.features):,} videos, {len(trainer.class_names)} classes, "
            f"{trainer.num_frames} frames, {trainer.num_steps:,} steps",
            trainer.features.text(),
            f"starts from {ancestors[0].run}, after {after(ancestors)}" if ancestors else "",
            slow_text(trainer) or "",
            describe(trainer.model.parameter_counts(), clip),
        ]
    return "\n".join(filter(None, lines))


def _summary(run: Run, clip: Clip) -> str:
    record = run.record
    lines = [
        f"trained {record['steps']:,} steps on {record['videos']:,} videos in "
        f"{record['seconds']:.0f} s",
        describe(record["parameters"], clip),
    ]
    if record["evaluation"] is not None:
        figures, best = record["evaluation"], record["best"]
        lines.append(
            f"val top-1 {figures['val_top1']:.2f}, top-5 {figures['val_top5']:.2f}; best "
            f"{best['val_top1']:.2f} after {best['steps']:,} steps"
        )
    lines.append(f"run: {run.path}")
    if (shots := FewShotDraw.of_run(run)) is not None:
        path = shlex.quote(str(run.path))
        lines += [shots.text(), f"`bieff eval {path}` evaluates it on the whole test list"]
    return "\n".join(lines)


def describe(counts: dict[str, int], clip: Clip) -> str:
    """Tunable parameters by part, beside the frozen ones."""
    parts = ", ".join(
        f"{name} {millions(n)}" for name, n in counts.items() if n and name != "total"
    )
    whole = sum(p.numel() for p in clip.model.parameters())
    return (
        f"tunable parameters: {millions(counts['total'])} ({parts or 'none'}); "
        f"frozen CLIP: {millions(whole)}, both towers and the token table"
    )


def free(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that is not there."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def millions(count: int) -> str:
    """A count of parameters, in millions where it is large."""
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"
