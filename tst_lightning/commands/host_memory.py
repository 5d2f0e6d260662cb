"""Memory of a step on the CPU: in huge pages, and once it is freed, kept for the next step."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's M_TRIM_THRESHOLD and M_MMAP_MAX, of malloc.h


def ask_for_huge_pages() -> None:
    """Has PyTorch lay tensors of 2 MiB and more in huge pages, unless the environment says otherwise.

    To be called before torch makes its first tensor, when it reads the variable. Linux grants what is asked for where
    ``/sys/kernel/mm/transparent_hugepage/enabled`` is ``madvise``; where it is ``always`` or ``never``, nothing changes.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> None:
    """Has glibc's malloc give nothing back to the system; elsewhere it changes nothing.

    By default a large block, such as a chunk of logits, is mapped anew each time, and the kernel hands out and zeroes
    each of its pages again: 92,000 page faults a step, and a fifth of its time, for 24M parameters and a vocabulary of
    32,768 on two cores. What the process holds no longer falls between the heights of its steps, which lie a few percent
    higher.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_MMAP_MAX, 0)
