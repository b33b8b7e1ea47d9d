"""Memory that was freed is kept for the next tensor."""

import subprocess
import sys

import pytest

from bieff.features.files import keep_freed_memory

FAULTS = """
import resource, sys
from bieff.features.files import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b"x" * 2**26
before = faults()
for _ in range(20):
    b"x" * 2**26
print(faults() - before)
"""


def faults(how):
    command = [sys.executable, "-P", "-c", FAULTS, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_a_block_is_not_faulted_in_again():
    """64 MiB twenty times: 16,384 pages each where they are given back."""
    if not keep_freed_memory():
        pytest.skip("this C library cannot be told to keep memory")
    assert faults("default") > 20 * 16_000
    assert faults("kept") < faults("default") / 100
