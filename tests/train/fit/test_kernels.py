"""What a step launches and waits for.

The tower here is as deep as ViT-B/16's, and narrow: how many operators run does not depend on
widths.  The few names stand under one mask, as 32 names of Kinetics mostly do.
"""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from helpers import fake_store as fake
from helpers.kernels import Kernels
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

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


def test_trained_weights_cast_together_are_those_that_autocast_casts(deep):
    clip, store = deep
    trainer = prepare(store, clip, load(overrides=["precision=bfloat16", "lr=0.01"]))
    for step in range(3):
        trainer.step(step)
    index, batch = trainer.batches.at(3)
    categories = index.labels.unique()
    found = [trainer.score(batch, categories).logits]
    with torch.autocast("cpu", torch.bfloat16):
        found.append(trainer.model(batch.frames, trainer.text, categories=categories).logits)
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    got, want = ([x, *torch.autograd.grad(x.square().sum(), weights)] for x in found)
    assert all(map(torch.equal, got, want))


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


class NoWait(TorchDispatchMode):
    """Refuses a copy to a device that the processor waits for, and indices from outside it.

    The device is torch's meta device, whose tensors have no values: whatever reads one (item,
    tolist, nonzero, a mask as an index, a copy back) fails by itself.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if name == "_to_copy" and out.device != args[0].device:
            assert kwargs.get("non_blocking"), "a copy to the device is waited for"
        if name == "index" and args[0].is_meta:
            assert all(index is None or index.is_meta for index in args[1]), "indices wait"
        return out


def step_on_meta(deep, monkeypatch, settings=(), spy=None):
    """Take a step there; `spy` sees what the temporal transformer returns."""
    monkeypatch.setattr("torch.autocast", lambda *args, **options: nullcontext())
    monkeypatch.setattr("torch.is_autocast_enabled", lambda *args: False)
    clip, store = deep
    trainer = prepare(store, clip, load(overrides=["precision=float32", *settings]))
    index, batch = trainer.batches.at(0)
    there, frozen = torch.device("meta"), trainer.frozen_classes
    model, text = (copy.deepcopy(part).to(there) for part in (trainer.model, trainer.text))
    if spy is not None:
        model.temporal.register_forward_hook(lambda module, given, out: spy(out) and None)
    trainer = replace(
        trainer,
        model=model,
        text=text,
        device=there,
        frozen_classes=None if frozen is None else frozen.to(there),
        optimizer=torch.optim.SGD(model.parameters()),  # fused AdamW takes no such tensors
    )
    batch = batch.to(there)
    with NoWait():
        assert trainer.update(0, batch, index.labels).is_meta


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("clip_grad=1", "accumulate=2", "distill=0.5", "targets=multi-hot"),
        ("word_source=words", "word_rows=prompt", "learn_temperature=true"),
    ],
)
def test_a_step_never_waits_for_the_device(deep, monkeypatch, settings):
    step_on_meta(deep, monkeypatch, settings)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[:, 0, 0].tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x[torch.tensor([1, 0])],
    ],
)
def test_a_step_that_waits_would_be_noticed(deep, monkeypatch, wait):
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        step_on_meta(deep, monkeypatch, spy=wait)
