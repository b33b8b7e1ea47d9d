"""The commands as a user types them: what they print, and how they end."""

import json
import os
import re
import shutil
import signal
import subprocess

import pytest
from click.testing import CliRunner
from helpers.processes import BIEFF

from bieff.cli import main


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        return CliRunner().invoke(main, [str(a) for a in arguments])

    return invoke


@pytest.fixture
def run_in_world(world, tmp_path, monkeypatch):
    """Run a command in a copy of the small world."""
    folder = tmp_path / "copy"
    shutil.copytree(world, folder, ignore=shutil.ignore_patterns("*.mp4"))
    monkeypatch.chdir(folder)

    def invoke(*arguments):
        return CliRunner().invoke(main, [str(a) for a in arguments])

    return invoke


def test_every_command_has_help_with_an_example(run):
    for command in main.commands:
        result = run(command, "--help")
        assert result.exit_code == 0
        if not hasattr(main.commands[command], "commands"):
            assert f"Example: bieff {command}" in " ".join(result.output.split())


def test_datasets_are_listed(run):
    result = run("datasets")
    assert result.exit_code == 0
    for name in ("k400", "ucf101", "hmdb51", "shapes", "shapes-unseen", "folder"):
        assert name in result.output


def test_models_are_listed(run):
    result = run("models", "--filter", "pe-core-b")
    assert result.exit_code == 0
    row = next(line.split() for line in result.output.splitlines() if "PE-Core-B-16" in line)
    timm = "vit_pe_core_base_patch16_224"
    assert row == ["PE-Core-B-16", "1024", "224", timm, "yes", "causal", "32", "meta"]
    for model, kind in (("coca_ViT-B-32", "CoCa"), ("ViT-B-16-SigLIP2-256", "bidirectional")):
        assert kind in run("models", "--filter", model).output
    assert "convnext_base_w " in run("models", "--filter", "laion2b_s13b_b82k_augreg").output
    assert " more" in run("models").output
    chosen = run("models", "--filter", "ViT-B-16").output  # with all of its tags, folded
    assert "datacomp_xl_s13b_b90k" in chosen
    assert " more" not in chosen
    assert "causal (hf)" in run("models", "--filter", "worldwide").output
    wrong = run("models", "--filter", "nothing like it")
    assert wrong.exit_code == 1
    assert "Error: --filter nothing like it: no model's name, towers or weights" in wrong.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("extract", "--dataset", "folder", "--videos", "nowhere", "--model", "tinyclip"),
            "nowhere",
        ),
        (("extract", "--dataset", "k4000"), "unknown data set 'k4000'"),
        (
            ("extract", "--dataset", "shapes-unseen", "--frames", "0"),
            "frames must be at least 1, got 0",
        ),
        (
            ("extract", "--dataset", "shapes", "--model", "tinyclip", "--pretrained", "openai"),
            "model 'tinyclip' brings its own weights",
        ),
        (("train", "--features", "nowhere"), "no feature store at nowhere"),
        (("eval",), "no finished run in runs; make one with `bieff train`"),
        (("eval", "nowhere"), "no run at nowhere; make one with `bieff train`"),
        (("zeroshot", "hmdb51", "--run", "nowhere"), "no run at nowhere"),
    ],
)
def test_wrong_input_is_one_sentence(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.output.startswith("Error: ")
    assert message in result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_an_empty_folder(run, tmp_path):
    (tmp_path / "videos").mkdir()
    result = run("extract", "--dataset", "folder", "--videos", "videos", "--model", "tinyclip")
    assert result.exit_code == 1
    assert "videos" in result.output
    assert not (tmp_path / "features").exists()


def test_a_text_file_called_mp4(run, tmp_path, world):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "notes.mp4").write_text("not a video\n" * 100)
    good = next((world / "data" / "shapes-unseen").rglob("*.mp4"))
    shutil.copy(good, tmp_path / "videos" / "good.mp4")
    command = ("extract", "--dataset", "folder", "--videos", "videos", "--model", "tinyclip")
    result = run(*command, "--frames", "4")
    assert result.exit_code == 3, result.output
    assert "features/folder: 2 videos (1 ok, 1 corrupt)" in result.stdout
    assert re.search(r"corrupt notes\.mp4: .*Invalid data", result.stdout)
    again = run(*command, "--frames", "4")
    assert again.exit_code == 3
    assert "1 ok, 1 corrupt" in again.stdout


def test_the_store_of_another_model_is_refused(run_in_world, world):
    result = run_in_world(
        "extract",
        *("--dataset", "shapes-unseen", "--videos", world / "data" / "shapes-unseen"),
        *("--model", "ViT-S-32-alt", "--pretrained", "random", "--frames", "8"),
    )
    assert result.exit_code == 1
    assert 'clip.model: store has "tinyclip", asked for "ViT-S-32-alt"' in result.output


def test_other_frames_are_refused_with_a_diff(run_in_world, world):
    result = run_in_world(
        "extract",
        *("--dataset", "shapes-unseen", "--videos", world / "data" / "shapes-unseen"),
        *("--frames", "4"),
    )
    assert result.exit_code == 1
    assert "frames: store has 8, asked for 4" in result.output


def test_an_unknown_setting_is_named(run_in_world):
    result = run_in_world("train", "--features", "features/shapes", "--set", "batchsize=8")
    assert result.exit_code == 1
    assert "unknown setting 'batchsize'; did you mean 'batch_size'?" in result.output


def test_frames_that_do_not_divide(run_in_world):
    result = run_in_world("train", "--features", "features/shapes", "--frames", "3")
    assert result.exit_code == 1
    assert "expected a divisor of the store's 8 (1, 2, 4, 8), got 3" in result.output


def test_a_dry_run_counts_parameters_and_writes_nothing(run_in_world, tmp_path):
    before = sorted(p.name for p in (tmp_path / "copy" / "runs").iterdir())
    result = run_in_world("train", "--features", "features/shapes", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "62 videos, 31 classes, 8 frames, 50 steps" in result.output
    assert "tunable parameters: 1.00 M (temporal 0.60 M, pre_prompt 0.21 M" in result.output
    assert sorted(p.name for p in (tmp_path / "copy" / "runs").iterdir()) == before


@pytest.mark.slow
def test_train_eval_zeroshot(run_in_world, tmp_path):
    trained = run_in_world(
        "train",
        *("--features", "features/shapes", "--set", "epochs=1", "--set", "warmup_epochs=0"),
    )
    assert trained.exit_code == 0, trained.output
    assert "run: runs/shapes-2" in trained.output  # runs/shapes is taken

    evaluated = run_in_world("eval")
    assert evaluated.exit_code == 0, evaluated.output
    assert "closed" in evaluated.stdout
    zero_shot = run_in_world("zeroshot", "shapes-unseen", "--template", "a {}")
    assert zero_shot.exit_code == 0, zero_shot.output
    run = tmp_path / "copy" / "runs" / "shapes-2"
    records = json.loads((run / "results.json").read_text())
    assert [(r["protocol"], r["dataset"], r["run"], r["template"]) for r in records] == [
        ("closed", "shapes", "shapes-2", "pre-prompt"),
        ("closed", "shapes", None, "This is a video about {}"),
        ("splits3", "shapes-unseen", "shapes-2", "pre-prompt"),
        ("splits3", "shapes-unseen", None, "a {}"),
    ]
    assert not (run / "partial").exists()


def test_a_store_that_nobody_has_is_explained(run_in_world):
    result = run_in_world("zeroshot", "hmdb51")
    assert result.exit_code == 1
    assert "no feature store at features/hmdb51" in result.output
    assert "bieff extract" in result.output


@pytest.mark.slow
def test_weights_that_cannot_be_downloaded(tmp_path, world):
    result = subprocess.run(
        [
            *(*BIEFF, "extract", "--dataset", "folder"),
            *("--videos", str(world / "data" / "shapes-unseen"), "--frames", "4"),
        ],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    first, last = result.stderr.splitlines()
    assert first.startswith("loading CLIP ViT-B-16-quickgelu/openai")
    assert last.startswith("Error: cannot load CLIP 'ViT-B-16-quickgelu/openai'")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "features").exists()


@pytest.mark.slow
def test_real_clips(run, real_videos, tmp_path):
    result = run(
        *("extract", "--dataset", "folder", "--videos", real_videos),
        *("--frames", "8", "--model", "tinyclip"),
    )
    assert result.exit_code == 3, result.output
    assert "5 videos (4 ok, 1 salvaged)" in result.stdout
    assert "salvaged corrupted.mp4: 29 of 50 frames decode" in result.stdout
    assert (tmp_path / "features" / "folder" / "zarr.json").is_file()


@pytest.mark.slow
def test_a_full_size_tower_on_one_clip(run, world, tmp_path):
    (tmp_path / "videos").mkdir()
    good = next((world / "data" / "shapes-unseen").rglob("*.mp4"))
    shutil.copy(good, tmp_path / "videos")
    result = run(
        *("extract", "--dataset", "folder", "--videos", "videos", "--frames", "2"),
        *("--model", "ViT-B-16-quickgelu", "--pretrained", "random", "--clips", "1"),
    )
    assert result.exit_code == 0, result.output
    assert "features/folder: 1 video (1 ok)" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "then"),
    [
        (("zeroshot", "shapes-unseen", "--run", "runs/shapes", "--names"), "go on"),
        (("train", "--features", "features/shapes", "--config"), "begin anew"),
    ],
)
def test_ctrl_c_says_what_the_same_command_would_do(world, tmp_path, arguments, then):
    """Interrupted while it waits for a file that nobody writes."""
    os.mkfifo(tmp_path / "names.json")
    for name in ("features", "runs"):
        (tmp_path / name).symlink_to(world / name)
    with (
        subprocess.Popen(
            [*BIEFF, *arguments, "names.json"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        (tmp_path / "names.json").open("w"),
    ):  # opens when the command opens it too
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said == f"Error: interrupted; run the same command again to {then}\n"
