"""Frozen CLIP: its own text tower on templates, averaged frames, nothing else."""

import math

import pytest
import torch
from helpers import fake_store
from torch.nn import functional as F

from bieff.clip import TINYCLIP, ClipName, load
from bieff.features.errors import ConfigError
from bieff.train.evaluate.classifier import CHUNK, class_embeddings, frozen_logits
from bieff.train.text.wording import Descriptions, Templates, find_templates


@pytest.fixture(scope="module")
def clip():
    return load(ClipName(model=TINYCLIP, pretrained=None))


def open_clips_own(clip, texts):
    with torch.no_grad():
        return clip.model.encode_text(clip.tokenize(texts), normalize=True)


def test_class_embeddings_are_open_clips_own(tmp_path):
    """More than fit in one go, in an order that is not that of the alphabet."""
    clip = fake_store.load_clip(tmp_path / "clip")  # which knows every word
    names = [f"star number {7 * i % 263}" for i in range(CHUNK + 7)]
    got = class_embeddings(clip, names, "a video of a {}.")
    expected = open_clips_own(clip, [f"a video of a {name}." for name in names])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)  # another order of sums
    assert ((got @ got.T) > 0.99999).sum() < 3 * len(names)  # hardly two are alike


def test_a_name_with_braces_is_put_in_as_it_is(clip):
    got = class_embeddings(clip, ["{0} star"], "bare")
    torch.testing.assert_close(got, open_clips_own(clip, ["{0} star"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["one", "16", "28", "48"])
def test_templates_and_descriptions_are_averaged_in_embedding_space(clip, name):
    """Each unit embedding counts once, whatever the others' number."""
    described = Descriptions((("star",), ("ring growing", "a ring", "a growing ring")))
    templates = find_templates(name)
    got = class_embeddings(clip, described, templates)
    for row, texts in zip(got, described.texts, strict=True):
        filled = [t.replace("{}", text) for text in texts for t in templates.texts]
        mean = open_clips_own(clip, filled).double().mean(dim=0)
        expected = (mean / mean.norm()).float()
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


def test_a_set_may_be_given_as_texts(clip):
    given = class_embeddings(clip, ["star", "ring"], Templates(("{}", "a {}")))
    both = [class_embeddings(clip, ["star", "ring"], text) for text in ("{}", "a {}")]
    torch.testing.assert_close(given, F.normalize(both[0] + both[1], dim=-1))


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
