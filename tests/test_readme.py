"""Each command of README.md is run here, word for word, or by the test that is named.

Two things alone are put in their place: `tinyclip` for OpenAI's ViT-B/16, which would be
downloaded, and folders of a few clips, called as the official lists call them, for /data.
"""

import json
import os
import re
import shlex
import shutil

import pytest
from click.testing import CliRunner
from helpers.places import ROOT

from bieff.cli import NOT_WHOLE, main
from bieff.extract.datasets import official
from bieff.train.config import TrainConfig
from bieff.train.method.model import BiEfficient

README = ROOT / "README.md"

TINY = ("--model", "tinyclip")
SHORT = {"epochs": 1, "warmup_epochs": 0, "temporal_layers": 1, "batch_size": 2}
ADDED = {
    "extract --dataset k400": TINY,
    "extract --dataset hmdb51": TINY,
    "predict": TINY,
    "train": [word for name, value in SHORT.items() for word in ("--set", f"{name}={value}")],
}
"""What is added to a command that begins so."""

ELSEWHERE = {
    "bieff bench": "apps/test_bench.py::test_the_command",
    "bieff serve --run demo/runs/shapes": "apps/test_serve.py::test_in_a_real_browser",
    "make demo": "apps/test_demo.py::test_results_say_what_they_are",
    "make test": "",  # this very thing
    "bieff demo": "apps/test_demo.py::test_results_say_what_they_are",
    "python tests/bench_text_tower.py": "train/text/test_tower.py",
    "python tests/bench_extract.py": "by hand: its figure says when",
    "python tests/bench_store.py": "by hand: its figure says when",
    "python tests/bench_train_step.py": "by hand: its figure says when",
}


def commands():
    """What stands in README as a command: a line of code, or whole in a sentence."""
    text = README.read_text()
    lines = re.findall(r"^    (?:\.venv/bin/)?((?:bieff|make) .*)$", text, re.MULTILINE)
    inline = re.findall(r"(?<!`)`(bieff \S+ (?:--\S+ )?\S+/\S+|python tests/\S+\.py)`", text)
    return [shlex.split(line, comments=True) for line in [*lines, *inline]]


def put(folder, paths, clips):
    """Clips under these names."""
    for index, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clips[index % len(clips)], folder / path)


@pytest.fixture
def place(world, tmp_path, monkeypatch):
    """A folder in which README's commands mean something."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    (tmp_path / "demo").symlink_to(".")
    clips = sorted((world / "data" / "shapes-unseen").rglob("*.mp4"))
    classes = [name for name, _ in official.class_names("k400")[:2]]
    train = [f"train/{c}/{c[0] * 11}_00000{i}_000010.mp4" for c in classes for i in range(2)]
    val = [f"val/abseiling/{video}.mp4" for video in ("0wR5jVB-WPk", "3caPS4FHFF8")]
    put(tmp_path / "kinetics400", [*train, *val], clips)
    listed = official.splits("hmdb51")
    tested = [[path for path, roles in listed if roles.get(n) == "test"][:2] for n in "123"]
    wanted = sorted({path for paths in tested for path in paths})
    put(tmp_path / "hmdb51", [f"{path}.avi" for path in wanted], clips)
    put(tmp_path, ["clip.mp4"], clips)
    names = {name: f"a video of {name}" for _, name in official.class_names("hmdb51")}
    (tmp_path / "my_names.json").write_text(json.dumps(names))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_is_accounted_for():
    lines = [" ".join(words) for words in commands()]
    assert len(lines) >= 15
    for name in ("extract", "train", "zeroshot", "predict", "report", "serve", "bench"):
        assert any(
            line.startswith(f"bieff {name} ") or line == f"bieff {name}" for line in lines
        )
    assert {line for line in lines if not line.startswith("bieff ")} <= set(ELSEWHERE)
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        if file.endswith(".py"):
            assert name in (README.parent / "tests" / file).read_text()


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(place):
    ran = []
    for words in commands():
        line = " ".join(words)
        if line in ELSEWHERE:
            continue
        said = line.removeprefix("bieff ")
        added = [
            word for start, more in ADDED.items() if said.startswith(start) for word in more
        ]
        arguments = [word.replace("/data/", f"{place}{os.sep}") for word in words[1:]]
        result = CliRunner().invoke(main, [*arguments, *added])
        # of the official lists nearly everything is missing here
        expected = (
            NOT_WHOLE if "extract --dataset shapes" not in line and "extract" in line else 0
        )
        assert result.exit_code == expected, f"{line}\n{result.output}\n{result.exception}"
        ran.append(line)
    assert len(ran) >= 10
    assert (place / "runs" / "shapes" / "report.html").is_file()
    runs = sorted(path.name for path in (place / "runs").iterdir() if path.is_dir())
    assert runs == ["k400", "k400-2", "shapes", "shapes-2"]
    found = json.loads((place / "runs" / "k400" / "results.json").read_text())
    assert [record["names"] for record in found] == [
        None,
        None,
        "my_names.json",
        "my_names.json",
    ]
    assert {record["dataset"] for record in found} == {"hmdb51"}


def test_the_parameters_are_counted_as_the_paper_counts():
    """Table 4, row by row, at 8 frames of ViT-B/16."""
    rows = (
        {"prompt": "none", "post_prompt": False, "word_guided": False},
        {"post_prompt": False, "word_guided": False},
        {"word_guided": False},
        {},
    )
    sizes = {"dim": 512, "text_width": 512, "num_frames": 8}
    models = [BiEfficient(TrainConfig(**row), **sizes) for row in rows]
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    said = " ".join(README.read_text().split())
    assert ", ".join(f"{count / 1024**2:.2f}" for count in counts) in said
    assert ", ".join(f"{count / 1e6:.2f}" for count in counts) in said


def test_what_readme_says_of_a_store_is_so(world, monkeypatch):
    monkeypatch.chdir(world)
    [code] = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    names = {}
    exec(code, names)
    store = names["store"]
    assert str(store["train/embeddings"].dtype) == "float16"
    assert store["train/frames"].shape == store["train/embeddings"].shape[:3]
    assert max(store["train/labels"]) < len(store.attrs["class_names"])
