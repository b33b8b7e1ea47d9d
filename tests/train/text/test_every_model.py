"""The text half of every model that open_clip names: small, with random weights."""

import importlib.util
import re
from collections import Counter
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.places import ROOT
from helpers.whole_prompts import VOCABULARY, PlainTower, clip_of, form_of

from bieff.clip import Clip, ClipName, import_open_clip, load
from bieff.features.errors import InputError
from bieff.train.config import TrainConfig
from bieff.train.evaluate.classifier import class_embeddings
from bieff.train.runs.run import build_model, text_tower
from bieff.train.text.whole import WholeTower

NAMES = ["playing guitar", "archery", "playing drums", "diving"]
CUT = {"width": 48, "heads": 3, "layers": 2, "vocab_size": VOCABULARY}
VISION = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
SMALL = {
    "xlm-roberta": ("XLMRobertaConfig", {"pad_token_id": 1, "max_position_embeddings": 90}),
    "roberta": ("RobertaConfig", {"pad_token_id": 1, "max_position_embeddings": 90}),
    "mt5": ("MT5Config", {"d_model": 48, "d_kv": 16, "d_ff": 96, "num_heads": 3}),
    "nllb": ("M2M100Config", {"d_model": 48, "encoder_attention_heads": 3}),
}
"""Models of transformers, by a part of their names, and their sizes."""

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "num_layers": 2}
M2M = {"encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}


TABLE = re.findall(
    r"^\| (\w+) \| (\d+) \| (.*)\|$", (ROOT / "docs" / "text-towers.md").read_text(), re.M
)


def told(name: str) -> str:
    """How docs/text-towers.md says that a model is asked."""
    for kind, _, which in TABLE:
        if any(fnmatchcase(name, pattern) for pattern in re.findall("`(.*?)`", which)):
            return kind
    return "tree"


def build(name: str, monkeypatch: pytest.MonkeyPatch) -> Clip:
    """The model as open_clip builds it: mask, pooling, norms, length, but of width 48."""
    open_clip = import_open_clip()
    config = open_clip.get_model_config(name)
    text = config["text_cfg"]
    form = form_of(text.get("hf_tokenizer_name"))
    cut = {**text, **CUT, "hf_model_pretrained": False}
    dim = 48 if text.get("proj_type") == "none" else 37
    vision = {**VISION, "output_tokens": config["vision_cfg"].get("output_tokens", False)}
    changes: dict[str, Any] = {"embed_dim": dim, "vision_cfg": vision, "text_cfg": cut}
    if "multimodal_cfg" in config:
        changes["multimodal_cfg"] = {**config["multimodal_cfg"], **CUT}
    if kind := text.get("hf_model_name"):
        transformers = pytest.importorskip("transformers")
        made, sizes = next(made for part, made in SMALL.items() if part in kind)
        small = getattr(transformers, made)(
            **{"vocab_size": VOCABULARY, "intermediate_size": 96, **SIZES, **M2M, **sizes}
        )
        # what open_clip would fetch
        hf_model = open_clip.hf_model
        monkeypatch.setattr(hf_model.AutoConfig, "from_pretrained", lambda *_: small)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = open_clip.create_model(name, **changes)
    length = text.get("context_length", 77)
    return clip_of(model, form, dim=dim, length=length)


def kind_of(clip: Clip) -> str:
    tower = text_tower(clip, clip.tokenize(NAMES))
    if not isinstance(tower, WholeTower):
        return "tree"
    return "whole" if tower.is_plain else "encode_text"


def check_step(clip: Clip, prompt: str) -> None:
    """Logits and gradients of a step are those of open_clip's own modules."""
    settings = {"prompt": prompt, "num_context": 3, "temporal_layers": 1, "alpha": 1.0}
    config = TrainConfig.from_dict({**settings, "beta": 1.0})
    found = []
    frames = torch.randn(2, 2, clip.dim, generator=torch.Generator().manual_seed(3)).double()
    categories = torch.tensor([2, 0, 3])
    for text in (text_tower(clip, clip.tokenize(NAMES)), PlainTower(clip, NAMES)):
        model: Any = build_model(config, clip, num_frames=2, patches=None).double()
        # the plain tower is none of those that the annotations name
        forward = getattr(type(model).forward, "__wrapped__", type(model).forward)
        logits = forward(model, frames, text, categories=categories).logits
        F.cross_entropy(logits, torch.tensor([1, 2])).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append({"logits": logits.detach(), **gradients})
    ours, plain = found
    assert ours.keys() == plain.keys()
    largest = max(float(of.abs().max()) for of in plain.values())
    for key, want in plain.items():
        size = want.abs().max().clamp(min=1e-6 * largest)
        assert (ours[key] - want).abs().max() < 1e-6 * size, key


def of_each_kind() -> list[Any]:
    """The first of those that differ in sizes alone is slow, the others are long tests."""
    seen, found = set(), []
    for name in import_open_clip().list_models():
        config = import_open_clip().get_model_config(name)
        text = config["text_cfg"]
        form = form_of(text.pop("hf_tokenizer_name", None))
        model = text.pop("hf_model_name", "")
        family = [part for part in SMALL if part in model]
        own = sorted((key, str(value)) for key, value in text.items() if key not in CUT)
        extra = (config.get("quick_gelu"), "multimodal_cfg" in config)
        kind = str((told(name), form, family, own, extra))
        found.append(
            pytest.param(name, marks=pytest.mark.long if kind in seen else pytest.mark.slow)
        )
        seen.add(kind)
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", of_each_kind())
def test_the_text_tower_of_every_model(name, monkeypatch, request):
    clip = build(name, monkeypatch)
    tokens = clip.tokenize([f"This is a video about {name}" for name in NAMES])
    want = F.normalize(clip.model.encode_text(tokens), dim=-1)
    got = class_embeddings(clip, NAMES, "one")
    assert (got - want).abs().max() < 1e-4
    clip.model.double()
    for prompt in ("none", "hand-crafted", "learnable", "pre-prompt"):
        check_step(clip, prompt)
    assert kind_of(clip) == told(name)


@pytest.mark.skipif(not version("open_clip_torch").startswith("3.3."), reason="it is of 3.3")
def test_the_table_of_towers_counts_right():
    counts = Counter(map(told, import_open_clip().list_models()))
    assert {kind: int(count) for kind, count, _ in TABLE if int(count)} == counts
    assert counts.total() == 144


def test_a_model_that_needs_transformers_says_so(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "transformers" else find(name)
    )
    cut = {**import_open_clip().get_model_config("ViT-B-16-SigLIP"), "vision_cfg": VISION}
    cut["text_cfg"] |= CUT
    configs = importlib.import_module("open_clip.factory")._MODEL_CONFIGS
    monkeypatch.setitem(configs, "ViT-B-16-SigLIP", cut)
    siglip = load(ClipName(model="ViT-B-16-SigLIP", pretrained="random"))  # reads no text yet
    for ask in (
        lambda: siglip.tokenize_names(["star"]),
        lambda: load(ClipName(model="roberta-ViT-B-32", pretrained="random")),
    ):
        with pytest.raises(InputError, match=r"which is not installed; pip install \"bieff\["):
            ask()
