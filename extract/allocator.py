"""How the C library keeps memory that was freed."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_KEPT = 2**30
"""Bytes of the largest block that is kept, and of how much is kept at the end of the heap."""


def keep_freed_memory() -> bool:
    """Have glibc keep the large blocks that tensors leave behind; True if it will.

    By default it gives blocks of some MiB back at once, and each new one costs a page fault
    every 4 KiB: on a CPU a quarter of the time of the visual tower (docs/LOG.md).  Elsewhere
    than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # glibc before 2.35 refuses a threshold this high; trimming alone would then make it worse
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
