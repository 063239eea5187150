"""The process that holds the model: one for a whole batch, replaced when it hangs or dies.

A thread takes jobs from the parent and reads the next case while the current one is predicted.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medplat.errors import MedplatError, MissingExtra
from medplat.infer.jobs import Job, ModelName, SegKind
from medplat.infer.outputs import Overlay
from medplat.workflow.schema import Input

if TYPE_CHECKING:
    from medplat.infer.case import Loaded, Model, Read

READY, REFUSED, START, END = "ready", "refused", "start", "end"


@dataclass(frozen=True)
class Setup:
    """What a worker needs to begin; functions travel by their names.

    Attributes:
        folder: The model folder.
        name: How the model is named in outputs.
        inputs: The model's channels.
        seg: What seg.dcm is.
        dicom: Whether the source is DICOM, so that seg.dcm is written.
        workers: Threads that read one case.
        load: Rebuilds the network from the folder, on a device.
        overlay: Draws overlay.png.
    """

    folder: Path
    name: ModelName
    inputs: tuple[Input, ...]
    seg: SegKind
    dicom: bool
    workers: int
    load: Callable[[Path, str], Loaded]
    overlay: Overlay


@dataclass(frozen=True)
class Probe:
    """What one batch of windows took: the base of predictions.

    Attributes:
        device: "cpu" or "cuda".
        window: Voxels of a window, after the transforms; () where the whole image is one.
        batch: Windows at a time.
        seconds: For one batch of windows; None where the probe failed.
        peak_rss_mb: Memory of the process after it.
        bytes_per_voxel: Of the summed logits and the image, for each voxel of the model's grid.
    """

    device: str
    window: tuple[int, ...]
    batch: int
    seconds: float | None
    peak_rss_mb: float
    bytes_per_voxel: int


def main(connection: Connection, setup: Setup) -> None:
    """Load the model, then run jobs until the parent sends None or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from medplat.infer import case

    waiting: queue.SimpleQueue[tuple[Job, Future[Read]] | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, setup, waiting), daemon=True).start()
    try:
        model = _load(setup)
    except MedplatError as error:
        connection.send((REFUSED, str(error)))
        return
    except ModuleNotFoundError as error:
        connection.send((REFUSED, str(MissingExtra("medplat infer", str(error.name)))))
        return
    except Exception as error:
        words = (str(error).strip().splitlines() or [""])[0]
        told = f"the model cannot be loaded: {type(error).__name__}: {words}"
        connection.send((REFUSED, told))
        return
    connection.send((READY, probe(model)))
    while (one := waiting.get()) is not None:
        job, future = one
        connection.send((START, job.case, case.peak_rss_mb()))
        connection.send((END, job.case, case.run(job, future.result(), model)))
        del one, future


def probe(model: Model) -> Probe:
    """Run one batch of windows of zeros; a network that cannot take zeros is not told off here."""
    import torch

    from medplat.infer.case import peak_rss_mb

    workflow, task = model.loaded.workflow, model.loaded.task
    size = workflow.infer.window or workflow.train.patch_size or ()
    window = tuple(math.ceil(one / model.multiple) * model.multiple for one in size)
    batch = 1 if task.kind == "classify" else workflow.infer.batch_size
    seconds = None
    if window:
        try:
            zeros = torch.zeros((batch, task.in_channels, *window), device=model.device)
            started = time.perf_counter()
            with torch.no_grad():
                model.loaded.network(zeros)
            if model.device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
        except Exception:
            seconds = None
    kept = 4 * (2 * task.in_channels + 2 * task.out_channels + 1)
    return Probe(model.device, window, batch, seconds, peak_rss_mb(), kept)


def _load(setup: Setup) -> Model:
    """What takes long once (imports, weights, transforms), so that no case pays for it."""
    import torch

    from medplat import registry, transforms
    from medplat.dicom import seg
    from medplat.infer.case import Model
    from medplat.tasks import window  # noqa: F401 - imports MONAI's inferers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = setup.load(setup.folder, device)
    multiple = registry.model(loaded.workflow.model.name).CARD.multiple
    compose = transforms.compose(loaded.workflow.transforms, allow_missing_keys=True)
    if setup.dicom:
        seg.warm_up()
    return Model(loaded, compose, setup.name, device, multiple, setup.seg, setup.overlay)


def _receive(connection: Connection, setup: Setup, waiting: queue.SimpleQueue[Any]) -> None:
    from medplat.infer import case

    with ThreadPoolExecutor(1) as reader:
        while True:
            try:
                job = connection.recv()
            except (EOFError, OSError):
                job = None
            if job is None:
                waiting.put(None)
                return
            waiting.put((job, reader.submit(case.read, job, setup.inputs, setup.workers)))


def _end_with_parent() -> None:
    """Write nothing more once the parent is gone: another run may be at work on OUT."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def cause(exit_code: int | None) -> str:
    """How a process ended, in words."""
    if exit_code is None:
        return "its end is unknown"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = "unknown"
    killer = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    on_windows = sys.platform == "win32"
    return f"exit code {exit_code}" if on_windows else f"signal {-exit_code} ({name}{killer})"
