"""The size of Kinetics-400, and a thousand videos in a row, both in little memory."""

import json
import os
import subprocess
import sys

import pytest
from helpers import extracting
from helpers.places import TESTS


def measured(*arguments):
    """What `helpers.extracting_large` prints."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", "helpers.extracting_large", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_list_of_the_size_of_kinetics_400(tmp_path):
    figures = measured("plan", tmp_path / "store")
    print(figures)  # a few seconds of the processor each
    for name in ("plan", "plan again", "status", "resume"):
        assert figures[f"{name} MB"] < 400, figures


@pytest.mark.slow
def test_a_thousand_videos_leave_memory_threads_and_files_flat(tmp_path):
    folder = extracting.write_clips(tmp_path / "clips")
    seen = measured("soak", folder, tmp_path / "store")
    assert len(seen) == 32
    early, late = seen[4:12], seen[-8:]
    for what, allowed in (("threads", 1), ("files", 4), ("processes", 0), ("MB", 60)):
        grown = max(look[what] for look in late) - max(look[what] for look in early)
        assert grown <= allowed, (what, [look[what] for look in seen])
    assert max(look["MB"] for look in seen) < 3 * 1024
