"""What the agent gives back of the machine's memory."""

import ctypes

_M_MMAP_THRESHOLD = -3  # <malloc.h>
_LARGE_BYTES = 1 << 20


def return_large_blocks() -> None:
    """Have each block above 1 MiB go back to the kernel as soon as it is freed (mallopt(3)).

    A host file has up to 16 MiB and is copied a few times on its way. By itself the C library learns from the first
    that such blocks are common and keeps what is freed, in each thread of its own: 200 MiB were seen.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # not every C library has it
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
