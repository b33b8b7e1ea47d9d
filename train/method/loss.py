"""The training loss: video and class embeddings of a pair are alike (paper Sec. 3.4).

B videos, k categories, D joint width.  The categories of a batch are its distinct labels; the
paper writes B for them too, as if no label came twice.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def cosine(
    left: Float[Tensor, "#B R D"], right: Float[Tensor, "#B C D"]
) -> Float[Tensor, "B R C"]:
    """Cosine of every row with every row: s(., .) of Eq. 8 and 10.

    In float32 at least, also under autocast: divided by tau, the error of a bfloat16 cosine
    would be a third of a logit.
    """
    with torch.autocast(left.device.type, enabled=False):
        kind = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
        # in this order the many classes' gradient has its rows in one piece
        return (unit(right.to(kind)) @ unit(left.to(kind)).mT).mT


def unit(x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """`F.normalize` of the last dimension; backwards four kernels, where it takes fourteen."""
    return _Unit.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
        found: Tensor = x / length
        ctx.save_for_backward(found, length)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        found, length = ctx.saved_tensors
        along = (gradients[0] * found).sum(dim=-1, keepdim=True)
        across: Tensor = torch.addcmul(gradients[0], found, along, value=-1) / length
        return across


def positive_pairs(
    labels: Int[Tensor, " B"], categories: Int[Tensor, " k"]
) -> Bool[Tensor, "B k"]:
    """True where the video is of the category."""
    return labels[:, None] == categories[None, :]


def symmetric_loss(
    logits: Float[Tensor, "B k"],
    positives: Bool[Tensor, "B k"],
    *,
    targets: Literal["uniform", "multi-hot"] = "uniform",
) -> Float[Tensor, ""]:
    """Mean of video-to-text and text-to-video cross-entropy, Eq. 10.

    Entry (i, j) is s(v_hat_i, c_hat_ij) / tau: the class embedding is the video's own, so one
    matrix serves both directions, the softmax running over categories or over videos.  The
    paper leaves open what happens when a label comes twice.  Here its videos share a column,
    and a row of either direction has the uniform distribution over its positives as target.
    With `targets="multi-hot"` the loss is the release's: one column a *video*, so that a label
    that comes twice has two, and a target of 1 at every positive, not normalised.

    Args:
        logits: Cosines divided by tau.
        positives: Each video has exactly one, each category at least one.
        targets: How positives of a repeated label count.
    """
    if targets == "multi-hot":
        column = positives.int().argmax(dim=1)  # of each video's own category
        logits, positives = logits[:, column], positives[:, column]  # (B, B)
    target, normalise = positives.to(logits.dtype), targets == "uniform"
    video_to_text = _half_cross_entropy(logits, target, normalise=normalise)
    text_to_video = _half_cross_entropy(logits.mT, target.mT, normalise=normalise)
    return video_to_text + text_to_video


def frozen_distance(
    video: Float[Tensor, "B D"],
    classes: Float[Tensor, "#B k D"],
    frames: Float[Tensor, "B T D"],
    frozen_classes: Float[Tensor, "k D"],
) -> Float[Tensor, " B"]:
    """Distance that each video and its class embeddings have moved from frozen CLIP's.

    1 - cos(v_hat, v) + mean over the categories of 1 - cos(c_hat, c), where v is the mean of
    the unit frames as stored and c CLIP's embedding of the name in a template: what frozen
    CLIP classifies by.  Half the squared distance of the unit vectors, from 0 to 4.  FROSTER
    draws features of both towers towards frozen CLIP's too, by way of a small residual network
    that is thrown away, so that the features themselves may differ; here there is none.

    Args:
        video: v_hat.
        classes: c_hat; a single leading row serves all videos.
        frames: As stored.
        frozen_classes: c, in the order of `classes`.
    """
    kind = torch.promote_types(video.dtype, torch.float32)  # as `cosine`
    frozen_video = F.normalize(frames.to(kind), dim=-1).mean(dim=1)
    moved = 1 - F.cosine_similarity(video.to(kind), frozen_video, dim=-1)
    drifted = 1 - F.cosine_similarity(classes.to(kind), frozen_classes.to(kind), dim=-1)
    return moved + drifted.mean(dim=1)


def _half_cross_entropy(
    logits: Float[Tensor, "R C"], target: Float[Tensor, "R C"], *, normalise: bool
) -> Float[Tensor, ""]:
    if normalise:
        target = target / target.sum(dim=1, keepdim=True)
    return (target * logits.log_softmax(dim=1)).sum() / (-2 * len(logits))
