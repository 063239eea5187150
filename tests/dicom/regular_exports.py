"""Regular classic DICOM series of random size, orientation and phase idiom, with their truth.

Written with pydicom alone; shares no code with `medplat.dicom`.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

Array = npt.NDArray[Any]
Images = list[list[Dataset]]
IDIOMS = ("temporal position", "trigger time", "acquisition time", "instance number")
CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}


@dataclass
class Export:
    """One series: `images[t][z]`, and the truth in real values (x, y, z, t) on an affine (RAS)."""

    images: Images
    truth: Array
    affine: Array
    cut: dict[str, int] = field(default_factory=dict)  # SOP instance UID: bytes cut off the file

    @property
    def flat(self) -> list[Dataset]:
        return [image for phase in self.images for image in phase]

    @property
    def uid(self) -> str:
        return str(self.flat[0].SeriesInstanceUID)

    def each(self, change: Callable[[Dataset, int, int], None]) -> None:
        for t, phase in enumerate(self.images):
            for z, image in enumerate(phase):
                change(image, t, z)

    def write(self, folder: Path, rng: np.random.Generator) -> None:
        """Write the files under names and in an order that tell nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        names = rng.permutation(10 * len(self.flat))
        for name, image in zip(names, self.flat, strict=False):
            path = folder / f"IM{name:05d}"
            image.save_as(path, enforce_file_format=True)
            cut = self.cut.get(str(image.SOPInstanceUID), 0)
            if cut:
                path.write_bytes(path.read_bytes()[:-cut])


def make(rng: np.random.Generator, *, phases: int = 1) -> Export:
    """A regular CT or MR series of random size, orientation, spacing and phase idiom."""
    columns, rows = (int(n) for n in rng.integers(9, 24, 2))
    slices = int(rng.integers(10, 18))
    row, column, normal = _frame(rng)
    spacing = rng.uniform(0.5, 1.5, 2).round(4)
    step = round(rng.uniform(0.8, 5.0), 3)
    origin = rng.uniform(-200, 200, 3).round(3)
    modality = "MR" if phases > 1 or rng.random() < 0.5 else "CT"
    stored = rng.integers(0, 4000, (columns, rows, slices, phases))
    slope, intercept = (1.0, -1024.0) if modality == "CT" else (float(rng.choice([1, 2])), 0.0)
    shared = _shared(rng, modality, row, column, spacing, slope, intercept)
    idiom = str(rng.choice(IDIOMS)) if phases > 1 else ""
    clock = np.cumsum(rng.uniform(20, 90, phases)) + rng.integers(36_000, 60_000)
    images: Images = []
    for t in range(phases):
        images.append([])
        for z in range(slices):
            image = deepcopy(shared)
            image.file_meta = FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.SOPInstanceUID = generate_uid()
            image.InstanceNumber = t * slices + z + 1
            image.ImagePositionPatient = text(origin + z * step * normal)
            if phases > 1:
                _say_phase(image, idiom, t, float(clock[t]), float(clock[0]))
            set_pixels(image, stored[:, :, z, t].T)
            images[-1].append(image)
    lps = np.eye(4)
    lps[:3, :3] = np.stack([row * spacing[1], column * spacing[0], normal * step], 1)
    lps[:3, 3] = origin
    truth = stored * slope + intercept
    return Export(images, truth, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)


def _frame(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Row, column and normal directions: axial, coronal or sagittal, tilted by up to 20 degrees."""
    row, column = [((1, 0, 0), (0, 1, 0)), ((1, 0, 0), (0, 0, -1)), ((0, 1, 0), (0, 0, -1))][
        int(rng.integers(3))
    ]
    tilt = rng.normal(0, 0.15 if rng.random() < 0.5 else 0.0, (2, 3))
    row = np.array(row) + tilt[0]
    row /= np.linalg.norm(row)
    column = np.array(column) + tilt[1]
    column -= (column @ row) * row
    column /= np.linalg.norm(column)
    return row, column, np.cross(row, column)


def text(values: Array) -> list[str]:
    return [f"{value:.8f}"[:16] for value in values]


def _shared(
    rng: np.random.Generator, modality: str, row: Array, column: Array, spacing: Array,
    slope: float, intercept: float,
) -> Dataset:  # fmt: skip
    image = Dataset()
    image.SOPClassUID, image.Modality = CLASSES[modality], modality
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
    image.PatientName, image.PatientID = "Doe^Jane", f"P{rng.integers(10**6)}"
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    image.FrameOfReferenceUID, image.SeriesNumber = generate_uid(), int(rng.integers(1, 99))
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = "20010203"
    image.StudyTime, image.AcquisitionTime = "095959", "100000.5"
    image.SliceThickness, image.Manufacturer = "1", "maker"
    image.PixelSpacing = [str(value) for value in spacing]
    image.ImageOrientationPatient = text(np.concatenate([row, column]))
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = 0
    image.RescaleSlope, image.RescaleIntercept = str(slope), str(intercept)
    return image


def clock_text(seconds: float) -> str:
    """DICOM TM of a second of the day."""
    return (datetime.datetime(2001, 2, 3) + datetime.timedelta(seconds=seconds)).strftime(
        "%H%M%S.%f"
    )


def _say_phase(image: Dataset, idiom: str, t: int, now: float, first: float) -> None:
    """Tell the phase in one of the ways that scanners do."""
    if idiom == "temporal position":
        image.TemporalPositionIdentifier = t
        image.AcquisitionTime = clock_text(now)
    elif idiom == "trigger time":
        image.TriggerTime = f"{1000 * (now - first):.1f}"
    elif idiom == "acquisition time":
        image.AcquisitionTime = clock_text(now)


def set_pixels(image: Dataset, pixels: Array) -> None:
    """Native pixel data of an unsigned 16-bit image (rows, columns)."""
    image.Rows, image.Columns = pixels.shape
    image.PixelData = np.ascontiguousarray(pixels.astype("<u2")).tobytes()


def position(image: Dataset) -> Array:
    return np.array([float(value) for value in image.ImagePositionPatient])


def axes(image: Dataset) -> tuple[Array, Array, Array]:
    values = np.array([float(value) for value in image.ImageOrientationPatient])
    return values[:3], values[3:], np.cross(values[:3], values[3:])


def move(image: Dataset, along: Array) -> None:
    image.ImagePositionPatient = text(position(image) + along)


def step_of(export: Export) -> Array:
    """Vector from one slice to the next."""
    return position(export.images[0][1]) - position(export.images[0][0])
