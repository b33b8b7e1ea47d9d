"""Parts of videos: never a frame too many, too few or wrong, and no file decoded twice."""

import os
import signal
from fractions import Fraction

import numpy as np
import pytest
from helpers import stamped
from helpers.faulty_decoders import Grid
from helpers.places import TESTS

from bieff.extract.decode import pool as pools
from bieff.extract.decode import reader
from bieff.extract.decode.container import DecodeError, MissingVideoError
from bieff.extract.decode.pool import DecodePool, Job
from bieff.extract.decode.reader import read_frames
from bieff.extract.decode.segments import Segment, decode_segments
from bieff.features.schema import Status

IRREGULAR = np.cumsum(np.random.default_rng(3).integers(3, 60, 61)).tolist()
HEVC = {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=1:bframes=3"}

FAMILIES = {
    "long GOP": ("mp4", {"b_frames": 3}),
    "GOP 12, B-frames": ("mp4", {"gop": 12, "b_frames": 3}),
    "variable rate": ("mp4", {"gop": 12, "b_frames": 2, "times": IRREGULAR}),
    "variable rate, matroska": ("mkv", {"gop": 12, "times": IRREGULAR}),
    "late begin": ("mp4", {"gop": 12, "times": [20 * i + 777 for i in range(61)]}),
    "edit list": ("mp4", {"gop": 12, "b_frames": 3}),
    "fragmented": (
        "mp4",
        {"gop": 12, "b_frames": 2, "container": {"movflags": "frag_keyframe+empty_moov"}},
    ),
    "open GOP": (
        "mp4",
        {"gop": 12, "b_frames": 3, "options": {"x264-params": "open-gop=1:scenecut=0"}},
    ),
    "intra refresh": ("mp4", {"gop": 20, "options": {"x264-params": "intra-refresh=1"}}),
    "AVI, H.264": ("avi", {"gop": 12, "b_frames": 2}),
    "AVI, MPEG-4": ("avi", {"codec": "mpeg4", "gop": 12, "b_frames": 2}),
    "transport stream": ("ts", {"gop": 12, "b_frames": 2}),
    "flash": ("flv", {"gop": 12, "b_frames": 2}),
    "HEVC": ("mp4", {"codec": "libx265", "gop": 12, "options": HEVC}),
    "VP8": ("webm", {"codec": "libvpx", "gop": 24, "options": {"cpu-used": "8"}}),
    "VP9": ("webm", {"codec": "libvpx-vp9", "gop": 24, "options": {"cpu-used": "8"}}),
}


class Every:
    """Chooses all frames."""

    def __call__(self, num_frames):
        return range(num_frames)


def whole(*spans):
    return [Segment(start=a, end=b, choose=Every()) for a, b in spans]


def write(tmp_path, family):
    """A clip, its first frame, and when each of its frames is shown, in seconds."""
    ending, settings = FAMILIES[family]
    clip = stamped.Clip(**settings)
    path, first = stamped.write(tmp_path / f"clip.{ending}", clip), 0
    if family == "edit list":
        first = 17
        path = stamped.trim(path, tmp_path / "trimmed.mp4", first=first)
    ticks = clip.times or [20 * number for number in range(clip.num_frames)]
    return path, first, [Fraction(tick - ticks[first], 500) for tick in ticks[first:]]


def draw(draws, times):
    """A segment on a grid of milliseconds; one edge in two lies on a frame."""
    end = int(1000 * times[-1])
    edges = draws.integers(0, end * 11 // 10 + 100, 2).tolist()
    edges = [int(1000 * draws.choice(times)) if draws.random() < 0.5 else e for e in edges]
    return min(edges) / 1000, max(edges) / 1000 + 0.001


QUICK = {"GOP 12, B-frames", "variable rate", "edit list", "AVI, H.264"}


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES],
)
def test_a_segment_is_what_a_player_shows_in_its_time(tmp_path, family):
    """16 families of 16 segments, asked for one to five at a time."""
    path, first, times = write(tmp_path, family)
    right = read_frames(path, range(len(times)))
    draws = np.random.default_rng(len(family))
    for count in (1, 1, 2, 3, 4, 5):
        spans = sorted((draw(draws, times) for _ in range(count)), key=lambda span: span[1])
        for (start, end), found in zip(
            spans, decode_segments(path, whole(*spans)), strict=True
        ):
            exact = (Fraction(round(1000 * edge), 1000) for edge in (start, end))
            low, high = (sum(time < edge for time in times) for edge in exact)
            if low == high:
                assert isinstance(found, DecodeError)
                continue
            assert stamped.read_numbers(found.frames) == list(range(first + low, first + high))
            np.testing.assert_array_equal(found.frames, right[low:high])
            np.testing.assert_allclose(found.times, [float(t) for t in times[low:high]])
            assert (found.first_frame, found.num_frames) == (low, high - low)
            assert not found.is_salvaged


@pytest.fixture
def decoded(monkeypatch):
    """Numbers of the packets whose frames were decoded."""
    seen = []
    frames = reader._frames

    def counting(*arguments, **options):
        for frame, packet in frames(*arguments, **options):
            seen.append(packet)
            yield frame, packet

    monkeypatch.setattr(reader, "_frames", counting)
    return seen


@pytest.mark.parametrize("gop", [10, 600])
def test_40_segments_of_ten_minutes_are_one_run_through_the_file(tmp_path, decoded, gop):
    clip = stamped.Clip(num_frames=600, fps=1, gop=gop, b_frames=2, size=(64, 48))
    path = stamped.write(tmp_path / "long.mp4", clip)
    starts = np.random.default_rng(7).integers(0, 590, 40)
    spans = sorted((int(start), int(start) + 10) for start in starts)
    for found in decode_segments(path, whole(*spans)):
        assert len(found.frames) == 10
    assert len(decoded) == len(set(decoded)) <= 600


def test_decoding_begins_near_a_segment(tmp_path, decoded):
    clip = stamped.Clip(num_frames=600, fps=1, gop=10, b_frames=2, size=(64, 48))
    path = stamped.write(tmp_path / "long.mp4", clip)
    near, far = decode_segments(path, whole((100, 103), (555.5, 560)))
    assert stamped.read_numbers(near.frames) == [100, 101, 102]
    assert stamped.read_numbers(far.frames) == [556, 557, 558, 559]
    assert set(decoded) <= {*range(100, 106), *range(550, 564)}


def test_sets_that_are_not_said_again_are_not_skipped(tmp_path):
    """A stream whose parameters come once, at its beginning, is decoded from there."""
    path = stamped.write(tmp_path / "a.ts", stamped.Clip(gop=12, size=(64, 48)))

    def once(number, data):
        units = [unit for unit in data.split(b"\0\0\1") if unit.strip(b"\0")]
        kept = [u for u in units if number == 0 or u[0] & 31 not in (7, 8, 9)]
        return b"".join(b"\0\0\1" + unit for unit in kept)

    path = stamped.remux(path, tmp_path / "b.ts", once)
    (found,) = decode_segments(path, whole((1.5, 1.7)))
    assert len(found.frames) == 5
    assert not found.is_salvaged
    np.testing.assert_array_equal(found.frames, read_frames(path, range(61))[38:43])


def test_damage_costs_the_segments_it_reaches(tmp_path):
    """Of a picture in the third of five groups its end is lost."""
    source = stamped.write(tmp_path / "a.mp4", stamped.Clip(gop=12))
    right = read_frames(source, range(61))

    def damage(number, data):
        return stamped.with_noise(data) if number == 30 else data

    path = stamped.remux(source, tmp_path / "b.mp4", damage)
    spans = [(0.5, 0.9), (0.9, 1.3), (1.24, 1.4), (1.0, 1.5), (1.44, 2.4)]
    before, into, inside, over, behind = decode_segments(path, whole(*spans))
    assert (before.is_salvaged, behind.is_salvaged) == (False, False)
    assert stamped.read_numbers(behind.frames) == list(range(36, 60))
    assert isinstance(inside, DecodeError)
    assert "no frame in 1.24-1.4 s of video" in str(inside)
    assert stamped.read_numbers(into.frames) == list(range(23, 30))
    assert str(into.damage).startswith("7 of 10 frames decode: ")
    assert stamped.read_numbers(over.frames) == [25, 26, 27, 28, 29, 36, 37]
    np.testing.assert_array_equal(over.frames, right[[25, 26, 27, 28, 29, 36, 37]])


def test_of_a_damaged_segment_is_chosen_anew(tmp_path):
    source = stamped.write(tmp_path / "a.mp4", stamped.Clip(gop=12))
    path = stamped.remux(source, tmp_path / "b.mp4", lambda n, data: None if n == 30 else data)
    (found,) = decode_segments(path, [Segment(start=0.96, end=1.68, choose=Grid(4))])
    # 24 to 29 and 36 to 41 are left: every third of them
    assert stamped.read_numbers(found.frames) == [24, 27, 36, 39]
    assert found.is_salvaged


def test_where_frames_are_counted_a_missing_one_is_noticed_too(tmp_path):
    """An AVI without its 29th packet, to which frames before and behind it refer."""
    clip = stamped.Clip(codec="mpeg4", gop=12, b_frames=2)
    source = stamped.write(tmp_path / "a.avi", clip)
    path = stamped.remux(source, tmp_path / "b.avi", lambda n, data: None if n == 28 else data)
    right = read_frames(source, range(61))
    before, into = decode_segments(path, whole((0.4, 0.8), (0.9, 1.4)))
    assert stamped.read_numbers(before.frames) == list(range(10, 20))
    assert into.is_salvaged
    numbers = stamped.read_numbers(into.frames)
    np.testing.assert_array_equal(into.frames, right[numbers])
    assert set(numbers) <= {*range(23, 28), *range(34, 40)}


def test_a_file_that_ends_early_costs_its_last_segments(tmp_path):
    clip = stamped.Clip(gop=12, container={"movflags": "faststart"})
    source = stamped.write(tmp_path / "a.mp4", clip)
    path = stamped.truncate(source, tmp_path / "b.mp4", keep=0.6)
    early, cut, gone = decode_segments(path, whole((0.2, 0.4), (0.8, 2.2), (2.2, 2.3)))
    assert not early.is_salvaged
    assert cut.is_salvaged
    assert isinstance(gone, DecodeError)


def test_what_is_wrong_is_said(tmp_path):
    path = stamped.write(tmp_path / "a.mp4", stamped.Clip())
    behind, reverse = decode_segments(path, whole((9, 10), (12, 11)))
    assert (
        str(behind)
        == f"no frame in 9-10 s of video {str(path)!r}, the last of which is at 2.40 s"
    )
    assert str(reverse).startswith("no frame in 12-11 s")
    with pytest.raises(MissingVideoError):
        list(decode_segments(tmp_path / "none.mp4", whole((0, 1))))


# --- in processes


@pytest.fixture
def ten_parts(tmp_path, monkeypatch):
    """A clip and ten parts of it; the sixth lies behind its end."""
    monkeypatch.syspath_prepend(str(TESTS))
    path = stamped.write(tmp_path / "a.mp4", stamped.Clip(gop=12))
    starts = [0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 9]
    parts = tuple(Segment(start=s, end=round(s + 0.2, 1), choose=Grid(3)) for s in starts)
    return Job(row=7, path=path, segments=parts)


def test_segments_come_one_by_one(ten_parts):
    with DecodePool(1, deadline=20.0) as pool:
        found = list(pool.decode([ten_parts, Job(row=0, path=ten_parts.path, choose=Grid(2))]))
    assert [outcome.row for outcome in found] == [*range(7, 17), 0]
    assert [o.status for o in found] == [*[Status.OK] * 9, Status.CORRUPT, Status.OK]
    assert [o.is_last for o in found] == [*[False] * 9, True, True]
    assert "no frame in 9-9.2 s" in found[9].message
    for place, outcome in enumerate(found[:9]):
        numbers = [5 * place, 5 * place + 1, 5 * place + 3]
        assert stamped.read_numbers(outcome.frames) == numbers
        assert outcome.first_frame == 5 * place


def test_a_process_waits_until_its_segments_are_taken(ten_parts, monkeypatch):
    monkeypatch.setattr(pools, "_BYTES_A_WORKER", 1)
    waiting = []
    with DecodePool(1, deadline=20.0) as pool:
        for _ in pool.decode([ten_parts]):
            waiting.append(len(pool._ready))
    assert len(waiting) == 10
    assert max(waiting) <= 1


def test_a_process_that_dies_costs_nothing_that_was_delivered(ten_parts, monkeypatch):
    """The second attempt goes on with the segments that are left."""
    monkeypatch.setattr(pools, "_BYTES_A_WORKER", 1)
    with DecodePool(1, deadline=20.0) as pool:
        outcomes = pool.decode([ten_parts])
        found = [next(outcomes), next(outcomes)]
        os.kill(pool.pids[0], signal.SIGKILL)
        found += outcomes
    assert [outcome.row for outcome in found] == list(range(7, 17))
    assert {o.status for o in found[:9]} == {Status.OK}
    assert [o.attempt for o in found] == sorted(o.attempt for o in found)
    assert found[-1].attempt == 2


def test_a_file_that_is_none_costs_all_its_segments(ten_parts, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with DecodePool(1, deadline=20.0) as pool:
        found = list(pool.decode([ten_parts]))
    assert [outcome.row for outcome in found] == list(range(7, 17))
    assert {outcome.status for outcome in found} == {Status.CORRUPT}


def test_segments_that_nobody_wants_any_more_end_with_their_process(ten_parts, monkeypatch):
    monkeypatch.setattr(pools, "_BYTES_A_WORKER", 1)
    with DecodePool(1, deadline=20.0) as pool:
        outcomes = pool.decode([ten_parts])
        next(outcomes)
        outcomes.close()
        found = list(pool.decode([Job(row=0, path=ten_parts.path, choose=Grid(2))]))
    assert [(o.row, o.status) for o in found] == [(0, Status.OK)]
