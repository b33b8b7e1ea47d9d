"""Top-1 on the demo's three sets while it trains, from before the first step on.

    bieff demo --out demo
    python docs/start/curve.py demo docs/start    # draws, too, where matplotlib is

Each run is trained as the demo trains, but for its seed, and its weights are evaluated after
some epochs.  What was measured already stands in curve.json, and is kept.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from bieff import clip as clips
from bieff.apps.demo import RECIPE
from bieff.clip import TINYCLIP, ClipName
from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig
from bieff.train.evaluate.results import results_of
from bieff.train.evaluate.scoring import evaluate_run
from bieff.train.fit.record import make_record
from bieff.train.fit.step import prepare
from bieff.train.runs.checkpoint import LAST, save_weights, weights_of
from bieff.train.runs.run import Run, write_record

SETS = {"shapes": "closed", "shapes-combinations": "splits3", "shapes-unseen": "splits3"}
EPOCHS = (0, 1, 2, 4, 6, 8, 10)
SEEDS = (0, 1, 2)


def measure(demo: Path, config: TrainConfig) -> dict[str, list[float]]:
    """Top-1 of each set after each of `EPOCHS`; and of frozen CLIP, in "frozen SET"."""
    clip = clips.load(ClipName(model=TINYCLIP, pretrained=None))
    stores = {name: FeatureStore.open(demo / "features" / name) for name in SETS}
    trainer = prepare(stores["shapes"], clip, config)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, trainer.batches:
        record = make_record(stores["shapes"], clip, trainer, [], None)
        for epoch in range(config.epochs + 1):
            if epoch in EPOCHS:
                run = Run(Path(folder) / str(epoch), record)
                run.path.mkdir()
                save_weights(run.path / LAST, weights_of(trainer.model))
                write_record(run.path, {**record, "finished": record["started"]})
                for name, protocol in SETS.items():
                    table = evaluate_run(
                        run, clip, stores[name], protocol, watch=lambda *_: None
                    )
                    for result in results_of(table):
                        key = name if result.model == "bieff" else f"frozen {name}"
                        found.setdefault(key, []).append(result.top1)
            if epoch < config.epochs:
                for step in range(
                    epoch * trainer.epoch_steps, (epoch + 1) * trainer.epoch_steps
                ):
                    trainer.step(step)
    return found


def draw(curves: dict[str, dict[str, list[float]]], file: Path) -> None:
    """One panel a set, a line a run, frozen CLIP dashed."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(SETS), figsize=(10, 3.2), sharey=True)
    for panel, name in zip(panels, SETS, strict=True):
        for found in curves.values():
            panel.plot(EPOCHS, found[name], color="#1b7f5f", label="bieff", linewidth=1.2)
        panel.plot(EPOCHS, found[f"frozen {name}"], "--", color="#666666", label="frozen CLIP")
        panel.set(
            title=name, xlabel="epochs", ylim=(0, 101), xticks=range(0, EPOCHS[-1] + 1, 2)
        )
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("top-1, percent")
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    panels[0].legend(handles.values(), handles.keys(), frameon=False, loc="center right")
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    """Measure what is not there yet, write, draw."""
    torch.set_num_threads(1)
    demo, out = map(Path, sys.argv[1:])
    kept = out / "curve.json"
    curves = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in SEEDS:
        label = f"seed {seed}"
        if label in curves:
            continue
        curves[label] = measure(demo, replace(RECIPE, seed=seed))
        kept.write_text(json.dumps(curves, indent=1) + "\n")
        print(label, {name: curves[label][name] for name in SETS}, flush=True)
    draw(curves, out / "curve.svg")


if __name__ == "__main__":
    main()
