"""Our preprocessing against open_clip's own transform: pixels and embeddings."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from bieff.clip import (
    TINYCLIP,
    ClipName,
    Preprocessing,
    _preprocessing,
    import_open_clip,
    load,
)
from bieff.extract.tower import cut, normalise
from bieff.extract.views import Crop, View, crop_of

import_open_clip()
from open_clip.transform import (  # noqa: E402
    PreprocessCfg,
    image_transform_v2,
    merge_preprocess_dict,
)
from open_clip.transformer import VisionTransformer  # noqa: E402

MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 2.0)


def picture(height, width, seed=0):
    """A smooth picture with edges, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    image = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    image[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 90)
    return image


def ours(clip, image):
    height, width = image.shape[:2]
    crop = crop_of(View(), height, width, clip.preprocessing.size)
    crops = cut(torch.from_numpy(image)[None], crop, clip.preprocessing)
    return normalise(crops, mean=clip.preprocessing.mean, std=clip.preprocessing.std)


def theirs(clip, image):
    transform = import_open_clip().image_transform(
        clip.preprocessing.size,
        is_train=False,
        mean=clip.preprocessing.mean,
        std=clip.preprocessing.std,
    )
    return transform(Image.fromarray(image))[None]


def test_normalise_by_hand():
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 3, 1, 1)
    got = normalise(pixels, mean=MEAN, std=STD).flatten()
    torch.testing.assert_close(got, torch.tensor([-1.0, 3.0, (0.2 - 0.125) / 2]))


def test_a_crop_of_the_right_size_moves_no_pixel():
    image = torch.arange(5 * 7 * 3, dtype=torch.uint8).reshape(1, 5, 7, 3)
    crop = Crop(box=(1, 2, 3, 4), resized=(3, 4), corner=(0, 1), size=3, mirrored=True)
    expected = image[:, 1:4, 3:6].flip(2).permute(0, 3, 1, 2)
    for resize in ("pillow", "torch"):
        looks = Preprocessing(3, MEAN, STD, resize=resize)
        assert torch.equal(cut(image, crop, looks), expected)


def published():
    """All that open_clip's tags say of a size and its preprocessing, once each."""
    open_clip, found = import_open_clip(), {}
    for model, tag in open_clip.list_pretrained():
        size = open_clip.get_model_config(model)["vision_cfg"]["image_size"]
        held = {"size": size, **open_clip.get_pretrained_cfg(model, tag)}
        config = merge_preprocess_dict(PreprocessCfg(), held)
        found[str(config)] = (ClipName(model=model, pretrained=tag), config)
    return list(found.values())


def shown(looks, image):
    crop = crop_of(View(), *image.shape[:2], looks.size, looks.resize_mode)
    return cut(torch.from_numpy(image)[None], crop, looks)


def levels(looks, pixels):
    """Pixels as levels, 0 to 255, again."""
    mean, std = (torch.tensor(of)[:, None, None] for of in (looks.mean, looks.std))
    return (255 * (pixels * std + mean)).round()


def test_all_that_open_clip_publishes_is_seen_as_open_clip_shows_it():
    combinations = published()
    assert len(combinations) == 25
    for seed, (name, config) in enumerate(combinations):
        looks = _preprocessing(name, config)
        transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
        patch = next(side for side in (32, 16, 14) if looks.size % side == 0)
        torch.manual_seed(0)
        tower = VisionTransformer(looks.size, patch, 64, 2, 2, 2, output_dim=32)
        for shape in ((240, 320), (404, 302)):
            image = picture(*shape, seed=seed)
            expected = transform(Image.fromarray(image))
            crops = shown(looks, image)
            assert torch.equal(crops[0].float(), levels(looks, expected)), (name, shape)
            got = normalise(crops, mean=looks.mean, std=looks.std)
            with torch.no_grad():
                cosine = F.cosine_similarity(tower(got), tower(expected[None]))
            assert cosine.item() >= 0.9995, (name, shape)


def test_a_recipe_says_no_more_of_what_old_stores_hold():
    old = {"size": 48, "mean": MEAN, "std": STD, "interpolation": "bicubic"}
    looks = Preprocessing(48, MEAN, STD)
    assert looks.to_json() == old | {"resize": "pillow"}
    assert looks.going_on(looks.to_json()) == looks
    assert looks.going_on(old).resize == "torch"
    assert looks.going_on(old).to_json() == old
    squashed = Preprocessing(48, MEAN, STD, "bilinear", "squash")
    assert squashed.to_json() == old | {"interpolation": "bilinear", "resize_mode": "squash"}
    assert squashed.going_on(squashed.to_json()) == squashed
    bars = Preprocessing(48, MEAN, STD, resize_mode="longest", fill=9)
    assert bars.to_json() == old | {"resize_mode": "longest", "fill": 9}


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_every_way_of_resizing_is_open_clips(mode, interpolation):
    looks = Preprocessing(49, MEAN, STD, interpolation, mode, fill=77)
    transform = import_open_clip().image_transform(
        49,
        is_train=False,
        mean=MEAN,
        std=STD,
        resize_mode=mode,
        interpolation=interpolation,
        fill_color=77,
    )
    rng = np.random.default_rng(0)
    for shape in ((64, 80), (90, 61), (49, 48), (30, 40), (37, 201), (48, 49), (20, 20)):
        for image in (picture(*shape), rng.integers(0, 256, (*shape, 3), dtype=np.uint8)):
            expected = levels(looks, transform(Image.fromarray(image)))
            assert torch.equal(shown(looks, image)[0].float(), expected), shape


@pytest.mark.parametrize(
    ("height", "width"), [(64, 80), (90, 61), (48, 48), (240, 320), (37, 201)]
)
def test_tinyclip_sees_what_open_clip_would_show_it(height, width):
    clip = load(ClipName(model=TINYCLIP, pretrained=None))
    image = picture(height, width)
    got, expected = ours(clip, image), theirs(clip, image)
    assert got.shape == expected.shape
    # at most two of 255 levels apart: PIL rounds between its two passes, torch does not
    assert (got - expected).abs().max() < 2.5 / 255 / min(clip.preprocessing.std)
    with torch.no_grad():
        cosine = F.cosine_similarity(clip.model.visual(got), clip.model.visual(expected))
    assert cosine.item() >= 0.9995


@pytest.mark.slow
def test_vit_b_16_sees_what_open_clip_would_show_it():
    clip = load(ClipName(model="ViT-B-16-quickgelu", pretrained="random"))
    for seed, shape in enumerate([(240, 320), (256, 340), (720, 404)]):
        image = picture(*shape, seed=seed)
        with torch.no_grad():
            cosine = F.cosine_similarity(
                clip.model.encode_image(ours(clip, image)),
                clip.model.encode_image(theirs(clip, image)),
            )
        assert cosine.item() >= 0.9995
