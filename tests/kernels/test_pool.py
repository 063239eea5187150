"""Threads of the numba kernels: shares, forks, several callers, exceptions, repeatability."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medplat_kernels import pool

pytest.importorskip("numba")


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def scan(seed: int) -> list[torch.Tensor]:
    """Output and gradients of a scan that is worth several workers."""
    from medplat_kernels import selective_scan_fn

    source = torch.Generator().manual_seed(seed)
    shapes = ((2, 48, 512), (2, 48, 512), (48, 16), (2, 16, 512), (2, 16, 512))
    drawn = [torch.randn(shape, generator=source) for shape in shapes]
    u, delta, A, B, C = (each.requires_grad_() for each in drawn)
    out = selective_scan_fn(u, delta, -A.exp(), B, C, delta_softplus=True, backend="numba")
    assert isinstance(out, torch.Tensor)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), (u, delta, A, B, C))]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_task_runs_once() -> None:
    ran: list[int] = []
    lock = threading.Lock()

    def task(worker: int) -> None:
        with lock:
            ran.append(worker)

    pool.run(task, 7)
    assert sorted(ran) == list(range(7))


def test_one_task_runs_on_the_calling_thread() -> None:
    threads: list[int] = []
    pool.run(lambda worker: threads.append(threading.get_ident()), 1)
    assert threads == [threading.get_ident()]


@pytest.mark.parametrize("failing", [0, 2])
def test_an_exception_arrives_after_all_have_ended(failing: int) -> None:
    ended: list[int] = []

    def task(worker: int) -> None:
        if worker == failing:
            raise ValueError("worker failed")
        ended.append(worker)

    with pytest.raises(ValueError, match="worker failed"):
        pool.run(task, 4)
    assert sorted(ended) == [worker for worker in range(4) if worker != failing]


@pytest.mark.usefixtures("four_threads")
def test_small_work_gets_one_worker() -> None:
    assert pool.workers(100, work=10, least=20) == 1
    assert pool.workers(100, work=40, least=20) == 2
    assert pool.workers(3, work=1e9, least=20) == 3
    assert pool.workers(100, work=1e9, least=20) == 4


@given(batch=st.integers(1, 20), tiles=st.integers(1, 20), threads=st.integers(1, 9))
def test_shares_cover_everything_once(batch: int, tiles: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        shares = pool.shares(batch, tiles, work=1e9, least=1)
    finally:
        torch.set_num_threads(before)
    assert len(shares) <= threads
    covered = [
        (b, t)
        for share in shares
        for b in range(share.first_batch, share.last_batch)
        for t in range(share.first_tile, share.last_tile)
    ]
    assert sorted(covered) == [(b, t) for b in range(batch) for t in range(tiles)]
    # Workers with a part in common never share what they sum into it.
    for one in shares:
        for other in shares:
            if one is not other and one.part_of_batch == other.part_of_batch:
                assert one.part_of_tiles != other.part_of_tiles


def test_four_python_threads_at_once_get_what_one_gets() -> None:
    # torch counts the threads of each calling thread by itself.
    def caller() -> None:
        torch.set_num_threads(2)

    with ThreadPoolExecutor(1, initializer=caller) as alone:
        expected = list(alone.map(scan, range(4)))
    with ThreadPoolExecutor(4, initializer=caller) as callers:
        for _ in range(5):
            found = list(callers.map(scan, range(4)))
            assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_repeats_bit_for_bit_at_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            assert same(scan(0), scan(0))
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_can_scan() -> None:
    # In a process of its own. The child does nothing else: torch's own OpenMP threads (even those
    # of exp) and its autograd engine do not outlive a fork.
    script = """
import os, sys, warnings
import torch
from medplat_kernels import selective_scan_fn
from medplat_kernels.selective_scan import numba as backend
warnings.simplefilter("ignore")
backend.LEAST_STATES = 1000
torch.set_num_threads(2)
shapes = ((2, 48, 64), (2, 48, 64), (48, 16), (2, 16, 64), (2, 16, 64))
u, delta, A, B, C = (torch.rand(shape) for shape in shapes)
before = selective_scan_fn(u, delta, -A, B, C, backend="numba")
A = -A
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(before, selective_scan_fn(u, delta, A, B, C, backend="numba")) else 1)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=120, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
