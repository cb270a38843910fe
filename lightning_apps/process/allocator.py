"""Keep freed memory: on Linux CPUs this alone makes small transformers faster."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from its heap and to give nothing back before the process ends.

    By default every activation above 128 KB is a fresh mmap, and each of its pages costs a fault on first touch and a
    clearing; a training step asks for the same sizes again and again. Returns whether the allocator took the setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))
