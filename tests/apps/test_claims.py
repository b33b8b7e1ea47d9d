"""Stores and runs from somebody else name their CLIP: a claim, never an order."""

import json
import shlex
import shutil
from dataclasses import replace

import pytest
from helpers import fake_store as fake
from helpers import guarded
from helpers.places import TESTS
from helpers.training import quiet

from bieff import clip as clips
from bieff.clip import ClipName
from bieff.features.plan import recipe_hash
from bieff.train.config import load
from bieff.train.fit.loop import train

pytestmark = pytest.mark.slow  # every command is a process of its own

SHORT = ["epochs=2", "warmup_epochs=1", "batch_size=11", "eval_every=0"]

HUB = {"model": "hf-hub:bieff-nobody/bieff-nothing", "pretrained": None}
TAG = {"model": "ViT-B-32-quickgelu", "pretrained": "openai"}
URL = {"model": "RN50-quickgelu", "pretrained": "yfcc15m"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, a store, a run on it, and the exported store."""
    folder = tmp_path_factory.mktemp("claims")
    clip = fake.load_clip(folder / "clip")
    store = fake.write_store(folder / "features" / "fake", clip)
    train(store, clip, load(overrides=SHORT), folder / "runs" / "a", watch=quiet)
    return folder


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    """A copy of it, as if it came from somebody, with empty caches."""
    shutil.copytree(made, tmp_path / "got")
    record = json.loads((tmp_path / "got" / "runs" / "a" / "run.json").read_text())
    record["store"] = str(tmp_path / "got" / "features" / "fake")
    (tmp_path / "got" / "runs" / "a" / "run.json").write_text(json.dumps(record))
    (tmp_path / "got" / "no.mp4").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "got")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home" / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "got"


def alter(world, change):
    """Change the store's recipe, and keep its hash right; the new hash."""
    file = world / "features" / "fake" / "zarr.json"
    metadata = json.loads(file.read_text())
    held = metadata["attributes"]
    change(held["recipe"])
    held["recipe_hash"] = recipe_hash(held["recipe"])
    file.write_text(json.dumps(metadata))
    for marker in (world / "features" / "fake" / "ledger").iterdir():
        marker.write_text(
            json.dumps(json.loads(marker.read_text()) | {"recipe_hash": held["recipe_hash"]})
        )
    return held["recipe_hash"]


def claim(world, **name):
    """Let the store and the run say that they were made with another model."""
    changed = alter(world, lambda recipe: recipe["clip"].update(name))
    file = world / "runs" / "a" / "run.json"
    record = json.loads(file.read_text())
    record["clip"]["name"] |= name
    record["store_recipe_hash"] = changed
    file.write_text(json.dumps(record))


TRAIN = ("train", "--features", "features/fake", "--dry-run", "--set", "warmup_epochs=0")
NEED_THE_MODEL = {
    "train": TRAIN,
    "eval": ("eval", "runs/a"),
    "zeroshot": ("zeroshot", "fake", "--features", "features/fake", "--protocol", "full"),
    "predict": ("predict", "no.mp4", "--run", "runs/a"),
    "base2novel": ("base2novel", "--features", "features/fake"),
}


STORE = "features/fake"
LOOK = (
    ("store", "info", STORE),
    ("store", "info", STORE, "--statistics"),
    ("store", "verify", STORE),
    ("store", "export", STORE, "--to", "got.h5"),
    ("store", "import", "got.h5", "--to", "features/new"),
)


def test_nothing_of_a_stranger_calls_out(world):
    claim(world, **HUB)
    for done in guarded.run_all(*LOOK):
        assert (done["code"], done["calls"]) == (0, []), done
    for name in (HUB, TAG, URL):
        claim(world, **name)
        for done in guarded.run_all(*NEED_THE_MODEL.values()):
            assert (done["code"], done["calls"]) == (1, []), done
            assert done["said"].count("\n") == 1
            assert f"CLIP {str(ClipName(**name))!r} is not in the cache" in done["said"]
            assert f"give {shlex.join(ClipName(**name).words)} to download it" in done["said"]


def test_a_model_that_the_user_names_is_downloaded(world):
    claim(world, **HUB)
    (done,) = guarded.run_all((*TRAIN, "--model", HUB["model"]))
    assert done["code"] == 1
    assert "cannot load CLIP 'hf-hub:bieff-nobody/bieff-nothing'" in done["said"]
    assert done["calls"]


TRANSFORMERS = """
import pathlib

class AutoTokenizer:
    @classmethod
    def from_pretrained(cls, *arguments, **options):
        pathlib.Path(__file__).with_name("ran").write_text(str(options))
        raise ValueError("a stranger's Python has run")
"""


def test_a_strangers_model_runs_no_code(world, tmp_path):
    config = world / "clip" / "open_clip_config.json"
    values = json.loads(config.read_text())
    values["model_cfg"]["text_cfg"] |= {
        "hf_tokenizer_name": "x",
        "tokenizer_kwargs": {"trust_remote_code": True},
    }
    config.write_text(json.dumps(values))
    model = f"local-dir:{world / 'clip'}"
    claim(world, model=model)
    library = tmp_path / "library" / "transformers"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text(TRANSFORMERS)
    path = {"PYTHONPATH": f"{tmp_path / 'library'}:{TESTS}"}
    for done in guarded.run_all(*NEED_THE_MODEL.values(), **path):
        assert done["code"] == 1
        assert f"give --model {model} if you trust it" in done["said"]
    named = [(*command, "--model", model) for command in NEED_THE_MODEL.values()]
    for done in guarded.run_all(*named, **path):
        assert done["code"] == 1
        assert "its text_cfg sets 'hf_tokenizer_name' to 'x', which is not" in done["said"]
    assert not (library / "ran").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda recipe: recipe["views"].update(val=[{"clips": "3"}]), "of partition 'val' in"),
        (lambda recipe: recipe.pop("data_set"), "does not say of which data set it is"),
        (lambda recipe: recipe.update(data_set="\n"), "does not say of which data set it is"),
    ],
)
def test_a_recipe_that_is_none_is_one_sentence(world, change, expected):
    alter(world, change)
    command = [*NEED_THE_MODEL["zeroshot"], "--model", f"local-dir:{world / 'clip'}"]
    command[command.index("full")] = "closed"
    for done in guarded.run_all(command):
        assert done["code"] == 1, done
        assert done["said"].count("\n") == 1, done
        assert expected in done["said"]


def test_a_folder_that_the_user_names_is_compared(world):
    model = f"local-dir:{world / 'clip'}"
    named = [(*NEED_THE_MODEL[command], "--model", model) for command in ("train", "eval")]
    for done in guarded.run_all(*named):
        assert (done["code"], done["calls"]) == (0, []), done
    shutil.rmtree(world / "clip")
    fake.write_clip(world / "clip", seed=1)
    for done in guarded.run_all(*named):
        assert done["code"] == 1
        assert "was made with CLIP" in done["said"]


def test_the_activation_is_part_of_the_clip(tmp_path, monkeypatch):
    """Its weights are the same, and so is their fingerprint."""
    monkeypatch.chdir(tmp_path)
    ours = clips.load(ClipName(model="ViT-B-32", pretrained="random:1"))
    name = ClipName(model="ViT-B-32-quickgelu", pretrained="random:1")
    store = fake.write_store(tmp_path / "ours", ours, counts={"train": 20, "val": 4}, frames=2)
    fake.write_store(tmp_path / "other", replace(ours, name=name), counts={"val": 4}, frames=2)
    train(store, ours, load(overrides=SHORT), tmp_path / "run", watch=quiet)
    other, own = guarded.run_all(("eval", "run", "--features", "other"), ("eval", "run"))
    assert other["code"] == 1
    assert "was made with CLIP 'ViT-B-32/random:1'" in other["said"]
    assert own["code"] == 0
