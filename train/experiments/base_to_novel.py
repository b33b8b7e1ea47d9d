"""`bieff base2novel`: few videos of half the classes, evaluated on both halves.

The lists are those of a split (`shots.py`).  Base classes are the half that occurs more often
in the training list, ties by label; of an odd number the base gets one more.  A draw is another
choice of videos and another seed of training.  Base videos are told apart among base classes,
novel ones among novel classes, of which training has seen neither a video nor a name.

    runs/hmdb51-base2novel/
      base2novel.json       the figures
      draw-0/               a run folder, with base.json and novel.json
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bieff.apps.progress import steps_bar, videos_bar
from bieff.clip import Clip, ClipName, pick_device
from bieff.features.errors import ConfigError
from bieff.features.files import write_atomically
from bieff.features.schema import UNLABELLED, Status
from bieff.features.store import FeatureStore
from bieff.train import config as settings
from bieff.train.evaluate.results import Result, load_results, save_results
from bieff.train.evaluate.scoring import closed, frozen, trained
from bieff.train.fit.few_shot import draw_shots, evaluation_view, split_lists, training_view
from bieff.train.fit.loop import train_or_go_on
from bieff.train.runs.run import Run, clip_of

PROTOCOL = "base2novel"
HALVES = ("base", "novel")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Of one model: means over draws in percent, population standard deviations, their mean."""

    model: str
    base: float
    base_std: float
    novel: float
    novel_std: float
    harmonic: float
    """Harmonic mean of the two means."""

    @classmethod
    def of(cls, model: str, base: Sequence[float], novel: Sequence[float]) -> "Figures":
        """Of the accuracies of each draw."""
        means = statistics.fmean(base), statistics.fmean(novel)
        return cls(
            model=model,
            base=means[0],
            base_std=statistics.pstdev(base),
            novel=means[1],
            novel_std=statistics.pstdev(novel),
            harmonic=harmonic_mean(*means),
        )


def harmonic_mean(base: float, novel: float) -> float:
    """2 / (1 / base + 1 / novel); 0 where one is 0."""
    return 0.0 if min(base, novel) == 0 else 2 * base * novel / (base + novel)


def halves(store: FeatureStore, split: str | None) -> tuple[list[int], list[int]]:
    """Labels of the base and of the novel classes, each in their order.

    Raises:
        ConfigError: If there is a single class.
    """
    listed, _ = split_lists(store, split)
    labels = store.partitions[listed.partition].labels[listed.rows]
    labels = labels[labels != UNLABELLED]
    number = len(store.class_names)
    if number < 2:
        raise ConfigError(f"base2novel needs two classes, {store.path} has {number}")
    counts = np.bincount(labels, minlength=number)
    often = np.argsort(-counts, kind="stable").tolist()
    middle = (number + 1) // 2
    return sorted(often[:middle]), sorted(often[middle:])


def base2novel(
    features: Path,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    shots: int,
    draws: int,
    split: str | None = None,
    model: str | None = None,
    pretrained: str | None = None,
    device: str | None = None,
    command: Sequence[str] = (),
) -> list[Figures]:
    """Train and evaluate every draw; the same call again goes on.

    Args:
        features: A store with official splits, or with `train` and `val`.
        overrides: `name=value` of settings.
        out: Folder; `runs/STORE-base2novel` by default.
        shots: Training videos a base class.
        draws: How many; draw i has the seed of the settings plus i.
        split: Official split; None takes the first.
        model: The CLIP, named; None takes the store's if it is here already.
        pretrained: Its weights.
        device: Where to train.
        command: What the user typed, for the record.

    Returns:
        Figures of ours and of frozen CLIP.

    Raises:
        ConfigError: If an option does not fit the store.
        BieffError: As `train` does; also if `out` holds runs of other settings.
    """
    if draws < 1:
        raise ConfigError(f"draws must be positive, got {draws}")
    config = settings.load(overrides=overrides)
    store = FeatureStore.open(features)
    out = out or Path("runs") / f"{features.resolve().name}-{PROTOCOL}"
    classes = dict(zip(HALVES, halves(store, split), strict=True))
    named = ClipName.given(model, pretrained)
    clip = clip_of(store, device=pick_device(device), named=named)
    found: dict[str, list[list[Result]]] = {half: [] for half in HALVES}
    for draw in range(draws):
        chosen = draw_shots(store, shots=shots, split=split, seed=draw, classes=classes["base"])
        with steps_bar(f"draw {draw}") as bar:
            bar.say(chosen.text())
            run = train_or_go_on(
                training_view(store, chosen),
                clip,
                replace(config, seed=config.seed + draw),
                out / f"draw-{draw}",
                watch=bar,
                command=command,
                shots=chosen.to_dict(),
            )
        for half in HALVES:
            view = evaluation_view(store, split, classes=classes[half])
            found[half].append(_evaluate(run, clip, view, half))
    figures = _figures(found)
    names = {half: [store.class_names[i] for i in chosen] for half, chosen in classes.items()}
    _save(out, figures, found, shots=shots, split=split, classes=names)
    return figures


def _evaluate(run: Run, clip: Clip, view: FeatureStore, half: str) -> list[Result]:
    """The figures of a run on one half, kept beside it; of videos that are usable by now."""
    file = run.path / f"{half}.json"
    status = view.partitions["val"].status()
    usable = int(np.isin(status, [Status.OK, Status.SALVAGED]).sum())
    if not file.exists() or load_results(file)[0].n_evaluated != usable:
        ours = trained(run, clip, view)
        subjects = [ours, frozen(clip, view, num_frames=ours.num_frames)]
        with videos_bar(f"{run.id}, evaluating {half}") as watch:
            results = closed(view, subjects, watch=watch)
        save_results(
            file, [replace(result, protocol=f"{PROTOCOL}-{half}") for result in results]
        )
    return load_results(file)


def _figures(found: dict[str, list[list[Result]]]) -> list[Figures]:
    models = [result.model for result in found["base"][0]]
    return [
        Figures.of(model, *([draw[index].top1 for draw in found[half]] for half in HALVES))
        for index, model in enumerate(models)
    ]


def _save(
    out: Path,
    figures: Sequence[Figures],
    found: dict[str, list[list[Result]]],
    **asked: Any,
) -> None:
    record = {
        "protocol": PROTOCOL,
        **asked,
        "draws": len(found["base"]),
        "harmonic": "of the means over draws",
        "deviation": "population standard deviation over draws",
        "figures": [asdict(line) for line in figures],
        "results": {
            half: [[result.to_dict() for result in draw] for draw in draws]
            for half, draws in found.items()
        },
    }
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(out / f"{PROTOCOL}.json", text.encode())
