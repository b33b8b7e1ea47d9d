"""Exact evaluation: every video once, softmax scores averaged over its views, nothing dropped.

B videos, V views, T frames of the store, t frames of the model, K categories.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from bieff.train.data import Features, frame_groups

Score = Callable[[Tensor, Tensor | None], Tensor]
"""(frames (B, t, D) float32, patches or None) -> logits (B, K)."""


def probabilities(
    features: Features, score: Score, *, num_frames: int, clips: int, batch_size: int = 32
) -> Iterator[Float64[np.ndarray, "B K"]]:
    """Softmax scores of all videos in order, averaged over their views, in float64.

    Args:
        features: The videos; their views are `clips` temporal clips, each at every crop.
        score: Logits of a batch.
        num_frames: t, frames the model takes.
        clips: Temporal clips among the views, clip by clip.
        batch_size: Videos at a time; changes nothing but memory and speed.
    """
    embeddings, patches = features.embeddings, features.patches
    num_views = embeddings.shape[1]
    for start in range(0, len(features), batch_size):
        videos = slice(start, start + batch_size)
        total: Tensor | None = None
        for view in range(num_views):
            clip = view * clips // num_views
            chosen = strided(embeddings.shape[2], num_frames, clip=clip, clips=clips)
            frames = embeddings[videos, view][:, chosen].float()
            seen = None if patches is None else patches[videos, view].float()
            with torch.inference_mode():
                softmax = score(frames, seen).double().softmax(dim=-1)
            total = softmax if total is None else total + softmax
        assert total is not None
        yield (total / num_views).cpu().numpy()


def strided(num_stored: int, num_frames: int, *, clip: int, clips: int) -> Int[Tensor, " t"]:
    """Which stored frames an evaluation view of t frames takes: one from each group of T / t.

    The first clip takes the first of each group, which is the grid of t frames exactly; the
    last clip the last, which is where a store of t frames has it, within two frames.
    """
    group = frame_groups(num_stored, num_frames)
    gaps = max(clips - 1, 1)
    phase = (2 * (group - 1) * clip + gaps) // (2 * gaps)  # rounded to the nearest
    return torch.arange(num_frames) * group + phase


def hits(
    scores: Float64[np.ndarray, "B K"], labels: Int[np.ndarray, " B"], top: int
) -> Bool[np.ndarray, " B"]:
    """True where the label is among the `top` best; a tie goes to the smaller index."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    found: Bool[np.ndarray, " B"] = (best == labels[:, None]).any(axis=1)
    return found
