"""Predictions are those of the store and the run: same frames, same scores, same weights."""

import json
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import stamped
from helpers.processes import BIEFF
from PIL import Image

from bieff.apps.keyframes import GAP, LINE, MARGIN, SPACE, TILE, bars, draw
from bieff.apps.predict import find_videos, parse_labels
from bieff.apps.predictor import Prediction, Predictor
from bieff.cli import NOT_WHOLE, main
from bieff.clip import ClipName
from bieff.extract.decode.reader import decode_video
from bieff.features.errors import ConfigError, InputError
from bieff.features.schema import Status
from bieff.features.store import FeatureStore
from bieff.train.data import load_features
from bieff.train.evaluate.classifier import Frozen, Highlights, Trained
from bieff.train.evaluate.scoring import probabilities
from bieff.train.runs.run import clip_of, load_model, open_run
from bieff.train.text.tower import TextTower

CPU = torch.device("cpu")
TINYCLIP = ClipName(model="tinyclip", pretrained=None)
LABELS = ("star growing", "ring moving left", "cross spinning")


@pytest.fixture(scope="module")
def run_folder(world):
    return world / "runs" / "shapes"


@pytest.fixture(scope="module")
def predictor(run_folder):
    with Predictor.load(run=run_folder, device="cpu", decoders=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def frozen_predictor():
    with Predictor.load(clip=TINYCLIP, device="cpu", decoders=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def val(world):
    """Some videos of the closed set's store, spread over its classes."""
    store = FeatureStore.open(world / "features" / "shapes")
    rows = np.arange(0, store.partitions["val"].num_videos, 7)
    videos = store.partitions["val"].videos
    return store, rows, [Path(store.root) / videos[row].path for row in rows]


@pytest.fixture
def clip_path(val):
    return val[2][0]


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def scores_of(store, rows, classifier):
    features = load_features(store.partitions["val"], device=CPU, wants_patches=False)
    parts = probabilities(features, classifier.logits, num_frames=8, clips=3)
    return np.concatenate(list(parts))[rows]


def test_a_run_scores_as_it_does_on_its_store(predictor, val, run_folder):
    store, rows, paths = val
    found = list(predictor.predict(paths))
    clip = clip_of(store, device=CPU)
    want = scores_of(store, rows, Trained(open_run(run_folder), clip, store.class_names))
    assert [p.video for p in found] == paths
    # another batch of the tower turns last bits of float16, which tau = 0.01 enlarges
    np.testing.assert_allclose([p.scores for p in found], want, atol=5e-3)
    assert len({p.best for p in found}) > 1
    frames = store.partitions["val"].frames(rows)[:, 1]
    assert np.array_equal([p.frame_numbers for p in found], frames)


def test_frozen_clip_scores_as_beside_a_run(frozen_predictor, val):
    store, rows, paths = val
    found = list(frozen_predictor.predict(paths, store.class_names))
    clip = clip_of(store, device=CPU)
    want = scores_of(store, rows, Frozen(clip, store.class_names, num_frames=8))
    np.testing.assert_allclose([p.scores for p in found], want, atol=5e-3)


def test_the_weights_are_those_of_the_word_guided_prompt(predictor, val, run_folder):
    store, rows, paths = val
    clip = clip_of(store, device=CPU)
    model = load_model(open_run(run_folder), clip)
    text = TextTower(clip.model, clip.tokenize(store.class_names))
    frames = torch.from_numpy(store.partitions["val"].read(rows)[:, 1]).float()
    with torch.no_grad():
        scores = model(frames, text)
    found = [p.highlights for p in predictor.predict(paths)]
    assert {h.kind for h in found} == {"weights"}
    assert [h.category for h in found] == scores.picked.tolist()
    np.testing.assert_allclose([h.values for h in found], scores.frame_weights, atol=1e-3)
    np.testing.assert_allclose([h.values.sum() for h in found], 1, atol=1e-6)


def test_any_labels_and_any_order(predictor, clip_path):
    (one,) = predictor.predict([clip_path], LABELS)
    (other,) = predictor.predict([clip_path], LABELS[::-1])
    assert dict(one.ranking()) == pytest.approx(dict(other.ranking()))
    assert one.scores.sum() == pytest.approx(1)


@pytest.mark.parametrize("frames", [1, 5, 40])
def test_frozen_clip_takes_any_number_of_frames(clip_path, frames):
    with Predictor.load(clip=TINYCLIP, frames=frames, device="cpu", decoders=1) as predictor:
        (found,) = predictor.predict([clip_path], LABELS)
    assert found.pictures.shape == (frames, 48, 48, 3)
    assert len(found.highlights.values) == frames
    assert draw([found]).height > TILE


def test_a_run_takes_its_own_number_of_frames(run_folder):
    with pytest.raises(ConfigError, match="takes 8 frames, got 16; leave --frames out, or"):
        Predictor.load(run=run_folder, frames=16, device="cpu")


def test_a_bad_video_costs_itself_alone(frozen_predictor, clip_path, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    whole = stamped.write(tmp_path / "whole.avi", stamped.Clip(codec="mpeg4"))
    cut = stamped.truncate(whole, tmp_path / "cut.avi", keep=0.6)
    paths = [text, tmp_path / "none.mp4", cut, clip_path]
    found = list(frozen_predictor.predict(paths, LABELS))
    assert [p.status.name for p in found] == ["CORRUPT", "MISSING", "SALVAGED", "OK"]
    assert [p.scores is None for p in found] == [True, True, False, False]
    assert all(p.message for p in found[:3])
    assert found[0].to_dict()["scores"] is None


# --- times


def seconds(path, numbers):
    decoded = decode_video(path, lambda _: numbers)
    return decoded.times[decoded.places(numbers)]


@pytest.mark.parametrize("name", ["even.mp4", "even.avi", "even.mkv"])
def test_times_of_an_even_rate(tmp_path, name):
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = stamped.write(tmp_path / name, stamped.Clip(codec=codec, b_frames=2, fps=20))
    numbers = np.array([0, 7, 60])
    # mkv keeps milliseconds
    np.testing.assert_allclose(seconds(path, numbers), numbers / 20, atol=1e-3)


def test_times_of_a_variable_rate(tmp_path):
    times = [n * n + 10 * n for n in range(30)]  # in 1 / 500 s
    clip = stamped.Clip(num_frames=30, times=times, b_frames=2)
    path = stamped.write(tmp_path / "variable.mp4", clip)
    numbers = np.array([3, 0, 29])
    want = np.array([times[n] for n in numbers]) / 500
    np.testing.assert_allclose(seconds(path, numbers), want, atol=1e-3)


def test_times_behind_an_edit_list_count_from_the_first_frame_shown(tmp_path):
    whole = stamped.write(tmp_path / "whole.mp4", stamped.Clip(fps=25))
    cut = stamped.trim(whole, tmp_path / "cut.mp4", first=20)
    np.testing.assert_allclose(seconds(cut, np.array([0, 25])), [0, 1], atol=1e-3)


# --- the picture


def made_up(values, kind="weights"):
    values = np.array(values, dtype=np.float64)
    count = len(values)
    pictures = np.zeros((count, 32, 32, 3), np.uint8)
    pictures[:, :, :, 0] = np.arange(count)[:, None, None] * 20 + 10
    return Prediction(
        video=Path("folder/clip.mp4"),
        labels=LABELS,
        status=Status.OK,
        scores=np.array([0.7, 0.2, 0.1]),
        frame_numbers=np.arange(count),
        seconds=np.arange(count) / 4,
        highlights=Highlights(kind, values, 1),
        pictures=pictures,
    )


def test_bars_stand_above_and_below_equal_weight():
    shown = bars(made_up([0.5, 0.25, 0.125, 0.125]))
    assert shown.heights.tolist() == [1, 0, -0.5, -0.5]
    assert shown.texts == ("50.00%", "25.00%", "12.50%", "12.50%")
    assert "“ring”, “moving”, “left”" in shown.caption
    assert "equal weight, 25.00%" in shown.caption
    assert bars(made_up([0.25] * 4)).heights.tolist() == [0] * 4


def test_the_picture_shows_frames_and_bars_where_they_belong():
    image = draw([made_up([0.4, 0.3, 0.2, 0.1])])
    y = MARGIN + 2 * LINE + SPACE
    middles = [MARGIN + i * (TILE + GAP) + TILE // 2 for i in range(4)]
    assert [image.getpixel((x, y + TILE // 2)) for x in middles] == [
        (10 + 20 * i, 0, 0) for i in range(4)
    ]
    line = y + TILE + LINE + 36
    above, below = ([image.getpixel((x, line + dy)) for x in middles] for dy in (-20, 20))
    blue, grey, white = (0x1F, 0x6F, 0xEB), (0xB9, 0xBE, 0xC5), (255, 255, 255)
    assert above == [blue, white, white, white]  # the second is a third as high
    assert below == [white, white, white, grey]


def test_a_long_strip_goes_on_in_the_next_row():
    one, three = draw([made_up([0.1] * 8)]), draw([made_up([0.1] * 17)])
    assert one.width == three.width
    assert three.height > 2.5 * one.height - 150
    assert draw([made_up([0.1] * 8)] * 2).height == 2 * one.height


# --- the command


def test_the_command_with_a_run(run_folder, clip_path, tmp_path):
    result = run(
        *("predict", clip_path, tmp_path / "none.mp4", "--run", run_folder, "--device", "cpu"),
        *("--keyframes", tmp_path / "strips" / "out.png", "--top", 2),
    )
    assert result.exit_code == NOT_WHOLE
    lines = result.stdout.splitlines()
    assert lines[0] == str(clip_path)
    assert len(lines) == 3
    assert "not used: no video at" in result.stderr
    with Image.open(tmp_path / "strips" / "out.png") as image:
        assert image.width > 8 * TILE


def test_the_command_without_a_run_on_a_folder(clip_path, tmp_path):
    for name in ("a/1.mp4", "a/2.mp4", "b/1.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(clip_path, tmp_path / name)
    labels = tmp_path / "labels.txt"
    labels.write_text("StarGrowing\nring_moving_left\n")
    result = run(
        *("predict", tmp_path / "a", tmp_path, "--model", "tinyclip", "--labels", labels),
        *("--labels", "cross spinning", "--json", "--keyframes", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(f["video"]).relative_to(tmp_path).as_posix() for f in found] == [
        "a/1.mp4",
        "a/2.mp4",
        "b/1.mp4",
    ]
    for one in found:
        assert set(one["scores"]) == {"Star Growing", "ring moving left", "cross spinning"}
        assert sum(one["scores"].values()) == pytest.approx(1)
        assert len(one["frames"]["seconds"]) == len(one["frames"]["cosine"]) == 8
        assert one["best"] == one["frames"]["of"] == max(one["scores"], key=one["scores"].get)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["1-2.png", "1.png", "2.png"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "tinyclip"], "Error: no classes to choose from; name them with --labels"),
        (
            ["--model", "tinyclip", "--labels", "labels.txt"],
            "Error: labels: expected two or more with commas between them, or a file of them, "
            "got 'labels.txt', which is no file either",
        ),
        (
            ["--model", "tinyclip", "--labels", "a, b, a"],
            "Error: labels: classes 0 and 2 are both called 'a'",
        ),
        (["--run", "none", "--labels", "a, b"], "Error: no run at none; make one with"),
        (
            ["--model", "tinyclip", "--labels", "a,b", "--frames", "0"],
            "Error: frames: expected 1 to 1,024, got 0",
        ),
        (
            ["--model", "tinyclip", "--labels", "a,b", "--frames", "100000"],
            "Error: frames: expected 1 to 1,024, got 100,000",
        ),
        (
            ["--model", "tinyclip", "--labels", "a,b", "--keyframes", "strip.jpg"],
            "Error: --keyframes: expected a .png file or a folder, got 'strip.jpg'; try "
            "--keyframes strip.png",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(clip_path, options, sentence):
    result = run("predict", clip_path, *options)
    assert result.exit_code == 1
    assert result.output.startswith(sentence)


@pytest.mark.parametrize("top", ["0", "-1"])
def test_so_many_classes_cannot_be_printed(clip_path, top):
    result = run("predict", clip_path, "--model", "tinyclip", "--labels", "a, b", "--top", top)
    assert result.exit_code == 2
    assert f"Invalid value for '--top': {top} is not in the range x>=1" in result.stderr


def test_labels_of_all_forms(tmp_path):
    (tmp_path / "names.csv").write_text("id,name\n1,running\n0,kick_ball\n")
    assert parse_labels(["a b,, c "]) == ["a b", "c"]
    assert parse_labels([str(tmp_path / "names.csv")]) == ["kick ball", "running"]
    with pytest.raises(InputError, match="expected two or more"):
        parse_labels(["x" * 5000])


def test_a_folder_without_videos(tmp_path):
    with pytest.raises(InputError, match="no videos in"):
        find_videos([tmp_path])


def test_too_many_strips_for_one_picture(clip_path, tmp_path):
    videos = [tmp_path / f"{i}.mp4" for i in range(51)]
    result = run(
        *("predict", *videos, "--model", "tinyclip", "--labels", "a,b"),
        *("--keyframes", tmp_path / "out.png"),
    )
    assert result.exit_code == 1
    assert "expected at most 50 videos in one picture, got 51; name a folder" in result.output


# --- real videos


@pytest.mark.slow
def test_real_videos_with_the_tiny_model(real_videos, tmp_path):
    result = run(
        *("predict", real_videos, "--model", "tinyclip", "--json"),
        *("--labels", "arm wrestling, cleaning pool, flipping a pancake"),
        *("--keyframes", tmp_path / "out.png"),
    )
    assert result.exit_code == NOT_WHOLE
    found = {Path(f["video"]).name: f for f in map(json.loads, result.stdout.splitlines())}
    assert len(found) == 5
    assert found["corrupted.mp4"]["status"] == "salvaged"
    assert "corrupted.mp4: damaged: 29 of 50 frames decode" in result.stderr
    assert all(f["frames"]["seconds"][-1] > 0 for f in found.values())


@pytest.mark.slow
def test_real_videos_with_a_full_size_model(real_videos):
    result = run(
        *("predict", real_videos / "arm_wrestling.mp4", "--labels", "arm wrestling, juggling"),
        *("--model", "ViT-B-16-quickgelu", "--pretrained", "random", "--device", "cpu"),
    )
    assert result.exit_code == 0, result.stderr
    assert "frozen CLIP ViT-B-16-quickgelu/random, 8 frames" in result.stderr
    assert "arm wrestling" in result.stdout


@pytest.mark.slow
def test_pictures_that_need_too_much_memory_cost_that_video_alone(clip_path, tmp_path):
    """A file of 80 kB whose frames, made 224 high, would be seven million pixels wide."""
    with av.open(str(tmp_path / "wide.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32768, 1, "bgr0"
        for level in range(20):
            picture = np.full((1, 32768, 3), 10 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    command = [
        *(*BIEFF, "predict", "wide.mkv", str(clip_path)),
        *("--labels", "a, b", "--model", "tinyclip", "--device", "cpu"),
    ]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -v 4500000; exec "$@"', "sh", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 3), done.stderr  # 0 where it is cropped before it grows
    assert ("'wide.mkv'" in done.stderr) == (done.returncode == 3)
    assert f"{clip_path}\n" in done.stdout
