"""Runs that start from another one, and weights blended with their start."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import fake_store as fake
from safetensors.torch import load_file, save_file

from bieff.apps.evaluate import Evaluation, evaluate_on
from bieff.apps.progress import steps_bar, videos_bar
from bieff.apps.report.files import commands, read_results
from bieff.apps.report.page import report
from bieff.apps.train import train_run
from bieff.cli import main
from bieff.features.errors import ConfigError, InputError, StoreMismatchError
from bieff.train.config import load
from bieff.train.evaluate.classifier import Trained
from bieff.train.evaluate.results import load_results
from bieff.train.evaluate.scores import load_scores
from bieff.train.evaluate.tables import paper_lines, result_table
from bieff.train.experiments.ablation import ablate
from bieff.train.experiments.base_to_novel import base2novel
from bieff.train.fit.few_shot import FewShotOptions, draw_shots
from bieff.train.fit.loop import train
from bieff.train.fit.step import prepare
from bieff.train.runs.ancestor import after, resampled
from bieff.train.runs.checkpoint import LAST, RESUME, StoppedError
from bieff.train.runs.metrics import METRICS
from bieff.train.runs.run import RECORD, lineage, load_model, open_run

SHORT = ["epochs=2", "warmup_epochs=1", "batch_size=11", "temporal_layers=1", "eval_every=0"]
HERE = {"device": "cpu"}
BARS = {"steps_bar": steps_bar, "videos_bar": videos_bar, **HERE}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return fake.load_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def seen(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("seen") / "seen"
    return fake.write_store(path, clip, data_set="big", counts={"train": 40, "val": 9})


@pytest.fixture(scope="module")
def splits(clip, tmp_path_factory):
    """Another set, with official splits."""
    path = tmp_path_factory.mktemp("splits") / "splits"
    return fake.write_store(
        path, clip, data_set="small", counts={"all": 71}, num_splits=3, seed=3
    )


@pytest.fixture(scope="module")
def parent(clip, seen, tmp_path_factory):
    """A run on the first set; tests that change it take a copy."""
    out = tmp_path_factory.mktemp("runs") / "parent"
    return train(seen, clip, load(overrides=[*SHORT, "lr=0.01"]), out, watch=quiet)


@pytest.fixture(scope="module")
def child(clip, splits, parent, tmp_path_factory):
    """A run on few videos of the other set that starts from it."""
    out = tmp_path_factory.mktemp("runs") / "child"
    few = FewShotOptions(shots=2, split="1", seed=0, same_as=None)
    train_run(**options(features=splits.path, out=out, few=few, start=parent.path))
    return open_run(out)


def quiet(done, total, loss):
    pass


def options(**changes):
    nothing = {"features": None, "out": None, "frames": None, "preset": None, "config": None}
    nothing |= {"overrides": (), "dry_run": False, **HERE}
    if (features := changes.get("features")) is not None:
        nothing["model"] = fake.named(features).model
    return {**nothing, **changes}


def asking(store, **more):
    return Evaluation(model=fake.named(store).model, **HERE, **more)


def changed(run, folder, **changes):
    """A copy of a run whose record says something else."""
    shutil.copytree(run.path, folder)
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, **changes}))
    return folder


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- starting from another run


def test_positions_for_other_frames_by_hand():
    """Frames stand in the middle of equal parts: of two at 1/4 and 3/4, of four at 1/8, ..."""
    two = torch.tensor([[0.0, 8.0], [4.0, 0.0]])
    four = torch.tensor([[0.0, 8.0], [1.0, 6.0], [3.0, 2.0], [4.0, 0.0]])
    torch.testing.assert_close(resampled(two, 4), four, rtol=0, atol=0)
    torch.testing.assert_close(resampled(four, 2), torch.tensor([[0.5, 7.0], [3.5, 1.0]]))
    torch.testing.assert_close(resampled(two, 1), torch.tensor([[2.0, 4.0]]))
    assert resampled(four, 4) is four


def test_a_run_starts_where_the_other_ended(clip, splits, parent):
    base = parent.base
    assert base.frames == 6
    chain = lineage(parent, clip, base)
    shots = draw_shots(splits, shots=2)
    start = prepare(splits, clip, base, shots=shots, ancestors=chain).model.state_dict()
    last = load_file(parent.path / LAST)
    assert_equal(start, last)
    three = dataclasses.replace(base, frames=3)
    start = prepare(splits, clip, three, shots=shots, ancestors=chain).model.state_dict()
    positions = last.pop("temporal.positions")
    pairs = positions.reshape(3, 2, -1).mean(dim=1)
    torch.testing.assert_close(start.pop("temporal.positions"), pairs)
    assert_equal(start, last)


def test_the_record_names_the_ancestors(splits, seen, parent, child):
    assert child.config == parent.base
    [held] = child.record["ancestors"]
    assert held == {
        "run": "parent",
        "file": str((parent.path / LAST).resolve()),
        "sha256": parent.lineage()[0].sha256,
        "data_set": "big",
        "store": seen.recipe_hash,
        "shots": None,
    }
    first, second = child.lineage()
    assert (first.run, first.data_set, first.shots["shots"]) == ("child", "small", 2)
    assert (second,) == child.ancestors
    assert after(child.lineage()) == "big, then 2 a class of small"
    assert after(()) is None
    assert parent.ancestors == ()


def test_the_command_takes_the_other_runs_settings(splits, parent, tmp_path):
    common = ["train", "--features", splits.path, "--shots", 2, "--device", "cpu"]
    common += [*fake.named(splits).words, "--from", parent.path]

    def bieff(*arguments):
        return CliRunner().invoke(main, [str(a) for a in (*common, *arguments)])

    done = bieff("--out", tmp_path / "a", "--set", "lr=0.002", "--frames", 3)
    assert done.exit_code == 0, done.output
    run = open_run(tmp_path / "a")
    assert run.config == dataclasses.replace(parent.config, lr=0.002, frames=3)
    assert run.id == "a"
    planned = bieff("--dry-run", "--set", "epochs=3")
    assert "10 videos, 5 classes, 6 frames, 3 steps" in planned.output
    assert "\nstarts from parent, after big\n" in planned.output
    for asked, message in (
        (
            ("--set", "num_context=5", "--set", "alpha=1"),
            f"run {parent.path} is another model; leave these settings as they are, or start "
            "from a run that has them:\n"
            "  num_context: the run has 16, asked for 5\n  alpha: the run has 0.1, asked for",
        ),
        (("--preset", "baseline"), "  prompt: the run has 'pre-prompt', asked for 'none'"),
        (("--frames", 4), "expected a divisor of the store's 6 (1, 2, 3, 6), got 4"),
    ):
        wrong = bieff("--out", tmp_path / "b", *asked)
        assert wrong.exit_code == 1
        assert message in wrong.output
        assert not (tmp_path / "b").exists()


def test_runs_that_cannot_be_started_from(clip, splits, parent, tmp_path):
    asked = options(features=splits.path, out=tmp_path / "out")
    few = FewShotOptions(shots=2, split=None, seed=None, same_as=None)
    with pytest.raises(ConfigError, match="--resume goes on with the run's own weights"):
        train_run(**options(resume=True, start=parent.path))
    with pytest.raises(InputError, match=r"no run at .*none; make one"):
        train_run(**asked, start=tmp_path / "none")
    unfinished = changed(parent, tmp_path / "unfinished", finished=None)
    with pytest.raises(InputError, match=r"unfinished is not finished; go on with `bieff"):
        train_run(**asked, start=unfinished)
    held = {**parent.record["clip"], "fingerprint": "0" * 64}
    with pytest.raises(StoreMismatchError, match=r"other was made with CLIP .* fingerprint 00"):
        train_run(**asked, start=changed(parent, tmp_path / "other", clip=held))
    bare = changed(parent, tmp_path / "bare")
    (bare / LAST).unlink()
    with pytest.raises(InputError, match=r"cannot read the weights to start from, .*no such"):
        train_run(**asked, start=bare)
    (bare / LAST).symlink_to("/dev/zero")  # which would never end
    with pytest.raises(InputError, match=r"cannot read the weights to start from, /dev/zero"):
        train_run(**asked, start=bare)
    (bare / LAST).unlink()
    (bare / LAST).write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"cannot start from .*bare/last.safetensors: "):
        train_run(**asked, few=few, start=bare)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "held", [7, [7], [{"run": "a"}], [{"sha256": 3}], [{"shots": 3}], [{"shots": {}}]]
)
def test_damaged_ancestors_are_one_sentence(child, tmp_path, held):
    if isinstance(held, list) and isinstance(held[0], dict) and "run" not in held[0]:
        held = [{**child.record["ancestors"][0], **held[0]}]
    with pytest.raises(InputError, match=r"cannot read .*run.json: the ancestors of run"):
        open_run(changed(child, tmp_path / "run", ancestors=held))


def test_a_killed_run_goes_on_without_the_weights_it_started_from(
    clip, splits, parent, tmp_path
):
    shutil.copytree(parent.path, tmp_path / "parent")
    config = dataclasses.replace(parent.base, epochs=4, eval_every=1, save_seconds=1e-9)
    shots = draw_shots(splits, shots=4)

    def begin(out, watch, resume=None):
        begun = open_run(tmp_path / "parent") if resume is None else None
        chain = lineage(begun, clip, config) if begun else resume.ancestors
        more = {"watch": watch, "shots": shots, "resume": resume, "ancestors": chain}
        return train(splits, clip, config, out, **more)

    def interrupt(done, total, loss):
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    whole = begin(tmp_path / "whole", quiet)
    with pytest.raises(StoppedError):
        begin(tmp_path / "cut", interrupt)
    with pytest.raises(StoreMismatchError, match="began with the weights of another run, or a"):
        train(
            *(splits, clip, config, tmp_path / "cut"),
            **{"watch": quiet, "shots": shots, "resume": open_run(tmp_path / "cut")},
        )
    shutil.copytree(tmp_path / "cut", tmp_path / "early")
    (tmp_path / "early" / RESUME).unlink()
    shutil.move(tmp_path / "parent", tmp_path / "moved")
    said = train_run(
        **options(out=tmp_path / "cut", resume=True, model=fake.named(splits).model)
    )
    assert "trained 4 steps on 20 videos" in said
    assert_equal(load_file(whole.path / LAST), load_file(tmp_path / "cut" / LAST))
    lines = [(tmp_path / name / METRICS).read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1]
    # one that was killed before its first checkpoint needs them
    with pytest.raises(InputError, match=r"weights to start from, .*parent/last.safetensors"):
        begin(tmp_path / "early", quiet, open_run(tmp_path / "early"))
    shutil.move(tmp_path / "moved", tmp_path / "parent")
    begin(tmp_path / "early", quiet, open_run(tmp_path / "early"))
    assert_equal(load_file(whole.path / LAST), load_file(tmp_path / "early" / LAST))


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on(clip, splits, parent, tmp_path):
    named = [*fake.named(splits).words, "--device", "cpu"]
    words = ["train", "--features", splits.path, "--shots", 2, "--from", parent.path, *named]
    words += ["--set", "epochs=150", "--set", "save_seconds=0.02"]
    bieff = [sys.executable, "-P", "-m", "bieff.cli"]
    out = tmp_path / "killed"
    process = subprocess.Popen([*bieff, *map(str, [*words, "--out", out])])
    while not (out / RESUME).exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not open_run(out).record["finished"]
    resume = ["train", "--resume", "--out", out, *named]
    subprocess.run([*bieff, *map(str, resume)], check=True)
    assert open_run(out).record["resumed"][0]["step"] > 0
    config = dataclasses.replace(parent.base, epochs=150)
    more = {"shots": draw_shots(splits, shots=2), "ancestors": lineage(parent, clip, config)}
    whole = train(splits, clip, config, tmp_path / "whole", watch=quiet, **more)
    assert_equal(load_file(whole.path / LAST), load_file(out / LAST))
    assert (out / METRICS).read_text() == (whole.path / METRICS).read_text()


# --- what it had seen


def test_results_say_what_the_run_had_seen(splits, child, tmp_path):
    run = changed(child, tmp_path / "child")
    found = evaluate_on(asking(splits), run=run, features=None, protocol="closed")
    assert [(r.shots, r.after) for r in found] == [(2, "big"), (None, None)]
    assert [row[1] for row in result_table(found)[1]] == ["fewshot 2 after big", "fewshot"]
    assert "[run child, last weights, after big, pre-prompt]" in paper_lines(found)[0]
    assert load_results(run / "results.json") == found
    page = report(run=run, with_videos=False).read_text()
    assert "<td>fewshot 2 after big</td>" in page
    assert "videos of small in 5 classes after big, finished" in page


def test_what_an_ancestor_was_trained_on_is_not_new(clip, seen, parent, child, tmp_path):
    run = changed(child, tmp_path / "child")
    again = fake.write_store(tmp_path / "again", clip, data_set="big", seed=8)
    for store in (seen, again):
        ask = {"name": "big", "run": run, "features": store.path, "protocol": None}
        said = f"{store.path} is not new: run parent, which is started from, was trained on big"
        with pytest.raises(ConfigError, match=said):
            evaluate_on(asking(store), **ask)
    ask = {"shots": 2, "draws": 1, "start": parent.path, "out": tmp_path / "out", **BARS}
    with pytest.raises(ConfigError, match="is not new: run parent, which is started from, was"):
        base2novel(seen.path, **ask, model=fake.named(seen).model)
    assert not (tmp_path / "out").exists()
    unseen = fake.write_store(tmp_path / "new", clip, data_set="new", counts={"all": 9})
    ask = {"name": "new", "run": run, "features": unseen.path, "protocol": "full"}
    [ours] = evaluate_on(asking(unseen, model_only=True), **ask)
    assert (ours.protocol, ours.after) == ("full", "big")


def test_videos_of_an_ancestors_draw_are_never_asked_about(clip, seen, splits, child, tmp_path):
    """The grandchild is a run on the first set; what it is asked is its parent's set."""
    config = dataclasses.replace(child.base, epochs=2)
    chain = lineage(child, clip, config)
    run = train(seen, clip, config, tmp_path / "grandchild", watch=quiet, ancestors=chain)
    assert after(run.ancestors) == "big, then 2 a class of small"
    ask = {"run": run.path, "features": splits.path}
    with pytest.raises(
        ConfigError,
        match=r"or one that it started from, was trained on 10 .* that splits3 asks",
    ):
        evaluate_on(asking(splits), **ask, protocol="splits3")
    closed = evaluate_on(asking(seen), run=run.path, features=None, protocol="closed")
    assert closed[0].after == "big, then 2 a class of small"


# --- experiments


def test_base_to_novel_starts_from_a_run(splits, parent, tmp_path):
    ask = {"shots": 2, "draws": 1, "start": parent.path, "out": tmp_path / "out", **BARS}
    ask |= {"overrides": ["epochs=3"], "model": fake.named(splits).model}
    base2novel(splits.path, **ask, blend=0.5)
    run = open_run(tmp_path / "out" / "draw-0")
    assert (run.config.epochs, run.ancestors) == (3, parent.lineage())
    kept = json.loads((tmp_path / "out" / "base2novel.json").read_text())
    assert (kept["after"], kept["blend"]) == ("big", 0.5)
    ours = kept["results"]["novel"][0][0]
    assert (ours["after"], ours["blend"], ours["shots"]) == ("big", 0.5, 2)
    with pytest.raises(ConfigError, match="prompt: the run has 'pre-prompt', asked for 'none'"):
        base2novel(splits.path, **{**ask, "overrides": SHORT}, preset="baseline")
    settings = [*SHORT, "lr=0.01", "epochs=3", "frames=6"]
    anew = {**ask, "start": None, "preset": "paper", "overrides": settings}
    with pytest.raises(StoreMismatchError, match="began with the weights of another run, or a"):
        base2novel(splits.path, **anew)


@pytest.mark.slow  # a process for each command
def test_rows_of_an_ablation_start_from_a_run(clip, seen, parent, tmp_path):
    closed = fake.write_store(tmp_path / "closed", clip, data_set="closed")
    fake.write_store(tmp_path / "other", clip, counts={"all": 9}, num_splits=3, data_set="o")
    fake.write_store(tmp_path / "old", clip, counts={"all": 9}, num_splits=3, data_set="big")
    watch = type("Watch", (), {n: lambda *_: None for n in ("begin", "update", "end")})()
    ask = {"tables": [7], "seeds": 1, "watch": watch, "start": parent.path, **HERE}
    ask |= {"out": tmp_path / "out", "model": fake.named(closed).model}
    with pytest.raises(ConfigError, match="old is not new: run parent, which is started from"):
        ablate(closed.path, **ask, zero_shot=["old"])
    page, failed = ablate(closed.path, **ask, zero_shot=["other"])
    assert failed == {}
    text = page.read_text()
    assert (
        "- table 7, without: cannot start from run parent: mean_pool: the run has True, asked "
        "for False"
    ) in text
    assert "test videos, after big, 5 classes" in text
    [run] = [open_run(file.parent) for file in (tmp_path / "out").glob(f"*/{RECORD}")]
    assert (run.ancestors, run.config.lr) == (parent.lineage(), 0.01)
    [row] = [
        r
        for r in json.loads(page.with_suffix(".json").read_text())["tables"][0]["rows"]
        if r["runs_done"]
    ]
    assert row["row"] == "with"
    with pytest.raises(
        StoreMismatchError, match="starts from another run, or anew; choose ano"
    ):
        ablate(closed.path, **{**ask, "start": None}, zero_shot=["other"])


# --- weights between the start and the end


@pytest.mark.parametrize("which", ["parent", "child"])
def test_a_blend_by_hand(clip, seen, splits, parent, child, which):
    run, store = (parent, seen) if which == "parent" else (child, splits)
    last = load_file(run.path / LAST)
    start = load_file(parent.path / LAST)
    if which == "parent":
        start = prepare(store, clip, run.config).model.state_dict()
    assert not torch.equal(start["temporal.positions"], last["temporal.positions"])
    assert_equal(load_model(run, clip, blend=1).state_dict(), last)
    assert_equal(load_model(run, clip, blend=0).state_dict(), dict(start))
    quarter = load_model(run, clip, blend=0.25).state_dict()
    for name, value in quarter.items():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * last[name])
    names = store.class_names
    marks = [Trained(run, clip, names, blend=b).fingerprint() for b in (None, 1, 0.5, 0)]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 3


@pytest.mark.parametrize("blend", [-0.1, 1.5, float("nan")])
def test_a_blend_is_a_share(clip, parent, blend):
    with pytest.raises(ConfigError, match=f"blend: expected a weight from 0 to 1, got {blend}"):
        load_model(parent, clip, blend=blend)


def test_a_start_that_is_not_at_hand_is_one_sentence(clip, parent, child, tmp_path):
    for start, said in (("0" * 64, "0" * 12), (None, "nothing")):
        run = open_run(changed(parent, tmp_path / said, start=start))
        with pytest.raises(
            InputError, match=f"started with weights .* fingerprint {said}, got"
        ):
            load_model(run, clip, blend=0.5)
        load_model(run, clip)
    file = tmp_path / "other.safetensors"
    held = {**child.record["ancestors"][0], "file": str(file)}
    run = open_run(changed(child, tmp_path / "run", ancestors=[held]))
    with pytest.raises(
        InputError, match=r"cannot read the weights to start from, .*other.safe"
    ):
        load_model(run, clip, blend=0.5)
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(
        InputError, match=r"is not what was started from: expected SHA-256 .*run p"
    ):
        load_model(run, clip, blend=0.5)
    load_model(run, clip)


def test_figures_of_a_blend_say_so(clip, seen, parent, tmp_path):
    run = changed(parent, tmp_path / "run")

    def bieff(*arguments):
        words = ["eval", run, "--device", "cpu", *fake.named(seen).words, *arguments]
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.stdout

    bieff("--model-only")
    said = bieff("--blend", 0.5, "--mix", 0.25)
    assert "bieff, blend 0.5" in said
    assert "mix 0.25, blend 0.5" in said
    assert "blend 0.5 [run run, last weights, pre-prompt]" in said
    kept = load_results(run / "results.json")
    assert [(r.model, r.blend) for r in kept] == [
        *(("bieff", None), ("bieff", 0.5), ("frozen", None), ("mix", 0.5))
    ]
    table = load_scores(next((run / "scores").iterdir()))
    assert [about.blend for about in table.models] == [0.5, None]
    half = Trained(open_run(run), clip, seen.class_names, blend=0.5)
    shown = torch.from_numpy(seen.partitions["val"].read([int(table.rows[0])])[0]).float()
    scores = half.logits(shown, None).double().softmax(dim=1).mean(dim=0).numpy()
    np.testing.assert_allclose(table.scores[0][0][0], scores, atol=1e-6)
    page = report(run=run, with_videos=False).read_text()
    assert "BiEfficient, blend 0.5" in page
    assert "mix of both, 0.25 ours, blend 0.5" in page
    assert page.count("top-1; frozen CLIP") == 1  # no large figure for a blend
    lines = commands(open_run(run), None, read_results(open_run(run)))
    assert any(line.endswith("--mix 0.25 --blend 0.5") for line, _ in lines)


def test_a_blend_is_of_a_run(seen, parent, tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"")
    asked = ["predict", str(tmp_path / "no.mp4"), *fake.named(seen).words, "--labels", "a, b"]
    wrong = CliRunner().invoke(main, [*asked, "--blend", "0.5"])
    assert wrong.exit_code == 1
    assert "--blend is of a run's weights; name one with --run" in wrong.output
    run = ["--run", str(parent.path), "--device", "cpu"]
    done = CliRunner().invoke(main, [*asked, *run, "--blend", "0.5"])
    assert "run parent, blend 0.5, on local-dir:" in done.output
