"""What happens at the end of an epoch: validation, best and last checkpoint, early stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import nn

from medplat import paths
from medplat.errors import UsageError
from medplat.train.logger import Epochs, Sink
from medplat.train.measure import Measure, write_cases
from medplat.train.stop import Stop
from medplat.workflow.schema import Train

LAST = "last.ckpt"
BEST = "best.safetensors"
WORKFLOW = "medplat_workflow"


class Obey(pl.Callback):  # type: ignore[misc]
    """Looks between batches whether somebody asked to stop."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Between two batches."""
        self._stop.check()

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Between two cases."""
        self._stop.check()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Before the first batch."""
        self._stop.check()


class Validation(pl.Callback):  # type: ignore[misc]
    """Whole-case validation: metrics, `cases.csv`, best weights, early stop.

    Stands before the averaging callback, which puts the averaged weights in for the validation and
    takes them out at its end: what is saved as best is what was measured.

    Args:
        folder: The run folder.
        sink: Where numbers and `cases.csv` go.
        measure: Summarises the rows.
        train: `validate_every`, `early_stop`, `epochs`.
        epochs: Shows the metrics in its line.
    """

    def __init__(
        self, folder: Path, sink: Sink, measure: Measure, train: Train, epochs: Epochs
    ) -> None:
        self._folder = folder
        self._sink = sink
        self._measure = measure
        self._train = train
        self._epochs = epochs
        self.best_epoch = 0
        self.best: dict[str, float] = {}
        self.last_epoch = 0
        self.last: dict[str, float] = {}
        self.worse = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """A resumed run that had already stopped early stops at once."""
        self._stop_early(trainer)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decide whether this epoch ends with a validation: every n-th, and the last."""
        if batch_idx == 0:
            number = trainer.current_epoch + 1
            due = number % self._train.validate_every == 0 or number == self._train.epochs
            trainer.check_val_every_n_epoch = 1 if due else number + 1

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget the rows of the validation before."""
        pl_module.rows.clear()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Summarise, log, and keep the weights if they are the best so far."""
        rows = list(pl_module.rows)
        number = trainer.current_epoch + 1
        metrics = self._measure.summary(rows)
        self.last_epoch, self.last = number, metrics
        self._epochs.validation = metrics
        self._sink.log_metrics({f"val_{name}": value for name, value in metrics.items()}, number)
        name = f"epoch_{number:04d}"
        path = self._folder / "validation" / name / "cases.csv"
        write_cases(rows, path)
        self._sink.log_file(path, f"validation/{name}")
        if self._is_best(metrics):
            self.best_epoch, self.best, self.worse = number, metrics, 0
            save_weights(pl_module.network, self._folder / BEST)
            write_cases(rows, self._folder / "cases.csv")
        else:
            self.worse += 1
        self._stop_early(trainer)

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        """More than before; while the number is undefined, the latest weights are kept."""
        now = metrics.get(self._measure.primary, math.nan)
        before = self.best.get(self._measure.primary, math.nan)
        return math.isnan(before) or now > before

    def _stop_early(self, trainer: Any) -> None:
        if self._train.early_stop is not None and self.worse >= self._train.early_stop:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, which a checkpoint opened with `weights_only=True` may hold."""
        return {
            "best_epoch": self.best_epoch,
            "best": dict(self.best),
            "last_epoch": self.last_epoch,
            "last": dict(self.last),
            "worse": self.worse,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best_epoch = state_dict["best_epoch"]
        self.best = dict(state_dict["best"])
        self.last_epoch = state_dict["last_epoch"]
        self.last = dict(state_dict["last"])
        self.worse = state_dict["worse"]


class Last(pl.Callback):  # type: ignore[misc]
    """Saves `last.ckpt` at the end of each epoch, whole or not at all.

    Args:
        folder: The run folder.
        digest: sha256 of the resolved workflow; another one is refused at resume.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self._path = folder / LAST
        self._digest = digest

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save; last in the list, so that every other callback has its final state."""
        with paths.whole(self._path) as part:
            trainer.save_checkpoint(part, weights_only=False)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note which workflow this is."""
        checkpoint[WORKFLOW] = self._digest

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another workflow.

        Raises:
            UsageError: The checkpoint was made by another workflow.
        """
        if checkpoint.get(WORKFLOW) != self._digest:
            raise UsageError(
                f"{self._path}: was written by another workflow than this one: "
                "resume with the workflow and the --set options of the run"
            )


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's state as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    state = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
    with paths.whole(path) as part:
        save_file({key: value.contiguous() for key, value in state.items()}, part)
