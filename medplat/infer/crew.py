"""The parent's side of the worker: jobs out, results in, time limits, replacement of the dead."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from medplat.errors import ModelError
from medplat.infer import worker
from medplat.infer.jobs import Job, Result
from medplat.infer.worker import Probe, Setup

AT_ONCE = 2  # one runs, one is read
LOAD_SECONDS = 600.0
TRIES = 2


class Crew:
    """Runs jobs one after another in a process of their own.

    Args:
        setup: What the worker needs.
        timeout: Seconds that one case may take.
        on_end: Called with each job and how it ended, in this process.
        on_ready: Called once, with what the model will need.
    """

    def __init__(
        self,
        setup: Setup,
        timeout: float,
        on_end: Callable[[Job, Result], None],
        on_ready: Callable[[Probe], None],
    ) -> None:
        self._setup, self._timeout = setup, timeout
        self._on_end, self._on_ready = on_end, on_ready
        self._waiting: deque[Job] = deque()
        self._sent: deque[Job] = deque()
        self._deaths: dict[str, int] = {}
        self._failed_loads = 0
        self._process: BaseProcess | None = None
        self._connection: Any = None  # of another class on Windows
        self._ready = self._announced = False
        self._limit: float | None = None
        self._rss_mb = 0.0

    def submit(self, job: Job) -> None:
        """Queue a job; returns when not more than two are in the worker's hands."""
        self._waiting.append(job)
        self._send()
        while self._waiting or len(self._sent) > AT_ONCE:
            self._step()

    def finish(self) -> None:
        """Wait for all jobs, then let the worker go."""
        while self._waiting or self._sent:
            self._step()
        if self._process is not None and self._connection is not None:
            self._tell(None)
            self._process.join(10)
        self.stop()

    def load(self) -> None:
        """Start the worker and wait until its model is loaded."""
        self._start()
        while not self._ready:
            self._step()

    def stop(self) -> None:
        """End the worker at once, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = self._limit = None

    def _start(self) -> None:
        if self._process is not None:
            return
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=worker.main, args=(theirs, self._setup), daemon=True, name="medplat-infer"
        )
        self._process.start()
        theirs.close()
        self._connection = ours
        self._ready = False
        self._limit = time.monotonic() + max(LOAD_SECONDS, self._timeout)

    def _send(self) -> None:
        """Hand over what may be handed over; a case that killed a worker is run all alone."""
        while self._waiting and len(self._sent) < AT_ONCE:
            alone = self._deaths.keys() & {self._waiting[0].case, *(one.case for one in self._sent)}
            if alone and self._sent:
                return
            self._start()
            job = self._waiting.popleft()
            self._sent.append(job)
            self._tell(job)

    def _tell(self, message: Job | None) -> None:
        try:
            if self._connection is not None:
                self._connection.send(message)
        except OSError:
            return  # it is dead: `_step` sees to that

    def _step(self) -> None:
        """Wait for one thing to happen and deal with it."""
        self._send()
        process, connection = self._process, self._connection
        if process is None or connection is None:
            return
        left = None if self._limit is None else max(0.0, self._limit - time.monotonic())
        happened = wait([connection, process.sentinel], left)
        if not happened:
            self._too_late()
            return
        if connection not in happened:
            self._died()
            return
        try:
            message = connection.recv()
        except (EOFError, OSError):
            self._died()
            return
        self._heard(*message)

    def _heard(self, kind: str, *what: Any) -> None:
        if kind == worker.REFUSED:
            raise ModelError(what[0])
        if kind == worker.READY:
            self._ready, self._limit = True, None
            if not self._announced:
                self._announced = True
                self._on_ready(what[0])
        elif kind == worker.START:
            self._rss_mb = what[1]
            self._limit = time.monotonic() + self._timeout
        else:
            self._limit = None
            self._deaths.pop(what[0], None)
            self._on_end(self._sent.popleft(), what[1])

    def _too_late(self) -> None:
        self.stop()
        if not self._ready:
            raise ModelError(f"the model was not loaded within {LOAD_SECONDS:g} s")
        late = self._sent.popleft()
        self._take_back()
        message = f"the case took longer than {self._timeout:g} s (--timeout)"
        self._on_end(late, Result("failed", "TIMEOUT", message, peak_rss_mb=self._rss_mb))

    def _died(self) -> None:
        process = self._process
        if process is None:
            return
        process.join()
        how = worker.cause(process.exitcode)
        self.stop()
        if not self._ready:
            self._failed_loads += 1
            self._take_back()
            if self._failed_loads >= TRIES:
                raise ModelError(f"the worker ended twice while it loaded the model: {how}")
            self._start()
            return
        if not self._sent:
            return
        head = self._sent[0]
        self._deaths[head.case] = self._deaths.get(head.case, 0) + 1
        if self._deaths[head.case] < TRIES:
            self._take_back()
            return
        self._sent.popleft()
        self._take_back()
        del self._deaths[head.case]
        message = (
            f"the worker ended twice on this case: {how}; its memory before was "
            f"{self._rss_mb:.0f} MB"
        )
        self._on_end(head, Result("failed", "WORKER_DIED", message, peak_rss_mb=self._rss_mb))

    def _take_back(self) -> None:
        """What the worker had in hand waits again, in its order."""
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
