"""Frozen CLIP: open_clip's own text tower on a template, averaged frames, nothing else."""

import math

import pytest
import torch
from torch.nn import functional as F

from bieff.clip import TINYCLIP, ClipName, load
from bieff.features.errors import ConfigError
from bieff.train.frozen import CHUNK, class_embeddings, frozen_logits


@pytest.fixture(scope="module")
def clip():
    return load(ClipName(model=TINYCLIP, pretrained=None))


def test_class_embeddings_are_open_clips_own(clip):
    names = [f"star number {i}" for i in range(CHUNK + 3)]
    got = class_embeddings(clip, names, "a video of a {}.")
    with torch.no_grad():
        expected = clip.model.encode_text(
            clip.tokenize([f"a video of a {name}." for name in names]), normalize=True
        )
    torch.testing.assert_close(got, expected)


def test_a_name_with_braces_is_put_in_as_it_is(clip):
    got = class_embeddings(clip, ["{0} star"], "{}")
    with torch.no_grad():
        expected = clip.model.encode_text(clip.tokenize(["{0} star"]), normalize=True)
    torch.testing.assert_close(got, expected)


def test_a_template_without_a_place_for_the_name_is_refused(clip):
    with pytest.raises(ConfigError, match=r"or a text with \{\} in it, got 'a video'"):
        class_embeddings(clip, ["star"], "a video")


def test_logits_by_hand():
    """Frames along x and y, of any length: their mean direction is the diagonal."""
    frames = torch.tensor([[[3.0, 0.0], [0.0, 5.0]]])
    classes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    got = frozen_logits(frames, classes, 0.5)
    torch.testing.assert_close(got, torch.tensor([[math.sqrt(2), -math.sqrt(2)]]))


def test_the_length_of_a_frame_does_not_count():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(3, 5, 7, generator=generator)
    classes = F.normalize(torch.randn(4, 7, generator=generator), dim=-1)
    scaled = frames * torch.tensor([1.0, 2.0, 0.1, 5.0, 3.0])[None, :, None]
    torch.testing.assert_close(
        frozen_logits(scaled, classes, 0.01), frozen_logits(frames, classes, 0.01)
    )
