"""Small extractions for tests: a few clips, the tiny CLIP, shards of few rows.

Run as a program it extracts, for tests that kill it:

    python extracting.py CLIPS STORE [DECODER [DEVICE]]

prints "ready" when all is loaded, and "done" with the summary at the end.
"""

import json
import sys
from dataclasses import asdict, replace
from functools import cache
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from helpers.places import TESTS

from bieff import clip as clips
from bieff.clip import TINYCLIP, ClipName
from bieff.extract.catalogue import load
from bieff.extract.config import ExtractConfig
from bieff.extract.plan import StorePlan
from bieff.extract.run import InProcess, extract
from bieff.extract.shapes.clips import (
    MARKER,
    Edition,
    clips_of,
    draw_clip,
    load_shapes,
    write_mp4,
)
from bieff.features.schema import Status

CPU = torch.device("cpu")
SET = "shapes-unseen"
CONFIG = ExtractConfig(frames=3, clips=2, batch_size=32, decoders=1, deadline=20.0)
PATIENT = replace(CONFIG, deadline=120.0)
"""For what loads a client of S3, which takes long where every core is busy."""

ROWS = 4


@cache
def tinyclip():
    """The CLIP shipped with the package, loaded once."""
    return clips.load(ClipName(model=TINYCLIP, pretrained=None))


def write_clips(folder, name=SET, most=None, **counts):
    """The clips of a small edition of a built-in set: by default 24, one a class.

    With `most` the first so many of each partition.
    """
    edition = Edition(**{"train_clips": 1, "val_clips": 1, "zero_shot_clips": 1} | counts)
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(json.dumps(asdict(edition)))
    for _, part in groupby(clips_of(edition)[name], lambda clip: clip.partition):
        for clip in islice(part, most):
            write_mp4(folder / clip.path, draw_clip(clip, edition.seed))
    return folder


def plan_small(folder, out, *, name=SET, config=CONFIG, rows=ROWS):
    """Plan a store with shards of a few rows; 24 videos make 6."""
    return plan_data(load_shapes(name, folder), out, config=config, rows=rows)


def plan_data(data, out, *, config=CONFIG, rows=ROWS):
    """Plan the store of a data set, with shards of a few rows."""
    planned = StorePlan.of(data, config, tinyclip())
    parts = {
        name: replace(part, rows_per_shard=rows) for name, part in planned.partitions.items()
    }
    return replace(planned, partitions=parts).write(out)


def extract_small(store, *, config=CONFIG, decode=None, device=CPU, **options):
    """Extract in this process."""
    with InProcess(device=device, **({} if decode is None else {"decode": decode})) as runner:
        return extract(store, tinyclip(), config, device=device, runner=runner, **options)


def assert_same(store, expected):
    """Frame numbers, status, labels and embeddings, bit for bit."""
    for name, part in expected.partitions.items():
        got = store.partitions[name]
        assert got.done().all()
        np.testing.assert_array_equal(got.status(), part.status())
        np.testing.assert_array_equal(got.labels, part.labels)
        rows = slice(None)
        np.testing.assert_array_equal(got.frames(rows), part.frames(rows))
        assert got.read(rows).tobytes() == part.read(rows).tobytes()


def numbers(store):
    """How many videos of a store have which status."""
    found = np.concatenate([part.status() for part in store.partitions.values()])
    return {Status(value).name: int((found == value).sum()) for value in np.unique(found)}


def main(folder, out, decode=None, device="cpu"):
    """Plan and extract, telling standard output."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(TESTS))
    tinyclip()
    print("ready", flush=True)
    if (Path(folder) / MARKER).is_file():
        store, config = plan_small(Path(folder), Path(out)), CONFIG
    else:
        store, config = plan_data(load("folder", videos=Path(folder)), Path(out)), PATIENT
    where = torch.device(device)
    stored = extract_small(store, config=config, decode=decode, device=where)
    print("done", stored.text(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
