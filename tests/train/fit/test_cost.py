"""What a run costs: counted by hand, and by torch's own counter."""

import json
import sys

import pytest
import torch
from helpers import fake_store as fake
from helpers.training import DESIGNS, few_of, quiet
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bieff.features.files import keep_freed_memory
from bieff.features.schema import PartitionPlan, ShardData, Status, Video
from bieff.features.store import FeatureStore
from bieff.train.config import load
from bieff.train.fit.cost import forget_peak, peak_memory, stage_one, step_cost
from bieff.train.fit.loop import train
from bieff.train.fit.step import prepare

ROWS = {
    **{row: settings for row, settings in DESIGNS.items() if row[0] in "45678"},
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
    "distilled": ["distill=0.5"],
    "released": ["vector_gates=true", "normalise=frames", "targets=multi-hot"],
}


EQUAL = ("4 baseline", "4 + word-guided", "6 a1", "6 a2", "6 a3", "whole prompts", "released")


def make(folder, **sizes):
    clip = fake.load_clip(folder / "clip", **sizes)
    return fake.write_store(folder / "store", clip, patches=(5, 7)), clip


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """Joint and text width differ."""
    return make(tmp_path_factory.mktemp("cost"), dim=13, width=11)


@pytest.fixture(scope="module")
def equal(tmp_path_factory):
    """They agree, as in ViT-B/16."""
    return make(tmp_path_factory.mktemp("equal"), dim=12, width=12)


@pytest.mark.parametrize("row", few_of(ROWS))
def test_flops_are_those_that_torch_counts(problem, row):
    """Every product of a real step, exactly: what one and two videos cost decides a batch."""
    check_flops(*problem, row)


@pytest.mark.parametrize("row", EQUAL)
def test_flops_where_the_widths_agree(equal, row):
    check_flops(*equal, row)


def check_flops(store, clip, row):
    trainer = prepare(store, clip, load(overrides=["batch_size=11", *ROWS[row]]))
    index, batch = trainer.batches.at(0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.backward(batch, index.labels)
    trainer.model.zero_grad()
    got = step_cost(trainer)
    assert round(got["videos"] * got["flops_a_video"]["total"]) == counter.get_total_flops()
    assert got["categories"] == len(index.labels.unique())


def test_a_layer_of_the_temporal_transformer_by_hand(problem):
    """4 projections, 2 attention products and a 4 D network, twice as much back."""
    store, clip = problem
    layers = {}
    for number in (2, 3):
        settings = ["batch_size=11", *ROWS["4 baseline"], f"temporal_layers={number}"]
        cost = step_cost(prepare(store, clip, load(overrides=settings)))["flops_a_video"]
        layers[number] = cost
    frames, dim = 6, clip.dim
    layer = 2 * (4 * frames * dim * dim + 2 * frames * frames * dim + 8 * frames * dim * dim)
    for way, want in (("forward", layer), ("backward", 2 * layer), ("total", 3 * layer)):
        assert layers[3][way] - layers[2][way] == pytest.approx(want)


def test_parts_are_computed_forward_twice(problem):
    """And the names, which are the same for all videos, once for each part."""
    store, clip = problem
    settings = ["batch_size=10", *ROWS["4 baseline"]]
    trainer, in_parts = (
        prepare(store, clip, load(overrides=[*settings, f"accumulate={n}"])) for n in (1, 5)
    )
    categories = trainer.batches.draw(0).labels.unique()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.text(None, None, categories=categories)
    text = counter.get_total_flops() / 10
    once, twice = (step_cost(t)["flops_a_video"] for t in (trainer, in_parts))
    assert twice["forward"] == pytest.approx(2 * (once["forward"] + 4 * text))
    assert twice["backward"] == once["backward"]


def test_counting_changes_nothing(problem):
    """Neither random numbers nor gradients nor weights."""
    store, clip = problem
    trainer = prepare(store, clip, load(overrides=["batch_size=11"]))
    before = torch.get_rng_state()
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    step_cost(trainer)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert all(torch.equal(weights[k], v) for k, v in trainer.model.state_dict().items())


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
    record = train(store, clip, config, tmp_path / "run", watch=quiet).record
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
