import dataclasses
import json

import pytest

from bieff.features.errors import ConfigError
from bieff.train.config import TrainConfig, load, preset
from bieff.train.text.wording import HAND_CRAFTED

# Sec. 4.1 and the default ("marked in gray") rows of Tables 4 to 10
PAPER = {
    "epochs": 50,
    "warmup_epochs": 5,
    "batch_size": 32,
    "lr": 5e-4,
    "weight_decay": 0.2,
    "temperature": 0.01,
    "num_context": 16,
    "temporal_layers": 3,
    "prompt": "pre-prompt",
    "design": "paper",
    "post_prompt": True,
    "word_guided": True,
    "mean_pool": True,
    "word_source": "classes",
    "alpha": 0.1,
    "beta": 0.1,
    "word_temperature": 1.0,
    "clip_grad": 0.0,
}


def test_defaults_are_the_papers():
    values = TrainConfig().to_dict()
    assert {name: values[name] for name in PAPER} == PAPER
    assert preset("paper") == TrainConfig() == load()


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("batch_size=8", "batch_size", 8),
        ("lr=1e-3", "lr", 1e-3),
        ("lr = 1", "lr", 1.0),
        ("post_prompt=false", "post_prompt", False),
        ("design=a1", "design", "a1"),
        ('design="a1"', "design", "a1"),
        ("prompt=pre-prompt", "prompt", "pre-prompt"),
        ("frames=8", "frames", 8),
        ("frames=none", "frames", None),
        ("word_source=words", "word_source", "words"),
    ],
)
def test_an_override_takes_the_type_of_its_setting(text, name, value):
    got = getattr(load(overrides=[text]), name)
    assert got == value
    assert type(got) is type(value)


def test_file_goes_over_preset_and_override_over_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('epochs = 10\nword_source = "words"\nalpha = 1\n')
    config = load(path, ["epochs=7", "seed=3", "seed=4"], base="released")
    assert config == dataclasses.replace(
        preset("released"), epochs=7, word_source="words", alpha=1.0, seed=4
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize=8", "unknown setting 'batchsize'; did you mean 'batch_size'?"),
        ("tau=1", "unknown setting 'tau'; expected one of temporal_layers, "),
        ("epochs", "--set: expected name=value, got 'epochs'"),
        ("epochs=2.5", "epochs must be a whole number, got 2.5"),
        ("epochs=true", "epochs must be a whole number, got True"),
        ("epochs=many", "epochs must be a whole number, got 'many'"),
        ("epochs=", "epochs must be a whole number, got ''"),
        ("epochs=1\nseed=2", r"epochs must be a whole number, got '1\nseed=2'"),
        ("epochs=0", "epochs must be positive, got 0"),
        ("lr=fast", "lr must be a number, got 'fast'"),
        ("lr=nan", "lr must be a number, got nan"),
        ("lr=0", "lr must be positive, got 0.0"),
        ("temperature=inf", "temperature must be a number or none, got inf"),
        ("weight_decay=-0.1", "weight_decay must not be negative, got -0.1"),
        ("temporal_layers=300000", "temporal_layers must be at most 100, got 300000"),
        ("post_layers=101", "post_layers must be at most 100, got 101"),
        ("num_context=1000000000", "num_context must be at most 1000, got 1000000000"),
        ("frames=0", "frames must be positive, got 0"),
        ("post_prompt=1", "post_prompt must be true or false, got 1"),
        ("post_prompt=True", "post_prompt must be true or false, got 'True'"),
        ("design=a4", "design must be one of 'paper', 'a1', 'a2', 'a3', got 'a4'"),
        ("design=[1]", "design must be one of 'paper', 'a1', 'a2', 'a3', got [1]"),
        ("warmup_epochs=50", "warmup_epochs must be in [0, epochs), got 50 with epochs=50"),
    ],
)
def test_a_setting_that_cannot_be_says_what_is_expected(text, message):
    with pytest.raises(ConfigError) as caught:
        load(overrides=[text])
    assert str(caught.value).startswith(message)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(
        ConfigError, match=r"design 'a1' is one of the Pre-Prompt, got prompt='n"
    ):
        load(overrides=["design=a1", "prompt=none"])
    with pytest.raises(ConfigError, match="mean_pool=false leaves no video embedding"):
        load(overrides=["mean_pool=false"], base="baseline")


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read settings '.*none.toml': No such file"):
        load(tmp_path / "none.toml")
    path = tmp_path / "bad.toml"
    path.write_text("epochs: 10\n")
    with pytest.raises(ConfigError, match=r"settings '.*bad.toml' are not TOML: "):
        load(path)
    path.write_text("[train]\nepochs = 10\n")
    with pytest.raises(ConfigError, match="unknown setting 'train'"):
        load(path)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="no preset 'tiny'; expected one of 'words', 'p"):
        load(base="tiny")


@pytest.mark.parametrize("name", ["words", "paper", "baseline", "released"])
def test_a_config_survives_json(name):
    config = dataclasses.replace(preset(name), frames=13)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_presets_say_only_what_differs_from_the_paper():
    from bieff.train.config import PRESETS

    for values in PRESETS.values():
        assert not values.items() & TrainConfig().to_dict().items()


def test_a_whole_number_longer_than_any_float_is_refused():
    with pytest.raises(ConfigError, match=r"lr must be a number, got 10{59}\.\.\. \(401 ch"):
        load(overrides=["lr=1" + 400 * "0"])


def test_words_start_at_frozen_clip_and_change_nothing_else():
    words = preset("words")
    assert words == TrainConfig(
        context_start="This is a video about", normalise="frames", temperature=None
    )
    assert words.context_start + " {}" == HAND_CRAFTED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("context_start=a clip of", "a clip of"),
        ('context_start="a clip of"', "a clip of"),
        ("context_start=random", "random"),
    ],
)
def test_words_are_given_as_they_are(text, expected):
    assert load(overrides=[text]).context_start == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("context_start=", "context_start must be words or random, got ''"),
        ("context_start=a\nb", r"context_start must be words on one line, got 'a\\nb'"),
        ("context_start=3", "context_start must be words on one line, got 3"),
        ("context_start=none", "context_start must be words or random, got 'none'"),
    ],
)
def test_words_that_are_none_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        load(overrides=[text])


def test_a_config_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3  # type: ignore[misc]
