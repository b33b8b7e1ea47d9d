"""Settings and fixtures that every test shares."""

import os

import pytest

# On two cores torch's default of one thread a core makes tiny operators wait for each other.
# For the processes that tests start too: the same number of threads gives the same last bits.
os.environ["OMP_NUM_THREADS"] = "1"

import torch  # reads the variable
from helpers.places import VIDEOS

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_videos():
    """A folder of real clips beside the checkout; tests run without it too."""
    if not VIDEOS.is_dir():
        pytest.skip(f"no real clips at {VIDEOS}")
    return VIDEOS


@pytest.fixture(scope="session")
def browser():
    """A real, headless Chromium; browser.py says what it can do."""
    pytest.importorskip("selenium", reason="no selenium here, so no page was looked at")
    from helpers.browser import chromium

    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A small `shapes` world, made and extracted by the commands themselves, in its folder."""
    from bieff.apps.demo import demo
    from bieff.extract.shapes.clips import Edition
    from bieff.train.config import TrainConfig

    out = tmp_path_factory.mktemp("world")
    edition = Edition(seed=1, train_clips=2, val_clips=1, zero_shot_clips=3)
    config = TrainConfig(seed=1, epochs=2, warmup_epochs=1, temporal_layers=1)
    demo(out, seed=1, edition=edition, config=config)
    return out
