"""bieff as others install it: a wheel, an empty environment, pip and nothing else."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from helpers.places import ROOT

COPIED = re.findall(
    r"^COPY (.*) /src/\S*$", (ROOT / "docs/Dockerfile").read_text(), re.MULTILINE
)
"""What an image is made of."""

DEMO = """
from pathlib import Path
from bieff.apps.demo import demo
from bieff.extract.shapes.clips import Edition
from bieff.train.config import TrainConfig

edition = Edition(seed=1, train_clips=1, val_clips=1, zero_shot_clips=3)
demo(Path("demo"), seed=1, edition=edition, config=TrainConfig(epochs=1, warmup_epochs=0))
"""


def run(*command, cwd):
    """A command of the environment, of which nothing of this one is seen."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long  # installs torch anew: minutes
@pytest.mark.timeout(3600)  # it installs torch
def test_a_wheel_in_an_empty_environment_runs_the_demo(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in " ".join(COPIED).split():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir")
    run(sys.executable, *build, tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("bieff-*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "empty", cwd=tmp_path)
    there = tmp_path / "empty" / "bin"
    pins = ("--constraint", ROOT / "constraints.txt")
    run(there / "python", "-m", "pip", "install", "--quiet", *pins, wheel, cwd=tmp_path)
    # no decord, as where it has no wheel
    run(there / "python", "-m", "pip", "uninstall", "--quiet", "-y", "decord", cwd=tmp_path)
    place = tmp_path / "somewhere"
    place.mkdir()
    assert "ssv2" in run(there / "bieff", "datasets", cwd=place)
    run(there / "python", "-P", "-c", DEMO, cwd=place)
    assert (place / "demo" / "results.json").is_file()
    run(there / "bieff", "report", place / "demo" / "runs" / "shapes", cwd=place)
    info = run(there / "bieff", "store", "info", place / "demo" / "features/shapes", cwd=place)
    assert "decord" not in info or "decord none" in info
