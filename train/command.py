"""What the commands of stage two do, from options as a user types them."""

from collections.abc import Sequence
from pathlib import Path

from bieff.clip import Clip, pick_device
from bieff.features.store import FeatureStore
from bieff.train import config as settings
from bieff.train.loop import prepare, train
from bieff.train.pre_prompt import HAND_CRAFTED
from bieff.train.progress import steps_bar, videos_bar
from bieff.train.protocols import closed, frozen, splits3, trained
from bieff.train.results import Result, save_results
from bieff.train.run import Run, clip_of, newest_run, open_run

RUNS = Path("runs")
FEATURES = Path("features")


def train_run(
    *,
    features: Path,
    out: Path | None,
    frames: int | None,
    preset: str,
    config: Path | None,
    overrides: Sequence[str],
    device: str | None,
    dry_run: bool,
) -> str:
    """Train a run; returns what there is to say of it."""
    frames_setting = [] if frames is None else [f"frames={frames}"]
    chosen = settings.load(config, [*frames_setting, *overrides], base=preset)
    store = FeatureStore.open(features)
    clip = clip_of(store, device=pick_device(device))
    if dry_run:
        trainer = prepare(store, clip, chosen)
        counts = trainer.model.parameter_counts()
        return (
            f"{len(trainer.features):,} videos, {len(store.class_names)} classes, "
            f"{trainer.num_frames} frames, {trainer.num_steps:,} steps\n"
            f"{describe(counts, clip)}"
        )
    folder = out or _free(RUNS / store.path.resolve().name)
    with steps_bar("training") as watch:
        run = train(store, clip, chosen, folder, watch=watch)
    return (
        f"trained {run.record['steps']:,} steps on {run.record['videos']:,} videos in "
        f"{run.record['seconds']:.0f} s\n{describe(run.record['parameters'], clip)}\n"
        f"run: {run.path}"
    )


def describe(counts: dict[str, int], clip: Clip) -> str:
    """Tunable parameters by part, beside the frozen ones."""
    parts = ", ".join(
        f"{name} {_millions(n)}" for name, n in counts.items() if n and name != "total"
    )
    whole = sum(p.numel() for p in clip.model.parameters())
    return (
        f"tunable parameters: {_millions(counts['total'])} ({parts or 'none'}); "
        f"frozen CLIP: {_millions(whole)}, both towers and the token table"
    )


def evaluate_closed(
    *, run: Path | None, features: Path | None, template: str | None, device: str | None
) -> list[Result]:
    """Evaluate a run on the `val` partition, beside frozen CLIP."""
    chosen = newest_run(RUNS) if run is None else open_run(run)
    store = FeatureStore.open(features or Path(chosen.record["store"]))
    return _evaluate(chosen, store, template, device, is_closed=True)


def evaluate_zero_shot(
    *,
    name: str,
    run: Path | None,
    features: Path | None,
    template: str | None,
    device: str | None,
) -> list[Result]:
    """Evaluate a run on the test splits of a set it was not trained on."""
    chosen = newest_run(RUNS) if run is None else open_run(run)
    store = FeatureStore.open(features or FEATURES / name)
    return _evaluate(chosen, store, template, device, is_closed=False)


def _evaluate(
    run: Run, store: FeatureStore, template: str | None, device: str | None, *, is_closed: bool
) -> list[Result]:
    clip = clip_of(store, device=pick_device(device))
    ours = trained(run, clip, store)
    beside = frozen(clip, store, num_frames=ours.num_frames, template=template or HAND_CRAFTED)
    protocol = closed if is_closed else splits3
    with videos_bar(f"evaluating {store.recipe['data_set']}") as watch:
        results = protocol(store, [ours, beside], watch=watch)
    kind = results[0].protocol
    save_results(run.path / f"{kind}-{store.recipe['data_set']}.json", results)
    return results


def _free(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that is not there."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"
