"""The transformer block that the temporal transformer, Meta-Net and Post-Prompt share.

B videos, Q query rows, C rows attended to, D width.

Weights start so that a block does nothing: the last projection of either branch is zero.
The paper does not say how its modules start.  A CLIP-like start would add rows of length
sqrt(D) to embeddings of length about 10, and training would begin far from the frozen CLIP
whose zero-shot skill is the point; a zero last layer starts exactly there and learns from the
first step, as its gradient is not zero.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

TOKEN_STD = 0.02
"""Spread of learned tokens at the start: that of CLIP's own token table."""


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's activation, x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


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
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, rows, d)
            for layer, x in ((self.query, queries), (self.key, source), (self.value, source))
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
