"""Files of a run that are torn, of another version, or do not fit on the disk."""

import json
import shutil

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import fake_store as fake
from helpers import guarded
from helpers.training import quiet

from bieff.cli import main
from bieff.train.config import load
from bieff.train.fit.loop import train

SHORT = ["epochs=2", "warmup_epochs=1", "batch_size=11", "eval_every=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store, a run that has been evaluated, and its scores."""
    folder = tmp_path_factory.mktemp("damage")
    clip = fake.load_clip(folder / "clip")
    store = fake.write_store(folder / "store", clip)
    train(store, clip, load(overrides=SHORT), folder / "run", watch=quiet)
    words = ["eval", str(folder / "run"), "--save-scores", str(folder / "scores.h5")]
    done = CliRunner().invoke(main, [*words, *clip.name.words])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    for name in ("run", "scores.h5"):
        copy = shutil.copytree if (made / name).is_dir() else shutil.copyfile
        copy(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*words):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.output.count("\n") == 1, result.output
    return result.output


def torn(whole):
    """What a torn file may hold, and files of something else."""
    yield from (b"", whole[: len(whole) // 2], whole[:-3], b"\xff\xfe\0", b"[]", b"null", b"{}")
    yield b"[" * 100_000


def test_a_record_is_checked(world, made):
    file = world / "run" / "run.json"
    whole = file.read_bytes()
    named = fake.named(made / "store").words
    commands = (
        ("eval", "run", *named),
        ("report", "run"),
        ("train", "--resume", "--out", "run"),
    )
    for content in torn(whole):
        file.write_bytes(content)
        for command in commands:
            assert "cannot read run/run.json: " in refused(*command)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"wizardry": 3}}, "unknown setting 'wizardry'"),
        ({"config": {"lr": None}}, "lr must be a number, got None"),
        ({"config": {"temporal_layers": 300000}}, "temporal_layers must be at most 100"),
        ({"clip": {"name": 3}}, "does not say which CLIP it was made with"),
        ({"clip": None}, "it has no 'clip' of type dict"),
        ({"frames": "8"}, "it has no 'frames' of type int"),
        ({"store": ["x"]}, "it has no 'store' of type str"),
    ],
)
def test_a_record_of_another_version_is_named(world, change, message):
    file = world / "run" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    said = refused("eval", "run")
    assert "cannot read run/run.json: " in said
    assert message in said


def test_a_report_is_made_whatever_the_metrics_hold(world):
    file = world / "run" / "metrics.jsonl"
    whole = file.read_bytes()
    for content in (*torn(whole), b"7\n", whole.replace(b"0.", b"NaN", 1)):
        file.write_bytes(content)
        result = CliRunner().invoke(main, ["report", "run"])
        assert result.exit_code == 0, result.output


def test_results_are_checked(world, made):
    file = world / "run" / "results.json"
    whole = file.read_bytes()
    named = fake.named(made / "store").words
    for content in (*list(torn(whole))[:4], b"null", b'[{"top1": 3}]', b"[" * 100_000):
        file.write_bytes(content)
        assert "cannot read the results at run/results.json" in refused("eval", "run", *named)
        assert file.read_bytes() == content


def test_weights_are_checked(world, made):
    file = world / "run" / "last.safetensors"
    shutil.rmtree(world / "run" / "scores")
    named = fake.named(made / "store").words
    turned = bytearray(file.read_bytes())
    turned[-3] ^= 1  # of a weight, which safetensors has no checksum for
    for content in (*torn(file.read_bytes()), bytes(turned)):
        file.write_bytes(content)
        said = refused("eval", "run", "--batch-size", "3", *named)
        assert "cannot read the weights run/last.safetensors" in said
    assert "its bytes are not those that were written" in said


def test_scores_with_holes_are_a_sentence_and_never_a_traceback(world):
    file = world / "scores.h5"
    whole = file.read_bytes()
    assert CliRunner().invoke(main, ["scores", "scores.h5"]).exit_code == 0
    rng = np.random.default_rng(3)
    for start in rng.integers(0, len(whole) - 16, 60).tolist():
        damaged = bytearray(whole)
        damaged[start : start + 16] = rng.bytes(16)
        file.write_bytes(damaged)
        result = CliRunner().invoke(main, ["scores", "scores.h5"])
        if result.exit_code:
            assert isinstance(result.exception, SystemExit), result.exception
            assert "scores" in result.output
            assert result.output.count("\n") == 1


@pytest.mark.parametrize("name", ["videos/label", "videos/row", "lists/0/rows"])
def test_all_of_a_file_of_scores_has_a_checksum(world, name):
    with h5py.File(world / "scores.h5", "r+") as opened:
        opened[name][:] = opened[name][:][::-1]
    assert "are damaged" in refused("scores", "scores.h5")
    with h5py.File(world / "scores.h5", "r+") as opened:
        opened[name][:] = opened[name][:][::-1]
        opened["classes"][0] = "another"
    said = refused("scores", "scores.h5")
    assert "do not have the checksum that they were written with" in said


@pytest.mark.slow
def test_a_disk_that_is_full_is_one_sentence_and_the_old_file_stays(world, made):
    named = fake.named(made / "store").words
    before = (world / "run" / "results.json").read_bytes()
    trained, evaluated = guarded.run_all(
        ("train", "--features", made / "store", "--out", "new", "--set", "epochs=1",
         "--set", "warmup_epochs=0", *named),
        ("eval", "run", "--batch-size", "3", *named),
        MOST_FILE_BYTES="900",
    )  # fmt: skip
    for done in (trained, evaluated):
        assert done["code"] == 1
        (error,) = (line for line in done["said"].splitlines() if line.startswith("Error"))
        assert "make room" in error
    assert (world / "run" / "results.json").read_bytes() == before
    assert not (world / "new" / "run.json").exists()


@pytest.mark.parametrize("link", [h5py.SoftLink("/other"), h5py.ExternalLink("a.h5", "/x")])
def test_links_in_scores_are_not_followed(world, link):
    with h5py.File("scores.h5", "r+") as file:
        file.move("videos/label", "other")
        file["videos/label"] = link
    assert "videos/label is a link, which is not followed" in refused("scores", "scores.h5")
