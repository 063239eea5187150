"""The first call of each operator in a fresh process, compiled before: what a short script waits.

The second process is the one that counts: the first one compiles, where the sources are new, and
leaves the machine code in numba's cache. Told apart: the imports, and what numba does once in a
process before it loads any kernel, whoever wrote it (it reads its tables and imports scipy).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

import harness
import machine
import tables
from tables import Measured, Row

GOAL_S = 0.5
PROCESSES = 3
ONCE = ("import of torch, numba and medplat_kernels", "numba's own start")
CALLS = {
    "selective_scan": "k.selective_scan_fn(r(1, 32, 70), r(1, 32, 70), -r(32, 16), r(1, 16, 70), "
    "r(1, 16, 70), r(32), r(1, 32, 70), r(32), True)",
    "selective_scan, four orders": "k.selective_scan_fn(r(1, 32, 64), r(1, 128, 64), -r(128, 16), "
    "r(1, 4, 16, 64), r(1, 4, 16, 64), order='cross2d', grid=(8, 8))",
    "causal_conv1d": "k.causal_conv1d_fn(r(1, 32, 70), r(32, 4), r(32), 'silu')",
    "mamba_inner": "k.mamba_inner(r(1, 64, 70), r(32, 4), r(32), r(34, 32), r(32, 2), -r(32, 16), "
    "r(32), r(32))",
    "mamba_chunk_scan (no gradient)": "k.mamba_chunk_scan_combined(*(x.detach() for x in "
    "(r(1, 70, 2, 16), r(1, 70, 2), -r(2), r(1, 70, 1, 16), r(1, 70, 1, 16))), 64)",
    "window_attention": "k.window_attention(*r(3, 1, 2, 8, 8, 16), 4, 2)",
    "window_cross_attention": "k.window_cross_attention(r(1, 2, 8, 8, 16), r(1, 2, 4, 4, 16), "
    "r(1, 2, 4, 4, 16), 4, 2)",
    "neighborhood_attention": "k.neighborhood_attention(*r(3, 1, 2, 8, 8, 16), 3)",
    "scale_attention": "k.scale_attention(*r(3, 4, 2, 18, 16))",
    "scale_attention, one query": "k.scale_attention(*r(3, 4, 2, 18, 16), readout=0)",
}
CHILD = """
import time
start = time.perf_counter()
import torch, numba
import medplat_kernels as k
from numba.core.registry import cpu_target
def r(*shape): return torch.rand(shape, requires_grad=True)
imported = time.perf_counter()
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
ready = time.perf_counter()
out = {call}
if out.requires_grad: out.sum().backward()
print(imported - start, ready - imported, time.perf_counter() - ready)
"""


def main() -> str:
    """Time every operator's first call, forward and backward."""
    rows = []
    with machine.listening() as noise:
        for name, call in CALLS.items():
            _times(call)
            *once, calls = zip(*(_times(call) for _ in range(PROCESSES)), strict=True)
            rows.append(_row(name, calls))
        rows += [_row(name, seconds) for name, seconds in zip(ONCE, once, strict=True)]
    record = tables.record(
        "first call in a fresh process, forward + backward", Measured(rows, noise)
    )
    for row in record["rows"][: len(CALLS)]:
        row["verdict"] = f"goal <= {GOAL_S} s: {'met' if row['wall_s'] <= GOAL_S else 'missed'}"
    return tables.write(harness.RESULTS / "first_call.json", [record], machine.describe())


def _times(call: str) -> tuple[float, ...]:
    """Seconds of the imports, of numba's own start and of the call."""
    command = [sys.executable, "-c", CHILD.format(call=call)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return tuple(map(float, done.stdout.split()))


def _row(name: str, seconds: Any) -> Row:
    middle = statistics.median(seconds)
    return Row(name, wall_s=middle, min_s=min(seconds), cpu_s=0, ratio=1, ratio_low=1, ratio_high=1)
