"""Every protocol against a brute-force evaluator, on a store with undecodable videos."""

import json
import math
import os
import subprocess
import sys
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import fake_store as fake
from helpers.training import quiet

from bieff.cli import main
from bieff.extract.datasets import official
from bieff.features.errors import ConfigError, StoreError
from bieff.features.schema import PartitionPlan, Video
from bieff.features.store import FeatureStore
from bieff.train.config import load
from bieff.train.evaluate.classifier import Frozen
from bieff.train.evaluate.lists import default_protocol, half_of, lists_of
from bieff.train.evaluate.results import load_results, results_of
from bieff.train.evaluate.scoring import evaluate
from bieff.train.fit.loop import train
from bieff.train.runs.run import clip_of, load_model
from bieff.train.text.tower import TextTower
from bieff.train.text.wording import HAND_CRAFTED

K, T, V = 7, 6, 3
CLASSES = (*fake.NAMES, "kick", "kick ball")
COUNTS = {"train": 53, "val": 17, "all": 19}
BAD = {"val": [2, 11, 16], "all": [0, 7, 12, 18]}
SUBSETS = {"1": (4, 1, 6), "2": (0, 2, 3), "3": (1, 2, 6)}
MIX = 0.3
PROTOCOLS = ("closed", "splits3", "full", "half10", "k600")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with every partition there is, and a run on it that has learnt a little."""
    folder = tmp_path_factory.mktemp("protocols")
    clip = fake.load_clip(folder / "clip")
    store = fake.write_store(
        folder / "store",
        clip,
        counts=COUNTS,
        frames=T,
        views=V,
        clips=V,
        names=CLASSES,
        bad=BAD,
        noise=2.5,
        class_subsets=SUBSETS,
    )
    settings = ["epochs=15", "warmup_epochs=1", "lr=0.003", "batch_size=11", "eval_every=0"]
    settings += ["frames=3", "temporal_layers=1"]
    run = train(store, clip, load(overrides=settings), folder / "runs" / "a", watch=quiet)
    return store, run


class BruteForce:
    """One video, one view, one category at a time, in float64, from the definition."""

    def __init__(self, store, run):
        self.store, clip = (
            store,
            clip_of(store, device=torch.device("cpu"), named=fake.named(store)),
        )
        clip.model.double()
        self.model = load_model(run, clip).double()
        self.text = TextTower(clip.model, clip.tokenize(CLASSES))
        prompts = clip.tokenize([HAND_CRAFTED.format(name) for name in CLASSES])
        self.classes = [clip.model.encode_text(prompt[None])[0] for prompt in prompts]
        self.scale = clip.model.logit_scale.exp().item()

    @cache  # noqa: B019, one object lives as long as the tests
    def one(self, partition, row, view, category):
        """Of a video, a view and a category: the model's own embeddings, and frozen CLIP's."""
        stored = self.store.partitions[partition].read([row])[0, view].astype(np.float64)
        frames = torch.from_numpy(stored[(0, 1, 1)[view] :: 2])  # one of two, by the clip
        one = self.model(frames[None], self.text, categories=torch.tensor([category]))
        mean = self.model.temporal(frames[None])[0].mean(dim=0)
        beside = cosine(sum(f / f.norm() for f in frames), self.classes[category])
        return mean, one.classes[0, 0], one.video[0], beside

    def scores(self, partition, row, categories):
        total = {who: dict.fromkeys(categories, 0.0) for who in ("bieff", "frozen", "mix")}
        for view in range(V):
            one = {c: self.one(partition, row, view, c) for c in categories}
            guide = max(categories, key=lambda c: cosine(one[c][0], one[c][1]))
            ours = {c: math.exp(cosine(one[guide][2], one[c][1]) / 0.01) for c in categories}
            beside = {c: math.exp(self.scale * one[c][3]) for c in categories}
            for c in categories:
                total["bieff"][c] += ours[c] / sum(ours.values()) / V
                total["frozen"][c] += beside[c] / sum(beside.values()) / V
        for c in categories:
            total["mix"][c] = MIX * total["bieff"][c] + (1 - MIX) * total["frozen"][c]
        return total

    @torch.no_grad()
    def count(self, partition, rows, categories):
        """(listed, evaluated), and of each model [right, among the best five]."""
        labels = self.store.partitions[partition].labels
        right = {"bieff": [0, 0], "frozen": [0, 0], "mix": [0, 0]}
        usable = [row for row in rows if row not in BAD[partition]]
        for row in usable:
            for who, of_class in self.scores(partition, row, categories).items():
                better = sum(score > of_class[labels[row]] for score in of_class.values())
                right[who][0] += better < 1
                right[who][1] += better < 5
        return (len(rows), len(usable)), right


def cosine(a, b):
    return (a @ b / a.norm() / b.norm()).item()


def asked(store, protocol):
    """Partition, and (rows, categories) of each list: METHOD's table, once more."""
    parts = {name: store.partitions[name] for name in ("val", "all")}
    everything = list(range(K))
    if protocol == "closed":
        return "val", [(list(range(COUNTS["val"])), everything)]
    if protocol == "full":
        return "all", [(list(range(COUNTS["all"])), everything)]
    if protocol == "splits3":
        videos = parts["all"].videos
        return "all", [
            (
                [row for row in range(COUNTS["all"]) if videos[row].splits[split] == "test"],
                everything,
            )
            for split in "123"
        ]
    if protocol == "half10":
        name, halves = "all", []
        for seed in range(10):
            np.random.seed(seed)  # noqa: NPY002, as METHOD has it
            halves.append(np.random.permutation(K)[: K // 2].tolist())  # noqa: NPY002
    else:
        name, halves = "val", list(SUBSETS.values())
    labels = parts[name].labels.tolist()
    return name, [
        ([row for row, label in enumerate(labels) if label in half], half) for half in halves
    ]


@pytest.fixture(scope="module")
def expected(made):
    """What the brute force counts, for each protocol and list."""
    force = BruteForce(*made)
    found = {}
    for protocol in PROTOCOLS:
        partition, lists = asked(made[0], protocol)
        found[protocol] = [force.count(partition, *one) for one in lists]
    return found


def command(made, protocol, *more):
    store, run = made
    options = ("--features", store.path, "--protocol", protocol, "--mix", MIX, *more)
    options += tuple(fake.named(store).words)
    return [str(part) for part in ("eval", run.path, *options, "--device", "cpu")]


def check(results, counts):
    """The saved results have the counts of the brute force, and what follows from them."""
    assert [result.model for result in results] == ["bieff", "frozen", "mix"]
    for result in results:
        figures = [
            ((one.n_listed, one.n_evaluated), [one.n_top1, one.n_top5]) for one in result.lists
        ]
        assert figures == [(sizes, right[result.model]) for sizes, right in counts]
        shares = [100 * right / sizes[1] for sizes, (right, _) in figures_of(counts, result)]
        of_all = [100 * right / sizes[0] for sizes, (right, _) in figures_of(counts, result)]
        assert result.top1 == pytest.approx(np.mean(shares))
        assert result.top1_all == pytest.approx(np.mean(of_all))
        assert result.top1_all < result.top1 or result.top1 == 0
        if len(counts) == 1:
            assert result.top1_std is result.top1_all_std is None
        else:
            assert result.top1_std == pytest.approx(np.std(shares))
            assert result.top1_all_std == pytest.approx(np.std(of_all))
        assert result.n_listed == sum(sizes[0] for sizes, _ in counts)
        assert result.n_evaluated == sum(sizes[1] for sizes, _ in counts)
        assert result.n_undecodable == result.n_listed - result.n_evaluated > 0
        assert sum(one.n_listed for one in result.classes) == result.n_listed
        assert sum(one.n_right for one in result.classes) == sum(
            right[result.model][0] for _, right in counts
        )
        wrong = sum(count for _, _, count in result.confusions)
        assert wrong == result.n_evaluated - sum(one.n_right for one in result.classes)


def figures_of(counts, result):
    return [(sizes, right[result.model]) for sizes, right in counts]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_command_counts_what_the_brute_force_counts(made, expected, protocol):
    _, run = made
    (run.path / "results.json").unlink(missing_ok=True)
    done = CliRunner().invoke(main, command(made, protocol, "--batch-size", 4))
    assert done.exit_code == 0, done.output
    results = load_results(run.path / "results.json")
    check(results, expected[protocol])
    assert 20 < results[0].top1 < 95  # there is something to get wrong
    assert {result.protocol for result in results} == {protocol}
    assert (results[0].frames, results[0].clips, results[0].crops) == (3, V, 1)
    assert "top-1 of all" in done.stdout
    CliRunner().invoke(main, command(made, protocol))  # in other batches
    check(load_results(run.path / "results.json"), expected[protocol])  # in the others' place


FEW = {("closed", 2), ("splits3", 3)}


@pytest.mark.parametrize(
    ("protocol", "processes"),
    [
        pytest.param(*one, marks=pytest.mark.slow if one in FEW else pytest.mark.long)
        for one in product(PROTOCOLS, (2, 3))
    ],
)
def test_several_processes_count_the_same(made, expected, protocol, processes):
    """To the bit: what is in a batch does not depend on them."""
    _, run = made
    arguments = command(made, protocol, "--batch-size", 4)
    (run.path / "results.json").unlink(missing_ok=True)
    CliRunner().invoke(main, arguments)
    alone = (run.path / "results.json").read_bytes()
    (run.path / "results.json").write_text(json.dumps([]))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", str(processes), "-m", "bieff.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f", {protocol} (") == 1  # one of them prints
    results = load_results(run.path / "results.json")
    check(results, expected[protocol])
    assert (run.path / "results.json").read_bytes() == alone


def test_the_draws_are_those_of_the_lineage():
    for classes in (51, 101):
        for seed in range(10):
            np.random.seed(seed)  # noqa: NPY002, as METHOD has it
            want = np.random.permutation(classes)[: classes // 2]  # noqa: NPY002
            assert half_of(classes, seed).tolist() == sorted(want.tolist())


@pytest.mark.parametrize(
    ("name", "num_videos", "tests"),
    [("ucf101", 13320, [3783, 3734, 3696]), ("hmdb51", 6766, [1530, 1530, 1530])],
)
def test_official_lists(tmp_path, name, num_videos, tests):
    """Planned from the official lists; nothing needs to be extracted for counting them."""
    store = planned(tmp_path / name, name)
    _, lists = lists_of(store, "splits3")
    assert [len(one.rows) for one in lists] == tests
    videos = store.partitions["all"].videos
    for split, one in zip("123", lists, strict=True):
        roles = [video.splits.get(split) for video in videos]
        assert [row for row, role in enumerate(roles) if role == "test"] == one.rows.tolist()
        if name == "ucf101":
            assert roles.count("train") == num_videos - len(one.rows)
        else:
            assert roles.count("train") == 3570
    _, (every,) = lists_of(store, "full")
    assert len(every.rows) == num_videos
    _, halves = lists_of(store, "half10")
    assert {len(one.classes) for one in halves} == {len(store.class_names) // 2}
    assert default_protocol(store) == "splits3"


def planned(path, name):
    """A store of the official videos, without features."""
    names = [raw for raw, _ in official.class_names(name)]
    videos = [
        Video(id=listed, path=listed, label=names.index(listed.split("/")[0]), splits=roles)
        for listed, roles in official.splits(name)
    ]
    return FeatureStore.create(
        path,
        recipe={"data_set": name, "frames": 1, "dim": 3},
        class_names=names,
        partitions={"all": PartitionPlan(videos=videos, num_views=1)},
        versions={},
    )


def test_k600_asks_about_the_official_160_classes(tmp_path):
    names = [raw for raw, _ in official.class_names("k600")]
    videos = [Video(id=raw, path=raw, label=label) for label, raw in enumerate(names)]
    store = FeatureStore.create(
        tmp_path,
        recipe={"data_set": "k600", "frames": 1, "dim": 3},
        class_names=names,
        partitions={"val": PartitionPlan(videos=videos, num_views=1)},
        versions={},
        class_subsets=official.zero_shot_splits(),
    )
    assert default_protocol(FeatureStore.open(tmp_path)) == "k600"
    _, lists = lists_of(FeatureStore.open(tmp_path), "k600")
    k400 = {raw for raw, _ in official.class_names("k400")}
    for one in lists:
        assert len(one.classes) == 160
        assert one.rows.tolist() == one.classes.tolist()  # a video a class, in order
        assert k400.isdisjoint(names[label] for label in one.classes)
    assert store.class_subsets == FeatureStore.open(tmp_path).class_subsets


def test_a_store_without_the_partition_says_what_fits(tmp_path):
    store = planned(tmp_path / "store", "hmdb51")
    with pytest.raises(
        StoreError, match="it has all; closed is not for it, take --protocol spl"
    ):
        lists_of(store, "closed")
    with pytest.raises(StoreError, match="has no 'val' partition"):
        lists_of(store, "k600")
    with pytest.raises(
        ConfigError, match=r"one of closed, splits3, full, half10, k600, .*, got 'x'"
    ):
        lists_of(store, "x")


def closed(store, clip):
    """Frozen CLIP's figures."""
    frozen = Frozen(clip, store.class_names, num_frames=6)
    return results_of(evaluate(store, [frozen], "closed", watch=lambda done, total: None))


def test_an_unfinished_store_is_not_evaluated(made, tmp_path):
    store, _ = made
    clip = clip_of(store, device=torch.device("cpu"), named=fake.named(store))
    other = fake.write_store(tmp_path / "store", clip, counts={"val": 13})
    other.partitions["val"].drop(0)
    with pytest.raises(StoreError, match="13 of 13 videos are not extracted yet"):
        closed(other, clip)


def test_a_list_without_a_usable_video_is_no_zero(made, tmp_path):
    store, _ = made
    clip = clip_of(store, device=torch.device("cpu"), named=fake.named(store))
    every = list(range(5))
    other = fake.write_store(tmp_path / "store", clip, counts={"val": 7}, bad={"val": every})
    (result,) = closed(other, clip)
    assert (result.n_listed, result.n_evaluated) == (7, 2)
    none = fake.write_store(
        tmp_path / "none", clip, counts={"val": 7}, bad={"val": [*every, 5, 6]}
    )
    with pytest.raises(StoreError, match="none of its 7 videos is usable"):
        closed(none, clip)
