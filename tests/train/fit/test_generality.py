"""Ways to keep what frozen CLIP knows while training: each by itself, and off."""

import math

import pytest
import torch
from helpers.training import quiet
from safetensors.torch import load_file

from bieff.clip import ClipName
from bieff.clip import load as load_clip
from bieff.features.errors import ConfigError
from bieff.train.config import load
from bieff.train.data import Batch
from bieff.train.evaluate.classifier import Trained, class_embeddings
from bieff.train.evaluate.results import results_of
from bieff.train.evaluate.scoring import evaluate
from bieff.train.fit.loop import TrainingLoop, train
from bieff.train.fit.step import prepare
from bieff.train.method.loss import frozen_distance, positive_pairs, symmetric_loss
from bieff.train.runs.checkpoint import BEST, LAST, Progress
from bieff.train.runs.metrics import METRICS, read_metrics
from bieff.train.text.wording import HAND_CRAFTED

SHORT = ["epochs=4", "warmup_epochs=1", "batch_size=11", "eval_every=0", "temporal_layers=1"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["distill=-1"], "distill must not be negative"),
        (["average_epochs=51"], "at most epochs, got 51 with epochs=50"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load(overrides=settings)


# --- distillation


def test_the_distance_by_hand():
    """Videos at 0 and 90 degrees from frozen ones; classes at 60 and 0, 0 and 180."""
    sixty = [math.cos(math.pi / 3), math.sin(math.pi / 3)]
    video = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    # the second video's frames have lengths 1 and 5, and count alike: their mean is along x
    frames = torch.tensor([[[5.0, 0.0]] * 2, [[3.0, 4.0], [0.6, -0.8]]])
    frozen = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    classes = torch.tensor([[sixty, [0.0, 7.0]], [[1.0, 0.0], [0.0, -1.0]]])
    got = frozen_distance(video, classes, frames, frozen)
    torch.testing.assert_close(got, torch.tensor([0.0 + 0.25, 1.0 + 1.0]))
    shared = frozen_distance(video, classes[:1], frames, frozen)
    torch.testing.assert_close(shared, torch.tensor([0.25, 1.25]))


@pytest.mark.parametrize("settings", [[], ["prompt=none", "post_prompt=false"]])
@pytest.mark.parametrize("parts", [1, 3, 11])
def test_the_loss_has_the_distance_in_it(store, parts, settings):
    """Against the sum written out on the whole batch, in any number of parts."""
    clip = load_clip(ClipName(model=store.recipe["clip"]["model"], pretrained=None))
    clip.model.double()
    overrides = [*SHORT, *settings, "distill=0.7", f"accumulate={parts}"]
    trainer = prepare(store, clip, load(overrides=overrides))
    trainer.model.double()
    index, batch = trainer.batches.at(1)
    batch = Batch(batch.frames.double(), None)
    got = trainer.backward(batch, index.labels)
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}

    trainer.model.zero_grad()
    categories = index.labels.unique()
    scores = trainer.model(batch.frames, trainer.text, categories=categories)
    frozen = class_embeddings(clip, store.class_names, HAND_CRAFTED)[categories]
    distance = frozen_distance(scores.video, scores.classes, batch.frames, frozen)
    pairs = positive_pairs(index.labels, categories)
    want = symmetric_loss(scores.logits, pairs) + 0.7 * distance.mean()
    assert distance.min() > 1e-3
    want.backward()
    # sums in another order; frozen classes are kept in float32, in both
    torch.testing.assert_close(got, want.detach(), rtol=1e-10, atol=0)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.slow
def test_distillation_keeps_closer_to_frozen_clip(clip, store, tmp_path):
    """The stronger it is, the less videos and classes move."""
    distances = []
    for weight in (0, 1, 30):
        config = load(overrides=[*SHORT, "lr=5e-3", f"distill={weight}"])
        run = train(store, clip, config, tmp_path / str(weight), watch=quiet)
        trainer = prepare(store, clip, config)
        trainer.model.load_state_dict(load_file(run.path / LAST))
        _, batch = trainer.batches.at(0)
        frozen = class_embeddings(clip, store.class_names, HAND_CRAFTED)
        with torch.no_grad():
            scores = trainer.model(batch.frames, trainer.text)
            distance = frozen_distance(scores.video, scores.classes, batch.frames, frozen)
        distances.append(float(distance.mean()))
    assert distances[0] > distances[1] > distances[2]


def test_without_distillation_no_frozen_class_is_embedded(clip, store):
    assert prepare(store, clip, load(overrides=SHORT)).frozen_classes is None


# --- averaging


def test_the_average_by_hand(clip, store, tmp_path):
    """The mean as it goes on: the first weights, then a share of the way to the next."""
    config = load(overrides=[*SHORT, "average_epochs=3"])
    trainer = prepare(store, clip, config)
    loop = TrainingLoop(trainer=trainer, validation=None, out=tmp_path, watch=quiet)
    mean, count = None, 0
    for step in range(trainer.num_steps):
        loss = trainer.step(step)
        assert loss.isfinite()
        loop.progress = Progress(step=step + 1)
        loop.take_average()
        epoch, rest = divmod(step + 1, trainer.epoch_steps)
        if epoch > 1 and not rest:
            count += 1
            own = {k: v.clone() for k, v in trainer.model.state_dict().items()}
            mean = (
                own if mean is None else {k: mean[k] + (own[k] - mean[k]) / count for k in own}
            )
        if mean is None:
            assert loop.kept is trainer.model
        else:
            kept = loop.kept.state_dict()
            assert all(torch.equal(kept[name], mean[name]) for name in mean)
    assert count == 3
    assert not torch.equal(mean["temporal.positions"], own["temporal.positions"])


def test_a_run_keeps_and_evaluates_the_average(clip, store, tmp_path):
    """The weights after each epoch are those of a run without; the kept ones are their mean."""
    after = []
    config = load(overrides=SHORT)
    trainer = prepare(store, clip, config)
    for step in range(trainer.num_steps):
        trainer.step(step)
        if (step + 1) % trainer.epoch_steps == 0:
            after.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
    averaged = load(overrides=[*SHORT, "average_epochs=3", "eval_every=1"])
    run = train(store, clip, averaged, tmp_path / "run", watch=quiet)
    kept = load_file(run.path / LAST)
    for name in kept:
        want = torch.stack([weights[name] for weights in after[1:]]).mean(dim=0)
        torch.testing.assert_close(kept[name], want)
    assert not torch.equal(kept["temporal.positions"], after[-1]["temporal.positions"])
    ours = Trained(run, clip, store.class_names)
    [result] = results_of(evaluate(store, [ours], "closed", watch=quiet))
    tops = [line["val_top1"] for line in read_metrics(run.path) if "val_top1" in line]
    assert result.top1 == pytest.approx(tops[-1])


def test_the_average_of_one_epoch_changes_nothing(clip, store, tmp_path):
    for name, more in (("off", []), ("one", ["average_epochs=1"])):
        config = load(overrides=[*SHORT, "eval_every=2", *more])
        train(store, clip, config, tmp_path / name, watch=quiet)
    for file in (LAST, BEST):
        off, one = (load_file(tmp_path / name / file) for name in ("off", "one"))
        assert all(torch.equal(off[key], one[key]) for key in off)
    assert (tmp_path / "off" / METRICS).read_text() == (tmp_path / "one" / METRICS).read_text()


def test_the_best_is_the_average_too(clip, store, tmp_path):
    """With a single evaluation, at the end, both files are what was evaluated."""
    config = load(overrides=[*SHORT, "average_epochs=3", "eval_every=4"])
    run = train(store, clip, config, tmp_path / "run", watch=quiet)
    last, best = (load_file(run.path / file) for file in (LAST, BEST))
    assert all(torch.equal(last[key], best[key]) for key in last)
