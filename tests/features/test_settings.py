from dataclasses import fields

import pytest
from click.testing import CliRunner

from bieff.cli import main
from bieff.extract.config import ExtractConfig
from bieff.features.settings import attribute_docs, settings_table
from bieff.train.config import TrainConfig


@pytest.mark.parametrize("config", [ExtractConfig, TrainConfig])
def test_every_setting_says_what_it_is(config):
    _, rows = settings_table(config)
    assert [row[0] for row in rows] == [field.name for field in fields(config)]
    assert all(len(what) > 8 for _, _, what in rows)


def test_defaults_and_choices_are_shown():
    rows = {name: (default, what) for name, default, what in settings_table(TrainConfig)[1]}
    assert rows["batch_size"][0] == "32"
    assert rows["word_guided"][0] == "true"
    assert rows["design"][0] == "paper"
    assert "a1, a2, a3" in rows["design"][1]


def test_a_document_is_that_of_its_own_attribute():
    docs = attribute_docs(ExtractConfig)
    assert docs["deadline"] == "Seconds a video may take to decode."


@pytest.mark.parametrize("command", ["extract", "train"])
def test_the_commands_list_their_settings_and_do_no_more(command):
    result = CliRunner().invoke(main, [command, "--settings"])
    assert result.exit_code == 0, result.output
    assert "batch_size" in result.output
