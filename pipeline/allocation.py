"""Memory of tensors on the CPU: keep what is freed instead of asking the system for it again."""

import ctypes
import platform

# Numbers of mallopt's parameters, from glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_LARGEST_TRIM = 2**30
_GROWTH = 64 * 2**20


def keep_freed_memory() -> bool:
    """Keep freed memory in this process, for good, instead of handing it back to the system.

    Large blocks would otherwise come as fresh pages each time, which the system zeroes on first touch: 10 to
    30% of the time of a segmenter's training step or prediction. The process keeps its peak until it ends.

    Returns:
        Whether the C library is glibc and took the settings; elsewhere nothing changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST_TRIM), (_TOP_PAD, _GROWTH))
    return all(mallopt(option, value) == 1 for option, value in settings)
