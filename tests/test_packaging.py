"""The package as it is installed, and the lines between its parts."""

import ast
import os
import re
import subprocess
import sys
import tomllib

import pytest
from helpers.places import ROOT

PARTS = ("apps", "extract", "features", "train")


def python_files(part):
    return sorted((ROOT / part).rglob("*.py"))


def imported(path):
    """Names of the modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FLOORS = (
    ("features",),
    ("extract.sources",),
    ("clip", "extract.decode", "extract.datasets", "train", "train.text"),
    ("extract.shapes", "train.method"),
    ("extract", "train.runs"),
    ("train.evaluate",),
    ("train.fit",),
    ("apps", "apps.bench", "train.experiments"),
    ("apps.report",),
    ("cli",),
)
"""Folders, from below; a file imports of its own folder and of the floors beneath it."""


DOOR = "train.run"
"""Names again what docs/api.md promises, on the floor where it was promised."""


def modules():
    """Names below `bieff`, with their files."""
    files = [
        ROOT / "cli.py",
        ROOT / "clip.py",
        *(p for part in PARTS for p in python_files(part)),
    ]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in files}


def folder(name):
    return name.rpartition(".")[0] or name


def ours(path, known):
    """Modules of ours that a file imports."""
    for name in imported(path):
        found = name.removeprefix("bieff.")
        if found in known:
            yield found
        elif f"{found}.__init__" in known:
            yield f"{found}.__init__"


def test_imports_go_down():
    known = modules()
    level = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    assert {folder(name) for name in known} == set(level)
    door = known.pop(DOOR)
    assert not any(DOOR in ours(path, {**known, DOOR: door}) for path in known.values())
    wrong = [
        f"{name} imports {other}"
        for name, path in known.items()
        for other in ours(path, known)
        if folder(other) != folder(name) and level[folder(other)] >= level[folder(name)]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("features", ("torch", "open_clip")),
        ("extract", ("bieff.train", "rich")),
        ("train", ("bieff.extract", "rich")),
    ],
)
def test_what_a_part_must_not_know(part, forbidden):
    """`features` knows no model, the stages do not know each other, and none of them prints."""
    printing = [
        path for path in python_files(part) if re.search(r"^\s*print\(", path.read_text(), re.M)
    ]
    assert printing == []
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files(part)
        for name in imported(path)
        if name in forbidden or name.startswith(tuple(f"{f}." for f in forbidden))
    ]
    assert wrong == []


def test_no_folder_is_crowded_and_no_two_files_import_each_other():
    known = modules()
    assert len(known) <= 110
    for name in {folder(name) for name in known}:
        assert sum(folder(other) == name for other in known) <= 13, name
    left = {name: set(ours(path, known)) - {name} for name, path in known.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_clip_imports_nothing_of_ours_but_errors():
    found = {name for name in imported(ROOT / "clip.py") if name.startswith("bieff")}
    assert all(name.startswith("bieff.features.errors") for name in found)


def test_the_doors_of_the_api_are_where_they_were():
    from bieff.apps.predict import Predictor
    from bieff.extract.decode import decode_video, read_frames
    from bieff.features.store import FeatureStore
    from bieff.train.run import clip_of, load_model, open_run

    doors = (FeatureStore.open, Predictor.load, open_run, load_model, clip_of)
    assert all(map(callable, (*doors, decode_video, read_frames)))


def test_nothing_but_cli_and_clip_lies_at_the_root():
    """setuptools would ship any other file as a module of bieff."""
    assert sorted(p.name for p in ROOT.glob("*.py")) == ["cli.py", "clip.py"]


def test_every_package_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {
        "bieff." + ".".join(path.parent.relative_to(ROOT).parts)
        for part in PARTS
        for path in python_files(part)
    }
    assert set(project["tool"]["setuptools"]["packages"]) == found | {"bieff"}


def test_installed_as_bieff_and_as_nothing_else(tmp_path):
    """From an empty folder, with nothing of the checkout on the path."""
    code = """
import importlib.util, bieff.extract, bieff.features, bieff.train, bieff.apps, bieff.cli
print([n for n in ("apps", "extract", "features", "train", "cli", "clip", "tests")
       if importlib.util.find_spec(n)])
"""
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"
