"""What many parts of one file cost beside decoding it once.

    python tests/bench_segments.py [minutes] [parts]

H.264 with B-frames, 320 x 240, 25 frames/s, a keyframe every ten seconds; three views of eight
frames, of the whole and of each part of ten seconds at a random place.  Seconds are the
processor's, the better of two, in this process.  The last line is one JSON object.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from helpers import stamped

from bieff.extract.decode.reader import read_frames
from bieff.extract.decode.segments import Segment, decode_segments
from bieff.extract.views import ViewPlan, views_for
from bieff.train.runs.run import commit

RATE, LENGTH = 25, 10.0
CHOOSE = ViewPlan(tuple(views_for(0, 3, 1)[1]), 8, "")


def make_video(folder: Path, minutes: int) -> Path:
    """Forty seconds, said over and over."""
    clip = stamped.Clip(num_frames=1000, fps=RATE, gop=250, b_frames=2, size=(320, 240))
    short, path = stamped.write(folder / "short.mp4", clip), folder / "long.mp4"
    with av.open(str(path), "w") as new:
        stream = None
        for turn in range(minutes * 60 // 40):
            with av.open(str(short)) as old:
                source = old.streams.video[0]
                stream = stream or new.add_stream_from_template(source)
                shift = round(40 * turn / source.time_base)
                for packet in [packet for packet in old.demux(source) if packet.size]:
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    new.mux(packet)
    return path


def cpu_seconds(run: Callable[[], object]) -> float:
    """The better of two."""
    taken = []
    for _ in range(2):
        begun = time.process_time()
        run()
        taken.append(time.process_time() - begun)
    return min(taken)


def main(minutes: int = 10, parts: int = 40) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_video(Path(folder), minutes)
        num_frames = minutes * 60 // 40 * 1000
        starts = sorted(np.random.default_rng(7).uniform(0, num_frames / RATE - LENGTH, parts))
        segments = [Segment(start=s, end=s + LENGTH, choose=CHOOSE) for s in map(float, starts)]
        whole = cpu_seconds(lambda: read_frames(path, CHOOSE(num_frames)))
        found = cpu_seconds(lambda: list(decode_segments(path, segments)))
    result = {"bench": "segments", "minutes": minutes, "parts": parts, "commit": commit()}
    result |= {"whole_s": round(whole, 2), "parts_s": round(found, 2)}
    print(json.dumps(result | {"ratio": round(found / whole, 3)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
