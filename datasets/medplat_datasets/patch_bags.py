"""patch_bags: pictures of a table as bags of patches, for demonstrations of multiple instances.

Each picture is cut into a square of patches; a tiny convolutional network with fixed random
weights, never trained, makes a feature vector of each. A stand-in for the encoder and the slides
that a real study has: its bags are one `.safetensors` file a slide, read by `table`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from medplat import console, nifti, paths
from medplat.errors import DataError, MissingExtra
from medplat.types import Case, Image
from medplat_datasets import table

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS = "bags.json"
WIDTHS = (3, 16, 32, 64)
FEATURES = 2 * WIDTHS[-1]  # mean and standard deviation of each channel


class Config(table.Config):
    """Keys of `dataset` in a workflow: those of `table`, and where the bags are written."""

    bags: Path = Field(description="Folder for the bags; made and filled when absent.")
    side: int = Field(4, ge=1, description="Patches along each side of a picture.")
    seed: int = Field(0, ge=0, description="Of the network's weights.")


def cases(config: Config) -> list[Case]:
    """One case a line of the table, its first input a bag of `side` x `side` patches.

    Raises:
        DataError: The table or a picture cannot be used, or `bags` holds something else.
    """
    found = table.cases(config)
    _claim(config)
    lacking = [case for case in found if not _bag(config, case).is_file()]
    if lacking:
        _write(config, lacking)
    return [replace(case, images={_name(config): Image(_bag(config, case))}) for case in found]


def _name(config: Config) -> str:
    return next(iter(config.images))


def _bag(config: Config, case: Case) -> Path:
    return config.bags / f"{case.case}.safetensors"


def _claim(config: Config) -> None:
    """Fill no folder that holds something else."""
    settings = {"side": config.side, "seed": config.seed, "version": 1}
    path = config.bags / SETTINGS
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != settings:
            raise DataError(f"{config.bags}: holds bags of other settings; name another folder")
    elif config.bags.is_dir() and any(config.bags.iterdir()):
        raise DataError(f"{config.bags}: is not empty and holds no bags; name another folder")
    else:
        nifti.write_json(path, settings)


def _write(config: Config, lacking: Sequence[Case]) -> None:
    try:
        from safetensors.torch import save_file
    except ModuleNotFoundError as error:
        raise MissingExtra("dataset 'patch_bags'", error.name or "torch") from error
    weights = _weights(config.seed)
    # One entry: safetensors writes several in no fixed order, and equal bags have equal bytes.
    said = {"encoder": f"random weights of seed {config.seed}, not trained"}
    for case in console.track(lacking, "bags", len(lacking)):
        features = _features(_patches(case, config), weights)
        with paths.whole(_bag(config, case)) as part:
            save_file({"features": features}, part, metadata=said)


def _weights(seed: int) -> list[Tensor]:
    """3x3 kernels of the layers, He-normal."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randn(after, before, 3, 3, generator=draw) * math.sqrt(2 / (9 * before))
        for before, after in itertools.pairwise(WIDTHS)
    ]


def _patches(case: Case, config: Config) -> Tensor:
    """(side * side, 3, h, w), from left to right and from top to bottom, values -1 to 1."""
    import torch

    from medplat.loaders import read_image

    volume = read_image(case.images[_name(config)], channels=3)
    rows = np.asarray(volume.array[:, :, 0]).transpose(2, 1, 0)
    high, wide = (size // config.side for size in rows.shape[1:])
    if min(high, wide) < 8:
        raise DataError(f"case {case.case}: the picture is too small for {config.side} patches")
    cut = rows[:, : high * config.side, : wide * config.side]
    squares = cut.reshape(3, config.side, high, config.side, wide).transpose(1, 3, 0, 2, 4)
    flat: Any = np.ascontiguousarray(squares.reshape(-1, 3, high, wide))
    return torch.from_numpy(flat).float() / 127.5 - 1


def _features(patches: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """(n, FEATURES)."""
    import torch
    from torch.nn.functional import conv2d

    found = patches
    for kernel in weights:
        found = conv2d(found, kernel, stride=2, padding=1).relu()
    flat = found.flatten(2)
    return torch.cat([flat.mean(-1), flat.std(-1)], dim=1)
