"""Layers and a block of attention on one row, in Python floats: a slow reference."""

import math


def affine(layer, row):
    """A Linear layer on one row, in Python floats."""
    return [
        sum(w * x for w, x in zip(weights, row, strict=True)) + bias
        for weights, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    ]


def norm(layer, row):
    """A LayerNorm on one row, in Python floats."""
    mean = sum(row) / len(row)
    spread = math.sqrt(sum((x - mean) ** 2 for x in row) / len(row) + layer.eps)
    triples = zip(row, layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [(x - mean) / spread * w + b for x, w, b in triples]


def attention_block(block, row, source):
    """A row of one head after it has looked at the rows of `source`, and its feed-forward."""
    attention = block.attention
    source = [norm(block.source_norm, other) for other in source]
    query = affine(attention.query, norm(block.norm, row))
    values = [affine(attention.value, other) for other in source]
    exps = []
    for other in source:
        key = affine(attention.key, other)
        dot = sum(q * k for q, k in zip(query, key, strict=True))
        exps.append(math.exp(dot / math.sqrt(len(row))))
    mixed = [
        sum(e * v[i] for e, v in zip(exps, values, strict=True)) / sum(exps)
        for i in range(len(row))
    ]
    row = [x + y for x, y in zip(row, affine(attention.out, mixed), strict=True)]
    hidden = affine(block.widen, norm(block.feed_norm, row))
    hidden = [x / (1 + math.exp(-1.702 * x)) for x in hidden]  # QuickGELU
    return [x + y for x, y in zip(row, affine(block.narrow, hidden), strict=True)]
