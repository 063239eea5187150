"""Reading, caching, patches and their order: everything from (seed, epoch, case, patch)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_data

from medplat import nifti, registry
from medplat.errors import DataError, Refused
from medplat.loaders import batches
from medplat.types import Case, Geometry, Image, Volume
from medplat.workflow import read
from medplat.workflow.schema import TrainWorkflow


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balls")
    return training_data.write_workflow(folder, training_data.write_cases(folder / "data", 3))


def load(path: Path, *settings: str) -> tuple[TrainWorkflow, list[Case]]:
    workflow = read.read(path, settings, kind="train")
    assert isinstance(workflow, TrainWorkflow)
    return workflow, registry.dataset("folder").cases(read.dataset_config(workflow))


def epoch_of(loader: Any, epoch: int) -> list[dict[str, Any]]:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_read_case_maps_values_to_class_indices(path: Path) -> None:
    workflow, cases = load(path)
    found = batches.read_case(cases[0], workflow)
    label = nifti.read(cases[0].label).array
    assert set(np.unique(label)) == {0, 2, 5}
    np.testing.assert_array_equal(found["truth"], np.array([0, 0, 1, 0, 0, 2])[label])
    assert found["label"].shape == (1, *found["truth"].shape)
    assert found["image"].shape == (1, *found["truth"].shape)


def test_a_label_on_another_grid_is_refused(path: Path, tmp_path: Path) -> None:
    workflow, cases = load(path)
    label = nifti.read(cases[0].label)
    affine = label.geometry.affine.copy()
    affine[0, 3] += 1.0
    moved = Volume(label.array, Geometry(affine, label.geometry.shape))
    nifti.write(moved, tmp_path / "moved.nii.gz")
    with pytest.raises(Refused, match="LABEL_GRID_MISMATCH"):
        batches.read_case(replace(cases[0], label=tmp_path / "moved.nii.gz"), workflow)


def test_a_case_without_label_is_named(path: Path) -> None:
    workflow, cases = load(path)
    with pytest.raises(DataError, match="case case0: has no label"):
        batches.prepare([replace(cases[0], label=None)], workflow, training=True)


def test_what_is_measured_is_prepared_without_its_truth(path: Path) -> None:
    """A crop around the label would hand the model the answer, and fail at inference."""
    crop = "transforms=[{CropForegroundd: {keys: [image, label], source_key: label}}]"
    workflow, cases = load(path, crop)
    batches.prepare(cases[:1], workflow, training=True)
    with pytest.raises(DataError, match="case case0: transforms: "):
        batches.prepare(cases[:1], workflow, training=False)
    workflow, cases = load(path, "transforms=[{Flipd: {keys: [image, label], spatial_axis: 0}}]")
    found = batches.prepare(cases[:1], workflow, training=False)[0]
    assert "label" not in found
    assert found["truth"].shape == tuple(found["image"].shape[1:])


def test_images_of_different_sizes_are_not_a_bug_of_ours(path: Path) -> None:
    small, large = ({"image": torch.zeros(1, side, 4, 4)} for side in (4, 5))
    assert batches.together([small, small])["image"].shape == (2, 1, 4, 4, 4)
    with pytest.raises(DataError, match=r"images of 4x4x4 and 5x4x4 voxels: set train.patch_size"):
        batches.together([small, large])


def test_a_failing_transform_names_the_case(path: Path) -> None:
    resize = "transforms=[{Resized: {keys: image, spatial_size: [4, 4]}}]"
    workflow, cases = load(path, resize)
    with pytest.raises(DataError, match="case case0: transforms: "):
        batches.prepare(cases[:1], workflow, training=True)
    lazy = batches.prepare(cases, workflow, training=True, cache=False)
    with pytest.raises(DataError, match="case case1: transforms: "):
        lazy[1]


def test_image_and_label_must_stay_together(path: Path) -> None:
    crop = "transforms=[{SpatialCropd: {keys: image, roi_start: [1, 1, 1], roi_end: [3, 3, 3]}}]"
    workflow, cases = load(path, crop)
    with pytest.raises(DataError, match="give both keys to each transform"):
        batches.prepare(cases, workflow, training=True)


def test_cached_and_uncached_give_the_same_batches(path: Path) -> None:
    workflow, cases = load(path)
    loaders = [
        batches.train_loader(batches.prepare(cases, workflow, training=True, cache=cache), workflow)
        for cache in (True, False)
    ]
    for epoch in (0, 1):
        for one, other in zip(*(epoch_of(loader, epoch) for loader in loaders), strict=True):
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["label"], other["label"])


def test_epochs_differ_and_come_back_alike(path: Path) -> None:
    workflow, cases = load(path)
    prepared = batches.prepare(cases, workflow, training=True)
    loader = batches.train_loader(prepared, workflow)
    first, second = epoch_of(loader, 0), epoch_of(loader, 1)
    assert not torch.equal(first[0]["image"], second[0]["image"])
    torch.rand(17)  # the state of the global generators must not matter
    np.random.rand(3)
    for one, other in zip(first, epoch_of(loader, 0), strict=True):
        assert torch.equal(one["image"], other["image"])


def test_the_cache_is_not_changed_by_augmentation(path: Path) -> None:
    workflow, cases = load(path, "train.patch_size=null", "train.batch_size=1")
    prepared = batches.prepare(cases, workflow, training=True)
    before = [case["image"].clone() for case in prepared]
    epoch_of(batches.train_loader(prepared, workflow), 0)
    assert all(torch.equal(a, case["image"]) for a, case in zip(before, prepared, strict=True))


@pytest.mark.slow
def test_workers_change_nothing(path: Path) -> None:
    workflow, cases = load(path)
    prepared = batches.prepare(cases, workflow, training=True)
    alone = epoch_of(batches.train_loader(prepared, workflow), 2)
    two, _ = load(path, "train.loader_workers=2")
    loader = batches.train_loader(prepared, two)
    for one, other in zip(alone, epoch_of(loader, 2), strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


def test_an_epoch_visits_each_patch_of_each_case_once() -> None:
    order = batches.EpochOrder(cases=7, patches=3, seed=1)
    order.set_epoch(4)
    keys = list(order)
    assert len(keys) == len(order) == 21
    assert Counter(keys) == Counter((4, case, patch) for case in range(7) for patch in range(3))
    assert keys != sorted(keys)


def test_patches_are_centred_on_labels_as_often_as_asked(path: Path) -> None:
    workflow, cases = load(path, "train.foreground=1", "train.patch_size=[4,4,4]", "augment=[]")
    patches = batches.Patches(batches.prepare(cases, workflow, training=True), workflow)
    for epoch in range(20):
        assert (patches[epoch, 0, 0]["label"] > 0).any()
    workflow, _ = load(path, "train.foreground=0", "train.patch_size=[4,4,4]", "augment=[]")
    patches = batches.Patches(batches.prepare(cases, workflow, training=True), workflow)
    empty = [not (patches[epoch, 0, 0]["label"] > 0).any() for epoch in range(60)]
    assert any(empty)


def test_both_labels_are_centres_alike(path: Path) -> None:
    workflow, cases = load(path, "train.foreground=1", "train.patch_size=[1,1,1]", "augment=[]")
    patches = batches.Patches(batches.prepare(cases, workflow, training=True), workflow)
    found = Counter(int(patches[epoch, 1, 0]["label"]) for epoch in range(200))
    assert set(found) == {1, 2}
    assert 60 < found[1] < 140


@pytest.mark.parametrize(
    ("start", "wanted"),
    [((0, 0), [0, 1, 2]), ((-3, 0), [0, 1, 2]), ((9, 0), [2, 3, 4]), ((1, 0), [1, 2, 3])],
)
def test_cut_stays_inside(start: tuple[int, int], wanted: list[int]) -> None:
    tensor = torch.arange(5).reshape(1, 5, 1)
    assert batches.cut(tensor, start, (3, 1)).flatten().tolist() == wanted


@pytest.mark.parametrize(
    ("start", "wanted"), [(0, [1, 2, 0, 0]), (-1, [0, 1, 2, 0]), (-9, [0, 0, 1, 2])]
)
def test_cut_pads_what_is_too_small(start: int, wanted: list[int]) -> None:
    tensor = torch.tensor([[1, 2]])
    assert batches.cut(tensor, (start,), (4,)).tolist() == [wanted]


def test_fractions_in_labels_are_refused(path: Path) -> None:
    zoom = "augment=[{RandZoomd: {keys: [image, label], prob: 1.0, min_zoom: 1.3, max_zoom: 1.4}}]"
    workflow, cases = load(path, zoom)
    patches = batches.Patches(batches.prepare(cases, workflow, training=True), workflow)
    with pytest.raises(DataError, match="mode nearest"):
        patches[0, 0, 0]


def test_size_in_memory_counts_tensors_and_arrays(path: Path) -> None:
    workflow, cases = load(path, "train.foreground=0")
    prepared = batches.prepare(cases, workflow, training=True)
    voxels = 13 * 11 * 10
    assert batches.size_in_memory(prepared[0]) == voxels * (4 + 1)


def test_validation_gives_whole_cases_in_order(path: Path) -> None:
    workflow, cases = load(path)
    prepared = batches.prepare(cases, workflow, training=False)
    found = list(batches.validation_loader(prepared))
    assert [case["case"] for case in found] == ["case0", "case1", "case2"]
    assert found[0]["truth"].shape == (13, 11, 10)
    assert found[0]["image"].shape == (1, 13, 11, 10)
    assert isinstance(found[0]["geometry"], Geometry)


def test_classify_targets_and_counts(tmp_path: Path) -> None:
    from PIL import Image as Pillow

    text = (
        "kind: train\ndataset: {{name: folder, root: {root}, images: '*/*.png', classes: true}}\n"
        "task: {{kind: classify, classes: [no, yes]}}\nmodel: {{name: unet}}\n"
    )
    for number, name in enumerate(("no", "no", "yes")):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        Pillow.new("L", (9, 7), 40 * number).save(folder / f"{number}.png")
    path = training_data.write_workflow(tmp_path, tmp_path / "data", text)
    workflow, cases = load(path)
    assert batches.class_counts(cases, workflow) == [2, 1]
    prepared = batches.prepare(cases, workflow, training=True)
    loader = batches.train_loader(prepared, workflow)
    found = epoch_of(loader, 0)
    assert found[0]["image"].shape == (2, 1, 9, 7)
    targets = torch.cat([batch["target"] for batch in found])
    assert sorted(targets.tolist()) == [0, 0, 1]
    wrong = replace(
        cases[0], target="maybe", images={"image": Image(next(tmp_path.rglob("*.png")))}
    )
    with pytest.raises(DataError, match="'maybe'"):
        batches.read_case(wrong, workflow)
