"""The 348 bytes of a NIfTI-1 header, as the standard lays them out (nifti1.h, NIfTI-1.1).

Written here and not by nibabel, whose import takes longer than the conversion of a whole CT; the
tests compare every byte with nibabel's own.
"""

from __future__ import annotations

import struct

import numpy as np

from medplat.types import Affine

_CODES = {
    "uint8": 2, "int16": 4, "int32": 8, "float32": 16, "float64": 64, "int8": 256, "uint16": 512,
    "uint32": 768,
}  # fmt: skip
DTYPES = tuple(_CODES)
OFFSET = 352
_MM_SECONDS = 2 | 8
# Field by field: size, (old names, dim_info) | dim | intent | codes | pixdim | offset and
# scale | slices, units | display, time | (glmax, glmin) | texts | form codes | forms | name, magic.
_LAYOUT = "<i36x8h3f4h8f3fhcB4f2i80s24s2h3f3f12f16s4s"


def pack(
    dtype: str,
    shape: tuple[int, ...],
    affine: Affine,
    *,
    code: int,
    slope: float = 1.0,
    intercept: float = 0.0,
    step_s: float = 1.0,
) -> bytes:
    """The header and the four bytes of "no extension" that follow it.

    Args:
        dtype: One of `DTYPES`; the values are little-endian.
        shape: Three or four sizes.
        affine: (4, 4), voxel to RAS+ mm.
        code: Of the sform: 1 scanner coordinates, 2 aligned.
        slope: scl_slope.
        intercept: scl_inter.
        step_s: Seconds between phases, 0 where they are uneven.

    Returns:
        352 bytes. The quaternion form has code 0 where it cannot say the same as the affine (1e-4).
    """
    sizes = (len(shape), *shape, *(1,) * (7 - len(shape)))
    steps, handed, quaternion = _quaternion(affine)
    same = np.allclose(_rebuilt(steps, handed, quaternion), affine[:3, :3], rtol=0, atol=1e-4)
    return struct.pack(
        _LAYOUT,
        348,
        *sizes,
        *(0.0,) * 3,
        0,
        _CODES[dtype],
        8 * np.dtype(dtype).itemsize,
        0,
        handed,
        *steps,
        step_s if len(shape) == 4 else 1.0,
        *(1.0,) * 3,
        float(OFFSET),
        slope,
        intercept,
        0,
        b"\0",
        _MM_SECONDS,
        *(0.0,) * 4,
        *(0,) * 2,
        b"",
        b"",
        code if same else 0,
        code,
        *quaternion[1:],
        *affine[:3, 3],
        *affine[0],
        *affine[1],
        *affine[2],
        b"",
        b"n+1",
    ) + bytes(OFFSET - 348)


def _quaternion(
    affine: Affine,
) -> tuple[tuple[float, ...], float, tuple[float, float, float, float]]:
    """Steps in mm, handedness (qfac) and unit quaternion of the rotation nearest to an affine.

    The rotation is the polar factor of the direction matrix; its quaternion is the eigenvector of
    the largest eigenvalue of a symmetric 4 x 4 matrix (Bar-Itzhack, J Guid Control Dyn 23, 2000).
    """
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    steps = np.sqrt((matrix**2).sum(axis=0))
    turned = matrix / np.where(steps > 0, steps, 1.0)
    handed = 1.0 if np.linalg.det(turned) > 0 else -1.0
    turned[:, 2] *= handed
    left, _, right = np.linalg.svd(turned)
    r = left @ right
    symmetric = np.empty((4, 4))
    symmetric[0, 0] = np.trace(r)
    symmetric[0, 1:] = symmetric[1:, 0] = r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]
    symmetric[1:, 1:] = r + r.T - np.trace(r) * np.eye(3)
    w, x, y, z = (float(part) for part in np.linalg.eigh(symmetric)[1][:, -1])
    if w < 0:
        w, x, y, z = -w, -x, -y, -z
    return tuple(float(step) for step in steps), handed, (w, x, y, z)


def _rebuilt(
    steps: tuple[float, ...], handed: float, quaternion: tuple[float, float, float, float]
) -> Affine:
    """The matrix that a reader makes of the quaternion form (nifti1.h, method 2)."""
    w, x, y, z = quaternion
    rotation = np.array(
        [
            [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), w * w + y * y - x * x - z * z, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), w * w + z * z - x * x - y * y],
        ]
    )
    return rotation * (np.asarray(steps) * (1.0, 1.0, handed))
