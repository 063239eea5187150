"""Files to volumes, volumes to one tensor on one grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from medplat import loaders, nifti
from medplat.errors import DataError, Refused
from medplat.loaders import align
from medplat.types import Geometry, Image, Volume
from medplat.workflow.schema import Input

ONE = [Input(name="image")]
TWO = [Input(name="pre"), Input(name="late")]


def field(points: np.ndarray) -> np.ndarray:
    """A linear function of the world: linear interpolation meets it exactly."""
    return 2.0 * points[0] - 0.5 * points[1] + 0.25 * points[2] + 10.0


def sampled(geometry: Geometry) -> Volume:
    index = np.indices(geometry.shape).reshape(3, -1)
    points = geometry.affine @ np.vstack([index, np.ones(index.shape[1])])
    return Volume(field(points).reshape(geometry.shape), geometry)


def oblique() -> np.ndarray:
    angle = 0.3
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.5, 1.0, 2.0])
    affine[:3, 3] = [-3, 4, 5]
    return affine


def test_slope_and_intercept_make_real_values() -> None:
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    found = loaders.real_values(Volume(stored, Geometry(np.eye(4), (2, 3, 4)), 2.0, -1000.0))
    assert found.dtype == np.float32
    assert found.shape == (1, 2, 3, 4)
    assert (found[0] == stored * 2.0 - 1000.0).all()


def test_phases_without_a_choice_are_refused() -> None:
    volume = Volume(np.zeros((2, 3, 4, 5), np.int16), Geometry(np.eye(4), (2, 3, 4)))
    with pytest.raises(Refused, match="5 phases"):
        loaders.stack([volume], ONE, 3)


def test_stack_resamples_to_the_first_grid_exactly_for_a_linear_field() -> None:
    small = Geometry(oblique(), (7, 8, 5))
    wide = Geometry(np.diag([0.9, 1.1, 0.7, 1.0]), (60, 60, 60))
    wide.affine[:3, 3] = [-20, -20, -10]
    found = loaders.stack([sampled(small), sampled(wide)], TWO, 3)
    assert found.shape == (2, 7, 8, 5)
    assert found.dtype.itemsize == 4
    np.testing.assert_allclose(found[1].numpy(), found[0].numpy(), atol=2e-5)
    np.testing.assert_array_equal(np.asarray(found.affine), small.affine)


def test_equal_grids_are_not_touched() -> None:
    geometry = Geometry(oblique(), (5, 4, 3))
    rng = np.random.default_rng(0)
    volumes = [Volume(rng.normal(size=(5, 4, 3)).astype(np.float32), geometry) for _ in range(2)]
    shifted = geometry.affine.copy()
    shifted[:3, 3] += 1e-4
    volumes[1] = replace(volumes[1], geometry=Geometry(shifted, (5, 4, 3)))
    found = loaders.stack(volumes, TWO, 3)
    for channel, volume in zip(found.numpy(), volumes, strict=True):
        np.testing.assert_array_equal(channel, volume.array)


def test_same_grid_looks_at_the_far_corners() -> None:
    geometry = Geometry(np.eye(4), (200, 10, 10))
    turned = np.eye(4)
    turned[1, 0] = 1e-4  # 0.02 voxel off at the far end
    assert not loaders.same_grid(geometry, Geometry(turned, (200, 10, 10)))
    assert loaders.same_grid(replace(geometry, shape=(20, 10, 10)), Geometry(turned, (20, 10, 10)))


def test_frames_of_reference_must_agree() -> None:
    geometry = Geometry(np.eye(4), (4, 4, 4), frame_of_reference_uid="1.2")
    other = replace(geometry, frame_of_reference_uid="1.3")
    zeros = np.zeros((4, 4, 4), np.int16)
    with pytest.raises(Refused, match="FRAME_OF_REFERENCE: input late"):
        loaders.stack([Volume(zeros, geometry), Volume(zeros, other)], TWO, 3)
    unstated = replace(geometry, frame_of_reference_uid=None)
    assert loaders.stack([Volume(zeros, geometry), Volume(zeros, unstated)], TWO, 3).shape[0] == 2


def test_pictures_of_another_size_are_refused() -> None:
    sizes = [(4, 5, 1), (4, 6, 1)]
    volumes = [
        Volume(np.zeros(size, np.uint8), Geometry(np.eye(4), size, orientation="unknown"))
        for size in sizes
    ]
    with pytest.raises(Refused, match="MIXED_SHAPE"):
        loaders.stack(volumes, TWO, 2)


def test_two_dimensions_take_one_slice() -> None:
    volume = Volume(np.zeros((4, 5, 2), np.uint8), Geometry(np.eye(4), (4, 5, 2)))
    with pytest.raises(Refused, match="2 slices"):
        loaders.stack([volume], ONE, 2)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_has_x_as_its_column(tmp_path: Path, suffix: str) -> None:
    rows = np.zeros((40, 60, 3), np.uint8)
    rows[8:16, 40:56] = (255, 0, 0)
    path = tmp_path / f"one{suffix}"
    Pillow.fromarray(rows).save(path)
    grey = loaders.read_image(Image(path))
    assert grey.array.shape == (60, 40, 1)
    assert grey.array[48, 12, 0] > 60
    assert grey.array[12, 30, 0] < 20
    assert grey.geometry.orientation == "unknown"
    colour = loaders.read_image(Image(path), channels=3)
    tensor = loaders.stack([colour], [Input(name="image", channels=3)], 2)
    assert tensor.shape == (3, 60, 40)
    assert tensor[0, 48, 12] > 240
    assert tensor[1, 48, 12] < 15


def test_deep_pictures_keep_their_values(tmp_path: Path) -> None:
    values = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    Pillow.fromarray(values).save(tmp_path / "deep.png")
    found = loaders.read_image(Image(tmp_path / "deep.png"))
    np.testing.assert_array_equal(found.array[:, :, 0], values.T)


def test_files_that_are_not_there_or_not_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        loaders.read_image(Image(tmp_path / "none.nii"))
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(DataError, match="not a picture"):
        loaders.read_image(Image(tmp_path / "bad.png"))


def test_a_phase_of_a_file(tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    nifti.write(Volume(array, Geometry(np.eye(4), (2, 3, 4))), tmp_path / "a.nii.gz")
    found = loaders.read_image(Image(tmp_path / "a.nii.gz", phase=3))
    np.testing.assert_array_equal(found.array, array[..., 3])


def test_rigid_registration_finds_a_known_shift() -> None:
    shape = (40, 36, 32)
    target = Geometry(np.diag([1.0, 1.0, 1.2, 1.0]), shape, frame_of_reference_uid="1")
    index = np.indices(shape).astype(np.float64)
    points = np.einsum("ab,bxyz->axyz", target.affine[:3, :3], index)

    def body(at: np.ndarray) -> np.ndarray:
        blobs = [((18, 16, 17), 7.0, 100.0), ((26, 22, 25), 4.0, 60.0), ((10, 24, 12), 3.0, 80.0)]
        value = np.zeros(at.shape[1:])
        for middle, width, height in blobs:
            away = ((at - np.reshape(middle, (3, 1, 1, 1))) ** 2).sum(0)
            value += height * np.exp(-away / (2 * width**2))
        return value.astype(np.float32)

    shift = np.array([2.5, -1.5, 2.0])
    moved = body(points + shift.reshape(3, 1, 1, 1))[None]
    own = replace(target, frame_of_reference_uid="2")
    found = align.register(moved, own, body(points), target)
    inner = (slice(6, -6),) * 3
    before = np.abs(moved[0] - body(points))[inner].mean()
    after = np.abs(found[0] - body(points))[inner].mean()
    assert after < 0.1 * before
