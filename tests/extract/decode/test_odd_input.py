"""Broken, odd and hostile files: the right frames, or one sentence; never a wrong frame.

What a stamped clip shows is read back from its frames: "right" means their numbers.
"""

import threading
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from helpers import stamped
from helpers.faulty_decoders import Grid
from helpers.places import SHARED

from bieff.cli import main
from bieff.extract.decode.bitstream import nal_units, pack, taller, taller_header
from bieff.extract.decode.container import open_video
from bieff.extract.decode.pool import DecodePool, Job, _DecodeProcess
from bieff.extract.decode.reader import decode_video, read_frames
from bieff.extract.decode.second import examine
from bieff.features.errors import InputError
from bieff.features.schema import Status
from bieff.features.store import FeatureStore

CASES = SHARED / "cases"
QUIET = {"preset": "ultrafast", "x265-params": "log-level=none"}
HEVC = stamped.Clip(codec="libx265", num_frames=48, gop=12, options=QUIET)
VP9 = stamped.Clip(codec="libvpx-vp9", num_frames=48, gop=12, options={"cpu-used": "8"})
H264 = stamped.Clip(num_frames=48, gop=12, b_frames=2)
MPEG4 = stamped.Clip(codec="mpeg4", num_frames=48, gop=12)


def numbers(path: Path) -> tuple[bool, list[int]]:
    """Whether a file is called damaged, and the numbers its frames carry."""
    decoded = decode_video(path, range)
    assert decoded.is_salvaged == (decoded.damage is not None)
    return decoded.is_salvaged, stamped.read_numbers(decoded.frames)


def upright(count: int, *, begin: int = 0) -> list[int]:
    return list(range(begin, begin + count))


LEFT_OUT = {
    "hevc_damaged.mkv": [*upright(7), *upright(20, begin=20)],
    "vp9_damaged.mkv": [*upright(6), *upright(20, begin=20)],
    "field/O5_begins_between_keyframes.avi": upright(40, begin=20),
    "field/O5_begins_between_keyframes.mp4": upright(40, begin=20),
    "field/O6_hevc_one_packet_lost.mp4": [*upright(7), *upright(40, begin=20)],
    "field/O6_h264_one_packet_lost.mp4": [*upright(7), *upright(40, begin=20)],
    "field/S7_intra_refresh_damaged.mp4": upright(25),
}
WHOLE = {
    "hevc_sound.mkv": 40,
    "vp9_sound.mkv": 40,
    "mjpeg_exif.mov": 8,
    "empty_chunks.avi": 24,
    "field/R1_mjpeg_exif.avi": 8,
    "field/R2_lcevc_sei.mp4": 10,
    "field/R5_null_frames.avi": 24,
    "field/R17_animated.gif": 12,
    "field/R20_O7_whole.mp4": 90,
    "field/R21_dwLength_times_10.avi": 40,
    "field/S7_intra_refresh_whole.mp4": 90,
    "field/S8_interlaced_tff.mp4": 24,
    "field/S11_size_changes.mp4": 40,
}
REFUSED = {
    "cover_art.mp4": "holds no video stream that can be decoded",
    "field/R13_music_with_cover.mp4": "holds no video stream that can be decoded",
    "wide.mov": "has pictures of 32768 x 1; expected one side to be at most 16 times",
    "w4096x2.mov": "has pictures of 4096 x 2; expected",
    "field/R22_2x600.mkv": "has pictures of 2 x 600; expected",
    "field/S9_matrix_8_ycgco.mp4": r"cannot convert the colours .* \(matrix 8\)",
}
case_files = pytest.mark.skipif(not CASES.is_dir(), reason="needs the files of ../shared/cases")


@case_files
@pytest.mark.parametrize("name", LEFT_OUT)
def test_damage_of_the_cases_is_left_out(name):
    assert numbers(CASES / name) == (True, LEFT_OUT[name])


@case_files
@pytest.mark.parametrize("name", WHOLE)
def test_sound_cases_are_whole(name):
    assert numbers(CASES / name) == (False, upright(WHOLE[name]))


@case_files
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused(name):
    with pytest.raises(InputError, match=REFUSED[name]):
        read_frames(CASES / name, [0])


@case_files
def test_what_is_refused_costs_itself():
    """The decoding process goes on with the next."""
    names = [name for refused in REFUSED for name in (refused, "hevc_sound.mkv")]
    jobs = [Job(row=i, path=CASES / p, choose=Grid(4)) for i, p in enumerate(names)]
    with DecodePool(1) as pool:
        outcomes = {outcome.row: outcome for outcome in pool.decode(jobs)}
        for row, name in enumerate(names):
            status = Status.CORRUPT if name in REFUSED else Status.OK
            assert (outcomes[row].status, outcomes[row].attempt) == (status, 1), name


@case_files
@pytest.mark.parametrize("name", ["matrix_changes.h264", "field/R12_turned_half_way_90.mp4"])
def test_turned_half_way_all_frames_have_the_first_shape(name):
    salvaged, seen = numbers(CASES / name)
    assert (salvaged, seen[:20], len(seen)) == (False, upright(20), 40)


def test_a_turn_said_once_is_of_all_frames(tmp_path):
    """The message stands before the first picture alone, and is of all up to the next."""
    whole = stamped.write(tmp_path / "whole.mp4", stamped.Clip(num_frames=24))
    filters = "h264_metadata=display_orientation=insert:rotate=90"
    path = stamped.remux(whole, tmp_path / "a.mp4", lambda _, data: data, filtered=filters)
    frames = read_frames(path, range(24))
    right = read_frames(whole, range(24))
    np.testing.assert_array_equal(frames, np.rot90(right, axes=(1, 2)))


@case_files
def test_one_stream_always_the_same():
    for ending in ("mp4", "mkv"):
        path = CASES / f"field/S10_second_stream_default.{ending}"
        first, all_of_them = read_frames(path, [0]), read_frames(path, range(60))
        np.testing.assert_array_equal(first[0], all_of_them[0])
        other = decode_video(path, lambda _: [0], decoder="other")
        np.testing.assert_array_equal(other.frames[0], first[0])


@case_files
def test_the_same_frames_are_sound_however_many_are_asked_for(tmp_path):
    """Nor does it matter what is decoded beside it in the process."""
    path = CASES / "field/R20_O7_two_damaged_packets.mp4"
    alone = [decode_video(path, Grid(count)) for count in (1, 4, 32)]
    assert {(d.num_frames, d.damage) for d in alone} == {(alone[0].num_frames, alone[0].damage)}
    assert alone[0].is_salvaged
    seen: list[int] = []

    def decode() -> None:
        seen.extend(decode_video(path, Grid(4)).num_frames for _ in range(2))

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {alone[0].num_frames}


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("a.mp4", HEVC),
        ("a.mkv", HEVC),
        ("a.ts", HEVC),
        ("b.webm", VP9),
        ("b.mp4", VP9),
        ("c.mp4", H264),
        ("c.mkv", H264),
        ("c.ts", H264),
        ("d.avi", MPEG4),
        ("d.mp4", MPEG4),
        ("e.avi", replace(MPEG4, codec="msmpeg4")),
    ],
)
def test_noise_in_a_packet_is_left_out(tmp_path, name, clip):
    """From the damage to the next picture at which decoding can begin, and no further."""
    whole = stamped.write(tmp_path / f"whole{Path(name).suffix}", clip)
    right = read_frames(whole, range(48))
    for hit in (5, 17, 25):

        def change(number: int, data: bytes, hit: int = hit) -> bytes:
            return stamped.with_noise(data, seed=hit) if number == hit else data

        path = stamped.remux(whole, tmp_path / name, change)
        decoded = decode_video(path, range)
        assert decoded.is_salvaged, hit
        seen = stamped.read_numbers(decoded.frames)
        np.testing.assert_array_equal(decoded.frames, right[seen])
        assert 48 - 12 - 4 <= len(seen) < 48, hit


@pytest.mark.parametrize(
    ("ending", "clip"), [("mp4", H264), ("mkv", HEVC), ("webm", VP9), ("ts", H264)]
)
def test_a_lost_packet_is_noticed(tmp_path, ending, clip):
    whole = stamped.write(tmp_path / f"whole.{ending}", clip)
    right = read_frames(whole, range(48))
    path = stamped.remux(
        whole, tmp_path / f"lost.{ending}", lambda i, data: None if i == 13 else data
    )
    decoded = decode_video(path, range)
    assert decoded.is_salvaged
    seen = stamped.read_numbers(decoded.frames)
    np.testing.assert_array_equal(decoded.frames, right[seen])


@pytest.mark.parametrize(
    ("ending", "clip"),
    [("avi", MPEG4), ("mp4", MPEG4), ("mkv", H264), ("mp4", HEVC), ("webm", VP9)],
)
def test_what_comes_before_the_first_keyframe_is_left_out(tmp_path, ending, clip):
    whole = stamped.write(tmp_path / f"whole.{ending}", clip)
    right = read_frames(whole, range(48))
    path = stamped.remux(
        whole, tmp_path / f"cut.{ending}", lambda i, data: None if i < 5 else data
    )
    decoded = decode_video(path, range)
    assert decoded.is_salvaged
    seen = stamped.read_numbers(decoded.frames)
    np.testing.assert_array_equal(decoded.frames, right[seen])
    assert seen[0] >= 10
    assert len(seen) >= 34


def test_intra_refresh_heals_but_does_not_count(tmp_path):
    """x264 marks a recovery point as a keyframe, while the picture is still half garbled."""
    clip = stamped.Clip(num_frames=90, gop=20, options={"x264-params": "intra-refresh=1"})
    whole = stamped.write(tmp_path / "whole.mp4", clip)
    path = stamped.remux(
        whole,
        tmp_path / "hit.mp4",
        lambda i, data: stamped.with_noise(data) if i == 25 else data,
    )
    assert numbers(whole) == (False, upright(90))
    assert numbers(path) == (True, upright(25))


@pytest.mark.parametrize("kind", ["bgr", "interlaced", "size", "orientation", "streams"])
def test_decord_is_not_trusted_with(tmp_path, kind):
    """Or it gives the same bits: what it gives is compared."""
    path = tmp_path / "a.mp4"
    if kind == "streams":
        stamped.with_two_streams(path, default=1)
    elif kind == "orientation":
        whole = stamped.write(tmp_path / "whole.mp4", stamped.Clip(num_frames=24, gop=12))
        filters = "h264_metadata=display_orientation=insert:rotate=90"
        stamped.remux(whole, path, lambda _, data: data, filtered=filters)
    elif kind == "size":
        parts = [
            stamped.write(tmp_path / f"{w}.h264", stamped.Clip(num_frames=12, size=(w, h)))
            for w, h in ((160, 120), (200, 150))
        ]
        (tmp_path / "both.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
        stamped.remux(tmp_path / "both.h264", path, lambda _, data: data)
    else:
        params = {"bgr": "colormatrix=bt2020nc:chromaloc=2", "interlaced": "tff=1"}[kind]
        clip = stamped.Clip(num_frames=24, gop=12, options={"x264-params": params})
        stamped.write(path, clip)
    right = decode_video(path, range)
    other = decode_video(path, range, decoder="decord")
    np.testing.assert_array_equal(other.frames, right.frames)
    assert not right.is_salvaged
    if kind in ("interlaced", "size", "orientation"):
        assert examine(path)[0] is not None
        assert other.decoder == "pyav"


@pytest.mark.parametrize("colours", ["fcc", "YCgCo", "bt2020c", "chroma-derived-nc", "ICtCp"])
def test_any_colour_matrix_is_obeyed_or_refused(tmp_path, colours):
    options = {"crf": "8", "x264-params": f"colormatrix={colours}"}
    path = stamped.write(tmp_path / "a.mp4", stamped.Clip(num_frames=3, options=options))
    if colours == "fcc":
        assert numbers(path) == (False, upright(3))
    else:
        with pytest.raises(InputError, match="cannot convert the colours of video"):
            read_frames(path, [0])


@case_files
def test_an_extraction_outlives_its_worst_videos(tmp_path):
    """Through the command: what is sound is stored, what is not says why in one line."""
    videos = tmp_path / "videos"
    names = ["hevc_sound.mkv", "hevc_damaged.mkv", "field/R17_animated.gif", *REFUSED]
    for name in names:
        (videos / "a").mkdir(parents=True, exist_ok=True)
        (videos / "a" / Path(name).name).write_bytes((CASES / name).read_bytes())
    store = tmp_path / "store"
    options = ["--dataset", "folder", "--videos", videos, "--model", "tinyclip"]
    options += ["--frames", "4", "--out", store, "--max-bad", "99%"]
    result = CliRunner().invoke(main, ["extract", *map(str, options)])
    assert result.exit_code == 0, result.output
    (part,) = FeatureStore.open(store).partitions.values()
    found = dict(zip((video.path for video in part.videos), part.status(), strict=True))
    expected = {f"a/{Path(name).name}": Status.CORRUPT for name in REFUSED}
    expected |= {"a/hevc_sound.mkv": Status.OK, "a/R17_animated.gif": Status.OK}
    assert found == expected | {"a/hevc_damaged.mkv": Status.SALVAGED}


def overwritten(data: bytes, begin: int, length: int) -> bytes:
    return data[:begin] + bytes(length) + data[begin + length :]


def test_runs_of_zeros_are_left_out(tmp_path):
    """Where all that is left decodes, too; `bieff predict` says the same."""
    clips = {"a.mp4": H264, "b.mkv": H264, "c.ts": H264, "d.mp4": HEVC}
    whole = {name: stamped.write(tmp_path / f"w_{name}", clip) for name, clip in clips.items()}
    for name in ("a.mp4", "b.mkv", "d.mp4"):
        stamped.remux(
            whole[name],
            tmp_path / name,
            lambda i, data: overwritten(data, len(data) // 2, 16) if i == 17 else data,
        )
    data = whole["c.ts"].read_bytes()
    (tmp_path / "c.ts").write_bytes(overwritten(data, len(data) - 40 * 188, 39 * 188))
    for name, path in whole.items():
        decoded = decode_video(tmp_path / name, range)
        assert decoded.is_salvaged
        seen = stamped.read_numbers(decoded.frames)
        np.testing.assert_array_equal(decoded.frames, read_frames(path, range(48))[seen])
        assert len(seen) >= 24
    paths = [str(path) for name in clips for path in (tmp_path / name, whole[name])]
    options = ["--model", "tinyclip", "--labels", "kick, run", "--frames", "2"]
    result = CliRunner().invoke(main, ["predict", *paths, *options])
    assert result.exit_code == 3, result.output
    assert result.output.count(" frames decode: ") == len(clips)
    assert all(f"/{name}: damaged: " in result.output for name in clips)


def test_noise_in_the_index_of_an_avi(tmp_path):
    """All frames come by other ways, or what the index leaves out is noticed."""
    clip = replace(MPEG4, sound="libmp3lame")
    whole = stamped.write(tmp_path / "whole.avi", clip)
    right, data = read_frames(whole, range(48)), whole.read_bytes()
    path = tmp_path / "a.avi"
    place = data.index(b"idx1") + 8 + 16 * 20
    for seed in range(30, 40):
        begin = place + 16 * seed
        noise = np.random.default_rng(seed).bytes(160)
        path.write_bytes(data[:begin] + noise + data[begin + 160 :])
        decoded = decode_video(path, range)
        seen = stamped.read_numbers(decoded.frames)
        assert decoded.is_salvaged or seen == upright(48)
        np.testing.assert_array_equal(decoded.frames, right[seen])


@pytest.mark.parametrize(("size", "first"), [(188, 0), (192, 4), (204, 0)])
def test_transport_streams_of_all_sizes_are_whole(tmp_path, size, first):
    data = stamped.write(tmp_path / "a.ts", H264).read_bytes()
    packets = [data[begin : begin + 188] for begin in range(0, len(data), 188)]
    path = tmp_path / "b.ts"
    path.write_bytes(b"".join(bytes(first) + p + bytes(size - 188 - first) for p in packets))
    assert numbers(path) == (False, upright(48))


X264 = ("", "cabac=0:no-8x8dct=1", "slices=3", "interlaced=1", "cqm=jvt", "qp=0", "ref=6")


@pytest.mark.parametrize("options", X264)
@pytest.mark.parametrize("ending", ["mp4", "ts"])
def test_pictures_of_h264_become_taller(tmp_path, options, ending):
    """For the twin, and only for it; of what is sound it finds nothing."""
    clip = stamped.Clip(num_frames=12, b_frames=2, options={"x264-params": options})
    path = stamped.write(tmp_path / f"a.{ending}", clip)
    with open_video(path) as (container, stream):
        decoder = av.CodecContext.create("h264", "r")
        decoder.extradata, rows = taller_header(stream.codec_context.extradata)
        frame = next(f for p in container.demux(stream) for f in decoder.decode(_tall(p, rows)))
    assert rows == (16 if options == "interlaced=1" else 8)
    assert (frame.width, frame.height) == (160, 120 + 16 * rows)
    assert numbers(path) == (False, upright(12))


def _tall(packet, rows):
    if bytes(packet)[:3] not in (b"\0\0\0", b"\0\0\1") or packet.size < 4:
        return packet
    units = nal_units(packet, "h264", None)
    return av.Packet(pack((taller(unit, rows) for unit in units), "h264", None))


def test_data_of_h264_that_last_longer_than_the_picture(tmp_path):
    """The file says that its pictures are a row of blocks shorter than they are coded."""
    taken = {}
    for height in (144, 128):
        clip = stamped.Clip(num_frames=6, size=(160, height), options={"level": "1.3"})
        with open_video(stamped.write(tmp_path / f"{height}.mp4", clip)) as (_, stream):
            taken[height] = stream.codec_context.extradata
    data = (tmp_path / "144.mp4").read_bytes()
    assert data.count(taken[144]) == 1
    assert len(taken[144]) == len(taken[128])
    path = tmp_path / "short.mp4"
    path.write_bytes(data.replace(taken[144], taken[128]))
    with pytest.raises(InputError, match="a picture is garbled"):
        read_frames(path, [0])


def test_data_of_vp8_that_last_longer_than_the_picture(tmp_path):
    """The second of three keyframes says that it is shorter than it is coded."""
    clip = stamped.Clip(codec="libvpx", num_frames=36, gop=12, size=(160, 128))
    whole = stamped.write(tmp_path / "a.webm", clip)
    assert numbers(whole) == (False, upright(36))

    def shorter(number, data):
        return data if number != 12 else data[:8] + (112).to_bytes(2, "little") + data[10:]

    path = stamped.remux(whole, tmp_path / "b.webm", shorter)
    assert numbers(path) == (True, [*upright(12), *upright(12, begin=24)])


@pytest.mark.parametrize(
    ("table", "place", "frames"),
    [("stsz", 16 + 4 * 20, range(20)), ("ctts", 16 + 8 * 9, [*range(10), *range(11, 48)])],
)
def test_a_damaged_table_of_an_mp4(tmp_path, table, place, frames):
    """An impossible size ends the table; a time far away hides a frame, as edit lists do."""
    data = bytearray(stamped.write(tmp_path / "a.mp4", H264).read_bytes())
    data[data.index(table.encode()) + place] ^= 64
    path = tmp_path / "b.mp4"
    path.write_bytes(data)
    assert numbers(path) == (True, list(frames))


def test_a_damaged_cluster_of_a_webm(tmp_path):
    """Players skip what they do not know, and twelve frames with it."""
    clip = stamped.Clip(codec="libvpx", num_frames=48, gop=12, size=(320, 240))
    data = stamped.write(tmp_path / "a.webm", clip).read_bytes()
    parts = data.split(CLUSTER)
    assert len(parts) > 3
    path = tmp_path / "b.webm"
    path.write_bytes(CLUSTER.join(parts[:2]) + b"\x1f\x43\xb6\x77" + CLUSTER.join(parts[2:]))
    is_salvaged, shown = numbers(path)
    assert is_salvaged
    assert shown == upright(12) + upright(12, begin=36)


CLUSTER = bytes.fromhex("1f43b675")


@pytest.mark.parametrize("default", [0, 1])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_of_two_streams_the_default_one_is_read(tmp_path, ending, default):
    path = stamped.with_two_streams(tmp_path / f"two.{ending}", default=default)
    assert numbers(path) == (False, upright(24, begin=100 * default))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_cover_picture_is_no_video(tmp_path, ending):
    with pytest.raises(InputError, match="holds no video stream"):
        read_frames(stamped.with_cover(tmp_path / f"music.{ending}", None), [0])
    clip = stamped.Clip(num_frames=12)
    path = stamped.with_cover(tmp_path / f"both.{ending}", clip)
    assert numbers(path) == (False, upright(12))


@pytest.mark.parametrize("ending", ["mov", "avi", "mkv"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, -1), (3, 2), (8, 1)])
def test_exif_of_motion_jpeg_turns_it(tmp_path, ending, orientation, turns):
    clip = stamped.Clip(codec="mjpeg", pix_fmt="yuvj420p", num_frames=5)
    whole = stamped.write(tmp_path / f"whole.{ending}", clip)

    def change(_: int, data: bytes) -> bytes:
        return stamped.with_exif(data, orientation=orientation)

    path = stamped.remux(whole, tmp_path / f"exif.{ending}", change)
    decoded = decode_video(path, range)
    assert not decoded.is_salvaged
    right = np.rot90(read_frames(whole, range(5)), k=turns, axes=(1, 2))
    np.testing.assert_array_equal(decoded.frames, right)


@pytest.mark.parametrize(
    "colours", [{}, {"color_primaries": "bt2020", "color_trc": "smpte2084"}]
)
@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (1, 0, 0, -1)])
def test_vp9_is_turned_and_coloured_as_ffmpeg_does(tmp_path, matrix, colours):
    """Though another decoder decodes it, which is not told of either."""
    options = {"cpu-used": "8", "colorspace": "bt709"} | colours
    clip = stamped.Clip(codec="libvpx-vp9", num_frames=5, options=options)
    whole = stamped.write(tmp_path / "whole.mp4", clip)
    with av.open(str(whole)) as container:
        plain = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    path = stamped.turn(whole, tmp_path / "turned.mp4", matrix)
    right = {1: plain, 0: np.rot90(plain, k=-1, axes=(1, 2))}[matrix[0]]
    right = right[:, ::-1] if matrix[3] < 0 else right
    np.testing.assert_array_equal(decode_video(path, range).frames, right)


def test_empty_chunks_of_an_avi_are_no_frames(tmp_path):
    """The muxer fills gaps of the time stamps with them, and counts them."""
    times = [20 * i + 300 * (i > 7) for i in range(24)]
    clip = stamped.Clip(codec="mpeg4", num_frames=24, gop=12, times=times)
    path = stamped.write(tmp_path / "gaps.avi", clip)
    assert numbers(path) == (False, upright(24))


@pytest.mark.slow
def test_large_frames_come_back_smaller_and_ordinary_ones_untouched(tmp_path):
    clip = stamped.Clip(num_frames=2, size=(3840, 2160), options={"preset": "ultrafast"})
    large = decode_video(stamped.write(tmp_path / "large.mp4", clip), range)
    assert large.frames.shape == (2, 768, 1365, 3)
    assert stamped.read_numbers(large.frames) == [0, 1]
    upright_hd = stamped.Clip(num_frames=1, size=(1080, 1920), options={"preset": "ultrafast"})
    ordinary = decode_video(stamped.write(tmp_path / "ordinary.mp4", upright_hd), range)
    assert ordinary.frames.shape == (1, 1920, 1080, 3)


def test_pictures_beyond_8k_are_refused(tmp_path):
    path = tmp_path / "huge.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 8200, 4200, "gray"
        black = av.VideoFrame.from_ndarray(np.zeros((4200, 8200), np.uint8), format="gray")
        container.mux(stream.encode(black))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="cannot be read, or have more than 33,554,432 pixels"):
        read_frames(path, [0])


@pytest.mark.slow
def test_a_decoding_process_does_not_grow(tmp_path):
    """Twelve videos of 1080p took 600 MB more, until garbage was collected."""
    clip = stamped.Clip(num_frames=20, size=(1920, 1080), options={"preset": "ultrafast"})
    path = stamped.write(tmp_path / "hd.mp4", clip)
    with DecodePool(1) as pool:
        resident = []
        for row in range(12):
            (outcome,) = pool.decode([Job(row=row, path=path, choose=Grid(2))])
            assert outcome.status == Status.OK
            resident.append(psutil.Process(pool.pids[0]).memory_info().rss)
    assert max(resident[4:]) < resident[0] + 150 * 2**20


@pytest.mark.parametrize("budget", [1, 2**40])
def test_few_frames_are_in_flight_where_they_are_large(tmp_path, monkeypatch, budget):
    """Beyond the budget no video is begun while another is decoded or waits for the caller."""
    path = stamped.write(tmp_path / "a.mp4", stamped.Clip(num_frames=5))
    monkeypatch.setattr("bieff.extract.decode.pool._BYTES_A_WORKER", budget)
    beside = []  # videos beside each that is begun, once it is known how large they are
    give = _DecodeProcess.give

    def noted(process, attempt):
        if pool._largest:
            num_busy = sum(other.attempt is not None for other in pool._processes)
            beside.append(num_busy + len(pool._ready))
        give(process, attempt)

    monkeypatch.setattr(_DecodeProcess, "give", noted)
    jobs = [Job(row=i, path=path, choose=Grid(5)) for i in range(12)]
    with DecodePool(2) as pool:
        assert len(list(pool.decode(jobs))) == 12
    assert (max(beside) == 0) == (budget == 1)
