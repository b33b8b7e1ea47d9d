"""Write the golden loss curve: 20 steps on the CPU, fixed from the first random number on.

    python tests/make_golden.py

All in double precision, from the first weights on: in float32 the rounding of a processor's
kernels decides which category some video's words are of, and the curve is that machine's own.
A change that should not alter numbers leaves tests/golden_losses.json as it is; one that should
runs this script and shows both curves.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from helpers import fake_store as fake
from helpers.parallel_steps import doubled

from bieff.train.config import load
from bieff.train.data import load_features
from bieff.train.fit.loop import prepare

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 20
SETTINGS = ("epochs=5", "warmup_epochs=1", "batch_size=13", "lr=2e-3")


@contextmanager
def double_precision() -> Iterator[None]:
    """What is made in here is float64; random numbers of another type are other numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def curve(folder: Path) -> dict[str, Any]:
    """Train in an empty folder; losses by step, then beta and how many videos are right."""
    with double_precision():
        clip = fake.load_clip(folder / "clip", dim=37, width=29, seed=3)
        clip.model.double()
        store = fake.write_store(folder / "store", clip, noise=1.5, seed=3)
        trainer = prepare(store, clip, load(overrides=SETTINGS))
        trainer.model.double()
        losses = []
        for step in range(trainer.num_steps):
            draw, picked = trainer.batches.at(step)
            losses.append(trainer.update(step, doubled(picked), draw.labels).item())
        val = load_features(store.partitions["val"], device=trainer.device)
        videos, frames = torch.arange(len(val)), torch.arange(trainer.num_frames)
        with torch.no_grad():
            scores = trainer.score(doubled(val.chunk(videos, 0, frames)), None)
    assert len(losses) == STEPS
    return {
        "settings": list(SETTINGS),
        "torch": torch.__version__,
        "losses": losses,
        "beta": trainer.model.state_dict()["word_guided.beta"].item(),
        "val_right": int((scores.logits.argmax(dim=1) == val.labels).sum()),
    }


def main() -> None:
    """Write the curve."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = curve(Path(folder))
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n")
    print("\n".join(f"{step:2} {loss:.6f}" for step, loss in enumerate(made["losses"])))


if __name__ == "__main__":
    main()
