"""Threads for kernels that release the GIL.

numba's own parallel layers are not used: with OpenMP a forked child that calls a kernel is killed,
with workqueue two Python threads at once abort the process. The threads here wait on a lock and
not on a spinning core, so they leave torch's threads alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

# The pool of each process: a forked child finds its parent's here, whose threads it does not have.
_pools: dict[int, ThreadPoolExecutor] = {}


class Share(NamedTuple):
    """What one worker does of a call over batch entries and channel tiles.

    The last two number the shares along each of the two: where workers that have the same
    channels, or the same batch entries, sum something, each sums into a part of its own.
    """

    first_batch: int
    last_batch: int
    first_tile: int
    last_tile: int
    part_of_batch: int
    part_of_tiles: int


def shares(batch: int, tiles: int, work: float, least: float) -> list[Share]:
    """Shares out batch entries and channel tiles over the workers that the call is worth.

    Cut so that the largest share is smallest; every pair is in exactly one share. See `workers`.
    """
    count = workers(batch * tiles, work, least)
    cuts = [(parts, min(tiles, count // parts)) for parts in range(1, min(batch, count) + 1)]
    over_batch, over_tiles = min(cuts, key=lambda cut: -(-batch // cut[0]) * -(-tiles // cut[1]))
    return [
        Share(*_part(batch, i, over_batch), *_part(tiles, j, over_tiles), i, j)
        for i in range(over_batch)
        for j in range(over_tiles)
    ]


def _part(size: int, part: int, parts: int) -> tuple[int, int]:
    return size * part // parts, size * (part + 1) // parts


def workers(parts: int, work: float, least: float) -> int:
    """How many workers a call is worth.

    Args:
        parts: What it can be cut into.
        work: Its size, in any unit.
        least: The size below which a second worker costs more than it brings.

    Returns:
        From 1 to torch.get_num_threads().
    """
    return max(1, min(torch.get_num_threads(), parts, int(work / least)))


def run(task: Callable[[int], object], count: int) -> None:
    """Calls task(0) ... task(count - 1) at the same time and returns when all have ended.

    The calling thread does task(0) itself; a count of 1 costs nothing.

    Raises:
        Exception: What the first of the tasks that failed raised.
    """
    if count == 1:
        task(0)
        return
    pool = _pools.get(os.getpid()) or _pools.setdefault(
        os.getpid(), ThreadPoolExecutor(os.cpu_count(), "medplat-kernels")
    )
    others = [pool.submit(task, worker) for worker in range(1, count)]
    try:
        task(0)
    finally:
        failed = [other.exception() for other in others]
    for error in failed:
        if error is not None:
            raise error
