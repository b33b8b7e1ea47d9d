"""The size of Kinetics-400 in seconds, and a thousand videos in a row in the same memory."""

import json
import os
import subprocess
import sys

import pytest
from helpers import extracting
from helpers.places import TESTS

NUM = 260_000

PLAN = f"""
import json, sys, time
from dataclasses import replace
from pathlib import Path
from bieff import clip as clips
from bieff.clip import TINYCLIP, ClipName
from bieff.apps.extract import Sources, say_status
from bieff.extract.config import ExtractConfig
from bieff.extract.datasets.dataset import DataSet
from bieff.extract.plan import plan
from bieff.apps.progress import Board
from bieff.extract.run import extract
from bieff.extract.tasks import summary_of
from bieff.extract.tasks import Task
from bieff.features.schema import Video
from bieff.features.store import FeatureStore
import torch

def memory():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

measured = {{}}
def measure(name, action):
    # seconds of the processor, so that a busy machine does not matter
    begin, before = time.process_time(), memory()
    result = action()
    measured[name] = round(time.process_time() - begin, 2)
    measured[name + " MB"] = round(memory() - before)
    return result

out = Path(sys.argv[1])
clip = clips.load(ClipName(model=TINYCLIP, pretrained=None))
role = {{"train": "train"}}
videos = [
    Video(id=f"{{i:011d}}", path=f"some class name/{{i:011d}}_000417_000427.mp4",
          label=i % 400, size=10**6 + i, splits=role) for i in range({NUM})]
data = DataSet(name="k400", class_names=tuple(f"class {{k}}" for k in range(400)),
               partitions={{"train": videos}}, root=out.parent)
config = ExtractConfig()
store = measure("plan", lambda: plan(data, config, clip, out))
store = measure("plan again", lambda: plan(data, config, clip, out))
"""

SPARSE = """
# markers as of an extraction, over files of the right size that hold no blocks
from bieff.features.shard import FileSum, Ledger, Marker
part = store.partitions["train"]
ledger = Ledger(store.path / "ledger")
for shard in range(part.num_shards - 3):
    files = {}
    for name, array in part.geometry.arrays.items():
        file = array.file(part.path, shard)
        file.parent.mkdir(parents=True, exist_ok=True)
        size = array.file_bytes(part.rows_per_shard)
        with file.open("wb") as empty:
            empty.truncate(size)
        files[name] = FileSum(size, "0" * 64)
    rows = part.geometry.rows(shard)
    counts = {"ok": len(rows) - 1, "corrupt": 1}
    marker = Marker(partition="train", shard=shard, start=rows.start, stop=rows.stop,
                    recipe_hash=store.recipe_hash, files=files, counts=counts, seconds={})
    values = {"schema_version": 1, **{f: getattr(marker, f) for f in marker.__slots__}}
    values["files"] = {n: {"size": s.size, "sha256": s.sha256} for n, s in files.items()}
    ledger.file("train", shard).write_text(json.dumps(values))
    error = {"row": rows.start, "id": "x", "path": "x.mp4", "status": "corrupt",
             "stage": "decode", "decoder": "", "message": "broken", "attempt": 1}
    (store.path / "errors" / f"train-{shard:05d}.jsonl").write_text(json.dumps(error) + "\\n")
"""

REPORT = """
said = []
measure("status", lambda: say_status(Sources(names=["k400"], out=out), said.append))
assert "260,000 videos" in said[1], said
assert len(said) == 2 + 20 + 1, said

def resume():
    again = plan(data, config, clip, out)
    pending = again.partitions["train"].pending()
    assert len(pending) == 3, pending
    tasks = {"train": [Task(partition="train", shard=s) for s in pending]}
    Board(again, tasks, max_bad=0.5).check()
    done = summary_of(again, shards_written=0, seconds=0, max_bad=None)
    assert done.num_videos == 260_000
    assert len(done.bad) == 20
    return again.partitions["train"].shard_videos(pending[0])

measure("resume", resume)
print(json.dumps(measured))
"""


@pytest.mark.slow
def test_a_list_of_the_size_of_kinetics_400(tmp_path):
    program = PLAN + SPARSE + REPORT
    result = subprocess.run(
        [sys.executable, "-P", "-c", program, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout.splitlines()[-1])
    print(measured)
    for name in ("plan", "plan again", "status", "resume"):
        assert measured[name] < 10, measured
        assert measured[f"{name} MB"] < 400, measured


SOAK = f"""
import json, sys, threading
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
import psutil, torch
torch.set_num_threads(1)
from helpers import extracting
from bieff.extract.datasets.dataset import DataSet
from bieff.extract.shapes.sets import load_shapes

folder, out, num = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
data = load_shapes(extracting.SET, folder)
some = data.partitions["all"]
videos = [replace(some[i % len(some)], id=f"v{{i}}") for i in range(num)]
data = replace(data, partitions={{"all": videos}})
store = extracting.plan_data(data, out, rows=32)
me = psutil.Process()

def look():
    family = me.children(recursive=True)
    return {{
        "MB": sum(p.memory_info().rss for p in (me, *family)) / 2**20,
        "threads": me.num_threads() + sum(p.num_threads() for p in family),
        "files": me.num_fds() + sum(p.num_fds() for p in family),
        "processes": len(family),
    }}

class Looking(extracting.InProcess):
    def run(self, *arguments):
        for done in super().run(*arguments):
            seen.append(look())
            yield done

seen = []
with Looking(device=extracting.CPU) as runner:
    summary = extracting.extract(store, extracting.tinyclip(), extracting.CONFIG,
                                 device=extracting.CPU, runner=runner)
assert summary.counts == {{"ok": num}}, summary
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_a_thousand_videos_leave_memory_threads_and_files_flat(tmp_path):
    folder = extracting.write_clips(tmp_path / "clips")
    result = subprocess.run(
        [sys.executable, "-P", "-c", SOAK, str(folder), str(tmp_path / "store"), "1024"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout.splitlines()[-1])
    print(seen[3], seen[-1])
    assert len(seen) == 32
    early, late = seen[4:12], seen[-8:]
    for what, allowed in (("threads", 1), ("files", 4), ("processes", 0), ("MB", 60)):
        grown = max(look[what] for look in late) - max(look[what] for look in early)
        assert grown <= allowed, (what, [look[what] for look in seen])
    assert max(look["MB"] for look in seen) < 3 * 1024
