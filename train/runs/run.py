"""A run on disk: what was trained, from what, how, and how far.

    runs/shapes/
      run.json              config, command, store and recipe hash, CLIP, the runs it started
                            from, versions, commit, device, precision, parameters, seconds,
                            peak memory, evaluation
      metrics.jsonl         a line every few steps and every evaluation
      events.out.tfevents.* the same for TensorBoard
      last.safetensors      the tunable weights
      best.safetensors      those of the best evaluation on `val`
      resume.safetensors    what `--resume` goes on from; gone when the run is finished
      results.json          figures of its evaluations, see train/evaluate/results.py
      scores/               of its evaluations, see train/evaluate/scores.py
      partial/              those of one that is under way

A result without its run.json does not exist.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor

from bieff.clip import Claim, Clip, ClipName, fingerprint
from bieff.features.errors import BieffError, ConfigError, InputError, StoreMismatchError
from bieff.features.files import read_json, write_atomically
from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig
from bieff.train.method.model import BiEfficient
from bieff.train.method.pre_prompt import embedded_words
from bieff.train.runs.ancestor import Ancestor, read_ancestors, read_weights
from bieff.train.runs.checkpoint import BEST, LAST, load_weights
from bieff.train.runs.hub import fetch, is_on_hub
from bieff.train.text.tower import TextTower, not_a_tree
from bieff.train.text.whole import WholeTower, token_embedding

RECORD = "run.json"
RESULTS = "results.json"
GONE = (("temporal_weight", 1.0),)
"""Settings that earlier versions wrote, with the value that all runs have now."""

MAY_DIFFER = (
    *("frames", "epochs", "warmup_epochs", "batch_size", "lr", "weight_decay", "targets"),
    *("distill", "average_epochs", "clip_grad", "accumulate", "precision", "eval_every"),
    *("save_seconds", "feature_memory", "seed"),
)
"""Settings that are not of the model: a run may start from one of others."""

_KINDS = {
    **{"config": dict, "clip": dict, "parameters": dict, "class_names": list},
    **{"store": str, "store_recipe_hash": str, "data_set": str, "started": str},
    **{"frames": int, "videos": int, "steps": int},
}
"""Fields that every record holds, from the first step on, with their types."""

PACKAGES = ("bieff", "torch", "open_clip_torch", "numpy", "zarr", "safetensors")


@dataclass(frozen=True, slots=True)
class Run:
    """A finished or interrupted run."""

    path: Path
    record: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The name of its folder."""
        return self.path.name

    @property
    def config(self) -> TrainConfig:
        """Settings it was trained with, resolved."""
        stored = self.record["config"].items()
        return TrainConfig.from_dict(
            {name: value for name, value in stored if (name, value) not in GONE}
        )

    @property
    def clip(self) -> Claim:
        """The CLIP that its features and its text tower come from, as it says."""
        held = self.record["clip"]
        name = held.get("name")
        return Claim.of({**held, **name} if isinstance(name, dict) else {}, source=self.path)

    @property
    def ancestors(self) -> tuple[Ancestor, ...]:
        """The run that it started from, the one that this started from, and so on."""
        return read_ancestors(self.record, self.path)

    @property
    def base(self) -> TrainConfig:
        """Settings of a run that starts from it, unless its user wants others."""
        return replace(self.config, frames=self.record["frames"])

    def require_finished(self) -> None:
        """Refuse a run of which the weights are still changing.

        Raises:
            InputError: If it is not finished.
        """
        if not self.record["finished"]:
            raise InputError(
                f"run {self.path} is not finished; go on with "
                f"`bieff train --resume --out {shlex.quote(str(self.path))}`"
            )

    def lineage(self) -> tuple[Ancestor, ...]:
        """Ancestors of a run that starts from it: itself and its own.

        Raises:
            InputError: If it is not finished, or its weights are not there.
        """
        self.require_finished()
        file = (self.path / LAST).resolve()
        nearest = Ancestor(
            run=self.id,
            file=str(file),
            sha256=hashlib.sha256(read_weights(file)).hexdigest(),
            data_set=self.record["data_set"],
            store=self.record["store_recipe_hash"],
            shots=self.record.get("shots"),
        )
        return (nearest, *self.ancestors)

    def differences(self, config: TrainConfig, *, besides: Sequence[str]) -> list[str]:
        """A line for each setting that is another one, besides some."""
        stored, asked = self.config.to_dict(), config.to_dict()
        return [
            f"{name}: the run has {stored[name]!r}, asked for {asked[name]!r}"
            for name in asked
            if name not in besides and stored[name] != asked[name]
        ]


def claim_of(store: FeatureStore) -> Claim:
    """The CLIP whose features the store holds, as it says.

    Raises:
        StoreMismatchError: If it does not say that, or not of which data set they are.
    """
    name = store.recipe.get("data_set")
    if not (isinstance(name, str) and name.isprintable()):
        raise StoreMismatchError(f"{store.path} does not say of which data set it is")
    return Claim.of(store.recipe.get("clip"), source=store.path)


def clip_of(
    store: FeatureStore, *, device: torch.device, named: ClipName | None = None
) -> Clip:
    """The CLIP whose features the store holds; its text tower is needed live.

    Args:
        store: What it says of its CLIP is compared, not obeyed; see `clip.Claim`.
        device: Where the weights go.
        named: The CLIP that the user named, if any.

    Raises:
        InputError: If the user must name it.
        StoreMismatchError: If it is another CLIP than the store's.
    """
    return claim_of(store).load(named=named, device=device)


def text_tower(clip: Clip, tokens: Int[Tensor, "K length"]) -> TextTower | WholeTower:
    """The CLIP's text tower for some names: the tree where their prompts form one.

    Raises:
        InputError: If the tower is of no known kind.
    """
    num_start = int(clip.form.start is not None)
    if not not_a_tree(clip.model):
        tower: TextTower | WholeTower = TextTower(clip.model, tokens, num_start=num_start)
    else:
        lengths = torch.tensor([len(clip.form.words(row)) for row in tokens])
        tower = WholeTower(clip.model, tokens, num_start=num_start, lengths=lengths)
    return tower.to(clip.device)


def fitting_tower(
    clip: Clip,
    names: Sequence[str],
    tokens: Int[Tensor, "K length"],
    rows_before: tuple[int, int],
) -> TextTower | WholeTower:
    """The text tower for names whose prompts it has positions for.

    Args:
        clip: Where the tower comes from.
        names: Of classes, for people.
        tokens: Theirs.
        rows_before: Of the context and of the video; see `BiEfficient.prompt_rows`.

    Raises:
        InputError: If the prompt of the longest name is too long.
    """
    text = text_tower(clip, tokens)
    try:
        text.require_fit(*rows_before)
    except InputError as error:
        longest = names[max(range(len(names)), key=lambda i: len(clip.form.words(tokens[i])))]
        raise InputError(f"{error}; the longest is {longest!r}") from None
    return text


def build_model(
    config: TrainConfig,
    clip: Clip,
    *,
    num_frames: int,
    patches: Sequence[int] | None,
) -> BiEfficient:
    """The tunable parts for this CLIP, untrained."""
    if config.temperature is None:
        config = replace(config, temperature=clip.temperature)
    return BiEfficient(
        config,
        dim=clip.dim,
        text_width=token_embedding(clip.model).weight.shape[1],
        num_frames=num_frames,
        patches=patches,
        words=embedded_words(config, clip),
    )


def lineage(run: Run, clip: Clip, config: TrainConfig) -> tuple[Ancestor, ...]:
    """Ancestors of a run of these settings that starts from another one, `run`.

    Raises:
        InputError: If that is not finished, or its weights are not there.
        ConfigError: If it is of another model; shows each setting.
        StoreMismatchError: If it was trained on another CLIP.
    """
    run.clip.require(clip)
    if changed := run.differences(config, besides=MAY_DIFFER):
        lines = "\n  ".join(changed)
        raise ConfigError(
            f"run {run.path} is another model; leave these settings as they are, or start from "
            f"a run that has them:\n  {lines}"
        )
    return run.lineage()


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write run.json, whole or not at all."""
    write_atomically(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())


def open_run(path: Path) -> Run:
    """Open a run by its folder, or as `hf-hub:ORG/NAME`, which is fetched first.

    Raises:
        InputError: If there is none, or it cannot be read.
    """
    if is_on_hub(path):
        path = fetch(str(path), record=RECORD)
    if not (path / RECORD).exists():
        raise InputError(f"no run at {path}; make one with `bieff train`")
    then = "bring back what the run wrote, or train again"
    run = Run(path, read_json(path / RECORD, _KINDS, then=then))
    try:
        _ = run.config, run.clip, run.ancestors
    except BieffError as error:
        raise InputError(f"cannot read {path / RECORD}: {error}; {then}") from None
    return run


def newest_run(folder: Path, *, finished: bool = True) -> Run:
    """The run in the folder that finished last; or that began last, of those that can go on.

    A run whose record cannot be read must not hide the others.

    Raises:
        InputError: If there is none.
    """
    runs = []
    for file in folder.glob(f"*/{RECORD}"):
        with contextlib.suppress(InputError):
            runs.append(open_run(file.parent))
    fitting = [run for run in runs if bool(run.record["finished"]) == finished]
    if fitting:
        when = "finished" if finished else "started"
        return max(fitting, key=lambda run: (str(run.record[when]), run.id))
    if finished:
        raise InputError(
            f"no finished run in {folder}; make one with `bieff train`, or name one"
        )
    raise InputError(f"no unfinished run in {folder}; name one with --out")


def load_model(
    run: Run,
    clip: Clip,
    *,
    weights: Literal["last", "best"] = "last",
    blend: float | None = None,
) -> BiEfficient:
    """The trained model, in evaluation mode, on the CLIP's device.

    Args:
        run: A run that has been trained.
        clip: The CLIP it was trained on.
        weights: After the last step, or at the best evaluation.
        blend: b of (1 - b) x the weights it started with + b x these (WiSE-FT, Wortsman et
            al. 2022); None leaves them as they are.

    Raises:
        ConfigError: If the blend is not from 0 to 1.
        InputError: If the weights are missing or damaged, or those it started with cannot be
            made again.
        StoreMismatchError: If the run was trained on another CLIP.
    """
    if blend is not None and not 0 <= blend <= 1:
        raise ConfigError(f"blend: expected a weight from 0 to 1, got {blend}")
    run.clip.require(clip)
    model = build_model(
        run.config, clip, num_frames=run.record["frames"], patches=run.record["patches"]
    )
    start = {} if blend is None else _start(run, model)
    file = run.path / (LAST if weights == "last" else BEST)
    try:
        tuned = load_weights(file)
        model.load_state_dict(tuned)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise InputError(f"cannot read the weights {file}: {error}; train again") from None
    if blend is not None:
        blended = {name: first.lerp(tuned[name], blend) for name, first in start.items()}
        model.load_state_dict(blended)
    return model.to(clip.device).eval()


def _start(run: Run, model: BiEfficient) -> dict[str, Tensor]:
    """The weights that a run started with; `model` is its model, untrained."""
    if run.ancestors:
        run.ancestors[0].load_into(model, run.record["frames"])
    wanted, got = run.record.get("start"), fingerprint(model)
    if wanted != got:
        held = "nothing" if wanted is None else str(wanted)[:12]
        raise InputError(
            f"run {run.path} started with weights that are not made here: it holds the "
            f"fingerprint {held}, got {got[:12]}; blend it with the versions of bieff and "
            "torch that its run.json names, or train it again"
        )
    return {name: value.clone() for name, value in model.state_dict().items()}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def commit() -> str | None:
    """The git commit of the checkout that runs, with "+" if it was changed; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # no git on this machine
    return done.stdout.strip()
