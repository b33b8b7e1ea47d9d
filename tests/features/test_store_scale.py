"""A list of the size of Kinetics-400 plans, opens and reports in little memory."""

import json

import pytest
from helpers import stores


@pytest.mark.slow
def test_260_000_videos_plan_open_and_report_in_little_memory(tmp_path):
    found = {}
    for function in ("measure_plan", "measure_report"):
        code, output, errors = stores.run(function, tmp_path / "store")
        assert (code, errors) == (0, "")
        found |= json.loads(output)
    print(found)
    assert found["plan MB"] < 60
    assert found["report MB"] < 60
    assert found["videos MB"] < 250
