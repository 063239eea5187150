"""Segmentation: label values, loss, Dice and distances against hand counts and float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medplat import tasks
from medplat.errors import DataError, WorkflowError
from medplat.tasks import segment
from medplat.types import Task
from medplat.workflow.schema import SegmentTask, TrainWorkflow


@pytest.fixture
def workflow() -> TrainWorkflow:
    return TrainWorkflow.model_validate(
        {
            "kind": "train",
            "inputs": [{"name": "pre"}, {"name": "colour", "channels": 3}],
            "dataset": {"name": "folder"},
            "task": {
                "kind": "segment",
                "labels": ({"name": "a", "value": 7}, {"name": "b", "value": 300}),
            },
            "model": {"name": "unet"},
        },
        strict=False,
    )


def test_task_of_counts_background_and_colour_channels(workflow: TrainWorkflow) -> None:
    assert tasks.task_of(workflow) == Task("segment", 3, 4, 3)


def test_get_names_the_kinds() -> None:
    assert tasks.get("segment") is segment
    with pytest.raises(WorkflowError, match="segment, classify"):
        tasks.get("colour")


def test_values_and_indices_are_inverse(workflow: TrainWorkflow) -> None:
    task = segment.section(workflow)
    values = np.array([[0, 7], [300, 7]], np.int32)
    indices = segment.to_indices(values, task)
    assert indices.dtype == np.uint8
    assert indices.tolist() == [[0, 1], [2, 1]]
    back = segment.to_values(indices, task)
    assert back.dtype == np.uint16
    assert (back == values).all()


@pytest.mark.parametrize("odd", [1.0, 6.5])
def test_a_value_without_a_label_is_an_error(workflow: TrainWorkflow, odd: float) -> None:
    values = np.array([0, 7, odd], np.float32)
    with pytest.raises(DataError, match=f"case x: holds the value {odd:g}.*0, 7, 300"):
        segment.to_indices(values, segment.section(workflow), "case x")


def test_a_label_of_several_values_is_one_structure() -> None:
    labels = ({"name": "organ", "value": 7}, {"name": "nucleus", "value": 20, "last": 900})
    task = SegmentTask.model_validate({"kind": "segment", "labels": labels})
    values = np.array([0, 7, 20, 433, 900], np.uint16)
    indices = segment.to_indices(values, task)
    assert indices.tolist() == [0, 1, 2, 2, 2]
    assert segment.to_values(indices, task).tolist() == [0, 7, 20, 20, 20]
    for odd in (8.0, 19.0, 20.5, 901.0):
        with pytest.raises(DataError, match=f"holds the value {odd:g},.*only 0, 7, 20-900"):
            segment.to_indices(np.array([0, odd], np.float32), task)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"value": 12}, "same value"),
        ({"value": 9, "last": 10}, "same value"),
        ({"value": 30, "last": 29}, "less than value"),
    ],
)
def test_labels_may_not_share_a_value(other: dict[str, int], message: str) -> None:
    labels = ({"name": "one", "value": 10, "last": 20}, {"name": "two", **other})
    with pytest.raises(ValueError, match=message):
        SegmentTask.model_validate({"kind": "segment", "labels": labels})


def reference_loss(logits: np.ndarray, label: np.ndarray) -> float:
    """Cross-entropy plus soft Dice without background in float64, MONAI's smoothing of 1e-5."""
    exp = np.exp(logits - logits.max(1, keepdims=True))
    soft = exp / exp.sum(1, keepdims=True)
    hot = np.stack([label == index for index in range(logits.shape[1])], 1).astype(np.float64)
    entropy = -(np.log(soft) * hot).sum(1).mean()
    axes = tuple(range(2, logits.ndim))
    both, ours, theirs = ((one).sum(axes)[:, 1:] for one in (soft * hot, soft, hot))
    dice = 1 - (2 * both + 1e-5) / (ours + theirs + 1e-5)
    return float(entropy + dice.mean())


def test_loss_equals_float64(workflow: TrainWorkflow) -> None:
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(2, 3, 5, 4, 3)), rng.integers(0, 3, (2, 5, 4, 3))
    loss = segment.loss(workflow)
    batch = {"label": torch.from_numpy(label[:, None].astype(np.uint8))}
    found = float(loss(torch.from_numpy(logits).float(), batch))
    assert found == pytest.approx(reference_loss(logits, label), rel=1e-5)


def test_deep_supervision_is_the_weighted_mean(workflow: TrainWorkflow) -> None:
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, (1, 6, 6, 6))
    batch = {"label": torch.from_numpy(label[:, None].astype(np.uint8))}
    whole, half = rng.normal(size=(1, 3, 6, 6, 6)), rng.normal(size=(1, 3, 3, 3, 3))
    found = float(segment.loss(workflow)([torch.tensor(whole), torch.tensor(half)], batch))
    smaller = label[:, 1::2, 1::2, 1::2]
    wanted = (reference_loss(whole, label) + 0.5 * reference_loss(half, smaller)) / 1.5
    assert found == pytest.approx(wanted, rel=1e-5)


def test_case_metrics_by_hand(workflow: TrainWorkflow) -> None:
    truth, ours = np.zeros((5, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)
    truth[0, :, 0] = 1
    ours[0, :3, 0] = 1
    ours[1, 0, 0] = 1
    ours[4, 0, 0] = 2
    found = segment.case_metrics(workflow, ours, truth, (2.0, 1.0, 5.0))
    assert found["dice_a"] == pytest.approx(2 * 3 / (4 + 4))
    assert math.isnan(found["dice_b"]), "the truth has none of it"
    assert found["volume_ml_a"] == pytest.approx(0.04)
    assert found["volume_ml_b"] == pytest.approx(0.01)
    assert found["truth_ml_b"] == 0


def test_a_single_slice_has_its_thickness(workflow: TrainWorkflow) -> None:
    truth = np.zeros((5, 4), np.uint8)
    truth[0, :2] = 1
    found = segment.case_metrics(workflow, truth, truth, (2.0, 1.0, 5.0), distances=True)
    assert found["truth_ml_a"] == pytest.approx(2 * 10 / 1000)
    assert found["hd95_mm_a"] == 0


def test_distances_know_the_spacing(workflow: TrainWorkflow) -> None:
    truth, ours = np.zeros((20, 9, 9), np.uint8), np.zeros((20, 9, 9), np.uint8)
    truth[4:8, 2:7, 2:7] = 1
    ours[6:10, 2:7, 2:7] = 1
    near = segment.case_metrics(workflow, ours, truth, (0.4, 1.0, 1.0), distances=True)
    far = segment.case_metrics(workflow, ours, truth, (3.0, 1.0, 1.0), distances=True)
    assert near["hd95_mm_a"] == pytest.approx(0.8)
    assert near["nsd_1mm_a"] == 1.0
    assert far["hd95_mm_a"] > near["hd95_mm_a"]
    assert far["nsd_1mm_a"] < 0.8
    assert math.isnan(near["hd95_mm_b"])
    assert math.isnan(near["nsd_1mm_b"])


def test_summary_leaves_out_what_is_undefined(workflow: TrainWorkflow) -> None:
    rows = [{"dice_a": 0.5, "dice_b": math.nan}, {"dice_a": 0.7, "dice_b": 0.2}]
    found = segment.summary(workflow, rows)
    assert found["dice_a"] == pytest.approx(0.6)
    assert found["dice_b"] == pytest.approx(0.2)
    assert found["dice_a_n"] == 2
    assert found["dice_b_n"] == 1
    assert found["dice"] == pytest.approx(0.4)
    assert math.isnan(segment.summary(workflow, [{"dice_a": math.nan}])["dice"])


def test_decode_takes_the_highest() -> None:
    logits = torch.randn(4, 3, 5)
    found = segment.decode(logits)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), logits.argmax(0))
