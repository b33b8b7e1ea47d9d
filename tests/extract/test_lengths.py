"""Whole videos where Kinetics means ten seconds are said, with counts."""

from click.testing import CliRunner
from helpers import stamped

from bieff.cli import main
from bieff.extract.catalogue import load
from bieff.extract.lengths import note_whole_videos, seconds_of


def write(path, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    clip = stamped.Clip(num_frames=2 * seconds, fps=2, size=(96, 64))
    return stamped.write(path, clip)


def kinetics(folder):
    """A clip that its name calls one, one that is one, and two whole videos."""
    write(folder / "zumba" / "abcdefghijk_000010_000020.mp4", 10)
    write(folder / "zumba" / "abcdefghij1.mp4", 10)
    write(folder / "zumba" / "abcdefghij2.mp4", 20)
    write(folder / "yoga" / "abcdefghij3.mp4", 33)
    (folder / "yoga" / "abcdefghij4.mp4").write_bytes(b"no video")
    return folder


def test_whole_videos_are_said_with_counts(tmp_path):
    data = load("k400", videos=kinetics(tmp_path))
    assert len(data.uncut) == 4
    note = note_whole_videos(data)
    assert note.startswith("whole videos instead of clips: 2 of 4 files looked at")
    assert "the first is 'yoga/abcdefghij3.mp4' with 33 s" in note
    assert note_whole_videos(data, most=1) == note.replace("2 of 4", "1 of 1")


def test_check_and_dry_run_say_so(tmp_path):
    command = ["extract", "--dataset", "k400", "--videos", str(kinetics(tmp_path))]
    checked = CliRunner().invoke(main, [*command, "--check"])
    assert checked.exit_code == 1
    assert "whole videos instead of clips: 2 of 4 files" in checked.output
    tried = CliRunner().invoke(
        main, [*command, "--dry-run", "--model", "tinyclip", "--frames", "2", "--device", "cpu"]
    )
    assert tried.exit_code == 0, tried.output
    assert "k400: whole videos instead of clips: 2 of 4 files" in tried.output


def test_clips_are_not_looked_at_where_their_names_say_enough(tmp_path):
    write(tmp_path / "zumba" / "abcdefghijk_000010_000020.mp4", 33)
    assert note_whole_videos(load("k400", videos=tmp_path)) is None


def test_a_length(tmp_path):
    assert abs(seconds_of(write(tmp_path / "a.mkv", 7)) - 7) < 0.6
    (tmp_path / "b.mp4").write_bytes(b"no video")
    assert seconds_of(tmp_path / "b.mp4") == 0.0
