import math

import pytest
import torch
from helpers.floats import affine, attention_block

from bieff.features.errors import ConfigError
from bieff.train.config import load
from bieff.train.method.pre_prompt import make_prompt

B, C, M, D, W = 3, 5, 7, 11, 13
DESIGNS = {
    "paper": [],
    "a1": ["design=a1"],
    "a2": ["design=a2"],
    "a3": ["design=a3"],
    "residual": ["adapter=residual"],
    "bare": ["meta_attention=bare"],
}


def build(design, dim=D, width=W, num_context=M):
    settings = [*DESIGNS.get(design, [f"prompt={design}"]), f"num_context={num_context}"]
    return make_prompt(load(overrides=settings), dim, width)


def make(design, *, shaken=True):
    torch.manual_seed(0)
    module = build(design)
    draw = torch.Generator().manual_seed(1)
    if shaken:  # zeros at the start would hide mistakes
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.5)
    return module, torch.randn(B, C, D, generator=draw)


def reference_meta_net(module, visual):
    """Eq. 6 for one video: meta-token, attention, feed-forward, Adapter, in Python floats."""
    found = attention_block(module.attention, module.meta_token.tolist(), visual)
    squeezed = affine(module.adapter.narrow, found)
    squeezed = [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in squeezed]  # GELU
    return affine(module.adapter.widen, squeezed)


def test_meta_net_matches_the_reference():
    module, visual = make("paper")
    prompt = module(visual)
    want = torch.tensor([[reference_meta_net(module, video)] for video in visual.tolist()])
    # a chain of six sums in float32 against Python's double precision
    torch.testing.assert_close(prompt.video, want, rtol=1e-4, atol=1e-5)
    assert torch.equal(prompt.context, module.context)


def test_meta_net_by_hand_with_attention_shut():
    """The block at its start passes the meta-token on; one channel through the Adapter."""
    module, visual = make("paper", shaken=False)
    with torch.no_grad():
        module.meta_token.zero_()[0] = 2.0
        for layer in (module.adapter.narrow, module.adapter.widen):
            layer.weight.zero_()
        module.adapter.narrow.weight[0, 0] = 0.5  # hidden 1
        module.adapter.widen.weight[3, 0] = 10.0
    want = torch.zeros(B, 1, W)
    want[..., 3] = 8.413447  # 10 * GELU(1), GELU(1) = normal distribution function at 1
    torch.testing.assert_close(module(visual).video, want)


@pytest.mark.parametrize(
    ("design", "has_context", "num_rows"),
    [
        ("paper", True, 1),
        ("a1", True, C),
        ("a2", False, M),
        ("a3", True, 1),
        ("residual", True, 1),
        ("bare", True, 1),
    ],
)
def test_a_design_puts_its_rows_where_table_6_says(design, has_context, num_rows):
    module, visual = make(design)
    context, video = module(visual)
    assert (context is not None) == has_context
    assert not has_context or context.shape == (M, W)
    assert video.shape == (B, num_rows, W)
    loss = video.square().sum() + (context.sum() if has_context else 0)
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("design", DESIGNS)
def test_a_videos_rows_depend_on_that_video_alone(design):
    module, visual = make(design)
    changed = visual.clone()
    changed[1] *= -1
    moved = (module(changed).video - module(visual).video).abs().amax((1, 2))
    assert moved[1] > 1e-3
    assert moved[[0, 2]].max() == 0


@pytest.mark.parametrize("design", ["paper", "a2", "a3", "residual", "bare"])
def test_what_queries_the_video_ignores_the_order_of_its_rows(design):
    module, visual = make(design)
    torch.testing.assert_close(module(visual.flip(1)).video, module(visual).video)


def test_a1_is_the_visual_rows_themselves_where_the_widths_agree():
    visual = make("a1")[1]
    module = build("a1", D, D)
    assert module(visual).video is visual
    assert sum(p.numel() for p in module.parameters()) == M * D


def test_a2_starts_as_a_learnable_prompt():
    _, visual = make("a2")
    module = build("a2", D, D)
    assert torch.equal(module(visual).video, module.context.expand(B, -1, -1))


def test_a3_is_the_paper_without_the_adapter():
    module, visual = make("a3")
    found = module.attention(module.meta_token[None, None], visual)
    torch.testing.assert_close(module(visual).video, found @ module.adapter.weight.T)


def test_the_residual_adapter_starts_as_the_identity():
    _, visual = make("residual")
    module = build("residual", D, D)
    found = module.attention(module.meta_token[None, None], visual)
    assert torch.equal(module(visual).video, found)


def test_the_bare_attention_has_no_output_projection():
    sizes = {d: sum(p.numel() for p in make(d)[0].parameters()) for d in ("paper", "bare")}
    assert sizes["paper"] - sizes["bare"] == D * D + D


def test_a_learnable_prompt_does_not_see_the_video():
    torch.manual_seed(0)
    module = build("learnable")
    prompt = module(torch.zeros(B, C, D))
    assert prompt.video is None
    assert prompt.context is module.context
    assert prompt.context.shape == (M, W)


@pytest.mark.parametrize("design", ["paper", "a2", "a3", "residual", "bare"])
def test_rows_start_no_longer_than_clips_tokens(design):
    """CLIP's token rows have entries of about 0.02; rows of size 1 would drown the name."""
    torch.manual_seed(0)
    module = build(design, 512, 512, num_context=16)
    video = module(torch.randn(2, 8, 512) * 0.44).video  # CLIP's frames have length 10
    assert 0.001 < video.std() < 0.04


WORDS = 5
STARTS = {
    "learnable": (WORDS, 0),
    "paper": (WORDS - 1, 1),
    "a1": (WORDS, C),
    "a2": (0, WORDS),
    "a3": (WORDS - 1, 1),
    "residual": (WORDS - 1, 1),
}


def started(design, dim=W):
    """A prompt started from words, and the words."""
    words = torch.randn(WORDS, W, generator=torch.Generator().manual_seed(2))
    settings = [*DESIGNS.get(design, [f"prompt={design}"]), "context_start=a b c d e"]
    return make_prompt(load(overrides=settings), dim, W, words), words


@pytest.mark.parametrize("design", STARTS)
def test_started_from_words_the_rows_before_the_name_are_these_words(design):
    """But for A1, whose visual rows stand between the words and the name."""
    module, words = started(design)
    visual = torch.randn(B, C, W, generator=torch.Generator().manual_seed(3))
    context, video = module(visual)
    num_shared, num_own = STARTS[design]
    shared = torch.empty(0, W) if context is None else context
    assert torch.equal(shared, words[:num_shared])
    if design != "a1" and num_own:
        torch.testing.assert_close(video, words[num_shared:].expand(B, -1, -1))
    assert num_own == (0 if video is None else video.shape[1])
    assert not any(p.data_ptr() == words.data_ptr() for p in module.parameters())


@pytest.mark.parametrize("design", ["paper", "a2", "a3", "residual"])
def test_started_from_words_the_video_enters_at_the_first_step(design):
    """A zero layer has a gradient where its input is none."""
    module, _ = started(design)
    step = torch.optim.SGD(module.parameters(), lr=0.1)
    visual = torch.randn(B, C, W, generator=torch.Generator().manual_seed(3))
    aim = torch.randn(B, 1, W, generator=torch.Generator().manual_seed(4))
    for _ in range(2):  # where two zero layers follow each other, one wakes after the other
        step.zero_grad()
        (module(visual).video - aim).square().sum().backward()
        step.step()
    rows = module(visual).video
    assert (rows[0] - rows[1]).abs().max() > 1e-6


@pytest.mark.parametrize("design", ["a2", "a3", "residual"])
def test_words_of_another_width_than_the_row_that_starts_as_one_are_refused(design):
    with pytest.raises(ConfigError, match="joint and text width are the same, got 11 and 13; "):
        started(design, dim=D)
