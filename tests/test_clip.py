"""Loading CLIP by every kind of name, and what is said when that fails."""

import copy
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.places import SHARED
from helpers.whole_prompts import FORMS, IdsByWord
from safetensors.torch import load_file, save_file

from bieff import clip as clips
from bieff.clip import TINYCLIP, Claim, ClipName, TokenForm, fingerprint, load
from bieff.clip import import_open_clip as open_clip
from bieff.features.errors import BieffError, InputError, StoreMismatchError

MODEL = Path(clips.__file__).parent / "extract" / "tinyclip" / "model"


@pytest.fixture(scope="module")
def tiny():
    return load(ClipName(model=TINYCLIP, pretrained=None))


def test_tinyclip_is_a_frozen_open_clip_model(tiny):
    assert tiny.dim == 128
    assert tiny.preprocessing.size == 48
    assert not tiny.model.training
    assert not any(p.requires_grad for p in tiny.model.parameters())
    assert tiny.tokenize(["star moving left"]).shape == (1, 77)


def test_tokens_are_those_of_clip(tiny):
    tokens = tiny.tokenize(["star moving left", "a star"])
    assert tokens[0, [0, 4]].tolist() == [49406, 49407]
    assert tokens[1, [0, 3]].tolist() == [49406, 49407]
    assert tokens[0, 1] == tokens[1, 2]
    assert not tokens[0, 5:].any()


def test_its_size_on_disk_and_off_the_token_table(tiny):
    table = tiny.model.token_embedding.weight
    others = sum(p.numel() for p in tiny.model.parameters()) - table.numel()
    assert 1.2e6 < others < 1.8e6
    assert (table.abs().sum(dim=1) > 0).sum() < 200  # rows that captions never used are zero


def test_a_local_folder_is_the_same_model(tiny):
    again = load(ClipName(model=f"local-dir:{MODEL}", pretrained=None))
    assert again.fingerprint == tiny.fingerprint


def test_the_fingerprint_sees_one_changed_bit(tiny):
    weights = {k: v.clone() for k, v in tiny.model.state_dict().items()}
    other = load(ClipName(model=TINYCLIP, pretrained=None)).model
    assert fingerprint(other) == tiny.fingerprint
    weights["ln_final.bias"][3] += 1e-6
    other.load_state_dict(weights)
    assert fingerprint(other) != tiny.fingerprint


@pytest.mark.slow  # a process that loads a large model
def test_random_weights_are_drawn_where_open_clip_leaves_memory_as_it_was():
    """CoCa's decoder has a projection that nobody sets."""
    program = (
        "import torch; from bieff.clip import ClipName, load;"
        "junk = [torch.randn(1000, 1000) for _ in range(200)]; del junk;"
        "print(load(ClipName(model='coca_ViT-B-32', pretrained='random')).fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, check=True
    )
    here = load(ClipName(model="coca_ViT-B-32", pretrained="random"))
    assert done.stdout.decode().strip() == here.fingerprint
    assert not any(weight.isnan().any() for weight in here.model.parameters())


def test_random_weights_are_seeded_and_leave_the_generator_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = load(ClipName(model="ViT-S-32-alt", pretrained="random:5"))
    assert torch.equal(torch.rand(3), expected)
    assert (
        load(ClipName(model="ViT-S-32-alt", pretrained="random:5")).fingerprint
        == first.fingerprint
    )
    assert (
        load(ClipName(model="ViT-S-32-alt", pretrained="random:6")).fingerprint
        != first.fingerprint
    )


def test_a_weights_file(tmp_path):
    source = load(ClipName(model="ViT-S-32-alt", pretrained="random:5"))
    file = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in source.model.state_dict().items()}, file)
    read = load(ClipName(model="ViT-S-32-alt", pretrained=str(file)))
    assert read.fingerprint == source.fingerprint
    taken = "bicubic, shortest, mean 0.481 0.458 0.408, std 0.269 0.261 0.276, GELU"
    assert read.read_as == taken
    assert f"{file}: not known to open_clip, read with bicubic, shortest, mean" in read.note
    assert source.note is source.read_as is None


@pytest.fixture(scope="module")
def small():
    """A model of open_clip's by name, made small."""
    config = open_clip().get_model_config("ViT-S-32-alt")
    config["vision_cfg"] |= {"layers": 1, "width": 64}
    config["text_cfg"] |= {"layers": 1, "width": 64}
    configs = importlib.import_module("open_clip.factory")._MODEL_CONFIGS
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(configs, "ViT-S-32-alt", config)
        yield load(ClipName(model="ViT-S-32-alt", pretrained="random:5"))


@pytest.fixture
def tags(monkeypatch):
    """Tags of the small model, as open_clip keeps them."""
    held = {"webli": {**open_clip().get_pretrained_cfg("ViT-B-16-SigLIP", "webli")}}
    held["quick"] = {**open_clip().get_pretrained_cfg("ViT-B-16", "openai")}
    published = importlib.import_module("open_clip.pretrained")._PRETRAINED
    monkeypatch.setitem(published, "ViT-S-32-alt", held)
    return held


def read_file(file, tag=None):
    pretrained = str(file) if tag is None else f"{tag}={file}"
    return load(ClipName.of("ViT-S-32-alt", pretrained))


def test_a_tag_says_how_its_file_is_read(small, tags, tmp_path):
    file = tmp_path / "a=b.pt"
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in small.model.state_dict().items()}}, file
    )
    read = read_file(file, "webli")
    assert read.fingerprint == small.fingerprint
    assert read.preprocessing.mean == (0.5, 0.5, 0.5)
    assert read.preprocessing.resize_mode == "squash"
    assert (read.read_as, read.note) == ("webli", None)
    assert read_file(file).preprocessing.resize_mode == "shortest"
    with pytest.raises(InputError, match="weights 'quick' do not fit the activation of 'ViT-S"):
        read_file(file, "quick")
    with pytest.raises(InputError, match=r"no weights 'wbli' for .* or one of webli, quick"):
        read_file(file, "wbli")
    with pytest.raises(InputError, match=r"--pretrained webli=/none\.pt: there is no file"):
        read_file("/none.pt", "webli")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_a_file_that_is_published_is_known_by_its_checksum(small, tags, tmp_path):
    """OpenAI's are programs of TorchScript: only the very files are run."""
    file = tmp_path / "weights.pt"
    model = copy.deepcopy(small.model)
    model.attn_mask = model._buffers.pop("attn_mask")  # as OpenAI's have it: no weight
    torch.jit.script(model).save(file)
    with pytest.raises(InputError, match="a program of TorchScript and not one that OpenAI"):
        read_file(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    tags["webli"]["url"] = f"https://openaipublic.azureedge.net/clip/models/{digest}/x.pt"
    read = read_file(file)
    assert read.fingerprint == small.fingerprint
    assert read.preprocessing.resize_mode == "squash"
    assert read.note == f"{file}: known to open_clip as 'webli' by its checksum"
    with pytest.raises(
        InputError, match="holds the weights 'webli' of 'ViT-S-32-alt', got tag"
    ):
        read_file(file, "quick")
    # open_clip's authors give eight digits, which name weights and do not vouch for a program
    tags["webli"]["url"] = f"https://github.com/mlfoundations/open_clip/x-{digest[:8]}.pt"
    with pytest.raises(InputError, match="a program of TorchScript"):
        read_file(file)


def test_known_weights_of_another_model_are_not_taken(small, tags, tmp_path):
    """LAION's under -quickgelu would load, and be wrong."""
    file = tmp_path / "weights.pt"
    torch.save(small.model.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    tags["webli"]["url"] = f"https://github.com/mlfoundations/open_clip/x-{digest[:8]}.pt"
    for model in ("ViT-B-32-quickgelu", "ViT-B-16"):
        with pytest.raises(
            InputError, match=r"no weights 'webli' for .*; use --model ViT-S-32-al"
        ):
            load(ClipName(model=model, pretrained=str(file)))


def test_a_file_of_something_else_is_a_sentence_without_torchs_advice(small, tmp_path):
    file = tmp_path / "notes.pt"
    file.write_bytes(b"not weights at all")
    with pytest.raises(InputError, match=r"notes\.pt holds something else than tensors; take"):
        read_file(file)


def test_weights_of_transformers_are_a_sentence(small, tmp_path):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"vision_model.embeddings.class_embedding": torch.zeros(3)}, file)
    with pytest.raises(
        InputError, match="have transformers' names, expected open_clip's; take"
    ):
        read_file(file)


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-61", "openai", r"unknown CLIP model 'ViT-B-61'; did you mean 'ViT-B-16'\?"),
        ("siglip2", "webli", "did you mean 'ViT-B-16-SigLIP2'"),
        ("pe-core-b/16", "meta", "did you mean 'PE-Core-B-16'"),
        (
            "ViT-B-16",
            "openai",
            "do not fit the activation of 'ViT-B-16'; use --model ViT-B-16-quickgelu",
        ),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "no weights 'laion2b_s34b_b79k' for"),
        (
            "ViT-B-16-quickgelu",
            "opnai",
            "expected the path of a file, 'random', or one of openai",
        ),
        ("ViT-B-16-quickgelu", "random:x", "expected 'random' or 'random:SEED'"),
        ("local-dir:/nowhere", None, "cannot load CLIP 'local-dir:/nowhere': .*No such file"),
    ],
)
def test_what_is_said_of_a_wrong_name(model, pretrained, message):
    with pytest.raises(InputError, match=message):
        load(ClipName(model=model, pretrained=pretrained))


def test_damaged_weights_are_named(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    weights = tmp_path / "model" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot load CLIP 'local-dir:"):
        load(ClipName(model=f"local-dir:{tmp_path / 'model'}", pretrained=None))


def test_weights_of_another_shape_are_named(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    weights = tmp_path / "model" / "open_clip_model.safetensors"
    state = load_file(weights)
    state["ln_final.weight"] = torch.ones(64, dtype=torch.float16)
    save_file(state, weights)
    with pytest.raises(InputError, match=r"size mismatch for ln_final\.weight"):
        load(ClipName(model=f"local-dir:{tmp_path / 'model'}", pretrained=None))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("resize_mode", "fill", "'longest' or 'squash', got 'fill', which is"),
        ("interpolation", "random", "'bicubic' or 'bilinear', got 'random'"),
        ("mode", "L", "expected mode 'RGB', got 'L'"),
        ("mean", [0.5, 0.5], r"three numbers as mean and as std, .* got \(0.5, 0.5\), "),
        ("std", [0.5, 0.5, "x"], "three numbers as mean and as std"),
        ("fill_color", 256, "a fill_color of 0 to 255, got .* and 256"),
    ],
)
def test_a_preprocessing_that_is_not_known_is_refused(tmp_path, key, value, message):
    shutil.copytree(MODEL, tmp_path / "model")
    config = tmp_path / "model" / "open_clip_config.json"
    values = json.loads(config.read_text())
    values["preprocess_cfg"][key] = value
    config.write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        load(ClipName(model=f"local-dir:{tmp_path / 'model'}", pretrained=None))


def test_an_input_that_is_not_square_is_refused(monkeypatch):
    config = open_clip().get_model_config("ViT-S-32-alt")
    config["vision_cfg"]["image_size"] = [64, 96]
    configs = importlib.import_module("open_clip.factory")._MODEL_CONFIGS
    monkeypatch.setitem(configs, "ViT-S-32-alt", config)
    with pytest.raises(InputError, match="expected a square input, got 64x96"):
        load(ClipName(model="ViT-S-32-alt", pretrained="random"))


@pytest.mark.parametrize(
    ("tower", "key", "value"),
    [
        ("text_cfg", "hf_model_name", "somebody/model"),
        ("text_cfg", "hf_tokenizer_name", "somebody/tokenizer"),
        ("text_cfg", "tokenizer_kwargs", {"trust_remote_code": True}),
        ("text_cfg", "tokenizer_kwargs", {"bpe_path": "/etc/passwd"}),
        ("text_cfg", "trust_remote_code", True),
        ("vision_cfg", "timm_model_name", "hf-hub:somebody/model"),
        ("vision_cfg", "timm_model_name", "local-dir:/somewhere"),
        ("vision_cfg", "timm_model_name", ["a"]),
        ("vision_cfg", "something", 1),
    ],
)
def test_a_configuration_asks_for_no_more_than_towers(tmp_path, tower, key, value):
    shutil.copytree(MODEL, tmp_path / "model")
    config = tmp_path / "model" / "open_clip_config.json"
    values = json.loads(config.read_text())
    values["model_cfg"][tower][key] = value
    config.write_text(json.dumps(values))
    with pytest.raises(
        InputError, match=f"its {tower} sets '{key}' to .*, which is not one of"
    ):
        load(ClipName(model=f"local-dir:{tmp_path / 'model'}", pretrained=None))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_cfg": 3}', "[" * 100_000])
def test_a_configuration_that_is_none_is_a_sentence(tmp_path, content):
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model" / "open_clip_config.json").write_text(content)
    with pytest.raises(InputError, match="cannot load CLIP 'local-dir:") as caught:
        load(ClipName(model=f"local-dir:{tmp_path / 'model'}", pretrained=None))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["R11_empty.pt", "R11_torchscript.pt"])
def test_weights_that_are_none_are_a_sentence(name):
    file = SHARED / "cases" / "field" / name
    if not file.exists():
        pytest.skip("the shared cases are not here")
    with pytest.raises(InputError, match="cannot load CLIP 'ViT-S-32-alt/") as caught:
        load(ClipName(model="ViT-S-32-alt", pretrained=str(file)))
    assert "\n" not in str(caught.value)


def test_a_claim_is_compared_and_not_obeyed(tiny, tmp_path):
    held = {"model": TINYCLIP, "pretrained": None, "fingerprint": tiny.fingerprint}
    assert Claim.of(held, source=tmp_path).load(named=None).fingerprint == tiny.fingerprint
    for change, message in (
        ({"model": f"local-dir:{MODEL}"}, "is read only where you name it; give --model local"),
        ({"model": "ViT-B-32", "pretrained": "/etc/passwd"}, "is read only where you name it"),
        (
            {"model": "ViT-B-32", "pretrained": "a.pt"},
            "give --model ViT-B-32 --pretrained a.pt",
        ),
        ({"fingerprint": "0" * 64}, "fingerprint 000000000000, got 'tinyclip', "),
        ({"fingerprint": None}, "does not say which CLIP it was made with"),
        ({"model": "a\x1b[31m"}, "does not say which CLIP it was made with"),
        ({"model": ["x"]}, "does not say which CLIP it was made with"),
    ):
        with pytest.raises(BieffError, match=re.escape(message)):
            Claim.of({**held, **change}, source=tmp_path).load(named=None)
    other = Claim.of({**held, "model": f"local-dir:{MODEL}"}, source=tmp_path)
    named = ClipName(model=f"local-dir:{MODEL}", pretrained=None)
    assert other.load(named=named).fingerprint == tiny.fingerprint


def test_the_activation_is_known_by_name(tiny, tmp_path):
    """The fingerprint sees weights alone, and both have the same."""
    plain = ClipName(model="ViT-B-16", pretrained="openai")
    quick = ClipName(model="ViT-B-16-quickgelu", pretrained="openai")
    Claim(plain, tiny.fingerprint, tmp_path).require(replace(tiny, name=plain))
    with pytest.raises(StoreMismatchError, match="made with CLIP 'ViT-B-16/openai', fingerp"):
        Claim(plain, tiny.fingerprint, tmp_path).require(replace(tiny, name=quick))


def test_a_text_that_does_not_fit_is_refused(tiny):
    with pytest.raises(InputError, match="expected at most 77 tokens with start and end"):
        tiny.tokenize(["star " * 80])
    with pytest.raises(InputError, match="a class name is empty"):
        tiny.tokenize(["star", " "])


def test_a_text_of_just_the_length_fits(tiny):
    assert tiny.tokenize(["star " * 75]).count_nonzero() == 77
    with pytest.raises(InputError, match="expected at most 77 tokens"):
        tiny.tokenize(["star " * 76])


def test_the_form_of_clips_own_tokenizer(tiny):
    assert tiny.form == TokenForm(start=49406, end=49407, padding=0)
    own = tiny.form.words(tiny.tokenize(["!$ star"])[0])
    assert own[0] == 0  # a token of its own, and the padding
    assert len(own) == 3


@pytest.mark.parametrize("name", FORMS)
def test_the_form_of_any_tokenizer_is_found(tiny, name):
    form = FORMS[name]
    clip = replace(tiny, _tokenizer=IdsByWord(form, 11))
    assert clip.form == form
    for count in (1, 5, 10 - (form.start is not None)):
        (row,) = clip.tokenize(["star " * count])
        assert len(clip.form.words(row)) == count
    with pytest.raises(InputError, match="expected at most 11 tokens with start and end, got"):
        clip.tokenize(["star " * (count + 1)])


def test_a_tokenizer_of_no_known_form_is_refused(tiny):
    def class_token_last(texts, context_length=7):
        rows = torch.zeros(len(texts), context_length, dtype=torch.int64)
        rows[:, 0], rows[:, 1], rows[:, -1] = 1, torch.arange(len(texts)) + 3, 2
        return rows

    with pytest.raises(InputError, match="expected a text between start, end and padding, got"):
        replace(tiny, _tokenizer=class_token_last).tokenize(["star"])


def test_names_that_are_the_same_to_the_tokenizer_are_refused(tiny):
    signs = ["C++ coding", "C coding", "zoom in (+)", "zoom in (-)"]
    assert len(set(map(tuple, tiny.tokenize_names(signs).tolist()))) == 4
    message = "class names 'rock & roll' and 'rock &amp; roll' are the same to CLIP 'tinyclip'"
    with pytest.raises(InputError, match=message):
        tiny.tokenize_names(["star", "rock & roll", "rock &amp; roll"])

    def letters_alone(texts, context_length=11):
        plain = [re.sub(r"[^a-z ]", "", text.lower()) for text in texts]
        return IdsByWord(FORMS["SigLIP"], 11)(plain, context_length)

    siglip = replace(tiny, _tokenizer=letters_alone)
    with pytest.raises(InputError, match=r"'C\+\+ coding' and 'C coding' are the same to"):
        siglip.tokenize_names(signs)
    with pytest.raises(InputError, match=r"class name '\+': the tokenizer .* leaves nothing"):
        siglip.tokenize_names(["star", "+"])


def test_names_are_completed():
    assert ClipName.of(TINYCLIP, None) == ClipName(model=TINYCLIP, pretrained=None)
    with pytest.raises(InputError, match="brings its own weights, got pretrained='openai'"):
        ClipName.of(TINYCLIP, "openai")
    with pytest.raises(InputError, match="needs weights; add --pretrained with one of webli, "):
        ClipName.of("ViT-B-16-SigLIP2", None)
    with pytest.raises(
        InputError, match="unknown CLIP model 'tinclip'; did you mean 'tinyclip'"
    ):
        ClipName.of("tinclip", None)


@pytest.mark.slow
def test_a_download_that_fails_is_one_sentence(tmp_path):
    """Whatever the network: the name does not exist, or cannot be asked for."""
    code = """
from bieff.clip import ClipName, load
from bieff.features.errors import InputError
try:
    load(ClipName(model="hf-hub:bieff-nobody/bieff-nothing", pretrained=None))
except InputError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("cannot load CLIP 'hf-hub:bieff-nobody/bieff-nothing': ")
    assert result.stdout.count("\n") == 1
    assert "or give --model local-dir:FOLDER" in result.stdout
