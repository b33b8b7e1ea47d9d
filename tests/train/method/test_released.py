"""`--preset released` against the authors' release, written down plainly.

What each part computes is read from `modules/` and `utils/modules/` of WbLiuBJTULab/BiEfficient
at 712b73a; the parts' weights are ours, drawn at random, and all of it in double precision.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from helpers.whole_prompts import CLIP_FORM, VOCABULARY, clip_of, encode

from bieff.clip import import_open_clip
from bieff.train.config import preset
from bieff.train.method.loss import positive_pairs, symmetric_loss
from bieff.train.runs.run import build_model, text_tower

B, T, P, D, PATCH_WIDTH, LENGTH = 4, 3, 6, 512, 24, 24
NAMES = ["playing guitar", "archery", "diving"]
LABELS = torch.tensor([2, 0, 2, 1])  # one comes twice


def norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def layer(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def attention(w, name, queries, source, scale=1.0):
    """Eight heads; the Meta-Net's has neither scale nor output projection."""
    q, k, v = (
        layer(w, f"{name}.{of}", x).view(*x.shape[:2], 8, 64)
        for of, x in (("query", queries), ("key", source), ("value", source))
    )
    weights = (scale * torch.einsum("bqhc,bthc->bhqt", q, k)).softmax(dim=-1)
    mixed = torch.einsum("bhqt,bthc->bqhc", weights, v).flatten(2)
    return layer(w, f"{name}.out", mixed) if f"{name}.out.weight" in w else mixed


def block(w, name, rows, source=None, scale=64**-0.5):
    queries = norm(w, f"{name}.norm", rows)
    seen = queries if source is None else norm(w, f"{name}.source_norm", source)
    rows = rows + attention(w, f"{name}.attention", queries, seen, scale)
    wide = quick_gelu(layer(w, f"{name}.widen", norm(w, f"{name}.feed_norm", rows)))
    return rows + layer(w, f"{name}.narrow", wide)


def released(w, clip, frames, tokens):
    """Logits, the categories picked, S and the classes; video by video, prompt by prompt."""
    context = F.layer_norm(
        tokens, tokens.shape[-1:], w["patch_context.scale"], w["patch_context.offset"]
    )
    context = (context @ w["patch_context.projection.weight"].T).mean(dim=1)  # over time
    x = frames + w["temporal.positions"]
    for i in range(2):
        x = block(w, f"temporal.blocks.{i}", x)
    meta = w["prompt.meta_token"].expand(B, 1, -1)
    meta = block(w, "prompt.attention", meta, context, scale=1.0)
    narrow = quick_gelu(layer(w, "prompt.adapter.0.narrow", meta))
    meta = meta + layer(w, "prompt.adapter.0.widen", narrow)
    ids = clip.tokenize(NAMES)
    filler = ids[:, 1:2].expand(-1, 13)
    ids = torch.cat([ids[:, :1], filler, ids[:, 1:]], dim=1)[:, :LENGTH]
    found = []
    for own, visual, now in zip(meta, context, x, strict=True):
        rows = clip.model.token_embedding(ids)
        prompt = torch.cat([w["prompt.context"], own]).expand(len(ids), -1, -1)
        rows = torch.cat([rows[:, :1], prompt, rows[:, 14:]], dim=1)
        classes, words = encode(clip.model, ids, rows)
        seen = classes[None]
        for i in range(2):
            seen = block(w, f"post_prompt.blocks.{i}", seen, visual[None])
        classes = classes + seen[0] * w["post_prompt.alpha"]
        now = now / now.norm(dim=-1, keepdim=True)
        mean = now.mean(dim=0)
        plain = F.layer_norm(classes, classes.shape[-1:])
        picked = ((plain / plain.norm(dim=-1, keepdim=True)) @ mean).argmax()
        word = norm(w, "word_guided.word_norm", words[picked])  # padding and all
        word = word / word.norm(dim=-1, keepdim=True)
        weights = (word @ now.T / 0.01).softmax(dim=-1).mean(dim=0)
        video = mean + w["word_guided.beta"] * (weights @ now)
        cosine = (classes / classes.norm(dim=-1, keepdim=True)) @ video
        found.append((cosine * w["log_scale"].exp(), picked, weights, classes))
    return [torch.stack(of) for of in zip(*found, strict=True)]


@pytest.mark.slow  # the release's heads make it 512 wide
def test_a_step_is_that_of_the_authors_modules():
    torch.manual_seed(0)
    vision = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
    text = {"vocab_size": VOCABULARY, "width": D, "heads": 8, "layers": 1}
    text["context_length"] = LENGTH
    model = import_open_clip().model.CLIP(D, vision, text, quick_gelu=True).double()
    torch.nn.init.normal_(model.token_embedding.weight)  # or all names are much alike
    clip = clip_of(model, CLIP_FORM, dim=D, length=LENGTH)
    config = dataclasses.replace(preset("released"), prompts_see="patches")
    ours = build_model(config, clip, num_frames=T, patches=(P, PATCH_WIDTH)).double()
    parameters = dict(ours.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            spread = 0.7 * parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.1
            parameter += spread * torch.randn_like(parameter)
    frames = torch.randn(B, T, D).double()
    tokens = torch.randn(B, T, P, PATCH_WIDTH).double() + 1
    stored = F.layer_norm(tokens, tokens.shape[-1:]).mean(dim=1)

    logits, picked, weights, classes = released(parameters, clip, frames, tokens)
    # a column a video, CrossEntropyLoss both ways, targets that do not add up to one
    columns = logits[:, LABELS]
    same = (LABELS[:, None] == LABELS).double()
    loss = (F.cross_entropy(columns, same) + F.cross_entropy(columns.T, same)) / 2
    want = torch.autograd.grad(loss, list(parameters.values()))

    scores = ours(frames, text_tower(clip, clip.tokenize(NAMES)), patches=stored)
    pairs = positive_pairs(LABELS, torch.arange(len(NAMES)))
    mine = symmetric_loss(scores.logits, pairs, targets=config.targets)
    got = torch.autograd.grad(mine, list(parameters.values()))
    assert torch.equal(scores.picked, picked)
    assert len(picked.unique()) > 1
    for one, other in (
        (scores.logits, logits),
        (scores.frame_weights, weights),
        (scores.classes, classes),
        (mine, loss),
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    largest = max(of.abs().max() for of in want)
    for name, one, other in zip(parameters, got, want, strict=True):
        assert other.any(), name
        # a key's offset moves all likenesses of a query alike: its gradient is rounding
        size = other.abs().max().clamp(min=1e-6 * largest)
        assert (one - other).abs().max() < 1e-10 * size, name
