import torch
import torch.nn.functional as F
from helpers.floats import attention_block

from bieff.train.method.post_prompt import PostPrompt

B, C, K, D = 3, 5, 7, 11


def make(*, shaken=True, **settings):
    torch.manual_seed(0)
    module = PostPrompt(D, **settings)
    draw = torch.Generator().manual_seed(1)
    if shaken:  # zeros at the start would hide mistakes
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.5)
    classes = torch.randn(B, K, D, generator=draw)
    return module, classes, torch.randn(B, C, D, generator=draw)


def reference_post_prompt(module, category, visual):
    """Eq. 7 for one category of one video, in Python floats."""
    seen = category
    for block in module.blocks:
        seen = attention_block(block, seen, visual)
    alpha = module.alpha.expand(D).tolist()
    return [c + a * s for c, a, s in zip(category, alpha, seen, strict=True)]


def check_against_the_reference(module, classes, visual):
    want = [
        [reference_post_prompt(module, category, v) for category in c]
        for c, v in zip(classes.tolist(), visual.tolist(), strict=True)
    ]
    # a chain of sums in float32 against Python's double precision
    got = module(classes, visual)
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-4, atol=1e-4)


def test_it_matches_the_reference():
    check_against_the_reference(*make())


def test_the_releases_two_blocks_and_vector_match_the_reference():
    module, classes, visual = make(num_layers=2, vector=True)
    assert module.alpha.shape == (D,)
    check_against_the_reference(module, classes, visual)


def test_by_hand():
    """Attention shut, feed-forward reduced to its offset b: c + alpha (c + b)."""
    module, classes, visual = make(shaken=False, alpha=0.5)
    with torch.no_grad():
        module.blocks[0].narrow.bias.fill_(3.0)
    torch.testing.assert_close(module(classes, visual), 1.5 * classes + 1.5)


def test_it_starts_in_the_direction_of_the_text():
    module, classes, visual = make(shaken=False)
    out = module(classes, visual)
    torch.testing.assert_close(out, 1.1 * classes)
    assert F.cosine_similarity(out, classes, dim=-1).min() > 0.9999


def test_at_alpha_zero_it_is_the_text_and_learns():
    module, classes, visual = make()
    with torch.no_grad():
        module.alpha.zero_()
    out = module(classes, visual)
    assert torch.equal(out, classes)
    out.square().sum().backward()
    assert module.alpha.grad.abs() > 1e-3


def test_shared_classes_serve_every_video():
    module, classes, visual = make()
    shared = classes[:1]
    got = module(shared, visual)
    assert got.shape == (B, K, D)
    torch.testing.assert_close(got, module(shared.expand(B, -1, -1), visual))


def test_categories_and_videos_are_independent_and_frames_unordered():
    module, classes, visual = make()
    out = module(classes, visual)
    torch.testing.assert_close(module(classes[:, 2:4], visual), out[:, 2:4])
    torch.testing.assert_close(module(classes[1:2], visual[1:2]), out[1:2])
    torch.testing.assert_close(module(classes, visual.flip(1)), out)


def test_at_clips_width_it_is_three_million():
    with torch.device("meta"):
        module = PostPrompt(512)
    block = 12 * 512**2 + 15 * 512  # attention 4, feed-forward 8; biases 9, three norms 6
    assert sum(p.numel() for p in module.parameters()) == block + 1 == 3_153_409
