"""Steps of a run in double precision, by one process or as `torchrun` starts several.

    torchrun --nproc-per-node 2 parallel_steps.py STORE OUT SETTING...

Writes losses and weights.  In double precision sums in another order agree to 1e-12, so that
what remains would be a mistake.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from bieff.clip import ClipName
from bieff.features.store import FeatureStore
from bieff.train.config import load
from bieff.train.data import Batch
from bieff.train.distributed import joined
from bieff.train.fit.step import prepare
from bieff.train.runs.run import clip_of

STEPS = 6


def doubled(batch: Batch) -> Batch:
    """The same numbers, for a model in double precision."""

    return batch.each(lambda part: part.double())


def main() -> None:
    """Train a few steps."""
    path, out, *settings = sys.argv[1:]
    torch.set_num_threads(1)
    with joined(torch.device("cpu")) as device:
        store = FeatureStore.open(Path(path))
        held = store.recipe["clip"]
        named = ClipName(model=held["model"], pretrained=held["pretrained"])
        clip = clip_of(store, device=device, named=named)
        clip.model.double()
        trainer = prepare(store, clip, load(overrides=settings))
        trainer.model.double()
        losses = []
        for step in range(STEPS):
            index, batch = trainer.batches.at(step)
            losses.append(trainer.update(step, doubled(batch), index.labels))
        if trainer.group.writes:
            weights = {name: w.contiguous() for name, w in trainer.model.state_dict().items()}
            save_file({**weights, "losses": torch.stack(losses)}, out)


if __name__ == "__main__":
    main()
