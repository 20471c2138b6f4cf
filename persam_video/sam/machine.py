"""What is asked of the machine that the network runs on.

The questions about the GPU are for NVIDIA's; without one in use nothing happens there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch


def processor_threads() -> int:
    """Threads that the network takes on the processor."""
    return torch.get_num_threads()


def take_threads(count: int) -> None:
    """Let torch use so many threads of the processor for what is called on this thread.

    torch takes over the number for all threads that it has not met.
    """
    # A thread that torch meets gets the latest number of any thread; after that it keeps its own.
    torch.get_num_threads()
    torch.set_num_threads(count)


@contextmanager
def threads_taken(count: int) -> Iterator[None]:
    """``take_threads`` for a while; then this thread, and those to come, have what it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def give_back_memory() -> None:
    """Give the system what the C library keeps of memory that nobody uses.

    In a long run that becomes more and more, in pieces of all sizes. Nothing happens where the
    library is not glibc.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another library; on Windows it must have a name
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it; no, where torch is too old to tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:
        return False
    return any(capabilities().get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def gpu_name() -> str | None:
    """Name of the GPU in use; None as long as nothing has run on one."""
    return torch.cuda.get_device_name() if _in_use() else None


def wait_for_gpu() -> None:
    """Return when all that was asked of the GPU is done; a GPU works on its own until then."""
    if _in_use():
        torch.cuda.synchronize()


def peak_gpu_memory() -> int | None:
    """Most bytes that torch had of the GPU since ``forget_peak_gpu_memory``, or None."""
    return torch.cuda.max_memory_reserved() if _in_use() else None


def forget_peak_gpu_memory() -> None:
    """Let the peak start from what is held now."""
    if _in_use():
        torch.cuda.reset_peak_memory_stats()


def _in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
