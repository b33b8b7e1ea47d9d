"""Scores of a video for any list of class names, by a run's model or by frozen CLIP.

V views, T frames, K categories, D joint width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from bieff.clip import Clip
from bieff.train.frozen import class_embeddings, frozen_logits
from bieff.train.model import BiEfficient, Scores
from bieff.train.pre_prompt import HAND_CRAFTED
from bieff.train.run import Run, load_model
from bieff.train.text import TextTower


@dataclass(frozen=True, slots=True, eq=False)
class Highlights:
    """Which frames speak for a class."""

    kind: Literal["weights", "cosine"]
    """S of Eq. 8, which sums to 1; or, of frozen CLIP, each frame's cosine with the class."""

    values: Float64[np.ndarray, " T"]

    category: int
    """Whose words weighted the frames (not always the best class); or the best class."""


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What a model says of the views of one video."""

    probabilities: Float64[np.ndarray, " K"]
    """Softmax scores, averaged over the views."""

    highlights: Highlights | None
    """Of the view that was asked for; None for a model that weights no frames."""


Scorer = Callable[[Tensor, Tensor | None, int], Said]
"""(frames (V, T, D) float32, patches (V, P, U) or None, view to explain) -> what it says."""


def trained_scorer(run: Run, clip: Clip) -> Callable[[Sequence[str]], Scorer]:
    """From class names to scores by the run's model; the weights are read once.

    Raises:
        InputError: If the weights are missing or damaged.
        StoreMismatchError: If the run was trained on another CLIP.
    """
    model: BiEfficient = load_model(run, clip)
    device = next(clip.model.parameters()).device

    def of(names: Sequence[str]) -> Scorer:
        text = TextTower(clip.model, clip.tokenize(names)).to(device)

        def score(frames: Tensor, patches: Tensor | None, view: int) -> Said:
            scores: Scores = model(frames, text, patches=patches)
            highlights = None
            if scores.frame_weights is not None and scores.picked is not None:
                weights = _array(scores.frame_weights[view])
                highlights = Highlights("weights", weights, int(scores.picked[view]))
            return Said(_mean_softmax(scores.logits), highlights)

        return torch.no_grad()(score)

    return of


def frozen_scorer(clip: Clip) -> Callable[[Sequence[str]], Scorer]:
    """From class names to scores by CLIP as it is, asked in the hand-crafted template."""
    model: Any = clip.model
    temperature = 1 / model.logit_scale.exp().item()

    def of(names: Sequence[str]) -> Scorer:
        classes = class_embeddings(clip, names, HAND_CRAFTED)

        def score(frames: Tensor, _: Tensor | None, view: int) -> Said:
            mean = _mean_softmax(frozen_logits(frames, classes, temperature))
            best = int(mean.argmax())
            cosines = F.normalize(frames[view], dim=-1) @ classes[best]
            return Said(mean, Highlights("cosine", _array(cosines), best))

        return torch.no_grad()(score)

    return of


def _mean_softmax(logits: Float[Tensor, "V K"]) -> Float64[np.ndarray, " K"]:
    return _array(logits.double().softmax(dim=-1).mean(dim=0))


def _array(values: Float[Tensor, " n"]) -> Float64[np.ndarray, " n"]:
    array: Float64[np.ndarray, " n"] = values.double().cpu().numpy()
    return array
