"""The vector type: elementary functions and transport against numpy and torch, at every width."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

import vector_kernels as kernels

from medplat_kernels.vector_memory import KINDS
from medplat_kernels.vectors import LANES

RNG = np.random.default_rng(0)
# What x86 CPUs without AVX-512 have, and what the oldest have: numba's own settings.
NARROW = {
    8: {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+sse4.2"},
    4: {"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": "+sse4.2,+ssse3,+sse2"},
}


def applied(name: str, values: np.ndarray) -> np.ndarray:
    source = torch.from_numpy(values.astype(np.float32))
    padded = torch.nn.functional.pad(source, (0, -len(source) % LANES)).contiguous()
    target = torch.full_like(padded, torch.nan)
    kernels.apply[name](padded.data_ptr(), target.data_ptr(), len(padded))
    return target[: len(source)].numpy()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(found / expected - 1)))


def test_exp2() -> None:
    x = RNG.uniform(-125, 125, 100_001).astype(np.float32)
    assert relative(applied("exp2", x), np.exp2(x.astype(np.float64))) < 3e-7
    # A decay near 1 is taken to a high power: what must be exact is 2^0.
    assert applied("exp2", np.zeros(1))[0] == 1
    assert np.all(applied("exp2", np.array([-200.0, -1e4, -1e30])) < 1.2e-38)
    small = -np.logspace(-9, -1, 1001).astype(np.float32)
    assert relative(applied("exp2", small), np.exp2(small.astype(np.float64))) < 1.5e-7


def test_softplus() -> None:
    for low, high, most in ((-1, 80, 4e-7), (-8, -1, 8e-7), (-20, -8, 1.5e-6), (-80, -20, 5e-6)):
        x = RNG.uniform(low, high, 50_001).astype(np.float32)
        assert relative(applied("softplus", x), np.logaddexp(0, x.astype(np.float64))) < most


def test_sigmoid() -> None:
    for low, high, most in ((-1, 80, 4e-7), (-8, -1, 8e-7), (-20, -8, 1.5e-6), (-80, -20, 5e-6)):
        x = RNG.uniform(low, high, 50_001).astype(np.float32)
        assert relative(applied("sigmoid", x), 1 / (1 + np.exp(-x.astype(np.float64)))) < most
    ends = applied("sigmoid", np.array([-1e30, -300.0, 300.0, 1e30]))
    np.testing.assert_allclose(ends, [0, 0, 1, 1], atol=1e-37)


@pytest.mark.parametrize("name", ["exp2", "softplus", "sigmoid"])
def test_not_a_number_stays_one(name: str) -> None:
    if LANES < 16 and name == "exp2":
        pytest.skip("the portable exp2 clamps; what multiplies it carries the NaN on")
    assert np.isnan(applied(name, np.full(3, np.nan))).all()


@pytest.mark.parametrize("dtype", list(KINDS), ids=str)
@pytest.mark.parametrize("lanes", [1, LANES - 1, LANES])
def test_blocks_are_transposed_and_put_back(dtype: torch.dtype, lanes: int) -> None:
    source = torch.randn(lanes, 3 * LANES).to(dtype)
    tile = torch.full((LANES, LANES), torch.nan)
    kernels.read(source.data_ptr(), LANES, 3 * LANES, lanes, KINDS[dtype], tile.data_ptr())
    assert torch.equal(tile[:, :lanes], source[:, LANES : 2 * LANES].float().T)
    assert (tile[:, lanes:] == 0).all()
    target = torch.full((lanes + 1, 3 * LANES), 7.0).to(dtype)
    kernels.write(tile.data_ptr(), target.data_ptr(), LANES, 3 * LANES, lanes, KINDS[dtype])
    assert torch.equal(target[:lanes, LANES : 2 * LANES], source[:, LANES : 2 * LANES])
    target[:lanes, LANES : 2 * LANES] = 7.0
    assert (target == 7).all()


@pytest.mark.parametrize("dtype", list(KINDS), ids=str)
def test_conversion_rounds_as_torch_does(dtype: torch.dtype) -> None:
    # Every exponent, ties, the largest finite number, infinities and what is not a number.
    bits = RNG.integers(0, 2**32, 64 * LANES, dtype=np.uint32)
    bits[:8] = 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0, 1
    source = torch.from_numpy(bits.view(np.float32).copy())
    kind = KINDS[dtype]
    source[8] = 1 + 2.0**-11
    rows, single = (torch.zeros(len(source), dtype=dtype) for _ in range(2))
    kernels.convert(source.data_ptr(), rows.data_ptr(), single.data_ptr(), len(source), kind)
    expected = source.to(dtype)
    torch.testing.assert_close(rows, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(single, expected, rtol=0, atol=0, equal_nan=True)
    back = torch.zeros(len(source))
    kernels.widen(expected.data_ptr(), back.data_ptr(), len(source), kind)
    torch.testing.assert_close(back, expected.float(), rtol=0, atol=0, equal_nan=True)


def test_lane_sums() -> None:
    rows = torch.randn(LANES, 2 * LANES)
    sums = torch.zeros(LANES)
    kernels.sums(rows.data_ptr(), 2 * LANES, sums.data_ptr())
    torch.testing.assert_close(sums, rows[:, :LANES].double().sum(1).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", list(NARROW))
def test_scan_and_functions_at_other_widths(lanes: int, tmp_path: Path) -> None:
    """This file and the scan once more in a process that compiles for a lesser CPU."""
    if not any("avx2" in line for line in Path("/proc/cpuinfo").read_text().splitlines()):
        pytest.skip("needs a CPU that can run what is compiled")
    environment = {**os.environ, **NARROW[lanes], "NUMBA_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("narrow_vectors.py")
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["lanes"] == lanes
    assert found["functions"] < 8e-7
    assert found["forward"] < 2e-6
    assert found["gradients"] < 1e-5
    assert found["products"] < 2e-6
