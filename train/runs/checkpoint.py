"""Checkpoints: what a run goes on from, bit for bit, and the weights that evaluation loads.

    resume.safetensors    weights, AdamW's state, the average of weights if there is one and,
                          in its metadata, how far the run is, as JSON; gone when the run is
                          finished
    last.safetensors      the weights alone
    best.safetensors      those of the best evaluation so far

One file holds everything to go on with, so that its parts fit each other whenever the process
dies; every file is whole or not there.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bieff.clip import digest_of
from bieff.features.errors import BieffError, InputError, StoreError
from bieff.features.files import parse_json, write_atomically

RESUME = "resume.safetensors"
LAST = "last.safetensors"
BEST = "best.safetensors"

_WEIGHT, _STATE, _AVERAGE = "model/", "optimizer/", "average/"


class StoppedError(BieffError):
    """The run was asked to stop, and can go on."""


@dataclass(kw_only=True, slots=True)
class Progress:
    """State of a run beside its weights."""

    step: int = 0
    """Steps done."""

    seconds: float = 0.0
    """Seconds spent so far, over all processes that went on with the run."""

    best_top1: float | None = None
    best_step: int | None = None
    """Steps done at the best evaluation."""

    sizes: Mapping[str, int] | None = None
    """Bytes of metrics.jsonl, by its name; behind lies what is to be done again."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    average: nn.Module | None = None,
) -> None:
    """Write what the run can go on from, then the weights for evaluation.

    These are the average over epochs where there is one.

    Raises:
        BieffError: If a weight is not a number, or the disk refuses.
    """
    weights = weights_of(model)
    require_finite(weights, f"after {progress.step} steps")
    tensors = {_WEIGHT + name: tensor for name, tensor in weights.items()}
    names = _names(model, optimizer)
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"{_STATE}{names[index]}/{key}"] = value.detach().cpu().contiguous()
    kept = weights if average is None else weights_of(average)
    if average is not None:
        tensors.update({_AVERAGE + name: value for name, value in kept.items()})
    metadata = {"progress": json.dumps(asdict(progress) | {"sha256": digest_of(tensors)})}
    _write(folder / RESUME, save(tensors, metadata))
    save_weights(folder / LAST, kept)


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
) -> Progress | None:
    """Bring model and optimiser to where the run was; None if it has no checkpoint yet.

    The average over epochs, if there is one, is put into `average`.

    Raises:
        InputError: If the file is damaged, or of another model.
    """
    file = folder / RESUME
    if not file.exists():
        return None
    try:
        tensors, metadata = _read(file)
        held = parse_json(metadata["progress"])
        _require_digest(tensors, held.pop("sha256", None))
        progress = Progress(**held)
        model.load_state_dict(_under(tensors, _WEIGHT))
        described = optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for index, name in enumerate(_names(model, optimizer)):
            if found := _under(tensors, f"{_STATE}{name}/"):
                state[index] = found
        optimizer.load_state_dict({"state": state, "param_groups": described["param_groups"]})
        if average is not None and (found := _under(tensors, _AVERAGE)):
            average.load_state_dict(found)
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"cannot go on from {file}: {error}; train again into another folder"
        ) from None
    return progress


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tunable weights, whole or not at all."""
    _write(path, save(dict(weights), {"sha256": digest_of(weights)}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a file, on the CPU.

    Raises:
        OSError, SafetensorError: If there is none, or it is no such file.
        ValueError: If they are not those that were written.
    """
    weights, metadata = _read(path)
    _require_digest(weights, metadata.get("sha256"))
    return weights


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as stored:
        names = stored.keys()
        return {name: stored.get_tensor(name) for name in names}, stored.metadata() or {}


def _require_digest(tensors: Mapping[str, Tensor], wanted: str | None) -> None:
    if wanted not in (None, digest_of(tensors)):  # safetensors has no checksum
        raise ValueError("its bytes are not those that were written")


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The tunable weights on the CPU; of a model that is there, no copies."""
    return {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }


def require_finite(weights: Mapping[str, Tensor], when: str) -> None:
    """Keep a run that has gone astray from replacing a good checkpoint.

    Raises:
        BieffError: If a weight is not a number.
    """
    for name, value in weights.items():
        if not bool(value.isfinite().all()):
            raise BieffError(
                f"{when}: weight {name!r} is not finite and was not saved; try a smaller lr or "
                "clip_grad=1.0"
            )


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}
    return [by_identity[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _under(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except (OSError, StoreError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) else cause
        raise BieffError(
            f"cannot write {path}: {reason}; make room, then go on with "
            f"`bieff train --resume --out {shlex.quote(str(path.parent))}`"
        ) from error
