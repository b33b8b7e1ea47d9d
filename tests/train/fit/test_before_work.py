"""What a run finds out before its first step, and a run on a text tower that is no tree."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from helpers import fake_store as fake
from helpers.whole_prompts import FORMS, IdsByWord

from bieff.apps.train import train_run
from bieff.features.errors import BieffError
from bieff.train.config import load
from bieff.train.evaluate.classifier import Trained
from bieff.train.evaluate.scoring import evaluate_run
from bieff.train.fit.loop import train
from bieff.train.fit.step import prepare
from bieff.train.method.pre_prompt import embedded_words
from bieff.train.runs.metrics import read_metrics
from bieff.train.text.whole import WholeTower

SHORT = ["epochs=2", "warmup_epochs=1", "batch_size=26", "temporal_layers=1", "num_context=3"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "clip"
    return fake.load_clip(folder, no_causal_mask=True, context_length=16)


@pytest.fixture(scope="module")
def store(clip, tmp_path_factory):
    return fake.write_store(tmp_path_factory.mktemp("store") / "store", clip)


@pytest.mark.parametrize("prompt", ["none", "learnable", "pre-prompt"])
def test_a_run_on_a_tower_of_whole_prompts(clip, store, tmp_path, prompt):
    said = []
    config = load(overrides=[*SHORT, f"prompt={prompt}"])
    run = train(store, clip, config, tmp_path / "run", watch=lambda *_: None, say=said.append)
    losses = [line["loss"] for line in read_metrics(run.path) if "loss" in line]
    assert all(after != before for before, after in pairwise(losses))
    cost = run.record["cost"]["batch"]
    assert cost["text_rows"] == {"pre-prompt": 26, "learnable": 1, "none": 1}[prompt] * 5 * 16
    assert cost["flops_a_video"]["forward"] > 0
    notes = [line for line in said if "share no rows" in line]
    assert len(notes) == (prompt == "pre-prompt")
    assert all("a step encodes 26 x 5 whole prompts, 0." in note for note in notes)
    assert isinstance(Trained(run, clip, store.class_names)._text, WholeTower)
    evaluate_run(run, clip, store, "closed", watch=lambda *_: None)
    long = "a" + " b" * 13  # all that fits without a context
    if prompt == "none":
        Trained(run, clip, ["archery", long])
    else:
        with pytest.raises(BieffError, match=f"or shorter names; the longest is '{long}'$"):
            Trained(run, clip, ["archery", long])


def refused(store, clip, message, *overrides):
    with pytest.raises(BieffError, match=message):
        prepare(store, clip, load(overrides=[*SHORT, *overrides]))


def planned(store, *overrides):
    return train_run(
        features=store.path,
        out=None,
        frames=None,
        preset=None,
        config=None,
        overrides=[*SHORT, *overrides],
        device="cpu",
        dry_run=True,
        model=fake.named(store).model,
    )


def test_settings_that_leave_nothing_to_train(clip, store):
    with pytest.raises(BieffError, match="leave nothing to train; set temporal_layers=1"):
        prepare(store, clip, load(overrides=["temporal_layers=0"], base="baseline"))


def test_a_name_too_long_for_the_prompt_is_told_before_a_batch_draws_it(clip, store):
    longest = max(len(clip.form.words(row)) for row in clip.tokenize(store.class_names))
    tokens = f"num_context={16 - 2 - longest}"  # a token too much, with start, video and end
    refused(store, clip, "expected at most 16 tokens, got 17; use a smaller", tokens)
    with pytest.raises(BieffError, match="expected at most 16 tokens, got 17; use a smaller"):
        planned(store, tokens, "context_start=random")


def test_a_dry_run_says_what_whole_prompts_take(store):
    said = planned(store)
    assert "\nthis CLIP's prompts share no rows: a step encodes 26 x 5 " in said
    assert re.search(r"all \d+ steps take about \d+\.\d min here; with prompt=learnable", said)
    assert "share no rows" not in planned(store, "prompt=learnable")


def test_names_that_are_one_to_the_tower(tmp_path, clip):
    names = ("rock & roll", "archery", "rock &amp; roll")
    store = fake.write_store(tmp_path / "store", clip, names=names)
    refused(store, clip, "class names 'rock & roll' and 'rock &amp; roll' are the same to")


@pytest.mark.parametrize("form", ["xlm", "mt5", "SigLIP"])
def test_the_hand_crafted_context_has_five_rows_with_any_tokenizer(clip, form):
    other = replace(clip, _tokenizer=IdsByWord(FORMS[form], 16))
    for text in ("prompt=hand-crafted", "context_start=This is a video about"):
        assert embedded_words(load(overrides=[text]), other).shape == (5, 11)
