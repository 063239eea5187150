"""What a figure has to be read with: the machine, the versions, and how quiet it was."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

PACKAGES = ("numpy", "torch", "numba", "llvmlite", "triton", "mambapy", "mamba-ssm", "natten")
FLAGS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")
QUIET_LOAD = 1.0
OTHERS = 0.2  # cores that other programs may use while we measure
COPY_VARIES = 1.5


def describe(device: str = "cpu") -> dict[str, Any]:
    """The machine, the versions of everything that is timed, and the commit."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    told: dict[str, Any] = {
        "cpu": _cpu("model name") or platform.processor(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in (_cpu("flags") or _cpu("Features")).split()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "platform": platform.platform(),
        "versions": found,
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }
    if device == "cuda":
        import cuda_timing

        told["gpu"] = cuda_timing.describe()
    return told


def _cpu(key: str) -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return ""
    lines = (line.partition(":") for line in info.read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


def _commit() -> str:
    def git(*args: str) -> str:
        here = Path(__file__).resolve().parent
        done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (" with changes" if git("diff", "HEAD") else "")


def wait_until_quiet(limit_s: float = 300.0) -> None:
    """Wait, `limit_s` at most, until the load of the last minute is under `QUIET_LOAD`."""
    ends = time.monotonic() + limit_s
    while os.getloadavg()[0] >= QUIET_LOAD and time.monotonic() < ends:
        sys.stderr.write(f"waiting for a quiet machine, load {os.getloadavg()[0]:.1f}\n")
        time.sleep(15)


@dataclass
class Noise:
    """How quiet the machine was while something was measured.

    Attributes:
        load: Load averages of one minute, before and after.
        others: Cores that other programs kept busy on average.
        copy_varies: Slowest over fastest copy of the same 32 MiB.
    """

    load: tuple[float, float] = (0.0, 0.0)
    others: float = 0.0
    copies: list[float] = field(default_factory=list, repr=False)

    @property
    def copy_varies(self) -> float:
        """Slowest over fastest copy, 1 without copies."""
        return max(self.copies) / min(self.copies) if self.copies else 1.0

    @property
    def busy(self) -> str:
        """Why the figures do not count, empty where they do."""
        why = []
        if self.others > OTHERS:
            why.append(f"other programs used {self.others:.1f} cores")
        if self.copy_varies > COPY_VARIES:
            why.append(f"a memory copy varied {self.copy_varies:.1f} times")
        return ", ".join(why)

    def copy(self) -> None:
        """Time one copy."""
        started = time.perf_counter()
        np.copyto(_TO, _FROM)
        self.copies.append(time.perf_counter() - started)


_FROM = np.ones(8 << 20, dtype=np.float32)
_TO = np.zeros_like(_FROM)


@contextmanager
def listening() -> Iterator[Noise]:
    """Watch the machine while the block runs; `noise.copy()` is the block's to call."""
    noise = Noise()
    load, busy, own, started = os.getloadavg()[0], _busy_s(), _own_s(), time.perf_counter()
    try:
        yield noise
    finally:
        wall = time.perf_counter() - started
        noise.others = max(0.0, (_busy_s() - busy - (_own_s() - own)) / wall)
        noise.load = (load, os.getloadavg()[0])


def _busy_s() -> float:
    """Seconds that all cores together have worked since the machine started."""
    times = psutil.cpu_times()
    return sum(times[:]) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _own_s() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
