"""Prompts encoded whole, against open_clip's own modules on every prompt by itself."""

import runpy

import pytest
import torch
import torch.nn.functional as F
from helpers import fake_store as fake
from helpers.places import TESTS
from helpers.whole_prompts import CLIP_FORM, VOCABULARY, PlainTower, clip_of, embedding, encode
from torch import Tensor, nn

from bieff.apps.bench.run import bench
from bieff.clip import Clip, TokenForm, import_open_clip
from bieff.features.errors import InputError
from bieff.train.evaluate.classifier import class_embeddings
from bieff.train.runs.run import text_tower
from bieff.train.text import whole
from bieff.train.text.tower import TextTower
from bieff.train.text.whole import WholeTower

NAMES = ["playing guitar", "archery", "playing the drums", "a b c d e", "diving"]
NO_START, NO_END = TokenForm(None, 1, 0), TokenForm(101, 0, 0)
SMALL = {"width": 48, "heads": 3, "layers": 3, "vocab_size": VOCABULARY, "context_length": 23}
BOTH_WAYS = {"no_causal_mask": True}

KINDS: dict[str, tuple[dict[str, object], TokenForm, bool]] = {
    "pooled at the end token": (BOTH_WAYS, CLIP_FORM, False),
    "pooled at eos": ({**BOTH_WAYS, "pool_type": "eos", "eos_id": 1}, NO_START, True),
    "pooled last": ({**BOTH_WAYS, "pool_type": "last", "proj_bias": True}, NO_START, True),
    "pooled last, flat": ({**BOTH_WAYS, "pool_type": "last"}, NO_END, False),
    "pooled first": ({**BOTH_WAYS, "pool_type": "first"}, NO_END, True),
    "no projection": (
        {**BOTH_WAYS, "pool_type": "last", "proj_type": "none", "ls_init_value": 0.3},
        TokenForm(None, 1, 1),
        True,
    ),
    "padding is masked": (BOTH_WAYS, CLIP_FORM, True),
    "the largest token is a word": (BOTH_WAYS, NO_START, True),
    "class embedding": ({"embed_cls": True}, CLIP_FORM, True),
    "causal, pooled last": ({"pool_type": "last"}, NO_START, True),
    "other blocks": ({"qk_norm": True, "scale_heads": True}, CLIP_FORM, True),
}
BY_BLOCK = [name for name in KINDS if name.startswith(("pooled", "no"))]


def build(kind: str) -> Clip:
    """A seeded random CLIP whose biases and norms are not the 0 and 1 of a new one."""
    open_clip = import_open_clip()
    text, form, is_custom = KINDS[kind]
    vision = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
    make = open_clip.model.CustomTextCLIP if is_custom else open_clip.model.CLIP
    dim = 48 if text.get("proj_type") else 37
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model: nn.Module = make(dim, vision, {**SMALL, **text})
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    if kind == "padding is masked":
        model.text.use_pad_mask = True
    return clip_of(model, form, dim=dim, length=23)


def rows(*shape: int, seed: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.2 * torch.randn(*shape, 48, generator=generator)).requires_grad_()


def check(clip: Clip, context: Tensor | None, video: Tensor | None, chosen: Tensor) -> None:
    """Classes, words and similarity, and the gradients of all of them."""
    ours = text_tower(clip, clip.tokenize(NAMES))(context, video, categories=chosen)
    plain = PlainTower(clip, NAMES)(context, video, categories=chosen)
    num_videos = 3 if video is None else len(video)
    picked = torch.tensor([2, 0, 1])[:num_videos]
    pooled = torch.randn(num_videos, clip.dim, generator=torch.Generator().manual_seed(2))
    words, mask = ours.words(picked)
    wanted, wanted_mask = plain.words(picked)
    size = wanted.shape[1]
    assert torch.equal(mask[:, :size], wanted_mask)
    assert not mask[:, size:].any()
    pairs = [
        (ours.classes, plain.classes),
        (words[:, :size][wanted_mask], wanted[wanted_mask]),
        (ours.word_similarity(pooled), plain.word_similarity(pooled)),
    ]
    leaves = [leaf for leaf in (context, video) if leaf is not None]
    for got, want in pairs:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)
        if leaves:
            weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(7))
            both = [
                torch.autograd.grad((of * weight).sum(), leaves, retain_graph=True)
                for of in (got, want)
            ]
            for mine, theirs in zip(*both, strict=True):
                assert (mine - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("M", "Q"), [(5, 1), (0, 3), (4, 0), (0, 0)])
def test_whole_prompts_are_those_of_open_clip(kind, M, Q):
    clip = build(kind)
    tower = text_tower(clip, clip.tokenize(NAMES))
    assert isinstance(tower, WholeTower)
    assert tower.is_plain == (kind in BY_BLOCK)
    check(clip, rows(M) if M else None, rows(2, Q) if Q else None, torch.tensor([3, 0, 1, 0]))


@pytest.mark.parametrize("kind", ["pooled last", "class embedding"])
@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_chunks_and_what_is_computed_again_change_nothing(monkeypatch, kind, kept):
    monkeypatch.setattr(whole, "CHUNK_BYTES", {"cpu": 4 * 23 * 48 * 4 * 3})
    monkeypatch.setattr(whole, "KEPT_BYTES", {"cpu": kept})
    check(build(kind), rows(5), rows(2, 1), torch.tensor([3, 0, 1, 4, 2]))


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_classes_are_those_of_encode_text(kind):
    clip = build(kind)
    want = F.normalize(clip.model.encode_text(clip.tokenize(NAMES)), dim=-1)
    torch.testing.assert_close(class_embeddings(clip, NAMES, "bare"), want)


@pytest.mark.parametrize("kind", ["pooled first", "class embedding"])
def test_all_positions_of_a_prompt(kind):
    clip = build(kind)
    context, video = rows(2), rows(2, 1)
    prompted = text_tower(clip, clip.tokenize(NAMES))(context, video)
    found, mask = prompted.positions(torch.tensor([1, 4]))
    start = int(clip.form.start is not None)
    for b, name in enumerate((1, 4)):
        row = clip.tokenize(NAMES)[name]
        ids = torch.cat([row[:start], row[start].expand(3), row[start:]])[:23]
        embed = embedding(clip.model)
        own = torch.cat([embed(row[:start]), context, video[b], embed(row[start:])])[:23]
        _, (want,) = encode(clip.model, ids[None], own[None])
        torch.testing.assert_close(found[b], want[:23], rtol=1e-4, atol=2e-5)
    assert mask.all()
    assert mask.shape == (2, 23)


def test_prompts_that_nothing_changes_are_encoded_once(monkeypatch):
    clip = build("pooled last")
    tower = text_tower(clip, clip.tokenize(NAMES))
    encoded = []
    inner = WholeTower._chunk
    monkeypatch.setattr(
        WholeTower, "_chunk", lambda self, *a: encoded.append(len(a[-1])) or inner(self, *a)
    )
    fixed, learned = rows(4).detach(), rows(4)
    first = tower(fixed, None, categories=torch.tensor([1])).classes
    assert torch.equal(tower(fixed.clone(), None).classes[:, 1:2], first)
    assert encoded == [5]
    tower(fixed + 1, None)
    assert encoded == [5, 5]
    tower(learned, None, categories=torch.tensor([1, 2]))
    assert encoded == [5, 5, 2]
    with torch.no_grad():
        assert not tower(learned, None).classes.requires_grad
        tower(learned, None)
    assert encoded == [5, 5, 2, 5]


def test_as_many_videos_as_are_said_to_fit_do_fit(monkeypatch):
    monkeypatch.setattr(whole, "CHUNK_BYTES", {"cpu": 1 << 17})
    clip = build("pooled last")
    tower = text_tower(clip, clip.tokenize(NAMES))
    count = tower.max_videos(8e6, num_context=5, num_video_rows=1)
    peak_bytes = runpy.run_path(str(TESTS / "bench_text_tower.py"))["peak_bytes"]
    context, video = rows(5), rows(count, 1)
    with torch.no_grad():
        pooled = torch.ones(count, clip.dim)
        peak = peak_bytes(lambda: tower(context, video).word_similarity(pooled))
    assert 4e6 < peak < 8e6
    assert tower.max_videos(1.0, num_context=5, num_video_rows=1) == 1
    assert tower.max_videos(8e6, num_context=5, num_video_rows=0) > 1.5 * count


def test_the_tree_reads_tokens_that_begin_without_a_start():
    """As mT5's: the tree has no row before the context."""
    open_clip = import_open_clip()
    vision = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = open_clip.model.CLIP(37, vision, {**SMALL, "pool_type": "eos", "eos_id": 1})
    clip = clip_of(model, NO_START, dim=37, length=23)
    assert isinstance(text_tower(clip, clip.tokenize(NAMES)), TextTower)
    for M, Q in ((5, 1), (0, 3), (4, 0), (0, 0)):
        context, video = rows(M) if M else None, rows(2, Q) if Q else None
        check(clip, context, video, torch.tensor([3, 0, 1, 0]))


def test_bench_asks_for_a_tree_before_it_measures(tmp_path):
    name = fake.write_clip(tmp_path / "clip", no_causal_mask=True)
    with pytest.raises(InputError, match="form a tree, got a bidirectional one; `bieff extra"):
        bench(name.model, device="cpu")


def test_a_tower_of_another_library_is_refused():
    clip = build("pooled last")
    clip.model.text = nn.LSTM(3, 5)
    with pytest.raises(InputError, match=r"expected one of open_clip or .*, got LSTM; choose"):
        text_tower(clip, clip.tokenize(NAMES))


def test_a_prompt_that_is_too_long_is_refused():
    clip = build("pooled last")
    tower = text_tower(clip, clip.tokenize(NAMES))
    assert tower(rows(16), rows(1, 1)).classes.isfinite().all()  # 23 tokens
    with pytest.raises(InputError, match="expected at most 23 tokens, got 24; use"):
        tower(rows(17), rows(1, 1))
    assert tower(rows(19), rows(1, 1), categories=torch.tensor([1])).classes.isfinite().all()
