"""Hundreds of damaged files of eight families: read, salvaged, or refused with a reason.

Prints what became of them; four minutes on two cores at most.
"""

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import mutants

from bieff.extract.decode.pool import DecodePool, Job, Outcome
from bieff.extract.decode.reader import read_frames
from bieff.features.schema import Status

SEED = 12_000  # chosen before any result was seen, and kept


def count(folder: str) -> int:
    return len(list(Path(folder).iterdir()))


def judge(outcome: Outcome, whole: np.ndarray) -> str:
    """What became of a damaged copy, next to the frames of the whole clip."""
    if outcome.status != Status.OK:
        return outcome.status.name.lower()
    if outcome.num_frames < len(whole) or outcome.frames.shape != whole.shape:
        return "lost"
    return "garbled" if mutants.unlike(outcome.frames, whole) else "ok"


def fuzz(folder: Path, capsys, *, each: int, kinds: tuple[str, ...]) -> Counter[str]:
    """Decode so many damaged copies of each family; print and count what became of them.

    "garbled" and "lost" are those called ok that hold another frame, or fewer.
    """
    jobs, origins, frames = [], [], {}
    for place, name in enumerate(mutants.FAMILIES):
        path = mutants.write_family(folder, name)
        frames[name] = read_frames(path, range(mutants.NUM_FRAMES))
        for seed in range(SEED + 1000 * place, SEED + 1000 * place + each):
            damaged = folder / f"{seed}_{name}"
            damaged.write_bytes(mutants.mutate(path.read_bytes(), seed, kinds))
            jobs.append(Job(row=len(jobs), path=damaged, choose=mutants.All()))
            origins.append((name, kinds[seed % len(kinds)], seed))
    me = psutil.Process()
    files, threads = count("/proc/self/fd"), threading.active_count()
    held = me.memory_info().rss  # by the tests before
    most, seen, passed = 0, Counter(), []
    before = set(me.children(recursive=True))
    with DecodePool(2, deadline=30.0) as pool:
        for outcome in pool.decode(jobs):
            name = origins[outcome.row][0]
            what = judge(outcome, frames[name])
            seen[name, what] += 1
            if what in ("garbled", "lost"):
                passed.append((*origins[outcome.row], what))
            most = max(most, me.memory_info().rss - held)
            assert outcome.status == Status.OK or outcome.message
            assert "object" not in outcome.message, "the text of a bug"
        del outcome
    found = Counter[str]()
    for (_, what), number in seen.items():
        found[what] += number
    with capsys.disabled():
        print(f"\n{most >> 20} MiB more; {dict(found)}; {passed}")
        for (name, what), number in sorted(seen.items()):
            print(f"  {name:10} {what:10} {number}")
    assert sum(found.values()) == len(jobs)
    assert found["timeout"] == found["crashed"] == 0
    assert most < 2**30
    assert count("/proc/self/fd") == files  # frames are files without a name (memfd)
    assert threading.active_count() == threads
    assert not set(me.children(recursive=True)) - before
    return found


@pytest.mark.slow
def test_four_hundred_damaged_files(tmp_path, capsys):
    """One in a hundred is garbled without a word at most, and none loses frames so.

    What remains is damage of VP8 and HEVC, between keyframes, after which the data end where
    they should or earlier: nothing is left that could tell (docs/LOG.md has the figures).
    """
    found = fuzz(tmp_path, capsys, each=50, kinds=mutants.KINDS)
    assert found["garbled"] <= found.total() / 100
    assert found["lost"] == 0


@pytest.mark.slow
def test_single_bits_and_bytes(tmp_path, capsys):
    """After these the coder often falls into step again, and no codec here has checksums."""
    found = fuzz(tmp_path, capsys, each=12, kinds=mutants.SMALL)
    assert found["garbled"] <= found.total() / 10
    assert found["lost"] == 0
