"""`bieff eval`, `zeroshot` and `scores` as a user types them."""

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import fake_store as fake
from helpers.training import quiet

from bieff.cli import main
from bieff.features.errors import InputError
from bieff.train.config import load
from bieff.train.evaluate.results import load_results
from bieff.train.evaluate.scores import load_scores
from bieff.train.fit.loop import train
from bieff.train.runs.run import write_record


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run, the store it was trained on, and two others."""
    folder = tmp_path_factory.mktemp("commands")
    clip = fake.load_clip(folder / "clip")
    store = fake.write_store(folder / "features" / "seen", clip, bad={"val": [5]}, clips=2)
    fake.write_store(
        folder / "features" / "unseen", clip, counts={"all": 31}, bad={"all": [0, 9]}, seed=1
    )
    fake.write_store(
        folder / "features" / "k600",
        clip,
        counts={"val": 31},
        class_subsets={"1": (0, 1, 4), "2": (1, 2, 3)},
    )
    fake.write_store(folder / "features" / "plain", clip, counts={"val": 9})
    settings = ["epochs=6", "warmup_epochs=1", "lr=0.003", "batch_size=11", "eval_every=2"]
    train(store, clip, load(overrides=settings), folder / "runs" / "a", watch=quiet)
    return folder


@pytest.fixture
def bieff(made, tmp_path, monkeypatch):
    """Run a command in a copy of that folder."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    (tmp_path / "features").symlink_to(made / "features")
    monkeypatch.chdir(tmp_path)

    def invoke(command, *arguments):
        if command in ("eval", "zeroshot"):
            arguments += tuple(fake.named(made / "features" / "seen").words)
        arguments = (command, *arguments)
        return CliRunner().invoke(main, [str(a) for a in arguments])

    return invoke


def results():
    return load_results(Path("runs/a/results.json"))


def test_the_newest_run_on_its_own_set(bieff):
    done = bieff("eval")
    assert done.exit_code == 0, done.output
    ours, frozen = results()
    assert (ours.protocol, ours.run, ours.weights, ours.n_listed) == ("closed", "a", "last", 17)
    assert (frozen.run, frozen.weights, frozen.template) == (
        None,
        None,
        "This is a video about {}",
    )
    assert re.search(
        r"fake +closed +bieff +pre-prompt +[\d.]+ +[\d.]+ +[\d.]+ +16 of 17", done.stdout
    )
    (line,) = [text for text in done.stdout.splitlines() if text.startswith("fake, closed (")]
    assert f"{ours.top1:.2f} top-1 ({ours.top1_all:.2f} of all listed)" in line
    assert line.endswith(f"store {ours.store[:12]}")


@pytest.mark.parametrize(
    ("name", "protocol", "lists"),
    [("unseen", "splits3", 3), ("k600", "k600", 2), ("plain", "closed", 1)],
)
def test_a_set_is_asked_what_it_usually_is(bieff, name, protocol, lists):
    done = bieff("zeroshot", name)
    assert done.exit_code == 0, done.output
    assert {(r.protocol, len(r.lists)) for r in results()} == {(protocol, lists)}


def test_every_call_adds_to_the_runs_results(bieff):
    for protocol in ("full", "half10", "full"):
        assert bieff("zeroshot", "unseen", "--protocol", protocol).exit_code == 0
    assert bieff("eval", "--model-only", "--best").exit_code == 0
    assert [(r.protocol, r.model, r.weights) for r in results()] == [
        ("full", "bieff", "last"),
        ("full", "frozen", None),
        ("half10", "bieff", "last"),
        ("half10", "frozen", None),
        ("closed", "bieff", "best"),
    ]


def test_the_best_checkpoint_is_another_one(bieff):
    shutil.copy("runs/a/last.safetensors", "runs/a/best.safetensors")
    for options in ((), ("--best",)):
        assert bieff("eval", "--model-only", *options).exit_code == 0
    last, best = results()
    assert (last.weights, best.weights) == ("last", "best")
    assert (last.top1, last.confusions) == (best.top1, best.confusions)
    Path("runs/a/best.safetensors").unlink()
    missing = bieff("eval", "--best")
    assert missing.exit_code == 1
    assert "cannot read the weights runs/a/best.safetensors" in missing.output


def test_descriptions_are_recorded_by_hash(bieff):
    texts = {name: [f"{name} outdoors", f"people {name}"] for name in fake.NAMES}
    Path("names.json").write_text(json.dumps(texts))
    done = bieff("zeroshot", "unseen", "--names", "names.json", "--template", "16")
    assert done.exit_code == 0, done.output
    bieff("zeroshot", "unseen", "--template", "16")
    named, beside, plain, bare = results()
    assert (named.names, beside.names, plain.names) == ("names.json", "names.json", None)
    assert named.names_hash == beside.names_hash != plain.names_hash == bare.names_hash
    assert "16 templates, names.json" in done.stdout
    assert f"class names: names.json ({named.names_hash})" in done.stdout
    assert (named.top5, beside.top5) == (100, 100)  # five classes, not ten texts
    texts.pop("archery")
    Path("names.json").write_text(json.dumps(texts))
    wrong = bieff("zeroshot", "unseen", "--names", "names.json")
    assert wrong.exit_code == 1
    assert "none of class 1, 'archery'" in wrong.output


@pytest.mark.parametrize("weight", [0, 0.25, 1])
def test_the_mix_is_the_weighted_mean_of_both_scores(bieff, weight):
    options = ("--mix", weight, "--save-scores", "out/scores.h5", "--protocol", "half10")
    done = bieff("zeroshot", "unseen", *options)
    assert done.exit_code == 0, done.output
    ours, frozen, mix = results()
    assert mix.mix == weight
    assert f"mix {float(weight)}" in done.stdout
    scores = load_scores(Path("out/scores.h5"))
    for a, b, mixed in zip(*scores.scores, strict=True):
        np.testing.assert_array_equal(mixed, weight * a + (1 - weight) * b)
    if weight in (0, 1):
        alone = ours if weight else frozen
        assert (mix.lists, mix.confusions) == (alone.lists, alone.confusions)


def test_scores_say_the_same_without_model_and_store(bieff):
    done = bieff(
        *("zeroshot", "unseen", "--save-scores", "s.h5", "--mix", 0.5),
        *("--per-class", "--confusions", 2),
    )
    shutil.rmtree("runs")
    Path("features").unlink()
    again = bieff("scores", "s.h5", "--per-class", "--confusions", 2)
    assert again.exit_code == 0, again.output
    assert again.stdout == done.stdout
    assert "most often taken for" in again.stdout
    assert again.stdout.count("most frequent mistakes") == 3
    other = bieff("scores", "s.h5", "--mix", 0.9)
    assert "mix 0.9" in other.stdout
    assert "mix 0.5" not in other.stdout


def test_the_scores_of_a_video(bieff):
    bieff("zeroshot", "unseen", "--save-scores", "s.h5", "--protocol", "full")
    shown = bieff("scores", "s.h5", "--video", "all-004")
    assert shown.exit_code == 0, shown.output
    with h5py.File("s.h5") as file:
        at = file["videos/id"].asstr()[:].tolist().index("all-004")
        row, label = file["videos/row"][at], file["videos/label"][at]
        part = file["examinees/0/0"]
        scores = part["scores"][np.flatnonzero(part["rows"][:] == row)[0]]
        assert json.loads(file["examinees/0"].attrs["record"])["run"] == "a"
    best = fake.NAMES[scores.argmax()] + (" (true)" if scores.argmax() == label else "")
    (first,) = re.findall(r"bieff +5 classes +1 +(.*?) +(\d\.\d{4})", shown.stdout)
    assert first == (best, f"{scores.max():.4f}")
    for video, message in (
        ("all-4", "no scores of a video 'all-4'; did you mean 'all-0"),
        ("all-009", "video 'all-009' has no embeddings"),
    ):
        wrong = bieff("scores", "s.h5", "--video", video)
        assert wrong.exit_code == 1
        assert message in wrong.output


def test_scores_that_are_none(bieff, tmp_path):
    for name, content, message in (
        (
            "none.h5",
            None,
            "no scores at none.h5; write some with `bieff eval --save-scores FILE`",
        ),
        ("text.h5", b"x", "cannot read scores 'text.h5'"),
    ):
        if content is not None:
            Path(name).write_bytes(content)
        wrong = bieff("scores", name)
        assert wrong.exit_code == 1
        assert message in wrong.output
    with h5py.File("other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match=r"expected scores of version 1 .*, got another HDF5"):
        load_scores(Path("other.h5"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mix", "1.5"), "--mix: expected a weight from 0 to 1, got 1.5"),
        (("--mix", "0.5", "--model-only"), "--model-only leaves frozen CLIP out"),
        (("--template", "one", "--model-only"), "--model-only leaves frozen CLIP out"),
        (("--template", "29"), "template: expected one of bare, one, person, 16, 28, 48"),
        (("--names", "none.txt"), "cannot read none.txt: no such file"),
        (("--protocol", "closed"), "closed is not for it, take --protocol splits3 or full or"),
        (
            ("--protocol", "k600"),
            "k600 is not for it, take --protocol splits3 or full or half10",
        ),
        (("--run", "none"), "no run at none; make one with `bieff train`"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(bieff, options, message):
    wrong = bieff("zeroshot", "unseen", *options)
    assert wrong.exit_code == 1
    assert wrong.output.startswith("Error: ")
    assert message in wrong.output
    assert len(wrong.output.strip().splitlines()) == 1
    assert not Path("runs/a/results.json").exists()


def test_a_run_that_is_not_finished_has_no_figures(bieff):
    """Its weights are still changing, under the same name in results.json."""
    record = json.loads(Path("runs/a/run.json").read_text())
    write_record(Path("runs/a"), {**record, "finished": None})
    for command in (("eval", "runs/a"), ("zeroshot", "unseen", "--run", "runs/a", "--best")):
        wrong = bieff(*command)
        assert wrong.exit_code == 1
        assert "run runs/a is not finished; go on with `bieff train --resume" in wrong.output
    assert not Path("runs/a/results.json").exists()


@pytest.mark.parametrize("content", ["[1]", "{", '[{"protocol": "closed"}]'])
def test_what_cannot_be_written_is_said_before_the_work(bieff, monkeypatch, content):
    def never(*arguments, **options):
        raise AssertionError("the work was done first")

    monkeypatch.setattr("bieff.apps.evaluate.evaluate", never)
    wrong = bieff("eval", "--save-scores", "runs/a/run.json/s.h5")
    assert (wrong.exit_code, type(wrong.exception)) == (1, SystemExit)
    assert "cannot write scores 'runs/a/run.json/s.h5'" in wrong.output
    Path("runs/a/results.json").write_text(content)
    damaged = bieff("eval")
    assert (damaged.exit_code, type(damaged.exception)) == (1, SystemExit)
    assert "cannot read the results at runs/a/results.json" in damaged.output


def test_damaged_scores_are_one_sentence(bieff):
    assert bieff("eval", "--save-scores", "s.h5", "--model-only").exit_code == 0
    with h5py.File("s.h5") as file:
        where = file["examinees/0/0/scores"].id.get_chunk_info(0).byte_offset
    content = bytearray(Path("s.h5").read_bytes())
    content[where + 5] ^= 255
    Path("flipped.h5").write_bytes(content)
    with h5py.File("s.h5", "a") as file:
        del file["videos/label"]
    for name in ("flipped.h5", "s.h5"):
        wrong = bieff("scores", name)
        assert (wrong.exit_code, type(wrong.exception)) == (1, SystemExit)
        assert f"scores '{name}' are damaged" in wrong.output


def test_a_store_that_is_not_there_says_what_makes_it(bieff, made):
    model = f"--model local-dir:{made}/clip"
    wrong = bieff("zeroshot", "hmdb51")
    assert wrong.exit_code == 1
    assert wrong.output == (
        "Error: no feature store at features/hmdb51; make it with `bieff extract --dataset "
        f"hmdb51 --frames 6 --videos DIR {model}`\n"
    )
    Path("data/hmdb51").mkdir(parents=True)
    elsewhere = bieff("zeroshot", "hmdb51", "--features", "x/h")
    assert f"--dataset hmdb51 --frames 6 --out x/h {model}`" in elsewhere.output
    record = json.loads(Path("runs/a/run.json").read_text())
    record["store"] = "features/k400"
    record["data_set"] = "k400"
    record["clip"]["name"] = {"model": "ViT-B-16-quickgelu", "pretrained": "openai"}
    write_record(Path("runs/a"), record)
    own = bieff("eval")
    assert "make it with `bieff extract --dataset k400 --frames 6 --videos DIR`" in own.output
    record["clip"]["name"] = {"model": "hf-hub:x;id", "pretrained": None}
    write_record(Path("runs/a"), record)
    quoted = bieff("zeroshot", "hmdb51", "--features", "a b")
    assert "--out 'a b' --model 'hf-hub:x;id'`" in quoted.output
    record["clip"]["name"] = {"model": "tinyclip", "pretrained": None}
    write_record(Path("runs/a"), record)
    shapes = bieff("zeroshot", "shapes-unseen")
    assert "make it with `bieff extract --dataset shapes-unseen --frames 6`" in shapes.output
