"""Phantom exports of the three cohorts of BreastDCEDL, with the traps of their headers.

Written with pydicom alone; shares no code with `medplat.dicom`. The truth
comes from the generator's own parameters: (x, y, z, t) with the slices along their normal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR = "1.2.840.10008.5.1.4.1.1.4"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


@dataclass
class Study:
    """One study: its data sets, and the truth."""

    images: list[Dataset]
    array: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    times_s: tuple[float, ...]

    def write(self, folder: Path, seed: int = 0) -> Path:
        """Write under names and in an order that tell nothing."""
        rng = np.random.default_rng(seed)
        names = rng.choice(10**9, len(self.images), replace=False)
        for name, image in zip(names, self.images, strict=True):
            path = folder / f"d{name % 3}" / f"{name:09d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save_as(path, enforce_file_format=True)
        return folder

    def of(self, t: int, z: int) -> Dataset:
        """The image of a phase and slice."""
        return next(one for one in self.images if (one._phase, one._slice) == (t, z))


def clock(seconds: float) -> str:
    whole = int(seconds)
    micro = round((seconds - whole) * 1e6)
    return f"{whole // 3600:02d}{whole // 60 % 60:02d}{whole % 60:02d}.{micro:06d}"


def study(
    pid: str,
    dress: Callable[[Dataset, int, int, float], None],
    *,
    times_s: Sequence[float],
    side: int = 16,
    slices: int = 6,
    row: Sequence[float] = (1, 0, 0),
    column: Sequence[float] = (0, 1, 0),
    reverse: bool = False,
    visit: str = "",
    seed: int = 0,
) -> Study:
    """A dynamic study; `dress(image, t, z, seconds)` gives it the headers of a cohort."""
    rng = np.random.default_rng(seed)
    array = rng.integers(1, 60_000, (side, side, slices, len(times_s))).astype(np.uint16)
    row_, column_ = np.asarray(row, float), np.asarray(column, float)
    row_ /= np.linalg.norm(row_)
    column_ -= (column_ @ row_) * row_
    column_ /= np.linalg.norm(column_)
    normal = np.cross(row_, column_)
    origin, pixel, step = rng.uniform(-90, 90, 3).round(3), 0.7031, 2.0
    shared = {"study": generate_uid(), "frame": generate_uid(), "series": generate_uid()}
    images = []
    for t, seconds in enumerate(times_s):
        for z in range(slices):
            image = _plane(array[:, :, z, t].T, pid, shared)
            image.ImageOrientationPatient = [f"{v:.10f}"[:16] for v in (*row_, *column_)]
            place = origin + z * step * normal
            image.ImagePositionPatient = [f"{v:.8f}"[:16] for v in place]
            image.PixelSpacing, image.SliceThickness = [str(pixel)] * 2, "2"
            image.InstanceNumber = t * slices + (slices - z if reverse else z + 1)
            image.StudyDescription = f"MR BREAST UNI {visit}".strip()
            image._phase, image._slice = t, z
            dress(image, t, z, seconds)
            images.append(image)
    lps = np.eye(4)
    lps[:3, :3] = np.stack([row_ * pixel, column_ * pixel, normal * step], 1)
    lps[:3, 3] = origin
    times = tuple(round(seconds - times_s[0], 6) for seconds in times_s)
    return Study(images, array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, times)


def _plane(pixels: npt.NDArray[Any], pid: str, shared: dict[str, str]) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MR
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.PatientID = image.PatientName = pid
    image.Modality, image.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M", "NONE"]
    image.StudyInstanceUID, image.SeriesInstanceUID = shared["study"], shared["series"]
    image.FrameOfReferenceUID = shared["frame"]
    image.StudyDate = image.AcquisitionDate = image.ContentDate = "19990606"
    image.StudyTime, image.PatientPosition = "080000", "HFP"
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = 0
    image.PixelData = np.ascontiguousarray(pixels).tobytes()
    return image


def ispy2(pid: str = "ISPY2-100899", visit: str = "T0", phases: int = 7, seed: int = 0) -> Study:
    """All phases in one series, phases from 0, true times in a private element alone."""
    times = [0.0, 44.0, *(132.0 + 88 * t for t in range(phases - 2))]

    def dress(image: Dataset, t: int, z: int, seconds: float) -> None:
        image.SeriesNumber = 61000
        image.SeriesDescription = "ISPY2: VOLSER: uni-lateral cropped: original DCE"
        image.Manufacturer = "Philips Medical Systems"
        image.ImageType = ["DERIVED", "PRIMARY", "M", "NONE"]
        image.TemporalPositionIdentifier = t
        image.NumberOfTemporalPositions = phases - 1
        image.TriggerTime, image.SliceLocation = "0", str(219 - z)
        image.ContentTime = "153000"
        image.add_new(0x01170010, "LO", "UCSF BIRP PRIVATE CREATOR 011710XX")
        image.add_new(0x01171034, "DS", f"{seconds:.1f}")
        image.InstanceNumber = z * phases + t + 1

    return study(
        pid, dress, times_s=times, row=(0.99933, 0, 0.03664), visit=visit, seed=seed
    )  # fmt: skip


def ispy1(pid: str = "ISPY1_1004", phases: int = 3, seed: int = 0) -> Study:
    """All phases in one sagittal series, told apart by AcquisitionTime."""

    def dress(image: Dataset, t: int, z: int, seconds: float) -> None:
        image.SeriesNumber = 3
        image.SeriesDescription = "Dynamic-3dfgre"
        image.Manufacturer = "GE MEDICAL SYSTEMS"
        image.AcquisitionTime = clock(36_000 + seconds)

    times = [20.0 + 150.0 * t for t in range(phases)]
    return study(
        pid, dress, times_s=times, row=(0, 1, 0), column=(0, 0, -1), visit="T1", seed=seed
    )  # fmt: skip


def duke(
    pid: str = "Breast_MRI_001", idiom: str = "pass", reverse: bool = False, seed: int = 0
) -> Study:
    """One series a phase: numbers with gaps, two kinds of name, slices in either direction."""
    numbers = {"pass": (4, 5, 8, 11), "ge": (603, 600, 602, 601)}[idiom]
    names = {
        "pass": ("ax dyn pre", "ax dyn 1st pass", "ax dyn 2nd pass", "ax dyn 3rd pass"),
        "ge": ("ax 3d dyn", "Ph1ax 3d dyn", "Ph2ax 3d dyn", "Ph3ax 3d dyn"),
    }[idiom]
    uids = [generate_uid() for _ in numbers]

    def dress(image: Dataset, t: int, z: int, seconds: float) -> None:
        image.SeriesInstanceUID = uids[t]
        image.SeriesNumber, image.SeriesDescription = numbers[t], names[t]
        image.Manufacturer = "SIEMENS"
        image.AcquisitionTime = clock(40_000 + seconds)
        count = 6
        image.InstanceNumber = count - z if reverse else z + 1

    return study(pid, dress, times_s=[0.0, 125.0, 260.0, 405.0], reverse=reverse, seed=seed)


def localizer(of: Study) -> Dataset:
    """A T2 image of the same study that no phase is made of."""
    image = deepcopy(of.images[0])
    image.SeriesInstanceUID, image.SOPInstanceUID = generate_uid(), generate_uid()
    image.SeriesDescription, image.SeriesNumber = "localizer", 1
    image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return image


def segmentation(of: Study, mask: npt.NDArray[np.bool_], label: str = "tumour") -> Dataset:
    """A binary DICOM SEG of one segment over the first phase; `mask` is (x, y, z)."""
    first = of.images[0]
    seg = Dataset()
    seg.file_meta = FileMetaDataset()
    seg.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    seg.SOPClassUID = seg.file_meta.MediaStorageSOPClassUID = SEG
    seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate",
                 "StudyTime"):  # fmt: skip
        setattr(seg, name, first.get(name))
    seg.Modality, seg.SeriesInstanceUID, seg.SeriesNumber = "SEG", generate_uid(), 99
    seg.SeriesDescription, seg.InstanceNumber = "Analysis Mask", 1
    seg.ImageType = ["DERIVED", "PRIMARY"]
    seg.SegmentationType, seg.SamplesPerPixel = "BINARY", 1
    seg.PhotometricInterpretation, seg.PixelRepresentation = "MONOCHROME2", 0
    seg.BitsAllocated = seg.BitsStored = 1
    seg.HighBit = 0
    seg.Rows, seg.Columns, seg.NumberOfFrames = *mask.shape[1::-1], mask.shape[2]
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "4147007", "SCT", "Mass"
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = 1, label
    segment.SegmentAlgorithmType = "MANUAL"
    segment.SegmentedPropertyCategoryCodeSequence = Items([code])
    segment.SegmentedPropertyTypeCodeSequence = Items([code])
    seg.SegmentSequence = Items([segment])
    planes = [image for image in of.images if image._phase == 0]
    planes.sort(key=lambda image: image._slice)
    series = Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ReferencedInstanceSequence = Items([_reference(one) for one in planes])
    seg.ReferencedSeriesSequence = Items([series])
    seg.SharedFunctionalGroupsSequence = Items([_shared(first)])
    seg.PerFrameFunctionalGroupsSequence = Items([_frame(one) for one in planes])
    bits = np.packbits(mask.transpose(2, 1, 0).ravel(), bitorder="little").tobytes()
    seg.PixelData = bits + b"\0" * (len(bits) % 2)
    return seg


def _reference(image: Dataset) -> Dataset:
    found = Dataset()
    found.ReferencedSOPClassUID = image.SOPClassUID
    found.ReferencedSOPInstanceUID = image.SOPInstanceUID
    return found


def _shared(first: Dataset) -> Dataset:
    orientation, measures, found = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    measures.SpacingBetweenSlices = "2"
    found.PlaneOrientationSequence = Items([orientation])
    found.PixelMeasuresSequence = Items([measures])
    return found


def _frame(image: Dataset) -> Dataset:
    position, which, source, found = Dataset(), Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = image.ImagePositionPatient
    which.ReferencedSegmentNumber = 1
    source.SourceImageSequence = Items([_reference(image)])
    found.PlanePositionSequence = Items([position])
    found.SegmentIdentificationSequence = Items([which])
    found.DerivationImageSequence = Items([source])
    return found
