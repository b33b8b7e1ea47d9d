"""Scores kept batch by batch: what is stopped goes on, and nothing of it shows in a figure."""

import numpy as np
import pytest
import torch
from helpers import fake_store as fake
from helpers.training import quiet

from bieff.features.errors import InputError
from bieff.train.distributed import Group
from bieff.train.evaluate.classifier import Frozen
from bieff.train.evaluate.lists import EvalList
from bieff.train.evaluate.scores import About, PartialScores, load_scores, questions_of
from bieff.train.evaluate.scoring import agreed_sizes, evaluate
from bieff.train.runs.run import clip_of

K, D = len(fake.NAMES), 13
ABOUT = About(
    model="frozen", frames=6, template="{}", names=None, names_hash=None, run=None, weights=None
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    clip = fake.load_clip(folder / "clip")
    return fake.write_store(folder / "store", clip, counts={"all": 37}, bad={"all": [3, 36]})


class Counting(Frozen):
    """Notes how many videos it was asked about, and may be interrupted."""

    batch_size = 4

    def __init__(self, stop_after=None, name="one"):
        self.about, self.device = ABOUT, torch.device("cpu")
        self._classes = torch.randn(K, D, generator=torch.Generator().manual_seed(2))
        self._name = name
        self.batches, self.stop_after = [], stop_after

    @property
    def asked(self):
        return sum(self.batches)

    def fingerprint(self):
        return self._name

    def logits(self, frames, patches, classes=None):
        if self.stop_after is not None and self.asked >= self.stop_after:
            raise KeyboardInterrupt
        self.batches.append(len(frames))
        logits = frames.mean(dim=1) @ self._classes.T
        return logits if classes is None else logits[:, classes]


def same(a, b):
    return all(
        np.array_equal(x, y)
        for ours, theirs in zip(a.scores, b.scores, strict=True)
        for x, y in zip(ours, theirs, strict=True)
    )


def ask(store, counting, folder, protocol="splits3", seen=None):
    return evaluate(
        store,
        [counting],
        protocol,
        watch=lambda done, total: None if seen is None else seen.append((done, total)),
        keep_in=folder,
    )


@pytest.mark.parametrize("protocol", ["splits3", "half10"])
def test_what_was_interrupted_goes_on(store, tmp_path, protocol):
    whole = Counting()
    straight = ask(store, whole, None, protocol)
    first, second = Counting(stop_after=24), Counting()
    with pytest.raises(KeyboardInterrupt):
        ask(store, first, tmp_path / "kept", protocol)
    assert list((tmp_path / "kept").rglob("*.npz"))
    seen = []
    resumed = ask(store, second, tmp_path / "kept", protocol, seen)
    assert same(resumed, straight)
    assert first.asked + second.asked <= whole.asked + 2 * 4  # one batch of two views twice
    assert second.asked < whole.asked
    assert seen[0][0] > 0
    assert seen[-1] == (whole.asked // 2, whole.asked // 2)
    (file,) = (path for path in (tmp_path / "kept").rglob("*") if path.is_file())
    assert file == tmp_path / "kept" / "scores" / f"{protocol}-fake.h5"


def test_what_is_done_is_read(store, tmp_path):
    first, again, other = Counting(), Counting(), Counting(name="another")
    straight = ask(store, first, tmp_path)
    assert same(ask(store, again, tmp_path), straight)
    assert again.asked == 0
    ask(store, other, tmp_path)
    assert other.asked == first.asked
    file = tmp_path / "scores" / "splits3-fake.h5"
    assert same(load_scores(file), straight)  # two models that say the same
    file.write_bytes(file.read_bytes()[:-100])
    assert same(ask(store, other, tmp_path), straight)
    assert other.asked == 2 * first.asked


def test_scores_of_something_else_are_not_taken(store, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ask(store, Counting(stop_after=24), tmp_path / "kept")
    other = Counting(name="another")
    ask(store, other, tmp_path / "kept")
    whole = Counting()
    ask(store, whole, None)
    assert other.asked == whole.asked
    assert list((tmp_path / "kept").rglob("*.npz"))  # still there for the one they are of


def test_a_damaged_file_is_scored_again(store, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ask(store, Counting(stop_after=24), tmp_path / "kept")
    (file,) = (tmp_path / "kept").rglob("*.npz")
    file.write_bytes(file.read_bytes()[:-40])
    file.with_name("0-0.npz").touch()  # as a power cut may leave it
    again = Counting()
    assert same(ask(store, again, tmp_path / "kept"), ask(store, Counting(), None))


def test_scores_of_other_videos_are_not_taken(store, tmp_path):
    """One recipe, as many usable videos in the same rows: another list, or a replaced file."""
    clip = clip_of(store, device=torch.device("cpu"), named=fake.named(store))
    ways = {"bad": {"all": [3, 36]}, "counts": {"all": 37}}
    other = fake.write_store(tmp_path / "store", clip, noise=2.0, **ways)
    assert other.recipe_hash == store.recipe_hash
    with pytest.raises(KeyboardInterrupt):
        ask(store, Counting(stop_after=24), tmp_path / "kept", "full")
    resumed = ask(other, Counting(), tmp_path / "kept", "full")
    straight = ask(other, Counting(), None, "full")
    assert same(resumed, straight)
    assert not same(ask(store, Counting(), tmp_path / "kept", "full"), straight)
    assert same(ask(other, Counting(), tmp_path / "kept", "full"), straight)


class TwoProcesses(Group):
    """This process of two, and what the other one has."""

    def collect(self, own):
        return [own, [3, 9]]


def test_processes_agree_on_the_batches():
    """The size comes from the memory that is free, of which another may have less."""
    two = [Counting(), Counting()]
    assert agreed_sizes(two, None, Group()) == [4, 4]
    assert agreed_sizes(two, None, TwoProcesses(size=2)) == [3, 4]


@pytest.mark.parametrize("size", [1, 3, 35])
def test_batches_are_of_the_size_that_is_asked_for(store, size):
    counting = Counting()
    evaluate(store, [counting], "full", watch=quiet, batch_size=size)
    assert set(counting.batches) == {size, 35 % size or size}


def test_kept_scores_come_back(tmp_path):
    kept = PartialScores(tmp_path / "a" / "b")
    assert kept.read() == {}
    parts = {(0, 1, 32): np.random.default_rng(1).random((3, 5)), (1, 0, 0): np.ones((2, 2))}
    for key, values in parts.items():
        kept.write({key: values})
    read = PartialScores(tmp_path / "a" / "b").read()
    assert read.keys() == parts.keys()
    assert all(np.array_equal(read[key], parts[key]) for key in parts)
    kept.clear()
    assert not (tmp_path / "a").exists()


def test_every_video_is_asked_once_for_each_question(store):
    counting = Counting()
    table = ask(store, counting, None)
    on_any = np.unique(np.concatenate([one.rows for one in table.lists]))
    usable = np.setdiff1d(on_any, [3, 36])
    assert counting.asked == 2 * len(usable)  # two views
    (question,) = table.questions
    assert question.rows.tolist() == usable.tolist()
    assert table.ids == tuple(f"all-{row:03}" for row in on_any)
    for scores in table.scores[0]:
        np.testing.assert_allclose(scores.sum(axis=1), 1)
        assert scores.dtype == np.float64


def test_lists_of_the_same_classes_are_one_question():
    every, some = np.arange(5), np.array([1, 4])
    lists = [
        EvalList("1", np.array([0, 2, 7]), every),
        EvalList("2", np.array([2, 3, 5]), some),
        EvalList("3", np.array([1, 7, 8]), every),
    ]
    questions = questions_of(lists, np.array([0, 1, 2, 3, 7]))
    assert [question.rows.tolist() for question in questions] == [[0, 1, 2, 7], [2, 3]]
    assert [question.classes.tolist() for question in questions] == [[0, 1, 2, 3, 4], [1, 4]]


class Broken(Counting):
    def logits(self, frames, patches, classes=None):
        return torch.full((len(frames), K), torch.nan)


def test_a_score_that_is_no_number_is_named(store):
    with pytest.raises(InputError, match=r"scores of 35 videos are not numbers, .* 'all-000'"):
        evaluate(store, [Broken()], "full", watch=lambda done, total: None)
