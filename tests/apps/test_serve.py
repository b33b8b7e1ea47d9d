"""`bieff serve`: real requests over real sockets, and once a real browser."""

import asyncio
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import psutil
import pytest
from click.testing import CliRunner
from helpers import stamped
from helpers.browser import PHONE
from helpers.processes import BIEFF, wait_for

from bieff.apps.connections import Connection
from bieff.apps.predictor import Predictor
from bieff.apps.serve import Limits, make_app, make_server, typed_labels
from bieff.cli import main
from bieff.clip import ClipName
from bieff.features.class_names import readable
from bieff.features.errors import InputError

TINYCLIP = ClipName(model="tinyclip", pretrained=None)
LIMITS = Limits(num_bytes=300_000, seconds=2.0, waiting=2)
PATIENT = Limits(num_bytes=300_000, seconds=60.0, waiting=3, each=2)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Comes when the server begins to read a body."""

NASTY = "<script>alert(1)</script>"


class Site:
    """A server in this process; asks it as a browser would."""

    def __init__(self, app, connection=Connection):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.server = make_server(app, connection)
        arguments = {"sockets": [self.listener]}
        self.thread = threading.Thread(target=self.server.run, kwargs=arguments)
        self.thread.start()  # who asks before it is ready waits

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.should_exit = True
        self.thread.join(10)
        self.listener.close()

    def settle(self):
        """Wait until whatever came in is answered or given up, and its folder gone."""
        for task in list(self.server.server_state.tasks):
            asyncio.run_coroutine_threadsafe(asyncio.wait([task]), task.get_loop()).result(30)

    def connect(self, source="127.0.0.1"):
        """A connection from an address of this machine."""
        return socket.create_connection(
            ("127.0.0.1", self.port), timeout=30, source_address=(source, 0)
        )

    def begin(self, length, source="127.0.0.1"):
        """An upload that the server waits for."""
        connection = self.connect(source)
        connection.sendall(
            f"POST /predict?labels=a,b HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        return connection

    def ask(self, method, path, body=None, **headers):
        """Status, headers and text of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, fields)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, answer.headers, text

    def predict(self, body, labels="a square, a circle", name="clip.mp4", **headers):
        query = urlencode({"labels": labels, "name": name})
        status, _, text = self.ask("POST", f"/predict?{query}", body, **headers)
        return status, json.loads(text)


@pytest.fixture(scope="module")
def predictor():
    with Predictor.load(clip=TINYCLIP, device="cpu", decoders=1, deadline=20) as predictor:
        yield predictor


@pytest.fixture(scope="module")
def site(predictor):
    with Site(make_app(predictor, LIMITS)) as started:
        yield started


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return stamped.write(path, stamped.Clip(num_frames=30))


def left_behind():
    return sorted(Path(tempfile.gettempdir()).glob("bieff-serve-*"))


@pytest.fixture(autouse=True)
def nothing_stays(request):
    before = left_behind()
    yield
    if "site" in request.fixturenames:
        request.getfixturevalue("site").settle()
    assert left_behind() == before


def test_the_page_loads_nothing_from_elsewhere(site):
    status, headers, text = site.ask("GET", "/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    policy = headers["content-security-policy"]
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy).group(1)
    assert policy.startswith("default-src 'none'; ")
    assert f'<script nonce="{nonce}">' in text
    assert "http:" not in text
    assert "https:" not in text
    assert nonce not in site.ask("GET", "/")[2]  # another one for every page


def test_a_video_gets_scores_and_keyframes(site, clip):
    labels = f"brush_hair,\nriding a bike, {NASTY}"
    status, found = site.predict(clip.read_bytes(), labels, "my <clip>.mp4")
    assert status == 200, found
    assert found["name"] == "my <clip>.mp4"
    assert found["message"] == ""
    assert {s["label"] for s in found["scores"]} == {"brush hair", "riding a bike", NASTY}
    assert sum(s["score"] for s in found["scores"]) == pytest.approx(1)
    assert len(found["frames"]) == 8
    seconds = [frame["seconds"] for frame in found["frames"]]
    assert seconds == sorted(seconds)
    assert max(abs(frame["height"]) for frame in found["frames"]) == pytest.approx(1)
    for frame in found["frames"]:
        assert frame["picture"].startswith("data:image/jpeg;base64,/9j/")
        assert frame["when"] == f"{frame['seconds']:.2f} s"


def test_it_scores_as_predict_does(site, clip):
    labels = ["one", "two", "three"]
    _, found = site.predict(clip.read_bytes(), ", ".join(labels))
    with Predictor.load(clip=TINYCLIP, device="cpu", decoders=1) as predictor:
        [ours] = predictor.predict([clip], labels)
    assert [(s["label"], s["score"]) for s in found["scores"]] == ours.ranking()


def test_it_scores_windows_along_a_video(site, clip):
    query = "/predict?labels=one,two&name=a.mp4&windows=0.4&every="
    status, _, text = site.ask("POST", query, clip.read_bytes())
    found = json.loads(text)
    assert status == 200, found
    assert [one["start"] for one in found["windows"]] == [0, 0.4, 0.8]
    assert {one["label"] for one in found["windows"]} <= {"one", "two"}
    assert all(one["picture"].startswith("data:image/jpeg") for one in found["windows"])
    assert sum(s["score"] for s in found["scores"]) == pytest.approx(1)
    status, _, text = site.ask("POST", query.replace("0.4", "ten"), clip.read_bytes())
    assert status == 400
    assert "expected two numbers of seconds, got 'ten'" in json.loads(text)["error"]


def test_whoever_waits_is_told_how_many_windows_are_done(predictor, clip, monkeypatch):
    go_on, predict = threading.Event(), predictor.predict

    def paused(*arguments, **options):
        for number, found in enumerate(predict(*arguments, **options)):
            if number == 2:
                go_on.wait()
            yield found

    monkeypatch.setattr(predictor, "predict", paused)
    query = "/predict?labels=one,two&windows=0.3&watch=mine"
    with Site(make_app(predictor, PATIENT)) as site, ThreadPoolExecutor(1) as pool:

        def far(watch="mine"):
            return json.loads(site.ask("GET", f"/progress?watch={watch}")[2])

        assert far() == {"done": 0, "of": 0}
        answer = pool.submit(site.ask, "POST", query, clip.read_bytes())
        wait_for(lambda: far()["done"] == 2)
        assert far() == {"done": 2, "of": 4}
        assert far("another") == {"done": 0, "of": 0}
        assert site.ask("GET", "/progress?watch=mine", Host="evil.example")[0] == 400
        go_on.set()
        assert len(json.loads(answer.result()[2])["windows"]) == 4
        assert far() == {"done": 0, "of": 0}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"this is no video at all", "cannot open video 'mine.mp4'"),
        (b"\0" * 1000, "'mine.mp4'"),
        (b"\0\0\0\x18ftypisom", "'mine.mp4'"),
    ],
)
def test_a_corrupt_upload_is_a_sentence_and_the_next_is_answered(site, clip, body, message):
    status, found = site.predict(body, name="../../etc/mine.mp4")
    assert status == 200
    assert message in found["message"]
    assert "/tmp" not in found["message"]
    assert found["scores"] == found["frames"] == []
    assert site.predict(clip.read_bytes())[0] == 200


def test_a_video_cut_short_is_used_and_said(site, clip):
    data = clip.read_bytes()
    status, found = site.predict(data[: len(data) * 2 // 3])
    assert status == 200
    assert found["message"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("", "no classes to choose from"),
        ("only one", "class names: expected 2 to 1,000 with commas between them, got 1"),
        ("one, one", "'one'"),
        ("a, " + "very " * 100 + "long", "use a shorter text"),
        (",".join(map(str, range(1001))), "got 1,001"),
    ],
)
def test_wrong_class_names_are_a_sentence(site, clip, labels, message):
    status, found = site.predict(clip.read_bytes(), labels)
    assert status == 400
    assert message in found["error"]


def test_class_names_are_never_a_file(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("secret\nwords\n")
    with pytest.raises(InputError, match="got 1"):
        typed_labels(str(file))
    assert typed_labels(f"{file}, walking") == [readable(str(file)), "walking"]
    assert typed_labels(" , \n ") is None


def test_a_video_too_large_is_refused_before_it_came(site):
    with site.begin(300_001) as connection:
        answer = connection.makefile("rb").read()  # the server ends the connection
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"larger than 0.3 MB; see --max-upload" in answer


def test_a_video_that_does_not_say_its_size_is_counted(site):
    status, found = site.predict(b"x" * 50_000 for _ in range(7))  # sent in chunks
    assert (status, "larger than" in found["error"]) == (413, True)


@pytest.mark.slow
def test_a_slow_upload_is_given_up(site):
    with site.begin(1000) as connection:
        assert connection.recv(100) == CONTINUE
        connection.sendall(b"x")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the upload took longer than 2 s" in answer


def test_an_upload_that_is_broken_off_leaves_nothing(site, clip):
    with site.begin(1000) as connection:
        assert connection.recv(100) == CONTINUE
        connection.sendall(b"x")
    assert site.predict(clip.read_bytes())[0] == 200


def test_no_upload_is_a_sentence(site):
    assert site.predict(b"") == (400, {"error": "no video came; choose a file"})


def test_two_at_a_time_are_both_answered(site, clip):
    with ThreadPoolExecutor(LIMITS.waiting) as pool:
        body = clip.read_bytes()
        asked = [pool.submit(site.predict, body) for _ in range(LIMITS.waiting)]
        answers = [question.result() for question in asked]
    assert [status for status, _ in answers] == [200] * LIMITS.waiting
    assert answers[0] == answers[1]


def test_too_many_at_a_time_are_sent_away(site, clip):
    waiting = [site.begin(1000) for _ in range(LIMITS.waiting)]
    assert [connection.recv(100) for connection in waiting] == [CONTINUE] * LIMITS.waiting
    status, found = site.predict(clip.read_bytes())
    assert (status, found["error"][:8]) == (503, "too many")
    for connection in waiting:
        connection.close()
    site.settle()
    assert site.predict(clip.read_bytes())[0] == 200


def test_other_sites_cannot_ask(site, clip):
    for origin in ("https://evil.example", "null", "http://[", f"http://localhost:{site.port}"):
        status, found = site.predict(clip.read_bytes(), Origin=origin)
        assert (status, found["error"]) == (403, "this address answers its own page only")
    assert site.predict(clip.read_bytes(), Origin=f"http://127.0.0.1:{site.port}")[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("127.0.0.1", "localhost", "LOCALHOST:8000", "localhost.")),
        *((host, 200) for host in ("[::1]", "[::1]:8000", "192.168.1.7:8000")),
        *((host, 400) for host in ("evil.example", "localhost.evil.example", "", "[::1")),
        (socket.gethostname(), 400),  # which is bound to the local addresses alone
    ],
)
def test_names_of_this_machine(site, clip, host, status):
    """A name that somebody else gave this machine is refused ("DNS rebinding")."""
    assert site.ask("GET", "/", Host=host)[0] == status
    answer = site.ask("POST", "/predict?labels=a,b", clip.read_bytes(), Host=host)
    assert answer[0] == (200 if status == 200 else 403)


def ended(connection):
    """Wait until the other side ends the connection; what it said."""
    try:
        return connection.makefile("rb").read()
    except ConnectionResetError:
        return b""


def dripped(connection, byte=b"x"):
    """Send a byte at a time until the other side ends the connection; what it said."""
    try:
        while not select.select([connection], [], [], 0.05)[0]:
            connection.sendall(byte)
    except (BrokenPipeError, ConnectionResetError):
        return b""
    return ended(connection)


def test_slow_heads_lock_nobody_out(site, clip):
    """Twice the connections that there may be, from one address and from several."""
    slow = []
    for number in range(2 * Connection.most):
        slow.append(site.connect(f"127.0.0.{2 + number % 4 if number % 2 else 1}"))
        slow[-1].sendall(b"GET / HT")
    assert site.ask("GET", "/")[0] == 200
    assert site.predict(clip.read_bytes())[0] == 200
    assert ended(slow[0]) == b""  # the first had to go
    for connection in slow:
        connection.close()


@pytest.mark.slow
def test_a_head_has_some_seconds(predictor):
    class Quick(Connection):
        head_seconds = 0.3

    with Site(make_app(predictor, LIMITS), Quick) as quick:
        with quick.connect() as silent, quick.connect() as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nX: ")
            assert dripped(slow) == b""
            assert ended(silent) == b""
        with quick.connect() as again:  # behind an answer, too
            again.sendall(f"GET /no HTTP/1.1\r\nHost: 127.0.0.1:{quick.port}\r\n\r\n".encode())
            assert again.recv(10) == b"HTTP/1.1 4"
            assert b"Not Found" in dripped(again)


@pytest.mark.slow
def test_slow_uploads_give_way(predictor, clip):
    """Two of one address, which may have no more, and one of another: all places there are."""
    with Site(make_app(predictor, PATIENT)) as patient:
        slow = [
            patient.begin(1000, source) for source in ("127.0.0.2", "127.0.0.2", "127.0.0.3")
        ]
        assert [connection.recv(100) for connection in slow] == [CONTINUE] * 3
        status = 503
        while status == 503:  # until they are behind by a second
            status, _ = patient.predict(clip.read_bytes())
        assert status == 200
        assert b"the upload came slower than 10 kB/s" in ended(slow[0])
        with patient.begin(1000, "127.0.0.2") as third:  # in the place of the second
            assert third.recv(100) == CONTINUE
            assert ended(slow[1]).startswith(b"HTTP/1.1 408 ")
        for connection in slow:
            connection.close()
        patient.settle()


def test_an_address_has_a_part_of_the_places(predictor, clip):
    with Site(make_app(predictor, PATIENT)) as patient:
        fast = [patient.begin(200_000, "127.0.0.2") for _ in range(2)]
        for connection in fast:
            assert connection.recv(100) == CONTINUE
            connection.sendall(b"x" * 100_000)  # ten seconds' worth
        with patient.begin(1000, "127.0.0.2") as third:
            assert ended(third).startswith(b"HTTP/1.1 503 ")
        assert patient.predict(clip.read_bytes())[0] == 200
        for connection in fast:
            connection.close()
        patient.settle()


@pytest.mark.slow
def test_a_body_a_byte_at_a_time_is_given_up(predictor):
    with Site(make_app(predictor, PATIENT)) as patient, patient.begin(1000) as slow:
        assert slow.recv(100) == CONTINUE
        said = dripped(slow)  # nothing, where a last byte crossed the answer
        assert said == b"" or b"the upload came slower than 10 kB/s; try again" in said


def test_other_addresses_and_methods(site):
    assert site.ask("GET", "/etc/passwd")[0] == 404
    assert site.ask("GET", f"/{quote('../serve.py')}")[0] == 404
    assert site.ask("GET", "/predict")[0] == 405


def command(*arguments):
    return [*BIEFF, "serve", *map(str, arguments)]


class Command:
    """`bieff serve` as a user starts it."""

    def __init__(self, folder, *arguments):
        self.process = subprocess.Popen(
            command("--port", 0, "--device", "cpu", *arguments),
            cwd=folder,
            env=os.environ | {"TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = []
        for line in self.process.stdout:
            self.said.append(line.strip())
            if line.startswith("http"):
                break
        assert self.said, self.process.stderr.read()
        self.address = self.said[-1].split()[0]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def stop(self, number=signal.SIGINT):
        """Ctrl-C, or another signal; its exit code, and what it said to standard error."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=30)
        psutil.wait_procs(family, 5)
        assert not [child for child in family if child.is_running()]
        return self.process.returncode, said


@pytest.mark.parametrize("deadline", ["inf", "nan", "0", "1e9"])
def test_an_upload_has_a_day_at_most(deadline):
    result = CliRunner().invoke(main, ["serve", "--model", "tinyclip", "--deadline", deadline])
    assert result.exit_code == 1
    assert "--deadline of at most 86400 seconds, got 200 and " in result.output


@pytest.mark.slow
def test_an_address_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            command("--model", "tinyclip", "--port", port),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: cannot listen at 127.0.0.1 port {port}: ")


@pytest.mark.slow
def test_the_command_listens_here_alone_and_ends_at_ctrl_c(tmp_path):
    with Command(tmp_path, "--model", "tinyclip") as started:
        assert started.said[0] == "frozen CLIP tinyclip, 8 frames"
        assert started.address.startswith("http://127.0.0.1:")
        sockets = psutil.Process(started.process.pid).net_connections()
        listening = {c.laddr.ip for c in sockets if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        assert started.stop() == (0, "")
    assert [path for path in tmp_path.iterdir() if not is_of_torch(path)] == []


def is_of_torch(path):
    """True of the folder that torch makes where temporary files are, when a CLIP is loaded."""
    return path.name.startswith("torchinductor_")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_it_leaves_no_upload_behind(tmp_path, number):
    with Command(tmp_path, "--model", "tinyclip") as started:
        host, _, port = started.address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as upload:
            upload.sendall(
                f"POST /predict?labels=a,b HTTP/1.1\r\nHost: {host}\r\n"
                "Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n".encode()
            )
            assert upload.recv(100) == CONTINUE
            assert len(list(tmp_path.glob("bieff-serve-*"))) == 1
            code, said = started.stop(number)
    assert code == 128 + signal.SIGTERM
    assert "Traceback" not in said
    assert [path for path in tmp_path.iterdir() if not is_of_torch(path)] == []


def asked(address, name):
    """Status of the page under a name."""
    request = urllib.request.Request(address, headers={"Host": name})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
@pytest.mark.parametrize("host", ["::1", "localhost", "0.0.0.0"])
def test_the_address_that_it_says_works(tmp_path, host):
    with Command(tmp_path, "--model", "tinyclip", "--host", host) as started:
        own = [socket.gethostname()] if host == "0.0.0.0" else []
        for name in (urlsplit(started.address).netloc, "localhost", *own):
            assert asked(started.address, name) == 200
        assert asked(started.address, "evil.example") == 400
        assert started.stop() == (0, "")


@pytest.mark.slow
def test_in_a_real_browser(browser, world, tmp_path):
    """A trained run: choose a video, type names, see scores and keyframes, on any screen."""
    with Command(tmp_path, "--run", world / "runs" / "shapes") as started:
        look_at_the_page(browser, started.address, world, tmp_path)
        assert started.stop() == (0, "")


def look_at_the_page(browser, address, world, tmp_path):
    browser.open(address)
    browser.screenshot(tmp_path / "empty.png")
    assert "31 classes" in browser.find("textarea").get_attribute("placeholder")

    browser.find("#go").click()
    assert browser.find("#error").text == "choose a video first"

    video = next((world / "data" / "shapes" / "val").rglob("*.mp4"))
    browser.find("#file").send_keys(str(video))
    assert browser.find("#chosen").text == video.name
    browser.find("#labels").send_keys(f"{video.parent.name}, something else, {NASTY}")
    browser.find("#go").click()
    browser.wait(lambda: browser.find("#result").is_displayed())
    assert browser.find("#title").text.startswith(f"{video.name}: ")
    rows = browser.find_all("#scores th")
    assert {row.text for row in rows} == {video.parent.name, "something else", NASTY}
    frames = browser.find_all("#frames img")
    assert len(frames) == 8
    browser.wait(
        lambda: all(browser.run("return arguments[0].naturalWidth", f) for f in frames)
    )
    assert all(f.get_attribute("alt").startswith("frame ") for f in frames)
    assert "Word-Guided weights S" in browser.find("#caption").text
    browser.screenshot(tmp_path / "desktop.png")
    browser.look(dark=True)
    browser.screenshot(tmp_path / "dark.png")
    browser.look((390, 844))
    assert browser.overflow() == 0
    tops = [frame.rect["y"] for frame in browser.find_all("#frames img")]
    assert [tops.count(top) for top in sorted(set(tops))] == [4, 4]
    browser.screenshot(tmp_path / "phone.png")

    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    browser.find("#file").send_keys(str(broken))
    browser.find("#go").click()
    browser.wait(lambda: "cannot open video 'broken.mp4'" in browser.find("#error").text)
    assert not browser.find("#result").is_displayed()
    browser.screenshot(tmp_path / "broken.png")

    look_along_its_time(browser, tmp_path)
    assert browser.complaints() == []
    asked = {address for address in browser.requests() if not address.startswith("blob:")}
    assert {address.partition("?")[0] for address in asked} == {
        f"{address}/",
        f"{address}/predict",
        f"{address}/progress",
    }


def look_along_its_time(browser, tmp_path):
    """Windows of five minutes, and how many of them are done meanwhile."""
    long = stamped.write(
        tmp_path / "long.mp4", stamped.Clip(num_frames=300, fps=1, gop=20, size=(96, 64))
    )
    browser.look()
    browser.find("#file").send_keys(str(long))
    browser.find("#windows").send_keys("10")
    browser.find("#every").send_keys("5")
    browser.find("#go").click()
    browser.wait(lambda: browser.find("#far").text.endswith(" of 59 windows"), seconds=60)
    done = int(browser.find("#far").text.split()[0])
    assert float(browser.run("return arguments[0].value", browser.find("#progress"))) > 0
    assert 1 <= done < 59
    browser.screenshot(tmp_path / "windows-busy.png")
    browser.wait(lambda: browser.find("#result").is_displayed(), seconds=300)
    assert not browser.find("#busy").is_displayed()
    assert "mean over 59 windows" in browser.find("#how-many").text
    assert len(browser.find_all("#windows-found tr")) == 59
    bars = [bar.rect for bar in browser.find_all("#bars i")]
    assert len(bars) == 59
    assert [bar["x"] for bar in bars] == sorted(bar["x"] for bar in bars)
    assert browser.find("#until").text == "0:05:00"
    assert len(browser.find_all("#tiles img")) == 8
    browser.screenshot(tmp_path / "windows.png")
    browser.look(PHONE)
    assert browser.overflow() == 0
    browser.screenshot(tmp_path / "windows-phone.png")
