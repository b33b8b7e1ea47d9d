"""The browser that tests of pages use: does it see what goes wrong?"""

import pytest
from PIL import Image

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>p</title>
<style>
p {{ color: black }}
@media (prefers-color-scheme: dark) {{ p {{ color: white }} }}
</style>
<p style="width: {width}px">words</p>{more}</html>"""


@pytest.fixture
def page(tmp_path):
    def write(*, width=100, more=""):
        path = tmp_path / "page.html"
        path.write_text(PAGE.format(width=width, more=more))
        return path

    return write


def test_a_quiet_page(browser, page, tmp_path):
    path = page()
    browser.open(path)
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]
    assert browser.overflow() == 0
    assert browser.screenshot(tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "more",
    [
        "<script>throw new Error('broken')</script>",
        "<script>console.error('broken')</script>",
        "<img alt='' src='broken.png'>",
    ],
)
def test_what_is_broken_is_told(browser, page, more):
    browser.open(page(more=more))
    complaints = browser.complaints()
    assert len(complaints) == 1
    assert "broken" in complaints[0]


def test_it_sees_light_dark_and_phones(browser, page, tmp_path):
    browser.open(page(width=600))
    colour = "return getComputedStyle(document.querySelector('p')).color"
    assert browser.run(colour) == "rgb(0, 0, 0)"
    browser.look((390, 844), dark=True)
    assert browser.run(colour) == "rgb(255, 255, 255)"
    assert browser.overflow() >= 210


def test_a_screenshot_holds_the_whole_page(browser, page, tmp_path):
    browser.open(page(more="<p>line" * 500))
    with Image.open(browser.screenshot(tmp_path / "page.png")) as shot:
        assert shot.width == 1280
        assert shot.height > 5000
