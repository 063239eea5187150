"""Small made-up cases for training tests: a bright ball in noise, its upper half another label."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medplat import nifti
from medplat.types import Geometry, Volume

WORKFLOW = """\
kind: train
dataset: {{name: folder, root: {root}, labels: labels/*.nii.gz, split: {{every: 3}}}}
transforms:
  - NormalizeIntensityd: {{keys: image}}
augment:
  - RandFlipd: {{keys: [image, label], prob: 0.5, spatial_axis: 0}}
  - RandGaussianNoised: {{keys: image, prob: 0.5, std: 0.1}}
task:
  kind: segment
  labels: [{{name: lower, value: 2}}, {{name: upper, value: 5}}]
model: {{name: unet, channels: [4, 8], residual_units: 1, dropout: 0.1}}
train:
  epochs: 4
  batch_size: 2
  patch_size: [8, 8, 8]
  patches_per_case: 2
  learning_rate: 0.01
  ema: 0.9
  accumulate: 2
  seed: 3
infer: {{overlap: 0.25}}
track: {{experiment: balls, register: balls, alias: candidate}}
"""


def write_cases(root: Path, count: int = 6, shape: tuple[int, int, int] = (13, 11, 10)) -> Path:
    """`images/` and `labels/` of `count` cases in float32 and uint8, oblique affine, odd sizes."""
    rng = np.random.default_rng(0)
    affine = np.array([[1.2, 0.1, 0, -5], [-0.1, 1.2, 0, 3], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    geometry = Geometry(affine, shape)
    grid = np.stack(np.meshgrid(*[np.arange(size) for size in shape], indexing="ij"))
    for number in range(count):
        middle = np.array(shape).reshape(3, 1, 1, 1) / 2 + rng.uniform(-1, 1, (3, 1, 1, 1))
        ball = ((grid - middle) ** 2).sum(0) < 3.3**2
        label = np.where(ball, np.where(grid[2] > middle[2], 5, 2), 0).astype(np.uint8)
        image = rng.normal(100, 10, shape) + 60 * (label == 2) + 120 * (label == 5)
        name = f"case{number}.nii.gz"
        nifti.write(Volume(image.astype(np.float32), geometry), root / "images" / name)
        nifti.write(Volume(label, geometry), root / "labels" / name)
    return root


def write_workflow(folder: Path, root: Path, text: str = WORKFLOW) -> Path:
    """The workflow file over these cases."""
    path = folder / "balls.yaml"
    path.write_text(text.format(root=root.as_posix()), encoding="utf-8")
    return path
