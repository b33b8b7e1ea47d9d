"""One frozen block of CLIP's text transformer over the rows of a prompt tree.

A block is open_clip's `ResidualAttentionBlock`; its steps stand apart here because not every
row takes every step.  Rows are packed, P of the prefix and then L of each video; only attention
looks at the tree.

B videos, P rows of the prefix, Q rows of a video, R rows of the names, L = Q + R,
A = P + L, W width of the tower; `qkv` are queries, keys and values side by side, 3 W wide.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bieff.train.text.tree import Tree


def freeze(blocks: nn.ModuleList) -> nn.ModuleList:
    """Have nobody train the blocks; a bias before quick-GELU is kept with its slope, too."""
    for block in blocks.requires_grad_(False):
        mlp: Any = block.mlp
        if type(mlp.gelu).__name__ == "QuickGELU":
            mlp.c_fc.register_buffer("sloped", mlp.c_fc.bias * _SLOPE, persistent=False)
    return blocks


def run_whole(blocks: Iterable[Any], x: Float[Tensor, "B rows W"]) -> Float[Tensor, "B rows W"]:
    """All blocks over whole prompts, each by itself: no tree, every row computed."""
    for block in blocks:
        x = run_block(block, x)
    return x


def run_block(
    block: Any, x: Float[Tensor, "B rows W"], *, is_causal: bool = True
) -> Float[Tensor, "B rows W"]:
    """A block over whole prompts."""
    return feed(block, mix(block, x, is_causal=is_causal))


def mix(
    block: Any, *parts: Float[Tensor, "_ _ W"], is_causal: bool = True
) -> Float[Tensor, "B rows W"]:
    """The first half of a block over whole prompts, whose rows come in parts.

    What all prompts share is a part of one prompt; its projections are computed once.
    """
    count = max(map(len, parts))
    x, qkv = (
        every[0]
        if len(every) == 1
        else torch.cat([part.expand(count, -1, -1) for part in every], dim=1)
        for every in (parts, [in_projection(block, part) for part in parts])
    )
    q, *kv = qkv.chunk(3, dim=2)
    attended = attend(block, q, kv, None, is_causal=is_causal)
    return x + block.ls_1(block.attn.out_proj(attended))  # type: ignore[no-any-return]


def join(
    prefix: Float[Tensor, "P width"],
    video: Float[Tensor, "B Q width"],
    names: Float[Tensor, "R width"],
) -> Float[Tensor, "B A width"]:
    """All rows of each video; those of the prefix and of the names are the same for all."""
    count = len(video)
    shared, own = (part.expand(count, -1, -1) for part in (prefix, names))
    return torch.cat([shared, video, own], dim=1)


def pack(rows: Float[Tensor, "B A width"], tree: Tree) -> Float[Tensor, "rows width"]:
    """Rows of each video, where those of the prefix are all alike, with these once."""
    return _Pack.apply(rows, tree.num_prefix)  # type: ignore[no-any-return, no-untyped-call]


def unpack(
    packed: Float[Tensor, "rows width"], tree: Tree, parts: int = 1
) -> tuple[Float[Tensor, "B A part"], ...]:
    """The reverse of `pack`; what stands side by side in a row is divided into its parts."""
    return _Unpack.apply(packed, tree, parts)  # type: ignore[no-any-return, no-untyped-call]


def in_projection(
    block: Any, x: Float[Tensor, "*rows W"], part: slice = slice(None)
) -> Float[Tensor, "*rows width"]:
    """Queries, keys and values side by side, or the part of them that is asked for."""
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    return F.linear(block.ln_1(x), weight[part], bias[part])


def attend_in_groups(
    block: Any,
    queries: Sequence[Float[Tensor, "B _ W"]],
    kv: Sequence[Float[Tensor, "B A W"]],
    tree: Tree,
) -> Float[Tensor, "B n W"]:
    """Let the last rows of each group attend to the prefix, the video's rows and the group's.

    The prefix's own rows, where they are among the first group's, do so anew for every video:
    less than a hundredth of a layer's arithmetic, and a kernel less than by themselves.

    Args:
        block: Whose attention it is.
        queries: Of each group; all its rows, or those at its end.
        kv: Keys of all rows of each video, and their values.
        tree: Which rows are a group, and what each may see.
    """
    parts = list(zip(*(divide(rows, tree.sizes) for rows in kv), strict=True))
    shared = [first[:, : tree.num_shared] for first in parts[0]]
    attended = []
    for q, own, group in zip(queries, parts, tree.groups, strict=True):
        seen: Sequence[Tensor] = own
        if group.start:  # the first group holds the rows that all names follow already
            seen = [torch.cat(pair, dim=1) for pair in zip(shared, own, strict=True)]
        attended.append(attend(block, q, seen, group.mask[-q.shape[1] :]))
    return attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)


def divide(rows: Float[Tensor, "B n width"], sizes: Sequence[int]) -> Sequence[Tensor]:
    """Rows group by group; of a single group as they are, for splitting costs a copy back."""
    return (rows,) if len(sizes) == 1 else rows.split(list(sizes), dim=1)


def attend(
    block: Any,
    q: Float[Tensor, "B rows W"],
    kv: Sequence[Float[Tensor, "B keys W"]],
    mask: Float[Tensor, "rows keys"] | None,
    *,
    is_causal: bool = True,
) -> Float[Tensor, "B rows W"]:
    """Multi-head attention before its output projection; without a mask causal, or over all."""
    q, k, v = (
        part.unflatten(2, (block.attn.num_heads, -1)).transpose(1, 2) for part in (q, *kv)
    )
    mask = None if mask is None else mask.to(q.dtype)
    is_causal = is_causal and mask is None
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
    return out.transpose(1, 2).flatten(2)


def attend_few(
    block: Any, chosen: Float[Tensor, "B n W"], x: Float[Tensor, "B rows W"]
) -> Float[Tensor, "B n W"]:
    """Let few rows attend to all, without keys and values: their matrices act on the few."""
    width, heads = x.shape[2], block.attn.num_heads
    norm = block.ln_1(x)
    q = in_projection(block, chosen, slice(0, width)).unflatten(2, (heads, -1))
    weights = block.attn.in_proj_weight[width:].to(q.dtype).view(2, heads, -1, width)
    q = torch.einsum("bnhd,hdw->bnhw", q, weights[0])  # a key's offset changes no softmax
    scale = (width // heads) ** -0.5
    mean = F.scaled_dot_product_attention(q.flatten(1, 2), norm, norm, scale=scale)
    mean = torch.einsum("bnhw,hdw->bnhd", mean.unflatten(1, (-1, heads)), weights[1])
    return mean.flatten(2) + block.attn.in_proj_bias[2 * width :]  # type: ignore[no-any-return]


def finish(
    block: Any, x: Float[Tensor, "*rows W"], attended: Float[Tensor, "*rows W"]
) -> Float[Tensor, "*rows W"]:
    """The rest of a transformer block, after its attention."""
    return feed(block, x + block.ls_1(block.attn.out_proj(attended)))


def feed(block: Any, x: Float[Tensor, "*rows W"]) -> Float[Tensor, "*rows W"]:
    """The second half of a block: its feed-forward layers."""
    out: Tensor = x + block.ls_2(_feed_forward(block.mlp, block.ln_2(x)))
    return out


def _feed_forward(mlp: Any, x: Float[Tensor, "*rows W"]) -> Float[Tensor, "*rows W"]:
    """The block's `mlp`; with quick-GELU in as few passes through memory as there are."""
    if not hasattr(mlp.c_fc, "sloped"):
        return mlp(x)  # type: ignore[no-any-return]
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    layers = mlp.c_fc.weight, mlp.c_fc.sloped, mlp.c_proj.weight, mlp.c_proj.bias
    cast = (tensor.to(dtype) for tensor in (x.flatten(0, -2), *layers))
    out: Tensor = _QuickGelu.apply(*cast)  # type: ignore[no-untyped-call]
    return out.view_as(x)


_SLOPE = 1.702
"""Of quick-GELU, x sigmoid(1.702 x) = silu(1.702 x) / 1.702."""


class _QuickGelu(torch.autograd.Function):
    """Two frozen layers with quick-GELU between them; the first bias times its slope.

    The products carry the slope as their factor, and backwards the two factors cancel.  Only
    the hidden rows are kept; open_clip's form keeps three tensors of their size.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, wide: Tensor, bias: Tensor, narrow: Tensor, last: Tensor
    ) -> Tensor:
        hidden = torch.addmm(bias, x, wide.mT, alpha=_SLOPE)
        ctx.save_for_backward(hidden, wide, narrow)
        return torch.addmm(last, F.silu(hidden), narrow.mT, alpha=1 / _SLOPE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, wide, narrow = ctx.saved_tensors
        slope = torch.ops.aten.silu_backward(gradients[0] @ narrow, hidden)
        return slope @ wide, None, None, None, None


class _Unpack(torch.autograd.Function):
    """Give every video the prefix; autograd by itself would copy all rows twice backwards."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, tree: Tree, parts: int) -> tuple[Tensor, ...]:
        ctx.num_prefix = tree.num_prefix
        own = packed[tree.num_prefix :].view(-1, tree.num_rows, packed.shape[1])
        return _with_prefix(packed[: tree.num_prefix], own).chunk(parts, dim=2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        halves = [part.tensor_split([ctx.num_prefix], dim=1) for part in gradients]
        prefix, own = zip(*halves, strict=True)
        packed, place, others = _room(own[0], ctx.num_prefix, len(own))
        torch.cat(own, dim=2, out=others)
        torch.sum(torch.cat(prefix, dim=2), dim=0, out=place)
        return packed, None, None


class _Pack(torch.autograd.Function):
    """Take the prefix of one video for all: each video's has its share of the gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, num_prefix: int) -> Tensor:
        ctx.num_prefix, ctx.count = num_prefix, len(rows)
        prefix, own = rows.tensor_split([num_prefix], dim=1)
        packed, place, others = _room(own, num_prefix, 1)
        place.copy_(prefix[0])
        others.copy_(own)
        return packed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        prefix, own = gradients[0].tensor_split([ctx.num_prefix])
        return _with_prefix(prefix / ctx.count, own.unflatten(0, (ctx.count, -1))), None


def _with_prefix(prefix: Tensor, own: Tensor) -> Tensor:
    return torch.cat([prefix.expand(len(own), -1, -1), own], dim=1)


def _room(own: Tensor, num_prefix: int, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Packed rows to be written, and in them the places of the prefix's and the videos'."""
    count, num_rows, width = own.shape
    packed = own.new_empty(num_prefix + count * num_rows, parts * width)
    return packed, packed[:num_prefix], packed[num_prefix:].view(count, num_rows, -1)
