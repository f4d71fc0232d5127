"""Keep freed memory in the process, where the C library is glibc.

By default glibc hands large freed blocks back to the kernel and faults them in again at the next allocation. A step on
a CPU, of a teacher or a student, allocates the same few megabytes a hundred times a second: the faults took 10 to 30 %
of it (docs/log.md). The price is that the process stays at its peak.
"""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc refuses more; larger blocks are mapped and unmapped as ever


def keep_freed_memory() -> None:
    """Ask glibc not to return freed memory to the kernel; does nothing where there is no `mallopt`."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
