"""Real processes, real faults: one bad video costs exactly that video."""

import contextlib
import gc
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import faulty_decoders, stamped
from helpers.faulty_decoders import FAULTY, Gate, Grid
from helpers.places import TESTS, VIDEOS

from bieff.extract.decode.pool import DecodePool, Job, Outcome
from bieff.extract.decode.reader import read_frames
from bieff.features.schema import Status


@pytest.fixture(autouse=True)
def _workers_find_the_faulty_decoders(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return stamped.write(path, stamped.Clip(num_frames=29, gop=12, b_frames=2))


@pytest.fixture
def folder(clip, tmp_path):
    """Makes copies of one clip under names that order faults."""

    def copies(*names: str) -> list[Path]:
        paths = [tmp_path / name for name in names]
        for path in paths:
            path.write_bytes(clip.read_bytes())
        return paths

    return copies


def run(pool: DecodePool, paths: list[Path], *, count: int = 5) -> dict[int, Outcome]:
    jobs = [Job(row=i, path=path, choose=Grid(count)) for i, path in enumerate(paths)]
    outcomes = {outcome.row: outcome for outcome in pool.decode(jobs)}
    assert sorted(outcomes) == list(range(len(paths)))
    return outcomes


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pids: list[int]) -> None:
    """Wait until processes that need not be our children have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            end = os.pidfd_open(pid)
            try:
                assert select.select([end], [], [], 10.0)[0], f"process {pid} goes on"
            finally:
                os.close(end)


def count_files(folder: str) -> int:
    return len(list(Path(folder).iterdir()))


def test_frames_come_back_as_decoded(clip, tmp_path):
    """Also of the other families: B-frame AVI, an edit list in front, a truncated file."""
    avi = stamped.write(
        tmp_path / "b.avi", stamped.Clip(codec="mpeg4", gop=12, b_frames=2, num_frames=31)
    )
    trimmed = stamped.trim(clip, tmp_path / "trimmed.mp4", first=7)
    cut = stamped.truncate(avi, tmp_path / "cut.avi", keep=0.6)
    paths = [clip, avi, trimmed, cut, tmp_path / "gone.mp4", tmp_path / "empty.mp4"]
    paths[5].touch()
    with DecodePool(2) as pool:
        outcomes = run(pool, paths)
        for row, num_frames, first in [(0, 29, 0), (1, 31, 0), (2, 22, 7)]:
            outcome = outcomes[row]
            assert (outcome.status, outcome.attempt, outcome.message) == (Status.OK, 1, "")
            assert outcome.num_frames == num_frames
            grid = Grid(5)(num_frames)
            np.testing.assert_array_equal(outcome.frame_numbers, grid)
            assert stamped.read_numbers(outcome.frames) == (grid + first).tolist()
            np.testing.assert_array_equal(outcome.frames, read_frames(paths[row], grid))
            assert outcome.places([grid[3], grid[0]]).tolist() == [3, 0]
            assert outcome.frames.flags.writeable
            assert outcome.seconds > 0
        assert [outcomes[row].decoder for row in range(3)] == ["pyav", "pyav", "pyav"]
        salvaged = outcomes[3]
        assert salvaged.status == Status.SALVAGED
        assert salvaged.num_frames < 31
        assert salvaged.message.startswith(f"{salvaged.num_frames} of 31 frames decode: ")
        assert outcomes[4].status == Status.MISSING
        assert outcomes[4].message.startswith("no video at ")
        assert outcomes[5].status == Status.CORRUPT
        assert "is empty" in outcomes[5].message
        with pytest.raises(LookupError, match="row 4 has no frames: no video at"):
            outcomes[4].places([0])


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        pytest.param(
            "hang",
            Status.TIMEOUT,
            r"^decoding took longer than 1.5 s; then decoding took longer",
            marks=pytest.mark.slow,
        ),
        ("segfault", Status.CRASHED, r"^decoding crashed \(SIGSEGV\); then decoding crashed"),
        ("abort", Status.CRASHED, r"^decoding crashed \(SIGABRT: free\(\): invalid pointer\)"),
        (
            "surprise",
            Status.CORRUPT,
            r"^OverflowError: a number that no library expected; then",
        ),
    ],
)
def test_a_fault_costs_its_video_alone(folder, fault, status, message):
    paths = folder("a.mp4", f"{fault}.mp4", "b.mp4", f"{fault}_once.mp4", "c.mp4")
    deadline = 1.5 if fault == "hang" else 60.0  # the shorter one would fail on a busy machine
    with DecodePool(2, deadline=deadline, decode=FAULTY) as pool:
        outcomes = run(pool, paths)
        pids = pool.pids
    assert not any(is_alive(pid) for pid in pids)
    for row in (0, 2, 4):
        assert (outcomes[row].status, outcomes[row].attempt) == (Status.OK, 1)
        assert stamped.read_numbers(outcomes[row].frames) == Grid(5)(29).tolist()
    bad, saved = outcomes[1], outcomes[3]
    assert (bad.status, bad.attempt, bad.frames) == (status, 2, None)
    np.testing.assert_string_equal(str(bad.row), "1")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(bad.message)
    assert (saved.status, saved.attempt, saved.decoder) == (Status.OK, 2, "decord")
    assert stamped.read_numbers(saved.frames) == Grid(5)(29).tolist()
    tries = [line.split() for line in paths[1].with_suffix(".tries").read_text().splitlines()]
    assert [decoder for _, decoder in tries] == ["auto", "other"]
    assert (tries[0][0] == tries[1][0]) <= (fault == "surprise")  # a new process after a kill


def test_a_worker_that_is_killed_is_replaced(folder):
    """As the system does when memory runs out."""
    paths = folder("once.mp4", *[f"{i}.mp4" for i in range(5)])
    gate = Gate.before(paths[0])
    jobs = [Job(row=i, path=path, choose=Grid(3)) for i, path in enumerate(paths)]
    with DecodePool(2, decode=FAULTY) as pool:
        outcomes = pool.decode(jobs)
        first = next(outcomes)
        victim = gate.wait_for_decoder()
        assert victim in pool.pids
        os.kill(victim, signal.SIGKILL)
        rest = list(outcomes)
        assert victim not in pool.pids
    assert sorted(o.row for o in [first, *rest]) == list(range(6))
    assert all(o.status == Status.OK for o in [first, *rest])


def test_back_pressure_and_completion_order(folder):
    """No more jobs are drawn than two a worker; a slow video holds up no other."""
    paths = folder("slow.mp4", *[f"{i}.mp4" for i in range(11)])
    gate = Gate.before(paths[0])
    drawn = []

    def jobs() -> Iterator[Job]:
        for i, path in enumerate(paths):
            drawn.append(i)
            yield Job(row=i, path=path, choose=Grid(3))

    with DecodePool(2, decode=FAULTY) as pool:
        outcomes = pool.decode(jobs())
        rows = [next(outcomes).row]
        assert drawn == [0, 1, 2, 3]
        gate.wait_for_decoder()
        while len(rows) < 11:
            rows.append(next(outcomes).row)
            assert len(drawn) <= len(rows) + 3
        gate.open()
        rows += [outcome.row for outcome in outcomes]
    assert sorted(rows) == list(range(12))
    assert rows[-1] == 0


def test_workers_go_on_while_the_caller_is_busy(folder):
    paths = folder("0.mp4", "1.mp4")
    gate = Gate.before(paths[1])
    jobs = [Job(row=i, path=path, choose=Grid(3)) for i, path in enumerate(paths)]
    with DecodePool(1, decode=FAULTY) as pool:
        outcomes = pool.decode(jobs)
        assert next(outcomes).row == 0
        gate.wait_for_decoder()
        gate.open()
        assert [outcome.row for outcome in outcomes] == [1]


def test_a_call_given_up_leaves_the_pool_clean(folder):
    """Also of the video that was being decoded: its frames are not taken for another's."""
    paths = folder("gated.mp4", *[f"{i}.mp4" for i in range(4)])
    gate = Gate.before(paths[0])
    jobs = [Job(row=i, path=path, choose=Grid(3)) for i, path in enumerate(paths)]
    with DecodePool(2, decode=FAULTY) as pool:
        outcomes = pool.decode(jobs)
        next(outcomes)
        with pytest.raises(RuntimeError, match="at work for another call"):
            next(pool.decode(jobs))
        gate.wait_for_decoder()
        outcomes.close()
        gate.open()
        again = [Job(row=i + 100, path=p, choose=Grid(2)) for i, p in enumerate(paths[1:])]
        assert sorted(o.row for o in pool.decode(again)) == [100, 101, 102, 103]
    with pytest.raises(RuntimeError, match="the decoding pool is closed"):
        next(pool.decode(jobs))
    pool.close()


def test_a_bug_of_the_caller_is_raised_not_recorded(clip):
    with DecodePool(1) as pool:
        job = Job(row=3, path=clip, choose=faulty_decoders.Broken())
        with pytest.raises(RuntimeError, match=r"(?s)row 3 failed.*ZeroDivisionError: in the"):
            list(pool.decode([job]))
        job = Job(row=4, path=clip, choose=faulty_decoders.Beyond())
        with pytest.raises(
            RuntimeError, match=r"(?s)row 4.*expected frame numbers in \[0, 29\)"
        ):
            list(pool.decode([job]))
        with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
            list(pool.decode([Job(row=0, path=clip, choose=lambda n: [0])]))
        assert [o.status for o in pool.decode([Job(row=5, path=clip, choose=Grid(2))])] == [1]


def test_a_bug_of_ours_is_no_fault_of_the_file(folder):
    """It keeps where it happened; the other videos go on."""
    paths = folder("a.mp4", "bug.mp4", "b.mp4")
    with DecodePool(2, decode=FAULTY) as pool:
        outcomes = run(pool, paths)
    assert [outcomes[row].status for row in range(3)] == [Status.OK, Status.CRASHED, Status.OK]
    message = outcomes[1].message
    assert message.startswith("a bug, not the file's fault; please report it: AttributeError")
    assert "faulty_decoders.py:" in message


def test_the_deadline_grows_with_the_frames(clip, tmp_path, monkeypatch):
    """29 frames, a second each: 80 s are not too many for a decoder that has told of them."""
    ahead = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0])
    monkeypatch.setattr("bieff.extract.decode.pool.time", clock)
    monkeypatch.setattr("bieff.extract.decode.pool.SECONDS_A_FRAME", 1.0)
    looked = threading.Semaphore(0)
    patience = DecodePool._patience

    def look(pool):
        looked.release()
        return patience(pool)

    monkeypatch.setattr(DecodePool, "_patience", look)
    path = tmp_path / "told.mp4"
    path.write_bytes(clip.read_bytes())
    gate = Gate.before(path)

    def keep():
        gate.wait_for_decoder()
        ahead[0] = 80.0
        while looked.acquire(blocking=False):
            pass
        for _ in range(2):  # the second time, a whole round has seen the clock
            pool._wake()
            looked.acquire()
        gate.open()

    with DecodePool(1, deadline=60.0, decode="helpers.faulty_decoders:tells_first") as pool:
        keeper = threading.Thread(target=keep)
        keeper.start()
        (outcome,) = pool.decode([Job(row=0, path=path, choose=Grid(2))])
        keeper.join()
    assert (outcome.status, outcome.attempt) == (Status.OK, 1)


def test_processes_that_cannot_start_say_why(clip):
    with (
        DecodePool(1, decode="no_such_module:decode") as pool,
        pytest.raises(RuntimeError, match=r"do not start: .*No module named 'no_such_module'"),
    ):
        list(pool.decode([Job(row=0, path=clip, choose=Grid(2))]))
    with pytest.raises(ValueError, match=r"expected num_workers >= 1 and .*, got 0 and 60.0"):
        DecodePool(0)


def test_workers_import_nothing_heavy(clip):
    with DecodePool(1, decode="helpers.faulty_decoders:with_torch") as pool:
        (outcome,) = pool.decode([Job(row=0, path=clip, choose=Grid(2))])
    assert outcome.status == Status.OK, outcome.message


def count_frames() -> int:
    """Files of frames that this process holds open."""
    links = [file for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return sum("memfd:frames" in str(file.readlink()) for file in links if file.is_symlink())


def test_memory_and_descriptors_come_back(clip):
    """Frames live as long as an array refers to them, and nothing stays open after."""
    gc.collect()
    open_files, before = count_files("/proc/self/fd"), count_frames()
    with DecodePool(2) as pool:
        jobs = [Job(row=i, path=clip, choose=Grid(3)) for i in range(9)]
        kept = [outcome.frames for outcome in pool.decode(jobs)]
        gc.collect()
        assert [stamped.read_numbers(f) for f in kept] == [Grid(3)(29).tolist()] * 9
        assert count_frames() == before + 9
        kept.clear()
        gc.collect()
        assert count_frames() == before
    assert count_files("/proc/self/fd") <= open_files  # of other tests some may be gone
    assert "decode supervisor" not in {thread.name for thread in threading.enumerate()}


def start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "helpers.faulty_decoders", str(path)],
        cwd=TESTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_worker_outlives_its_parent(folder, end):
    """Killed, interrupted or terminated while a worker hangs in native code."""
    (path,) = folder("hang.mp4")
    gate = Gate.before(path, waits=False)
    with start(path) as parent:
        gate.wait_for_decoder()
        tasks = Path(f"/proc/{parent.pid}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
        assert len(children) == 2
        os.killpg(parent.pid, end)
        _, errors = parent.communicate(timeout=60)
    assert parent.returncode != 0
    wait_for_end(children)
    lines = errors.strip().splitlines()
    assert (lines[-1:] == ["KeyboardInterrupt"]) if end == signal.SIGINT else not lines
    assert not any(word in errors for word in ("resource_tracker", "leaked", "ResourceWarning"))


def test_a_run_that_ends_well_prints_nothing_more(folder):
    (path,) = folder("fine.mp4")
    with start(path) as parent:
        output, errors = parent.communicate(timeout=30)
    assert (parent.returncode, errors) == (0, "")
    assert sorted(output.split()) == ["0", "1", "2", "3", "4"]


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="needs the real clips in ../shared/videos")
def test_real_clips(tmp_path):
    paths = sorted(path for path in VIDEOS.iterdir() if path.suffix != ".md")
    with DecodePool(2) as pool:
        outcomes = run(pool, paths, count=8)
    for row, path in enumerate(paths):
        outcome = outcomes[row]
        damaged = path.name == "corrupted.mp4"
        assert outcome.status == (Status.SALVAGED if damaged else Status.OK)
        if not damaged:
            frames = read_frames(path, Grid(8)(outcome.num_frames))
            np.testing.assert_array_equal(outcome.frames, frames)
