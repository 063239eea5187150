"""The Mamba-2 scan on CPU without gradients: numba with explicit vectors."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from medplat_kernels import pool
from medplat_kernels.dispatch import Verdict, verdict

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEADS = 8  # worked on at a time: their states stay in the cache
LEAST_WORK = 5_000_000  # multiply-adds that one worker does in about 0.1 ms


def can_run(x: Tensor, recording: bool, *, raise_error: bool = False) -> Verdict:
    """Forward passes on a CPU, of which no gradient will be asked."""
    return verdict(_refusal(x, recording), raise_error, "explicit vectors, without gradients")


def _refusal(x: Tensor, recording: bool) -> str | None:
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed: pip install numba"
    if x.device.type != "cpu":
        return f"the numba scan runs on CPU, the tensors are on {x.device.type}"
    if x.dtype not in DTYPES:
        return f"the numba scan computes in float32 and can't take {x.dtype}"
    if recording:
        return "the numba scan has no gradients"
    return None


def scan(
    x: Tensor, dt: Tensor, rates: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Output and states; see the contract in the package's docstring. Chunks have own lengths."""
    from . import numba_kernels as kernels

    (batch, length, heads, width), (groups, states) = x.shape, B.shape[2:]
    x, B, C = (each.float().contiguous() for each in (x, B, C))
    dt, kept = dt.mT.contiguous(), rates.mT.exp().contiguous()
    state = state.mT.clone(memory_format=torch.contiguous_format)
    out = torch.empty_like(x)
    sizes = (length, heads, width, groups, states)
    work = batch * heads * length * kernels.CHUNK * (width + states)
    shares = pool.shares(batch, heads, work, LEAST_WORK)
    scratch = torch.empty(len(shares), kernels.scratch_size(min(HEADS, heads), width, states))

    def run(worker: int) -> None:
        first, last, begin, end, *_ = shares[worker]
        for at in range(begin, end, HEADS):
            kernels.forward(
                x.data_ptr(), dt.data_ptr(), kept.data_ptr(), B.data_ptr(), C.data_ptr(),
                state.data_ptr(), out.data_ptr(), sizes, scratch[worker].zero_().data_ptr(),
                first, last, at, min(at + HEADS, end),
            )  # fmt: skip

    pool.run(run, len(shares))
    return out, state.mT
