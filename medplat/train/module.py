"""The LightningModule: a network, a loss and an optimizer, whatever the model and the task are."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from medplat.errors import DataError
from medplat.train.measure import Measure
from medplat.workflow.schema import Train


class Training(pl.LightningModule):  # type: ignore[misc]
    """What Lightning drives. No hyperparameters are saved: they would be pickled.

    Args:
        network: Built by a model plugin; its parameters appear under `network.` in checkpoints.
        loss: (logits, batch) -> scalar.
        train: The workflow's section.
        total_steps: Optimizer steps of the whole training, for the schedule.
        measure: Predicts and measures one whole case.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Any, Mapping[str, Any]], Tensor],
        train: Train,
        total_steps: int,
        measure: Measure,
    ) -> None:
        super().__init__()
        self.network = network
        self._loss = loss
        self._train = train
        self._total_steps = total_steps
        self._measure = measure
        self._step: tuple[Tensor, str] | None = None
        self.losses: list[Tensor] = []
        self.rows: list[dict[str, Any]] = []

    def transfer_batch_to_device(
        self, batch: Mapping[str, Any], device: torch.device, dataloader_idx: int
    ) -> Mapping[str, Any]:
        """Training batches move; whole cases stay, their windows move one by one."""
        if "geometry" in batch:
            return batch
        return moved(batch, device)

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Seed from (seed, epoch, batch), so that a resumed run draws what this one draws."""
        seed = np.random.SeedSequence([self._train.seed, self.current_epoch, batch_idx])
        number = int(seed.generate_state(1)[0])
        torch.manual_seed(number)
        np.random.seed(number)
        random.seed(number)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """The loss of one batch.

        Raises:
            DataError: The loss of the batch before is not finite; its cases are named. One batch
                late, so that a GPU is not waited for.
        """
        self.check_loss()
        loss = self._loss(self.network(batch["image"]), batch)
        self.losses.append(loss.detach())
        self._step = self.losses[-1], ", ".join(batch.get("case", ()))
        return loss

    def check_loss(self) -> None:
        """Look at the loss of the latest batch, once.

        Raises:
            DataError: It is not finite.
        """
        step, self._step = self._step, None
        if step is not None and not math.isfinite(value := float(step[0])):
            raise DataError(
                f"epoch {self.current_epoch + 1}: the loss is {value} with the cases {step[1]}: "
                "look for infinite voxels in them, or lower train.learning_rate or train.clip"
            )

    def validation_step(self, case: Mapping[str, Any], batch_idx: int) -> None:
        """Predict and measure one whole case on its own grid."""
        metrics = self._measure(self.network, case, self.device)
        self.rows.append({"case": case["case"], "patient": case["patient"], **metrics})

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer, and the rate as a function of the step."""
        chosen = optimizer(self.network, self._train)
        rule = torch.optim.lr_scheduler.LambdaLR(
            chosen, lambda step: rate(step, self._total_steps, self._train)
        )
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": rule, "interval": "step"}}


def moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors, and those of a list of bags, on a device."""

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(one) for one in value]
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    return {key: move(value) for key, value in batch.items()}


def parameter_groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay, and those without: norms and what a plugin marks.

    A plugin marks a parameter by the attribute `_no_weight_decay` (A and D of a scan).
    """
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
    own = {
        id(one)
        for module in network.modules()
        if isinstance(module, norms)
        for one in module.parameters(recurse=False)
    }
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for one in network.parameters():
        if one.requires_grad:
            plain = id(one) in own or getattr(one, "_no_weight_decay", False)
            groups[int(plain)]["params"].append(one)
    return [group for group in groups if group["params"]]


def optimizer(network: nn.Module, train: Train) -> torch.optim.Optimizer:
    """The optimizer that the workflow names (SGD with Nesterov momentum 0.99)."""
    rate, decay = train.learning_rate, train.weight_decay
    parameters = parameter_groups(network, decay)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    if train.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=0.99, nesterov=True)


def rate(step: int, total: int, train: Train) -> float:
    """Share of the learning rate at an optimizer step: linear warm-up, then a half cosine to 0.

    Args:
        step: From 0.
        total: Steps of the whole training.
        train: Its `warmup` and `schedule` count.
    """
    rising = math.ceil(train.warmup * total)
    if step < rising:
        return (step + 1) / rising
    if train.schedule == "constant":
        return 1.0
    done = (step - rising) / max(1, total - rising)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def steps_per_epoch(batches: int, train: Train) -> int:
    """Optimizer steps of an epoch: the last sum of batches may be smaller."""
    return math.ceil(batches / train.accumulate)
