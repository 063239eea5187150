"""Bags of feature vectors: read, refused, batched, and split by patient."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from medplat import loaders, registry
from medplat.errors import DataError, Refused
from medplat.loaders import batches, read_image
from medplat.types import Image
from medplat.workflow import read
from medplat.workflow.schema import TrainWorkflow

TEXT = """
kind: train
inputs: [{name: bag, channels: 6}]
dataset:
  name: table
  file: FILE
  images: {bag: features}
  split: {every: 2}
task: {kind: classify, spatial_dims: 1, classes: [no, yes]}
model: {name: mambamil, channels: 8, attention: 4, state: 2, rate: 3}
train: {batch_size: 2}
"""


@pytest.fixture
def workflow(tmp_path: Path) -> TrainWorkflow:
    """Six bags of 3 to 8 vectors, two of each patient."""
    rng = np.random.default_rng(0)
    lines = ["case,patient,features,target"]
    for number in range(6):
        features = rng.normal(size=(3 + number, 6)).astype(np.float32)
        save_file({"features": features}, tmp_path / f"b{number}.safetensors")
        lines.append(f"b{number},p{number // 2},b{number}.safetensors,{['no', 'yes'][number % 2]}")
    (tmp_path / "bags.csv").write_text("\n".join(lines) + "\n")
    found = read.read_text(TEXT.replace("FILE", (tmp_path / "bags.csv").as_posix()), "w.yaml")
    assert isinstance(found, TrainWorkflow)
    return found


def test_a_bag_is_features_by_vectors(workflow: TrainWorkflow, tmp_path: Path) -> None:
    cases = registry.dataset("table").cases(read.dataset_config(workflow))
    found = batches.read_case(cases[4], workflow)
    wanted = np.random.default_rng(0)
    for number in range(5):
        features = wanted.normal(size=(3 + number, 6)).astype(np.float32)
    assert torch.equal(torch.as_tensor(found["image"]), torch.from_numpy(features.T))
    assert found["truth"] == 0


def test_bags_of_different_sizes_make_a_batch(workflow: TrainWorkflow) -> None:
    cases = registry.dataset("table").cases(read.dataset_config(workflow))
    sides = loaders.split(loaders.resolve(cases, workflow.inputs), workflow.dataset.split)
    patients = [{case.patient for case in side} for side in sides.values()]
    assert not patients[0] & patients[1]
    loader = batches.train_loader(batches.prepare(cases, workflow, training=True), workflow)
    seen = []
    for batch in loader:
        assert isinstance(batch["image"], list)
        for name, bag, target in zip(batch["case"], batch["image"], batch["target"], strict=True):
            number = int(name[1:])
            assert bag.shape == (6, 3 + number)
            assert int(target) == number % 2
            seen.append(number)
    assert sorted(seen) == list(range(6))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"other": np.ones((3, 6))}, "needs a tensor 'features' .* has none"),
        ({"features": np.ones((0, 6))}, r"has one of shape \(0, 6\)"),
        ({"features": np.ones(6)}, r"has one of shape \(6,\)"),
        ({"features": np.full((2, 6), np.nan)}, "not finite"),
    ],
)
def test_bags_that_are_none(tmp_path: Path, tensors: dict[str, np.ndarray], words: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    with pytest.raises(DataError, match=words):
        read_image(Image(path))


def test_a_torn_file_and_another_width_are_told(workflow: TrainWorkflow, tmp_path: Path) -> None:
    path = tmp_path / "b0.safetensors"
    cases = registry.dataset("table").cases(read.dataset_config(workflow))
    save_file({"features": np.ones((3, 5), np.float32)}, path)
    with pytest.raises(Refused, match="has 5 channels, the input takes 6"):
        batches.read_case(cases[0], workflow)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=r"b0\.safetensors: not a safetensors file"):
        batches.read_case(cases[0], workflow)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("batch_size: 2", "patch_size: [4]", "a bag is taken whole"),
        ("[{name: bag, channels: 6}]", "[{name: bag}, {name: more}]", "a bag is one input"),
        ("spatial_dims: 1", "spatial_dims: 2", "bag: an image has 1 or 3 channels"),
        ("name: mambamil", "name: unet", "unet serves 2 and 3, not 1"),
    ],
)
def test_workflows_that_do_not_fit_bags(
    workflow: TrainWorkflow, tmp_path: Path, old: str, new: str, words: str
) -> None:
    text = TEXT.replace("FILE", json.dumps(str(tmp_path / "bags.csv")))
    if "unet" in new:
        text = text.replace(", channels: 8, attention: 4, state: 2, rate: 3", "")
    with pytest.raises(read.WorkflowError, match=words):
        read.read_text(text.replace(old, new), "w.yaml", plugins=True)
