"""The C library gives large blocks of memory back to the system as soon as they are free.

glibc takes blocks above a threshold from the system one by one, and gives them back one by one; but it raises that threshold, up to
32 MB, with every such block that is freed. From then on activations of that size lie on the heap, and what is free between others stays
with the process: three times what a run needs, as measured on a transformer of images. A threshold that was set does not rise.
"""

from __future__ import annotations

import ctypes

THRESHOLD = 1 << 20  # bytes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def give_back_large_blocks() -> None:
    """For a process of one's own, as the command line is; nothing where the C library has no such setting."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    for setting in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        mallopt(setting, THRESHOLD)
