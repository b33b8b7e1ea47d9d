"""The text tower as a tree, against open_clip's own encoder on every full prompt."""

import runpy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.places import TESTS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bieff.apps.bench.train import encode_in_full
from bieff.clip import ClipName, import_open_clip, load
from bieff.features.errors import InputError
from bieff.train.text.tower import TextTower

bench = runpy.run_path(str(TESTS / "bench_text_tower.py"))
peak_bytes = bench["peak_bytes"]

SOT, EOT, VOCABULARY, CONTEXT_LENGTH = 97, 98, 99, 77
TINY = ClipName(model="tinyclip", pretrained=None)


@dataclass(frozen=True)
class Kind:
    """A text tower: what open_clip builds it from."""

    text: dict[str, Any]
    quick_gelu: bool = False
    is_custom: bool = False
    dim: int = 48


SMALL = {"width": 48, "heads": 3, "layers": 3}
KINDS = {
    "tiny": Kind({"width": 128, "heads": 4, "layers": 4}, quick_gelu=True, dim=128),
    "gelu": Kind(SMALL),
    "widths differ": Kind(SMALL, dim=23, quick_gelu=True),
    "layer scale": Kind({**SMALL, "ls_init_value": 0.3}),
    "custom text": Kind({**SMALL, "proj_bias": True}, is_custom=True, dim=37),
    "no projection": Kind({**SMALL, "proj_type": "none"}, is_custom=True),
    "pooled at eos": Kind({**SMALL, "pool_type": "eos", "eos_id": EOT}, is_custom=True),
    "other norm and activation": Kind(
        {**SMALL, "norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}}
    ),
    "one layer": Kind({**SMALL, "layers": 1}),
}


def build(kind: Kind) -> nn.Module:
    """A seeded random CLIP whose biases and norms are not the 0 and 1 of a new one."""
    open_clip = import_open_clip()
    vision = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
    text = {"vocab_size": VOCABULARY, "context_length": CONTEXT_LENGTH, **kind.text}
    model = open_clip.model.CustomTextCLIP if kind.is_custom else open_clip.model.CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        clip: nn.Module = model(kind.dim, vision, text, quick_gelu=kind.quick_gelu)
        for parameter in clip.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return clip.eval().requires_grad_(False)


built = cache(lambda name: build(KINDS[name]))


def tokenised(names: list[list[int]]) -> Tensor:
    """Names given by their own tokens, with SOT, EOT and padding."""
    tokens = torch.zeros(len(names), CONTEXT_LENGTH, dtype=torch.int64)
    for row, name in zip(tokens, names, strict=True):
        row[: len(name) + 2] = torch.tensor([SOT, *name, EOT])
    return tokens


def random_names(count: int, seed: int = 3, longest: int = 7) -> list[list[int]]:
    """Names of few distinct tokens, so that many begin alike."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(1, 4, (n,), generator=generator).tolist() for n in lengths]


def inputs(
    clip: nn.Module, *, M: int, B: int, Q: int, seed: int = 11
) -> tuple[Tensor | None, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    weight = getattr(clip, "text", clip).token_embedding.weight
    width, dtype = weight.shape[1], weight.dtype
    context = 0.2 * torch.randn(M, width, generator=generator, dtype=dtype)
    video = 0.2 * torch.randn(B, Q, width, generator=generator, dtype=dtype)
    return context.requires_grad_() if M else None, video.requires_grad_() if Q else None


def relative_error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    assert got.isfinite().all()
    return float(((got - want).abs().max() / want.abs().max()).detach())


def gradients(output: Tensor, *leaves: Tensor | None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    given_leaves = [leaf for leaf in leaves if leaf is not None]
    return list(torch.autograd.grad((output * weight).sum(), given_leaves, retain_graph=True))


def check(
    clip: nn.Module, tokens: Tensor, categories: Tensor, *, M: int, B: int, Q: int, limit: float
) -> None:
    """Classes, words of picked categories, and their gradients agree with full prompts."""
    tower = TextTower(clip, tokens)
    context, video = inputs(clip, M=M, B=B, Q=Q)
    prompted = tower(context, video, categories=categories)
    rows = encode_in_full(clip, tokens[categories], context, video)  # (B, k, 77, D)
    end = tokens[categories].argmax(dim=1) + M + Q
    want = rows[:, torch.arange(len(categories)), end]
    assert relative_error(prompted.classes, want) < limit
    if context is not None or video is not None:
        pairs = zip(
            gradients(prompted.classes, context, video),
            gradients(want, context, video),
            strict=True,
        )
        for got, wanted in pairs:
            assert relative_error(got, wanted) < limit

    videos = torch.arange(B if Q else 1)
    picked = torch.randint(len(categories), (B,), generator=torch.Generator().manual_seed(B))
    words, mask = prompted.words(picked)
    assert mask.sum(dim=1).tolist() == (end[picked] - 1 - M - Q).tolist()
    of_video = rows[videos.expand(B), picked, 1 + M + Q :][:, : mask.shape[1]]
    assert relative_error(words[mask], of_video[mask]) < limit
    if context is not None or video is not None:
        pairs = zip(
            gradients(words[mask], context, video),
            gradients(of_video[mask], context, video),
            strict=True,
        )
        for got, wanted in pairs:
            assert relative_error(got, wanted) < limit


def check_positions(
    clip: nn.Module, tokens: Tensor, categories: Tensor, *, M: int, B: int, Q: int, limit: float
) -> None:
    """All positions of picked prompts, padding included, and their gradients."""
    context, video = inputs(clip, M=M, B=B, Q=Q)
    prompted = TextTower(clip, tokens)(context, video, categories=categories)
    picked = torch.randint(len(categories), (B,), generator=torch.Generator().manual_seed(B))
    rows, mask = prompted.positions(picked)
    whole = encode_in_full(clip, tokens[categories], context, video)
    want = whole[torch.arange(B) if Q else torch.zeros(B, dtype=torch.int64), picked]
    assert mask.shape == (B, CONTEXT_LENGTH)
    assert mask.all()
    assert relative_error(rows, want) < limit
    if context is not None or video is not None:
        pairs = zip(
            gradients(rows, context, video), gradients(want, context, video), strict=True
        )
        for got, wanted in pairs:
            assert relative_error(got, wanted) < limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("M", "Q"), [(5, 1), (0, 7), (3, 0), (0, 0)])
def test_all_positions_of_a_prompt_are_those_of_the_whole_encoder(kind, M, Q):
    tokens = tokenised(random_names(11))
    categories = torch.tensor([3, 10, 0, 7, 7])
    check_positions(built(kind), tokens, categories, M=M, B=3, Q=Q, limit=1e-5)


def test_a_prompt_without_padding_has_all_positions_too():
    tokens = tokenised([[1, 2] * 20, [3]])
    check_positions(built("gelu"), tokens, torch.arange(2), M=34, B=3, Q=1, limit=1e-5)


@st.composite
def trees(draw: Any) -> tuple[Tensor, Tensor, int, int, int]:
    """Tokenised names with common beginnings, a choice of them, and M, B, Q."""
    name = st.lists(st.integers(1, 3), min_size=1, max_size=7)
    names = draw(st.lists(name, min_size=1, max_size=23))
    index = st.integers(0, len(names) - 1)
    categories = draw(st.lists(index, min_size=1, max_size=29))
    M, B, Q = draw(st.integers(0, 5)), draw(st.integers(1, 4)), draw(st.integers(0, 5))
    return tokenised(names), torch.tensor(categories), M, B, Q


@settings(max_examples=25, deadline=None, derandomize=True)
@given(tree=trees(), kind=st.sampled_from(sorted(set(KINDS) - {"tiny"})))
def test_any_tree_agrees_with_full_prompts(tree, kind):
    tokens, categories, M, B, Q = tree
    check(built(kind), tokens, categories, M=M, B=B, Q=Q, limit=1e-5)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(tree=trees(), kind=st.sampled_from(sorted(KINDS)))
def test_many_trees_agree_with_full_prompts(tree, kind):
    tokens, categories, M, B, Q = tree
    check(built(kind), tokens, categories, M=M, B=B, Q=Q, limit=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tower_agrees_with_full_prompts(kind):
    tokens = tokenised(random_names(11))
    check(built(kind), tokens, torch.arange(11), M=5, B=3, Q=1, limit=1e-5)


def test_many_names_are_divided_into_groups_and_come_back_in_order():
    tokens = tokenised(random_names(127))
    categories = torch.randperm(127, generator=torch.Generator().manual_seed(1))[:113]
    clip = built("gelu")
    check(clip, tokens, categories, M=3, B=2, Q=2, limit=1e-5)
    assert len(TextTower(clip, tokens).prompt_tree(3, 2, categories=categories).groups) > 1


def test_in_double_precision_it_is_the_same_function():
    clip = build(KINDS["layer scale"]).double()
    tokens = tokenised(random_names(13))
    check(clip, tokens, torch.arange(13), M=4, B=3, Q=2, limit=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "examples"),
    [(TINY, 20), (ClipName(model="ViT-B-16-quickgelu", pretrained="random"), 6)],
    ids=["tinyclip", "ViT-B/16"],
)
def test_any_tree_of_real_names_agrees_with_full_prompts(name, examples):
    clip = load(name)
    words = ["playing", "guitar", "drums", "racquetball", "a", "(not in game)", "star"]
    some = st.lists(st.sampled_from(words), min_size=1, max_size=4).map(" ".join)

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(data=st.data())
    def agrees(data):
        names = data.draw(st.lists(some, min_size=1, max_size=5))
        index = st.integers(0, len(names) - 1)
        categories = torch.tensor(data.draw(st.lists(index, min_size=1, max_size=6)))
        M, Q = data.draw(st.sampled_from([(16, 1), (16, 8), (0, 16), (5, 0), (0, 0)]))
        B = data.draw(st.integers(1, 3))
        tokens = clip.tokenize(names)
        check(clip.model, tokens, categories, M=M, B=B, Q=Q, limit=1e-5)

    agrees()


@pytest.mark.slow
def test_the_text_tower_of_vit_b_16():
    clip = load(ClipName(model="ViT-B-16-quickgelu", pretrained="random"))
    names = ["playing guitar", "playing drums", "archery", "passing football (not in game)"]
    tokens = clip.tokenize(names)
    check(clip.model, tokens, torch.arange(4), M=16, B=2, Q=1, limit=1e-5)
    check(clip.model, tokens, torch.tensor([3, 1]), M=16, B=2, Q=8, limit=1e-5)


def test_the_similarity_of_words_is_their_sum_of_cosines():
    clip, names = built("widths differ"), random_names(7)
    tokens = tokenised(names)
    context, video = inputs(clip, M=2, B=3, Q=1)
    prompted = TextTower(clip, tokens)(context, video)
    pooled = torch.randn(3, 23, generator=torch.Generator().manual_seed(2))
    rows = encode_in_full(clip, tokens, context, video).detach()
    want = [
        [
            float(F.cosine_similarity(rows[b, k, 4 : 4 + len(name)], pooled[b], dim=-1).sum())
            for k, name in enumerate(names)
        ]
        for b in range(3)
    ]
    got = prompted.word_similarity(pooled).detach()
    torch.testing.assert_close(got, torch.tensor(want))


def test_without_a_video_one_result_serves_all():
    clip, tokens = built("gelu"), tokenised(random_names(5))
    context, _ = inputs(clip, M=3, B=1, Q=0)
    prompted = TextTower(clip, tokens)(context, None)
    assert prompted.classes.shape == (1, 5, 48)
    words, mask = prompted.words(torch.tensor([4, 0, 4]))
    assert words.shape[:2] == mask.shape == (3, mask.shape[1])
    assert torch.equal(words[0], words[2])


def test_autocast_is_as_near_to_float32_as_open_clip_is():
    clip, tokens = built("tiny"), tokenised(random_names(11))
    context, video = inputs(clip, M=5, B=3, Q=1)
    end = tokens.argmax(dim=1) + 6
    exact = encode_in_full(clip, tokens, context, video)[:, torch.arange(11), end]
    with torch.autocast("cpu", torch.bfloat16):
        theirs = encode_in_full(clip, tokens, context, video)[:, torch.arange(11), end]
        ours = TextTower(clip, tokens)(context, video).classes
    assert ours.dtype == theirs.dtype
    with torch.no_grad():
        error = [float((x.float() - exact).norm() / exact.norm()) for x in (ours, theirs)]
    assert error[0] < 1.2 * error[1] < 0.05
    for got, want in zip(
        gradients(ours.float(), context, video), gradients(exact, context, video), strict=True
    ):
        assert float((got - want).norm() / want.norm()) < 0.05


def test_only_prompts_learn():
    clip, tokens = build(KINDS["gelu"]), tokenised(random_names(5))
    clip.requires_grad_(True)
    tower = TextTower(clip, tokens)
    context, video = inputs(clip, M=3, B=2, Q=1)
    tower(context, video).classes.sum().backward()
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert all(leaf is not None and leaf.grad is not None for leaf in (context, video))


REFUSED = {
    "bidirectional": {"no_causal_mask": True},
    "pooled at 'first'": {"pool_type": "first"},
    "pooled at 'last'": {"pool_type": "last"},
    "class embedding": {"embed_cls": True},
    "CustomResidualAttentionBlock": {"qk_norm": True},
}


@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.parametrize("is_custom", [True, False])
def test_a_tower_that_is_no_tree_is_refused(reason, is_custom):
    clip = build(Kind({**SMALL, **REFUSED[reason]}, is_custom=is_custom))
    with pytest.raises(InputError, match=f"text tower: expected a causal .*, got .*{reason}"):
        TextTower(clip, tokenised([[1]]))


def test_a_tower_of_another_library_is_refused():
    clip = build(Kind(SMALL, is_custom=True))
    clip.text = nn.LSTM(3, 5)
    with pytest.raises(InputError, match="got LSTM, which is not open_clip's own"):
        TextTower(clip, tokenised([[1]]))


@pytest.mark.parametrize(("M", "Q", "K"), [(16, 1, 113), (0, 7, 3)])
def test_as_many_videos_as_are_said_to_fit_do_fit(M, Q, K):
    clip = built("gelu")
    tower = TextTower(clip, tokenised(random_names(K)))
    count = tower.max_videos(8e6, num_context=M, num_video_rows=Q)
    context, video = inputs(clip, M=M, B=count, Q=Q)
    picked = torch.zeros(count, dtype=torch.int64)
    pooled = torch.ones(count, tower.dim)
    for use in (lambda p: p.words(picked), lambda p: p.word_similarity(pooled)):
        with torch.no_grad():
            assert 4e6 < peak_bytes(lambda u=use: u(tower(context, video))) < 8e6
    assert tower.max_videos(1.0, num_context=M, num_video_rows=Q) == 1


def test_a_prompt_that_is_too_long_is_refused():
    clip, tokens = built("one layer"), tokenised([[1], [1, 2, 3]])
    tower = TextTower(clip, tokens)
    context, video = inputs(clip, M=41, B=1, Q=31)
    assert tower(context, video).classes.isfinite().all()  # 77 tokens
    context, video = inputs(clip, M=41, B=1, Q=32)
    with pytest.raises(InputError, match="expected at most 77 tokens, got 78; use"):
        tower(context, video)
    assert tower(context, video, categories=torch.tensor([0])).classes.shape == (1, 1, 48)


def test_names_of_another_tokenizer_are_refused():
    tokens = tokenised([[1], [2]])
    tokens[1, 0] = 3
    with pytest.raises(InputError, match="expected every name tokenised between one start"):
        TextTower(built("one layer"), tokens)
