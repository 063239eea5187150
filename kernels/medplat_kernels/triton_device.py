"""Whether Triton can run on a tensor; it is imported only to ask whether it interprets."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(x: Tensor) -> str | None:
    """Why Triton can't run on this tensor, by its device and dtype; None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if x.device.type != "cuda" and not _interpreted():
        return f"triton needs a CUDA device, the tensors are on {x.device.type}"
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "triton kernels need a GPU of compute capability 8.0 or newer"
    if x.dtype not in DTYPES:
        return f"triton kernels take float32, bfloat16 and float16, not {x.dtype}"
    return None


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)
