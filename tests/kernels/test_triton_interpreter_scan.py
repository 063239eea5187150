"""The Triton scan and convolution against float64, without a GPU: in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medplat_kernels import BackendError, scan_orders, selective_scan_fn
from medplat_kernels.selective_scan.triton import ENOUGH, FEW, split, walk

pytest.importorskip("triton")


FAST = ("split", "two groups, one state", "cross", "bare", "bfloat16", "convolution in orders")


def interpreted(*names: str) -> dict[str, str]:
    """What is over its gate, by case; in a process of its own, for that is decided at import."""
    program = Path(__file__).with_name("interpret_scan.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), *names],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(line.split("\t") for line in done.stdout.splitlines())


def test_kernels_agree_with_the_references() -> None:
    assert interpreted(*FAST) == dict.fromkeys(FAST, "within")


@pytest.mark.slow
def test_kernels_agree_with_the_references_in_all_cases() -> None:
    found = interpreted()
    assert len(found) == 19
    assert {name: broken for name, broken in found.items() if broken != "within"} == {}


def test_without_a_gpu_triton_says_why_it_does_not_run() -> None:
    u, A, B = torch.zeros(1, 4, 8), torch.zeros(4, 2), torch.zeros(1, 2, 8)
    with pytest.raises(BackendError, match="needs a CUDA device"):
        selective_scan_fn(u, u, A, B, B, backend="triton")


@pytest.mark.parametrize("rows", [2, 3, 5, 6, 7, 12, 48, 56, 64, 80, 96, 127, 4097, 12288])
def test_the_division_of_a_walk_is_exact(rows: int) -> None:
    _, columns, multiplier, shift = walk(rows, 1000)
    assert columns == 1000
    assert multiplier < 2**32
    edges = torch.arange(0, 2**30 // rows, max(1, 2**30 // rows // 5000)) * rows
    for steps in (edges, edges + rows - 1, torch.tensor([2**30 - 1])):
        # What umulhi does: the high 32 bits of a product of two 32-bit numbers.
        high = [(4 * step * multiplier) >> 32 for step in steps.tolist()]
        assert [each >> shift for each in high] == [step // rows for step in steps.tolist()]


@pytest.mark.parametrize("name", ["column", "column_reversed"])
def test_the_rule_of_place_is_that_of_the_orders(name: str) -> None:
    grid = (7, 13)
    order = scan_orders.find(name)
    rows, columns, multiplier, shift = walk(*order.walk(grid))
    places = []
    for step in range(91):
        at = 90 - step if order.reverse else step
        column = (4 * at * multiplier) >> 32 >> shift
        places.append((at - column * rows) * columns + column)
    assert places == order.positions(grid).tolist()


@pytest.mark.parametrize("length", [1, 64, 65, 1000, 4096, 110592])
@pytest.mark.parametrize("programs", [1, 3, 6, 500, 4000])
def test_a_sequence_is_split_only_where_programs_are_few(programs: int, length: int) -> None:
    processors = 132
    chunks, steps = split(programs, length, processors)
    assert (chunks - 1) * steps < length <= chunks * steps
    if programs >= FEW * processors or length <= 64:
        assert chunks == 1
    else:
        assert steps % 64 == 0
        assert programs * chunks <= ENOUGH * processors + programs
        most = -(-length // 64)
        assert chunks == most or 2 * programs * chunks >= ENOUGH * processors
