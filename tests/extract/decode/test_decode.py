"""Never a wrong frame: clips whose frames carry their number, in every family of files."""

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from helpers import stamped
from helpers.places import VIDEOS

from bieff.apps.bench.extract import decoder_lines
from bieff.extract.decode.container import scan
from bieff.extract.decode.reader import Decoded, Pass, decode_video, read_frames
from bieff.extract.decode.second import examine
from bieff.extract.plan import version
from bieff.features.errors import InputError

REAL = [
    "apply_eye_makeup.avi",
    "arm_wrestling.mp4",
    "cleaning_pool.mp4",
    "flipping_a_pancake.mkv",
]
IRREGULAR = np.cumsum(np.random.default_rng(3).integers(3, 60, 61)).tolist()

# name: (ending, decoder expected, settings)
PLAIN = {
    "long GOP": ("mp4", "decord", {}),
    "long GOP, B-frames": ("mp4", "decord", {"b_frames": 3}),
    "GOP 12": ("mp4", "decord", {"gop": 12}),
    "GOP 12, B-frames": ("mp4", "decord", {"gop": 12, "b_frames": 3}),
    "matroska": ("mkv", "decord", {"gop": 12, "b_frames": 3}),
    "fragmented": (
        "mp4",
        "decord",
        {"gop": 12, "b_frames": 2, "container": {"movflags": "frag_keyframe+empty_moov"}},
    ),
    "variable rate": ("mp4", "decord", {"gop": 12, "b_frames": 2, "times": IRREGULAR}),
    "variable rate, matroska": ("mkv", "decord", {"gop": 12, "times": IRREGULAR}),
    "late begin": ("mp4", "decord", {"gop": 12, "times": [20 * i + 777 for i in range(61)]}),
    "one frame": ("mp4", "decord", {"num_frames": 1}),
    "two frames": ("mp4", "decord", {"num_frames": 2, "b_frames": 1}),
    "open GOP": (
        "mp4",
        "pyav",
        {"gop": 12, "b_frames": 3, "options": {"x264-params": "open-gop=1:scenecut=0"}},
    ),
    "intra refresh": (
        "mp4",
        "pyav",
        {"gop": 20, "options": {"x264-params": "intra-refresh=1"}},
    ),
    "AVI": ("avi", "pyav", {"codec": "mpeg4", "gop": 12}),
    "AVI, B-frames": ("avi", "pyav", {"codec": "mpeg4", "gop": 12, "b_frames": 2}),
    "AVI, H.264": ("avi", "pyav", {"gop": 12, "b_frames": 2}),
    "MPEG-4 in mp4": ("mp4", "pyav", {"codec": "mpeg4", "gop": 12, "b_frames": 2}),
    "VP9": ("webm", "pyav", {"codec": "libvpx-vp9", "gop": 24, "options": {"cpu-used": "8"}}),
    "flash": ("flv", "pyav", {"gop": 12, "b_frames": 2}),
    "transport stream": ("ts", "pyav", {"gop": 12, "b_frames": 2}),
    "odd size, 4:4:4": ("mp4", "pyav", {"size": (161, 121), "pix_fmt": "yuv444p"}),
    "odd size, MPEG-4": ("mp4", "pyav", {"size": (161, 121), "codec": "mpeg4"}),
    "odd size, AVI": ("avi", "pyav", {"size": (173, 127), "codec": "mpeg4", "b_frames": 2}),
    "10 bits": ("mp4", "pyav", {"pix_fmt": "yuv420p10le", "num_frames": 23}),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Encode a family of PLAIN, once."""
    folder = tmp_path_factory.mktemp("stamped")

    def write(family: str) -> Path:
        ending, _, settings = PLAIN[family]
        path = folder / f"{family.replace(' ', '_')}.{ending}"
        return path if path.exists() else stamped.write(path, stamped.Clip(**settings))

    return write


def check(path: Path, *, first: int, num_frames: int) -> Decoded:
    """All frames, some frames, and the same through PyAV: every one the frame asked for."""
    everything = decode_video(path, range)
    assert stamped.read_numbers(everything.frames) == list(range(first, first + num_frames))
    assert everything.num_frames == num_frames
    draw = np.random.default_rng(num_frames)
    for count in (1, 7, 19):
        numbers = draw.integers(0, num_frames, count)
        frames = read_frames(path, numbers)
        assert stamped.read_numbers(frames) == (numbers + first).tolist()
    in_sequence = decode_video(path, range, decoder="pyav")
    assert (in_sequence.decoder, everything.decoder) == ("pyav", "pyav")
    by_decord = decode_video(path, range, decoder="decord")
    np.testing.assert_array_equal(by_decord.frames, in_sequence.frames)
    return by_decord


@pytest.mark.parametrize("family", PLAIN)
def test_every_family_is_exact(make, family):
    _, decoder, settings = PLAIN[family]
    decoded = check(make(family), first=0, num_frames=settings.get("num_frames", 61))
    assert decoded.decoder == decoder, examine(make(family))[0]
    assert not decoded.is_salvaged
    width, height = settings.get("size", (160, 120))
    assert decoded.frames.shape[1:] == (height, width, 3)


def test_decord_stands_by(make):
    """It is asked where it is right and somebody wants it; PyAV sees damage elsewhere too."""
    path = make("GOP 12, B-frames")
    for numbers in ([11, 23], [5, 11, 23, 29], range(61)):
        decoded = decode_video(path, lambda _, numbers=numbers: numbers)
        other = decode_video(path, lambda _, numbers=numbers: numbers, decoder="other")
        assert (decoded.decoder, other.decoder) == ("pyav", "decord")
        assert stamped.read_numbers(decoded.frames) == list(numbers)
        np.testing.assert_array_equal(other.frames, decoded.frames)
    unsafe = decode_video(make("AVI, B-frames"), lambda _: [1], decoder="other")
    assert unsafe.decoder == "pyav"


def test_hevc_is_exact(tmp_path):
    options = {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=1:bframes=3"}
    clip = stamped.Clip(codec="libx265", gop=12, options=options)
    check(stamped.write(tmp_path / "hevc.mp4", clip), first=0, num_frames=61)


@pytest.mark.parametrize("cut", [17, 23, 24])
@pytest.mark.parametrize("family", ["long GOP, B-frames", "GOP 12, B-frames"])
def test_an_edit_list_in_front_is_obeyed(make, tmp_path, family, cut):
    """What stream-copy trimming leaves: frames that must be decoded and not shown."""
    path = stamped.trim(make(family), tmp_path / "trimmed.mp4", first=cut)
    check(path, first=cut, num_frames=61 - cut)
    at_keyframe = cut == 24 and "12" in family  # then there is nothing to hide
    doubt = None if at_keyframe else "it begins before time zero (an edit list)"
    assert examine(path)[0] == doubt


def test_an_edit_list_at_the_end_is_obeyed(make, tmp_path):
    path = tmp_path / "short.mp4"
    data = bytearray(make("GOP 12, B-frames").read_bytes())
    duration = data.index(b"elst") + 12
    whole = int.from_bytes(data[duration : duration + 4], "big")
    data[duration : duration + 4] = (whole * 31 // 61).to_bytes(4, "big")
    path.write_bytes(data)
    decoded = check(path, first=0, num_frames=31)
    assert not decoded.is_salvaged


def test_without_decord_the_frames_are_the_same(make, monkeypatch):
    """As on a machine for which it has no wheel; the bench says what is lost."""
    monkeypatch.setitem(sys.modules, "decord", None)
    path = make("GOP 12, B-frames")
    decoded, other = (decode_video(path, range, decoder=d) for d in (None, "other"))
    assert (decoded.decoder, other.decoder) == ("pyav", "pyav")
    np.testing.assert_array_equal(other.frames, decoded.frames)
    assert "tried again by PyAV alone" in decoder_lines()[0]
    monkeypatch.undo()
    assert decoder_lines() == []
    assert (version("decord"), version("no such package")) == ("0.6.0", "none")


def test_plain_decord_is_wrong_where_we_are_right(make, tmp_path):
    """The guard is needed: decord answers without an error, with other frames."""
    edited = stamped.trim(make("GOP 12, B-frames"), tmp_path / "edit.mp4", first=17)
    wrong = []
    for path in (edited, make("AVI, B-frames"), make("open GOP"), make("transport stream")):
        right = decode_video(path, range)
        for seed in range(6):
            numbers = np.random.default_rng(seed).choice(right.num_frames, 7, replace=False)
            reader = decord.VideoReader(str(path), num_threads=1)
            got = stamped.read_numbers(reader.get_batch(np.sort(numbers)).asnumpy())
            if got != stamped.read_numbers(right.frames[np.sort(numbers)]):
                wrong.append(path.name)
                break
    assert {"edit.mp4", "AVI,_B-frames.avi"} <= set(wrong)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((0, 1, -1, 0), lambda frames: np.rot90(frames, k=-1, axes=(1, 2))),  # a phone upright
        ((-1, 0, 0, -1), lambda frames: np.rot90(frames, k=2, axes=(1, 2))),
        ((0, -1, 1, 0), lambda frames: np.rot90(frames, k=1, axes=(1, 2))),
        ((-1, 0, 0, 1), lambda frames: frames[:, :, ::-1]),
        ((1, 0, 0, -1), lambda frames: frames[:, ::-1]),
        ((0, 1, 1, 0), lambda frames: frames.swapaxes(1, 2)),
        ((0, -1, -1, 0), lambda frames: frames[:, ::-1, ::-1].swapaxes(1, 2)),
    ],
)
def test_frames_are_turned_as_players_do(make, tmp_path, matrix, expected):
    source = make("GOP 12, B-frames")
    path = stamped.turn(source, tmp_path / "turned.mp4", matrix)
    numbers = [3, 1, 40]
    frames = read_frames(path, numbers)
    np.testing.assert_array_equal(frames, expected(read_frames(source, numbers)))
    seen = scan(path)
    assert (seen.height, seen.width) == frames.shape[1:3]
    is_turn = matrix[0] * matrix[3] - matrix[1] * matrix[2] > 0
    if is_turn:  # decord turns, too, but does not know of mirrors
        plain = decord.VideoReader(str(path), num_threads=1).get_batch(numbers).asnumpy()
        np.testing.assert_array_equal(frames, plain)


@pytest.mark.parametrize("keep", [0.97, 0.6])
@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_a_truncated_file_yields_its_sound_frames(tmp_path, ending, keep):
    codec = {"codec": "mpeg4"} if ending == "avi" else {}
    movflags = {"movflags": "faststart"} if ending == "mp4" else {}
    clip = stamped.Clip(gop=12, b_frames=2, container=movflags, **codec)
    whole = stamped.write(tmp_path / f"whole.{ending}", clip)
    path = stamped.truncate(whole, tmp_path / f"cut.{ending}", keep=keep)
    asked: list[int] = []

    def grid(num_frames: int) -> np.ndarray:
        asked.append(num_frames)
        return np.arange(num_frames)

    decoded = decode_video(path, grid)
    assert decoded.is_salvaged
    assert asked[-1] == decoded.num_frames == stamped.count_frames(path)
    assert 20 < decoded.num_frames < 61
    stamps = stamped.read_numbers(decoded.frames)
    assert stamps == sorted(set(stamps))
    assert stamps[: len(stamps) - 2] == list(range(len(stamps) - 2))
    np.testing.assert_array_equal(decoded.frames, read_frames(whole, stamps))
    with pytest.raises(IndexError, match=r"expected frame numbers in \[0, \d+\), got 60"):
        read_frames(path, [0, 60])


@pytest.mark.parametrize("part", [1.0, 0.5])
@pytest.mark.parametrize("hole", [0, 1, 20, 25, 60])
def test_a_hole_in_a_file_costs_the_frames_it_reaches(make, tmp_path, hole, part):
    """Whatever is returned is a frame of the whole file, bit for bit.

    A packet that is lost as a whole does not decode; one whose second half is lost does, to a
    picture that is patched up.
    """
    source = make("GOP 12, B-frames")
    frames = read_frames(source, range(61))
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(source.read_bytes())
    end = packets[hole].pos + packets[hole].size
    size = int(packets[hole].size * part)
    data[end - size : end] = bytes(size) if part == 1 else b"\xff" * size
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    decoded = decode_video(path, range, decoder="pyav")
    assert decoded.is_salvaged
    assert str(decoded.damage).startswith(f"{decoded.num_frames} of 61 frames decode: ")
    assert 61 - 12 - 3 <= decoded.num_frames < 61
    stamps = stamped.read_numbers(decoded.frames)
    np.testing.assert_array_equal(decoded.frames, frames[stamps])


def test_the_reach_of_damage_by_hand():
    """Packets 0 to 8, keyframes 0, 3, 6; packet 4 is shown before 3; packet 1 is damaged."""
    run = Pass(origins=[0, 2, 1, 4, 3, 5, 6, 8, 7], keyframes={0, 3, 6}, damaged={1, 2})
    assert run.sound().tolist() == [0, 4, 5, 6, 7, 8]
    run.damaged = {7}
    assert run.sound().tolist() == [0, 1, 2, 3, 4, 5, 6]
    run.damaged = set()
    assert run.sound().tolist() == list(range(9))


def test_fewer_frames_than_asked_repeat(make):
    """A grid of 8 over 2 frames: each of them 4 times."""
    grid = [int(2 / 8 * i) for i in range(8)]
    frames = read_frames(make("two frames"), grid)
    assert stamped.read_numbers(frames) == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"},
        {"colorspace": "smpte170m"},
        {"pix_fmt": "yuvj420p"},
    ],
)
def test_colours_are_those_that_went_in(tmp_path, options):
    """The matrix and range a file states are obeyed; unstated is BT.601, as it was written.

    Encoded at high quality the means of the channels come back within 0.8 of 255 (measured:
    0.7); another matrix is off by 2 and more, and another range by 8.
    """
    pix_fmt = {"pix_fmt": options["pix_fmt"]} if "pix_fmt" in options else {}
    tags = {"crf": "8", **{k: v for k, v in options.items() if k != "pix_fmt"}}
    clip = stamped.Clip(num_frames=5, options=tags, **pix_fmt)
    path = stamped.write(tmp_path / "colours.mp4", clip)
    decoded = decode_video(path, lambda _: [3], decoder="decord")
    assert decoded.decoder == "decord"
    error = decoded.frames[0].astype(float) - stamped.picture(3, size=clip.size)
    assert np.abs(error.mean(axis=(0, 1))).max() < 0.8
    in_sequence = decode_video(path, lambda _: [3], decoder="pyav")
    np.testing.assert_array_equal(in_sequence.frames, decoded.frames)


def test_a_long_video_keeps_only_what_is_wanted(tmp_path):
    """400 frames of 64 x 48 take 3.7 MB together; 8 of them take 0.07 MB."""
    clip = stamped.Clip(num_frames=400, size=(64, 48), options={"preset": "ultrafast"})
    path = stamped.write(tmp_path / "long.mp4", clip)
    tracemalloc.start()
    try:
        decoded = decode_video(path, lambda n: np.arange(8) * n // 8, decoder="pyav")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stamped.read_numbers(decoded.frames) == [0, 50, 100, 150, 200, 250, 300, 350]
    assert peak < 2**20


def test_a_size_that_changes_is_brought_to_the_first(tmp_path):
    parts = []
    for size in [(160, 120), (200, 150)]:
        part = stamped.write(
            tmp_path / f"{size[0]}.h264", stamped.Clip(num_frames=7, size=size)
        )
        parts.append(part.read_bytes())
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(parts))
    frames = read_frames(path, range(14))
    assert frames.shape == (14, 120, 160, 3)
    assert stamped.read_numbers(frames) == [0, 1, 2, 3, 4, 5, 6] * 2


@pytest.mark.parametrize("name", ["a # ( ) [ ] ! & ; + ~ @.mp4", "concat:b%03d.mp4", "ü.mp4"])
def test_any_name_is_a_file_name(make, tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(make("GOP 12").read_bytes())
    monkeypatch.chdir(tmp_path)
    for decoder in ("decord", "pyav"):
        decoded = decode_video(name, lambda _: [5], decoder=decoder)
        assert stamped.read_numbers(decoded.frames) == [5]
        assert decoded.decoder == decoder


def test_titles_in_another_encoding_do_not_matter(make, tmp_path):
    path = tmp_path / "title.mkv"
    with av.open(str(make("GOP 12"))) as old, av.open(str(path), "w") as new:
        new.metadata["title"] = "Caf~~"
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = copy
                new.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"Caf~~", b"Caf\xe9\xff"))
    assert stamped.read_numbers(read_frames(path, [5])) == [5]


def test_what_is_no_video_is_said_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^no video at '.*gone.mp4'; check the path$"):
        read_frames(tmp_path / "gone.mp4", [0])
    with pytest.raises(FileNotFoundError, match=r"; rename it to UTF-8$"):  # as lists escape it
        read_frames(tmp_path / r"caf\xe9.mp4", [0])
    empty = tmp_path / "empty.mp4"
    empty.touch()
    with pytest.raises(InputError, match=r"is empty; copy or download it again$"):
        read_frames(empty, [0])
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(np.random.default_rng(0).bytes(50_000))
    with pytest.raises(InputError, match=r"^cannot open video '.*garbage.mp4': Invalid data"):
        read_frames(garbage, [0])
    with pytest.raises(InputError, match=r"^cannot open video"):
        read_frames(tmp_path, [0])
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(InputError, match="video"):
        read_frames(playlist, [0])
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 16_000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="holds no video stream"):
        read_frames(sound, [0])


def test_a_file_whose_every_frame_is_damaged_is_refused(make, tmp_path):
    data = bytearray(make("GOP 12").read_bytes())
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[begin:end] = np.random.default_rng(1).bytes(end - begin)
    path = tmp_path / "noise.mp4"
    path.write_bytes(data)
    with pytest.raises(InputError, match="decode"):
        read_frames(path, [0])


def test_wrong_numbers_are_the_callers_bug(make):
    path = make("one frame")
    with pytest.raises(IndexError, match=r"expected frame numbers in \[0, 1\), got 1"):
        read_frames(path, [1])
    with pytest.raises(IndexError, match=r"in \[0, 1\), got -2"):
        read_frames(path, [0, -2])
    with pytest.raises(ValueError, match="expected at least one frame number"):
        read_frames(path, [])
    with pytest.raises(ValueError, match="as an integer, got 1 of float64"):
        decode_video(path, lambda _: [0.0])


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="needs the real clips in ../shared/videos")
@pytest.mark.parametrize("name", REAL)
def test_real_clips_are_frame_exact(name):
    """Against every frame decoded in sequence, and both ways alike to the last bit."""
    path = VIDEOS / name
    with av.open(str(path)) as container:
        truth = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert stamped.count_frames(path) == len(truth)
    numbers = np.random.default_rng(0).integers(0, len(truth), 32)
    frames = read_frames(path, numbers)
    np.testing.assert_array_equal(frames, np.stack([truth[number] for number in numbers]))
    decoded = decode_video(path, lambda _: numbers, decoder="decord")
    np.testing.assert_array_equal(decoded.frames[decoded.places(numbers)], frames)
    assert (examine(path)[0] is None) == (path.suffix != ".avi")


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="needs the real clips in ../shared/videos")
def test_a_real_damaged_clip_yields_what_is_sound():
    """decord refuses it: its 30th frame does not decode, and no keyframe comes after."""
    decoded = decode_video(VIDEOS / "corrupted.mp4", lambda n: [0, n - 1])
    assert decoded.is_salvaged
    assert decoded.decoder == "pyav"
    assert decoded.num_frames == 29
    assert str(decoded.damage).startswith("29 of 50 frames decode: Invalid")
