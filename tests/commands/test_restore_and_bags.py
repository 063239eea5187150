"""The whole way of restoration and of bags: train, evaluate and infer with one registered model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.ndimage import gaussian_filter

from medplat import nifti
from medplat.commands import evaluate, infer, train
from medplat.types import Geometry, Volume

RESTORE = """
kind: train
dataset: {name: folder, root: volumes, split: {every: 3}}
task: {kind: restore, spatial_dims: 2, degrade: [{kind: rician, noise_percent: 12}]}
model: {name: unet, channels: [8, 16], residual_units: 1}
train:
  epochs: 40
  batch_size: 4
  patches_per_case: 8
  patch_size: [24, 24]
  learning_rate: 0.005
  validate_every: 40
track: {register: restored}
"""
BAGS = """
kind: train
inputs: [{name: bag, channels: 5}]
dataset: {name: table, file: bags/bags.csv, images: {bag: bag}, split: {every: 3}}
task: {kind: classify, spatial_dims: 1, classes: [no, yes]}
model: {name: mambamil, channels: 16, attention: 8, state: 4, rate: 3, layers: 1, dropout: 0}
train: {epochs: 10, batch_size: 4, learning_rate: 0.01, validate_every: 10, clip: 1.0}
track: {register: bags}
"""


def write_volumes(folder: Path) -> None:
    rng = np.random.default_rng(0)
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    for number in range(9):
        smooth = gaussian_filter(rng.normal(size=(30, 28, 4)), (3, 3, 0))
        values = (smooth > 0).astype(np.int16) * 500 + 200
        nifti.write(
            Volume(values, Geometry(affine, values.shape)), folder / f"images/v{number}.nii.gz"
        )


def write_bags(folder: Path) -> None:
    """A bag is "yes" where half of its vectors have a large first feature."""
    rng = np.random.default_rng(1)
    lines = ["case,bag,target"]
    for number in range(60):
        features = rng.normal(size=(int(rng.integers(4, 12)), 5)).astype(np.float32)
        if number % 2:
            features[::2, 0] += 4
        save_file({"features": features}, folder / f"b{number}.safetensors")
        lines.append(f"b{number},b{number}.safetensors,{['no', 'yes'][number % 2]}")
    (folder / "bags.csv").write_text("\n".join(lines) + "\n")


def measured(project: Path, dataset: str, model: str) -> dict:
    text = f"kind: evaluate\n{dataset}\nevaluate:\n  model: models:/{model}@candidate\n"
    text += "  split: validation\n  replicates: 50\n"
    (project / "evaluate.yaml").write_text(text)
    outcome = evaluate.run(project / "evaluate.yaml", project=project)
    assert outcome.exit_code == 0
    return outcome.summary["metrics"]


@pytest.mark.slow
def test_restoration(project: Path) -> None:
    (project / "volumes/images").mkdir(parents=True)
    write_volumes(project / "volumes")
    (project / "w.yaml").write_text(RESTORE)
    trained = train.run(project / "w.yaml", project=project)
    assert trained.summary["metrics"]["psnr"] > trained.summary["metrics"]["psnr_input"]
    dataset = RESTORE.strip().splitlines()[1]
    found = measured(project, dataset, "restored")
    assert found["psnr"]["value"] == pytest.approx(trained.summary["metrics"]["psnr"], abs=1e-3)
    assert found["psnr_gain"]["low"] > 0
    outcome = infer.run(
        "models:/restored@candidate", project / "volumes/images", project / "out", project=project
    )
    assert outcome.summary["counts"]["done"] == 9
    source = nifti.read(project / "volumes/images/v0.nii.gz")
    restored = nifti.read(project / "out/v0/restored.nii.gz")
    assert np.allclose(restored.geometry.affine, source.geometry.affine)
    assert np.abs(restored.array - source.array).mean() < 100


@pytest.mark.slow
def test_bags(project: Path) -> None:
    (project / "bags").mkdir()
    write_bags(project / "bags")
    (project / "w.yaml").write_text(BAGS)
    trained = train.run(project / "w.yaml", project=project)
    assert trained.summary["metrics"]["auc"] > 0.9
    found = measured(project, BAGS.strip().splitlines()[2], "bags")
    assert found["auc"]["value"] == pytest.approx(trained.summary["metrics"]["auc"])
    outcome = infer.run(
        "models:/bags@candidate", project / "bags", project / "out", project=project
    )
    assert outcome.summary["counts"]["done"] == 60
    with (project / "out/results.csv").open() as file:
        rows = {row["case"]: float(row["yes_probability"]) for row in csv.DictReader(file)}
    named = json.loads((project / "out/b1/result.json").read_text())["probabilities"]
    assert rows["b1"] == pytest.approx(named["yes"])
    assert np.mean([rows[f"b{n}"] > rows[f"b{n - 1}"] for n in range(1, 60, 2)]) > 0.8
