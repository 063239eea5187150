"""Classification: loss weights, probabilities, AUC as a Mann-Whitney count."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from medplat import tasks
from medplat.errors import DataError
from medplat.tasks import classify
from medplat.types import Task
from medplat.workflow.schema import TrainWorkflow


def make(classes: tuple[str, ...], weights: bool = False) -> TrainWorkflow:
    return TrainWorkflow.model_validate(
        {
            "kind": "train",
            "dataset": {"name": "folder"},
            "task": {"kind": "classify", "classes": classes},
            "model": {"name": "unet"},
            "train": {"class_weights": weights},
        }
    )


def test_task_of() -> None:
    assert tasks.task_of(make(("no", "yes"))) == Task("classify", 2, 1, 2)


def test_an_unknown_class_is_named() -> None:
    task = classify.section(make(("no", "yes")))
    assert classify.to_index("yes", task) == 1
    with pytest.raises(DataError, match=r"'maybe' is not among task\.classes"):
        classify.to_index("maybe", task)


def test_class_weights_are_inverse_frequencies() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    batch = {"target": torch.tensor([0, 0, 1])}
    minus_log = -torch.log_softmax(logits, 1)[torch.arange(3), batch["target"]]
    plain = classify.loss(make(("no", "yes")), [30, 10])(logits, batch)
    assert float(plain) == pytest.approx(float(minus_log.mean()), rel=1e-6)
    weighted = classify.loss(make(("no", "yes"), weights=True), [30, 10])(logits, batch)
    weights = torch.tensor([40 / 60, 40 / 60, 40 / 20], dtype=torch.float64)
    wanted = (weights * minus_log).sum() / weights.sum()
    assert float(weighted) == pytest.approx(float(wanted), rel=1e-6)


def test_case_metrics() -> None:
    workflow = make(("a", "b", "c"))
    probabilities = classify.decode(torch.tensor([1.0, 2.0, 0.5])).numpy()
    assert probabilities.sum() == pytest.approx(1.0)
    found = classify.case_metrics(workflow, probabilities, np.array(2))
    assert found["probability_b"] == pytest.approx(float(probabilities[1]))
    assert (found["target"], found["correct"]) == (2.0, 0.0)
    assert found["log_loss"] == pytest.approx(-math.log(probabilities[2]), rel=1e-6)


def rows_of(workflow: TrainWorkflow, scores: np.ndarray, targets: np.ndarray) -> list[dict]:
    return [
        classify.case_metrics(workflow, score, target)
        for score, target in zip(scores, targets, strict=True)
    ]


def test_auc_equals_the_count_of_pairs() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 40)
    second = np.round(rng.uniform(0, 1, 40), 1)  # many ties
    scores = np.stack([1 - second, second], 1)
    workflow = make(("no", "yes"))
    found = classify.summary(workflow, rows_of(workflow, scores, targets))
    pairs = list(itertools.product(second[targets == 1], second[targets == 0]))
    wanted = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert found["auc"] == pytest.approx(wanted, abs=1e-12)
    assert found["accuracy_majority"] == max(targets.mean(), 1 - targets.mean())
    assert found["n_yes"] == targets.sum()


def test_summary_of_one_class_has_no_auc() -> None:
    workflow = make(("a", "b", "c"))
    scores = np.eye(3)[[0, 1, 0]]
    found = classify.summary(workflow, rows_of(workflow, scores, np.array([0, 0, 0])))
    assert math.isnan(found["auc"])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy_majority"] == 1.0
