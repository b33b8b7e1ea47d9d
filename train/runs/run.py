"""A run on disk: what was trained, from what, how, and how far.

    runs/shapes/
      run.json              config, command, store and recipe hash, CLIP, versions, commit,
                            device, precision, parameters, seconds, peak memory, evaluation
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
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bieff.clip import Claim, Clip, ClipName
from bieff.features.errors import BieffError, InputError, StoreMismatchError
from bieff.features.files import read_json, write_atomically
from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig
from bieff.train.method.model import BiEfficient
from bieff.train.method.pre_prompt import hand_crafted_context
from bieff.train.runs.checkpoint import BEST, LAST
from bieff.train.runs.hub import fetch, is_on_hub
from bieff.train.text.tower import TextTower

RECORD = "run.json"
RESULTS = "results.json"
GONE = (("temporal_weight", 1.0),)
"""Settings that earlier versions wrote, with the value that all runs have now."""

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


def claim_of(store: FeatureStore) -> Claim:
    """The CLIP whose features the store holds, as it says.

    Raises:
        StoreMismatchError: If it does not say that, or not of which data set they are.
    """
    if not isinstance(store.recipe.get("data_set"), str):
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


def build_model(
    config: TrainConfig,
    clip: Clip,
    *,
    num_frames: int,
    patches: Sequence[int] | None,
) -> BiEfficient:
    """The tunable parts for this CLIP, untrained."""
    return BiEfficient(
        config,
        dim=clip.dim,
        text_width=TextTower(clip.model, clip.tokenize(["video"])).width,
        num_frames=num_frames,
        patches=patches,
        hand_crafted=hand_crafted_context(clip) if config.prompt == "hand-crafted" else None,
    )


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
        _ = run.config, run.clip
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
    run: Run, clip: Clip, *, weights: Literal["last", "best"] = "last"
) -> BiEfficient:
    """The trained model, in evaluation mode, on the CLIP's device.

    Args:
        run: A run that has been trained.
        clip: The CLIP it was trained on.
        weights: After the last step, or at the best evaluation.

    Raises:
        InputError: If the weights are missing or damaged.
        StoreMismatchError: If the run was trained on another CLIP.
    """
    run.clip.require(clip)
    model = build_model(
        run.config, clip, num_frames=run.record["frames"], patches=run.record["patches"]
    )
    file = run.path / (LAST if weights == "last" else BEST)
    try:
        model.load_state_dict(load_file(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"cannot read the weights {file}: {error}; train again") from None
    return model.to(clip.device).eval()


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
