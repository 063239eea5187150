"""One line an epoch for the user, one dictionary an epoch for the tracking run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import torch

from medplat import console


class Sink(Protocol):
    """What training needs of a tracking run (`medplat.track.runs.Run` has it)."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Take metrics of one epoch."""

    def flush(self) -> None:
        """Send what waits."""

    def log_file(self, path: Path, folder: str = "") -> None:
        """Store a file with the run."""


class Epochs(pl.Callback):  # type: ignore[misc]
    """Loss, rate and seconds of each epoch: to the sink, and as a line on stderr.

    Args:
        sink: Where the numbers go.
        total: Epochs of the whole training.
        shown: Names of validation metrics to show in the line.
    """

    def __init__(self, sink: Sink, total: int, shown: Mapping[str, str]) -> None:
        self._sink = sink
        self._total = total
        self._shown = shown
        self._started = time.monotonic()
        self.validation: dict[str, float] = {}

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start the epoch's clock."""
        if batch_idx == 0:
            self._started = time.monotonic()
            self.validation = {}
            pl_module.losses.clear()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the epoch.

        Raises:
            DataError: The loss is no longer a number.
        """
        pl_module.check_loss()
        epoch = trainer.current_epoch
        loss = float(torch.stack(pl_module.losses).float().mean()) if pl_module.losses else math.nan
        numbers = {
            "train_loss": loss,
            "learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "epoch_seconds": time.monotonic() - self._started,
        }
        self._sink.log_metrics(numbers, epoch + 1)
        self._sink.flush()
        parts = [f"epoch {epoch + 1}/{self._total}", f"loss {loss:.4f}"]
        parts += [
            f"{label} {self.validation[name]:.4f}"
            for name, label in self._shown.items()
            if name in self.validation
        ]
        console.say("  ".join([*parts, f"{numbers['epoch_seconds']:.1f} s"]))
