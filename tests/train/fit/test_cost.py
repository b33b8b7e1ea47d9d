"""What a run costs: counted by hand, and by torch's own counter."""

import json
import sys

import pytest
import torch
from helpers import fake_store as fake
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bieff.extract.tower import keep_freed_memory
from bieff.features.schema import PartitionPlan, ShardData, Status, Video
from bieff.features.store import FeatureStore
from bieff.train.config import load
from bieff.train.data import patches_of
from bieff.train.fit.cost import (
    Flops,
    attention,
    forget_peak,
    linear,
    peak_memory,
    stage_one,
    step_cost,
)
from bieff.train.fit.loop import prepare, train

ROWS = {
    "baseline": ["prompt=none", "post_prompt=false", "word_guided=false"],
    "+ pre-prompt": ["post_prompt=false", "word_guided=false"],
    "+ post-prompt": ["word_guided=false"],
    "all": [],
    "none": ["prompt=none", "post_prompt=false"],
    "hand-crafted": ["prompt=hand-crafted", "post_prompt=false"],
    "learnable": ["prompt=learnable", "post_prompt=false"],
    "post": ["prompt=none"],
    "a1": ["design=a1"],
    "a2": ["design=a2"],
    "a3": ["design=a3"],
    "no mean": ["mean_pool=false"],
    "words": ["word_source=words"],
    "frames 2": ["frames=2"],
    "no temporal": ["temporal_layers=0"],
    "a1 sees temporal": ["design=a1", "prompts_see=temporal"],
    "a1 sees patches": ["design=a1", "prompts_see=patches"],
    "sees patches": ["prompts_see=patches"],
    "bare": ["meta_attention=bare"],
    "residual adapter": ["adapter=residual"],
    "post layers": ["post_layers=3"],
    "only norms are learned": ["word_norms=true", "prompt=none", "temporal_layers=0"],
    "hand-crafted words": ["prompt=hand-crafted", "word_source=words"],
    "whole prompts": ["word_rows=prompt"],
    "whole prompts of names": ["word_rows=prompt", "prompt=none"],
    "whole prompts, a2": ["word_rows=prompt", "design=a2", "word_source=words"],
    "distilled": ["distill=0.5", "temporal_weight=0.5"],
    "released": ["vector_gates=true", "normalise=frames", "targets=multi-hot"],
}


@pytest.fixture(scope="module", params=[(13, 11), (12, 12)], ids=["13-11", "12-12"])
def problem(request, tmp_path_factory):
    """Joint and text width differ, and agree as in ViT-B/16."""
    dim, width = request.param
    folder = tmp_path_factory.mktemp("cost")
    clip = fake.load_clip(folder / "clip", dim=dim, width=width)
    return fake.write_store(folder / "store", clip, patches=(5, 7)), clip


@pytest.mark.parametrize("row", ROWS)
def test_flops_are_those_that_torch_counts(problem, row):
    """Every product of a real step, exactly; attention in its plain form, as torch sees it."""
    store, clip = problem
    trainer = prepare(store, clip, load(overrides=["batch_size=11", *ROWS[row]]))
    draw, picked = trainer.batches.at(0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.backward(picked, draw.labels)
    got = step_cost(trainer, patches_of(store))
    assert round(got["videos"] * got["flops_a_video"]["total"]) == counter.get_total_flops()
    assert got["categories"] == len(draw.labels.unique())


def test_the_temporal_transformer_by_hand(problem):
    """Baseline: 3 layers of 4 projections, 2 attention products and a 4 D network."""
    store, clip = problem
    config = load(overrides=["batch_size=11", *ROWS["baseline"]])
    batch = step_cost(prepare(store, clip, config), None)
    cost, names = batch["flops_a_video"], batch["categories"]
    frames, dim = 6, clip.dim
    layer = 2 * (4 * frames * dim * dim + 2 * frames * frames * dim + 8 * frames * dim * dim)
    assert cost["heads_forward"] == pytest.approx(3 * layer + 2 * names * dim)
    # a class is the text's, which nothing changes: one gradient of the cosines, not two
    assert cost["heads_backward"] == pytest.approx(2 * 3 * layer + 2 * names * dim)
    assert cost["text_backward"] == 0


def test_parts_are_computed_forward_twice(problem):
    store, clip = problem
    settings = ["batch_size=10", *ROWS["baseline"]]
    whole, parts = (
        step_cost(prepare(store, clip, load(overrides=[*settings, f"accumulate={n}"])), None)
        for n in (1, 5)
    )
    once, twice = whole["flops_a_video"], parts["flops_a_video"]
    assert twice["heads_forward"] == 2 * once["heads_forward"]
    assert twice["heads_backward"] == once["heads_backward"]
    assert twice["text_forward"] == 10 * once["text_forward"]  # the same names, for each part


def test_products_by_hand():
    assert linear(2, 3, 5, 1) == Flops(60, 60)
    assert attention(2, 7, 3) == Flops(2 * 2 * 2 * 7 * 3, 4 * 2 * 2 * 7 * 3)
    assert attention(2, 7, 3, has_gradient=False).backward == 0
    assert Flops(1, 2) + Flops(3, 4).times(2) == Flops(7, 10)


def test_stage_one_is_read_from_the_ledger(tmp_path):
    videos = [Video(id=str(i), path=str(i), label=0) for i in range(5)]
    store = FeatureStore.create(
        tmp_path,
        recipe={"frames": 2, "dim": 3, "patches": None},
        class_names=["x"],
        partitions={"train": PartitionPlan(videos=videos, num_views=1, rows_per_shard=2)},
        versions={},
    )
    part = store.partitions["train"]
    for shard, seconds in ((0, {"total": 1.5, "encoding": 1.0}), (2, {"total": 0.25})):
        count = len(part.geometry.rows(shard))
        data = ShardData(
            embeddings=torch.zeros(count, 1, 2, 3).half().numpy(),
            frames=torch.zeros(count, 1, 2).int().numpy(),
            status=torch.full((count,), int(Status.OK)).to(torch.uint8).numpy(),
        )
        part.write_shard(shard, data, errors=[], seconds=seconds)
    want = {"train": {"videos": 5, "seconds": {"total": 1.75, "encoding": 1.0}}}
    assert stage_one(store) == want


def test_a_run_says_what_it_cost(problem, tmp_path):
    store, clip = problem
    config = load(overrides=["epochs=1", "warmup_epochs=0", "eval_every=0"])
    record = train(store, clip, config, tmp_path / "run", watch=lambda *_: None).record
    assert record["cost"]["stage_one"] == {
        "train": {"videos": 53, "seconds": {}},
        "val": {"videos": 17, "seconds": {}},
    }
    batch = record["cost"]["batch"]
    assert (batch["videos"], batch["categories"]) == (32, 5)
    # SOT and 16 of context; then c_v, 11 beginnings ("playing" once for three names), 5 EOT
    assert batch["text_rows"] == 1 + 16 + 32 * (1 + 11 + 5)
    assert json.dumps(record["cost"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_forgets_what_was_before():
    """Also where the C library was told to keep memory."""
    keep_freed_memory()
    cpu = torch.device("cpu")
    held = torch.ones(64 << 20)  # 256 MB
    assert peak_memory(cpu) > held.nbytes
    high = peak_memory(cpu)
    del held
    forget_peak(cpu)
    low = peak_memory(cpu)
    assert low < high - (200 << 20)
    again = torch.ones(32 << 20)
    assert low + again.nbytes // 2 < peak_memory(cpu) < high
