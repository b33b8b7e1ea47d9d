"""`bieff extract` and `bieff store`, as a user types them."""

import json
import re
import shutil

import pytest
from click.testing import CliRunner
from helpers import extracting
from helpers import fake_store as fake

from bieff.cli import NOT_WHOLE, main

SET = extracting.SET
SMALL = ("--frames", "2", "--clips", "1", "--device", "cpu", "--set", "decoders=1")


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def store(clips, tmp_path_factory):
    """A finished store."""
    out = tmp_path_factory.mktemp("features") / "store"
    result = run("extract", "--dataset", SET, "--videos", clips, "--out", out, *SMALL)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(rf"{out}: 24 videos \(24 ok\) in \d+ s\n", result.stdout)
    return out


@pytest.fixture
def few(clips, tmp_path):
    """Three videos of two classes: one is fine, one is damaged, one is not there."""
    videos = tmp_path / "videos"
    fine, damaged = sorted(clips.glob("*/*.mp4"))[:2]
    for name in ("a/fine.mp4", "b/damaged.mp4"):
        (videos / name).parent.mkdir(parents=True)
    shutil.copy(fine, videos / "a" / "fine.mp4")
    (videos / "b" / "damaged.mp4").write_bytes(damaged.read_bytes()[:50])
    (tmp_path / "list.txt").write_text("a/fine.mp4 0\nb/damaged.mp4 1\nb/gone.mp4 1\n")
    (tmp_path / "labels.txt").write_text("a\nb\n")
    return (
        *("--dataset", "list", "--videos", videos, "--list", f"all={tmp_path / 'list.txt'}"),
        *("--labels", tmp_path / "labels.txt", "--first-label", "0", "--model", "tinyclip"),
        *("--out", tmp_path / "store"),
    )


def test_bad_videos_are_listed_and_the_exit_code_says_so(few, tmp_path):
    result = run("extract", *few, *SMALL)
    assert result.exit_code == NOT_WHOLE == 3
    lines = result.stdout.splitlines()
    assert "3 videos (1 ok, 1 missing, 1 corrupt)" in lines[0]
    assert lines[1].startswith("  corrupt b/damaged.mp4: ")
    assert lines[2].startswith("  missing b/gone.mp4: ")

    assert run("extract", *few, *SMALL, "--max-bad", "70%").exit_code == 0
    result = run("extract", *few, *SMALL, "--max-bad", "0.5")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path / 'store'}: 2 of 3 videos are unusable")
    assert len(result.stderr.splitlines()) == 1

    result = run("extract", *few, "--status")
    assert result.exit_code == 0
    assert "all: 3 videos x 1 view: 1 ok, 1 missing, 1 corrupt; 1 of 1 shards" in result.stdout
    assert "  missing b/gone.mp4: " in result.stdout

    (tmp_path / "videos" / "b" / "gone.mp4").write_bytes(
        (tmp_path / "videos" / "a" / "fine.mp4").read_bytes()
    )
    result = run("extract", *few, *SMALL, "--retry-failed")
    assert "3 videos (2 ok, 1 corrupt)" in result.stdout


def test_check_says_what_is_there_before_any_decoding(few, clips, tmp_path):
    result = run("extract", *few, "--check")
    assert result.exit_code == 1
    assert re.search(r"all +3 listed +2 found +1 missing", result.stdout)
    assert "    b/gone.mp4" in result.stdout
    assert not (tmp_path / "store").exists()
    assert run("extract", "--dataset", SET, "--videos", clips, "--check").exit_code == 0


def test_status_looks_at_the_store_alone(store, tmp_path):
    result = run("extract", "--dataset", SET, "--out", store, "--status")
    assert result.exit_code == 0
    assert "all: 24 videos x 1 view: 24 ok; 1 of 1 shards" in result.stdout
    result = run("extract", "--dataset", SET, "--out", tmp_path / "none", "--status")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: no feature store at {tmp_path / 'none'}; make one with `bieff extract`\n"
    )


def test_dry_run_writes_nothing_and_estimates(clips, tmp_path):
    out = tmp_path / "store"
    options = ("--dataset", SET, "--videos", clips, "--out", out, *SMALL)
    result = run("extract", *options, "--dry-run")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"{out}: nothing written"
    assert re.match(
        r"  all: 24 videos x 1 view, 1 shard, [\d.]+ kB, from [\d.]+ kB of", lines[1]
    )
    assert re.match(
        r"  about \d+ minutes? on cpu of this machine, from 16 videos tried", lines[2]
    )
    assert not out.exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ask", ["--check", "--dry-run"])
def test_asking_makes_no_clips(tmp_path, monkeypatch, ask):
    monkeypatch.chdir(tmp_path)
    result = run("extract", "--dataset", "shapes-unseen", *SMALL, ask)
    assert result.exit_code == 0
    assert "360 of 360 clips are not made yet; extract makes them" in result.stdout
    if ask == "--check":
        assert re.search(r"all +360 listed +0 found +360 missing", result.stdout)
    else:
        assert "no estimate of hours: no video is there to try" in result.stdout
    assert not list(tmp_path.iterdir())


def test_dry_run_says_what_the_text_tower_cannot_read(clips, tmp_path):
    name = fake.write_clip(tmp_path / "clip", context_length=16)
    options = ("--dataset", SET, "--videos", clips, "--out", tmp_path / "store")
    result = run("extract", *options, *name.words, "--frames", 2, "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith(
        "features can be extracted, but not trained on as the paper does: a prompt of 16 "
        "context tokens, 1 of the video and a name of "
    )
    assert result.stdout.endswith("shorter names; the longest is 'heart moving left'\n")
    assert not (tmp_path / "store").exists()


def test_dry_run_knows_what_is_done(store, clips):
    options = ("--dataset", SET, "--videos", clips, "--out", store, *SMALL)
    assert "; 24 videos are done" in run("extract", *options, "--dry-run").stdout
    result = run("extract", *options, "--dry-run", "--frames", "5")
    assert result.exit_code == 1
    assert "frames: store has 2, asked for 5" in result.stderr


def test_the_first_videos_go_to_a_folder_of_their_own(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("extract", "--dataset", SET, "--videos", clips, *SMALL, "--limit", 3)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"features/{SET}-first-3: 3 videos (3 ok)")
    result = run("extract", "--dataset", SET, "--limit", 3, "--status")
    assert "all: 3 videos" in result.stdout


def test_labels_that_contradict_the_folders_need_a_word(few, tmp_path):
    (tmp_path / "list.txt").write_text("a/fine.mp4 1\n")
    result = run("extract", *few, *SMALL)
    assert result.exit_code == 1
    assert "look with --check, or say --trust-labels if the labels are right" in result.stderr
    result = run("extract", *few, *SMALL, "--trust-labels")
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "batchsize=3"), "unknown setting 'batchsize'; did you mean 'batch_size'?"),
        (
            ("--set", "deadline=-1"),
            "deadline must be positive and at most 86400 seconds, got -1.0",
        ),
        (("--max-bad", "lots"), "--max-bad: expected a share such as 1% or 0.01, got 'lots'"),
        (("--max-bad", "200%"), "--max-bad: expected a share such as 1% or 0.01, got '200%'"),
        (
            ("--scheduler", "distributed"),
            "--scheduler: expected sync, local or tcp://HOST:PORT, got 'distributed'",
        ),
        (
            ("--dataset", "k400"),
            "--videos and --out name the folder of one data set, got several; extract them one "
            "by one, or keep videos in data/ and stores in features/",
        ),
        (("--list", "x"), "--list: expected train=FILE, val=FILE or all=FILE, got 'x'"),
    ],
)
def test_options_that_cannot_be(clips, options, message):
    result = run("extract", "--dataset", SET, "--videos", clips, *options)
    assert (result.exit_code, result.stderr) == (1, f"Error: {message}\n")


def test_several_data_sets_are_all_planned_before_any_is_extracted(tmp_path, monkeypatch):
    """A data set that is not there is said at once, not after hours."""
    monkeypatch.chdir(tmp_path)
    extracting.write_clips(tmp_path / "data" / SET)
    result = run("extract", "--dataset", SET, "--dataset", "ucf101", *SMALL)
    assert result.exit_code == 1
    assert "data/ucf101" in result.stderr
    assert not list((tmp_path / "features" / SET / "ledger").iterdir())


def test_a_store_is_described_verified_and_repaired(store, clips, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    result = run("store", "info", copy, "--statistics")
    assert result.exit_code == 0
    assert f"{copy}: schema version 1, recipe " in result.stdout
    assert "all: 24 usable videos; norm " in result.stdout

    result = run("store", "verify", copy)
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    assert ": 1 shard read, " in result.stdout

    shard = copy / "all" / "embeddings" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    result = run("store", "verify", copy)
    assert result.exit_code == 1
    assert f"all shard 0: {shard}: crc32c differs, rows " in result.stdout
    assert "give --drop, then run the same `bieff extract` again" in result.stdout
    result = run("store", "verify", copy, "--drop")
    assert result.exit_code == 1
    assert "1 marker dropped; run the same `bieff extract` again to redo" in result.stdout
    options = ("--dataset", SET, "--videos", clips, "--out", copy)
    assert run("extract", *options, *SMALL).exit_code == 0
    assert run("store", "verify", copy).exit_code == 0
    assert shard.read_bytes() == (store / shard.relative_to(copy)).read_bytes()


def test_a_store_travels_as_one_file(store, tmp_path):
    result = run("store", "export", store, "--to", tmp_path / "one.h5")
    assert result.exit_code == 0
    result = run("store", "import", tmp_path / "one.h5", "--to", tmp_path / "again")
    assert result.exit_code == 0
    for file in store.rglob("*"):
        if file.is_file() and not file.name.startswith("."):
            assert (tmp_path / "again" / file.relative_to(store)).read_bytes() == (
                file.read_bytes()
            )
    result = run("store", "import", tmp_path / "none.h5")
    assert (result.exit_code, result.stderr) == (
        1,
        f"Error: no file {tmp_path / 'none.h5'}; give one that `bieff store export` wrote\n",
    )
    attributes = json.loads((tmp_path / "again" / "zarr.json").read_text())["attributes"]
    assert attributes["recipe"]["frames"] == 2


def test_help_says_who_does_the_work_by_default():
    text = " ".join(run("extract", "--help").stdout.split())
    assert "[default: local where there are several GPUs, otherwise sync]" in text
    assert "Exit code 0" in text
