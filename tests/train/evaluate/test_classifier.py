"""What is evaluated: runs and frozen CLIP, on all classes, some of them, and descriptions."""

import pytest
import torch
from helpers import fake_store as fake
from helpers.training import quiet
from torch.nn import functional as F

from bieff.train.config import load
from bieff.train.evaluate.classifier import LARGEST_BATCH, Frozen, Trained, texts_of
from bieff.train.fit.loop import train
from bieff.train.runs.checkpoint import BEST
from bieff.train.runs.run import load_model
from bieff.train.text.tower import TextTower
from bieff.train.text.wording import Descriptions

B, T, D, K = 7, 3, 13, len(fake.NAMES)
DESCRIBED = Descriptions(
    (
        ("strumming a guitar", "a person with a guitar", "chords"),
        ("archery",),
        ("squash", "hitting a ball against a wall"),
        ("slow dance",),
        ("drumming", "a drummer"),
    )
)
DESIGNS = {
    "paper": [],
    "released": ["normalise=frames", "vector_gates=true", "learn_temperature=true"],
    "as frozen CLIP": ["normalise=frames", "temperature=none"],
    "no word guide": ["word_guided=false"],
    "one prompt for all videos": ["prompt=learnable", "post_prompt=false"],
}


@pytest.fixture(scope="module", params=DESIGNS)
def run(request, clip, store, tmp_path_factory):
    settings = ["epochs=3", "warmup_epochs=1", "frames=3", "lr=0.003", "temporal_layers=1"]
    out = tmp_path_factory.mktemp("runs") / "run"
    config = load(overrides=[*settings, *DESIGNS[request.param]])
    return train(store, clip, config, out, watch=quiet)


@pytest.fixture
def frames():
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(5))


def one_by_one(run, clip, frames, described, categories):
    """Logits of each video, asked about one description at a time."""
    model = load_model(run, clip)
    text = TextTower(clip.model, clip.tokenize(described.flat))
    rows = []
    for video in frames:
        of_class, alone = {}, []
        for category in categories:
            start = sum(map(len, described.texts[:category]))
            places = range(start, start + len(described.texts[category]))
            said = [
                model(video[None], text, categories=torch.tensor([place])) for place in places
            ]
            alone += said
            unit = [F.normalize(one.classes[0, 0], dim=0) for one in said]
            of_class[category] = sum(unit) / len(unit)
        temporal = model.temporal(video[None])
        if model.config.normalise == "frames":
            temporal = F.normalize(temporal, dim=-1)
        mean = temporal[0].mean(dim=0)
        best = max(alone, key=lambda one: F.cosine_similarity(mean, one.classes[0, 0], dim=0))
        hat = best.video[0]
        if model.config.normalise != "frames":
            hat = hat / hat.norm()
        cosines = [hat @ of_class[c] / of_class[c].norm() for c in categories]
        rows.append(torch.stack(cosines) * model.scale())
    return torch.stack(rows)


@pytest.mark.parametrize("categories", [None, [1, 2, 4], [0]])
@torch.no_grad()
def test_descriptions_are_averaged_in_embedding_space(run, clip, store, frames, categories):
    chosen = None if categories is None else torch.tensor(categories)
    got = Trained(run, clip, DESCRIBED).logits(frames, None, chosen)
    want = one_by_one(run, clip, frames, DESCRIBED, categories or range(K))
    assert want.std() > 0.01
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)  # cosines over tau = 0.01


@pytest.mark.parametrize("categories", [None, [3, 1, 4]])
@torch.no_grad()
def test_names_are_one_description_each(run, clip, store, frames, categories):
    chosen = None if categories is None else torch.tensor(categories)
    names = Descriptions.of(store.class_names)
    got = Trained(run, clip, store.class_names).logits(frames, None, chosen)
    want = one_by_one(run, clip, frames, names, categories or range(K))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    twice = Descriptions(tuple((name, name) for name in store.class_names))
    doubled = Trained(run, clip, twice).logits(frames, None, chosen)
    torch.testing.assert_close(got, doubled, rtol=1e-3, atol=1e-3)


def test_some_classes_are_not_columns_of_all(clip, store, frames, tmp_path):
    """The words of a class that is not asked about must not weight the frames."""
    config = load(overrides=["epochs=3", "warmup_epochs=0", "frames=3", "beta=1.0", "lr=0.003"])
    run = train(store, clip, config, tmp_path / "run", watch=quiet)
    ours = Trained(run, clip, store.class_names)
    some = torch.tensor([0, 3])
    asked = ours.logits(frames, None, some)
    columns = ours.logits(frames, None)[:, some]
    assert (asked - columns).abs().max() > 1e-3
    beside = Frozen(clip, store.class_names, num_frames=T)
    torch.testing.assert_close(
        beside.logits(frames, None, some), beside.logits(frames, None)[:, some]
    )


def test_the_texts_of_some_classes():
    texts, owners = texts_of(DESCRIBED, torch.tensor([4, 0]))
    assert [DESCRIBED.flat[i] for i in texts] == [*DESCRIBED.texts[4], *DESCRIBED.texts[0]]
    assert owners.tolist() == [0, 0, 1, 1, 1]


def test_a_classifier_says_what_it_is(clip, store, tmp_path):
    config = load(overrides=["epochs=2", "warmup_epochs=0", "frames=3", "eval_every=1"])
    run = train(store, clip, config, tmp_path / "run", watch=quiet)
    names = store.class_names
    ours = [Trained(run, clip, names, weights=name) for name in ("last", "best")]
    last, best = (classifier.about for classifier in ours)
    assert (last.model, last.run, last.weights, best.weights) == (
        "bieff",
        "run",
        "last",
        "best",
    )
    assert (last.template, last.names, last.frames) == ("pre-prompt", None, 3)
    assert last.names_hash == Descriptions.of(store.class_names).hash
    assert ours[0].batch_size == LARGEST_BATCH
    (run.path / BEST).write_bytes((run.path / "last.safetensors").read_bytes())
    same = Trained(run, clip, names, weights="best")
    described = Trained(run, clip, DESCRIBED)
    assert same.fingerprint() == ours[0].fingerprint()  # the same weights, the same scores
    assert described.fingerprint() != ours[0].fingerprint()
    beside = [
        Frozen(clip, asked, num_frames=3, template=template)
        for template, asked in (("one", names), ("28", names), ("one", DESCRIBED))
    ]
    assert len({classifier.fingerprint() for classifier in beside}) == 3
    assert [classifier.about.template for classifier in beside] == [
        "This is a video about {}",
        "28 templates",
        "This is a video about {}",
    ]
    assert all((one.about.model, one.about.run) == ("frozen", None) for one in beside)


@pytest.mark.parametrize(
    ("limit", "value"), [("TOWER_BYTES", 200_000), ("free_bytes", lambda device: 400_000)]
)
def test_many_classes_take_fewer_videos_at_a_time(
    clip, store, tmp_path, monkeypatch, limit, value
):
    config = load(overrides=["epochs=2", "warmup_epochs=0", "frames=3", "eval_every=0"])
    run = train(store, clip, config, tmp_path / "run", watch=quiet)
    ours = Trained(run, clip, store.class_names)
    assert ours.batch_size == LARGEST_BATCH
    monkeypatch.setattr(f"bieff.train.evaluate.classifier.{limit}", value)
    assert 1 <= ours.batch_size < LARGEST_BATCH
