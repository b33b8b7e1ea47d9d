import math

import pytest
import torch
from torch import nn

from bieff.train.method.attention import (
    Attention,
    AttentionBlock,
    linear,
    num_heads,
    quick_gelu,
)

B, Q, C, D = 3, 5, 7, 11


def shaken(module, seed=0):
    """The module with every parameter drawn anew: zeros at the start would hide mistakes."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.5)
    return module


def make(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_quick_gelu_and_its_gradient():
    x = (3 * make(B, D)).double().requires_grad_()
    torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x))
    assert torch.autograd.gradcheck(quick_gelu, x)


def reference_attention(query, key, value, heads, scale):
    """Softmax of scaled dot products a head at a time, on projected rows, in Python floats."""
    width = len(query[0]) // heads
    out = [[] for _ in query]
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for row, q in zip(out, query, strict=True):
            dots = [
                scale * sum(a * b for a, b in zip(q[part], k[part], strict=True)) for k in key
            ]
            exps = [math.exp(d) for d in dots]
            row += [
                sum(e * v[part][i] for e, v in zip(exps, value, strict=True)) / sum(exps)
                for i in range(width)
            ]
    return out


@pytest.mark.parametrize("bare", [False, True])
def test_attention_matches_the_reference(bare):
    dim = 2 * 67  # two heads of 67
    attention = shaken(Attention(dim, bare=bare))
    with torch.no_grad():
        for layer in (attention.query, attention.key):
            layer.weight.mul_(0.1)  # no softmax that is all one row
    rows, source = make(B, Q, dim), make(B, C, dim, seed=2)
    got = attention(rows, source)
    scale = 1.0 if bare else 1 / math.sqrt(67)
    for b in range(B):
        mixed = reference_attention(
            attention.query(rows[b]).tolist(),
            attention.key(source[b]).tolist(),
            attention.value(source[b]).tolist(),
            2,
            scale,
        )
        want = torch.tensor(mixed)
        if not bare:
            want = attention.out(want)
        # sums of 134 terms of size about 5, in another order
        torch.testing.assert_close(got[b], want, rtol=1e-4, atol=1e-4)


def test_self_attention_block_is_torchs_pre_norm_encoder_layer():
    dim = 2 * 67
    block = shaken(AttentionBlock(dim, cross=False))
    oracle = nn.TransformerEncoderLayer(
        dim, 2, 4 * dim, 0.0, quick_gelu, batch_first=True, norm_first=True
    )
    attention = block.attention
    with torch.no_grad():
        for kind in ("weight", "bias"):
            packed = [getattr(getattr(attention, n), kind) for n in ("query", "key", "value")]
            getattr(oracle.self_attn, f"in_proj_{kind}").copy_(torch.cat(packed))
            getattr(oracle.self_attn.out_proj, kind).copy_(getattr(attention.out, kind))
            getattr(oracle.norm1, kind).copy_(getattr(block.norm, kind))
            getattr(oracle.norm2, kind).copy_(getattr(block.feed_norm, kind))
            getattr(oracle.linear1, kind).copy_(getattr(block.widen, kind))
            getattr(oracle.linear2, kind).copy_(getattr(block.narrow, kind))
    rows = make(B, Q, dim)
    # values reach 100: the default absolute tolerance would ask for the last bit
    torch.testing.assert_close(block(rows), oracle(rows), rtol=1e-4, atol=1e-3)


def test_a_new_block_passes_its_rows_on_and_learns():
    block = AttentionBlock(D, cross=True)
    rows, source = make(B, Q, D), make(B, C, D, seed=2)
    out = block(rows, source)
    assert torch.equal(out, rows)
    out.square().sum().backward()
    assert block.attention.out.weight.grad.abs().sum() > 0
    assert block.narrow.weight.grad.abs().sum() > 0


def test_one_row_of_queries_serves_all_videos():
    block = shaken(AttentionBlock(D, cross=True))
    rows, source = make(1, Q, D), make(B, C, D, seed=2)
    got = block(rows, source)
    assert got.shape == (B, Q, D)
    torch.testing.assert_close(got, block(rows.expand(B, -1, -1), source))


def test_the_order_of_what_is_attended_to_does_not_matter():
    block = shaken(AttentionBlock(D, cross=True))
    rows, source = make(B, Q, D), make(B, C, D, seed=2)
    torch.testing.assert_close(block(rows, source), block(rows, source.flip(1)))


def test_queries_do_not_see_each_other():
    block = shaken(AttentionBlock(D, cross=True))
    rows, source = make(B, Q, D), make(B, C, D, seed=2)
    torch.testing.assert_close(block(rows, source)[:, 2:3], block(rows[:, 2:3], source))


def test_heads_divide_the_width():
    assert [num_heads(dim) for dim in (512, 768, 640, 128, 63, 11)] == [8, 12, 10, 2, 1, 1]
    assert num_heads(200) == 2  # 3 would not divide it


def test_a_layer_keeps_the_spread_of_its_input():
    torch.manual_seed(0)
    out = linear(1009, 997)(make(101, 1009))
    assert 0.95 < out.std() < 1.05
