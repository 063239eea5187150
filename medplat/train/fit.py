"""The training itself: Lightning's Trainer with our callbacks, from epoch 0 or from `last.ckpt`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, RichProgressBar
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from medplat.errors import UsageError
from medplat.loaders import batches
from medplat.train.callbacks import BEST, LAST, Last, Obey, Validation
from medplat.train.logger import Epochs, Sink
from medplat.train.measure import Measure
from medplat.train.module import Training, steps_per_epoch
from medplat.train.stop import Interrupted, Stop, on_signals
from medplat.workflow.schema import TrainWorkflow

Prepared = Sequence[Mapping[str, Any]]
PREFIX = "network."


@dataclass(frozen=True)
class Trained:
    """How a training ended.

    Attributes:
        interrupted: By what it was stopped before its end, None when it came to its end.
        best_epoch: Epoch of the best validation, from 1; 0 where none took place.
        best: Metrics of that validation.
        last_epoch: Epoch of the last validation.
        last: Metrics of the last validation.
    """

    interrupted: str | None
    best_epoch: int
    best: Mapping[str, float]
    last_epoch: int
    last: Mapping[str, float]


def fit(
    network: nn.Module,
    loss: Callable[[Any, Mapping[str, Any]], Tensor],
    measure: Measure,
    workflow: TrainWorkflow,
    training: Prepared,
    validation: Prepared,
    *,
    folder: Path,
    sink: Sink,
    digest: str,
    resume: bool = False,
    device: torch.device | None = None,
) -> Trained:
    """Train, leaving `best.safetensors`, `last.ckpt` and `cases.csv` in `folder`.

    Args:
        network: As built by the plugin; trained in place.
        loss: (logits, batch) -> scalar.
        measure: Predicts and measures a whole case.
        workflow: The train workflow.
        training: Prepared training cases.
        validation: Prepared validation cases.
        folder: The run folder.
        sink: The tracking run.
        digest: sha256 of the resolved workflow, kept in `last.ckpt`.
        resume: Go on from `last.ckpt` in `folder`, if it is there.
        device: Where to train; None takes a GPU where there is one.

    Raises:
        UsageError: The checkpoint is of another workflow, or the precision is not possible here.
        DataError: The loss is no longer a number.
    """
    device = device or pick_device()
    loader = batches.train_loader(training, workflow)
    total = steps_per_epoch(len(loader), workflow.train) * workflow.train.epochs
    module = Training(network, loss, workflow.train, total, measure)
    epochs = Epochs(sink, workflow.train.epochs, _shown(workflow, measure))
    judge = Validation(folder, sink, measure, workflow.train, epochs)
    stop = Stop(workflow.train.max_minutes)
    callbacks = _callbacks(workflow, stop, judge, epochs, Last(folder, digest))
    last = folder / LAST
    interrupted = None
    with quiet(), _determinism_restored(), on_signals(stop):
        trainer = _trainer(workflow, callbacks, folder, device)
        try:
            trainer.fit(
                module,
                train_dataloaders=loader,
                val_dataloaders=batches.validation_loader(validation),
                ckpt_path=str(last) if resume and last.exists() else None,
                weights_only=True,
            )
        except Interrupted as error:
            interrupted = error.why
        except (KeyboardInterrupt, SystemExit):
            interrupted = stop.asked or "Ctrl-C"
    return Trained(interrupted, judge.best_epoch, judge.best, judge.last_epoch, judge.last)


def _shown(workflow: TrainWorkflow, measure: Measure) -> dict[str, str]:
    names = {measure.primary: measure.primary}
    if workflow.task.kind == "segment":
        names |= {f"dice_{label.name}": label.name for label in workflow.task.labels}
    return names


def _callbacks(
    workflow: TrainWorkflow, stop: Stop, judge: Validation, epochs: Epochs, last: Last
) -> list[Any]:
    """In this order: what is said in `Validation` and `Last` rests on it."""
    callbacks: list[Any] = [Obey(stop), judge]
    if workflow.train.ema is not None:
        callbacks.append(EMAWeightAveraging(decay=workflow.train.ema))
    callbacks.append(epochs)
    if sys.stderr.isatty():
        callbacks.append(Bar(leave=False, console_kwargs={"stderr": True}))
    return [*callbacks, last]


class Bar(RichProgressBar):  # type: ignore[misc]
    """Lightning's progress bar, with epochs counted from 1 as everywhere else."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}".ljust(10)


def _trainer(
    workflow: TrainWorkflow, callbacks: list[Any], folder: Path, device: torch.device
) -> Any:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("training on several processes is not built yet: start one process")
    train = workflow.train
    pl.seed_everything(train.seed, workers=False, verbose=False)
    deterministic: bool | str = train.deterministic
    if train.deterministic and device.type == "cuda":
        deterministic = "warn"  # some 3-D operations have no deterministic form there
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=1,
        precision=precision(train.precision, device),
        max_epochs=train.epochs,
        accumulate_grad_batches=train.accumulate,
        gradient_clip_val=train.clip,
        deterministic=deterministic,
        callbacks=callbacks,
        default_root_dir=folder,
        plugins=[LightningEnvironment()],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
    )


def pick_device() -> torch.device:
    """A CUDA GPU where there is one, else the CPU."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else (torch.device("cpu"))
    )


def precision(wanted: str, device: torch.device) -> str:
    """Lightning's word for `train.precision` on this device.

    Raises:
        UsageError: fp16 is asked for on a CPU.
    """
    if wanted == "auto":
        if device.type != "cuda":
            return "32-true"
        good = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if good else "16-mixed"
    if wanted == "16" and device.type == "cpu":
        raise UsageError("train.precision: 16 needs a GPU: use auto, 32 or bf16 here")
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[wanted]


def autocast_type(wanted: str, device: torch.device) -> torch.dtype | None:
    """The number type of mixed precision, None in full precision."""
    found = precision(wanted, device)
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(found)


def best_weights(folder: Path) -> dict[str, Tensor]:
    """State of the network at its best validation (averaged where `train.ema` is set)."""
    from safetensors.torch import load_file

    return dict(load_file(folder / BEST))


def last_weights(folder: Path) -> dict[str, Tensor]:
    """State of the network at the end of the last epoch (averaged where `train.ema` is set)."""
    state = torch.load(folder / LAST, map_location="cpu", weights_only=True)["state_dict"]
    return {
        key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's tips, its advertisements of hosted services, and its hints on loaders."""
    names = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities.core")
    loggers = [logging.getLogger(name) for name in names]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", module=r"lightning_utilities\.")
            warnings.filterwarnings("ignore", message=".*does not have a deterministic.*")
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


@contextmanager
def _determinism_restored() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
