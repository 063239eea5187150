"""A volume as a classic single-frame CT or MR series: what the phantom and the tests export."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from medplat.dicom import seg
from medplat.types import Affine, Array, Volume
from medplat.workflow.schema import Label

SOP_CLASSES = {"CT": UID("1.2.840.10008.5.1.4.1.1.2"), "MR": UID("1.2.840.10008.5.1.4.1.1.4")}
TEXT_REPORT = UID("1.2.840.10008.5.1.4.1.1.88.11")
IMPLEMENTATION_UID = generate_uid(prefix="2.25.", entropy_srcs=["medplat"])

_STUDY: dict[str, Any] = {
    "PatientName": "",
    "PatientID": "",
    "PatientBirthDate": "",
    "PatientSex": "",
    "StudyDate": "",
    "StudyTime": "",
    "AccessionNumber": "",
    "ReferringPhysicianName": "",
    "StudyID": "",
    "SeriesNumber": 1,
    "Manufacturer": "",
}
_IMAGE: dict[str, Any] = {
    "PatientPosition": "HFS",
    "PositionReferenceIndicator": "",
    "Laterality": "",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
}
_MODALITY: dict[str, dict[str, Any]] = {
    "CT": {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "KVP": 120,
        "AcquisitionNumber": 1,
    },
    "MR": {
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "NONE"],
        "ScanningSequence": "GR",
        "SequenceVariant": "SP",
        "ScanOptions": "",
        "MRAcquisitionType": "3D",
        "RepetitionTime": 6,
        "EchoTime": 2.5,
        "EchoTrainLength": 1,
    },
}


def uid(*words: object) -> UID:
    """A valid UID (2.25 and a UUID) that depends on `words` only: done again, it is the same."""
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}")


def write_series(
    volume: Volume,
    folder: Path,
    headers: Mapping[str, Any],
    *,
    phases: Sequence[Mapping[str, Any]] = (),
    first: int = 1,
    number: Callable[[int, int], int] | None = None,
    name: Callable[[int], str] = "IM{:05d}.dcm".format,
) -> list[list[Path]]:
    """Write one file for each slice of each phase.

    What the modules of the object ask for and `headers` does not give gets a plain default or stays
    empty. Geometry, pixel description and instance UIDs come from the volume.

    Args:
        volume: (x, y, z[, t]) of int16 or uint16; z may run either way along the slice normal.
        folder: Made if absent.
        headers: Keyword to value, for all images; Modality (CT or MR), StudyInstanceUID and
            SeriesInstanceUID must be among them. A callable value is called with the slice index.
        phases: Keyword to value for each phase; these win over `headers`.
        first: Running number of the first file, for a series that is written in several calls.
        number: (phase, slice) to InstanceNumber; the running number when not given.
        name: Running number to file name.

    Returns:
        Paths, by phase and slice.

    Raises:
        ValueError: The array's type or shape, the modality, or the number of `phases` is wrong.
    """
    array = volume.array[..., np.newaxis] if volume.array.ndim == 3 else volume.array
    modality = str(headers["Modality"])
    if modality not in SOP_CLASSES or array.dtype not in (np.int16, np.uint16) or array.ndim != 4:
        raise ValueError(f"{modality} series of {array.dtype} with {array.ndim - 1} axes")
    if phases and len(phases) != array.shape[3]:
        raise ValueError(f"{len(phases)} phase headers for {array.shape[3]} phases")
    dataset = _template(volume, headers, modality)
    changing = {key: value for key, value in headers.items() if callable(value)}
    positions = _lps(volume.geometry.affine)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[list[Path]] = []
    for phase in range(array.shape[3]):
        _fill(dataset, phases[phase] if phases else {})
        paths.append([])
        for index in range(array.shape[2]):
            running = first + phase * array.shape[2] + index
            instance = uid(headers["SeriesInstanceUID"], running)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = instance
            dataset.InstanceNumber = number(phase, index) if number else running
            dataset.ImagePositionPatient = _ds(positions[:3, 3] + index * positions[:3, 2])
            _fill(dataset, {key: value(index) for key, value in changing.items()})
            pixels = np.ascontiguousarray(array[:, :, index, phase].T).astype("<u2", copy=False)
            dataset.PixelData = pixels.tobytes()
            path = folder / name(running)
            dataset.save_as(path, enforce_file_format=True)
            paths[-1].append(path)
    return paths


def write_report(path: Path, headers: Mapping[str, Any], text: str) -> None:
    """Write a Basic Text SR object: a file of a study that is no image.

    Args:
        path: Its folder must exist.
        headers: Keyword to value; StudyInstanceUID and SeriesInstanceUID must be among them.
        text: The report's one paragraph.
    """
    dataset = _empty(TEXT_REPORT, uid(headers["SeriesInstanceUID"], 1))
    _fill(dataset, _STUDY | {"ContentDate": "20000101", "ContentTime": "120000"} | dict(headers))
    dataset.Modality = "SR"
    dataset.InstanceNumber = 1
    dataset.CompletionFlag, dataset.VerificationFlag = "COMPLETE", "UNVERIFIED"
    dataset.ReferencedPerformedProcedureStepSequence = []
    dataset.PerformedProcedureCodeSequence = []
    dataset.ValueType, dataset.ContinuityOfContent = "CONTAINER", "SEPARATE"
    dataset.ConceptNameCodeSequence = [_code("18748-4", "LN", "Diagnostic imaging report")]
    paragraph = Dataset()
    paragraph.RelationshipType, paragraph.ValueType = "CONTAINS", "TEXT"
    paragraph.ConceptNameCodeSequence = [_code("121071", "DCM", "Finding")]
    paragraph.TextValue = text
    dataset.ContentSequence = [paragraph]
    dataset.save_as(path, enforce_file_format=True)


def write_label(
    mask: Array, sources: Sequence[Path], labels: Sequence[Label], path: Path, *, author: str
) -> None:
    """Write a mask as DICOM SEG over a series that `write_series` wrote.

    Args:
        mask: (x, y, z), holding the labels' values.
        sources: The files of one phase, in the order of the slices.
        labels: What the values mean.
        path: Its folder must exist.
        author: Who drew it, in the place of a model's name.
    """
    images = [dcmread(source, stop_before_pixels=True) for source in sources]
    seg.save(seg.build(mask, images, labels, kind="binary", model=author), path)


def _empty(sop_class: UID, instance: UID) -> Dataset:
    """A data set with its file meta group, and nothing else but the class and instance UIDs."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = instance
    return dataset


def _template(volume: Volume, headers: Mapping[str, Any], modality: str) -> Dataset:
    """Everything that the images of the series have in common."""
    dataset = _empty(SOP_CLASSES[modality], UID(""))
    _fill(dataset, _STUDY | _IMAGE | _MODALITY[modality])
    affine = _lps(volume.geometry.affine)
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    dataset.ImageOrientationPatient = _ds(np.r_[affine[:3, 0] / steps[0], affine[:3, 1] / steps[1]])
    dataset.PixelSpacing = _ds(steps[[1, 0]])
    dataset.SliceThickness = _ds(steps[[2]])[0]
    frame = volume.geometry.frame_of_reference_uid
    dataset.FrameOfReferenceUID = frame or uid(headers["StudyInstanceUID"], "frame of reference")
    dataset.Columns, dataset.Rows = volume.array.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(volume.array.dtype == np.int16)
    if modality == "CT" or (volume.slope, volume.intercept) != (1.0, 0.0):
        dataset.RescaleSlope, dataset.RescaleIntercept = _ds([volume.slope, volume.intercept])
        dataset.RescaleType = "HU" if modality == "CT" else "US"
    _fill(dataset, {key: value for key, value in headers.items() if not callable(value)})
    return dataset


def _fill(dataset: Dataset, headers: Mapping[str, Any]) -> None:
    for keyword, value in headers.items():
        setattr(dataset, keyword, value)


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _lps(affine: Affine) -> Affine:
    """RAS+ to the patient axes of DICOM, whose x and y point the other way."""
    return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, dtype=np.float64)


def _ds(numbers: Any) -> list[str]:
    """Decimal strings of at most 16 characters, as near to the float64 numbers as those allow."""
    return [format_number_as_ds(float(one) + 0.0) for one in numbers]
