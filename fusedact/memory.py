"""Memory for large results on the CPU: huge pages, and a bounded list of blocks to reuse.

The C library maps every block over 32 MiB afresh, so writing a new 128 MiB result spends ten times as long in page
faults as in copying: that is most of the time of an elementwise operator. Results of at least `threshold` bytes come
from fusedact's own allocator instead: in 2 MiB pages where the system has them, and from blocks that were freed
before, of which at most `limit` bytes are kept.

    fusedact.memory.stats()                what is kept, in use, reused
    fusedact.memory.set_limit("512MB")     keep at most so much; 0 keeps nothing
    fusedact.memory.empty_cache()          give back what is kept
    with fusedact.memory.enabled(False):   torch's own allocator for everything

A thin face of the extension; says units, decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fusedact import _C

__all__ = ["Stats", "empty_cache", "enabled", "set_limit", "set_threshold", "stats"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


@dataclass(frozen=True)
class Stats:
    """One look at the allocator; all sizes in bytes."""

    cached_bytes: int  # kept for reuse
    limit_bytes: int  # what may be kept
    threshold_bytes: int  # the smallest result that comes from here
    allocated_bytes: int  # in living tensors
    hits: int  # allocations served from what was kept
    misses: int  # allocations served by the operating system
    enabled: bool


def stats() -> Stats:
    """What the allocator holds and has done so far."""
    return Stats(**_C.memory_stats())


def set_limit(size: int | str) -> None:
    """Keep at most `size` freed bytes (an int, or "512MB", "2GiB"); 0 keeps none. What is above goes back at once.

    Raises:
        ValueError: a negative size, or a text that is not a size.
        TypeError: neither an int nor a string.
    """
    _C.memory_set_limit(_bytes(size))


def set_threshold(size: int | str) -> None:
    """Serve results of at least `size` bytes; smaller ones come from torch's allocator. Raises as `set_limit`."""
    _C.memory_set_threshold(_bytes(size))


def empty_cache() -> None:
    """Give all kept blocks back to the operating system. Living tensors are not touched."""
    _C.memory_empty_cache()


@contextmanager
def enabled(on: bool = True) -> Iterator[None]:
    """Use the allocator, or with False torch's own, inside the block; the setting is the whole process's."""
    before = stats().enabled
    _C.memory_enable(on)
    try:
        yield
    finally:
        _C.memory_enable(before)


def _bytes(size: int | str) -> int:
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f"a size must be an int (bytes) or a string such as '512MB', but got {size!r}")
    if isinstance(size, str):
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", size.strip())
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError(f"a size must look like '512MB' (B, KB, MB, GB, KiB, MiB, GiB), but got {size!r}")
        size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size < 0:
        raise ValueError(f"a size must not be negative, but got {size}")
    return size
