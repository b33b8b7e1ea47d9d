"""The pictures of README.md: there, small, shown, and made by docs/pictures/make.py."""

import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from helpers.places import ROOT
from PIL import Image

FOLDER = ROOT / "docs" / "pictures"
SHOWN = re.compile(r"!\[([^\]]+)\]\(([^)\s]+)\)")
MOST_BYTES = 300_000


@pytest.fixture(scope="module")
def script():
    return SimpleNamespace(**runpy.run_path(str(FOLDER / "make.py")))


def committed():
    return {path.name for path in FOLDER.iterdir() if path.suffix in (".png", ".svg")}


def look(path):
    """Raises where a picture is broken; an SVG must load nothing from elsewhere."""
    if path.suffix == ".svg":
        text = path.read_text()
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)
        assert "href" not in text
        return
    with Image.open(path) as image:
        image.load()
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24)) > 30


def test_readme_shows_every_picture_and_says_what_is_on_it():
    shown = {
        Path(target): alt for alt, target in SHOWN.findall((ROOT / "README.md").read_text())
    }
    assert {path.name for path in shown} == committed()
    assert all((ROOT / path).parent == FOLDER for path in shown)
    assert all(len(alt.split()) > 5 for alt in shown.values())


def test_the_pictures_are_whole_and_small():
    paths = [FOLDER / name for name in committed()]
    assert len(paths) >= 4
    for path in paths:
        look(path)
    assert sum(path.stat().st_size for path in paths) < MOST_BYTES


def test_a_folder_without_a_demo_is_a_sentence(script, tmp_path):
    with pytest.raises(SystemExit, match="holds no finished demo; make one with"):
        script.make(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_script_makes_them(script, world, tmp_path):
    if missing := [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]:
        pytest.skip(f"no {' and no '.join(missing)} here, so no picture was made")
    made = script.make(world, tmp_path / "out")
    assert {path.name for path in made} == committed()
    for path in made:
        look(path)
    said = (tmp_path / "out" / "predict.svg").read_text()
    assert "bieff&#160;predict&#160;clip.mp4" in said
    assert said.count("heart&#160;moving&#160;right") == 2  # asked for, and scored
    with Image.open(tmp_path / "out" / "report.png") as image:
        assert image.size == (1280, script.REPORT_HEIGHT)
