"""The package as it is installed, and the lines between its parts."""

import ast
import os
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


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        (
            "features",
            (
                "torch",
                "open_clip",
                "bieff.clip",
                "bieff.extract",
                "bieff.train",
                "bieff.apps",
                "bieff.cli",
            ),
        ),
        ("extract", ("bieff.train", "bieff.apps", "bieff.cli")),
        ("train", ("bieff.extract", "bieff.apps", "bieff.cli")),
        ("apps", ("bieff.cli",)),
    ],
)
def test_the_parts_import_only_what_they_may(part, forbidden):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files(part)
        for name in imported(path)
        if name in forbidden or name.startswith(tuple(f"{f}." for f in forbidden))
    ]
    assert wrong == []


def test_clip_imports_nothing_of_ours_but_errors():
    ours = {name for name in imported(ROOT / "clip.py") if name.startswith("bieff")}
    assert ours <= {"bieff.features.errors", "bieff.features.errors.InputError"}


def test_nothing_but_cli_and_clip_lies_at_the_root():
    """setuptools would ship any other file as a module of bieff."""
    assert sorted(p.name for p in ROOT.glob("*.py")) == ["cli.py", "clip.py"]


def test_every_package_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {
        "bieff." + ".".join(path.parent.relative_to(ROOT).parts)
        for part in PARTS
        for path in python_files(part)
        if path.name == "__init__.py"
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
