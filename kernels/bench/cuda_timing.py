"""Timing on a GPU: CUDA events, the L2 cache emptied before each call, eager and as a graph."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 3
_graphs: dict[Any, torch.cuda.CUDAGraph] = {}
_flush: list[torch.Tensor] = []


def describe() -> dict[str, Any]:
    """The GPU, its driver and its clocks now."""
    properties = torch.cuda.get_device_properties(0)
    told: dict[str, Any] = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "sms": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }
    if shutil.which("nvidia-smi"):
        asked = ["driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit"]
        command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader", "-i=0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told |= dict(zip(asked, done.stdout.strip().split(", "), strict=False))
    return told


def copy_bandwidth() -> float:
    """Bytes a second of a device-to-device copy of 1 GiB, read and written; the best of 10."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = min(eager(lambda: target.copy_(source), 1)[0] for _ in range(10))
    return 2 * source.numel() / seconds


def eager(call: Callable[[], Any], repeat: int) -> tuple[float, float]:
    """Seconds of one call, the mean of `repeat`, and the CPU seconds that it took to launch."""
    return _timed(call, repeat)


def graph(call: Callable[[], Any], repeat: int) -> tuple[float, float]:
    """The same for a CUDA graph of the call, captured before by `can_capture`."""
    return _timed(_graphs[call].replay, repeat)


def can_capture(call: Callable[[], Any]) -> bool:
    """Capture the call as a graph; False for one that waits for the GPU or allocates outside."""
    try:
        _graphs[call] = _capture(call)
    except RuntimeError as error:
        sys.stderr.write(f"not captured as a graph: {error}\n")
        return False
    return True


def _capture(call: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        call()
    return captured


def _timed(call: Callable[[], Any], repeat: int) -> tuple[float, float]:
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeat)]
    torch.cuda.synchronize()
    used = time.process_time()
    for start, end in events:
        _empty_l2()
        start.record()
        call()
        end.record()
    used = time.process_time() - used
    torch.cuda.synchronize()
    milliseconds = sum(start.elapsed_time(end) for start, end in events)
    return milliseconds / 1e3 / repeat, used / repeat


def _empty_l2() -> None:
    """Write 256 MiB, more than any L2 cache holds."""
    if not _flush:
        _flush.append(torch.empty(256 << 20, dtype=torch.uint8, device="cuda"))
    _flush[0].zero_()
