"""Frozen CLIP on the same store: the column that every result of ours stands beside.

B videos, T frames, K categories, D joint width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bieff.clip import Clip
from bieff.train.descriptions import Descriptions
from bieff.train.templates import Templates, find_templates
from bieff.train.text import TextTower

CHUNK = 256
"""Texts the text tower takes at a time."""


def class_embeddings(
    clip: Clip, names: Sequence[str] | Descriptions, template: str | Templates
) -> Float[Tensor, "K D"]:
    """CLIP's embedding of each class, unit length.

    Of several templates or descriptions: the mean of the unit embeddings of every description
    in every template, brought to unit length again.

    Args:
        clip: Whose text tower is asked.
        names: Of the classes, or descriptions of them.
        template: By name, as a text with `{}` in it, or several.

    Raises:
        ConfigError: If there is no such template.
        InputError: If a text does not fit the tower.
    """
    described = names if isinstance(names, Descriptions) else Descriptions.of(names)
    templates = template if isinstance(template, Templates) else find_templates(template)
    prompts = [templates.fill(text) for text in described.flat]
    total: Tensor | None = None
    for filled in zip(*prompts, strict=True):  # one template after the other
        embedded = F.normalize(_embed(clip, filled), dim=-1)  # (texts, D)
        total = embedded if total is None else total + embedded
    assert total is not None
    classes = total.new_zeros(len(described.texts), total.shape[1])
    classes.index_add_(0, described.owners.to(total.device), total)
    return F.normalize(classes, dim=-1)


@torch.no_grad()
def _embed(clip: Clip, texts: Sequence[str]) -> Float[Tensor, "texts D"]:
    """CLIP's own embeddings; rows that texts share are computed once, and padding never."""
    device = next(clip.model.parameters()).device
    order = sorted(range(len(texts)), key=lambda index: texts[index])  # neighbours share rows
    parts = []
    for start in range(0, len(texts), CHUNK):
        chunk = [texts[index] for index in order[start : start + CHUNK]]
        tower = TextTower(clip.model, clip.tokenize(chunk)).to(device)
        parts.append(tower(None, None).classes[0].float())
    found = torch.cat(parts)
    return torch.empty_like(found).index_copy_(0, torch.tensor(order, device=device), found)


def frozen_logits(
    frames: Float[Tensor, "B T D"], classes: Float[Tensor, "K D"], temperature: float
) -> Float[Tensor, "B K"]:
    """Cosine of the mean of the unit frame embeddings with each class, over tau."""
    video = F.normalize(F.normalize(frames, dim=-1).mean(dim=1), dim=-1)
    return video @ classes.T / temperature
