"""Restored images and bags, from files to outputs: values, grids, pictures, probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.numpy import save_file
from torch import nn

from medplat import nifti, tasks, transforms
from medplat.infer import case, sources
from medplat.infer.jobs import Job, ModelName, Result, Take
from medplat.infer.restore import restore_values
from medplat.pseudonym import load
from medplat.types import Geometry, Image, Volume
from medplat.workflow import read
from medplat.workflow.schema import TrainWorkflow

AFFINE = np.array([[-0.5, 0, 0, 9], [0, 0.5, 0, 8], [0, 0, 3, 7], [0, 0, 0, 1.0]])
TEXT = """
kind: train
dataset: {name: folder, root: none}
task: {kind: restore, spatial_dims: 2, degrade: [{kind: blur, fwhm_mm: 2}]}
model: {name: unet}
"""


class Larger(nn.Module):
    """Each pixel `factor` times along both axes; 1: the image as it came."""

    def __init__(self, factor: int = 1) -> None:
        super().__init__()
        self.factor = factor
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return x.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


def run(path: Path, text: str, network: nn.Module, kind: Any = "nifti") -> tuple[Result, Path]:
    flow = read.read_text(text, "w.yaml", kind="train")
    assert isinstance(flow, TrainWorkflow)
    loaded = SimpleNamespace(network=network, workflow=flow, task=tasks.task_of(flow))
    compose = transforms.compose(flow.transforms, allow_missing_keys=True)
    name = ModelName("m", "1", "ab" * 32)
    model = case.Model(
        loaded, compose, name, "cpu", multiple=1, seg="labelmap", overlay=lambda *_: None
    )
    folder = path.parent / "out"
    takes = (Take(flow.inputs[0].name, image=Image(path)),)
    job = Job("c", "p", kind, takes, folder, (), {}, {})
    result = case.run(job, case.read(job, flow.inputs), model)
    assert result.status == "done", result.message
    return result, folder


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    array = rng.integers(-900, 1500, (14, 11, 3)).astype(np.int16)
    path = tmp_path / "c.nii.gz"
    nifti.write(Volume(array, Geometry(AFFINE, array.shape), slope=2.0, intercept=-7.0), path)
    return path


def values_of(path: Path) -> np.ndarray:
    read_ = nifti.read(path)
    return read_.array * read_.slope + read_.intercept


@pytest.mark.parametrize("window", ["", "infer: {window: [8, 8]}"])
def test_values_come_back_as_they_went(volume: Path, window: str) -> None:
    network = Larger()
    result, folder = run(volume, TEXT + window, network)
    found = nifti.read(folder / "restored.nii.gz")
    assert np.allclose(found.geometry.affine, AFFINE)
    assert found.array.dtype == np.float32
    assert np.allclose(found.array, values_of(volume), atol=1e-3)
    inside = torch.cat([one.flatten() for one in network.seen])
    assert -0.1 < inside.quantile(0.05) < inside.quantile(0.95) < 1.1
    assert [one["path"] for one in result.outputs] == ["out/restored.nii.gz", "out/result.json"]
    assert json.loads((folder / "result.json").read_text())["task"] == "restore"


def test_a_fixed_range_is_what_the_network_sees(volume: Path) -> None:
    network = Larger()
    text = TEXT.replace("kind: restore,", "kind: restore, range: [-1000, 1000],")
    run(volume, text, network)
    wanted = (values_of(volume)[..., 0] + 1000) / 2000
    assert np.allclose(network.seen[0][0, 0].numpy(), wanted, atol=1e-5)


def test_a_factor_gives_a_finer_grid_over_the_same_space(volume: Path) -> None:
    text = TEXT.replace("kind: restore,", "kind: restore, upscale: 2,").replace(
        "name: unet", "name: mambair"
    )
    _, folder = run(volume, text + "infer: {window: [6, 5]}", Larger(2))
    found = nifti.read(folder / "restored.nii.gz")
    wanted = values_of(volume).repeat(2, 0).repeat(2, 1)
    assert np.allclose(found.array, wanted, atol=2e-2)
    edge = np.array([-0.5, -0.5, 0, 1])
    assert np.allclose(found.geometry.affine @ edge, AFFINE @ edge)
    assert np.allclose(found.geometry.affine[:3, 0], AFFINE[:3, 0] / 2)


def test_what_the_transforms_cut_off_keeps_the_sources_values(volume: Path) -> None:
    class Zero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

    crop = "transforms: [{CenterSpatialCropd: {keys: image, roi_size: [6, 7, 3]}}]\n"
    text = crop + TEXT.replace("kind: restore,", "kind: restore, range: [50, 60],")
    _, folder = run(volume, text, Zero())
    found, source = nifti.read(folder / "restored.nii.gz").array, values_of(volume)
    assert np.all(found[4:10, 2:9] == 50)
    kept = np.ones(found.shape, bool)
    kept[4:10, 2:9] = False
    assert np.allclose(found[kept], source[kept])


def test_values_on_another_grid_are_interpolated() -> None:
    """A linear ramp in the world stays that ramp."""
    coarse = np.diag([2.0, 2.0, 2.0, 1.0])
    x = np.arange(10) * 2.0
    ramp = np.broadcast_to(x[:, None, None], (10, 8, 6)).astype(np.float32)[None]
    shape = (17, 13, 9)
    source = Volume(np.full(shape, -5.0, np.float32), Geometry(np.eye(4), shape))
    found = restore_values(ramp, coarse, source)[0]
    assert np.allclose(found, np.arange(17)[:, None, None])


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_keep_their_kind(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (12, 15, 3)).astype(np.uint8)
    path = tmp_path / "a.png"
    Pillow.fromarray(pixels if channels == 3 else pixels[..., 0]).save(path)
    text = TEXT + f"inputs: [{{name: image, channels: {channels}}}]"
    _, folder = run(path, text, Larger(), "picture")
    with Pillow.open(folder / "restored.png") as found:
        assert found.mode == ("RGB" if channels == 3 else "L")
        assert np.array_equal(np.asarray(found), pixels if channels == 3 else pixels[..., 0])


def test_a_bag_gives_probabilities(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(-1)[:, :2]

    features = np.random.default_rng(2).normal(size=(7, 4)).astype(np.float32)
    save_file({"features": features}, tmp_path / "slide.safetensors")
    text = """
kind: train
inputs: [{name: bag, channels: 4}]
dataset: {name: table, file: none.csv}
task: {kind: classify, spatial_dims: 1, classes: [no, yes]}
model: {name: mambamil}
"""
    flow = read.read_text(text, "w.yaml", kind="train")
    (tmp_path / ".medplat").mkdir()
    found = sources.find(tmp_path, flow.inputs, load(tmp_path))  # type: ignore[union-attr]
    assert (found.kind, [one.case for one in found.studies]) == ("bag", ["slide"])
    result, _ = run(tmp_path / "slide.safetensors", text, Mean(), "bag")
    logits = features.mean(0)[:2].astype(np.float64)
    wanted = np.exp(logits) / np.exp(logits).sum()
    assert result.numbers["yes_probability"] == pytest.approx(wanted[1], abs=1e-6)
