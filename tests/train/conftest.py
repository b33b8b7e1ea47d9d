"""A small CLIP and a store of its features, anew for every file of tests."""

import pytest
from helpers import fake_store as fake


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return fake.load_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def store(clip, tmp_path_factory):
    return fake.write_store(tmp_path_factory.mktemp("store") / "store", clip)
