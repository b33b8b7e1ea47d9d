"""A list of the size of Kinetics-400 plans, opens and reports in seconds, in little memory."""

import json
import subprocess
import sys

import pytest

NUM = 260_000

COMMON = f"""
import json, sys, time
from pathlib import Path
from bieff.features.schema import PartitionPlan, Video
from bieff.features.store import FeatureStore

NUM = {NUM}
measured = {{}}

def memory():
    # the peak of this process; getrusage's begins with that of the one that started it
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

def measure(name, action):
    # seconds of the processor, so that a busy machine does not matter
    begin, before = time.process_time(), memory()
    action()
    measured[name] = round(time.process_time() - begin, 2)
    measured[name + " MB"] = round(memory() - before)
"""

PLAN = """
role = {"train": "train"}
videos = PartitionPlan(num_views=5, videos=[
    Video(id=f"{i:011d}", path=f"some class name/{i:011d}_000417_000427.mp4",
          label=i % 400, size=10**6 + i, splits=role) for i in range(NUM)])

def plan():
    FeatureStore.create(
        Path(sys.argv[1]), recipe={"frames": 32, "dim": 512}, versions={},
        class_names=[str(k) for k in range(400)], partitions={"train": videos})

measure("plan", plan)
measure("plan again", plan)
print(json.dumps(measured))
"""

REPORT = """
def report():
    partition = FeatureStore.open(Path(sys.argv[1])).partitions["train"]
    assert len(partition.pending()) == partition.num_shards == 508
    assert len(partition.status()) == NUM
    assert partition.labels[-1] == (NUM - 1) % 400
    row = 300 * partition.rows_per_shard + 3
    assert partition.shard_videos(300)[3].label == partition.labels[row]

def read_all():
    assert len(FeatureStore.open(Path(sys.argv[1])).partitions["train"].videos) == NUM

measure("report", report)
measure("videos", read_all)
print(json.dumps(measured))
"""


def run(code, path):
    command = [sys.executable, "-c", COMMON + code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_260_000_videos_plan_open_and_report_in_seconds(tmp_path):
    planned = run(PLAN, tmp_path / "store")
    opened = run(REPORT, tmp_path / "store")
    print(planned, opened)
    assert planned["plan"] < 8
    assert planned["plan again"] < 8
    assert planned["plan MB"] < 60
    assert opened["report"] < 1
    assert opened["report MB"] < 60
    assert opened["videos MB"] < 250
