"""Measures how fast the CPU reads main memory: what bounds decode on a CPU."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from dataclasses import dataclass

_BUFFER_BYTES = 128 * 2**20
"""Per thread; several times any last-level cache share."""
_PASSES = 6


@dataclass(frozen=True, slots=True)
class BandwidthMeasurement:
    read_bytes_per_s: float
    """The best pass of all threads together."""
    spread_ratio: float
    """Slowest pass / fastest pass."""
    threads: int


def measure_host_bandwidth(threads: int | None = None) -> BandwidthMeasurement | None:
    """Read bandwidth of host memory, in about a second.

    Each thread scans a buffer of its own with libc's `memchr`, which reads every byte with vector loads, writes nothing
    and runs without the interpreter lock. Other load on the machine lowers the figure. None where libc has no memchr.
    """
    try:
        memchr = ctypes.CDLL(None).memchr
    except (OSError, AttributeError):
        return None
    memchr.restype = ctypes.c_void_p
    memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    count = threads or len(os.sched_getaffinity(0))
    buffers = [ctypes.create_string_buffer(_BUFFER_BYTES) for _ in range(count)]
    for buffer in buffers:
        ctypes.memset(buffer, 1, _BUFFER_BYTES)  # touch every page, or all would be the one zero page
    seconds = []
    for _ in range(_PASSES):
        barrier = threading.Barrier(count + 1)

        def scan(buffer: ctypes.Array[ctypes.c_char], barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            memchr(buffer, 0, _BUFFER_BYTES)
            barrier.wait()

        workers = [threading.Thread(target=scan, args=(buffer,), daemon=True) for buffer in buffers]
        for worker in workers:
            worker.start()
        barrier.wait()
        started = time.perf_counter()
        barrier.wait()
        seconds.append(time.perf_counter() - started)
        for worker in workers:
            worker.join()
    return BandwidthMeasurement(
        read_bytes_per_s=count * _BUFFER_BYTES / min(seconds),
        spread_ratio=max(seconds) and min(seconds) / max(seconds),
        threads=count,
    )
