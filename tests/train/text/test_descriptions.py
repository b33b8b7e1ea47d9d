"""Files of descriptions, in every form, and what is wrong with a wrong one."""

import json

import pytest
import torch

from bieff.features.errors import InputError
from bieff.train.text.wording import Descriptions, read_descriptions

HMDB = ("kick", "kick ball", "sword", "sword exercise")
TEXTS = (
    ("a person kicks",),
    ("kicking a ball", "football"),
    ("fencing",),
    ("a lone swordsman",),
)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


FORMS = {
    "by name.json": json.dumps(
        {
            "Sword_Exercise": TEXTS[3],
            "kick": TEXTS[0][0],
            "kick_ball": TEXTS[1],
            "sword": TEXTS[2][0],
        }
    ),
    "by order.json": json.dumps([TEXTS[0][0], TEXTS[1], TEXTS[2], TEXTS[3][0]]),
    "table.csv": "id,name\r\n0,a person kicks\r\n1,kicking a ball\r\n2,fencing\r\n"
    "3,a lone  swordsman \r\n1,football\r\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_says_the_same(tmp_path, name):
    read = read_descriptions(write(tmp_path / name, FORMS[name]), HMDB)
    assert read.texts == TEXTS
    assert read.source == name
    assert read.hash == Descriptions(TEXTS).hash
    assert not read.are_single


def test_a_line_a_class(tmp_path):
    lines = "\ufeffone\r\ntwo\r\nthree\r\nfour"
    read = read_descriptions(write(tmp_path / "names.txt", lines), HMDB)
    assert read.texts == (("one",), ("two",), ("three",), ("four",))
    assert read.are_single


def test_texts_and_whose_they_are():
    described = Descriptions(TEXTS)
    assert described.flat == [text for texts in TEXTS for text in texts]
    assert torch.equal(described.owners, torch.tensor([0, 1, 1, 2, 3]))
    assert Descriptions.of(HMDB).hash != described.hash
    assert Descriptions.of(HMDB).source is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "one\ntwo\nthree", "expected 4 classes, as the store has, got 3"),
        (
            "a.txt",
            "one\n\nthree\nfour",
            "of each of 4 classes, got none of class 1, 'kick ball'",
        ),
        ("a.json", "{", "not json: "),
        ("a.json", "3", "expected a JSON object or list, got 3"),
        ("a.json", '{"kick": 3}', "expected a text or a list of texts, got 3"),
        ("a.json", '{"kicks": "x"}', "the store has no class 'kicks'; did you mean 'kick'"),
        ("a.json", '{"kick": "x", "sword": "x"}', "got none of class 1, 'kick ball'"),
        ("a.json", '{"kick": []}', "got none of class 0, 'kick'"),
        (
            "a.json",
            '{"kick": "x", "kick ball": "x", "sword": "x", "Kick": "y"}',
            "expected each class once, got 'kick' twice; give it a list of texts",
        ),
        ("a.json", '{"kick": "x", "kick": "y"}', "each class once, got 'kick' twice"),
        ("a.json", '{"kick": {"a": "b"}}', "expected a text or a list of texts, got"),
        ("a.csv", "label,text\n", "expected a first line of id,name, got"),
        ("a.csv", "id,name\n1,x\n4,y\n", "expected ids from 0 to 3, got '4'"),
        ("a.csv", "id,name\n1,x\n-1,y\n", "expected ids from 0 to 3, got '-1'"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, name, text, message):
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        read_descriptions(write(tmp_path / name, text), HMDB)
    assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none.txt: no such file"):
        read_descriptions(tmp_path / "none.txt", HMDB)


def test_the_order_that_well_known_repositories_have_is_refused(tmp_path):
    """They put kick_ball before kick, and sword_exercise before sword."""
    swapped = write(
        tmp_path / "hmdb.csv", "id,name\n0,kick ball\n1,kick\n2,sword_exercise\n3,sword\n"
    )
    with pytest.raises(
        InputError, match=r"class 0 is 'kick', but is described as 'kick ball', "
    ):
        read_descriptions(swapped, HMDB)
