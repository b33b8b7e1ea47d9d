"""One frozen block of CLIP's text transformer over the rows of a prompt tree.

A block is open_clip's `ResidualAttentionBlock`; its steps stand apart here because not every
row takes every step.  Rows are packed, P of the prefix and then L of each video; only attention
looks at the tree.

B videos, P rows of the prefix, Q rows of a video, R rows of the names, L = Q + R, W width of
the tower; `qkv` and `kv` are queries, keys and values side by side, 3 W and 2 W wide.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bieff.train.text.tree import Tree


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
    count, width = max(map(len, parts)), parts[0].shape[2]
    x, qkv = (
        every[0]
        if len(every) == 1
        else torch.cat([part.expand(count, -1, -1) for part in every], dim=1)
        for every in (parts, [in_projection(block, part) for part in parts])
    )
    q, kv = qkv.split([width, 2 * width], dim=2)
    attended = attend(block, q, kv, None, is_causal=is_causal)
    return x + block.ls_1(block.attn.out_proj(attended))  # type: ignore[no-any-return]


def pack(
    prefix: Float[Tensor, "P width"],
    video: Float[Tensor, "B Q width"],
    names: Float[Tensor, "R width"],
) -> Float[Tensor, "rows width"]:
    """Put the rows of the prefix and of B videos together; the names' are the same for all."""
    per_video = torch.cat([video, names.expand(len(video), -1, -1)], dim=1)
    return torch.cat([prefix, per_video.flatten(0, 1)])


def in_projection(
    block: Any, x: Float[Tensor, "*rows W"], part: slice = slice(None)
) -> Float[Tensor, "*rows width"]:
    """Queries, keys and values side by side, or the part of them that is asked for."""
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    return F.linear(block.ln_1(x), weight[part], bias[part])


def attend_all(
    block: Any, qkv: Float[Tensor, "rows qkv"], tree: Tree
) -> Float[Tensor, "rows W"]:
    """Let every row attend to its beginning: the prefix within itself, then video by video."""
    width = qkv.shape[1] // 3
    prefix, own = qkv.split([tree.num_prefix, len(qkv) - tree.num_prefix])
    own = own.view(-1, tree.num_rows, 3 * width)
    (prefix_q, prefix_kv), (own_q, own_kv) = (
        x.split([width, 2 * width], -1) for x in (prefix, own)
    )
    queries = divide(own_q, [group.num_rows for group in tree.groups])
    first = attend(block, prefix_q[None], prefix_kv[None], None)
    rest = attend_in_groups(block, queries, prefix_kv, own_kv, tree)
    return torch.cat([first[0], rest.flatten(0, 1)])


def attend_in_groups(
    block: Any,
    queries: Sequence[Float[Tensor, "B _ W"]],
    prefix_kv: Float[Tensor, "P kv"],
    own_kv: Float[Tensor, "B L kv"],
    tree: Tree,
) -> Float[Tensor, "B n W"]:
    """Let the last rows of each group attend to the prefix, the video's rows and the group's.

    Args:
        block: Whose attention it is.
        queries: Of each group; all its rows, or those at its end.
        prefix_kv: Keys and values of the prefix.
        own_kv: Keys and values of all rows of each video.
        tree: Which rows are a group, and what each may see.
    """
    shared = prefix_kv.expand(len(own_kv), -1, -1)
    attended = []
    parts = divide(own_kv, [group.num_rows for group in tree.groups])
    for q, kv, group in zip(queries, parts, tree.groups, strict=True):
        # the first group holds the video's rows already
        video = [own_kv[:, : tree.num_video_rows]] if group.start else []
        keys = torch.cat([shared, *video, kv], dim=1)
        attended.append(attend(block, q, keys, group.mask[-q.shape[1] :]))
    return attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)


def divide(rows: Float[Tensor, "B n width"], sizes: Sequence[int]) -> Sequence[Tensor]:
    """Rows group by group; of a single group as they are, for splitting costs a copy back."""
    return (rows,) if len(sizes) == 1 else rows.split(list(sizes), dim=1)


def attend(
    block: Any,
    q: Float[Tensor, "B rows W"],
    kv: Float[Tensor, "B keys kv"],
    mask: Float[Tensor, "rows keys"] | None,
    *,
    is_causal: bool = True,
) -> Float[Tensor, "B rows W"]:
    """Multi-head attention before its output projection; without a mask causal, or over all."""
    q, k, v = (
        part.unflatten(2, (block.attn.num_heads, -1)).transpose(1, 2)
        for part in (q, *kv.chunk(2, dim=2))
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
    if type(mlp.gelu).__name__ != "QuickGELU":
        return mlp(x)  # type: ignore[no-any-return]
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    layers = mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight, mlp.c_proj.bias
    rows, wide, bias, *last = (tensor.to(dtype) for tensor in (x.flatten(0, -2), *layers))
    out: Tensor = _QuickGelu.apply(rows, wide, bias * _SLOPE, *last)  # type: ignore[no-untyped-call]
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
