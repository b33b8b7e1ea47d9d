"""bieff as others install it: a wheel, an empty environment, pip and nothing else."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.places import ROOT

IMAGE = (ROOT / "docs/Dockerfile").read_text().replace("\\\n", "")
COPIED = " ".join(re.findall(r"^COPY (.*) /src/\S*$", IMAGE, re.MULTILINE)).split()
RUNS = re.findall("^RUN (.*)$", IMAGE, re.MULTILINE)
"""What an image is made of, and its commands."""

DEMO = """
from pathlib import Path
from bieff.apps.demo import demo
from bieff.extract.shapes.clips import Edition
from bieff.train.config import TrainConfig

edition = Edition(seed=1, train_clips=1, val_clips=1, zero_shot_clips=3)
demo(Path("demo"), seed=1, edition=edition, config=TrainConfig(epochs=1, warmup_epochs=0))
"""


def run(*command, cwd, path=None):
    """A command of the environment, of which nothing of this one is seen."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    kept |= {} if path is None else {"PATH": str(path)}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_image_is_made_of_what_is_here():
    assert [name for name in COPIED if not (ROOT / name).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]
    needed = {name.split(".")[1] for name in packages if "." in name}
    needed |= {
        "pyproject.toml",
        project["project"]["readme"],
        *(p.name for p in ROOT.glob("*.py")),
    }
    assert needed <= set(COPIED)
    assert set(re.findall(r"/src/([^\s/]+)", " ".join(RUNS))) <= set(COPIED)


@pytest.mark.parametrize("has_python", [True, False])
def test_only_a_base_without_python_is_given_one(tmp_path, has_python):
    """As the images of python are, and those of CUDA; apt-get says here what it is asked."""
    for name in ("rm", "sh"):
        (tmp_path / name).symlink_to(shutil.which(name))
    apt = tmp_path / "apt-get"
    apt.write_text('#!/bin/sh\necho apt-get "$@"\n')
    apt.chmod(0o755)
    if has_python:
        (tmp_path / "python3").symlink_to(sys.executable)
    first, make, _ = RUNS
    first = first.replace("/var/lib/apt/lists", str(tmp_path / "lists"))
    said = run("sh", "-c", first, cwd=tmp_path, path=tmp_path)
    packages = "python3 python3-venv"
    asked = f"apt-get update\napt-get install -y --no-install-recommends {packages}\n"
    assert said == ("" if has_python else asked)
    assert make == "python3 -m venv /opt/bieff"


@pytest.mark.long  # installs torch anew: minutes
@pytest.mark.timeout(3600)  # it installs torch
def test_a_wheel_in_an_empty_environment_runs_the_demo(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir")
    run(sys.executable, *build, tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("bieff-*.whl")
    there = tmp_path / "empty" / "bin"
    path = os.pathsep.join([str(there), str(Path(sys.executable).parent), os.environ["PATH"]])
    for line in RUNS:  # of the image, with the wheel in place of the source
        line = line.replace("/src[", f"{wheel}[").replace("/src/", f"{source}/")
        line = line.replace("/opt/bieff", str(there.parent))
        run("sh", "-c", line, cwd=tmp_path, path=path)
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
