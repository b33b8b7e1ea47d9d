"""Frozen CLIP on the same store: the column that every result of ours stands beside.

B videos, T frames, K categories, D joint width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bieff.clip import Clip
from bieff.features.errors import ConfigError

CHUNK = 64
"""Prompts the text tower takes at a time."""


@torch.inference_mode()
def class_embeddings(clip: Clip, names: Sequence[str], template: str) -> Float[Tensor, "K D"]:
    """CLIP's embedding of each class name in the template, unit length.

    Raises:
        ConfigError: If the template has no `{}`.
    """
    if "{}" not in template:
        raise ConfigError(f"template: expected a text with {{}} in it, got {template!r}")
    tokens = clip.tokenize([template.replace("{}", name) for name in names])
    device = next(clip.model.parameters()).device
    model: Any = clip.model
    parts = [model.encode_text(chunk.to(device)) for chunk in tokens.split(CHUNK)]
    return F.normalize(torch.cat(parts).float(), dim=-1)


def frozen_logits(
    frames: Float[Tensor, "B T D"], classes: Float[Tensor, "K D"], temperature: float
) -> Float[Tensor, "B K"]:
    """Cosine of the mean of the unit frame embeddings with each class, over tau."""
    video = F.normalize(F.normalize(frames, dim=-1).mean(dim=1), dim=-1)
    return video @ classes.T / temperature
