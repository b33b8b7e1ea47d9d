"""`bieff eval`, `zeroshot` and `scores`, from options as a user types them."""

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bieff.apps.progress import videos_bar
from bieff.apps.train import FEATURES, RUNS
from bieff.clip import TINYCLIP, Clip, ClipName, pick_device
from bieff.features.errors import ConfigError, StoreMissingError
from bieff.features.store import FeatureStore
from bieff.train.distributed import current, joined
from bieff.train.evaluate.classifier import Classifier, Frozen, Trained, Weights
from bieff.train.evaluate.lists import default_protocol, lists_of
from bieff.train.evaluate.results import Result, load_results, merge_results, results_of
from bieff.train.evaluate.scores import ScoreTable, load_scores, require_place, save_scores
from bieff.train.evaluate.scoring import evaluate
from bieff.train.fit.few_shot import FewShotDraw
from bieff.train.runs.ancestor import require_new
from bieff.train.runs.run import RESULTS, Run, clip_of, newest_run, open_run
from bieff.train.text.wording import Descriptions, find_templates, read_descriptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Options of evaluating a run, beside frozen CLIP or without.

    Raises:
        ConfigError: If an option is out of range, or two contradict each other.
    """

    best: bool = False
    """Take the weights of the best evaluation on `val` instead of the last."""

    template: str | None = None
    model_only: bool = False
    names: Path | None = None
    mix: float | None = None
    blend: float | None = None
    """Share of the trained weights, between the start and them."""

    batch_size: int | None = None
    save_scores: Path | None = None
    device: str | None = None
    model: str | None = None
    """The CLIP that the user named; None takes the store's if it is here already."""

    pretrained: str | None = None

    def __post_init__(self) -> None:
        if self.mix is not None and not 0 <= self.mix <= 1:
            raise ConfigError(f"--mix: expected a weight from 0 to 1, got {self.mix}")
        if self.model_only and (self.mix is not None or self.template is not None):
            raise ConfigError(
                "--model-only leaves frozen CLIP out, which --mix and --template are of; "
                "leave one out"
            )
        find_templates(self.template or "one")  # before any work is done

    def of(self, run: Run, store: FeatureStore, protocol: str) -> list[Result]:
        """Evaluate, and add the figures to the run's results.json.

        Of several processes that `torchrun` started, one writes and has results to show.

        Raises:
            InputError: If the run is not finished, its results.json is damaged, or scores
                cannot be saved where they should.
            ConfigError: If the run, or one that it started from, was trained on videos that the
                protocol asks about.
        """
        run.require_finished()  # weights that change would leave figures of both
        draw = FewShotDraw.of_run(run)
        split = None if draw is None else draw.split
        is_own = draw is not None and run.record["data_set"] == store.recipe["data_set"]
        base = draw.base(store) if draw is not None and is_own else None
        _require_unseen(run, store, protocol, split, base)
        results = run.path / RESULTS
        if results.exists():
            load_results(results)  # rather now than when hours of scoring are done
        if self.save_scores is not None:
            require_place(self.save_scores)
        with joined(pick_device(self.device)) as device:
            named = ClipName.given(self.model, self.pretrained)
            clip = clip_of(store, device=device, named=named)
            classifiers = self._classifiers(run, store, clip)
            what = f"evaluating {store.recipe['data_set']}, {protocol}"
            with videos_bar(what, is_shown=current().writes) as watch:
                table = evaluate(
                    store,
                    classifiers,
                    protocol,
                    watch=watch,
                    split=split,
                    base=base,
                    batch_size=self.batch_size,
                    keep_in=run.path,
                )
            if not current().writes:
                return []
        if self.mix is not None:
            table = table.with_mix(self.mix)
        found = results_of(table)
        merge_results(results, found)
        if self.save_scores is not None:
            save_scores(table, self.save_scores)
        return found

    def _classifiers(self, run: Run, store: FeatureStore, clip: Clip) -> list[Classifier]:
        names: Sequence[str] | Descriptions = store.class_names
        if self.names is not None:
            names = read_descriptions(self.names, store.class_names)
        weights: Weights = "best" if self.best else "last"
        ours = Trained(run, clip, names, weights=weights, blend=self.blend)
        if self.model_only:
            return [ours]
        template = self.template or "one"
        return [ours, Frozen(clip, names, num_frames=ours.about.frames, template=template)]


def evaluate_on(
    evaluation: Evaluation,
    *,
    name: str | None = None,
    run: Path | None = None,
    features: Path | None = None,
    protocol: str | None = None,
) -> list[Result]:
    """Evaluate a run, by default the newest, on the data set it was trained on, or another one.

    Args:
        evaluation: How.
        name: The other data set, whose store is the one in features/.
        run: The run's folder.
        features: The store, where it lies elsewhere; without a name it may be any.
        protocol: None: the usual one of the store; "closed" without a name, and for a run on
            few videos the whole test list of its split.

    Raises:
        ConfigError: If the run, or one it started from, was trained on what is asked about.
    """
    chosen = newest_run(RUNS) if run is None else open_run(run)
    if name is not None:
        store = _open(features or FEATURES / name, chosen, name)
        require_new(chosen.ancestors, store)
        return evaluation.of(chosen, store, protocol or default_protocol(store))
    path = features or Path(chosen.record["store"])
    store = _open(path, chosen, str(chosen.record["data_set"]))
    draw = FewShotDraw.of_run(chosen)
    if draw is not None and protocol in (None, "closed"):
        protocol = draw.protocol(store)
    return evaluation.of(chosen, store, protocol or "closed")


def read_scores(file: Path, *, mix: float | None = None) -> ScoreTable:
    """Scores that an evaluation wrote, with the mix that is asked for, if any."""
    table = load_scores(file)
    return table if mix is None else table.with_mix(mix)


def _require_unseen(
    run: Run,
    store: FeatureStore,
    protocol: str,
    split: str | None,
    base: Sequence[int] | None,
) -> None:
    """A training video on a test list: other splits list it, and so do `full` and `half10`."""
    draws = [(run.record["data_set"], FewShotDraw.of_run(run))]
    draws += [(one.data_set, FewShotDraw.read(one.shots, one.run)) for one in run.ancestors]
    trained_on = {
        id_
        for data_set, draw in draws
        if draw is not None and draw.split is not None and data_set == store.recipe["data_set"]
        for ids in draw.videos.values()
        for id_ in ids
    }
    if not trained_on:
        return
    partition, lists = lists_of(store, protocol, split=split, base=base)
    asked = np.unique(np.concatenate([chosen.rows for chosen in lists])).tolist()
    seen = [id_ for row in asked if (id_ := partition.videos[row].id) in trained_on]
    if seen:
        raise ConfigError(
            f"run {run.path}{', or one that it started from,' if run.ancestors else ''} was "
            f"trained on {len(seen):,} of the videos that {protocol} asks "
            f"about, such as {seen[0]!r}; `bieff eval {shlex.quote(str(run.path))}` asks about "
            "the test list of its split, or name another run"
        )


def _open(path: Path, run: Run, name: str) -> FeatureStore:
    with contextlib.suppress(StoreMissingError):
        return FeatureStore.open(path)
    clip, is_shapes = run.clip.name, name.startswith("shapes")
    command = f"bieff extract --dataset {shlex.quote(name)} --frames {run.record['frames']}"
    if not is_shapes and not (Path("data") / name).is_dir():
        command += " --videos DIR"
    if path != FEATURES / name:
        command += f" --out {shlex.quote(str(path))}"
    if clip != ClipName() and not (is_shapes and clip.model == TINYCLIP):
        command += f" {shlex.join(clip.words)}"
    raise StoreMissingError(f"no feature store at {path}; make it with `{command}`")
