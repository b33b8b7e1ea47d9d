"""The text tower as a tree, against every prompt encoded whole, as the authors' code does.

B videos, k names, M context tokens, Q rows of a video, W width of the tower, D joint width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bieff.apps.bench.clock import flops_of, precision_of, seconds
from bieff.train.config import TrainConfig
from bieff.train.text.tower import TextTower

WHOLE = {"cuda": (8, 32), "cpu": (1, 16)}
"""Videos and names whose prompts are encoded whole; the time is linear in their product."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextCost:
    """Of the prompts of one batch, forward and backward."""

    videos: int
    names: int
    tree: float
    """Seconds."""

    whole: float
    """Seconds, from fewer prompts, multiplied."""

    flops: float
    """Of the tree's matrix products."""


def measure_text(
    clip: nn.Module, tokens: Int[Tensor, "k length"], *, batch_size: int, device: torch.device
) -> TextCost:
    """Encode the prompts of a batch both ways."""
    tower = TextTower(clip, tokens).to(device)
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        rows = 0.02 * torch.randn(*shape, tower.width, generator=generator)
        return rows.to(device).requires_grad_()

    context, video = leaf(TrainConfig().num_context), leaf(batch_size, 1)

    def learn(encode: Callable[[], Tensor]) -> None:
        dtype = precision_of(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            classes = encode()
        classes.float().sum().backward()

    def tree() -> None:
        learn(lambda: tower(context, video).classes)

    num_videos, num_names = WHOLE.get(device.type, (1, 16))
    num_videos, num_names = min(num_videos, batch_size), min(num_names, len(tokens))
    some = tokens[:num_names].to(device)

    def whole() -> None:
        learn(lambda: encode_in_full(clip, some, context, video[:num_videos], ends_only=True))

    share = batch_size * len(tokens) / (num_videos * num_names)
    return TextCost(
        videos=batch_size,
        names=len(tokens),
        tree=seconds(tree, device),
        whole=share * seconds(whole, device),
        flops=flops_of(tree),
    )


def encode_in_full(
    clip: nn.Module,
    tokens: Int[Tensor, "k length"],
    context: Float[Tensor, "M W"] | None,
    video: Float[Tensor, "B Q W"] | None,
    *,
    cut: int | None = None,
    ends_only: bool = False,
) -> Float[Tensor, "B k rows D"]:
    """Encode B x k whole prompts as the authors do, in the joint space.

    Args:
        clip: Any open_clip model with a causal text tower.
        tokens: The bare names with SOT and EOT.
        context: The same for all prompts, after SOT.
        video: Rows of each video, after the context.
        cut: Encode this many positions only; all 77 by default.
        ends_only: Project EOT rows only, as open_clip does, and return these alone.
    """
    tower: Any = getattr(clip, "text", clip)
    embedded = tower.token_embedding(tokens)[None]  # (1, k, length, W)
    num_videos = 1 if video is None else len(video)
    parts = [embedded[:, :, :1]]
    if context is not None:
        parts.append(context.expand(1, len(tokens), -1, -1))
    if video is not None:
        parts.append(video[:, None].expand(-1, len(tokens), -1, -1))
    parts.append(embedded[:, :, 1:])
    prompts = torch.cat([part.expand(num_videos, -1, -1, -1) for part in parts], dim=2)
    length = cut or tokens.shape[1]
    x = prompts[:, :, :length].flatten(0, 1) + tower.positional_embedding[:length]
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = tower.ln_final(x).unflatten(0, (num_videos, len(tokens)))
    if ends_only:
        ends = tokens.argmax(dim=1) + prompts.shape[2] - tokens.shape[1]
        x = x[:, torch.arange(len(tokens)), ends, None]
    projection = tower.text_projection
    if isinstance(projection, nn.Linear):
        x = projection(x)
    elif projection is not None:
        x = x @ projection
    encoded: Tensor = x
    return encoded
