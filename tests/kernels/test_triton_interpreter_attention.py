"""The Triton attention kernels against float64, without a GPU: in Triton's interpreter.

Interpretation is decided when triton is imported, so that all cases run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FLOAT32 = 1e-5


def errors(*arguments: str, **environment: str) -> dict[str, float]:
    program = Path(__file__).with_name("interpret_attention.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (line.split("\t") for line in done.stdout.splitlines())
    return {name: float(error) for name, error in lines}


def test_kernels_agree_with_the_reference_and_repeat() -> None:
    found = errors(TRITON_INTERPRET="1")
    assert len(found) == 17
    assert {name: error for name, error in found.items() if not error <= FLOAT32} == {}


@pytest.mark.gpu
def test_kernels_agree_with_the_reference_on_a_gpu() -> None:
    found = errors("cuda", CUBLAS_WORKSPACE_CONFIG=":4096:8")
    assert len(found) == 17
    assert {name: error for name, error in found.items() if not error <= FLOAT32} == {}


def test_without_a_gpu_triton_says_why_it_does_not_run() -> None:
    import torch

    from medplat_kernels import BackendError, scale_attention

    q = torch.zeros(1, 1, 4, 16)
    with pytest.raises(BackendError, match="needs a CUDA device"):
        scale_attention(q, q, q, backend="triton")


@pytest.mark.parametrize(
    ("length", "kernel"), [(n, k) for n in range(1, 12) for k in (1, 2, 3, 6) if k <= n]
)
def test_a_tile_of_keys_is_seen_by_the_queries_that_see_it(length: int, kernel: int) -> None:
    """The bounds of the backward pass over keys, restated and compared with the rule itself."""
    side = 4
    firsts = [min(max(g - kernel // 2, 0), length - kernel) for g in range(length)]
    for first in range(0, length, side):
        last = min(first + side, length) - 1
        start = 0 if first < kernel else first - kernel + 1 + kernel // 2
        end = length if last >= length - kernel else last + 1 + kernel // 2
        seeing = [g for g, f in enumerate(firsts) if f <= last and f + kernel > first]
        assert (seeing[0], seeing[-1] + 1) == (start, min(end, length))
