"""Videos in tar files and at addresses: found, decoded and stored as if they were plain files."""

import contextlib
import http.server
import io
import os
import shutil
import signal
import tarfile
import threading
from functools import partial
from pathlib import Path

import pytest
from helpers import extracting, stamped
from helpers.faulty_decoders import Grid
from helpers.places import TESTS
from helpers.processes import bieff, wait_for

from bieff.extract.catalogue import load
from bieff.extract.datasets.files import scan
from bieff.extract.decode.pool import DecodePool, Job
from bieff.extract.decode.source import at_hand
from bieff.extract.sources.tars import tar_at
from bieff.extract.sources.urls import require_open, shown, url_of, without_secrets
from bieff.features.errors import InputError
from bieff.features.schema import Status
from bieff.features.store import FeatureStore


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return stamped.write(path, stamped.Clip(num_frames=29, gop=12, size=(96, 64)))


def pack(tar, members):
    """A tar file of these members, name -> bytes or TarInfo; a name may come twice."""
    with tarfile.open(tar, "w") as file:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
            else:
                file.addfile(info)
    return tar


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


def decode(paths, *, deadline=20.0):
    with DecodePool(1, deadline=deadline) as pool:
        jobs = [Job(row=i, path=path, choose=Grid(5)) for i, path in enumerate(paths)]
        found = {outcome.row: outcome for outcome in pool.decode(jobs)}
    return [found[i] for i in range(len(paths))]


@pytest.mark.parametrize("prefix", ["", "./", "train/", "./train/"])
def test_a_tar_is_the_folder_of_its_name(tmp_path, prefix):
    members = [(f"{prefix}kick/{name}.mp4", name.encode() * 7) for name in ("a", "b")]
    pack(tmp_path / "train.tar", members)
    (tmp_path / "val" / "kick").mkdir(parents=True)
    (tmp_path / "val" / "kick" / "c.mp4").write_bytes(b"c")
    found = scan(tmp_path, layout="videos")
    assert found.videos == {"train/kick/a.mp4": 7, "train/kick/b.mp4": 7, "val/kick/c.mp4": 1}
    assert found.notes == ()
    assert scan(tmp_path / "train.tar", layout="videos").videos == {
        "kick/a.mp4": 7,
        "kick/b.mp4": 7,
    }
    assert set(load("folder", videos=tmp_path).partitions) == {"train", "val"}


def test_names_of_strangers_lead_nowhere(tmp_path):
    odd = ["/etc/a.mp4", "../a.mp4", "a/../../b.mp4", "a\nb.mp4", "\udcff.mp4"]
    tar = pack(
        tmp_path / "x.tar",
        [
            *((name, b"12") for name in odd),
            special("link.mp4", tarfile.SYMTYPE, "/etc/passwd"),
            special("hard.mp4", tarfile.LNKTYPE, "fine.mp4"),
            special("pipe.mp4", tarfile.FIFOTYPE),
            special("disk.mp4", tarfile.BLKTYPE),
            (".hidden/a.mp4", b"1"),
            ("read.me", b"1"),
            ("fine.mp4", b"1"),
            ("fine.mp4", b"123"),  # unpacked, the last of two stands
            ("long" * 40 + ".mp4", b"1234"),
        ],
    )
    found = scan(tar, layout="videos")
    assert found.videos == {"fine.mp4": 3, "long" * 40 + ".mp4": 4}
    assert found.notes == (
        "x.tar: 9 videos left out, which are links or have names that lead elsewhere or cannot "
        "be printed, the first is '../a.mp4'",
    )


@pytest.mark.parametrize(
    ("cut", "fault"),
    [(-10240, "its end is missing"), (1800, "unexpected end of data")],
)
def test_a_tar_without_its_end_is_told(tmp_path, cut, fault):
    tar = pack(tmp_path / "x.tar", [(f"{i}.mp4", b"1" * 512) for i in range(3)])
    content = tar.read_bytes()[:cut] if cut > 0 else tar.read_bytes().rstrip(b"\0")
    tar.write_bytes(content)
    (note,) = scan(tar, layout="videos").notes
    assert fault in note
    (tmp_path / "y.tar").write_bytes(b"\x1f\x8b none" * 200)
    with pytest.raises(InputError, match="no videos in"):
        scan(tmp_path / "y.tar", layout="videos")


def test_two_thousand_members_are_found_and_decoded_in_place(clip, tmp_path):
    names = [f"class{i % 10}/{i:04d}.mp4" for i in range(2000)]
    pack(tmp_path / "x.tar", [(name, clip.read_bytes()) for name in names])
    videos = load("folder", videos=tmp_path).partitions["all"]
    assert [video.path for video in videos] == sorted(f"x/{name}" for name in names)
    assert {video.size for video in videos} == {clip.stat().st_size}
    assert tar_at(tmp_path / "x.tar") is tar_at(tmp_path / "x.tar")  # read once
    (plain, *found) = decode([clip, *(tmp_path / video.path for video in videos[::250])])
    for outcome in found:
        assert (outcome.status, outcome.decoder) == (Status.OK, plain.decoder)
        assert outcome.frames.tobytes() == plain.frames.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_faults_of_a_tar_cost_their_videos_alone(clip, tmp_path):
    content = clip.read_bytes()
    tar = pack(tmp_path / "x.tar", [(f"{i}.mp4", content) for i in range(3)])
    damaged = content[: len(content) // 3]
    pack(tmp_path / "y.tar", [("a.mp4", damaged), ("b.mp4", content)])
    whole = tar.read_bytes()
    tar.write_bytes(whole[: 2 * (512 + -(-len(content) // 512) * 512) + 700])
    paths = [tmp_path / f"x/{i}.mp4" for i in range(4)] + [tmp_path / "y/a.mp4"]
    (*fine, cut, gone, bad) = decode(paths)
    assert [outcome.status for outcome in fine] == [Status.OK, Status.OK]
    assert cut.status == Status.CORRUPT
    left = len(content) - 188
    assert cut.message == (
        f"cannot read '{tmp_path}/x/2.mp4': '{tar}' ends {left:,} bytes before the end of it"
    )
    assert gone.status == Status.MISSING
    assert gone.message == f"no video at '{tmp_path}/x/3.mp4'; check the path"
    assert bad.status.failed or bad.status == Status.SALVAGED
    assert "/proc/" not in bad.message


def test_a_tar_that_changes_while_it_is_read(clip, tmp_path):
    tar = pack(tmp_path / "x.tar", [("a.mp4", clip.read_bytes())])
    member = tar_at(tar).members["a.mp4"]
    with at_hand("a.mp4", member, deadline=1) as name:
        assert Path(name).read_bytes() == clip.read_bytes()
    pack(tar, [("before.mp4", b"another"), ("a.mp4", clip.read_bytes())])
    with (
        pytest.raises(InputError, match="was changed since it was listed"),
        at_hand("a.mp4", member, deadline=1),
    ):
        pass
    assert decode([tmp_path / "x/a.mp4"])[0].status == Status.OK  # found anew
