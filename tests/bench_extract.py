"""What extraction costs beside its parts: decoding alone, and the tower alone.

    python tests/bench_extract.py [clips] [seconds]

Clips of ten seconds, 340 x 256, 30 frames/s, H.264 with B-frames; frames and views are stage
one's defaults for evaluation.  Each part has all cores to itself, one after the other.  The
tower is given the decoded frames, in memory, so its part is upload, cutting, resizing and
encoding.  Processes are started before a clock runs, except in `extract_s`, which begins with
nothing but the loaded model.

The last line is one JSON object.  On CUDA it also holds images a second of the tower alone, of
tower and preprocessing from uint8 frames, and from mp4 to the store, beside the rate at which
the device multiplies bfloat16 matrices.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# before torch is loaded, as `bieff extract` does
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


import torch
from helpers import stamped

from bieff import clip as clips
from bieff.clip import TINYCLIP, ClipName
from bieff.extract.config import ExtractConfig
from bieff.extract.datasets.dataset import DataSet
from bieff.extract.decode.pool import DecodePool, Job
from bieff.extract.plan import plan
from bieff.extract.run import InProcess, extract
from bieff.extract.shard import BATCH, ShardWork
from bieff.extract.tasks import Task
from bieff.extract.tower import VisualTower
from bieff.extract.views import View, ViewPlan
from bieff.features.schema import Video

TESTS = Path(__file__).parent
CONFIG = ExtractConfig()


def make_clips(folder: Path, count: int, seconds: int) -> DataSet:
    """A few different clips, and copies of them: the files differ, the cost does not."""
    videos = []
    for i in range(count):
        path = folder / f"{i:03d}.mp4"
        if i < 4:
            settings = stamped.Clip(
                num_frames=30 * seconds, size=(340, 256), fps=30, b_frames=3 - i % 2
            )
            stamped.write(path, settings)
        else:
            path.write_bytes((folder / f"{i % 4:03d}.mp4").read_bytes())
        size = path.stat().st_size
        videos.append(Video(id=path.stem, path=path.name, label=0, size=size))
    return DataSet(name="bench", class_names=("a",), partitions={"val": videos}, root=folder)


def main(count: int = 100, seconds: int = 10) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = ClipName(model=TINYCLIP, pretrained=None)
    if device.type == "cuda":
        name = ClipName(model="ViT-B-16-quickgelu", pretrained="random")
    clip = clips.load(name, device=device)
    with tempfile.TemporaryDirectory() as folder:
        data = make_clips(Path(folder), count, seconds)
        store = plan(data, CONFIG, clip, Path(folder) / "store")
        cpu = [cpu_seconds()]
        outcomes, decode_s = decode_all(store, data)
        cpu.append(cpu_seconds())
        tower = VisualTower(clip, device=device, batch_size=BATCH[device.type])
        tower_s = tower_all(tower, store, outcomes)
        cpu.append(cpu_seconds())
        figures = {}
        if device.type == "cuda":
            figures = gpu_figures(tower, len(outcomes) * 96 / tower_s)
        del outcomes
        cpu.append(cpu_seconds())
        begin = time.perf_counter()
        with InProcess(device=device) as runner:
            summary = extract(store, clip, CONFIG, device=device, runner=runner)
        extract_s = time.perf_counter() - begin
        cpu.append(cpu_seconds())
        assert summary.is_whole
    ratio = extract_s / (decode_s + tower_s)
    images = count * 96
    what = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores"
    print(
        f"{commit()} extract {count} clips of {seconds} s | {name} on {what}, torch "
        f"{torch.__version__} | {images / extract_s:,.0f} images/s, "
        f"{count / extract_s:,.1f} clips/s | cpu-s decode {cpu[1] - cpu[0]:.1f} with start, "
        f"tower {cpu[2] - cpu[1]:.1f}, "
        f"extract {cpu[4] - cpu[3]:.1f} | load {os.getloadavg()[0]:.1f}"
    )
    result = {
        "bench": "extract",
        "decode_s": round(decode_s, 2),
        "tower_s": round(tower_s, 2),
        "extract_s": round(extract_s, 2),
        "ratio": round(ratio, 3),
    }
    if figures:
        figures["images_per_s_from_mp4"] = round(images / extract_s)
    print(json.dumps(result | figures))


def cpu_seconds() -> float:
    """Of this process and those that it has started and that have ended."""
    usages = [
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def decode_all(store, data: DataSet) -> tuple[list, float]:
    """Outcomes of all videos, and the seconds of decoding them with all cores."""
    views = tuple(View.from_json(v) for v in store.recipe["views"]["val"])
    jobs = [
        Job(
            row=i,
            path=data.root / video.path,
            choose=ViewPlan(views, CONFIG.frames, video.id),
        )
        for i, video in enumerate(data.partitions["val"])
    ]
    with DecodePool(len(os.sched_getaffinity(0))) as pool:
        list(pool.decode(jobs[:2]))
        begin = time.perf_counter()
        outcomes = list(pool.decode(jobs))
        seconds = time.perf_counter() - begin
    return sorted(outcomes, key=lambda outcome: outcome.row), seconds


def tower_all(tower: VisualTower, store, outcomes: list) -> float:
    """Seconds from decoded frames to embeddings, with all cores."""
    for take in (outcomes[:2], outcomes):
        work = ShardWork.begin(store, Task(partition="val", shard=0), tower)
        begin = time.perf_counter()
        for outcome in take:
            work.take(outcome.row % len(work.videos), outcome)
        work.stream.close()
        if tower.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    return seconds


def gpu_figures(tower: VisualTower, from_uint8: float) -> dict[str, float]:
    """Images a second of the tower alone, and what the device can do at best."""
    size = tower.preprocessing.size
    squares = torch.randint(0, 256, (tower.batch_size, 3, size, size), device=tower.device)
    squares = squares.byte()

    def rate(action, work: float, rounds: int = 20) -> float:
        for _ in range(3):
            action()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(rounds):
            action()
        torch.cuda.synchronize()
        return work * rounds / (time.perf_counter() - begin)

    a = torch.randn(8192, 8192, device=tower.device, dtype=torch.bfloat16)
    ceiling = rate(lambda: a @ a, 2 * 8192**3)
    tower_rate = rate(lambda: tower.encode(squares), tower.batch_size)
    flops = 2 * 17.6e9 / 2 * 2  # of ViT-B/16 an image: 17.6 G multiplications and additions
    return {
        "images_per_s_tower": round(tower_rate),
        "images_per_s_from_uint8": round(from_uint8),
        "matmul_tflops": round(ceiling / 1e12, 1),
        "images_per_s_ceiling": round(ceiling / flops),
    }


def commit() -> str:
    command = ["git", "-C", str(TESTS), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
