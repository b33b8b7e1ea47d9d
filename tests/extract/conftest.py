"""Small clips and the store of their features, which tests read and do not change."""

import pytest
from helpers import extracting


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    return extracting.write_clips(tmp_path_factory.mktemp("data") / "clips")


@pytest.fixture(scope="session")
def whole(clips, tmp_path_factory):
    """The store as one uninterrupted run in this process writes it."""
    store = extracting.plan_small(clips, tmp_path_factory.mktemp("whole") / "store")
    assert extracting.extract_small(store).is_whole
    return store
