"""A small PACS export for the tests of convert, made with pydicom alone: an outside truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

PREFIX = "1.2.826.0.1.3680043.8.498."


def uid(*parts: int) -> str:
    return PREFIX + ".".join(str(part) for part in parts)


def image(
    study: int, series: int, instance: int, position: Sequence[float], **tags: Any
) -> FileDataset:
    """One axial slice, 6 rows x 8 columns, with values that tell slice and place."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = uid(study, series, instance)
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID = MRImageStorage
    ds.SOPInstanceUID = uid(study, series, instance)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(study), uid(study, series)
    ds.FrameOfReferenceUID = uid(study, 999)
    ds.PatientID, ds.PatientName = f"PID{study:04d}", f"Lastname{study}^First"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "19701122", "F", "093Y"
    ds.AccessionNumber = f"ACC{study:05d}"
    ds.StudyDate = ds.AcquisitionDate = "20240131"
    ds.StudyTime, ds.AcquisitionTime = "101112", f"10{series:02d}15.25"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "MR", series, instance
    ds.SeriesDescription = f"ax T1 Lastname{study}"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    ds.ImagePositionPatient = [float(one) for one in position]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness = [1.5, 0.75], 2.0
    ds.Rows, ds.Columns, ds.SamplesPerPixel = 6, 8, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    for name, value in tags.items():
        setattr(ds, name, value)
    pixels = (np.arange(48).reshape(6, 8) + 100 * instance + 7 * series).astype("<u2")
    ds.PixelData = pixels.tobytes()
    return ds


def save(ds: FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def stack(
    folder: Path, study: int, series: int, places: Sequence[float], **tags: Any
) -> list[Path]:
    """A series with one slice at each z, written in reverse order of place."""
    return [
        save(image(study, series, n, (-10, -20, z), **tags), folder / f"IM{series}_{99 - n:03d}")
        for n, z in enumerate(places, start=1)
    ]


def dynamic(folder: Path, study: int, series: int, phases: int = 3, slices: int = 4) -> list[Path]:
    """Phases that TemporalPositionIdentifier and AcquisitionTime tell apart."""
    paths = []
    for t in range(phases):
        for k in range(slices):
            n = 1 + t * slices + k
            ds = image(
                study,
                series,
                n,
                (0, 0, 3 * k),
                TemporalPositionIdentifier=t + 1,
                NumberOfTemporalPositions=phases,
                AcquisitionTime=f"10{series:02d}{20 * t:02d}.5",
            )
            paths.append(save(ds, folder / f"dyn{n:03d}.dcm"))
    return paths


def export(folder: Path) -> Path:
    """Two studies: good, dynamic, broken (a gap) and duplicate-free series, a localizer, litter."""
    stack(folder / "A" / "s1", 1, 1, (0, 2, 4, 6, 8))
    dynamic(folder / "A" / "s2", 1, 2)
    stack(folder / "A" / "s3", 1, 3, (0, 2, 4, 8, 10))
    stack(folder / "B", 2, 1, (5, 7, 9), Modality="CT", SOPClassUID=CTImageStorage,
          RescaleSlope=2, RescaleIntercept=-1024)  # fmt: skip
    stack(folder / "B" / "scout", 2, 2, (0,), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (folder / "README.txt").write_text("viewer of Lastname1")
    (folder / "B" / ".DS_Store").write_bytes(b"")
    return folder


def expected(paths: Sequence[Path]) -> np.ndarray:
    """(x, y, z) of one stack by float64 positions, from pydicom's own reader."""
    read = sorted(
        (pydicom.dcmread(path) for path in paths), key=lambda d: d.ImagePositionPatient[2]
    )
    return np.stack([one.pixel_array.T for one in read], axis=-1)
