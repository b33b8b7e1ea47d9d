import pytest
import torch
import torch.nn.functional as F

from bieff.train.method.temporal import TemporalTransformer

B, T, D = 3, 5, 13


def make(*, residual=True, num_layers=2, shaken=True):
    torch.manual_seed(0)
    module = TemporalTransformer(D, T, num_layers=num_layers, residual=residual)
    draw = torch.Generator().manual_seed(1)
    if shaken:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return module, torch.randn(B, T, D, generator=draw)


def test_the_residual_adds_the_stored_frames():
    module, frames = make()
    bare, _ = make(residual=False)
    bare.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(frames), frames + bare(frames))


def test_by_hand_with_branches_shut():
    """Blocks at their start pass on: 2 v + positions, or v + positions without it."""
    module, frames = make(shaken=False)
    torch.testing.assert_close(module(frames), 2 * frames + module.positions)
    module.residual = False
    torch.testing.assert_close(module(frames), frames + module.positions)


def test_an_untrained_transformer_points_where_frozen_clip_does():
    module, frames = make(shaken=False, num_layers=3)
    pooled, frozen = module(frames).mean(1), frames.mean(1)
    assert F.cosine_similarity(pooled, frozen).min() > 0.999


def test_frames_look_at_each_other_and_videos_do_not():
    module, frames = make()
    changed = frames.clone()
    changed[1, 4] *= -1.0  # adding a number would vanish in the norms
    moved = (module(changed) - module(frames)).abs().sum(-1)  # (B, T)
    assert (moved[1] > 1e-3).all()
    assert moved[[0, 2]].max() == 0


def test_order_counts_only_through_the_positions():
    module, frames = make()
    flipped = module(frames.flip(1)).flip(1)
    assert (flipped - module(frames)).abs().max() > 1e-3
    with torch.no_grad():
        module.positions.zero_()
    torch.testing.assert_close(module(frames.flip(1)).flip(1), module(frames))


@pytest.mark.parametrize("num_frames", [1, T + 1])
def test_another_number_of_frames_is_refused(num_frames):
    module, _ = make()
    with pytest.raises(ValueError, match=f"expected {T} frames, got {num_frames}"):
        module(torch.zeros(B, num_frames, D))


def test_three_layers_at_clips_width_are_nine_and_a_half_million():
    with torch.device("meta"):
        module = TemporalTransformer(512, 8)
    block = 12 * 512**2 + 13 * 512  # attention 4, feed-forward 8; biases 9, norms 4
    assert sum(p.numel() for p in module.parameters()) == 3 * block + 8 * 512 == 9_461_248
