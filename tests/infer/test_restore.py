"""Predictions back on the source's grid: exact where grids agree, closed forms elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medplat.infer import restore as module
from medplat.infer.restore import restore
from medplat.types import Geometry


def one_hot(labels: Any, classes: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([(labels == c) * 9.0 - 3 for c in range(classes)])).float()


def oblique(spacing: tuple[float, float, float] = (0.9, 1.3, 2.1)) -> Any:
    rotation = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = (-20, 5, 33)
    return affine


def random_labels(shape: tuple[int, ...], classes: int = 4) -> Any:
    return np.random.default_rng(1).integers(0, classes, shape)


def test_same_grid_is_the_argmax() -> None:
    labels = random_labels((7, 5, 9))
    found = restore(one_hot(labels, 4), oblique(), Geometry(oblique(), (7, 5, 9)))
    assert found.dtype == np.uint8
    assert np.array_equal(found, labels)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
def test_flips_axis_order_and_crops_are_exact(
    axes: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    shape = (8, 6, 7)
    source = Geometry(oblique(), shape)
    labels = random_labels(shape)
    # The model saw voxels 1:7, 0:5, 2:7 of the source, padded by 2 in front of the first axis,
    # turned and flipped: its voxel m lies at source voxel `back @ m`.
    crop = np.pad(labels[1:7, 0:5, 2:7], ((2, 0), (0, 0), (0, 0)))
    first = np.eye(4)
    first[:3, 3] = (-1, 0, 2)
    turned = crop.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, old in enumerate(axes):
        turn[old, new] = flips[new]
        turn[old, 3] = 0 if flips[new] > 0 else turned.shape[new] - 1
    found = restore(one_hot(turned, 4), source.affine @ first @ turn, source)
    truth = np.zeros(shape, int)
    truth[1:7, 0:5, 2:7] = labels[1:7, 0:5, 2:7]
    assert np.array_equal(found, truth)


def test_ball_keeps_its_place_and_volume_through_other_spacing() -> None:
    source = Geometry(oblique((1.0, 1.5, 3.0)), (40, 30, 16))
    grid = np.indices(source.shape).reshape(3, -1)
    world = (source.affine[:3, :3] @ grid + source.affine[:3, 3:]).T
    centre, radius = np.add(world.mean(0), (1.3, -2.2, 0.4)), 11.0
    model = oblique((1.25, 1.25, 1.25))
    model[:3, 3] = source.affine[:3, 3]
    size = (32, 36, 40)
    at = np.indices(size).reshape(3, -1)
    far = np.linalg.norm((model[:3, :3] @ at + model[:3, 3:]).T - centre, axis=1)
    inside = radius - far.reshape(size)
    found = restore(torch.from_numpy(np.stack([-inside, inside])).float(), model, source)
    truth = (np.linalg.norm(world - centre, axis=1) <= radius).reshape(source.shape)
    differing = np.abs(np.linalg.norm(world - centre, axis=1) - radius)[(found != truth).ravel()]
    assert truth.sum() > 1000
    assert differing.size == 0 or differing.max() < 0.4


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Geometry(oblique(), (11, 9, 10))
    logits = torch.randn(3, 9, 12, 8, generator=torch.Generator().manual_seed(0))
    model = oblique((1.1, 1.0, 2.6))
    whole = restore(logits, model, source)
    monkeypatch.setattr(module, "SLAB", 100)
    assert np.array_equal(restore(logits, model, source), whole)
    assert set(np.unique(whole)) == {0, 1, 2}


def test_outside_the_models_grid_is_background() -> None:
    source = Geometry(np.eye(4), (10, 4, 4))
    model = np.eye(4)
    model[0, 0] = 0.5  # covers x from -0.25 to 2.25
    logits = torch.stack([torch.zeros(5, 4, 4), torch.ones(5, 4, 4)])
    found = restore(logits, model, source)
    assert found[:3].all()
    assert not found[3:].any()


def test_two_dimensions() -> None:
    labels = random_labels((7, 5))
    found = restore(one_hot(labels, 4), np.eye(4), Geometry(np.eye(4), (7, 5, 1)))
    assert np.array_equal(found[..., 0], labels)


def test_many_classes_need_16_bit() -> None:
    logits = torch.zeros(300, 2, 2, 2)
    logits[299] = 1
    found = restore(logits, np.eye(4), Geometry(np.eye(4), (2, 2, 2)))
    assert found.dtype == np.uint16
    assert (found == 299).all()
