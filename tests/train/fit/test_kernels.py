"""What a step launches and waits for.

The tower here is as deep as ViT-B/16's, and narrow: how many operators run does not depend on
widths.  The few names stand under one mask, as 32 names of Kinetics mostly do.
"""

import pytest
import torch
from helpers import fake_store as fake
from helpers.kernels import Kernels
from torch import nn

from bieff.train.config import load
from bieff.train.fit.step import prepare
from bieff.train.text.tower import TextTower

MOST = {"float32": 700, "bfloat16": 835}
"""Operators of a step: forward, backward and AdamW."""

FROZEN = (nn.Linear, nn.MultiheadAttention)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A CLIP with twelve text layers, D = W, and a store of its features."""
    folder = tmp_path_factory.mktemp("deep")
    clip = fake.load_clip(folder / "clip", dim=16, width=16, layers=12)
    return clip, fake.write_store(folder / "store", clip)


@pytest.mark.parametrize("precision", MOST)
def test_a_step_runs_few_operators(deep, precision):
    clip, store = deep
    trainer = prepare(store, clip, load(overrides=[f"precision={precision}"]))
    trainer.step(0)
    with Kernels() as kernels:
        trainer.step(1)
    assert kernels.total <= MOST[precision], kernels.counts.most_common()


def test_frozen_matrices_are_kept_in_the_precision_of_products(deep):
    clip, store = deep
    before = clip.fingerprint
    tokens = clip.tokenize(list(store.class_names))
    often, once = (TextTower(clip.model, tokens) for _ in range(2))
    once.multiply_in(torch.bfloat16)
    context = torch.randn(4, 16, requires_grad=True)
    video = torch.randn(3, 1, 16, requires_grad=True)
    found, casts = [], []
    for tower in (often, once):
        tower.prompt_tree(4, 1)
        with torch.autocast("cpu", torch.bfloat16), Kernels() as kernels:
            prompted = tower(context, video)
            words, _ = prompted.words(torch.tensor([0, 4, 2]))
        loss = prompted.classes.float().square().sum() + words.float().square().sum()
        gradients = torch.autograd.grad(loss, (context, video))
        found.append((prompted.classes, words, *gradients))
        casts.append(kernels.counts["_to_copy"])
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)
    # what is left are rows: two norms' a layer, and those of the first layer's three parts
    assert casts[1] <= 2 * 12 + 8
    assert casts[0] - casts[1] >= 8 * 12
    matrices = [m for m in once.blocks.modules() if isinstance(m, FROZEN)]
    assert {p.dtype for m in matrices for p in m.parameters(recurse=False)} == {torch.bfloat16}
    assert {p.dtype for p in clip.model.parameters()} == {torch.float32}
    assert clip.fingerprint == before


def test_names_are_laid_out_before_their_step(deep):
    """By the thread that gathers the batch; the step itself finds the tree."""
    clip, store = deep
    settings = ["feature_memory=1e-9", "batch_size=3", "epochs=2", "warmup_epochs=1"]
    trainer = prepare(store, clip, load(overrides=settings))
    with trainer.batches:
        for step in range(6):
            index, batch = trainer.batches.at(step)
            ahead = trainer.batches._ahead
            for gathered in ahead.values():
                gathered.result()
            made = trainer.text.names._remembered.cache_info().misses
            trainer.update(step, batch, index.labels)
            assert trainer.text.names._remembered.cache_info().misses == made
