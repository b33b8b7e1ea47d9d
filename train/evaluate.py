"""Exact evaluation: every video once, softmax scores averaged over its views, nothing dropped.

B videos, V views, T frames of the store, t frames of the model, K categories.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from bieff.train.data import Features, frame_groups
from bieff.train.flops import prompt_rows
from bieff.train.model import BiEfficient
from bieff.train.residency import free_bytes
from bieff.train.text import TextTower

LARGEST_BATCH = 32
"""Videos scored at a time, where the text tower's rows allow it."""

TOWER_BYTES = 1 << 30
"""What the text tower's rows may take while scoring, where so much is free twice over.  A
fixed figure, so that the same videos share a batch on every machine that has the room: which
ones do decides the last bits of a score."""

Score = Callable[[Tensor, Tensor | None], Tensor]
"""(frames (B, t, D) float32, patches or None) -> logits (B, K)."""


def batch_size_of(
    text: TextTower, model: BiEfficient, *, num_frames: int, patches: Sequence[int] | None
) -> int:
    """Videos to score at a time among all classes; fewer where little memory is free.

    Args:
        text: With the class names.
        model: Which is asked.
        num_frames: t, frames it takes.
        patches: Number and width of the store's patch tokens, if it has them.
    """
    sees_patches = patches is not None and model.config.prompts_see == "patches"
    num_context, num_video_rows = prompt_rows(
        model.config,
        patches[0] if patches is not None and sees_patches else num_frames,
        hand_crafted=0 if model.hand_crafted is None else len(model.hand_crafted),
    )
    fitting = text.max_videos(
        min(TOWER_BYTES, free_bytes(text.token_rows.device) / 2),
        num_context=num_context,
        num_video_rows=num_video_rows,
    )
    return min(LARGEST_BATCH, fitting)


def probabilities(
    features: Features,
    score: Score,
    *,
    num_frames: int,
    clips: int,
    batch_size: int = LARGEST_BATCH,
    videos: range | Int[Tensor, " n"] | None = None,
) -> Iterator[Float64[np.ndarray, "B K"]]:
    """Softmax scores of all videos in order, averaged over their views, in float64.

    Args:
        features: The videos; their views are `clips` temporal clips, each at every crop.
        score: Logits of a batch.
        num_frames: t, frames the model takes.
        clips: Temporal clips among the views, clip by clip.
        batch_size: Videos at a time; changes nothing but memory and speed.
        videos: Which of them, by their place in the features; None takes all.
    """
    chosen = range(len(features)) if videos is None else videos
    if isinstance(chosen, range):
        chosen = torch.arange(chosen.start, chosen.stop)
    for part in chosen.split(batch_size):
        # a decorated generator would not be without gradients while it runs
        with torch.no_grad():
            mean = _mean_softmax(features, part, score, num_frames=num_frames, clips=clips)
        yield mean.cpu().numpy()


def _mean_softmax(
    features: Features, part: Int[Tensor, " B"], score: Score, *, num_frames: int, clips: int
) -> Float64[Tensor, "B K"]:
    """Softmax scores of some videos, averaged over their views."""
    _, num_views, num_stored, _ = features.shape
    total: Tensor | None = None
    for view in range(num_views):
        clip = view * clips // num_views
        chosen = strided(num_stored, num_frames, clip=clip, clips=clips)
        picked = features.chunk(part, view, chosen)
        softmax = score(picked.frames, picked.patches).double().softmax(dim=-1)
        total = softmax if total is None else total + softmax
    assert total is not None
    return total / num_views


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
