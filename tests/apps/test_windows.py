"""A video along its time: `bieff predict --windows`, its picture, and the page of `serve`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import stamped
from PIL import Image

from bieff.apps import serve, timeline
from bieff.apps.predictor import Prediction, Predictor
from bieff.cli import NOT_WHOLE, main
from bieff.clip import ClipName
from bieff.extract.lengths import Windows
from bieff.features.errors import ConfigError, InputError
from bieff.features.schema import Status

TINYCLIP = ClipName(model="tinyclip", pretrained=None)
LABELS = ("star growing", "ring moving left", "cross spinning")


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def predictor():
    with Predictor.load(clip=TINYCLIP, device="cpu", decoders=1, frames=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """22 seconds of two frames each, a keyframe every five."""
    path = tmp_path_factory.mktemp("clips") / "long.mp4"
    return stamped.write(path, stamped.Clip(num_frames=44, fps=2, gop=10, size=(96, 64)))


def copied(clip, path, start, end):
    """A file of its own with the frames from `start` to `end` seconds, both at keyframes."""
    with stamped.av.open(str(clip)) as old, stamped.av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        packets = [packet for packet in old.demux(stream) if packet.size]
        for packet in [p for p in packets if start <= p.pts * p.time_base < end]:
            packet.stream = copy
            new.mux(packet)
    return path


def test_a_window_scores_as_a_file_of_its_frames(predictor, clip, tmp_path):
    found = list(predictor.predict([clip], LABELS, windows=Windows(10, 5)))
    assert [p.window for p in found] == [(0, 10), (5, 15), (10, 20), (15, 22)]
    assert [p.place for p in found] == [(k, 4) for k in range(4)]
    for window in found:
        start, end = window.window
        file = copied(clip, tmp_path / f"{start}.mp4", start, min(end, 22))
        (alone,) = predictor.predict([file], LABELS)
        np.testing.assert_array_equal(window.scores, alone.scores)
        np.testing.assert_array_equal(window.pictures, alone.pictures)
        np.testing.assert_array_equal(window.frame_numbers, alone.frame_numbers + 2 * start)
        np.testing.assert_allclose(window.seconds, alone.seconds + start)


def test_videos_without_windows_say_why(predictor, clip, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    paths = [text, tmp_path / "none.mp4", clip]
    found = list(predictor.predict(paths, LABELS, windows=Windows(20, 20)))
    assert [p.status.name for p in found] == ["CORRUPT", "MISSING", "OK", "OK"]
    assert [p.window for p in found] == [None, None, (0, 20), (20, 22)]


@pytest.mark.slow
def test_the_command_prints_a_line_a_window(clip, tmp_path):
    command = ("predict", clip, "--labels", ",".join(LABELS), "--model", "tinyclip")
    command = (*command, "--device", "cpu", "--frames", 2, "--windows", 10, "--every", 5)
    picture = tmp_path / "along.png"
    result = run(*command, "--keyframes", picture)
    assert result.exit_code == 0, result.output
    name, *lines = result.stdout.splitlines()
    assert name == str(clip)
    assert [line.split()[:2] for line in lines] == [
        ["0:00:00", "0:00:10"],
        ["0:00:05", "0:00:15"],
        ["0:00:10", "0:00:20"],
        ["0:00:15", "0:00:22"],
    ]
    assert all(line.count("%") == 2 for line in lines)
    with Image.open(picture) as image:
        assert image.width == timeline.WIDTH
    result = run(*command, "--json", "--keyframes", tmp_path / "folder")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(f["start"], f["end"]) for f in found] == [(0, 10), (5, 15), (10, 20), (15, 22)]
    assert set(found[0]["scores"]) == set(LABELS)
    assert (tmp_path / "folder" / "long.png").is_file()


@pytest.mark.slow
def test_a_damaged_window_is_named(clip, tmp_path):
    def damage(number, data):
        return stamped.with_noise(data) if number == 23 else data

    path = stamped.remux(clip, tmp_path / "damaged.mp4", damage)
    result = run(
        *("predict", path, "--labels", "a,b", "--model", "tinyclip", "--device", "cpu"),
        *("--frames", 2, "--windows", 10),
    )
    assert result.exit_code == NOT_WHOLE
    assert f"{path}: 10-20 s damaged: 13 of 20 frames decode" in result.stderr
    assert len(result.stdout.splitlines()) == 4


def test_options_that_do_not_fit(clip):
    command = ("predict", clip, "--labels", "a,b", "--model", "tinyclip")
    assert "--every: expected --windows beside it" in run(*command, "--every", 5).output
    refused = run(*command, "--windows", 5, "--every", 10)
    assert "at most as many, got 5 and 10" in refused.output


# --- the picture


def made_up(*best, length=10.0):
    """Windows side by side, in each of which one label has 0.8; None: not usable."""
    windows = []
    for k, label in enumerate(best):
        scores = None
        if label is not None:
            scores = np.full(len(LABELS), 0.1)
            scores[LABELS.index(label)] = 0.8
        pictures = None if label is None else np.full((1, 32, 32, 3), 7 * k, np.uint8)
        windows.append(
            Prediction(
                video=Path("folder/long.mp4"),
                labels=LABELS,
                status=Status.OK if label else Status.CORRUPT,
                window=(length * k, length * (k + 1)),
                place=(k, len(best)),
                scores=scores,
                pictures=pictures,
            )
        )
    return windows


def test_bars_have_the_colour_and_the_height_of_the_best_class():
    windows = made_up(LABELS[1], LABELS[1], None, LABELS[0])
    image = timeline.draw(windows)
    axis = timeline.MARGIN + timeline.LINE + 8 + timeline.HEIGHT
    room = timeline.WIDTH - 2 * timeline.MARGIN

    def colour(share, height):
        x = timeline.MARGIN + round(share * room)
        return "#{:02x}{:02x}{:02x}".format(*image.getpixel((x, axis - height)))

    low, high = round(0.75 * timeline.HEIGHT), round(0.85 * timeline.HEIGHT)
    seen = [colour(share, low) for share in (0.125, 0.375, 0.625, 0.875)]
    assert seen == [timeline.COLOURS[0]] * 2 + ["#ffffff", timeline.COLOURS[1]]
    assert colour(0.125, high) == "#ffffff"


def test_keyframes_are_spread_over_the_usable_windows():
    windows = made_up(*[None if k == 3 else LABELS[k % 3] for k in range(30)])
    assert timeline.spread(windows, 8) == [0, 5, 9, 13, 17, 21, 25, 29]
    assert timeline.spread(windows[:2], 8) == [0, 1]
    assert timeline.spread(windows[3:4], 8) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (9.96, "0:00:10"), (62.5, "0:01:02.5"), (3723, "1:02:03")],
)
def test_clock(seconds, text):
    assert timeline.clock(seconds) == text


def test_a_window_keeps_one_picture():
    full = replace(
        made_up(LABELS[0])[0],
        pictures=np.zeros((8, 224, 224, 3), np.uint8),
        frame_numbers=np.arange(10, 18),
    )
    light = timeline.light(full)
    assert light.pictures.nbytes == 224 * 224 * 3
    assert light.pictures.base is None
    assert light.frame_numbers.tolist() == [14]


# --- the page


def test_the_page_is_told_the_windows_and_their_mean():
    windows = made_up(LABELS[1], None, LABELS[0], LABELS[1])
    said = serve.described(windows, "long.mp4")
    assert [one.get("label") for one in said["windows"]] == [
        *(LABELS[1], None, LABELS[0], LABELS[1])
    ]
    assert said["windows"][2]["when"] == "0:00:20"
    assert said["windows"][0]["colour"] == timeline.COLOURS[0]
    assert said["windows"][0]["picture"].startswith("data:image/jpeg;base64,")
    assert said["frames"] == []
    best = said["scores"][0]
    assert (best["label"], best["score"]) == (LABELS[1], pytest.approx((0.8 + 0.1 + 0.8) / 3))
    json.dumps(said)


def test_windows_as_they_are_typed():
    assert serve.typed_windows({}) is None
    assert serve.typed_windows({"windows": " ", "every": ""}) is None
    assert serve.typed_windows({"windows": "10", "every": "2.5"}) == Windows(10, 2.5)
    assert serve.typed_windows({"windows": "10", "every": ""}) == Windows(10, 10)
    with pytest.raises(InputError, match="expected two numbers of seconds, got 'ten' and ''"):
        serve.typed_windows({"windows": "ten"})
    with pytest.raises(ConfigError, match="above 0"):
        serve.typed_windows({"windows": "nan"})
    with pytest.raises(ConfigError, match="expected --windows beside it"):
        serve.typed_windows({"every": "5"})
