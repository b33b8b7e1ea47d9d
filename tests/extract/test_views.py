"""Sampling grids nest exactly, crops are CLIP's own, random views depend on the id alone."""

import json
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bieff.clip import import_open_clip
from bieff.extract.config import ExtractConfig
from bieff.extract.views import (
    MIN_AREA,
    RATIO,
    View,
    ViewPlan,
    clip_start,
    crop_of,
    frame_numbers,
    views_for,
)
from bieff.features.errors import ConfigError
from bieff.train.evaluate.scoring import strided

LENGTHS = st.integers(1, 200) | st.integers(1, 10**7)
IDS = st.text(min_size=1, max_size=20)


def test_grid_by_hand():
    """Ten frames, T = 4: segments of 2.5 frames begin at 0, 2.5, 5 and 7.5."""
    assert frame_numbers(View(), 10, 4).tolist() == [0, 2, 5, 7]


def test_clips_by_hand():
    """320 frames, T = 8: linspace(0, 39, 3) = 0, 19.5, 39; the last clip ends the video."""
    grids = [frame_numbers(View(clip=k, clips=3), 320, 8) for k in range(3)]
    assert [grid[0] for grid in grids] == [0, 19, 39]
    assert grids[2][-1] == 319


@given(n=LENGTHS, T=st.integers(1, 67), clips=st.integers(1, 11), k=st.integers(0, 10))
def test_grid_is_the_formula_in_fractions(n, T, clips, k):
    k = min(k, clips - 1)
    last = max(Fraction(n, T) - 1, Fraction(0))
    start = int(last * k / (clips - 1)) if clips > 1 else 0
    want = [int(Fraction(n, T) * i) + start for i in range(T)]
    got = frame_numbers(View(clip=k, clips=clips), n, T)
    assert got.tolist() == want
    assert got.dtype == np.int64
    assert clip_start(k, clips, n, T) == start
    assert 0 <= got.min() <= got.max() < n


@given(n=LENGTHS, T=st.sampled_from([1, 2, 4, 8, 16, 32]), clips=st.integers(1, 5))
def test_a_stride_of_32_frames_is_the_grid_of_fewer(n, T, clips):
    """Exact for the first clip; what `bieff.train` takes of later clips comes close."""
    for k in range(clips):
        stored = frame_numbers(View(clip=k, clips=clips), n, 32)
        taken = stored[strided(32, T, clip=k, clips=clips).numpy()]
        fresh = frame_numbers(View(clip=k, clips=clips), n, T)
        if k == 0:
            assert taken.tolist() == fresh.tolist()
        slack = 2 if k in (0, clips - 1) else n / 64 + 2
        assert abs(taken - fresh).max() <= slack


@given(n=LENGTHS, factor=st.integers(1, 8), T=st.integers(1, 13))
def test_any_multiple_nests(n, factor, T):
    assert np.array_equal(
        frame_numbers(View(), n, T * factor)[::factor], frame_numbers(View(), n, T)
    )


def test_a_short_video_repeats_frames():
    assert frame_numbers(View(), 3, 8).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert frame_numbers(View(clip=2, clips=3), 1, 5).tolist() == [0] * 5
    random = View(kind="random")
    assert frame_numbers(random, 1, 5, video_id="a").tolist() == [0] * 5


@given(n=LENGTHS, T=st.integers(1, 37), index=st.integers(0, 5), video_id=IDS)
def test_random_frames_are_one_of_each_segment(n, T, index, video_id):
    view = View(kind="random", index=index)
    got = frame_numbers(view, n, T, video_id=video_id).tolist()
    for i, number in enumerate(got):
        first, end = n * i // T, n * (i + 1) // T
        assert first <= number < max(end, first + 1)
    assert frame_numbers(view, n, T, video_id=video_id).tolist() == got


def test_random_frames_fill_their_segments_evenly():
    """4,000 ids, segments of 5 frames: each frame 800 times, give or take 5 deviations."""
    view = View(kind="random", index=3)
    drawn = np.stack([frame_numbers(view, 15, 3, video_id=f"v{k}") for k in range(4000)])
    counts = np.bincount(drawn.ravel(), minlength=15)
    assert len(counts) == 15
    assert abs(counts - 800).max() < 5 * np.sqrt(4000 * 0.2 * 0.8)


def test_random_views_never_change():
    """Pinned: stores made last year and on other machines hold these frames."""
    view = View(kind="random", index=1)
    got = frame_numbers(
        view, 300, 8, video_id="brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0"
    )
    assert got.tolist() == PINNED_FRAMES
    crop = crop_of(view, 240, 320, 224, video_id="3caPS4FHFF8")
    assert (crop.box, crop.mirrored) == PINNED_CROP


PINNED_FRAMES = [15, 64, 95, 135, 152, 211, 243, 262]
PINNED_CROP = ((37, 34, 200, 243), True)


def test_random_views_do_not_depend_on_the_process():
    code = (
        "from bieff.extract.views import View, frame_numbers, crop_of\n"
        "v = View(kind='random', index=2)\n"
        "c = crop_of(v, 97, 131, 31, video_id='v')\n"
        "print(frame_numbers(v, 101, 7, video_id='v').tolist(), c.box, c.mirrored)"
    )
    view = View(kind="random", index=2)
    crop = crop_of(view, 97, 131, 31, video_id="v")
    here = f"{frame_numbers(view, 101, 7, video_id='v').tolist()} {crop.box} {crop.mirrored}"
    command = [sys.executable, "-W", "error", "-c", code]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert there == here


def test_random_views_differ_by_id_and_index():
    def draw(index, video_id):
        view = View(kind="random", index=index)
        frames = frame_numbers(view, 997, 11, video_id=video_id).tolist()
        return (*frames, *crop_of(view, 240, 320, 224, video_id=video_id).box)

    assert len({draw(i, v) for i in range(3) for v in ("a", "b", "c")}) == 9


@given(height=st.integers(1, 700), width=st.integers(1, 700), video_id=IDS)
def test_a_random_box_lies_in_the_frame_and_has_an_allowed_shape(height, width, video_id):
    crop = crop_of(View(kind="random"), height, width, 31, video_id=video_id)
    top, left, box_height, box_width = crop.box
    assert 0 <= top <= top + box_height <= height
    assert 0 <= left <= left + box_width <= width
    assert box_height >= 1
    assert box_width >= 1
    assert (crop.resized, crop.corner, crop.size) == ((31, 31), (0, 0), 31)
    # to half a pixel: sides are rounded
    assert box_width + 0.5 >= RATIO[0] * (box_height - 0.5)
    assert box_width - 0.5 <= RATIO[1] * (box_height + 0.5)
    if RATIO[0] <= width / height <= RATIO[1]:
        assert (box_height + 0.5) * (box_width + 0.5) >= MIN_AREA * height * width


def test_half_of_the_random_views_are_mirrored_unless_sides_matter():
    ids = [f"v{k}" for k in range(1000)]
    free, kept = View(kind="random"), View(kind="random", mirror=False)
    mirrored = sum(crop_of(free, 60, 80, 31, video_id=v).mirrored for v in ids)
    assert 420 < mirrored < 580  # 5 deviations
    assert not any(crop_of(kept, 60, 80, 31, video_id=v).mirrored for v in ids)
    boxes = [crop_of(view, 60, 80, 31, video_id="v1").box for view in (free, kept)]
    assert boxes[0] == boxes[1]


def test_a_very_long_frame_gets_its_middle():
    crop = crop_of(View(kind="random", min_area=1.0), 10, 1000, 7, video_id="v")
    assert crop.box == (0, (1000 - 13) // 2, 10, 13)


@pytest.fixture(scope="module")
def transforms():
    import_open_clip()
    from torchvision import transforms

    return transforms


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (240, 320),
        (320, 240),
        (256, 340),
        (113, 127),
        (31, 31),
        (31, 34),
        (37, 1009),
        (720, 31),
        (5, 7),
    ],
)
@pytest.mark.parametrize("size", [31, 32, 224])
def test_the_centre_crop_is_torchvisions(transforms, height, width, size):
    crop = crop_of(View(), height, width, size)
    resized = transforms.Resize(size)(torch.zeros(1, height, width))
    assert crop.resized == tuple(resized.shape[1:])
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in crop.resized)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    square = transforms.CenterCrop(size)(places)
    assert crop.corner == tuple(square[:, 0, 0].int().tolist())
    assert crop.box == (0, 0, height, width)
    assert not crop.mirrored


def test_left_and_right_are_the_ends_of_the_longer_side():
    def corners(height, width):
        return [crop_of(View(crop=c), height, width, 30).corner for c in ("left", "right")]

    assert corners(60, 80) == [(0, 0), (0, 10)]
    assert corners(80, 60) == [(0, 0), (10, 0)]


SHAPES = [(60, 80), (81, 60), (30, 30), (29, 64), (2, 300), (59, 31)]


@pytest.mark.parametrize("mode", ["squash", "longest"])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_centre_view_is_the_whole_frame_where_the_model_has_it_so(mode, height, width):
    crop = crop_of(View(), height, width, 30, mode)
    assert crop.box == (0, 0, height, width)
    if mode == "squash":
        assert (crop.resized, crop.corner) == ((30, 30), (0, 0))
    else:
        assert max(crop.resized) == 30
        assert crop.resized[0] / crop.resized[1] == pytest.approx(
            height / width, rel=0.05, abs=1
        )
    # three crops are squares of the frame, whatever the model's own transform
    middle = crop_of(View(crop="middle"), height, width, 30, mode)
    assert middle == crop_of(View(), height, width, 30)
    for name in ("left", "right"):
        view = View(crop=name)
        assert crop_of(view, height, width, 30, mode) == crop_of(view, height, width, 30)
    drawn = View(kind="random")
    assert crop_of(drawn, height, width, 30, mode) == crop_of(drawn, height, width, 30)


def test_views_of_a_model_that_sees_whole_frames():
    train, evaluation = views_for(1, clips=1, crops=3, is_square=False)
    assert [v.crop for v in evaluation] == ["left", "middle", "right"]
    assert train[0] == views_for(1, clips=1, crops=1, is_square=False)[1][0] == View()


def test_views_for_the_defaults():
    train, evaluation = views_for(2, clips=3, crops=1)
    assert [str(v) for v in train] == ["clip 1 of 1, centre", "random 0", "random 1"]
    assert [str(v) for v in evaluation] == [f"clip {k} of 3, centre" for k in (1, 2, 3)]
    assert [(v.clip, v.crop) for v in views_for(0, clips=2, crops=3)[1]] == [
        (k, crop) for k in (0, 1) for crop in ("left", "centre", "right")
    ]
    assert not any(v.mirror for v in views_for(2, clips=1, crops=1, mirror=False)[0][1:])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"train_views": -1}, "train_views must not be negative, got -1"),
        ({"clips": 0}, "clips must be at least 1, got 0"),
        ({"crops": 2}, "crops must be 1 or 3, got 2"),
    ],
)
def test_views_out_of_range(numbers, message):
    with pytest.raises(ConfigError, match=message):
        ExtractConfig(**numbers)


def test_one_decode_serves_all_views():
    train, evaluation = views_for(2, clips=3, crops=3)
    numbers = ViewPlan((*train, *evaluation), 7, "v")(100)
    assert numbers.shape == (12, 7)
    distinct, where = np.unique(numbers, return_inverse=True)
    assert np.array_equal(distinct[where].reshape(numbers.shape), numbers)
    for view, row in zip(train + evaluation, numbers, strict=True):
        assert row.tolist() == frame_numbers(view, 100, 7, video_id="v").tolist()


def test_views_survive_json():
    for view in [*views_for(2, clips=3, crops=3, mirror=False)[0], View(clip=1, clips=2)]:
        assert View.from_json(json.loads(json.dumps(view.to_json()))) == view
    assert View().to_json() == {"kind": "grid", "clip": 0, "clips": 1, "crop": "centre"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "grid", "speed": 2}, "view: unknown field 'speed'"),
        ({"kind": "dense"}, "expected kind 'grid' or 'random', got 'dense'"),
        ({"clip": 3, "clips": 3}, "expected 0 <= clip < 3, got 3"),
        ({"clip": "0"}, "expected words and numbers, got {'clip': '0'}"),
        ({"crop": "top"}, "expected a crop of left, centre, right, middle, got 'top'"),
        ({"kind": "random", "index": -1}, "expected index >= 0, got -1"),
        ({"kind": "random", "min_area": 0.0}, r"expected min_area in \(0, 1\], got 0.0"),
    ],
)
def test_bad_views_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        View.from_json(values)


def test_nothing_to_sample_is_a_bug():
    with pytest.raises(ValueError, match="num_frames >= 1"):
        frame_numbers(View(), 0, 8)
    with pytest.raises(ValueError, match="positive sizes"):
        crop_of(View(), 0, 8, 4)
