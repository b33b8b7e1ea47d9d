"""`bieff base2novel`: few videos of half the classes, evaluated on both halves.

Lists and halves are those of `train/evaluate/lists.py`.  A draw is another choice of videos
and another seed of training.  Base videos are told apart among base classes, novel ones among
novel classes, of which training has seen neither a video nor a name.

    runs/hmdb51-base2novel/
      base2novel.json       the figures
      draw-0/               a run folder
"""

import json
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bieff.clip import ClipName, pick_device
from bieff.features.errors import ConfigError
from bieff.features.files import write_atomically
from bieff.features.store import FeatureStore
from bieff.train import config as settings
from bieff.train.evaluate.lists import BASE, NOVEL, halves
from bieff.train.evaluate.results import Result, merge_results, results_of
from bieff.train.evaluate.scoring import evaluate_run
from bieff.train.fit.few_shot import FewShotDraw, draw_shots
from bieff.train.fit.loop import train_or_go_on
from bieff.train.runs.ancestor import after, require_new
from bieff.train.runs.run import RESULTS, clip_of, lineage, open_run

PROTOCOL = "base2novel"
HALVES = {"base": BASE, "novel": NOVEL}
"""Half of the classes -> the protocol that asks about it."""

Bar = Callable[[str], AbstractContextManager[Any]]
"""Name of work -> who watches it: with (steps, steps in all, loss), or (videos, in all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """One model's means over draws in percent, population standard deviations, their mean."""

    model: str
    base: float
    base_std: float
    novel: float
    novel_std: float
    harmonic: float
    """Harmonic mean of the two means."""

    @classmethod
    def of(cls, model: str, base: Sequence[float], novel: Sequence[float]) -> "Figures":
        """Figures from the accuracies of each draw."""
        of_base, of_novel = statistics.fmean(base), statistics.fmean(novel)
        return cls(
            model=model,
            base=of_base,
            base_std=statistics.pstdev(base),
            novel=of_novel,
            novel_std=statistics.pstdev(novel),
            harmonic=2 * of_base * of_novel / ((of_base + of_novel) or 1.0),
        )


def base2novel(
    features: Path,
    *,
    shots: int,
    draws: int,
    steps_bar: Bar,
    videos_bar: Bar,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    split: str | None = None,
    start: Path | None = None,
    blend: float | None = None,
    model: str | None = None,
    pretrained: str | None = None,
    device: str | None = None,
    command: Sequence[str] = (),
    listed: Callable[[FeatureStore], Sequence[FewShotDraw]] | None = None,
) -> list[Figures]:
    """Train and evaluate every draw; the same call again goes on.

    Args:
        features: A store with official splits, or with `train` and `val`.
        shots: Training videos a base class.
        draws: How many; draw i has the seed of the settings plus i.
        steps_bar: Watches training, and has a method `say` for a line.
        videos_bar: Watches evaluating.
        preset: Settings to begin with; None takes those of `start`, or the commands' own.
        overrides: `name=value` of settings.
        out: Folder; `runs/STORE-base2novel` by default.
        split: Official split; None takes the first.
        start: A run to start every draw from.
        blend: Share of the trained weights at evaluation, see `load_model`.
        model: The CLIP, named; None takes the store's if it is here already.
        pretrained: Its weights.
        device: Where to train.
        command: What the user typed, for the record.
        listed: Gives the draws, of the same classes, where they are not to be drawn here;
            these classes are the base.

    Returns:
        Figures of ours and of frozen CLIP.

    Raises:
        ConfigError: If an option does not fit the store, or `start` has seen its classes.
        BieffError: As `train` does; also if `out` holds runs of other settings.
    """
    if draws < 1:
        raise ConfigError(f"draws must be positive, got {draws}")
    parent = None if start is None else open_run(start)
    config = settings.load(
        overrides=overrides, base=preset or (parent.base if parent else settings.DEFAULT_PRESET)
    )
    store = FeatureStore.open(features)
    out = out or Path("runs") / f"{features.resolve().name}-{PROTOCOL}"
    given = None if listed is None else listed(store)
    if given:
        shots, draws = max(draw.shots for draw in given), len(given)
        if len({frozenset(draw.videos) for draw in given}) > 1 or given[0].base(store) is None:
            raise ConfigError(
                "the lists of shots: expected the same part of the classes in each, got "
                f"{', '.join(str(len(draw.videos)) for draw in given)} of "
                f"{len(store.class_names)}; give the lists of one choice of base classes"
            )
    base = given[0].base(store) if given else None
    classes = {half: labels.tolist() for half, labels in halves(store, split, base).items()}
    named = ClipName.given(model, pretrained)
    clip = clip_of(store, device=pick_device(device), named=named)
    ancestors = () if parent is None else lineage(parent, clip, config)
    require_new(ancestors, store)
    found: dict[str, list[list[Result]]] = {half: [] for half in HALVES}
    for draw in range(draws):
        chosen = (
            given[draw]
            if given
            else draw_shots(store, shots=shots, split=split, seed=draw, classes=classes["base"])
        )
        with steps_bar(f"draw {draw}") as bar:
            bar.say(chosen.text())
            run = train_or_go_on(
                store,
                clip,
                replace(config, seed=config.seed + draw),
                out / f"draw-{draw}",
                watch=bar,
                command=command,
                shots=chosen,
                ancestors=ancestors,
            )
        for half, protocol in HALVES.items():
            with videos_bar(f"{run.id}, evaluating {half}") as watch:
                table = evaluate_run(
                    run,
                    clip,
                    store,
                    protocol,
                    watch=watch,
                    split=split,
                    base=classes["base"],
                    blend=blend,
                )
            found[half].append(results_of(table))
            merge_results(run.path / RESULTS, found[half][-1])
    figures = [
        Figures.of(ours.model, *([draw[i].top1 for draw in found[half]] for half in HALVES))
        for i, ours in enumerate(found["base"][0])
    ]
    names = {half: [store.class_names[i] for i in chosen] for half, chosen in classes.items()}
    record = {
        "protocol": PROTOCOL,
        "shots": shots,
        "after": after(ancestors),
        "blend": blend,
        "split": split,
        "classes": names,
        "draws": draws,
        "harmonic": "of the means over draws",
        "deviation": "population standard deviation over draws",
        "figures": [asdict(line) for line in figures],
        "results": {
            half: [[result.to_dict() for result in draw] for draw in results]
            for half, results in found.items()
        },
    }
    write_atomically(out / f"{PROTOCOL}.json", (json.dumps(record, indent=1) + "\n").encode())
    return figures
