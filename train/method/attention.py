"""The transformer block that the temporal transformer, Meta-Net and Post-Prompt share.

B videos, Q query rows, C rows attended to, D width.

Weights start so that a block does nothing: the last projection of either branch is zero.
The paper does not say how its modules start.  A CLIP-like start would add rows of length
sqrt(D) to embeddings of length about 10, and training would begin far from the frozen CLIP
whose zero-shot skill is the point; a zero last layer starts exactly there and learns from the
first step, as its gradient is not zero.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

TOKEN_STD = 0.02
"""Spread of learned tokens at the start: that of CLIP's own token table."""


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's activation, x * sigmoid(1.702 x)."""
    return _QuickGelu.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class _QuickGelu(torch.autograd.Function):
    """As silu(1.702 x) / 1.702: one tensor to keep, and one kernel on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = 1.702 * x
        ctx.save_for_backward(scaled)
        return F.silu(scaled).div_(1.702)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (scaled,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradients[0], scaled)  # type: ignore[no-any-return]


def num_heads(dim: int) -> int:
    """One head for 64 channels, as in CLIP, and fewer where that does not divide `dim`."""
    heads = max(1, dim // 64)
    while dim % heads:
        heads -= 1
    return heads


def linear(inputs: int, outputs: int, *, bias: bool = True, gain: float = 1.0) -> nn.Linear:
    """A layer that keeps the spread of its input times `gain` at the start; no offset."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=gain * inputs**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def side_by_side(
    x: Float[Tensor, "B R D"], *layers: nn.Linear
) -> tuple[Float[Tensor, "B R _"], ...]:
    """What each layer makes of the same rows, in one product; checkpoints have them apart."""
    weight, bias = (
        torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias")
    )
    return F.linear(x, weight, bias).chunk(len(layers), dim=-1)


class Attention(nn.Module):
    """Multi-head attention of `queries` to `source`.

    `bare` leaves out the output projection and the 1/sqrt(d) scale, as the Meta-Net of the
    authors' release does; the values then start small instead of the projection at zero.
    """

    def __init__(self, dim: int, *, bare: bool = False) -> None:
        super().__init__()
        self.heads = num_heads(dim)
        self.scale = 1.0 if bare else (dim // self.heads) ** -0.5
        self.query = linear(dim, dim)
        self.key = linear(dim, dim)
        self.value = linear(dim, dim, gain=TOKEN_STD if bare else 1.0)
        self.out = None if bare else linear(dim, dim, gain=0.0)

    def forward(
        self, queries: Float[Tensor, "#B Q D"], source: Float[Tensor, "B C D"]
    ) -> Float[Tensor, "B Q D"]:
        """Return one row for each query; queries of a single row serve all videos."""
        if queries is source:
            found = side_by_side(source, self.query, self.key, self.value)
        else:
            found = self.query(queries), *side_by_side(source, self.key, self.value)
        query, key, value = (
            rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, rows, d)
            for rows in found
        )
        query = query.expand(len(source), -1, -1, -1)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, Q, D)
        return mixed if self.out is None else self.out(mixed)


class AttentionBlock(nn.Module):
    """Pre-norm attention and a 4 D feed-forward network, each with its skip (paper's [47]).

    With `cross` the rows attend to others, which have a norm of their own; without, to each
    other.
    """

    def __init__(self, dim: int, *, cross: bool, bare: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.source_norm = nn.LayerNorm(dim) if cross else None
        self.attention = Attention(dim, bare=bare)
        self.feed_norm = nn.LayerNorm(dim)
        self.widen = linear(dim, 4 * dim)
        self.narrow = linear(4 * dim, dim, gain=0.0)

    def forward(
        self, rows: Float[Tensor, "#B Q D"], source: Float[Tensor, "B C D"] | None = None
    ) -> Float[Tensor, "B Q D"]:
        """Return the rows with what they found in `source`; none for self-attention."""
        assert (source is None) == (self.source_norm is None)
        if self.source_norm is not None:
            queries, source = self.norm(rows), self.source_norm(source)
        else:
            queries = source = self.norm(rows)
        rows = rows + self.attention(queries, source)
        feed: Tensor = self.narrow(quick_gelu(self.widen(self.feed_norm(rows))))
        return rows + feed
