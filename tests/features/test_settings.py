from dataclasses import fields

import pytest
from click.testing import CliRunner

from bieff.cli import main
from bieff.extract.config import ExtractConfig
from bieff.features.errors import ConfigError
from bieff.features.settings import attribute_docs, settings_table, with_settings
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
    assert docs["deadline"] == (
        "Seconds a video may take to decode, beside a twentieth of one for each of its frames."
    )


@pytest.mark.parametrize("command", ["extract", "train"])
def test_the_commands_list_their_settings_and_do_no_more(command):
    result = CliRunner().invoke(main, [command, "--settings"])
    assert result.exit_code == 0, result.output
    assert "batch_size" in result.output


def test_settings_as_a_user_types_them():
    typed = ["batch_size=7", "deadline=5", "decoders = none", 'context="patches"', "crops=3"]
    config = with_settings(ExtractConfig(), {"frames": 8}, typed)
    assert config == ExtractConfig(
        frames=8, batch_size=7, deadline=5.0, context="patches", crops=3
    )
    assert type(config.deadline) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize=3", "unknown setting 'batchsize'; did you mean 'batch_size'"),
        ("zzz=1", "unknown setting 'zzz'; expected one of frames, "),
        ("frames", "--set: expected name=value, got 'frames'"),
        ("frames=x", "frames must be a whole number, got 'x'"),
        ("frames=2.5", "frames must be a whole number, got 2.5"),
        ("frames=true", "frames must be a whole number, got True"),
        ("frames=1\nclips=2", r"frames must be a whole number, got '1\nclips=2'"),
        ("frames=0x" + 5000 * "f", "frames must be a whole number, got a number of too many"),
        ("frames=1" + 5000 * "0", "frames must be a whole number, got '1000000000"),
        ("frames=9223372036854775808", "frames must be a whole number, got 92233720368547758"),
        ("decoders=a", "decoders must be a whole number or none, got 'a'"),
        ("decoders=" + 9000 * "[", "decoders must be a whole number or none, got '[[[[["),
        ("context=some", "context must be one of 'none', 'patches', got 'some'"),
        ("limit=0", "limit must be at least 1, got 0"),
        ("deadline=1e9", "deadline must be positive and at most 86400 seconds, got 1000000000"),
    ],
)
def test_a_setting_that_cannot_be_says_what_is_expected(text, message):
    with pytest.raises(ConfigError) as caught:
        with_settings(ExtractConfig(), {}, [text])
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 250


FINITE = {"extract": "deadline", "train": "lr"}


@pytest.mark.parametrize("command", FINITE)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1" + 400 * "0", "5\nseed=1"])
def test_no_command_takes_a_number_that_is_none(command, value):
    name = FINITE[command]
    where = {"extract": ["--dataset", "shapes"], "train": ["--features", "none"]}[command]
    result = CliRunner().invoke(main, [command, *where, "--set", f"{name}={value}"])
    assert result.exit_code == 1
    assert f"{name} must be a number, got " in result.output
    assert result.output.strip().count("\n") == 0
    assert isinstance(result.exception, SystemExit)


def test_a_file_of_settings_is_held_to_the_same(tmp_path):
    file = tmp_path / "mine.toml"
    for text, message in (
        ("lr = inf", "lr must be a number, got inf"),
        ("seed = 1" + 5000 * "0", "are not TOML: "),
        ("seed = " + 9000 * "[", "are not TOML: "),
    ):
        file.write_text(text)
        command = ["train", "--features", "none", "--config", str(file)]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1
        assert message in result.output
