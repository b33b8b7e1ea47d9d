"""Exact evaluation: nothing dropped, nothing counted twice, whatever the batches."""

import dataclasses

import numpy as np
import pytest
import torch

from bieff.features.errors import ConfigError
from bieff.train.data import Features
from bieff.train.evaluate.results import hits
from bieff.train.evaluate.scoring import probabilities, strided

N, V, T, D, K = 11, 6, 8, 5, 7


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(3)
    return Features(
        embeddings=torch.randn(N, V, T, D, generator=generator).half(),
        labels=torch.randint(K, (N,), generator=generator),
        rows=np.arange(N),
    )


def score_with(classes):
    return lambda frames, patches: frames.mean(dim=1) @ classes.T


def brute_force(features, classes, num_frames, clips):
    """One video, one view, one category at a time, in Python floats."""
    group = T // num_frames
    expected = []
    for video in features.embeddings.double().tolist():
        total = [0.0] * K
        for index, view in enumerate(video):
            clip = index // (V // clips)
            phase = round((group - 1) * clip / max(clips - 1, 1) + 1e-9)
            frames = [view[phase + group * i] for i in range(num_frames)]
            mean = [sum(f[d] for f in frames) / num_frames for d in range(D)]
            logits = [
                sum(a * b for a, b in zip(mean, c, strict=True)) for c in classes.tolist()
            ]
            exps = [np.exp(x) for x in logits]
            total = [t + e / sum(exps) for t, e in zip(total, exps, strict=True)]
        expected.append([t / V for t in total])
    return np.array(expected)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 32])
@pytest.mark.parametrize(("num_frames", "clips"), [(8, 3), (4, 3), (2, 1)])
def test_scores_are_those_of_one_video_at_a_time(features, batch_size, num_frames, clips):
    classes = torch.randn(K, D, generator=torch.Generator().manual_seed(1))
    parts = list(
        probabilities(
            features,
            score_with(classes),
            num_frames=num_frames,
            clips=clips,
            batch_size=batch_size,
        )
    )
    got = np.concatenate(parts)
    assert got.dtype == np.float64
    assert len(got) == N
    np.testing.assert_allclose(got.sum(axis=1), 1)
    np.testing.assert_allclose(
        got, brute_force(features, classes, num_frames, clips), rtol=1e-5
    )


def test_patches_reach_the_score(features):
    patches = torch.arange(N * V * 2 * 3).reshape(N, V, 2, 3).half()
    seen = []

    def score(frames, given):
        seen.append(given)
        return torch.zeros(len(frames), K)

    with_patches = dataclasses.replace(features, patches=patches)
    list(probabilities(with_patches, score, num_frames=8, clips=3, batch_size=N))
    assert torch.equal(torch.stack(seen, dim=1), patches.float())


def test_strides_by_hand():
    assert strided(32, 8, clip=0, clips=1).tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    assert strided(8, 4, clip=0, clips=3).tolist() == [0, 2, 4, 6]
    assert strided(8, 4, clip=2, clips=3).tolist() == [1, 3, 5, 7]
    assert strided(16, 4, clip=1, clips=3).tolist() == [2, 6, 10, 14]
    assert strided(8, 8, clip=2, clips=3).tolist() == list(range(8))


def test_a_number_of_frames_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"a divisor of the store's 32 \(1, 2, 4, .*got 12"):
        strided(32, 12, clip=0, clips=1)


def test_hits_by_hand():
    scores = np.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3], [0.4, 0.4, 0.2]])
    assert hits(scores, np.array([1, 1, 1]), 1).tolist() == [True, False, False]
    assert hits(scores, np.array([1, 1, 1]), 2).tolist() == [True, False, True]
    assert hits(scores, np.array([0, 0, 0]), 1).tolist() == [False, True, True]
    assert hits(scores, np.array([2, 1, 2]), 5).all()  # fewer classes than five
