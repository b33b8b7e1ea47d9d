"""What extraction costs beside its parts: decoding alone, and the tower alone.

    python tests/bench_extract.py [clips] [seconds of each]

Clips of ten seconds, 340 x 256, 30 frames/s, H.264 with B-frames; frames and views are stage
one's defaults for evaluation.  Each part has all cores to itself, one after the other.  The
tower is given the decoded frames, in memory, so its part is upload, cutting, resizing and
encoding.  Processes are started before a clock runs, except in `extract_s`, which begins with
nothing but the loaded model.

The last line is one JSON object: also images a second of the tower alone, of tower and
preprocessing from uint8 frames, of decoding, and from mp4 to the store, beside the rate at
which the device multiplies matrices in the tower's precision.
"""

import json
import os
import resource
import sys
import tempfile
from pathlib import Path

# before torch is loaded, as `bieff extract` does
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from helpers import stamped

from bieff import clip as clips
from bieff.apps.bench.extract import (
    KINDS,
    TowerRate,
    measure_decoding,
    measure_tower,
    num_cores,
)
from bieff.apps.bench.timing import ceilings, device_name, once
from bieff.clip import TINYCLIP, ClipName
from bieff.extract.config import ExtractConfig
from bieff.extract.datasets.dataset import DataSet
from bieff.extract.decode.pool import DecodePool, Job, Outcome
from bieff.extract.plan import plan
from bieff.extract.run import InProcess, extract
from bieff.extract.shard import BATCH, ShardWork
from bieff.extract.tasks import Summary, Task
from bieff.extract.tower import VisualTower
from bieff.extract.views import View, ViewPlan
from bieff.features.schema import Video
from bieff.features.store import FeatureStore
from bieff.train.runs.run import commit

CONFIG = ExtractConfig()


def make_clips(folder: Path, count: int, length: int) -> DataSet:
    """A few different clips, and copies of them: the files differ, the cost does not."""
    videos = []
    for i in range(count):
        path = folder / f"{i:03d}.mp4"
        if i < 4:
            settings = stamped.Clip(
                num_frames=30 * length, size=(340, 256), fps=30, b_frames=3 - i % 2
            )
            stamped.write(path, settings)
        else:
            path.write_bytes((folder / f"{i % 4:03d}.mp4").read_bytes())
        size = path.stat().st_size
        videos.append(Video(id=path.stem, path=path.name, label=0, size=size))
    return DataSet(name="bench", class_names=("a",), partitions={"val": videos}, root=folder)


def main(
    count: int = 100, length: int = 10, config: ExtractConfig = CONFIG
) -> dict[str, float | str]:
    """Measure, print, and give the figures of the last line."""
    device = clips.pick_device(None)
    name = ClipName(model=TINYCLIP, pretrained=None)
    if device.type == "cuda":
        name = ClipName(model="ViT-B-16-quickgelu", pretrained="random")
    clip = clips.load(name, device=device)
    each = config.frames * config.clips * config.crops
    images = count * each
    with tempfile.TemporaryDirectory() as folder:
        data = make_clips(Path(folder), count, length)
        store = plan(data, config, clip, Path(folder) / "store")
        cpu = [cpu_seconds()]
        outcomes, decode_s = decode_all(store, data, config)
        cpu.append(cpu_seconds())
        tower = VisualTower(clip, device=device, batch_size=BATCH[device.type])
        tower_s = tower_all(tower, store, outcomes)
        cpu.append(cpu_seconds())
        del outcomes
        cpu.append(cpu_seconds())
        extracted: list[Summary] = []

        def run() -> None:
            with InProcess(device=device) as runner:
                extracted.append(extract(store, clip, config, device=device, runner=runner))

        extract_s = once(run)
        cpu.append(cpu_seconds())
        assert extracted[0].is_whole
        rate = measure_tower(clip, device)
        expected_s = count * estimated(rate, each, device, Path(folder))
    print(
        f"{commit()} extract {count} clips of {length} s | {name} on {device_name(device)}, "
        f"{num_cores()} cores, torch {torch.__version__} | {images / extract_s:,.0f} images/s, "
        f"{count / extract_s:,.1f} clips/s | cpu-s decode {cpu[1] - cpu[0]:.1f} with start, "
        f"tower {cpu[2] - cpu[1]:.1f}, extract {cpu[4] - cpu[3]:.1f} | `bieff bench` expects "
        f"{expected_s:.1f} s, took {extract_s:.1f} s | load {os.getloadavg()[0]:.1f}"
    )
    ceiling = ceilings(device).flops
    result: dict[str, float | str] = {
        "bench": "extract",
        "decode_s": round(decode_s, 2),
        "tower_s": round(tower_s, 2),
        "extract_s": round(extract_s, 2),
        "ratio": round(extract_s / (decode_s + tower_s), 3),
        "of_slower": round(extract_s / max(decode_s, tower_s), 3),
        "images_per_s_tower": round(rate.tower),
        "images_per_s_from_uint8": round(images / tower_s),
        "images_per_s_decoded": round(images / decode_s),
        "images_per_s_from_mp4": round(images / extract_s),
        "images_per_s_ceiling": round(ceiling / rate.flops),
        "matmul_tflops": round(ceiling / 1e12, 3),
        "precision": rate.precision,
    }
    print(json.dumps(result))
    return result


def cpu_seconds() -> float:
    """Of this process and those that it has started and that have ended."""
    usages = [
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def decode_all(
    store: FeatureStore, data: DataSet, config: ExtractConfig
) -> tuple[list[Outcome], float]:
    """Outcomes of all videos, and the seconds of decoding them with all cores."""
    views = tuple(View.from_json(v) for v in store.recipe["views"]["val"])
    jobs = [
        Job(
            row=i,
            path=data.root / video.path,
            choose=ViewPlan(views, config.frames, video.id),
        )
        for i, video in enumerate(data.partitions["val"])
    ]
    outcomes: list[Outcome] = []
    with DecodePool(num_cores()) as pool:
        list(pool.decode(jobs[:2]))
        taken = once(lambda: outcomes.extend(pool.decode(jobs)))
    return sorted(outcomes, key=lambda outcome: outcome.row), taken


def tower_all(tower: VisualTower, store: FeatureStore, outcomes: list[Outcome]) -> float:
    """Seconds from decoded frames to embeddings, with all cores."""

    def encode(work: ShardWork, some: list[Outcome]) -> None:
        for outcome in some:
            work.take(outcome.row % len(work.videos), outcome)
        work.stream.close()

    for some in (outcomes[:2], outcomes):  # the first to warm up
        work = ShardWork.begin(store, Task(partition="val", shard=0), tower)
        taken = once(lambda work=work, some=some: encode(work, some))
    return taken


def estimated(rate: TowerRate, images: int, device: torch.device, folder: Path) -> float:
    """Seconds that `bieff bench` expects of one such clip."""
    cost = measure_decoding(folder, KINDS[:1])[0]
    encoding = images * (1 / rate.tower + 1 / rate.cut)
    decoding = cost.seconds(images)
    return decoding + encoding if device.type == "cpu" else max(decoding, encoding)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
