"""Few videos a class: which they are, that they come back, and that training sees no other."""

import dataclasses
import json
import statistics

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import fake_store as fake
from helpers.training import interrupt_at, quiet
from safetensors.torch import load_file

from bieff.apps.evaluate import Evaluation, evaluate_on
from bieff.apps.progress import steps_bar, videos_bar
from bieff.apps.train import shots_of_list, train_run
from bieff.cli import main
from bieff.features.errors import (
    ConfigError,
    InputError,
    StoreError,
    StoreMismatchError,
)
from bieff.features.schema import UNLABELLED, PartitionPlan, Video
from bieff.features.store import FeatureStore
from bieff.train.config import load
from bieff.train.evaluate.classifier import Trained
from bieff.train.evaluate.lists import halves, split_lists
from bieff.train.evaluate.results import load_results
from bieff.train.experiments.base_to_novel import Figures, base2novel
from bieff.train.fit.few_shot import FewShotDraw, FewShotOptions, draw_shots
from bieff.train.fit.loop import train
from bieff.train.fit.step import prepare
from bieff.train.runs.checkpoint import LAST, StoppedError
from bieff.train.runs.run import open_run

SHORT = ["epochs=2", "warmup_epochs=1", "batch_size=4", "temporal_layers=1"]
BAD = (7, 22, 30)
HERE = {"device": "cpu", "steps_bar": steps_bar, "videos_bar": videos_bar}


@pytest.fixture(scope="module")
def splits(clip, tmp_path_factory):
    """Like HMDB-51: one partition, official splits."""
    path = tmp_path_factory.mktemp("splits") / "store"
    bad = {"all": list(BAD)}
    return fake.write_store(path, clip, counts={"all": 71}, num_splits=3, bad=bad)


@pytest.fixture(scope="module")
def parts(clip, tmp_path_factory):
    """Like `shapes`: train and val."""
    return fake.write_store(tmp_path_factory.mktemp("parts") / "store", clip)


def train_here(features, **options):
    """`bieff train` with the store's CLIP named."""
    model = fake.named(features).model
    return train_run(features=features, overrides=SHORT, device="cpu", model=model, **options)


# --- the draw


def test_a_draw_takes_so_many_usable_videos_of_the_training_list(splits):
    shots = draw_shots(splits, shots=3, split="2", seed=5)
    videos = {video.id: video for video in splits.partitions["all"].videos}
    assert list(shots.videos) == splits.class_names
    for label, ids in enumerate(shots.videos.values()):
        assert len(set(ids)) == 3
        for id_ in ids:
            assert videos[id_].label == label
            assert videos[id_].splits["2"] == "train"
            assert int(id_.removeprefix("all-")) not in BAD
    assert shots == draw_shots(splits, shots=3, split="2", seed=5)
    assert shots.videos != draw_shots(splits, shots=3, split="2", seed=6).videos
    assert shots.text() == "3 videos a class of split 2, draw 5: 15 videos of 5 classes"
    assert FewShotDraw(**json.loads(json.dumps(shots.to_dict()))) == shots


def test_fewer_shots_and_fewer_classes_are_a_part_of_the_draw(splits):
    four = draw_shots(splits, shots=4)
    two = draw_shots(splits, shots=2)
    assert four.split == "1"
    assert all(set(two.videos[name]) < set(four.videos[name]) for name in four.videos)
    some = draw_shots(splits, shots=4, classes=[3, 1])
    assert list(some.videos) == [splits.class_names[3], splits.class_names[1]]
    assert all(some.videos[name] == four.videos[name] for name in some.videos)


def test_a_class_gives_what_it_has(splits):
    shots = draw_shots(splits, shots=1000)
    labels = splits.partitions["all"].labels
    usable = [row for row in range(71) if row % 3 != 0 and row not in BAD]
    counts = [int((labels[usable] == label).sum()) for label in range(5)]
    assert [len(ids) for ids in shots.videos.values()] == counts
    assert shots.text().endswith(f"{len(usable)} videos of 5 classes, 5 classes have fewer")


def test_lists_of_splits_and_of_partitions(splits, parts, clip, tmp_path):
    (_, train_list), (_, test_list) = split_lists(splits, None)
    assert test_list.rows.tolist() == list(range(0, 71, 3))
    assert sorted([*train_list.rows, *test_list.rows]) == list(range(71))
    (train_part, train_list), (test_part, test_list) = split_lists(parts, None)
    assert (train_part.name, test_part.name) == ("train", "val")
    assert (len(train_list.rows), len(test_list.rows)) == (53, 17)
    with pytest.raises(ConfigError, match=r"has 1, 2, 3, got '4'"):
        split_lists(splits, "4")
    with pytest.raises(ConfigError, match="has no official splits, it has train and val"):
        split_lists(parts, "1")
    video = Video(id="a", path="a.mp4", label=0, splits={"1": "test"})
    zero_shot = FeatureStore.create(
        tmp_path / "tested",
        recipe=dict(splits.recipe),
        class_names=["archery"],
        partitions={"all": PartitionPlan(videos=[video], num_views=1)},
        versions={},
    )
    with pytest.raises(ConfigError, match=r"split 1 of .* has no training list; take a store "):
        split_lists(zero_shot, None)
    only = fake.write_store(tmp_path / "store", clip, counts={"val": 13})
    with pytest.raises(StoreError, match="expected official splits, or the partitions"):
        split_lists(only, None)
    with pytest.raises(ConfigError, match="shots must be positive, got 0"):
        draw_shots(parts, shots=0)


def test_a_class_without_a_usable_video_is_named(clip, tmp_path):
    path = tmp_path / "store"
    labels = fake.write_store(path, clip).partitions["train"].labels
    bad = {"train": np.flatnonzero(labels == 3).tolist()}
    store = fake.write_store(tmp_path / "bad", clip, bad=bad)
    with pytest.raises(StoreError, match="class 'tai chi' has no usable video to train on"):
        draw_shots(store, shots=2)


# --- training on it


@pytest.mark.parametrize("kind", ["splits", "parts"])
def test_training_sees_the_drawn_videos_alone(clip, splits, parts, kind):
    store = splits if kind == "splits" else parts
    shots = draw_shots(store, shots=3)
    trainer = prepare(store, clip, load(overrides=SHORT), shots=shots)
    whole = store.partitions["all" if kind == "splits" else "train"]
    row_of = {video.id: row for row, video in enumerate(whole.videos)}
    rows = sorted(row_of[id_] for ids in shots.videos.values() for id_ in ids)
    held = trainer.features.embeddings.numpy()
    np.testing.assert_array_equal(held, whole.read(rows))
    assert trainer.features.labels.tolist() == whole.labels[rows].tolist()
    assert trainer.features.rows.tolist() == rows
    assert trainer.class_names == list(store.class_names)
    two = draw_shots(store, shots=3, classes=[4, 1])
    trainer = prepare(store, clip, load(overrides=SHORT), shots=two)
    assert trainer.class_names == [store.class_names[label] for label in (1, 4)]


def test_a_run_keeps_its_draw_and_another_takes_it_again(splits, tmp_path):
    few = FewShotOptions(shots=2, split="3", seed=1, same_as=None)
    first = tmp_path / "the first"
    said = train_here(splits.path, out=first, few=few)
    assert "2 videos a class of split 3, draw 1: 10 videos of 5 classes" in said
    record = open_run(first).record
    assert record["shots"] == draw_shots(splits, shots=2, split="3", seed=1).to_dict()
    assert (record["videos"], record["evaluation"]) == (10, None)
    again = FewShotOptions(shots=None, split=None, seed=None, same_as=first)
    train_here(splits.path, out=tmp_path / "second", few=again)
    one, two = (load_file(tmp_path / name / LAST) for name in (first, "second"))
    assert all(torch.equal(one[key], two[key]) for key in one)

    assert said.endswith(f"`bieff eval '{first}'` evaluates it on the whole test list")
    ask = {"run": first, "features": None, "protocol": "closed"}
    results = evaluate_on(Evaluation(device="cpu", model=fake.named(splits).model), **ask)
    assert results == load_results(first / "results.json")
    assert [(r.protocol, r.model) for r in results] == [
        ("fewshot", m) for m in ("bieff", "frozen")
    ]
    listed = list(range(2, 71, 3))
    assert results[0].n_listed == len(listed)
    assert results[0].n_evaluated == len(set(listed) - set(BAD))
    assert results[0].store == splits.recipe_hash


def test_training_videos_are_never_asked_about(splits, tmp_path):
    """Other splits list them for testing, and `full` and `half10` every video."""
    run = tmp_path / "few"
    few = FewShotOptions(shots=2, split="1", seed=0, same_as=None)
    train_here(splits.path, out=run, few=few)
    for protocol in ("splits3", "full", "half10"):
        with pytest.raises(ConfigError, match=rf"10 of the videos that {protocol} asks about"):
            evaluate_on(
                Evaluation(device="cpu", model=fake.named(splits).model),
                run=run,
                features=None,
                protocol=protocol,
            )
        with pytest.raises(ConfigError, match=f"was trained on 10 .* that {protocol} asks"):
            evaluate_on(
                Evaluation(device="cpu", model=fake.named(splits).model),
                name="fake",
                run=run,
                features=splits.path,
                protocol=protocol,
            )
    assert not (run / "results.json").exists()


def test_the_draw_alone_is_not_ignored(parts, tmp_path):
    asked = ["train", "--features", str(parts.path), "--out", str(tmp_path / "x")]
    done = CliRunner().invoke(main, [*asked, "--draw", "3"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: --split and --draw need --shots")
    assert not (tmp_path / "x").exists()


def test_a_run_on_few_videos_goes_on(splits, tmp_path):
    clip = fake.load_clip(tmp_path / "clip")
    shots = draw_shots(splits, shots=2)
    config = load(overrides=SHORT)
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(splits, clip, config, out, watch=interrupt_at(3), shots=shots)
    other = draw_shots(splits, shots=2, seed=1)
    with pytest.raises(StoreMismatchError, match="began with another draw of few videos"):
        train(
            splits,
            clip,
            config,
            out,
            watch=quiet,
            resume=open_run(out),
            shots=other,
        )
    said = train_run(out=out, resume=True, model=fake.named(splits).model, device="cpu")
    assert said.startswith("trained 4 steps on 10 videos")
    assert "2 videos a class of split 1, draw 0" in said
    straight = tmp_path / "straight"
    train(splits, clip, config, straight, watch=quiet, shots=shots)
    one, two = (load_file(path / LAST) for path in (out, straight))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_options_that_do_not_fit_are_refused(splits, parts, tmp_path):
    nothing = {"shots": None, "split": None, "seed": None, "same_as": None}
    cases = [
        ({"split": "1"}, "--split and --draw need --shots"),
        ({"seed": 0}, "--split and --draw need --shots"),
        ({"shots": 2, "same_as": tmp_path}, "--same-shots brings its shots, split and draw"),
        ({"seed": 3, "same_as": tmp_path}, "--same-shots brings its shots, split and draw"),
        ({"shots": 2, "seed": -1}, "draw must not be negative, got -1"),
    ]
    for asked, message in cases:
        few = FewShotOptions(**{**nothing, **asked})
        with pytest.raises(ConfigError, match=message):
            train_here(splits.path, out=tmp_path / "out", few=few)
    with pytest.raises(ConfigError, match="--resume goes on with the run's own videos"):
        train_run(resume=True, few=FewShotOptions(**nothing))
    train_here(parts.path, out=tmp_path / "all")
    few = FewShotOptions(**{**nothing, "same_as": tmp_path / "all"})
    with pytest.raises(ConfigError, match="was trained on all videos, not on few"):
        train_here(parts.path, out=tmp_path / "out", few=few)
    shots = draw_shots(parts, shots=2)
    with pytest.raises(StoreMismatchError, match=r"the draw is not of .*: it lists no video"):
        shots.listed(splits)


# --- base to novel


def test_halves_are_by_how_often_a_class_occurs(splits):
    base, novel = halves(splits, "1").values()
    (partition, listed), _ = split_lists(splits, "1")
    counts = np.bincount(partition.labels[listed.rows], minlength=5)
    assert (len(base), len(novel)) == (3, 2)
    assert sorted([*base, *novel]) == list(range(5))
    assert min(counts[base]) >= max(counts[novel])


def test_videos_without_a_label_are_in_neither_half(parts, tmp_path):
    """A list may have some; they are no class of their own."""
    store = FeatureStore.open(parts.path)
    counted = halves(store, None)
    labels = store.partitions["train"].labels.copy()
    rarest = counted["novel"][-1]
    labels[np.flatnonzero(labels != rarest)[:3]] = UNLABELLED
    store.partitions["train"].labels = labels
    base, novel = halves(store, None).values()
    counts = [int((labels == label).sum()) for label in range(5)]
    assert sorted([*base, *novel]) == list(range(5))
    assert min(counts[label] for label in base) >= max(counts[label] for label in novel)


def test_the_harmonic_mean_by_hand():
    assert Figures.of("bieff", [60.0], [30.0]).harmonic == pytest.approx(40.0)
    assert Figures.of("bieff", [0.0], [30.0]).harmonic == 0.0
    figures = Figures.of("bieff", [50.0, 70.0], [20.0, 40.0])
    assert (figures.base, figures.base_std, figures.novel) == (60.0, 10.0, 30.0)
    assert figures.harmonic == pytest.approx(40.0)


@pytest.mark.parametrize("kind", ["splits", pytest.param("parts", marks=pytest.mark.slow)])
def test_base_to_novel(splits, parts, tmp_path, kind):
    """Against the run's own scores, one video at a time among the classes of its half."""
    store = splits if kind == "splits" else parts
    ask = {"shots": 3, "draws": 2, "overrides": SHORT, "out": tmp_path / "out", **HERE}
    ask["model"] = fake.named(store).model
    ours, frozen = base2novel(store.path, **ask)
    assert (ours.model, frozen.model) == ("bieff", "frozen")
    classes = {half: labels.tolist() for half, labels in halves(store, None).items()}
    kept = json.loads((tmp_path / "out" / "base2novel.json").read_text())
    assert kept["classes"] == {
        half: [store.class_names[label] for label in chosen] for half, chosen in classes.items()
    }
    for draw in (0, 1):
        run = open_run(tmp_path / "out" / f"draw-{draw}")
        assert run.record["class_names"] == kept["classes"]["base"]
        assert run.config.seed == draw
        want = draw_shots(store, shots=3, seed=draw, classes=classes["base"])
        assert run.record["shots"] == want.to_dict()
    assert ours.base == pytest.approx(
        statistics.fmean(draw[0]["top1"] for draw in kept["results"]["base"])
    )
    for half, chosen in classes.items():
        _, (partition, listed) = split_lists(store, None)
        labels = partition.labels[listed.rows]
        assert kept["results"][half][0][0]["n_listed"] == int(np.isin(labels, chosen).sum())
        assert kept["results"][half][0][0]["protocol"] == f"base2novel-{half}"

    # neither trained nor scored again
    folder = tmp_path / "out" / "draw-1"
    files = [folder / LAST, *(folder / "scores").iterdir()]
    before = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 3
    assert base2novel(store.path, **ask) == [ours, frozen]
    assert [file.stat().st_mtime_ns for file in files] == before
    half = Evaluation(device="cpu", model_only=True, model=fake.named(store).model)
    of_half = {"run": tmp_path / "out" / "draw-1", "features": None, "protocol": "closed"}
    (alone,) = evaluate_on(half, **of_half)
    assert alone.protocol == "base2novel-base"
    of_base = kept["results"]["base"][1][0]
    assert [dataclasses.asdict(one) for one in alone.lists] == of_base["lists"]
    with pytest.raises(StoreMismatchError, match="began with another draw of few videos"):
        base2novel(store.path, **{**ask, "shots": 2})
    with pytest.raises(ConfigError, match="batch_size: the run has 4, asked for 5"):
        base2novel(store.path, **{**ask, "overrides": [*SHORT, "batch_size=5"]})
    with pytest.raises(ConfigError, match="draws must be positive, got 0"):
        base2novel(store.path, **{**ask, "draws": 0})


def test_novel_videos_are_told_apart_among_novel_classes(clip, splits, tmp_path):
    """Brute force: the model's scores over the names of the half alone."""
    ask = {"shots": 4, "draws": 1, "overrides": SHORT, "out": tmp_path, **HERE}
    ask["model"] = fake.named(splits).model
    [ours, _] = base2novel(splits.path, **ask)
    run = open_run(tmp_path / "draw-0")
    novel = halves(splits, None)["novel"]
    classifier = Trained(run, clip, [splits.class_names[label] for label in novel])
    whole = FeatureStore.open(splits.path).partitions["all"]
    right, count = 0, 0
    for row in range(0, 71, 3):
        if row in BAD or whole.labels[row] not in novel:
            continue
        total = np.zeros(len(novel))
        for shown in whole.read([row])[0]:
            logits = classifier.logits(torch.from_numpy(shown[None]).float(), None)[0].double()
            total += logits.softmax(dim=0).numpy()
        right += novel[int(total.argmax())] == whole.labels[row]
        count += 1
    assert ours.novel == pytest.approx(100 * right / count)


# --- videos that a list names


def shots_file(path, store, draw, number, *, suffix=".avi"):
    """A list as ViFi-CLIP writes them: bare file names, and numbers of classes."""
    part = store.partitions["all" if "all" in store.partitions else "train"]
    name = {video.id: video.path.rpartition("/")[2][:-4] for video in part.videos}
    lines = [
        f"{name[id_]}{suffix} {number(label)}"
        for label, ids in enumerate(draw.videos.values())
        for id_ in ids
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_list_names_the_videos(splits, tmp_path):
    draw = draw_shots(splits, shots=2, split="2", seed=9)
    file = shots_file(tmp_path / "train1_few_shot_2.txt", splits, draw, str)
    listed = shots_of_list(splits, file, split="2")
    assert {**listed.to_dict(), "seed": 9} == draw.to_dict()
    assert listed.text() == "2 videos a class of split 2, as listed: 10 videos of 5 classes"
    # what the store cannot use is left out, and counted
    file.write_text(file.read_text() + f"{BAD[2]}.avi 0\ngone.avi 1\n")
    assert shots_of_list(splits, file, split="2") == listed

    few = FewShotOptions(shots=None, split="2", seed=None, same_as=None)
    said = train_here(splits.path, out=tmp_path / "run", shots_list=file, few=few)
    assert "as listed: 10 videos of 5 classes" in said
    assert open_run(tmp_path / "run").record["shots"] == listed.to_dict()


def test_a_list_that_is_not_of_the_store_is_refused(splits, tmp_path):
    draw = draw_shots(splits, shots=2, split="2", seed=9)
    file = tmp_path / "list.txt"
    names = list(splits.class_names)
    shots_file(file, splits, draw, lambda label: names[label])
    assert shots_of_list(splits, file, split="2").videos == draw.videos
    shots_file(file, splits, draw, lambda label: names[label - 1])
    with pytest.raises(InputError, match=r"line 1: label 'playing drums' is not that of"):
        shots_of_list(splits, file, split="2")
    shots_file(file, splits, draw, lambda label: label // 2)
    with pytest.raises(InputError, match=r"line 3: label 0 is not that of 'archery'"):
        shots_of_list(splits, file, split="2")
    text = shots_file(file, splits, draw, str).read_text()
    file.write_text(text.replace(" 0\n", " 7\n", 1))
    with pytest.raises(InputError, match=r"line 2: label 0 is not that of 'playing guitar'"):
        shots_of_list(splits, file, split="2")
    with pytest.raises(InputError, match=r"is on the test list of .*--split"):
        shots_of_list(splits, shots_file(file, splits, draw, str), split="1")
    file.write_text("gone.avi 3\n")
    with pytest.raises(StoreError, match="no usable training video of label '3'"):
        shots_of_list(splits, file, split="2")
    few = FewShotOptions(shots=2, split=None, seed=None, same_as=None)
    with pytest.raises(ConfigError, match="--shots-list names the videos; leave --shots"):
        train_run(features=splits.path, shots_list=file, few=few)


def test_base_to_novel_of_lists(splits, tmp_path):
    """The classes of the lists are the base, whatever half occurs more often."""
    base = [int(label) for label in halves(splits, None)["novel"]]
    draws = [draw_shots(splits, shots=3, seed=seed, classes=base) for seed in (4, 5)]
    # numbers begin anew
    files = [
        shots_file(tmp_path / f"fs_base_s{i}_train.txt", splits, draw, str)
        for i, draw in enumerate(draws)
    ]

    def listed(store):
        return [shots_of_list(store, file, split=None) for file in files]

    ask = {"shots": 16, "draws": 3, "overrides": SHORT, "out": tmp_path / "out", **HERE}
    ask["model"] = fake.named(splits).model
    base2novel(splits.path, **ask, listed=listed)
    kept = json.loads((tmp_path / "out" / "base2novel.json").read_text())
    names = [splits.class_names[label] for label in base]
    assert kept["classes"]["base"] == names
    assert sorted([*names, *kept["classes"]["novel"]]) == sorted(splits.class_names)
    assert (kept["shots"], kept["draws"]) == (3, 2)
    # `bieff eval` asks about the classes of the list, too
    half = Evaluation(device="cpu", model_only=True, model=ask["model"])
    run = tmp_path / "out" / "draw-1"
    (alone,) = evaluate_on(half, run=run, protocol="closed")
    of_base = kept["results"]["base"][1][0]
    assert [dataclasses.asdict(one) for one in alone.lists] == of_base["lists"]
    _, (partition, tested) = split_lists(splits, None)
    labels = partition.labels[tested.rows]
    counts = (len(base), int(np.isin(labels, base).sum()))
    assert (alone.lists[0].n_classes, alone.lists[0].n_listed) == counts
    files = files[:1]
    shots_file(files[0], splits, draw_shots(splits, shots=1), str)
    with pytest.raises(ConfigError, match="expected the same part of the classes in each"):
        base2novel(splits.path, **ask, listed=listed)
