"""Videos in tar files and at addresses: found, decoded, stored as if they were plain files."""

import contextlib
import http.server
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import urllib.parse
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import extracting, stamped
from helpers.faulty_decoders import Grid
from helpers.places import TESTS
from helpers.processes import wait_for

from bieff.cli import main
from bieff.extract.catalogue import load
from bieff.extract.datasets.files import scan
from bieff.extract.decode.pool import DecodePool, Job
from bieff.extract.decode.segments import Segment
from bieff.extract.decode.source import at_hand
from bieff.extract.sources.tars import tar_at
from bieff.extract.sources.urls import objects_at, require_open, url_of, without_secrets
from bieff.features.errors import BieffError, InputError
from bieff.features.schema import Status
from bieff.features.store import FeatureStore

SECRET = "hush-hush"


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


def test_compressed_archives_are_said(tmp_path):
    for name in ("b.tar.gz", "a.TGZ"):
        (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(
        InputError, match=r"b\.tar\.gz: it is compressed, .* uncompressed \.tar"
    ):
        scan(tmp_path / "b.tar.gz", layout="videos")
    said = "compressed archives are not looked into: 2, the first is 'a.TGZ'; unpack them, or"
    with pytest.raises(InputError, match=f"no videos in .*; {re.escape(said)}"):
        scan(tmp_path, layout="videos")
    (tmp_path / "c.mp4").write_bytes(b"c")
    (note,) = scan(tmp_path, layout="videos").notes
    assert note.startswith(said)


def test_tars_of_class_folders_side_by_side_are_said(tmp_path):
    """They may be shards of one data set, which a list can say."""
    for tar in ("one", "two"):
        pack(tmp_path / f"{tar}.tar", [("run/a.mp4", b"1"), ("jump/b.mp4", b"1")])
    data = load("folder", videos=tmp_path)
    assert data.class_names == ("one", "two")
    (note,) = data.notes
    assert note.startswith("tar files stand for classes, 'one' is one, though their members")
    (tmp_path / "list.txt").write_text(
        "".join(f"{tar}/{name}.mp4\n" for tar in ("one", "two") for name in ("run/a", "jump/b"))
    )
    data = load("list", videos=tmp_path, lists={"all": tmp_path / "list.txt"})
    assert data.class_names == ("jump", "run")
    pack(tmp_path / "one.tar", [("a.mp4", b"1")])
    pack(tmp_path / "two.tar", [("b.mp4", b"1")])
    assert load("folder", videos=tmp_path).notes == ()  # a tar a class


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
    parts = tuple(Segment(start=a, end=a + 0.4, choose=Grid(3)) for a in (0.0, 0.5))
    with DecodePool(1) as pool:
        jobs = [Job(row=0, path=p, segments=parts) for p in (clip, tmp_path / videos[7].path)]
        found = [outcome.frames.tobytes() for job in jobs for outcome in pool.decode([job])]
    assert found[:2] == found[2:]
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


@pytest.mark.parametrize(
    ("path", "url"),
    [
        (Path("s3://bucket/a/b.mp4"), "s3://bucket/a/b.mp4"),
        ("https://host:8000/a", "https://host:8000/a"),
        (Path("/s3:/bucket"), None),
        (Path("s3/a"), None),
        ("C:/videos", None),
    ],
)
def test_an_address_is_kept_as_a_path(path, url):
    assert url_of(path) == url
    assert url is None or url_of(Path(path) / "c d.mp4") == f"{url}/c d.mp4"


@pytest.mark.parametrize("given", [f"user:{SECRET}@host/a", f"host/a?token={SECRET}"])
def test_secrets_of_an_address_are_refused_and_not_told(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for scheme in ("s3", "https"):
        arguments = ["extract", "--dataset", "ssv2", "--videos", f"{scheme}://{given}"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 1
        assert f"{scheme}://host/a: expected an address without user, password" in result.output
        assert SECRET not in result.output
    with pytest.raises(InputError, match="expected an address without"):
        require_open(Path(f"https://{given}"))
    assert list(tmp_path.iterdir()) == []
    error = f"403, message='No', url='https://{given}'; see s3://{given}"
    assert SECRET not in without_secrets(error)
    assert without_secrets(error).startswith("403, message='No', url='https://host/a")


def test_an_unknown_kind_of_address_is_one_sentence():
    with pytest.raises(InputError, match=r"^cannot read nonsense:// here: .+; name a folder"):
        scan(Path("nonsense://bucket/a"), layout="videos")


@contextlib.contextmanager
def serving(folder):
    """A folder at an address of this machine, as Python's own server shows it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_GET(self):
            if "forbidden" in self.path:
                self.send_error(403)
            elif "hung-up" in self.path:
                self.close_connection = True
            else:
                super().do_GET()

    handler = partial(Quiet, directory=os.fspath(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_folder_of_a_web_server(clip, tmp_path):
    pytest.importorskip("aiohttp")
    names = ["kick/a b.mp4", "kick/100%.mp4", "run/forbidden.mp4"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(clip.read_bytes())
    with serving(tmp_path) as url:
        sizes, odd = objects_at(url)
        assert (sizes, odd) == (dict.fromkeys(names, clip.stat().st_size), [])
        assert scan(Path(url), layout="videos").videos == scan(tmp_path, layout="").videos
        (plain, *found) = decode([clip, *(Path(url) / name for name in [*names, "no.mp4"])])
    assert [o.status.name for o in found] == ["OK", "OK", "MISSING", "MISSING"]
    assert all(o.frames.tobytes() == plain.frames.tobytes() for o in found[:2])
    assert found[2].message.startswith(f"cannot fetch '{url}/run/forbidden.mp4': 403, ")
    assert found[3].message == f"no video at '{url}/no.mp4'; check the address"


def test_a_listing_that_breaks_off_is_no_smaller_folder(tmp_path):
    pytest.importorskip("aiohttp")
    for name in ("kick", "hung-up"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").write_bytes(b"a")
    with (
        serving(tmp_path) as url,
        pytest.raises(InputError, match=f"^cannot list {url}: .+; check address"),
    ):
        objects_at(url)
    with pytest.raises(InputError, match=f"^cannot list {url}: .+; check address"):
        objects_at(url)  # nobody serves there any more


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """moto's server on a port of this machine; some keys are refused, some never answered."""
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    from werkzeug.serving import WSGIRequestHandler, make_server

    app = moto.DomainDispatcherApplication(moto.create_backend_app)
    over = threading.Event()

    class Quiet(WSGIRequestHandler):
        def log(self, *words):
            pass

    def faulty(environ, start_response):
        key = urllib.parse.unquote(environ["PATH_INFO"])
        if environ["REQUEST_METHOD"] != "PUT" and "stalled" in key:
            over.wait()
        if environ["REQUEST_METHOD"] != "PUT" and "forbidden" in key:
            start_response("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        return app(environ, start_response)

    server = make_server("127.0.0.1", 0, faulty, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        files = s3fs.S3FileSystem()
        files.mkdir("bucket")
        yield files
        over.set()
        server.shutdown()


@pytest.mark.slow
def test_faults_of_a_bucket_cost_their_videos_alone(s3, clip):
    names = ["a.mp4", "forbidden.mp4", "stalled.mp4", "b c/d?.mp4"]
    for name in names:
        s3.pipe_file(f"bucket/faults/{name}", clip.read_bytes())
    root = Path("s3://bucket/faults")
    size = clip.stat().st_size
    assert scan(root, layout="videos").videos == dict.fromkeys(sorted(names), size)
    paths = [root / name for name in [*names, "gone.mp4"]]
    (plain, *found) = decode([clip, *paths], deadline=40.0)
    assert [o.status.name for o in found] == ["OK", "MISSING", "MISSING", "OK", "MISSING"]
    assert all(o.frames.tobytes() == plain.frames.tobytes() for o in (found[0], found[3]))
    assert found[1].message.startswith("cannot fetch 's3://bucket/faults/forbidden.mp4': ")
    assert "nothing came for 8 s" in found[2].message
    assert found[4].message == "no video at 's3://bucket/faults/gone.mp4'; check the address"
    assert not any(SECRET in outcome.message for outcome in found)
    with pytest.raises(InputError, match="cannot list s3://nowhere/a: "):
        scan(Path("s3://nowhere/a"), layout="videos")


def killed(videos, out):
    """An extraction in a program of its own, killed when some of its shards are written."""
    command = [sys.executable, "-P", "-m", "helpers.extracting", str(videos), str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    def has_begun():
        with contextlib.suppress(BieffError, OSError):
            return FeatureStore.open(out).partitions["all"].done().any()

    wait_for(has_begun, process)
    process.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "s3"])
def test_killed_and_resumed_the_store_is_that_of_plain_files(clips, tmp_path, request, kind):
    names = sorted(path.relative_to(clips).as_posix() for path in clips.rglob("*.mp4"))
    folder, out = tmp_path / "clips", tmp_path / "store"
    if kind == "tar":
        videos = pack(tmp_path / "x.tar", [(n, (clips / n).read_bytes()) for n in names])
    else:
        videos = Path("s3://bucket/clips")
        files = request.getfixturevalue("s3")
        for name in names:
            files.pipe_file(f"bucket/clips/{name}", (clips / name).read_bytes())
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((clips / name).read_bytes())
    plain = extracting.plan_data(load("folder", videos=folder), tmp_path / "plain")
    assert extracting.extract_small(plain).is_whole
    killed(videos, out)
    before = FeatureStore.open(out).partitions["all"].done().sum()
    store = extracting.plan_data(load("folder", videos=videos), out)
    summary = extracting.extract_small(store, config=extracting.PATIENT)
    assert summary.is_whole
    assert summary.shards_written == 6 - before
    extracting.assert_same(store, plain)
    table = Path("videos", "all.jsonl")
    assert (store.path / table).read_bytes() == (plain.path / table).read_bytes()
    assert not any(SECRET in p.read_text(errors="replace") for p in out.rglob("*.json*"))
