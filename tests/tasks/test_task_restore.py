"""Restoration: PSNR and SSIM against their formulas, ranges, and grids with a factor."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medplat import tasks
from medplat.tasks import restore
from medplat.types import Task
from medplat.workflow.schema import TrainWorkflow

NOISE = {"kind": "rician", "noise_percent": 5}


def make(**task: object) -> TrainWorkflow:
    options: dict[str, object] = {"kind": "restore", "degrade": [NOISE]} | task
    return TrainWorkflow.model_validate_json(
        json.dumps(
            {
                "kind": "train",
                "dataset": {"name": "folder"},
                "task": options,
                "model": {"name": "unet"},
            }
        )
    )


def test_task_of() -> None:
    assert tasks.task_of(make(upscale=2)) == Task("restore", 2, 1, 1, 2)
    assert tasks.task_of(make(spatial_dims=3)) == Task("restore", 3, 1, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"degrade": []}, "degrade: is empty"),
        ({"reference": "label"}, "leave out degrade and upscale"),
        ({"range": [5, 5]}, "range: its first number"),
        ({"degrade": [{"kind": "rician"}]}, "noise_percent"),
        ({"degrade": [{"kind": "fog"}]}, "fog"),
    ],
)
def test_what_cannot_be_restored(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**options)


def test_scale_and_back() -> None:
    image = np.random.default_rng(0).normal(400, 90, (1, 30, 30, 4))
    ends = restore.value_range(image, restore.section(make()))
    assert ends == pytest.approx(tuple(np.percentile(image, (0.5, 99.5))))
    assert np.allclose(restore.from_scale(restore.to_scale(image, ends), ends), image)
    assert restore.value_range(image, restore.section(make(range=[-100, 300]))) == (-100, 300)
    flat = restore.value_range(np.full((1, 3, 3, 1), 7.0), restore.section(make()))
    assert flat == (7.0, 8.0)


def test_loss_is_the_mean_absolute_error() -> None:
    batch = {"reference": torch.tensor([[[[1.0, 2.0]]]])}
    assert float(restore.loss(make())(torch.tensor([[[[2.0, 5.0]]]]), batch)) == 2.0
    assert float(restore.loss(make())([batch["reference"]], batch)) == 0.0


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Wang et al. 2004, data range 1, Gaussian window of 11 with sigma 1.5, inside the image."""

    def blurred(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

    a, b = blurred(one), blurred(other)
    va, vb = blurred(one**2) - a**2, blurred(other**2) - b**2
    both = blurred(one * other) - a * b
    c1, c2 = 0.01**2, 0.03**2
    return float(
        (((2 * a * b + c1) * (2 * both + c2)) / ((a**2 + b**2 + c1) * (va + vb + c2))).mean()
    )


def test_numbers_of_a_case() -> None:
    rng = np.random.default_rng(1)
    truth = gaussian_filter(rng.normal(size=(1, 33, 40, 3)), (0, 2, 2, 0)) * 500 + 100
    restored, given = truth + rng.normal(0, 9, truth.shape), truth + rng.normal(0, 30, truth.shape)
    found = restore.case_metrics(make(), np.stack([restored, given]), truth, (1, 1, 1))
    extent = truth.max() - truth.min()
    for image, suffix in ((restored, ""), (given, "_input")):
        error = np.square(image - truth).mean()
        assert found[f"psnr{suffix}"] == pytest.approx(10 * math.log10(extent**2 / error), abs=1e-4)
        assert found[f"mae{suffix}"] == pytest.approx(np.abs(image - truth).mean(), rel=1e-6)
        scaled = [(one[0] - truth.min()) / extent for one in (image, truth)]
        wanted = np.mean([ssim(scaled[0][..., z], scaled[1][..., z]) for z in range(3)])
        assert found[f"ssim{suffix}"] == pytest.approx(wanted, abs=1e-4)


def test_small_and_flat_images_have_no_ssim() -> None:
    truth = np.arange(8.0).reshape(1, 2, 4, 1)
    found = restore.case_metrics(make(), np.stack([truth + 1, truth + 1]), truth)
    assert math.isnan(found["ssim"])
    assert found["psnr"] == pytest.approx(20 * math.log10(7))
    flat = np.ones((1, 12, 12, 1))
    found = restore.case_metrics(make(), np.stack([flat + 1, flat]), flat)
    assert math.isnan(found["psnr"])
    assert found["mae"] == 1.0


def test_summary_is_the_mean() -> None:
    rows = [{"psnr": 30.0, "ssim": math.nan}, {"psnr": 40.0, "ssim": 0.5}]
    assert restore.summary(make(), rows) == {"n": 2.0, "psnr": 35.0, "ssim": 0.5}
    assert math.isnan(restore.summary(make(), [])["psnr"])


def test_a_finer_grid_covers_the_same_space() -> None:
    affine = np.array([[-2.0, 0, 0, 5], [0, 1, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    fine = restore.finer(affine, 2, 2)
    corner = affine @ [-0.5, -0.5, 0, 1]
    assert np.allclose(fine @ [-0.5, -0.5, 0, 1], corner)
    assert np.allclose(np.abs(np.linalg.det(fine[:3, :3])), 2.0)
    assert np.allclose(fine @ [0.5, 0.5, 3, 1], affine @ [0, 0, 3, 1])
