import pytest

from bieff.features.errors import ConfigError
from bieff.train.text.wording import SETS, SINGLE, find_templates


def test_single_templates_are_those_of_the_method():
    texts = {name: find_templates(name).texts for name in SINGLE}
    assert texts == {
        "bare": ("{}",),
        "one": ("This is a video about {}",),
        "person": ("a video of a person {}.",),
    }
    assert find_templates("one").label == "This is a video about {}"


@pytest.mark.parametrize("name", SETS)
def test_sets_have_as_many_as_they_are_called(name):
    templates = find_templates(name)
    assert len(set(templates.texts)) == len(templates.texts) == int(name)
    assert all(text.count("{}") == 1 and text == text.strip() for text in templates.texts)
    assert templates.label == f"{name} templates"


def test_whose_they_are():
    assert "Human action of {}" in find_templates("16").texts
    assert "a demonstration of a person practicing {}." in find_templates("28").texts
    assert "a example of the person during {}." in find_templates("48").texts


def test_a_text_of_the_user_is_a_template():
    templates = find_templates("{}: look, {}")
    assert templates.fill("a {0} b") == ["a {0} b: look, a {0} b"]


@pytest.mark.parametrize("wanted", ["29", "a video", ""])
def test_anything_else_is_refused(wanted):
    with pytest.raises(
        ConfigError, match=f"one of bare, one, .*48, or a text .*got '{wanted}'"
    ):
        find_templates(wanted)
