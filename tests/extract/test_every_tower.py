"""Every visual tower that open_clip builds: at full width, one layer deep, on a real clip.

The text side is replaced by a small one: what it can do is told by tests/train/text.
"""

import importlib

import numpy as np
import pytest
import torch
from helpers.extracting import SET, write_clips

from bieff.apps.bench.models import table
from bieff.clip import ClipName, import_open_clip, load
from bieff.extract.config import ExtractConfig
from bieff.extract.decode import read_frames
from bieff.extract.plan import StorePlan
from bieff.extract.run import extract
from bieff.extract.shapes.clips import load_shapes
from bieff.extract.tower import VisualTower, cut, normalise, patches_of
from bieff.extract.views import View, crop_of
from bieff.features.errors import InputError

CPU = torch.device("cpu")
CONFIG = ExtractConfig(frames=2, clips=1, limit=1, batch_size=2, decoders=1)
TEXT = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 2, "layers": 1}
DEPTH = {"convnext": ("depths", 4), "swin": ("depths", 4), "fastvit": ("layers", 5)}
"""timm's argument for the depth of its hierarchical towers, and their stages at most."""


def listed():
    """What `bieff models` says, by name."""
    header, rows = table()
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def shallow(name):
    """The configuration of a model with one layer, and a small text tower."""
    config = import_open_clip().get_model_config(name)
    vision = config["vision_cfg"]
    if "layers" in vision:
        vision["layers"] = 1 if isinstance(vision["layers"], int) else [1, 1, 1, 1]
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= TEXT | {"width": config["multimodal_cfg"]["width"]}
    return config | {"text_cfg": TEXT | {"embed_cls": "multimodal_cfg" in config}}


def shallow_timm(create):
    def created(name, **options):
        key, most = DEPTH.get(name.split("_")[0], ("depth", 0))
        stages = min(most, 5 if name in ("fastvit_mci3", "fastvit_mci4") else 4)
        return create(name, **options, **{key: (1,) * stages if stages else 1})

    return created


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return load_shapes(SET, write_clips(tmp_path_factory.mktemp("clips") / "clips"))


@pytest.fixture
def shallow_clip(request, monkeypatch):
    name = request.param
    open_clip = import_open_clip()
    configs = importlib.import_module("open_clip.factory")._MODEL_CONFIGS
    timm = importlib.import_module("open_clip.timm_model").timm
    monkeypatch.setitem(configs, name, shallow(name))
    monkeypatch.setattr(timm, "create_model", shallow_timm(timm.create_model))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: torch.tensor)
    return load(ClipName(model=name, pretrained="random"))


FEW = {
    *("ViT-B-32", "RN50", "ViTamin-S", "EVA02-B-16", "EVA01-g-14", "convnext_base"),
    *("MobileCLIP2-S0", "MobileCLIP2-B", "PE-Core-B-16", "ViT-B-16-SigLIP2"),
    *("coca_ViT-B-32", "swin_base_patch4_window7_224"),
}
"""One of each family of towers; all 144 are a long test, at some five seconds each."""


def of_each_family():
    return [
        pytest.param(name, marks=pytest.mark.slow if name in FEW else pytest.mark.long)
        for name in listed()
    ]


@pytest.mark.parametrize("shallow_clip", of_each_family(), indirect=True)
def test_a_clip_is_encoded_as_open_clip_encodes_it(shallow_clip, videos, tmp_path):
    clip, looks = shallow_clip, shallow_clip.preprocessing
    store = StorePlan.of(videos, CONFIG, clip).write(tmp_path / "store")
    extract(store, clip, CONFIG, device=CPU)
    [part] = store.partitions.values()
    [numbers] = part.frames(slice(0, 1))[0]
    frames = read_frames(videos.root / part.shard_videos(0)[0].path, numbers.tolist())
    crop = crop_of(View(), *frames.shape[1:3], looks.size)
    crops = cut(torch.from_numpy(frames), crop, looks)
    with torch.no_grad():
        pixels = normalise(crops, mean=looks.mean, std=looks.std)
        want = clip.model.encode_image(pixels, normalize=False)
    said = listed()[clip.name.model]
    assert want.shape == (2, clip.dim) == (2, int(said["D"]))
    assert looks.size == int(said["pixels"])
    scale = want.abs().max().item()
    got = VisualTower(clip, device=CPU, batch_size=2).encode(crops)
    torch.testing.assert_close(got.embeddings, want, rtol=0, atol=1e-4 * scale)
    np.testing.assert_allclose(
        part.read(slice(0, 1))[0, 0].astype(np.float32), want, rtol=2**-10, atol=1e-3 * scale
    )
    if said["patches"] == "no":
        with pytest.raises(
            InputError, match="has no patch tokens; choose a vision transformer"
        ):
            patches_of(clip)
        return
    tower = VisualTower(clip, device=CPU, batch_size=2, wants_patches=True)
    got = tower.encode(crops)
    torch.testing.assert_close(got.embeddings, want, rtol=0, atol=1e-4 * scale)
    assert got.patches.shape == (2, *patches_of(clip))
    torch.testing.assert_close(got.patches.mean(dim=-1), torch.zeros(got.patches.shape[:2]))
