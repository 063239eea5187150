"""A NIfTI file written again with another affine: nothing else of it changes."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np

from medplat import paths
from medplat.commands.verify_geometry import corners_off
from medplat.types import Affine

_CHUNK = 1 << 22
_NIFTI_1, _NIFTI_2 = 348, 540


def forms_off(path: Path, shape: Sequence[int]) -> float:
    """How far the two affines of a header lie apart at a corner, in voxels; 0 if one is unset."""
    with _open(path) as file:
        header = _header(file)
    if not (int(header["sform_code"]) > 0 and int(header["qform_code"]) > 0):
        return 0.0
    return corners_off(header.get_qform(), header.get_sform(), shape)


def repair(path: Path, affine: Affine) -> Path:
    """Write `<name>_repaired.nii.gz` beside a file: its bytes, with this affine in the header.

    Returns:
        The file written.
    """
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    out = path.with_name(f"{stem}_repaired.nii.gz")
    with paths.whole(out) as part, part.open("wb") as raw, _open(path) as file:
        header = _header(file)
        header.set_sform(affine, code=1)
        header.set_qform(affine, code=1, strip_shears=True)
        if not np.allclose(header.get_qform(), affine, rtol=0, atol=1e-4):
            header["qform_code"] = 0
        with gzip.GzipFile("", "wb", 1, cast(BinaryIO, raw), mtime=0) as packed:
            packed.write(header.binaryblock)
            while data := file.read(_CHUNK):
                packed.write(data)
    return out


def _header(file: BinaryIO) -> Any:
    """The header as it stands in the file, which is left at its end."""
    start = file.read(_NIFTI_1)
    if nib.Nifti1Header.may_contain_header(start):
        return nib.Nifti1Header(start, check=False)
    return nib.Nifti2Header(start + file.read(_NIFTI_2 - _NIFTI_1), check=False)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))
