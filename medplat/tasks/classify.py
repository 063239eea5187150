"""One class for each case: weighted cross-entropy; accuracy, AUC and the majority baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medplat.errors import DataError
from medplat.tasks import mean_and_count
from medplat.types import Array
from medplat.workflow.schema import ClassifyTask, TrainWorkflow

if TYPE_CHECKING:
    from torch import Tensor

    from medplat.tasks import Logits, Loss

PRIMARY = "auc"


def section(workflow: TrainWorkflow) -> ClassifyTask:
    """The workflow's task section, known to be of this kind."""
    if not isinstance(workflow.task, ClassifyTask):
        raise TypeError(f"not a classify task: {workflow.task.kind}")
    return workflow.task


def to_index(target: str, task: ClassifyTask, where: str = "target") -> int:
    """Class name to class index.

    Raises:
        DataError: The task has no such class.
    """
    if target not in task.classes:
        raise DataError(
            f"{where}: the class '{target}' is not among task.classes ({', '.join(task.classes)})"
        )
    return task.classes.index(target)


def loss(workflow: TrainWorkflow, class_counts: Sequence[int] | None = None) -> Loss:
    """Cross-entropy; with `train.class_weights` each class weighs total / (classes * its count).

    Args:
        workflow: The train workflow.
        class_counts: Training cases of each class.
    """
    import torch
    from torch.nn.functional import cross_entropy

    weight = None
    if workflow.train.class_weights and class_counts is not None:
        counts = torch.tensor([max(count, 1) for count in class_counts], dtype=torch.float32)
        weight = counts.sum() / (len(counts) * counts)

    def of(logits: Logits, batch: Mapping[str, Any]) -> Tensor:
        first = logits if isinstance(logits, torch.Tensor) else logits[0]
        scale = None if weight is None else weight.to(first.device)
        return cross_entropy(first.float(), batch["target"], weight=scale)

    return of


def decode(logits: Tensor) -> Tensor:
    """(C,) logits to (C,) float32 probabilities."""
    return logits.float().softmax(0)


def case_metrics(
    workflow: TrainWorkflow,
    prediction: Array,
    truth: Array,
    spacing_mm: Sequence[float] = (),
    *,
    distances: bool = False,
) -> dict[str, float]:
    """Probabilities of one case and how they fit its class.

    Args:
        workflow: The train workflow.
        prediction: (C,) probabilities.
        truth: The class index, a number or an array of one.
        spacing_mm: Not used.
        distances: Not used.

    Returns:
        `probability_<class>` for each class, `target` (index), `correct` (0 or 1), `log_loss`.
    """
    index = int(np.asarray(truth).reshape(()))
    probabilities = np.asarray(prediction, dtype=np.float64)
    metrics = {
        f"probability_{name}": float(value)
        for name, value in zip(section(workflow).classes, probabilities, strict=True)
    }
    metrics["target"] = float(index)
    metrics["correct"] = float(int(probabilities.argmax()) == index)
    metrics["log_loss"] = float(-np.log(max(float(probabilities[index]), 1e-12)))
    return metrics


def summary(workflow: TrainWorkflow, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Accuracy and the majority baseline, balanced accuracy, AUC and log loss, with the counts.

    `auc` is the mean over classes of class against rest (two classes: of the second), NaN where a
    class or its rest is missing among the cases.
    """
    classes = section(workflow).classes
    targets = np.array([int(row["target"]) for row in rows])
    correct = np.array([row["correct"] for row in rows])
    result: dict[str, float] = {"n": float(len(rows))}
    if not len(rows):
        return result | {"auc": float("nan"), "accuracy": float("nan")}
    counts = np.bincount(targets, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        result[f"n_{name}"] = float(count)
    result["accuracy"] = float(correct.mean())
    result["accuracy_majority"] = float(counts.max() / len(rows))
    recalls = [float(correct[targets == index].mean()) for index in np.flatnonzero(counts)]
    result["balanced_accuracy"] = sum(recalls) / len(recalls)
    result["log_loss"] = mean_and_count(rows, "log_loss")[0]
    result["auc"] = _auc(classes, targets, rows)
    return result


def _auc(classes: Sequence[str], targets: Array, rows: Sequence[Mapping[str, Any]]) -> float:
    from sklearn.metrics import roc_auc_score

    chosen = range(1, 2) if len(classes) == 2 else range(len(classes))
    values = []
    for index in chosen:
        positive = targets == index
        if positive.all() or not positive.any():
            return float("nan")
        scores = [row[f"probability_{classes[index]}"] for row in rows]
        values.append(float(roc_auc_score(positive, scores)))
    return sum(values) / len(values)
