"""Train the made-up cases without a tracking store; may kill itself with SIGKILL in mid-epoch.

As a program: train_once.py WORKFLOW FOLDER STEP - dies at that training step.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from medplat import loaders, registry, tasks
from medplat.infer import restore
from medplat.loaders import batches
from medplat.train import fit, measure
from medplat.workflow import read, write
from medplat.workflow.schema import TrainWorkflow


class Notes:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.files: list[str] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append((step, dict(metrics)))

    def flush(self) -> None:
        pass

    def log_file(self, path: Path, folder: str = "") -> None:
        self.files.append(f"{folder}/{path.name}")


def read_workflow(path: Path, settings: tuple[str, ...] = ()) -> TrainWorkflow:
    found = read.read(path, settings, kind="train")
    assert isinstance(found, TrainWorkflow)
    return found


def train(
    path: Path,
    folder: Path,
    settings: tuple[str, ...] = (),
    *,
    resume: bool = False,
    at_step: Callable[[int], None] = lambda step: None,
    sink: Notes | None = None,
) -> fit.Trained:
    workflow = read_workflow(path, settings)
    folder.mkdir(parents=True, exist_ok=True)
    cases = registry.dataset(workflow.dataset.name).cases(read.dataset_config(workflow))
    sides = loaders.split(loaders.resolve(cases, workflow.inputs), workflow.dataset.split)
    torch.manual_seed(workflow.train.seed)
    plugin = registry.model(workflow.model.name)
    network = plugin.build(read.model_config(workflow), tasks.task_of(workflow))
    plain = tasks.get(workflow.task.kind).loss(workflow)
    steps = iter(range(10**9))

    def loss(logits: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        at_step(next(steps))
        return plain(logits, batch)

    judge = measure.Measure(workflow, plugin.CARD.multiple, restore.restore)
    prepared = [
        batches.prepare(sides[side], workflow, training=side == "train")
        for side in ("train", "validation")
    ]
    return fit.fit(
        network,
        loss,
        judge,
        workflow,
        *prepared,
        folder=folder,
        sink=sink or Notes(),
        digest=write.digest(workflow),
        resume=resume,
    )


def die(at: int) -> Callable[[int], None]:
    def now(step: int) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return now


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), at_step=die(int(sys.argv[3])))
