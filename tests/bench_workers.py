"""What the decoding pool costs beside decoding in this process.  Prints one line a variant.

    python tests/bench_workers.py [clips]

Clips of ten seconds, 340 x 256, 30 frames/s, H.264 with B-frames, 32 frames of each.  CPU time
counts this process and the workers with their start; wall time is for one worker, started.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from helpers import stamped
from helpers.faulty_decoders import Grid

from bieff.extract.decode.pool import DecodePool, Job
from bieff.extract.decode.reader import decode_video

TESTS = Path(__file__).parent


def cpu_seconds() -> float:
    usages = [
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main(num_clips: int) -> None:
    grid = Grid(32)
    with tempfile.TemporaryDirectory() as folder:
        settings = stamped.Clip(num_frames=300, size=(340, 256), fps=30, b_frames=3)
        clip = stamped.write(Path(folder) / "clip.mp4", settings)
        for decoder in ("decord", "pyav"):
            rounds = [measure(clip, grid, num_clips, decoder) for _ in range(3)]
            alone, alone_cpu, pooled, pooled_cpu, start = np.median(rounds, axis=0) * 1e3
            print(
                f"{commit()} workers {num_clips} clips, {decoder} | ms a clip: "
                f"in process {alone:.1f} (cpu {alone_cpu:.1f}), pool of 1 {pooled:.1f} "
                f"(cpu {pooled_cpu:.1f}) | cpu ratio {pooled_cpu / alone_cpu:.3f}, "
                f"wall ratio {pooled / alone:.3f} | start to first frames {start:.0f} ms"
            )


def measure(clip: Path, grid, num_clips: int, decoder: str) -> tuple[float, ...]:
    """Seconds a clip: wall and CPU alone, the same in the pool; seconds to its first clip."""
    decode_video(clip, grid, decoder=decoder)
    begin, begin_cpu = time.perf_counter(), cpu_seconds()
    for _ in range(num_clips):
        decode_video(clip, grid, decoder=decoder)
    alone, alone_cpu = time.perf_counter() - begin, cpu_seconds() - begin_cpu
    jobs = [Job(row=i, path=clip, choose=grid, decoder=decoder) for i in range(num_clips)]
    begin, begin_cpu = time.perf_counter(), cpu_seconds()
    with DecodePool(1) as pool:
        assert len(list(pool.decode(jobs[:1]))) == 1
        start = time.perf_counter() - begin
        begin = time.perf_counter()
        for outcome in pool.decode(jobs):
            assert outcome.frames.shape == (32, 256, 340, 3)
        pooled = time.perf_counter() - begin
    pooled_cpu = cpu_seconds() - begin_cpu
    return (*(t / num_clips for t in (alone, alone_cpu, pooled, pooled_cpu)), start)


def commit() -> str:
    command = ["git", "-C", str(TESTS), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 36)
