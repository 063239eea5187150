"""One case in the worker: read, prepare, predict, write; every failure gets a code."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medplat import loaders, tasks
from medplat.dicom import select
from medplat.dicom.codes import CODES
from medplat.errors import DataError, MedplatError, Refused
from medplat.infer import outputs
from medplat.infer.jobs import Job, ModelName, Result, SegKind, Take
from medplat.infer.restore import restore, restore_values
from medplat.types import Task, Volume
from medplat.workflow.schema import ClassifyTask, Input, RestoreTask, SegmentTask, TrainWorkflow

if TYPE_CHECKING:
    from torch import nn


class Loaded(Protocol):
    """What a model folder gives (`track.model_folder.LoadedModel`)."""

    @property
    def network(self) -> nn.Module:
        """On its device, in evaluation mode."""
        ...

    @property
    def workflow(self) -> TrainWorkflow:
        """As it was trained."""
        ...

    @property
    def task(self) -> Task:
        """What the network was built for."""
        ...


@dataclass(frozen=True)
class Model:
    """A model ready to run; `compose` is what the workflow's transforms make of an image."""

    loaded: Loaded
    compose: Callable[[dict[str, Any]], dict[str, Any]]
    name: ModelName
    device: str
    multiple: int
    seg: SegKind
    overlay: outputs.Overlay


@dataclass
class Read:
    """What was read of a case, or why it could not be."""

    volumes: list[Volume] = field(default_factory=list)
    seconds: float = 0.0
    error: Exception | None = None


def read(job: Job, inputs: tuple[Input, ...], workers: int = 1) -> Read:
    """Read the volumes of a case, one for each input; a failure is kept for `run`."""
    started = time.perf_counter()
    done = Read()
    try:
        _unchanged(job)
        wholes: dict[int, Volume] = {}
        for take, wanted in zip(job.takes, inputs, strict=True):
            done.volumes.append(_read_one(take, wanted, wholes, workers))
        _unchanged(job)
    except Exception as error:
        done.error = error
    done.seconds = time.perf_counter() - started
    return done


def run(job: Job, read_: Read, model: Model) -> Result:
    """Predict and write one case; never raises but for bugs in the error handling itself."""
    seconds = {"read": round(read_.seconds, 3)}
    stage = "read"
    try:
        if read_.error is not None:
            raise read_.error
        workflow = model.loaded.workflow
        with _timed(seconds, stage := "prepare"):
            image = _prepare(read_.volumes, workflow, model)
        with _timed(seconds, stage := "predict"):
            prediction = _predict(image, read_.volumes[0], model)
        with _timed(seconds, stage := "write"):
            result = _write(job, prediction, read_.volumes[0], model)
    except Exception as error:
        result = failure(error, stage)
        for entry in job.entries:
            result.message = result.message.replace(str(entry.file), entry.file.name)
        with _timed(seconds, "write"):
            outputs.write_failure(job, result, model.name)
    result.seconds = seconds
    result.peak_rss_mb = peak_rss_mb()
    return result


def failure(error: Exception, stage: str) -> Result:
    """The code and the sentence for what was raised in a stage."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # MONAI wraps what a transform raised
    if isinstance(error, Refused):
        verdict = CODES[error.code].verdict if error.code in CODES else "rejected"
        status = "failed" if verdict == "failed" else "rejected"
        return Result(status, error.code, error.message)
    if _out_of_memory(error):
        return Result("failed", "OOM", f"memory did not suffice in {stage}: use a smaller window")
    words = (str(error).strip().splitlines() or [""])[0][:300]
    if isinstance(error, OSError):
        words = error.strerror or type(error).__name__  # the rest may hold a path
    if stage == "read" and isinstance(error, (DataError, OSError, EOFError)):
        return Result("rejected", "TRUNCATED", f"an input file cannot be read ({words})")
    if stage == "write" and isinstance(error, OSError):
        return Result("failed", "WRITE_FAILED", f"an output cannot be written ({words})")
    if stage == "predict":
        kind = type(error).__name__
        return Result("failed", "MODEL_FAILED", f"the model raised {kind} ({words})")
    if stage == "prepare":
        kind = type(error).__name__
        return Result("failed", "TRANSFORM_FAILED", f"a transform raised {kind} ({words})")
    if isinstance(error, MedplatError):
        return Result("rejected", "NO_INPUT", words)
    return Result("failed", "INTERNAL", f"{type(error).__name__} in {stage}")


def peak_rss_mb() -> float:
    """Highest resident memory of this process so far, in MB."""
    if sys.platform == "win32":
        import psutil

        return round(float(psutil.Process().memory_info().peak_wset) / 1e6, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        spent = seconds.get(stage, 0.0) + time.perf_counter() - started
        seconds[stage] = round(spent, 3)


def _unchanged(job: Job) -> None:
    for entry in job.entries:
        status = entry.file.stat()
        same = entry.member is not None or status.st_size == entry.size
        if status.st_mtime_ns != entry.mtime_ns or not same:
            raise Refused(
                "INPUT_CHANGED", "an input file changed since it was listed: run it again"
            )


def _read_one(take: Take, wanted: Input, wholes: dict[int, Volume], workers: int) -> Volume:
    from medplat.dicom.read import read_volume

    if take.plan is None:
        assert take.image is not None
        volume = loaders.read_image(take.image, wanted.channels)
        return _phase(volume, _phase_of(volume, wanted) if take.image.phase is None else None)
    if id(take.plan) not in wholes:
        wholes[id(take.plan)] = read_volume(take.plan, workers)
    return _phase(wholes[id(take.plan)], take.phase)


def _phase_of(volume: Volume, wanted: Input) -> int | None:
    """The phase of a 4-D file that the input's rule names."""
    if volume.array.ndim < 4 or wanted.channels > 1:
        return None
    if wanted.phase_time_s is None:
        return wanted.phase
    times = volume.phase_times_s
    if not times:
        raise Refused("MISSING_INPUT", f"input {wanted.name}: the file has no phase times")
    found = select.nearest_phase(times, wanted)
    if found is None:
        raise Refused(
            "MISSING_INPUT", f"input {wanted.name}: no phase is near {wanted.phase_time_s:g} s"
        )
    return found


def _phase(volume: Volume, phase: int | None) -> Volume:
    if phase is None or volume.array.ndim < 4:
        return volume
    if phase >= volume.array.shape[3]:
        count = volume.array.shape[3]
        raise Refused("MISSING_INPUT", f"phase {phase} is asked for, the file has {count}")
    return replace(volume, array=volume.array[..., phase], phase_times_s=None)


def _prepare(volumes: list[Volume], workflow: TrainWorkflow, model: Model) -> Any:
    """The model's image: channels on the first one's grid, then the workflow's transforms."""
    loaders.check_directions(volumes, workflow)
    task = workflow.task
    dims = 3 if task.kind == "restore" else task.spatial_dims
    image = loaders.stack(volumes, workflow.inputs, dims, workflow.infer.register_)
    return model.compose({"image": image})["image"]


def _predict(image: Any, volume: Volume, model: Model) -> Any:
    """Label values or restored values on the source's own grid, or probabilities."""
    from medplat.tasks import restore as restoring
    from medplat.tasks import segment, window

    workflow, affine = model.loaded.workflow, np.asarray(image.affine, np.float64)
    task, ends = workflow.task, (0.0, 1.0)
    if isinstance(task, RestoreTask):
        ends = restoring.value_range(image, task)
        image = restoring.to_scale(image, ends)
    logits = window.predict(
        model.loaded.network,
        image,
        workflow,
        model.loaded.task,
        model.device,
        multiple=model.multiple,
    )
    if not bool(logits.isfinite().all()):
        raise FloatingPointError("a value that is not finite came out of the network")
    if isinstance(task, RestoreTask):
        affine = restoring.finer(affine, task.upscale, task.spatial_dims)
        values = restoring.from_scale(logits.cpu().numpy(), ends)
        return restore_values(values, affine, outputs.finer_volume(volume, task))
    if not isinstance(task, SegmentTask):
        return np.asarray(tasks.get(task.kind).decode(logits.cpu()))
    return segment.to_values(restore(logits, affine, volume.geometry), task)


def _write(job: Job, prediction: Any, volume: Volume, model: Model) -> Result:
    task = model.loaded.workflow.task
    if isinstance(task, ClassifyTask):
        return outputs.write_classify(job, prediction, task, model.name)
    if isinstance(task, RestoreTask):
        return outputs.write_restore(job, prediction, volume, task, model.name)
    return outputs.write_segment(
        job, prediction, volume, task, model.name, model.seg, model.overlay
    )


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in words or "can't allocate memory" in words or "not enough memory" in words
    )
