"""What is printed: names that are attacks on a terminal, odd bytes, a locale of ASCII alone."""

import json
import os
import pty
import shutil
import subprocess
import sys
import unicodedata

import pytest
from click.testing import CliRunner
from helpers.processes import BIEFF

from bieff.apps.terminal import clean
from bieff.cli import main

ATTACK = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202e[red]x\b"
"""Retitles, recolours, clears, turns around; and markup of rich's."""

SHOWN = r"\x1b]0;owned\x07\x1b[31m\x9b2J\u202e[red]x\x08"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (ATTACK, SHOWN),
        ("two\nlines\r", r"two\nlines\r"),
        ("\udcff.mp4", r"\udcff.mp4"),
        ("naïve “quotes” 踢球 می‌رود 👩‍🚒\t|", "naïve “quotes” 踢球 می‌رود 👩‍🚒\t|"),
    ],
)
def test_clean(text, shown):
    assert clean(text) == shown
    assert clean(clean(text)) == shown


def test_lines_stay_where_they_are_meant():
    assert clean("two\nlines\r", lines=True) == "two\nlines\\r"


def test_no_control_character_passes():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    passed = {
        c for c in clean(every) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    }
    assert passed == {"\t", "\u200c", "\u200d"}


def in_terminal(*arguments, cwd):
    """Exit code of a command in a pseudo-terminal, and all bytes that the terminal got."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*BIEFF, *map(os.fspath, arguments)],
        cwd=cwd,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "400"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        got = b""
        try:
            while part := os.read(ours, 65536):
                got += part
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    return process.returncode, got.decode()


def harmless(said):
    """No sequence of the attack came through, and it was shown."""
    pieces = ("\x1b]0;", "\x07", "\x1b[31m\x9b", "\x9b", "\u202e")
    return SHOWN in said and not any(piece in said for piece in pieces)


@pytest.fixture
def clip(world):
    return next((world / "data" / "shapes-unseen").rglob("*.mp4"))


@pytest.mark.slow
def test_predict_in_a_terminal(tmp_path, clip):
    shutil.copy(clip, tmp_path / f"{ATTACK}.mp4")
    labels = f"{ATTACK}, other"
    code, said = in_terminal(
        *("predict", f"{ATTACK}.mp4", f"{ATTACK}.avi", "--labels", labels),
        *("--model", "tinyclip", "--device", "cpu"),
        cwd=tmp_path,
    )
    assert code == 3
    assert harmless(said)
    assert "\x1b" not in said
    assert f"{SHOWN}.mp4\r\n" in said
    assert f"%  {SHOWN}\r\n" in said
    assert "not used: no video at" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("store", "info", ATTACK),
        ("eval", ATTACK),
        ("extract", "--dataset", ATTACK),
        ("predict", f"-{ATTACK}.mp4"),
        ("train", "--features", ATTACK, "--set", f"{ATTACK}=1"),
    ],
)
def test_errors_are_harmless(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (1, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert clean(result.output, lines=True) == result.output
    assert "owned" in result.output


@pytest.mark.slow
def test_bars_and_tables_in_a_terminal(tmp_path, world):
    """A data set whose every name is an attack: extracted, trained, evaluated."""
    clips = sorted((world / "data" / "shapes").rglob("*.mp4"))[:4]
    for number, source in enumerate(clips):
        shutil.copy(source, tmp_path / f"{number}{ATTACK}.mp4")
    for part, chosen in (("train", (0, 1)), ("val", (2, 3))):
        lines = [f"{number}{ATTACK}.mp4 {number % 2}" for number in chosen]
        (tmp_path / f"{part}.txt").write_text("\n".join(lines))
    (tmp_path / "labels.json").write_text(json.dumps([f"a {ATTACK}", f"b {ATTACK}"]))
    store, run = f"{ATTACK}-store", f"{ATTACK}-run"
    settings = ("epochs=1", "warmup_epochs=0", "temporal_layers=1", "eval_every=1")
    device = ("--device", "cpu")
    for arguments in (
        (
            *("extract", "--dataset", "list", "--list", "train=train.txt", "--out", store),
            *("--list", "val=val.txt", "--labels", "labels.json", "--videos", "."),
            *("--frames", "2", "--model", "tinyclip", "--set", "decoders=1", *device),
        ),
        (
            *("train", "--features", store, "--out", run, *device),
            *(word for setting in settings for word in ("--set", setting)),
        ),
        ("eval", run, "--per-class", "--confusions", "2", *device),
        ("store", "info", store),
        ("report", run, *device),
    ):
        code, said = in_terminal(*arguments, cwd=tmp_path)
        assert code == 0, said
        assert harmless(said), said


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_odd_bytes_and_a_locale_of_ascii(tmp_path, clip, locale):
    name = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    shutil.copy(os.fsencode(clip), name)
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if locale == "C":
        environment["PYTHONIOENCODING"] = "ascii"
    for more in ((), ("--json",), ("--keyframes", "strips.png")):
        done = subprocess.run(
            [*BIEFF, "predict", name, "--labels", "naïve, 踢球", "--model", "tinyclip", *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        if "--json" in more:
            assert os.fsencode(json.loads(done.stdout)["video"]) == name
        else:
            assert rb"caf\udce9.mp4" in done.stdout
    assert (tmp_path / "strips.png").stat().st_size > 1000


@pytest.mark.slow
def test_tables_in_a_locale_of_ascii(tmp_path):
    done = subprocess.run(
        [*BIEFF, "datasets"],
        cwd=tmp_path,
        env=os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"k400" in done.stdout.decode("ascii").encode()
