"""Load of the machine, sampled every ten seconds into the run's own buffer of metrics."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Protocol

SAMPLE_SECONDS = 10.0
MEGABYTE = 1e6


class _Buffer(Protocol):
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...


class SystemSampler:
    """A thread that samples until `stop`; it never writes to the store itself."""

    def __init__(self, buffer: _Buffer, seconds: float = SAMPLE_SECONDS) -> None:
        self._buffer = buffer
        self._seconds = seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="medplat-system", daemon=True)

    def start(self) -> None:
        """Begin sampling."""
        self._thread.start()

    def stop(self) -> None:
        """End sampling and wait for the thread."""
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        step = 0
        while not self._end.wait(self._seconds):
            self._buffer.log_metrics(sample(), step)
            step += 1


def sample() -> dict[str, float]:
    """Load of processor, memory and GPU now; names as MLflow's page groups them."""
    import psutil

    memory = psutil.virtual_memory()
    loads = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_usage_megabytes": psutil.Process().memory_info().rss / MEGABYTE,
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            used = torch.cuda.memory_allocated(index) / MEGABYTE
            loads[f"system/gpu_{index}_memory_usage_megabytes"] = used
    return loads
