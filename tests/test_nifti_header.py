"""The header against nibabel's, byte by byte."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medplat import nifti_header


def theirs(dtype: str, shape: tuple[int, ...], affine: Any, code: int, **more: float) -> bytes:
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape(shape)
    header.set_sform(affine, code=code)
    header.set_qform(affine, code=code, strip_shears=True)
    if not np.allclose(header.get_qform(), affine, rtol=0, atol=1e-4):
        header["qform_code"] = 0
    if len(shape) == 4:
        header["pixdim"][4] = more["step_s"]
    header.set_xyzt_units("mm", "sec")
    header["scl_slope"], header["scl_inter"] = more["slope"], more["intercept"]
    header["magic"], header["vox_offset"] = b"n+1", 352
    return bytes(header.binaryblock) + bytes(4)


def parts(data: bytes) -> tuple[bytes, Any, bytes]:
    """The quaternion apart: it holds the last bits of two ways to compute it."""
    assert len(data) == 352
    return data[:256], np.frombuffer(data[256:268], "<f4"), data[268:]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(nifti_header.DTYPES),
    sizes=st.lists(st.integers(1, 400), min_size=3, max_size=4),
    kind=st.sampled_from(["oblique", "sheared", "axis"]),
    flip=st.booleans(),
)
def test_every_byte_is_nibabels(
    seed: int, dtype: str, sizes: list[int], kind: str, flip: bool
) -> None:
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    if kind == "axis":
        turn = np.eye(3)[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    affine = np.eye(4)
    affine[:3, :3] = turn * rng.uniform(0.3, 5, 3) * (1, 1, -1 if flip else 1)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    if kind == "sheared":
        affine[:3, 2] += 0.3 * affine[:3, 1]
    more = {"slope": 1.25, "intercept": -3.5, "step_s": 12.5}
    ours = parts(nifti_header.pack(dtype, tuple(sizes), affine, code=1, **more))
    reference = parts(theirs(dtype, tuple(sizes), affine, 1, **more))
    assert (ours[0], ours[2]) == (reference[0], reference[2])
    same = min(np.abs(ours[1] - sign * reference[1]).max() for sign in (1, -1))
    # Half turns have two quaternions: both signs are the same rotation.
    assert same < 1e-6


@pytest.mark.parametrize("axes", [(1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1), (1, 1, -1)])
def test_half_turns_read_back(axes: tuple[int, int, int]) -> None:
    affine = np.diag([*(np.array(axes) * (0.7, 0.9, 2.5)), 1.0])
    data = nifti_header.pack("int16", (3, 4, 5), affine, code=1)
    read = nib.Nifti1Header(data[:348])
    np.testing.assert_allclose(read.get_qform(coded=True)[0], affine, atol=1e-5)
    np.testing.assert_allclose(read.get_sform(), affine, atol=1e-5)
