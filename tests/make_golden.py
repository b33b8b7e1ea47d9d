"""Write the golden loss curve: 20 steps on the CPU, fixed from the first random number on.

    python tests/make_golden.py

A change that should not alter numbers leaves tests/golden_losses.json as it is; one that should
runs this script and shows both curves.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from helpers import fake_store as fake

from bieff.train.config import load
from bieff.train.fit.loop import train

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 20
SETTINGS = ("epochs=5", "warmup_epochs=1", "batch_size=13", "eval_every=5", "lr=2e-3")


def curve(folder: Path) -> dict[str, Any]:
    """Train in an empty folder; losses by step, and the last evaluation."""
    clip = fake.load_clip(folder / "clip", dim=37, width=29, seed=3)
    store = fake.write_store(folder / "store", clip, noise=1.5, seed=3)
    losses: list[float] = []
    run = train(
        store,
        clip,
        load(overrides=SETTINGS),
        folder / "run",
        watch=lambda _, __, loss: losses.append(loss),
    )
    assert len(losses) == STEPS
    return {
        "settings": list(SETTINGS),
        "torch": torch.__version__,
        "losses": losses,
        "val_top1": run.record["evaluation"]["val_top1"],
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
