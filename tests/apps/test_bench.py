"""`bieff bench`: the arithmetic of its hours by hand, its clips, and the whole command."""

import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import av
import pytest
import torch
from click.testing import CliRunner

from bieff.apps.bench.extract import KINDS, DecodeCost, TowerRate, write_clip
from bieff.apps.bench.hours import SIZES, bottleneck, hours
from bieff.apps.bench.run import clip_name
from bieff.apps.bench.timing import flops_of, once, seconds
from bieff.apps.bench.train import EvalCost, StepCost
from bieff.cli import main
from bieff.clip import ClipName
from bieff.extract.datasets.official import class_names, kinetics_val, splits
from bieff.features.errors import InputError


def decode(kind, few, many):
    return DecodeCost(kind=kind, clip="", views=3, few=few, many=many, ceiling=many / 2)


MEASURED = {
    "decode": [
        decode("k400", 0.02, 0.056),  # 0.0005 s an image
        decode("ucf101", 0.01, 0.01),
        decode("hmdb51", 0.01, 0.009),  # quicker for more frames: noise
    ],
    "tower": TowerRate(cut=1000.0, tower=250.0, flops=1.0, precision="float32"),
    "steps": [StepCost(frames=t, videos=32, seconds=0.5, flops=1.0) for t in (8, 32)],
    "evaluation": [EvalCost(data_set=name, names=1, seconds=0.1, flops=1.0) for name in SIZES],
    "overlaps": False,
}


def test_hours_of_kinetics_by_hand():
    k400 = next(h for h in hours(**MEASURED) if (h.data_set, h.frames) == ("k400", 32))
    # 96 images cost 0.056 s, 64 images 0.02 + 40 * 0.0005 = 0.04 s
    assert k400.decode * 3600 == pytest.approx(19_906 * 0.056 + 240_000 * 0.04)
    images = 19_906 * 96 + 240_000 * 64
    assert k400.encode * 3600 == pytest.approx(images * (1 / 250 + 1 / 1000))
    assert k400.extract == pytest.approx(k400.decode + k400.encode)
    assert k400.evaluate * 3600 == pytest.approx(19_906 * 3 * 0.1)
    # 50 epochs of 7,500 steps, and five evaluations
    assert k400.train * 3600 == pytest.approx(50 * 7_500 * 0.5 + 5 * 19_906 * 3 * 0.1)
    assert k400.total == pytest.approx(k400.extract + k400.train + k400.evaluate)


def test_a_device_of_its_own_hides_the_shorter_part():
    k400, *_ = hours(**MEASURED | {"overlaps": True})
    assert k400.extract == max(k400.decode, k400.encode)


def test_sets_that_are_only_evaluated_on_have_no_training():
    found = {h.data_set: h.train for h in hours(**MEASURED)}
    assert found["ucf101"] is found["hmdb51"] is None
    assert found["k400"] > 0


def test_noise_never_makes_more_frames_cheaper_than_free():
    hmdb51 = MEASURED["decode"][2]
    assert hmdb51.seconds(96) == hmdb51.seconds(24) == 0.01


def test_sizes_are_those_of_the_official_lists():
    sizes = {name: evaluated for name, (evaluated, _) in SIZES.items()}
    assert sizes["k400"] == len(kinetics_val())
    assert sizes["ucf101"] == len(splits("ucf101"))
    assert sizes["hmdb51"] == len(splits("hmdb51"))
    assert all(class_names(name) for name in sizes)


def test_the_bottleneck_is_the_largest_part():
    shares = {"decoding": 0.9, "visual tower": 0.75, "training step": 0.5, "evaluation": 0.5}
    estimates = hours(**MEASURED)
    assert bottleneck(estimates, shares).startswith("training step: 60.4 of the ")
    slow = {"tower": replace(MEASURED["tower"], tower=1.0)}
    said = bottleneck(hours(**MEASURED | slow), shares)
    assert said.startswith("visual tower: ")
    assert said.endswith("reaches 75% of its ceiling")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_clips_are_what_they_say(kind, tmp_path):
    short = replace(kind, num_frames=30)
    path = write_clip(short, tmp_path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == {"libx264": "h264"}.get(kind.codec, kind.codec)
        assert (stream.width, stream.height) == (kind.width, kind.height)
        assert stream.average_rate == Fraction(kind.fps)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 30
    assert abs(frames[0].astype(int) - frames[-1]).mean() > 5  # it moves
    bits = 8 * path.stat().st_size / (30 / kind.fps)
    assert 200_000 < bits < 1_500_000  # of the order of the data sets' files


def test_quick_calls_are_repeated_and_slow_ones_are_not():
    calls = []
    assert seconds(lambda: calls.append(1), at_least=0) > 0
    assert len(calls) == 1 or torch.cuda.is_available()  # there the first is to warm up
    calls.clear()
    assert seconds(lambda: calls.append(1), at_least=0.01) > 0
    assert len(calls) > 10
    assert once(lambda: calls.clear()) > 0
    assert calls == []


def test_flops_of_a_product():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert flops_of(lambda: a @ b) == 2 * 3 * 5 * 7


def test_weights_are_random_unless_the_model_brings_its_own():
    assert clip_name(None, None) == ClipName(model="ViT-B-16-quickgelu", pretrained="random")
    assert clip_name("tinyclip", None) == ClipName(model="tinyclip", pretrained=None)
    assert clip_name("ViT-B-32", "openai").pretrained == "openai"
    with pytest.raises(InputError, match="brings its own weights"):
        clip_name("tinyclip", "openai")


def test_an_unknown_model_is_one_sentence():
    result = CliRunner().invoke(main, ["bench", "--model", "ViT-B-17"])
    assert result.exit_code == 1
    assert "unknown CLIP model 'ViT-B-17'; did you mean" in result.output
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_the_command(tmp_path):
    """Both outputs: rates below their ceilings, all data sets, and what it is not."""
    command = [sys.executable, "-P", "-m", "bieff.cli", "bench", "--model", "tinyclip"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for text in (
        "bench tinyclip on cpu",
        "ESTIMATE of the hours on this machine, not measured",
        "152 hours of an RTX 3090 (Table 3)",
        "bottleneck: ",
        "assumed: videos: k400 240,000",
    ):
        assert text in said.stdout
    for name in ("k400", "ucf101", "hmdb51"):
        for frames in (8, 16, 32):
            assert any(
                line.split()[:2] == [name, str(frames)] for line in said.stdout.splitlines()
            )
    found = json.loads(
        subprocess.run(
            [*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
    )
    assert found["bench"] == "machine"
    assert [step["frames"] for step in found["steps"]] == [8, 16, 32]
    for cost in (found["tower"], found["text"], *found["steps"], *found["evaluation"]):
        assert cost["flops"] > 0
        assert min(v for v in cost.values() if isinstance(v, float)) > 0
    assert len(found["hours"]) == 9
    assert list(tmp_path.iterdir()) == []  # it leaves nothing
