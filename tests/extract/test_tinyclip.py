"""The trainer of tinyclip: what it writes loads like any open_clip model, and is repeatable."""

import json

import numpy as np
import pytest
import torch
from pretrain import (
    Captioner,
    Recipe,
    contrastive_loss,
    draw_stills,
    encode_captions,
    pretrain,
)
from torch.nn import functional as F

from bieff.clip import TINYCLIP, ClipName, load
from bieff.extract.shapes.world import MOTIONS, SHAPES, class_name

RECIPE = Recipe(steps=2, batch_size=12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny") / "model"
    pretrain(out, RECIPE)
    return out


@pytest.mark.slow
def test_what_it_writes_loads_and_has_a_log(trained):
    clip = load(ClipName(model=f"local-dir:{trained}", pretrained=None))
    assert clip.dim == 128
    log = (trained.parent / "model.log.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in lines)


@pytest.mark.slow
def test_the_seed_decides_the_weights(trained, tmp_path):
    pretrain(tmp_path / "model", RECIPE)
    first, second = (
        load(ClipName(model=f"local-dir:{folder}", pretrained=None)).fingerprint
        for folder in (trained, tmp_path / "model")
    )
    assert first == second


def test_the_shipped_model_knows_the_words_of_its_world():
    table = load(ClipName(model=TINYCLIP, pretrained=None))
    weights = table.model.token_embedding.weight
    for shape in SHAPES:
        for motion in MOTIONS:
            tokens = table.tokenize([class_name(shape, motion)])[0]
            used = tokens[: int(tokens.argmax()) + 1]
            assert (weights[used].abs().sum(dim=1) > 0).all()


def test_the_shipped_model_tells_shapes_and_motions_apart():
    """A text tower that never learned the words embeds them alike: cosine 1.00."""
    clip = load(ClipName(model=TINYCLIP, pretrained=None))
    for shape in SHAPES:
        names = [class_name(shape, motion) for motion in MOTIONS]
        with torch.no_grad():
            embedded = F.normalize(clip.model.encode_text(clip.tokenize(names)), dim=-1)
        cosine = embedded @ embedded.T - torch.eye(len(names))
        assert cosine.max() < 0.97, names[int(cosine.max(dim=0).values.argmax())]


def test_captions_cut_to_their_length_are_encoded_as_open_clip_does():
    clip = load(ClipName(model=TINYCLIP, pretrained=None))
    captioner = Captioner(np.random.default_rng(1))
    captions = draw_stills(np.random.default_rng(2), 23).captions
    assert {len(c.split()) > 9 for c in captions} == {True, False}  # both lengths
    table = clip.model.token_embedding.weight[captioner.used]
    with torch.no_grad():
        got = encode_captions(clip.model, table, captioner(captions))
        expected = clip.model.encode_text(clip.tokenize(captions))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_contrastive_loss_by_hand():
    """Two pairs, cosines 1 and 0, scale 1: log(1 + 1/e) both ways."""
    pairs = torch.eye(2)
    loss = contrastive_loss(pairs, 3 * pairs, torch.eye(2), torch.tensor(1.0))
    torch.testing.assert_close(loss, torch.log1p(torch.exp(torch.tensor(-1.0))))


def test_equal_captions_are_both_right():
    """With nothing to tell two pictures apart the best is to share the weight: log 2."""
    same = torch.ones(2, 2)
    loss = contrastive_loss(same, same, torch.ones(2, 2), torch.tensor(5.0))
    torch.testing.assert_close(loss, torch.log(torch.tensor(2.0)))
