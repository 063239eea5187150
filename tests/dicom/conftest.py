"""A generator of classic DICOM series for the tests; it shares no code with `medplat.dicom`.

`Made.images[t][z]` are pydicom data sets, slices along the normal; a test changes them as it likes
and writes them under shuffled names. The truth comes from the generator's own parameters.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR = "1.2.840.10008.5.1.4.1.1.4"
ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "prone": ((-1, 0, 0), (0, -1, 0)),
    "feet first": ((-1, 0, 0), (0, 1, 0)),
    "oblique": ((0.99933, 0.0, 0.0366), (0.005, 0.99, -0.14)),
}


@dataclass
class Made:
    images: list[list[Dataset]]
    array: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]

    @property
    def flat(self) -> list[Dataset]:
        return [image for phase in self.images for image in phase]

    def each(self, change: Callable[[Dataset, int, int], None]) -> Made:
        for t, phase in enumerate(self.images):
            for z, image in enumerate(phase):
                change(image, t, z)
        return self


def make(
    *,
    phases: int = 1,
    slices: int = 7,
    rows: int = 9,
    columns: int = 12,
    orientation: str = "axial",
    spacing: tuple[float, float] = (0.7, 0.9),
    step: float = 2.5,
    decimals: int = 8,
    shift: Callable[[int], tuple[float, float, float]] = lambda z: (0.0, 0.0, 0.0),
    dtype: str = "uint16",
    seed: int = 0,
) -> Made:
    """A series; `shift(z)` moves a slice by (along the row, along the column, along the normal)."""
    rng = np.random.default_rng(seed)
    row, column = (np.array(v, dtype=np.float64) for v in ORIENTATIONS[orientation])
    row /= np.linalg.norm(row)
    column -= (column @ row) * row
    column /= np.linalg.norm(column)
    normal = np.cross(row, column)
    origin = rng.uniform(-100, 100, 3)
    array = rng.permutation(columns * rows * slices * phases).reshape(
        (columns, rows, slices, phases)
    )
    array = array.astype(dtype)
    study, frame = generate_uid(), generate_uid()
    series, number = generate_uid(), int(rng.integers(1, 900))
    images = []
    for t in range(phases):
        images.append([])
        for z in range(slices):
            along = shift(z)
            place = origin + along[0] * row + along[1] * column + (z * step + along[2]) * normal
            image = _image(array[:, :, z, t].T, row, column, place, spacing, decimals)
            image.StudyInstanceUID, image.SeriesInstanceUID = study, series
            image.FrameOfReferenceUID, image.SeriesNumber = frame, number
            image.InstanceNumber = t * slices + z + 1
            images[-1].append(image)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = row * spacing[1], column * spacing[0], normal * step
    lps[:3, 3] = origin
    truth = array if phases > 1 else array[..., 0]
    return Made(images, truth, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)


def _image(
    pixels: npt.NDArray[Any],
    row: npt.NDArray[Any],
    column: npt.NDArray[Any],
    place: npt.NDArray[Any],
    spacing: tuple[float, float],
    decimals: int,
) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MR
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.Modality, image.ImageType = "MR", ["ORIGINAL", "PRIMARY", "OTHER"]
    image.PatientName, image.PatientID = "Doe^Jane", "4711"
    image.StudyDate, image.SliceThickness = "20000101", "2"
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = pixels.dtype.itemsize * 8
    image.BitsAllocated, image.BitsStored, image.HighBit = bits, bits, bits - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.PixelSpacing = [str(value) for value in spacing]
    image.ImageOrientationPatient = [f"{value:.10f}"[:16] for value in (*row, *column)]
    image.ImagePositionPatient = [f"{value:.{decimals}f}"[:16] for value in place]
    image.PixelData = np.ascontiguousarray(pixels).tobytes()
    if len(image.PixelData) % 2:
        image.PixelData += b"\0"
    return image


def clock(seconds: float, start: str = "10:00:00") -> str:
    """DICOM TM of a moment after `start`."""
    moment = datetime.datetime.fromisoformat(f"2000-01-01T{start}")
    return (moment + datetime.timedelta(seconds=seconds)).strftime("%H%M%S.%f")


def write(folder: Path, images: Iterable[Dataset], seed: int = 0) -> Path:
    """Write under names and in subfolders that tell nothing."""
    rng = np.random.default_rng(seed)
    for image in images:
        place = folder / f"d{rng.integers(3)}"
        place.mkdir(parents=True, exist_ok=True)
        image.save_as(place / f"{rng.integers(10**12)}", enforce_file_format=True)
    return folder


@dataclass(frozen=True)
class Dicom:
    """The generator, handed to tests by the fixture `dicom`."""

    make = staticmethod(make)
    write = staticmethod(write)
    clock = staticmethod(clock)
    orientations = tuple(ORIENTATIONS)


@pytest.fixture
def dicom() -> Dicom:
    return Dicom()
