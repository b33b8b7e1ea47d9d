"""The text tower as a tree against open_clip's encoder on every full prompt."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def encode_in_full(
    clip: nn.Module,
    tokens: Int[Tensor, "k length"],
    context: Float[Tensor, "M W"] | None,
    video: Float[Tensor, "B Q W"] | None,
    *,
    cut: int | None = None,
) -> Float[Tensor, "B k rows D"]:
    """Encode B x k whole prompts as the authors do; all rows, projected.

    Args:
        cut: Encode this many positions only; all 77 by default.
    """
    tower = getattr(clip, "text", clip)
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
    x = tower.ln_final(x)
    projection = tower.text_projection
    if isinstance(projection, nn.Linear):
        x = projection(x)
    elif projection is not None:
        x = x @ projection
    return x.unflatten(0, (num_videos, len(tokens)))
