import math

import pytest
import torch
import torch.nn.functional as F

from bieff.train.method.word_guided import WordGuidedPool, frame_weights, pick

B, T, N, K, D = 3, 7, 5, 11, 13


def make():
    draw = torch.Generator().manual_seed(0)
    frames = torch.randn(B, T, D, generator=draw)
    words = torch.randn(B, N, D, generator=draw)
    return frames, words, torch.ones(B, N, dtype=torch.bool)


def reference_weights(frames, words, temperature=1.0):
    """Eq. 8 as the paper prints it, one frame and one word at a time, in Python floats."""

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    total = [0.0] * len(frames)
    for word in words:
        cosines = [dot(f, word) / math.sqrt(dot(f, f) * dot(word, word)) for f in frames]
        exps = [math.exp(c / temperature) for c in cosines]
        total = [t + e / sum(exps) for t, e in zip(total, exps, strict=True)]
    return [t / len(words) for t in total]


def test_weights_by_hand():
    """One word along x; the frames point along x and y: cosines 1 and 0."""
    frames = torch.tensor([[[3.0, 0.0], [0.0, 5.0]]])
    words = torch.tensor([[[2.0, 0.0]]])
    got = frame_weights(frames, words, torch.ones(1, 1, dtype=torch.bool))
    e = math.e
    torch.testing.assert_close(got, torch.tensor([[e / (e + 1), 1 / (e + 1)]]))


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_weights_match_the_reference(temperature):
    frames, words, mask = make()
    got = frame_weights(frames, words, mask, temperature=temperature)
    want = [
        reference_weights(f, w, temperature)
        for f, w in zip(frames.tolist(), words.tolist(), strict=True)
    ]
    # a temperature of 0.01 multiplies the rounding of a cosine by 100
    loose = {"rtol": 1e-4, "atol": 1e-6} if temperature < 1 else {}
    torch.testing.assert_close(got, torch.tensor(want), **loose)


def test_weights_are_a_distribution_over_frames():
    weights = frame_weights(*make())
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(B))


def test_padding_words_change_nothing():
    frames, words, mask = make()
    padded = torch.cat([words, torch.full_like(words[:, :1], 1e3)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros_like(mask[:, :1])], dim=1)
    torch.testing.assert_close(
        frame_weights(frames, padded, padded_mask), frame_weights(frames, words, mask)
    )


def test_each_row_has_its_own_number_of_words():
    frames, words, mask = make()
    mask[1, 2:] = False
    want = frame_weights(frames[1:2], words[1:2, :2], mask[1:2, :2])
    torch.testing.assert_close(frame_weights(frames, words, mask)[1:2], want)


def test_lengths_do_not_count_and_frames_keep_their_weight():
    frames, words, mask = make()
    want = frame_weights(frames, words, mask)
    torch.testing.assert_close(frame_weights(frames * 31, words * 0.1, mask), want)
    torch.testing.assert_close(frame_weights(frames.flip(1), words, mask), want.flip(1))
    torch.testing.assert_close(frame_weights(frames, words.flip(1), mask), want)


def test_weights_keep_their_precision_under_autocast():
    frames, words, mask = make()
    want = frame_weights(frames, words, mask, temperature=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(frame_weights(frames, words, mask, temperature=0.01), want)


def test_pool_by_hand():
    """Eq. 9 with frames along x and y and one word along x."""
    frames = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
    words = torch.tensor([[[1.0, 0.0]]])
    pool = WordGuidedPool(2, beta=0.5)
    video, weights = pool(frames, words, torch.ones(1, 1, dtype=torch.bool))
    first = math.e / (math.e + 1)
    torch.testing.assert_close(weights, torch.tensor([[first, 1 - first]]))
    want = [2 + 0.5 * 4 * first, 2 + 0.5 * 4 * (1 - first)]
    torch.testing.assert_close(video, torch.tensor([want]))


def test_pool_matches_the_reference():
    frames, words, mask = make()
    video, _ = WordGuidedPool(D, beta=0.3)(frames, words, mask)
    want = []
    for f, w in zip(frames.tolist(), words.tolist(), strict=True):
        weights = reference_weights(f, w)
        columns = list(zip(*f, strict=True))
        want.append(
            [
                sum(c) / T + 0.3 * sum(s * x for s, x in zip(weights, c, strict=True))
                for c in columns
            ]
        )
    torch.testing.assert_close(video, torch.tensor(want))


def test_at_beta_zero_it_is_mean_pooling_and_learns():
    frames, words, mask = make()
    pool = WordGuidedPool(D, beta=0.0)
    out, _ = pool(frames, words, mask)
    assert torch.equal(out, frames.mean(dim=1))
    out.sum().backward()
    assert pool.beta.grad is not None
    assert pool.beta.grad != 0


def test_without_mean_pooling_the_weighted_mean_is_all():
    frames, words, mask = make()
    pool = WordGuidedPool(D, mean_pool=False)
    out, weights = pool(frames, words, mask)
    torch.testing.assert_close(out, torch.einsum("bt,btd->bd", weights, frames))
    assert list(pool.parameters()) == []


def test_a_vector_of_equal_betas_is_the_number():
    frames, words, mask = make()
    vector = WordGuidedPool(D, beta=0.3, vector=True)
    assert vector.beta.shape == (D,)
    number = WordGuidedPool(D, beta=0.3)
    torch.testing.assert_close(vector(frames, words, mask)[0], number(frames, words, mask)[0])


def test_the_norm_of_the_words_comes_first():
    frames, words, mask = make()
    _, weights = WordGuidedPool(D, norms=True)(frames, words, mask)
    torch.testing.assert_close(weights, frame_weights(frames, F.layer_norm(words, (D,)), mask))


def test_pick_by_hand():
    """Cosine, not the dot product: the long class is the less alike one."""
    pooled = torch.tensor([[1.0, 1.0], [1.0, -0.1]])
    classes = torch.tensor([[[9.0, 0.0], [1.0, 1.1], [-1.0, -1.0]]])
    assert pick(pooled, classes).tolist() == [1, 0]


def test_pick_takes_classes_of_each_video():
    draw = torch.Generator().manual_seed(1)
    pooled = torch.randn(B, D, generator=draw)
    classes = torch.randn(B, K, D, generator=draw)
    want = [
        max(range(K), key=lambda k: F.cosine_similarity(pooled[b], classes[b, k], dim=0).item())
        for b in range(B)
    ]
    assert len(set(want)) > 1
    assert pick(pooled, classes).tolist() == want


def test_the_pick_of_the_release_standardises_the_classes():
    pooled = torch.tensor([[2.0, 1.0, 0.0]])
    classes = torch.tensor([[[12.0, 11.0, 10.0], [3.0, 0.0, 1.0]]])
    assert pick(pooled, classes).tolist() == [1]  # the common offset of the first is far off
    assert pick(pooled, classes, norms=True).tolist() == [0]
