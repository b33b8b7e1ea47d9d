"""Readable class names, and what the spellings of one class have in common."""

import pytest

from bieff.extract.datasets import official
from bieff.features.class_names import LabelIndex, has_sides, key, readable
from bieff.features.errors import InputError


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ApplyEyeMakeup", "Apply Eye Makeup"),
        ("YoYo", "Yo Yo"),
        ("MakeDVDCover", "Make DVD Cover"),
        ("Basketball", "Basketball"),
        ("brush_hair", "brush hair"),
        ("riding_a_BMX", "riding a BMX"),
        ("riding a BMX", "riding a BMX"),
        ("playing  xBox ", "playing xBox"),
        ("iPhone", "iPhone"),
        ("skiing (not slalom or crosscountry)", "skiing (not slalom or crosscountry)"),
        ("massaging_person's_head", "massaging person's head"),
    ],
)
def test_readable(name, words):
    assert readable(name) == words
    assert readable(words) == words


def test_readable_agrees_with_the_shipped_names():
    """The CLIP authors' spelling differs from ours in one class of 101."""
    pairs = official.class_names("ucf101") + official.class_names("hmdb51")
    differing = [(name, words) for name, words in pairs if readable(name) != words]
    assert differing == [("HandstandPushups", "Hand Stand Pushups")]


@pytest.mark.parametrize("name", ["k400", "k600"])
def test_kinetics_names_stay_as_they_are(name):
    assert all(name == words == readable(name) for name, words in official.class_names(name))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("riding_a_bike", "riding a bike"),
        ("ApplyEyeMakeup", "Apply Eye Makeup"),
        ("massaging_persons_head", "massaging person's head"),
        ("petting_animal_(not_cat)", "petting animal (not cat)"),
        ("HandStandPushups", "HandstandPushups"),
    ],
)
def test_spellings_of_a_class_have_one_key(one, other):
    assert key(one) == key(other)


def test_different_classes_have_different_keys():
    for name in ("k400", "k600", "ucf101", "hmdb51"):
        names = [raw for raw, _ in official.class_names(name)]
        index = LabelIndex(names, source=name)
        assert [index.find(raw) for raw in names] == list(range(len(names)))
        assert len({key(raw) for raw in names}) == len(names)


def test_names_without_letters_keep_apart():
    assert key("#") != key("&")


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(InputError, match=r"x: classes 0 and 2 are both called 'Brush_Hair'"):
        LabelIndex(["brush hair", "kick", "Brush_Hair"], source="x")


def test_sides():
    assert has_sides(["star moving left", "ring growing"])
    assert not has_sides(["leftovers", "copyright", "cleft lip"])
