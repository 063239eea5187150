"""Metrics that wait to be sent: one call for a thousand costs little more than one call for one.

They go to the store at the end of an epoch (`flush`), every 30 seconds, or a thousand at a time.
What cannot be sent goes on waiting, and what is left at the end lies in a file of JSON lines, which
the next buffer on the same file takes up.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mlflow.entities import Metric

from medplat import console

METRICS_A_CALL = 1000
FLUSH_SECONDS = 30.0
# MLflow refuses the whole batch for one name with any other character.
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_/. :-]")


class MetricBuffer:
    """Metrics of one run, in the order in which they came.

    Args:
        send: Sends one batch; False means that it did not arrive.
        left: The file for what could not be sent.
    """

    def __init__(self, send: Callable[[list[Metric]], bool], left: Path) -> None:
        self._send = send
        self._left = left
        self._lock = threading.RLock()
        self._waiting = _take(left)
        self._added = 0
        self._flushed = time.monotonic()

    def add(self, metrics: Mapping[str, float], step: int, model_id: str | None) -> None:
        """Add finite values; send if it is time. What no name may hold (`HER2+`) becomes `_`."""
        now = int(time.time() * 1000)
        finite = {
            _NOT_IN_A_NAME.sub("_", name): float(value)
            for name, value in metrics.items()
            if math.isfinite(value)
        }
        ready = [Metric(name, value, now, step, model_id) for name, value in finite.items()]
        with self._lock:
            self._waiting.extend(ready)
            self._added += len(ready)
            due = time.monotonic() - self._flushed > FLUSH_SECONDS
            if due or self._added >= METRICS_A_CALL:
                self.flush()

    def flush(self) -> None:
        """Send all that waits, until a batch does not arrive."""
        with self._lock:
            self._added = 0
            while self._waiting:
                batch = self._waiting[:METRICS_A_CALL]
                arrived = self._send(batch)
                self._flushed = time.monotonic()
                if not arrived:
                    return
                del self._waiting[: len(batch)]

    def close(self) -> None:
        """Send all that waits, and write down what does not arrive."""
        with self._lock:
            self.flush()
            if not self._waiting:
                return
            lines = [json.dumps(dict(metric)) for metric in self._waiting]
            self._left.write_text("\n".join(lines) + "\n", encoding="utf-8")
            console.warn(f"{len(lines)} metrics could not be sent; they lie in {self._left}")


def _take(left: Path) -> list[Metric]:
    if not left.exists():
        return []
    lines = left.read_text(encoding="utf-8").splitlines()
    left.unlink()
    return [Metric(**json.loads(line)) for line in lines]
