"""`bieff demo`: both stages and the zero-shot evaluation on clips made here, no download."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bieff import clip as clips
from bieff.apps.progress import RunProgress, clips_bar, steps_bar, videos_bar
from bieff.clip import TINYCLIP, Clip, ClipName
from bieff.extract.config import ExtractConfig
from bieff.extract.plan import plan
from bieff.extract.run import extract
from bieff.extract.shapes.clips import COMPANIONS, Edition, load_shapes
from bieff.features.errors import InputError
from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig, preset
from bieff.train.evaluate.results import Result, merge_results, results_of, save_results
from bieff.train.evaluate.scoring import evaluate_run
from bieff.train.fit.loop import train_or_go_on
from bieff.train.runs.checkpoint import StoppedError
from bieff.train.runs.run import RESULTS, Run

FRAMES = 8
CLIPS = 24
"""Training clips of a class."""

RECIPE = replace(preset("words"), epochs=10, warmup_epochs=2, batch_size=8, lr=1e-3)
"""A step costs as many prompts as it has videos times categories: one of 32 videos costs what
four of 8 do, and these learn more (docs/LOG.md)."""


@dataclass(frozen=True, slots=True)
class Demo:
    """Results of the demo, and where it put everything."""

    out: Path
    results: list[Result]


def demo(
    out: Path,
    *,
    seed: int = 0,
    edition: Edition | None = None,
    config: TrainConfig | None = None,
) -> Demo:
    """Make the clips, extract, train, evaluate the closed set and both zero-shot sets.

    What an interrupted demo finished in `out` is kept.

    Args:
        out: Folder to write: data, features, runs and results.json.
        seed: Of the clips and of training.
        edition: Which clips; None is `CLIPS` a class, with that seed.
        config: How to train; None is `RECIPE`, with that seed.

    Raises:
        InputError: If `out` holds what is not the demo's.
        StoreMismatchError: If it holds a demo of other clips.
        ConfigError: If it holds a run of other settings.
    """
    _require_own(out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clip = clips.load(ClipName(model=TINYCLIP, pretrained=None), device=device)
    edition = edition or Edition(seed=seed, train_clips=CLIPS)
    stores = {
        name: _extract(name, out, clip, edition, device) for name in ("shapes", *COMPANIONS)
    }
    with _one_thread():
        run = _train(stores["shapes"], clip, config or replace(RECIPE, seed=seed), out)
        results = _evaluate(run, clip, stores)
    save_results(out / RESULTS, results)
    return Demo(out, results)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have training and evaluation add up in one order on any number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _evaluate(run: Run, clip: Clip, stores: Mapping[str, FeatureStore]) -> list[Result]:
    results: list[Result] = []
    for name, store in stores.items():
        protocol = "closed" if name == "shapes" else "splits3"
        with videos_bar(f"evaluating {name}") as watch:
            found = results_of(evaluate_run(run, clip, store, protocol, watch=watch))
        # beside the run, as `bieff eval` and `bieff zeroshot` put them
        merge_results(run.path / RESULTS, found)
        results += found
    return results


def _extract(
    name: str, out: Path, clip: Clip, edition: Edition, device: torch.device
) -> FeatureStore:
    with clips_bar(f"making {name}") as watch:
        data = load_shapes(name, out / "data" / name, edition=edition, watch=watch)
    config = ExtractConfig(frames=FRAMES)
    store = plan(data, config, clip, out / "features" / name)
    with RunProgress() as progress:
        extract(store, clip, config, device=device, watch=progress)
    return store


def _train(store: FeatureStore, clip: Clip, config: TrainConfig, out: Path) -> Run:
    try:
        with steps_bar("training") as watch:
            return train_or_go_on(store, clip, config, out / "runs" / "shapes", watch=watch)
    except StoppedError:
        raise StoppedError("stopped and saved; run the same command again to go on") from None


def _require_own(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, expected a folder; name another with --out")
    own = {"data", "features", "runs", RESULTS}
    if out.is_dir() and (others := sorted({path.name for path in out.iterdir()} - own)):
        raise InputError(
            f"{out} holds {others[0]!r}, which is not of a demo; name another folder with --out"
        )
