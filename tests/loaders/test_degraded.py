"""Restore: what is fixed for a case, what is fresh for an example, pairs that lie together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medplat import nifti
from medplat.errors import DataError
from medplat.loaders import batches
from medplat.tasks import restore
from medplat.types import Case, Geometry, Image, Volume
from medplat.workflow.schema import TrainWorkflow

NOISE = {"kind": "rician", "noise_percent": 5}
SHAPE = (13, 17, 6)
AFFINE = np.diag([-1.0, 1.5, 4.0, 1.0])


def flow(task: dict[str, Any], train: dict[str, Any] | None = None, **more: Any) -> TrainWorkflow:
    content = {
        "kind": "train",
        "dataset": {"name": "folder"},
        "task": {"kind": "restore", **task},
        "model": {"name": "unet"},
        "train": {"patch_size": [8, 10], **(train or {})},
        **more,
    }
    return TrainWorkflow.model_validate_json(json.dumps(content))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Every voxel of an image says where it lies; the label is the same image plus 5000."""
    folder = tmp_path_factory.mktemp("images")
    found = []
    for number in range(2):
        array = np.arange(np.prod(SHAPE)).reshape(SHAPE) + 100.0 * number
        paths = folder / f"c{number}.nii.gz", folder / f"c{number}_clean.nii.gz"
        for path, extra in zip(paths, (0, 5000), strict=True):
            nifti.write(Volume((array + extra).astype(np.float32), Geometry(AFFINE, SHAPE)), path)
        found.append(Case(f"c{number}", f"p{number}", {"image": Image(paths[0])}, label=paths[1]))
    return found


def examples(cases: list[Case], workflow: TrainWorkflow, epoch: int = 0) -> list[dict[str, Any]]:
    patches = batches.Patches(batches.prepare(cases, workflow, training=True), workflow)
    return [patches[epoch, index, 0] for index in range(len(cases))]


def test_fresh_examples_differ_by_epoch_and_repeat_by_key(cases: list[Case]) -> None:
    workflow = flow({"degrade": [NOISE]})
    first, again, later = (examples(cases, workflow, epoch) for epoch in (0, 0, 1))
    assert first[0]["image"].shape == first[0]["reference"].shape == (1, 8, 10)
    assert torch.equal(first[1]["image"], again[1]["image"])
    assert not torch.equal(first[1]["image"], later[1]["image"])
    noise = torch.cat([(one["image"] - one["reference"]).flatten() for one in first])
    assert 0.01 < noise.std() < 0.15
    assert abs(noise.mean()) < 0.03


def test_an_example_kept_for_its_case_has_the_same_noise_in_each_epoch(cases: list[Case]) -> None:
    workflow = flow({"degrade": [NOISE], "fresh": False, "spatial_dims": 3}, {"patch_size": None})
    first, later = (examples(cases, workflow, epoch)[0] for epoch in (0, 1))
    assert torch.equal(first["image"], later["image"])
    assert first["image"].shape == (1, *SHAPE)
    assert not torch.equal(first["image"], first["reference"])


def test_measured_cases_are_degraded_alike_each_time(cases: list[Case]) -> None:
    workflow = flow({"degrade": [NOISE]})
    one, again = (batches.prepare(cases, workflow, training=False, cache=False)[0] for _ in "ab")
    assert torch.equal(torch.as_tensor(one["image"]), torch.as_tensor(again["image"]))
    np.testing.assert_array_equal(
        one["truth"], nifti.read(cases[0].images["image"].path).array[None]
    )
    other = flow({"degrade": [NOISE]}, {"seed": 1})
    moved = batches.prepare(cases, other, training=False)[0]
    assert not torch.equal(torch.as_tensor(one["image"]), torch.as_tensor(moved["image"]))
    values = restore.from_scale(np.asarray(one["image"]), one["ends"])
    assert np.abs(values - one["truth"]).max() < 0.05 * 1400 * 6


@pytest.mark.parametrize(("dims", "size"), [(2, (16, 20)), (3, (16, 20, 4))])
def test_a_factor_cuts_the_reference_where_the_input_lies(
    cases: list[Case], dims: int, size: tuple[int, ...]
) -> None:
    task = {"upscale": 2, "spatial_dims": dims, "range": [0, 1]}
    patch = [one // 2 for one in size]
    for example in examples(cases, flow(task, {"patch_size": patch})):
        assert example["image"].shape == (1, *patch)
        assert example["reference"].shape == (1, *size)
        pool = torch.nn.functional.avg_pool2d if dims == 2 else torch.nn.functional.avg_pool3d
        inside = example["image"] > 0  # the image is smaller than the patch along y
        assert torch.allclose(pool(example["reference"], 2)[inside], example["image"][inside])
    whole = batches.prepare(cases, flow(task, {"patch_size": patch}), training=False)[0]
    low, truth = tuple(whole["image"].shape[1:]), whole["truth"].shape[1:]
    assert truth == (12, 16, 6)
    assert low == ((6, 8, 6) if dims == 2 else (6, 8, 3))


def test_a_reference_of_its_own_stays_beside_its_image(cases: list[Case]) -> None:
    crop = {"CenterSpatialCropd": {"keys": "image", "roi_size": [9, 11, 4]}}
    workflow = flow(
        {"reference": "label", "range": [0, 1]}, {"patch_size": [5, 6]}, transforms=[crop]
    )
    for example in examples(cases, workflow):
        assert torch.all(example["reference"] - example["image"] == 5000)
    measured = batches.prepare(cases, workflow, training=False)[0]
    assert measured["image"].shape == (1, 9, 11, 4)
    assert np.all(measured["truth"] - np.asarray(measured["image"]) == 5000)
    with pytest.raises(DataError, match="case c0: has no reference image"):
        batches.prepare([replace(cases[0], label=None)], workflow, training=False)


def test_augmentation_moves_both(cases: list[Case]) -> None:
    flip = {"RandFlipd": {"keys": ["image", "reference"], "prob": 1.0, "spatial_axis": 0}}
    workflow = flow({"reference": "label", "range": [0, 1]}, augment=[flip])
    example = examples(cases, workflow)[0]
    assert torch.all(example["reference"] - example["image"] == 5000)
    assert torch.all(example["image"].diff(dim=1) < 0)


def test_too_few_voxels_for_the_factor(cases: list[Case], tmp_path: Path) -> None:
    thin = np.ones((13, 1, 6), np.float32)
    path = tmp_path / "thin.nii.gz"
    nifti.write(Volume(thin, Geometry(AFFINE, thin.shape)), path)
    case = replace(cases[0], images={"image": Image(path)})
    with pytest.raises(DataError, match=r"case c0: .* too few for upscale 2"):
        batches.prepare([case], flow({"upscale": 2}), training=False)
