"""`bieff ablate`: rows against the paper and the settings, and real runs in real processes."""

import json
import os
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers import fake_store as fake
from helpers.places import SHARED, TESTS
from safetensors.torch import load_file

from bieff.cli import main
from bieff.features.errors import ConfigError, StoreMismatchError
from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig, load
from bieff.train.evaluate.results import load_results
from bieff.train.experiments.ablation import Ablation, ablate
from bieff.train.experiments.report import spread, spread_text
from bieff.train.experiments.rows import (
    ROWS,
    experiments_of,
    parse_tables,
    rows_of,
)
from bieff.train.runs.checkpoint import LAST
from bieff.train.runs.run import RECORD, open_run

PAPER = SHARED / "biefficient_paper.txt"
SHORT = ("epochs=1", "warmup_epochs=0", "batch_size=11", "temporal_layers=1")


class Silent:
    """Nobody watches; keeps what was said."""

    def __init__(self):
        self.lines, self.began = {}, None

    def begin(self, total, done):
        self.began = (total, done)

    def update(self, name, what, share):
        assert 0 <= share <= 1

    def end(self, name, line):
        self.lines[name] = line


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A closed set, and beside it a set of other classes with splits."""
    folder = tmp_path_factory.mktemp("ablate")
    clip = fake.load_clip(folder / "clip")
    fake.write_store(folder / "closed", clip, bad={"train": [3], "val": [0]})
    fake.write_store(
        folder / "other",
        clip,
        counts={"all": 19},
        num_splits=3,
        names=("climbing a tree", "juggling", "baking bread"),
    )
    return folder


def ask(stores, out, **changes):
    options = {
        "tables": [7],
        "seeds": 2,
        "overrides": SHORT,
        "zero_shot": ["other"],
        "out": out,
        "watch": Silent(),
        "model": fake.named(stores / "closed").model,
    }
    return ablate(stores / "closed", **{**options, **changes})


def results_of(run, protocol):
    return [r for r in load_results(run / "results.json") if r.protocol == protocol]


def make_here(stores, out, tables, seeds=2, overrides=SHORT):
    """Type the commands of some tables' runs, in this process."""
    out.mkdir(exist_ok=True)
    asked = Ablation(
        store=FeatureStore.open(stores / "closed"),
        zero_shot=[FeatureStore.open(stores / "other")],
        tables=tables,
        seeds=seeds,
        base=load(overrides=overrides),
        out=out,
        device="cpu",
        named=fake.named(stores / "closed"),
    )
    runs = dict.fromkeys(run for row in rows_of(tables) for run in asked.experiments(row))
    for run in runs:
        for _, words in asked.commands(run):
            done = CliRunner().invoke(main, words, catch_exceptions=False)
            assert done.exit_code == 0, done.output
    return [run.name for run in runs]


@pytest.fixture(scope="module")
def made(stores, tmp_path_factory):
    """An ablation's folder with all runs of Tables 7 and 8, and their names."""
    out = tmp_path_factory.mktemp("made") / "out"
    return out, make_here(stores, out, [7, 8])


# --- rows


NOTHING = {"prompt": "none", "post_prompt": False, "word_guided": False}
PROMPTS = {"post_prompt": False, "word_guided": False}
WORDS = {
    "context_start": "This is a video about",
    "normalise": "frames",
    "temperature": None,
}
WANT = {
    (4, "baseline"): (80.4, NOTHING),
    (4, "+ Pre-Prompt"): (82.0, PROMPTS),
    (4, "+ Post-Prompt"): (82.4, {"word_guided": False}),
    (4, "+ Word-Guided"): (82.8, {}),
    (5, "none"): (80.6, {"prompt": "none", "post_prompt": False}),
    (5, "hand-crafted"): (80.9, {"prompt": "hand-crafted", "post_prompt": False}),
    (5, "learnable"): (82.0, {"prompt": "learnable", "post_prompt": False}),
    (5, "Pre-Prompt only"): (82.4, {"post_prompt": False}),
    (5, "Post-Prompt only"): (82.5, {"prompt": "none"}),
    (5, "both"): (82.8, {}),
    (6, "A1 frames as tokens"): (81.0, {**PROMPTS, "design": "a1"}),
    (6, "A2 context asks frames"): (81.2, {**PROMPTS, "design": "a2"}),
    (6, "A3 no Adapter"): (81.7, {**PROMPTS, "design": "a3"}),
    (6, "Pre-Prompt"): (82.0, PROMPTS),
    (7, "without"): (82.5, {"mean_pool": False}),
    (7, "with"): (82.8, {}),
    (8, "words"): (82.5, {"word_source": "words"}),
    (8, "classes"): (82.8, {}),
    (9, "1"): (82.1, {"word_guided": False, "alpha": 1.0}),
    (9, "0.1"): (82.4, {"word_guided": False}),
    (9, "0.01"): (82.3, {"word_guided": False, "alpha": 0.01}),
    (10, "1"): (81.8, {"beta": 1.0}),
    (10, "0.1"): (82.8, {}),
    (10, "0.01"): (82.5, {"beta": 0.01}),
    (1, "8 frames"): (82.8, {"frames": 8}),
    (1, "16 frames"): (83.1, {"frames": 16}),
    (1, "32 frames"): (83.4, {"frames": 32}),
    (3, "16 frames"): (83.1, {"frames": 16}),
    (0, "as the paper"): (None, {}),
    (0, "preset words"): (None, WORDS),
    (0, "preset words, distilled, weight 1"): (None, {**WORDS, "distill": 1.0}),
    (0, "preset words, average of 10 epochs"): (None, {**WORDS, "average_epochs": 10}),
    (0, "preset words, distilled, averaged"): (
        None,
        {**WORDS, "distill": 1.0, "average_epochs": 10},
    ),
}
"""By hand: what the paper prints, and how a row differs from the default."""


def test_every_row_has_the_papers_figure_and_varies_what_its_table_varies():
    default = TrainConfig().to_dict()
    got = {}
    for row in ROWS:
        config = row.config(TrainConfig()).to_dict()
        changed = {name: value for name, value in config.items() if value != default[name]}
        got[row.table, row.name] = (row.paper_top1, changed)
    assert list(got.items()) == list(WANT.items())  # in the order that the paper prints them


@pytest.mark.skipif(not PAPER.is_file(), reason="the paper's text is not here")
@pytest.mark.parametrize(
    ("table", "heading"), [(4, "Component-wise"), (5, "Method\tTop-1\nw/o prompt")]
)
def test_the_papers_text_has_the_figures(table, heading):
    text = PAPER.read_text()
    printed = text[text.index(heading) :][:900]
    for row in rows_of([table]):
        assert str(row.paper_top1) in printed


def test_a_base_changes_no_row_in_what_its_table_varies():
    base = load(overrides=["alpha=1", "beta=1", "design=a2", "word_source=words"])
    for row in ROWS:
        config = row.config(base)
        for name, value in row.settings.items():
            assert getattr(config, name) == value


def test_each_distinct_configuration_is_run_once():
    runs = [
        run for row in rows_of(range(4, 11)) for run in experiments_of(row, TrainConfig(), 3, 8)
    ]
    assert len(runs) == 3 * 24
    once = list(dict.fromkeys(runs))
    assert len(once) == 3 * 18
    configs = {json.dumps(run.config.to_dict()): run.name for run in runs}
    assert len(configs) == 3 * 18
    assert {run.config.seed for run in once} == {0, 1, 2}
    # a store of 8 frames: Table 1's first row is the default
    [first, *_] = rows_of([1])
    [run] = experiments_of(first, TrainConfig(), 1, 8)
    assert run.name == "table-4-word-guided-seed-0"
    [run] = experiments_of(first, TrainConfig(seed=4), 1, 16)
    assert run.name == "table-1-8-frames-seed-4"


def test_tables_as_they_are_typed():
    assert parse_tables("5, 4,5") == [5, 4]
    assert parse_tables("0,4") == [0, 4]
    for wrong in ("2", "4,x", ""):
        with pytest.raises(ConfigError, match=r"expected some of 1, 3, 4, .*, 0, got '"):
            parse_tables(wrong)


def test_the_deviation_is_that_of_a_sample():
    assert spread([1.0, 2.0, 4.5])["std"] == pytest.approx(1.8027756)
    assert spread_text(spread([1.0, 2.0, 4.5])) == "2.50 ± 1.80"
    assert spread_text(spread([1.0])) == "1.00"


# --- reports


def test_the_report_holds_what_the_runs_hold(stores, made, tmp_path):
    """All runs are there, so that no process is started."""
    runs, names = made
    out = shutil.copytree(runs, tmp_path / "out")
    assert names == [
        *(f"table-7-without-seed-{seed}" for seed in range(2)),
        *(f"table-4-word-guided-seed-{seed}" for seed in range(2)),
        *(f"table-8-words-seed-{seed}" for seed in range(2)),
    ]
    watch = Silent()
    report, failed = ask(stores, out, tables=[8, 7], watch=watch)
    assert (watch.began, watch.lines, failed) == ((6, 6), {}, {})
    state = json.loads((out / "ablation.json").read_text())
    assert [table["table"] for table in state["tables"]] == [8, 7]
    for table in state["tables"]:
        for row in table["rows"]:
            assert row["runs_done"] == 2
            records = [open_run(out / name).record for name in row["runs"]]
            assert [record["config"]["seed"] for record in records] == [0, 1]
            for name, protocol in (("closed", "closed"), ("other", "splits3")):
                found = [results_of(out / run, protocol) for run in row["runs"]]
                tops = [results[0].top1 for results in found]
                assert all(results[0].model == "bieff" for results in found)
                assert row["results"][name]["top1"] == {
                    "mean": pytest.approx(statistics.fmean(tops)),
                    "std": pytest.approx(statistics.stdev(tops)),
                    "values": tops,
                }
                assert state["frozen"][name]["top1"] == found[0][1].top1
            assert row["parameters"]["total"] == records[0]["parameters"]["total"]
            assert row["batch"] == records[0]["cost"]["batch"]
    page = report.read_text()
    assert "**Another data set and another CLIP**" in page
    assert "closed top-1 | top-5 | other top-1 | tunable | seconds" in page
    assert "paper, K400 top-1" in page
    assert (
        len(re.findall(r"^\| (with|without|words|classes) \| .* \| 82\.[58] \|", page, re.M))
        == 4
    )
    assert page.count("| 82.8 | 96.3 |") == 2


def test_what_is_there_is_added_to_and_not_replaced(stores, made, tmp_path):
    out = shutil.copytree(made[0], tmp_path / "out")
    ask(stores, out)
    report, _ = ask(stores, out, tables=[8], seeds=1, zero_shot=[])
    page = report.read_text()
    assert "## Table 7" in page
    assert "## Table 8" in page
    assert "other top-1" in page
    assert "of 2 runs" not in page


def test_rows_that_a_store_cannot_serve_are_named(stores, tmp_path):
    watch = Silent()
    report, failed = ask(stores, tmp_path / "out", tables=[1, 3], watch=watch)
    assert (watch.began, failed) == ((0, 0), {})
    page = report.read_text()
    assert "- table 1, 32 frames: needs 32 frames, the store has 6" in page
    assert "| 32 frames |  |" in page


def test_another_ablation_in_the_folder_is_refused(stores, tmp_path):
    out = tmp_path / "out"
    ask(stores, out, tables=[1])
    with pytest.raises(ConfigError) as caught:
        ask(stores, out, tables=[1], overrides=[*SHORT, "lr=1e-3", "save_seconds=3"])
    assert str(caught.value) == (
        f"{out} is an ablation with other settings; choose another --out:\n"
        "  lr: it has 0.0005, asked for 0.001"
    )
    clip = fake.load_clip(tmp_path / "clip")
    fake.write_store(tmp_path / "closed", clip, seed=5)
    fake.write_store(tmp_path / "other", clip, counts={"all": 7}, num_splits=1)
    with pytest.raises(StoreMismatchError, match="is an ablation on another store: expected"):
        ask(tmp_path, out, tables=[1])
    for name in ("seeds", "jobs"):
        with pytest.raises(ConfigError, match=f"{name} must be positive, got 0"):
            ask(stores, out, **{name: 0})


def test_sets_that_do_not_fit_are_refused_before_anything_is_trained(stores, tmp_path):
    out = tmp_path / "out"
    for sets, message in (
        (["closed"], "expected stores of different names, got closed twice"),
        (["other", "../" + stores.name + "/other"], "different names, got other twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            ask(stores, out, zero_shot=sets)
    clip = fake.load_clip(tmp_path / "clip", seed=3)
    fake.write_store(stores / "listless", clip, counts={"val": 9})
    fake.write_store(stores / "foreign", clip, counts={"all": 9}, num_splits=1)
    with pytest.raises(ConfigError, match="listless has no official test lists"):
        ask(stores, out, zero_shot=["listless"])
    with pytest.raises(StoreMismatchError, match="foreign comes from another CLIP than"):
        ask(stores, out, zero_shot=["foreign"])
    assert list(out.glob("table-*")) == []


@pytest.mark.slow
def test_figures_on_a_store_that_was_replaced_are_not_averaged(stores, tmp_path):
    """A set of another recipe under the old name: its runs are evaluated again."""
    shutil.copytree(stores / "closed", tmp_path / "closed")
    clip = fake.load_clip(tmp_path / "clip")
    ways = {"counts": {"all": 19}, "num_splits": 3}
    fake.write_store(tmp_path / "other", clip, **ways)
    out = tmp_path / "out"
    names = make_here(tmp_path, out, [7], seeds=1)
    before = results_of(out / names[0], "splits3")
    shutil.rmtree(tmp_path / "other")
    fake.write_store(tmp_path / "other", clip, views=4, **ways)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bieff.train.experiments.ablation.run_all", lambda *_, **__: None)
        ask(tmp_path, out, seeds=1)
    state = json.loads((out / "ablation.json").read_text())
    assert [row["runs_done"] for row in state["tables"][0]["rows"]] == [0, 0]
    make_here(tmp_path, out, [7], seeds=1)
    after = results_of(out / names[0], "splits3")
    assert [result.crops for result in before] == [2, 2]
    assert [result.crops for result in after] == [2, 2, 4, 4]
    watch = Silent()
    ask(tmp_path, out, seeds=1, watch=watch)
    assert watch.began == (2, 2)


def test_a_row_says_which_set_has_too_few_frames(stores, tmp_path):
    clip = fake.load_clip(tmp_path / "clip")
    shutil.copytree(stores / "closed", tmp_path / "closed")
    fake.write_store(tmp_path / "short", clip, counts={"all": 9}, num_splits=1, frames=3)
    report, _ = ask(tmp_path, tmp_path / "out", zero_shot=["short"], tables=[7])
    assert "- table 7, with: needs 6 frames, short has 3" in report.read_text()


# --- processes


@pytest.mark.slow
def test_runs_in_processes_are_those_of_this_one(stores, tmp_path):
    make_here(stores, tmp_path / "here", [7])
    watch = Silent()
    _, failed = ask(stores, tmp_path / "there", jobs=2, watch=watch)
    assert failed == {}
    assert watch.began == (4, 0)
    assert sorted(watch.lines) == sorted(
        f"table-{row}-seed-{seed}" for row in ("7-without", "4-word-guided") for seed in (0, 1)
    )
    for name in watch.lines:
        first, second = (
            load_file(tmp_path / where / name / LAST) for where in ("here", "there")
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert open_run(tmp_path / "there" / name).record["threads"] == 1
    assert list((tmp_path / "there").glob("*.log")) == []


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_go_on(stores, tmp_path):
    """No prompt of 75 tokens fits beside a name; the hand-crafted and the empty one do."""
    watch = Silent()
    more = {
        "seeds": 1,
        "overrides": [*SHORT, "num_context=75"],
        "zero_shot": [],
        "watch": watch,
    }
    report, failed = ask(stores, tmp_path / "out", tables=[4], **more)
    assert list(failed) == [
        "table-4-pre-prompt-seed-0",
        "table-4-post-prompt-seed-0",
        "table-4-word-guided-seed-0",
    ]
    assert all("use a smaller context" in problem for problem in failed.values())
    assert watch.lines["table-4-baseline-seed-0"].startswith("top-1 closed ")
    page = report.read_text()
    assert "## Not there" in page
    assert "+ Pre-Prompt (0 of 1 runs)" in page


def bieff(*arguments):
    command = [sys.executable, "-P", "-m", "helpers.told_ablation", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )


def wait_until_they_move(process, runs=2):
    """Until so many runs are further in their training than when they were first seen."""
    first, moved, said = {}, set(), []
    for line in process.stdout:
        said.append(line)
        match line.split():
            case ["at", name, "training", share]:
                if float(share) > first.setdefault(name, float(share)):
                    moved.add(name)
        if len(moved) == runs:
            return
    raise AssertionError("".join(said))


def children_of(pid):
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = re.search(r"PPid:\t(\d+)", status.read_text())
        except OSError:
            continue
        if parent and int(parent.group(1)) == pid:
            found.append(int(status.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_stopped_and_a_killed_ablation_go_on(stores, tmp_path):
    """Ctrl-C, then a kill that nobody hears, then to the end; as if nothing had happened."""
    out = tmp_path / "out"
    settings = ["epochs=40", "warmup_epochs=0", "batch_size=11", "save_seconds=0.1"]
    arguments = ["ablate", "--features", stores / "closed", "--tables", "7", "--seeds", "1"]
    arguments += ["--out", out, "--jobs", "2", "--zeroshot", "other"]
    arguments += fake.named(stores / "closed").words
    for setting in settings:
        arguments += ["--set", setting]
    folders = [out / f"table-{name}-seed-0" for name in ("7-without", "4-word-guided")]

    process = bieff(*arguments)
    wait_until_they_move(process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 1, said
    assert "Error: stopped and saved, 0 of the 2 runs left were made; the same" in said
    assert not any(open_run(folder).record["finished"] for folder in folders)

    process = bieff(*arguments)
    wait_until_they_move(process)
    children = [os.pidfd_open(child) for child in children_of(process.pid)]
    assert len(children) == 2
    process.kill()
    process.communicate()
    for child in children:
        assert select.select([child], [], [], 60)[0], "a run goes on though nobody listens"
        os.close(child)

    process = bieff(*arguments)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "## Table 7: mean pooling" in said
    records = [open_run(folder).record for folder in folders]
    assert all(record["finished"] and len(record["resumed"]) == 2 for record in records)

    before = {folder: (folder / RECORD).stat().st_mtime_ns for folder in folders}
    said = bieff(*arguments).communicate(timeout=60)[0]
    assert "2 runs, 2 of them done already" in said
    assert before == {folder: (folder / RECORD).stat().st_mtime_ns for folder in folders}

    make_here(stores, tmp_path / "straight", [7], seeds=1, overrides=settings)
    for folder in folders:
        first = load_file(folder / LAST)
        second = load_file(tmp_path / "straight" / folder.name / LAST)
        assert all(torch.equal(first[key], second[key]) for key in first)
