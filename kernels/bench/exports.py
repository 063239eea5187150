"""DICOM exports for the benchmarks, drawn by this program: CT-like, 16 bit, not compressed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from pydicom import dcmread

from medplat.dicom import write
from medplat.types import Geometry, Volume


def series(folder: Path, shape: tuple[int, int, int], number: int = 1) -> None:
    """One axial CT of a noisy body in air; `number` gives its UIDs and its noise."""
    rng = np.random.default_rng(number)
    array = rng.normal(40, 12, shape).round().astype(np.int16)
    across = shape[0]
    x, y = np.ogrid[:across, : shape[1]]
    distance = (x - across / 2) ** 2 + (y - shape[1] / 2) ** 2
    array[distance < (0.12 * across) ** 2] += 400
    array[distance > (0.40 * across) ** 2] = -1000
    affine = np.diag([-0.7, -0.7, 2.0, 1.0])
    tags = {
        "Modality": "CT",
        "PatientID": "1",
        "SeriesNumber": number,
        "StudyInstanceUID": write.uid("bench", "Study"),
        "SeriesInstanceUID": write.uid("bench", f"Series {number}"),
    }
    write.write_series(Volume(array, Geometry(affine, shape)), folder, tags)


def many(folder: Path, count: int, slices: int) -> None:
    """`count` series of `slices` files of 16 x 16 pixels: nothing but headers.

    One file is written by pydicom and the others are copies with other bytes in the same places.
    """
    first = folder / "first"
    series(first, (16, 16, 2))
    data = dcmread(next(path for path in sorted(first.rglob("*")) if path.is_file()))
    for path in first.rglob("*"):
        path.unlink()
    first.rmdir()
    places = {"SOPInstanceUID": "1.2.3.1111111.7777777", "SeriesInstanceUID": "1.2.3.4.1111111"}
    for name, value in {**places, "StudyInstanceUID": "1.2.3.5.2222222"}.items():
        setattr(data, name, value)
    data.file_meta.MediaStorageSOPInstanceUID = places["SOPInstanceUID"]
    data.InstanceNumber, data.ImagePositionPatient = 7777777, [-5.6, -5.6, 66666.25]
    whole = io.BytesIO()
    data.save_as(whole, enforce_file_format=True)
    for at in range(count):
        own = whole.getvalue().replace(b"1111111", b"%07d" % (at + 1_000_000))
        own = own.replace(b"2222222", b"%07d" % (at // 5 + 1_000_000))
        place = folder / f"{at // 10:04d}" / f"{at:05d}"
        place.mkdir(parents=True)
        for k in range(slices):
            image = own.replace(b"7777777", b"%07d" % (k + 1_000_000))
            image = image.replace(b"66666.25", b"%08.2f" % (2 * k))
            (place / f"IM{k:05d}").write_bytes(image)
