"""Our preprocessing against open_clip's own transform: pixels and embeddings."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from bieff.clip import TINYCLIP, ClipName, import_open_clip, load
from bieff.extract.tower import cut, normalise
from bieff.extract.views import Crop, View, crop_of

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
    crops = cut(torch.from_numpy(image)[None], crop)
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
    assert torch.equal(cut(image, crop), expected)


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
