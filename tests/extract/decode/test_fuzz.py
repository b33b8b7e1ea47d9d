"""Four hundred damaged files of eight families: read, salvaged, or refused with a reason.

Prints what became of them; two minutes on two cores at most.
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

EACH = 50


def count(folder: str) -> int:
    return len(list(Path(folder).iterdir()))


def judge(outcome: Outcome, whole: np.ndarray) -> str:
    """What became of a damaged copy, next to the frames of the whole clip."""
    if outcome.status != Status.OK:
        return outcome.status.name.lower()
    if outcome.num_frames < len(whole) or outcome.frames.shape != whole.shape:
        return "ok, but frames are missing"
    return "ok, but garbled" if mutants.unlike(outcome.frames, whole) else "ok"


@pytest.mark.slow
def test_four_hundred_damaged_files(tmp_path, capsys):
    """At most 2 % are garbled without a word, and no file loses frames without a word.

    What remains is damage after which the coder falls into step again: the data then end where
    they should, and nothing is left that could tell.  Most of it are single bits and bytes of
    MPEG-4, whose code words find back by themselves (docs/LOG.md has the figures).
    """
    whole = {name: mutants.write_family(tmp_path, name) for name in mutants.FAMILIES}
    frames = {
        name: read_frames(path, range(mutants.NUM_FRAMES)) for name, path in whole.items()
    }
    jobs, families = [], []
    for place, (name, path) in enumerate(whole.items()):
        data = path.read_bytes()
        for i in range(EACH):
            damaged = tmp_path / f"{i}_{name}"
            damaged.write_bytes(mutants.mutate(data, 1000 * place + i))
            jobs.append(Job(row=len(jobs), path=damaged, choose=mutants.All()))
            families.append(name)
    me = psutil.Process()
    files, threads = count("/proc/self/fd"), threading.active_count()
    most, seen = 0, Counter()
    before = set(me.children(recursive=True))
    with DecodePool(2, deadline=30.0) as pool:
        for outcome in pool.decode(jobs):
            name = families[outcome.row]
            seen[name, judge(outcome, frames[name])] += 1
            most = max(most, me.memory_info().rss)
            assert outcome.status == Status.OK or outcome.message
            assert "object" not in outcome.message, "the text of a bug"
        del outcome
    with capsys.disabled():
        print(f"\n{most >> 20} MiB")
        for (name, what), number in sorted(seen.items()):
            print(f"  {name:10} {what:28} {number}")
    found = Counter()
    for (_, what), number in seen.items():
        found[what] += number
    assert sum(found.values()) == len(jobs) == 400
    assert found["ok, but garbled"] <= len(jobs) // 50
    assert found["ok, but frames are missing"] == 0
    assert found["timeout"] == found["crashed"] == 0
    assert most < 2 * 2**30
    assert count("/proc/self/fd") == files  # frames are files without a name (memfd)
    assert threading.active_count() == threads
    assert not set(me.children(recursive=True)) - before
