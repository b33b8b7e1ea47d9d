import math

import pytest
import torch
from helpers import fake_store as fake
from helpers.training import DESIGNS, few_of, quiet
from safetensors.torch import load_file

from bieff.clip import ClipName
from bieff.clip import load as load_clip
from bieff.features.errors import BieffError, ConfigError, InputError, StoreError
from bieff.train.config import load
from bieff.train.data import Batch
from bieff.train.evaluate.classifier import Trained
from bieff.train.evaluate.results import results_of
from bieff.train.evaluate.scoring import evaluate
from bieff.train.fit.loop import Validation, train
from bieff.train.fit.step import Trainer, backward_whole, cut, prepare
from bieff.train.method.loss import positive_pairs, symmetric_loss
from bieff.train.runs.checkpoint import BEST, LAST, RESUME
from bieff.train.runs.metrics import METRICS, read_metrics
from bieff.train.runs.run import load_model, open_run

SHORT = ["epochs=2", "warmup_epochs=1", "batch_size=11", "eval_every=0"]

ROWS = {
    **DESIGNS,
    "1 frames 2": ["frames=2"],
    "bfloat16": ["precision=bfloat16"],
    "clipped": ["clip_grad=0.5"],
    "in parts": ["accumulate=3"],
    "distilled": ["distill=0.5"],
    "averaged": ["average_epochs=2"],
    "from disk": ["feature_memory=1e-9"],
}


@pytest.fixture(scope="module")
def store(clip, tmp_path_factory):
    return fake.write_store(
        tmp_path_factory.mktemp("store") / "store",
        clip,
        patches=(5, 7),
        bad={"train": [3], "val": [0, 9]},
    )


@pytest.mark.parametrize("row", few_of(ROWS))
def test_every_row_of_the_tables_trains(clip, store, tmp_path, row):
    config = load(overrides=[*SHORT, *ROWS[row]])
    before = prepare(store, clip, config).model.state_dict()
    losses = []
    run = train(
        store, clip, config, tmp_path / "run", watch=lambda _, __, loss: losses.append(loss)
    )
    assert run.record["steps"] == len(losses) == 8
    assert all(math.isfinite(loss) for loss in losses)
    after = load_model(run, clip).state_dict()
    assert [name for name in after if torch.equal(before[name], after[name])] == []
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_folder_that_cannot_be_made_is_named(clip, store, tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    with pytest.raises(
        InputError, match=r"cannot make the folder .*file/run: Not a directory; "
    ):
        train(store, clip, load(overrides=SHORT), out, watch=quiet)


def test_validation_scores_as_many_videos_at_a_time_as_the_evaluation(clip, store, monkeypatch):
    """Many classes need memory by the video; and the same batches give the same last bits."""
    trainer = prepare(store, clip, load(overrides=[*SHORT, "eval_every=1"]))
    validation = Validation.load(store, trainer)
    seen = []
    score = Trainer.score

    def count(self, batch, categories):
        seen.append(len(batch.frames))
        return score(self, batch, categories)

    monkeypatch.setattr(Trainer, "score", count)
    want = validation.accuracies(trainer)
    assert set(seen) == {15}  # of 17 two are damaged
    seen.clear()
    monkeypatch.setattr("bieff.train.evaluate.classifier.TOWER_BYTES", 200_000)
    assert validation.accuracies(trainer) == want
    assert max(seen) < 15


@pytest.mark.slow
def test_released_trains_too(clip, store, tmp_path):
    for see in ("frames", "patches"):
        config = load(overrides=[*SHORT, f"prompts_see={see}"], base="released")
        assert train(store, clip, config, tmp_path / see, watch=quiet).record["finished"]


class Double:
    """A trainer in double precision, where sums in another order agree to 1e-13."""

    def __init__(self, store, folder, overrides):
        clip = load_clip(ClipName(model=store.recipe["clip"]["model"], pretrained=None))
        clip.model.double()
        self.trainer = prepare(store, clip, load(overrides=[*SHORT, *overrides]))
        self.trainer.model.double()

    def gradients(self, step):
        index, batch = self.trainer.batches.at(step)
        batch = Batch(batch.frames.double(), None)
        self.trainer.model.zero_grad()
        loss = self.trainer.backward(batch, index.labels)
        named = self.trainer.model.named_parameters()
        return loss, {name: p.grad for name, p in named}, batch, index


@pytest.mark.parametrize("options", [[], ["targets=multi-hot", "learn_temperature=true"]])
@pytest.mark.parametrize("parts", [1, 4, 11])
def test_the_loss_of_parts_is_that_of_the_whole_batch(store, tmp_path, parts, options):
    double = Double(store, tmp_path, [f"accumulate={parts}", *options])
    loss, gradients, batch, index = double.gradients(2)
    trainer = double.trainer
    trainer.model.zero_grad()
    categories = index.labels.unique()
    scores = trainer.model(batch.frames, trainer.text, categories=categories)
    want = symmetric_loss(
        scores.logits,
        positive_pairs(index.labels, categories),
        targets=trainer.config.targets,
    )
    want.backward()
    torch.testing.assert_close(loss, want.detach(), rtol=1e-10, atol=0)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-8, atol=1e-11)


def test_parts_are_cut_evenly():
    assert [(p.start, p.stop) for p in cut(11, 4)] == [(0, 2), (2, 5), (5, 8), (8, 11)]
    assert len(cut(3, 7)) == 3


def test_parts_keep_one_graph_at_a_time():
    """What a part keeps for its backward pass is let go of before the next is computed."""
    weight = torch.ones(3, requires_grad=True)
    alive, most = 0, 0

    def logits_of(part):
        nonlocal alive, most

        def gone(kept):
            nonlocal alive
            alive -= 1
            return kept

        def keep(kept):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return kept

        with torch.autograd.graph.saved_tensors_hooks(keep, gone):
            return (torch.ones(part.stop - part.start, 3) * weight).exp()

    loss = backward_whole(logits_of, cut(12, 4), torch.sum, lambda own: own, slice(0, 12))
    torch.testing.assert_close(loss, torch.tensor(36 * math.e))
    torch.testing.assert_close(weight.grad, torch.full((3,), 12 * math.e))
    assert most <= 2


def test_the_loss_says_what_the_batch_was(clip, store, tmp_path):
    config = load(overrides=[*SHORT, "lr=1e30"])
    with pytest.raises(BieffError) as caught:
        train(store, clip, config, tmp_path / "run", watch=quiet)
    message = str(caught.value)
    step = int(message.split(":")[0].removeprefix("step "))
    trainer = prepare(store, clip, config)
    rows = trainer.features.rows[trainer.batches.draw(step).videos.numpy()]
    assert "the loss is nan; no checkpoint was written yet" in message
    assert message.endswith(", ".join(f"{row} train-{row:03}" for row in rows))


def test_a_run_gone_astray_keeps_its_last_good_checkpoint(clip, store, tmp_path):
    config = load(overrides=[*SHORT, "lr=1e30", "save_seconds=0", "warmup_epochs=1"])
    with pytest.raises(BieffError, match=r"not finite|last good checkpoint, after \d+ steps"):
        train(store, clip, config, tmp_path / "run", watch=quiet)
    if (tmp_path / "run" / RESUME).exists():
        kept = load_file(tmp_path / "run" / RESUME)
        weights = {name: value for name, value in kept.items() if name.startswith("model/")}
        assert all(value.isfinite().all() for value in weights.values())


def test_evaluation_while_training_is_that_of_the_protocol(clip, store, tmp_path):
    config = load(overrides=[*SHORT, "epochs=3", "eval_every=2"])
    run = train(store, clip, config, tmp_path / "run", watch=quiet)
    lines = [line for line in read_metrics(run.path) if "val_top1" in line]
    assert [(line["step"], line["epoch"]) for line in lines] == [(7, 2), (11, 3)]
    ours = Trained(run, clip, store.class_names)
    [result] = results_of(evaluate(store, [ours], "closed", watch=quiet))
    assert result.top1 == pytest.approx(lines[-1]["val_top1"])
    assert result.top5 == pytest.approx(lines[-1]["val_top5"])
    assert result.n_evaluated == 15
    record = run.record
    assert record["evaluation"] == {
        "steps": 12,
        "val_top1": lines[-1]["val_top1"],
        "val_top5": lines[-1]["val_top5"],
    }
    best = max(lines, key=lambda line: line["val_top1"])  # the first of several
    assert record["best"] == {"steps": best["step"] + 1, "val_top1": best["val_top1"]}


@pytest.mark.slow
def test_best_and_last_are_told_apart(clip, store, tmp_path):
    config = load(overrides=[*SHORT, "eval_every=1", "epochs=9", "lr=0.02"])
    run = train(store, clip, config, tmp_path / "run", watch=quiet)
    tops = [line["val_top1"] for line in read_metrics(run.path) if "val_top1" in line]
    assert run.record["best"]["val_top1"] == max(tops)
    assert run.record["best"]["steps"] == 4 * (tops.index(max(tops)) + 1)
    assert tops.index(max(tops)) < 8, "the best must not be the last for this test to show"
    for name, file in (("last", LAST), ("best", BEST)):
        want = load_file(run.path / file)
        got = load_model(run, clip, weights=name).state_dict()
        assert all(torch.equal(got[key], want[key]) for key in want)
    assert not torch.equal(
        load_file(run.path / LAST)["temporal.positions"],
        load_file(run.path / BEST)["temporal.positions"],
    )


def test_a_store_without_val_is_not_evaluated(clip, tmp_path):
    store = fake.write_store(tmp_path / "store", clip, counts={"train": 13})
    run = train(
        store, clip, load(overrides=[*SHORT, "eval_every=1"]), tmp_path / "r", watch=quiet
    )
    assert run.record["evaluation"] is None
    assert not (run.path / BEST).exists()
    assert run.record["steps"] == 2


def test_what_cannot_be_trained_on_is_refused(clip, store, tmp_path):
    only_val = fake.write_store(tmp_path / "store", clip, counts={"val": 13})
    with pytest.raises(StoreError, match="has no training partition, it has val"):
        train(only_val, clip, load(), tmp_path / "run", watch=quiet)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(InputError, match="full is not empty; name another folder with --out"):
        train(store, clip, load(), tmp_path / "full", watch=quiet)
    with pytest.raises(ConfigError, match=r"expected a divisor of the store's 6"):
        train(store, clip, load(overrides=["frames=4"]), tmp_path / "run", watch=quiet)
    assert not (tmp_path / "run").exists()


def test_it_says_where_the_features_are(clip, store, tmp_path):
    said = []
    config = load(overrides=[*SHORT, "feature_memory=1e-9"])
    run = train(store, clip, config, tmp_path / "run", watch=quiet, say=said.append)
    assert "52 videos, 0.0 MB, stay on disk" in said[0]
    assert run.record["features"] == {"place": "disk", "bytes": 52 * 2 * 2 * 78, "window": 64}


def test_the_same_seed_gives_the_same_run(clip, store, tmp_path):
    config = load(overrides=[*SHORT, "eval_every=1"])
    runs = [train(store, clip, config, tmp_path / name, watch=quiet) for name in "ab"]
    first, second = (load_file(run.path / LAST) for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (runs[0].path / METRICS).read_text() == (runs[1].path / METRICS).read_text()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("RN50-quickgelu", marks=pytest.mark.slow),
        pytest.param("ViT-B-32-quickgelu", marks=pytest.mark.long),
        pytest.param("ViT-B-16-quickgelu", marks=pytest.mark.slow),
        pytest.param("ViT-L-14-quickgelu", marks=pytest.mark.long),
    ],
)
def test_the_sizes_of_clip_train(tmp_path, model):
    """Real sizes with random weights; RN50's text width is 512, its joint width 1024."""
    clip = load_clip(ClipName(model=model, pretrained="random"))
    assert clip.dim == {"RN50-quickgelu": 1024, "ViT-L-14-quickgelu": 768}.get(model, 512)
    store = fake.write_store(tmp_path / "store", clip, counts={"train": 12, "val": 2})
    losses = []
    config = load(overrides=["epochs=1", "warmup_epochs=0", "batch_size=4"])
    run = train(
        store, clip, config, tmp_path / "run", watch=lambda _, __, loss: losses.append(loss)
    )
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)
    assert open_run(run.path).record["evaluation"]["steps"] == 3
