"""Being asked to stop: SIGTERM, Ctrl-C, or the wall-time limit.

The first signal is noted and obeyed between two batches; a second one ends at once. What was saved
at the end of the last epoch is what `--resume` goes on from.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """Training stopped before its end because it was asked to. `why` says by what."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


class Stop:
    """Whether somebody asked to stop.

    Args:
        max_minutes: Wall-time limit from now on.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.asked: str | None = None
        self._limit = max_minutes
        self._started = time.monotonic()

    def check(self) -> None:
        """Call between batches.

        Raises:
            Interrupted: A signal came, or the time is up.
        """
        if self._limit is not None and time.monotonic() - self._started > self._limit * 60:
            self.asked = self.asked or f"the limit of {self._limit:g} minutes"
        if self.asked is not None:
            raise Interrupted(self.asked)

    def note(self, number: int, frame: FrameType | None) -> Any:
        """The signal handler."""
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name


@contextmanager
def on_signals(stop: Stop) -> Iterator[None]:
    """Hand SIGTERM and SIGINT to `stop` for a while; elsewhere than in the main thread, nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, stop.note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
