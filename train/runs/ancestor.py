"""Ancestors: the runs whose weights a run started from, as its run.json keeps them.

The `last` weights are taken: `best` were chosen on a list that a result may be about.

T and t frames of both runs, D joint width.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from bieff.features.errors import ConfigError, InputError
from bieff.features.store import FeatureStore

POSITIONS = "temporal.positions"
"""The only weights whose shape depends on the number of frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ancestor:
    """A run that another one started from, plain JSON."""

    run: str
    """Its id."""

    file: str
    """Its weights, an absolute path."""

    sha256: str
    """Of that file."""

    data_set: str
    store: str
    """Recipe hash of the store that it was trained on."""

    shots: Mapping[str, Any] | None
    """Its draw of few videos, see `FewShotDraw`; None: it had all."""

    def __post_init__(self) -> None:
        texts = (self.run, self.file, self.sha256, self.data_set, self.store)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a text is expected, got something else")
        few = {"shots": 0, "videos": {}} if self.shots is None else self.shots
        if not (isinstance(few.get("shots"), int) and isinstance(few.get("videos"), dict)):
            raise TypeError("a draw of few videos is expected, got something else")

    @property
    def seen(self) -> str:
        """What it was trained on, in words."""
        return (
            self.data_set
            if self.shots is None
            else f"{self.shots['shots']} a class of {self.data_set}"
        )

    def load_into(self, model: nn.Module, num_frames: int) -> None:
        """Give a model of `num_frames` frames these weights.

        Raises:
            InputError: If the file is not there, is another one by now, or does not fit.
        """
        data = read_weights(Path(self.file))
        if (got := hashlib.sha256(data).hexdigest()) != self.sha256:
            raise InputError(
                f"{self.file} is not what was started from: expected SHA-256 "
                f"{self.sha256[:12]}, got {got[:12]}; bring back the weights of run {self.run}"
            )
        try:
            weights = load(data)
            if POSITIONS in weights:
                weights[POSITIONS] = resampled(weights[POSITIONS], num_frames)
            model.load_state_dict(weights)
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise InputError(
                f"cannot start from {self.file}: {error}; name another run"
            ) from None


def read_weights(file: Path) -> bytes:
    """The bytes of a weights file.

    Raises:
        InputError: If there is none.
    """
    try:
        if not file.is_file():  # a record of somebody else may name a device
            raise FileNotFoundError(2, "no such file")
        return file.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read the weights to start from, {file}: {error.strerror}; bring them "
            "back, or name another run"
        ) from None


def resampled(positions: Float[Tensor, "T D"], num_frames: int) -> Float[Tensor, "t D"]:
    """Positions for another number of frames.

    Linear between the middles of T equal parts of a video, which is where frames are taken;
    constant before the first and behind the last.
    """
    if len(positions) == num_frames:
        return positions
    rows = F.interpolate(positions.T[None], num_frames, mode="linear", align_corners=False)
    return rows[0].T.contiguous()


def read_ancestors(record: Mapping[str, Any], source: Path) -> tuple[Ancestor, ...]:
    """The ancestors in a run's record, the nearest first; none of a run that started anew.

    Raises:
        InputError: If they are damaged.
    """
    try:
        return tuple(Ancestor(**held) for held in record.get("ancestors", ()))
    except (TypeError, AttributeError) as error:
        raise InputError(f"the ancestors of run {source} cannot be read: {error}") from None


def after(ancestors: Sequence[Ancestor]) -> str | None:
    """What a run had seen before its own training, the first first; None if nothing."""
    return ", then ".join(one.seen for one in reversed(ancestors)) or None


def require_new(ancestors: Sequence[Ancestor], store: FeatureStore) -> None:
    """Refuse a set as one that was never seen, if an ancestor was trained on it.

    Raises:
        ConfigError: If the store, or one of the same data set, is among what they saw.
    """
    for one in ancestors:
        if store.recipe_hash == one.store or store.recipe["data_set"] == one.data_set:
            raise ConfigError(
                f"{store.path} is not new: run {one.run}, which is started from, was trained "
                f"on {one.data_set}; take another set, or a run that never saw it"
            )
