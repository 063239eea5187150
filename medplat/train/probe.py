"""One real batch before epoch 0: will it fit, how long will it all take?

A half-sized patch goes first: what it takes, scaled up, tells whether the whole batch fits before
the whole batch is tried. The network is a copy, and no random number of the training is used up.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medplat.errors import UsageError
from medplat.loaders import batches
from medplat.train.measure import Measure
from medplat.train.memory import Peak, free_bytes, shown
from medplat.train.module import moved
from medplat.workflow.schema import TrainWorkflow

MARGIN = 0.9  # of the free memory may be asked for
NOISE = 16e6  # bytes of growth that are not told from measuring noise
Prepared = Sequence[Mapping[str, Any]]
Loss = Callable[[Any, Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class Estimate:
    """What one batch and one case took, and what the training will need.

    Attributes:
        peak_bytes: Growth of memory at the peak of a training step or a prediction.
        free_bytes: Memory that was free before.
        cache_bytes: All prepared cases together; 0 without a cache.
        step_seconds: One batch, forward and backward.
        case_seconds: One case predicted and measured.
        total_seconds: The whole training.
    """

    peak_bytes: int
    free_bytes: int
    cache_bytes: int
    step_seconds: float
    case_seconds: float
    total_seconds: float

    def sentence(self) -> str:
        """What the user reads before epoch 0."""
        cache = f"cache {shown(self.cache_bytes)}" if self.cache_bytes else "no cache"
        return (
            f"probe: a batch takes {self.step_seconds:.2f} s, a case {self.case_seconds:.2f} s, "
            f"peak memory {shown(self.peak_bytes)} of {shown(self.free_bytes)} free, {cache}; "
            f"about {duration(self.total_seconds)} in all"
        )


def duration(seconds: float) -> str:
    """Seconds for people: "40 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def cache_bytes(training: Prepared, validation: Prepared, workflow: TrainWorkflow) -> int:
    """Size of the cache, judged by the first case of each side."""
    if not workflow.train.cache:
        return 0
    sides = [side for side in (training, validation) if len(side)]
    return sum(batches.size_in_memory(side[0]) * len(side) for side in sides)


def check_cache(size: int, free: int) -> None:
    """Refuse a cache that does not fit.

    Raises:
        UsageError: With the setting that helps.
    """
    if size > MARGIN * free:
        raise UsageError(
            f"train.cache: the prepared cases need about {shown(size)}, {shown(free)} are free: "
            "set train.cache to false"
        )


def probe(
    network: nn.Module,
    loss: Loss,
    measure: Measure,
    workflow: TrainWorkflow,
    training: Prepared,
    validation: Prepared,
    *,
    device: torch.device,
    autocast: torch.dtype | None,
    cache: int,
    free: int | None = None,
) -> Estimate:
    """Run one real batch and one real case through a copy of the network.

    Args:
        network: As built.
        loss: The training loss.
        measure: Predicts and measures a case.
        workflow: The train workflow.
        training: Prepared training cases; one batch of them is read.
        validation: Prepared validation cases; the first is read.
        device: Where the training will run.
        autocast: The type of mixed precision, None without.
        cache: Bytes of the cache, for the estimate.
        free: Free bytes; None asks the machine (and the cache, if not filled yet, is taken off).

    Raises:
        UsageError: The batch does not fit; the sentence proposes one that does.
    """
    free = free_bytes(device) if free is None else free
    batch = next(iter(batches.train_loader(training, workflow)))
    trial = copy.deepcopy(network).to(device).train()
    fixed = 4 * sum(one.numel() * one.element_size() for one in trial.parameters())
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked):
        step = _Step(trial, loss, device, autocast)
        _check_fits(step, batch, workflow, measure.multiple, free, fixed)
        peak, seconds = _whole_batch(step, batch, free)
        trial.eval()
        with Peak(device) as predicting:
            started = time.perf_counter()
            measure(trial, validation[0], device)
            case_seconds = time.perf_counter() - started
    del trial
    count = len(training) * workflow.train.patches_per_case
    total = workflow.train.epochs * math.ceil(count / workflow.train.batch_size) * seconds
    total += _validations(workflow) * len(validation) * case_seconds
    used = max(peak + fixed, predicting.bytes)
    return Estimate(used, free, cache, seconds, case_seconds, total)


def _validations(workflow: TrainWorkflow) -> int:
    return math.ceil(workflow.train.epochs / workflow.train.validate_every)


class _Step:
    """Forward and backward of a batch, as training does it."""

    def __init__(
        self, network: nn.Module, loss: Loss, device: torch.device, autocast: torch.dtype | None
    ) -> None:
        self.network, self.loss, self.device, self.autocast = network, loss, device, autocast

    def __call__(self, batch: Mapping[str, Any]) -> None:
        batch = moved(batch, self.device)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            loss = self.loss(self.network(batch["image"]), batch)
        torch.autograd.backward(loss)
        self.network.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _check_fits(
    step: _Step,
    batch: Mapping[str, Any],
    workflow: TrainWorkflow,
    multiple: int,
    free: int,
    fixed: int,
) -> None:
    """Scale up what half a patch takes; raise before the whole batch is tried."""
    image = batch["image"]
    if isinstance(image, list) or image.ndim == 3:
        return  # bags are small
    whole = tuple(image.shape[2:])
    half = tuple(max(multiple, _up(side // 2, multiple)) for side in whole)
    small = {key: _shrunk(value, whole, half) for key, value in batch.items()}
    try:
        with Peak(step.device) as peak:
            step(small)
    except (RuntimeError, ValueError):
        return  # too small for this network, or of fixed size: the whole batch will tell
    if peak.bytes < NOISE:
        return
    per_voxel = peak.bytes / math.prod(half)
    needed = per_voxel * math.prod(whole) * len(image) + fixed
    if needed > MARGIN * free:
        raise UsageError(_proposal(needed, free, fixed, per_voxel, len(image), whole, multiple))


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _shrunk(value: Any, whole: Sequence[int], half: Sequence[int]) -> Any:
    """The first example of a batch, its first voxels along each axis: half of a `whole` image."""
    if not isinstance(value, Tensor):
        return value
    if value.ndim < 3:
        return value[:1]
    sides = [
        have * part // all_ for have, part, all_ in zip(value.shape[2:], half, whole, strict=True)
    ]
    return value[(slice(0, 1), slice(None), *(slice(0, side) for side in sides))]


def _proposal(
    needed: float,
    free: int,
    fixed: int,
    per_voxel: float,
    examples: int,
    size: Sequence[int],
    multiple: int,
) -> str:
    """One sentence: what it needs, what there is, and a setting that fits."""
    what = (
        f"a batch of {examples} x {'x'.join(str(side) for side in size)} needs about "
        f"{shown(needed)}, {shown(free)} are free: "
    )
    room = (MARGIN * free - fixed) / per_voxel
    fitting = int(room // math.prod(size))
    if fitting >= 1:
        again = math.ceil(examples / fitting)
        return f"{what}set train.batch_size to {fitting} and train.accumulate to {again}"
    smaller = list(size)
    while math.prod(smaller) > room:
        at = smaller.index(max(smaller))
        shorter = smaller[at] // 2 // multiple * multiple
        if shorter < multiple or shorter == smaller[at]:
            return f"{what}no patch fits: use a smaller model or a machine with more memory"
        smaller[at] = shorter
    return f"{what}set train.batch_size to 1 and train.patch_size to {smaller}"


def _whole_batch(step: _Step, batch: Mapping[str, Any], free: int) -> tuple[int, float]:
    try:
        with Peak(step.device) as peak:
            step(batch)
        started = time.perf_counter()
        step(batch)
        return peak.bytes, time.perf_counter() - started
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UsageError(_out_of_memory(batch, free)) from error
    except RuntimeError as error:
        if "alloc" not in str(error).lower():
            raise
        raise UsageError(_out_of_memory(batch, free)) from error


def _out_of_memory(batch: Mapping[str, Any], free: int) -> str:
    examples = len(batch["image"])
    half = max(1, examples // 2)
    settings = f"train.batch_size to {half}" if half < examples else "a smaller train.patch_size"
    return f"a batch of {examples} ran out of memory ({shown(free)} were free): set {settings}"
