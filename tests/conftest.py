"""Settings and fixtures that every test shares."""

import os
import re
from functools import cache

import pytest

# On two cores torch's default of one thread a core makes tiny operators wait for each other.
# For the processes that tests start too: the same number of threads gives the same last bits.
os.environ["OMP_NUM_THREADS"] = "1"

import torch  # reads the variable
from helpers.places import VIDEOS

torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file runs on one worker, as do all that use the world: what they share is made once.

    pytest-xdist 3.8 has `--dist loadgroup` for it, which does nothing with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    @cache
    def scope(file):
        uses = re.search(r"def \w+\(.*\bworld\b", (config.rootpath / file).read_text())
        return "world" if uses else file

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return scope(nodeid.partition("::")[0])

    return ByFile(config, log)


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
