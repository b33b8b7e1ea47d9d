"""The built-in data set: its world, its pixels, its files."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace

import av
import numpy as np
import pytest

from bieff.extract.shapes.clips import (
    VERSION,
    Clip,
    Edition,
    clips_of,
    draw_clip,
    edition_of,
    load_shapes,
    write_mp4,
)
from bieff.extract.shapes.render import OUTLINES, render
from bieff.extract.shapes.world import (
    INVISIBLE,
    MOTIONS,
    SEEN,
    SEEN_SHAPES,
    SHAPES,
    UNSEEN,
    UNSEEN_COMBINATIONS,
    UNSEEN_SHAPES,
    draw_scenes,
)
from bieff.features.errors import InputError

SMALL = Edition(seed=3, train_clips=1, val_clips=1, zero_shot_clips=3)


def test_seen_and_unseen_share_nothing_and_leave_nothing_out():
    assert not set(SEEN) & set(UNSEEN_COMBINATIONS)
    everything = {(s, m) for s in SHAPES for m in MOTIONS} - INVISIBLE
    assert {*SEEN, *UNSEEN_COMBINATIONS, *UNSEEN} == everything
    assert len(SEEN_SHAPES) >= 6
    assert len(MOTIONS) >= 8


def test_training_sees_every_seen_shape_and_every_motion_several_times():
    assert set(Counter(s for s, _ in SEEN)) == set(SEEN_SHAPES)
    assert min(Counter(m for _, m in SEEN).values()) >= 3


def test_shapes_and_motions_compete_in_the_zero_shot_sets():
    """Neither the shape nor the motion alone gives a class away."""
    shapes = Counter(s for s, _ in UNSEEN_COMBINATIONS)
    assert set(shapes) == set(SEEN_SHAPES)
    assert min(shapes.values()) >= 2
    motions = Counter(m for _, m in UNSEEN_COMBINATIONS)
    assert sum(count >= 2 for count in motions.values()) >= 7
    assert min(Counter(s for s, _ in UNSEEN).values()) == len(MOTIONS)
    assert {s for s, _ in UNSEEN} == set(UNSEEN_SHAPES)


def test_the_seed_fixes_every_pixel():
    clip = Clip("shapes", "train", "star", "spinning", 4)
    assert np.array_equal(draw_clip(clip, 7), draw_clip(clip, 7))
    other = draw_clip(clip, 8)
    assert other.shape != draw_clip(clip, 7).shape or not np.array_equal(
        other, draw_clip(clip, 7)
    )


def test_every_clip_is_drawn_differently():
    clips = [clip for found in clips_of(SMALL).values() for clip in found[::7]]
    pixels = {draw_clip(clip, 3).tobytes() for clip in clips}
    assert len(pixels) == len(clips) > 20


def plain(shape, motion):
    """A scene without noise on an even, dark ground."""
    scenes = draw_scenes(np.random.default_rng(5), [shape], [motion])
    return replace(
        scenes,
        shade=np.full((1, 3), 250.0),
        background=np.zeros((1, 2, 3)),
        noise=np.zeros(1),
        centre=np.zeros((1, 2)),
    )


def bright(shape, motion, time):
    """Where the shape is at a time: mean column, mean row, share of the frame."""
    frame = render(
        plain(shape, motion),
        np.array([[time]]),
        height=64,
        width=80,
        rng=np.random.default_rng(0),
    )[0, 0, :, :, 0].astype(float)
    weight = frame / max(frame.sum(), 1)
    rows, columns = np.mgrid[:64, :80]
    return (columns * weight).sum(), (rows * weight).sum(), frame.mean() / 250


@pytest.mark.parametrize(
    ("motion", "measure", "sign"),
    [
        ("moving left", 0, -1),
        ("moving right", 0, 1),
        ("moving up", 1, -1),
        ("moving down", 1, 1),
        ("growing", 2, 1),
        ("shrinking", 2, -1),
    ],
)
def test_motions_do_what_they_say(motion, measure, sign):
    first, last = bright("square", motion, 0.0), bright("square", motion, 1.0)
    changes = [after - before for before, after in zip(first, last, strict=True)]
    assert sign * changes[measure] > 0.005
    other = 1 - measure
    if measure < 2:
        assert abs(changes[other]) < 0.5
        assert abs(changes[2]) < 0.005


def test_blinking_goes_dark_and_comes_back():
    scenes = replace(plain("square", "blinking"), blinks=np.array([1.0]))
    frames = render(
        scenes, np.array([[0.0, 0.5, 1.0]]), height=64, width=80, rng=np.random.default_rng(0)
    )
    light = frames[0].astype(float).mean(axis=(1, 2, 3))
    assert light[1] < 0.01
    assert light[0] == pytest.approx(light[2], rel=1e-3)
    assert light[0] > 5


def test_spinning_turns_and_stays():
    first, last = bright("triangle", "spinning", 0.0), bright("triangle", "spinning", 0.3)
    assert first[2] == pytest.approx(last[2], rel=0.05)
    a, b = (
        render(
            plain("triangle", "spinning"),
            np.array([[t]]),
            height=64,
            width=80,
            rng=np.random.default_rng(0),
        )
        for t in (0.0, 0.3)
    )
    assert np.abs(a.astype(int) - b.astype(int)).mean() > 1


@pytest.mark.parametrize("shape", SHAPES)
def test_an_outline_is_solid_bounded_and_its_own(shape):
    grid = np.linspace(-2, 2, 161, dtype=np.float32)
    u, v = np.meshgrid(grid, grid)
    inside = {name: outline(u, v) < 0 for name, outline in OUTLINES.items()}
    area = inside[shape].mean() * 16
    assert 0.8 < area < 3.2  # a circle of radius 0.9 has 2.5
    assert not inside[shape][np.hypot(u, v) > 1.25].any()
    for other in set(SHAPES) - {shape}:
        assert (inside[shape] ^ inside[other]).mean() * 16 > 0.15


def test_a_clip_survives_encoding(tmp_path):
    clip = Clip("shapes", "val", "heart", "moving up", 1)
    frames = draw_clip(clip, 0)
    write_mp4(tmp_path / "clip.mp4", frames)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert decoded.shape == frames.shape
    # chroma is stored at half the resolution, which blurs coloured edges
    assert np.abs(decoded.astype(int) - frames.astype(int)).mean() < 8


def test_the_same_pixels_give_the_same_bytes(tmp_path):
    clips = clips_of(Edition())["shapes"][:20]
    rng = np.random.default_rng(0)

    def encoded() -> list[bytes]:
        files = []
        for clip in clips:
            # leaves the heap other than it was: an encoder that reads what it never wrote
            # is found out (x264 with its macroblock tree changed every fourth clip)
            litter = [rng.bytes(int(n)) for n in rng.integers(1, 200_000, 20)]
            pixels = draw_clip(clip, 0)
            del litter
            write_mp4(tmp_path / "clip.mp4", pixels)
            files.append((tmp_path / "clip.mp4").read_bytes())
        return files

    first, second = encoded(), encoded()
    differing = [c.path for c, a, b in zip(clips, first, second, strict=True) if a != b]
    assert not differing


def test_the_processes_that_draw_load_no_torch():
    """Six of them start in a demo, and torch takes over a second each."""
    code = "import sys, bieff.extract.shapes.clips; print('torch' in sys.modules)"
    command = [sys.executable, "-P", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "False\n"


@pytest.mark.slow
def test_a_data_set_is_made_once_and_goes_on_after_an_interruption(tmp_path):
    folder = tmp_path / "shapes-combinations"
    total = len(clips_of(SMALL)["shapes-combinations"])

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_shapes("shapes-combinations", folder, edition=SMALL, watch=interrupt)
    left = total - len(list(folder.rglob("*.mp4")))
    assert 0 < left < total, "the interruption came too late to test anything"
    told = []
    watch = lambda *done: told.append(done)  # noqa: E731
    load_shapes("shapes-combinations", folder, edition=SMALL, watch=watch)
    assert told == [(done, left) for done in range(1, left + 1)]
    assert len(list(folder.rglob("*.mp4"))) == total
    assert not list(folder.rglob("*.part"))
    assert edition_of(folder) == SMALL

    data = load_shapes("shapes-combinations", folder, watch=watch)
    assert len(told) == left  # nothing was made again
    splits = Counter(split for video in data.partitions["all"] for split in video.splits)
    assert splits == {"1": total // 3, "2": total // 3, "3": total // 3}
    assert not data.mirror  # "moving left" would become "moving right"


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"seed": 0, "more": 1}', "[" * 100_000])
def test_a_torn_edition_is_refused(tmp_path, torn):
    (tmp_path / "edition.json").write_text(torn)
    with pytest.raises(InputError, match=r"cannot read .*edition.json: .*; remove "):
        edition_of(tmp_path)


def test_another_edition_is_refused(tmp_path):
    folder = tmp_path / "shapes-unseen"
    folder.mkdir()
    (folder / "edition.json").write_text(json.dumps(asdict(SMALL)))
    with pytest.raises(InputError, match="holds another edition of shapes-unseen"):
        load_shapes("shapes-unseen", folder, edition=replace(SMALL, seed=4))


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(InputError, match="is not empty and holds no clips made by bieff"):
        load_shapes("shapes", tmp_path, edition=SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.mp4"]


def test_clips_of_an_older_version_are_not_mixed_with_new_ones(tmp_path):
    folder = tmp_path / "shapes-unseen"
    folder.mkdir()
    older = asdict(replace(SMALL, version=VERSION - 1))
    (folder / "edition.json").write_text(json.dumps(older))
    with pytest.raises(InputError, match=r"holds clips of version 1 .* makes version 2"):
        load_shapes("shapes-unseen", folder)
