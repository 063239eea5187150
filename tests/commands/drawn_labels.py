"""Labels as the drawing tools write them, faults included; nothing of `medplat` is used.

A drawing is a grid (affine in RAS+ mm), an array of values and names. `WRITERS` put it into five
formats; `FAULTS` spoil it before it is written, each with the code that must come of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Drawing:
    """`layers` (n, x, y, z) hold 0 and 1: layer k is the structure `names[k]`, value k + 1."""

    layers: np.ndarray
    affine: np.ndarray
    names: tuple[str, ...]
    series_uid: str
    sources: tuple[Path, ...] = ()
    named: tuple[bool, ...] = field(default=(True, True))

    @property
    def values(self) -> np.ndarray:
        found = np.zeros(self.layers.shape[1:], np.uint8)
        for value, layer in enumerate(self.layers, start=1):
            found[layer > 0] = value
        return found

    @property
    def table(self) -> dict[str, str]:
        rows = zip(self.names, self.named, strict=True)
        return {str(v): name for v, (name, known) in enumerate(rows, start=1) if known}

    @property
    def overlapping(self) -> bool:
        return bool((self.layers.sum(axis=0) > 1).any())


def write_nifti(drawing: Drawing, folder: Path) -> Path:
    """NIfTI with an ITK-SNAP label description; overlapping structures as a fourth axis."""
    path = folder / f"{drawing.series_uid}.nii.gz"
    array = np.moveaxis(drawing.layers, 0, 3) if drawing.overlapping else drawing.values
    nib.save(nib.Nifti1Image(array.astype(np.uint8), drawing.affine), path)
    lines = ["# ITK-SnAP Label Description File", '    0  0 0 0  0  0  0  "Clear Label"']
    lines += [f'    {v}  255 0 0  1  1  1  "{name}"' for v, name in drawing.table.items()]
    (folder / f"{drawing.series_uid}.txt").write_text("\n".join(lines))
    return path


def _image(drawing: Drawing, array: np.ndarray, *, vector: bool) -> Any:
    image = sitk.GetImageFromArray(array, isVector=vector)
    lps = RAS @ drawing.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def write_mha(drawing: Drawing, folder: Path) -> Path:
    """MetaImage with a JSON of names; overlapping structures as components."""
    path = folder / f"{drawing.series_uid}.mha"
    if drawing.overlapping:
        array = np.ascontiguousarray(drawing.layers.transpose(3, 2, 1, 0).astype(np.uint8))
        image = _image(drawing, array, vector=True)
    else:
        image = _image(drawing, np.ascontiguousarray(drawing.values.T), vector=False)
    sitk.WriteImage(image, str(path), useCompression=True)
    (folder / f"{drawing.series_uid}.json").write_text(json.dumps(drawing.table))
    return path


def write_seg_nrrd(drawing: Drawing, folder: Path) -> Path:
    """3D Slicer's segmentation: cropped to what is drawn, names in the header, layers."""
    path = folder / f"{drawing.series_uid}.seg.nrrd"
    drawn = np.argwhere(drawing.layers.any(axis=0))
    low = drawn.min(axis=0) if len(drawn) else np.zeros(3, int)
    high = drawn.max(axis=0) + 1 if len(drawn) else np.array([1, 1, 1])
    part = (slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
    cropped = drawing.affine.copy()
    cropped[:3, 3] += drawing.affine[:3, :3] @ low
    there = replace(drawing, layers=drawing.layers[part], affine=cropped)
    if drawing.overlapping:
        array = np.ascontiguousarray(there.layers.transpose(3, 2, 1, 0).astype(np.uint8))
        image = _image(there, array, vector=True)
    else:
        image = _image(there, np.ascontiguousarray(there.values.T), vector=False)
    image.SetMetaData(
        "Segmentation_ReferenceImageExtentOffset", " ".join(str(int(one)) for one in low)
    )
    for at, (name, known) in enumerate(zip(drawing.names, drawing.named, strict=True)):
        if not known:
            continue
        layer = at if drawing.overlapping else 0
        tags = "Segmentation.Status:inprogress|TerminologyEntry:Slicer list~SCT^49755003^Abnormal"
        tags += "~SCT^4147007^Mass~^^~Anatomic codes~^^~^^|"
        for key, value in (
            ("ID", f"Segment_{at + 1}"),
            ("Name", name),
            ("LabelValue", str(1 if drawing.overlapping else at + 1)),
            ("Layer", str(layer)),
            ("Tags", tags),
        ):
            image.SetMetaData(f"Segment{at}_{key}", value)
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def _plane(affine: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Position, row and column directions and spacing of a slice, in LPS."""
    lps = RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    return lps[:3, 3] + k * lps[:3, 2], directions[:, 0], directions[:, 1], spacing


def write_seg(drawing: Drawing, folder: Path) -> Path:
    """A BINARY segmentation, a frame a slice and structure; empty ones are left out."""
    ds = _object("1.2.840.10008.5.1.4.1.1.66.4", "SEG", drawing)
    ds.SegmentationType = "BINARY"
    ds.Rows, ds.Columns = drawing.layers.shape[2], drawing.layers.shape[1]
    ds.BitsAllocated = ds.BitsStored = 1
    ds.HighBit = ds.PixelRepresentation = 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    reference = Dataset()
    reference.SeriesInstanceUID = drawing.series_uid
    ds.ReferencedSeriesSequence = [reference]
    ds.SegmentSequence = []
    for value, name in drawing.table.items():
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = int(value), name
        ds.SegmentSequence.append(segment)
    shared, measures = Dataset(), Dataset()
    spacing = _plane(drawing.affine, 0)[3]
    measures.PixelSpacing = [round(float(one), 9) for one in (spacing[1], spacing[0])]
    measures.SpacingBetweenSlices = round(float(spacing[2]), 9)
    shared.PixelMeasuresSequence = [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames, bits = [], []
    for number, layer in enumerate(drawing.layers, start=1):
        for k in range(layer.shape[2]):
            if not layer[:, :, k].any() and drawing.layers.any():
                continue
            frames.append(_frame(drawing.affine, k, number))
            bits.append(layer[:, :, k].T.astype(np.uint8).ravel())
    ds.PerFrameFunctionalGroupsSequence = frames
    ds.NumberOfFrames = len(frames)
    packed = np.packbits(np.concatenate(bits), bitorder="little").tobytes()
    ds.PixelData = packed + b"\0" * (len(packed) % 2)
    return _save(ds, folder / "drawn.seg")


def _frame(affine: np.ndarray, k: int, number: int) -> Dataset:
    position, row, column, _ = _plane(affine, k)
    frame, place, way, segment = Dataset(), Dataset(), Dataset(), Dataset()
    place.ImagePositionPatient = [f"{one:.9f}"[:16] for one in position]
    way.ImageOrientationPatient = [f"{one:.12f}"[:16] for one in (*row, *column)]
    segment.ReferencedSegmentNumber = number
    frame.PlanePositionSequence, frame.PlaneOrientationSequence = [place], [way]
    frame.SegmentIdentificationSequence = [segment]
    return frame


def write_rtstruct(drawing: Drawing, folder: Path) -> Path:
    """A structure set: each voxel that is set becomes a square contour around its centre."""
    loops = {
        number: [
            np.array([(i - 0.4, j - 0.4, k), (i + 0.4, j - 0.4, k), (i + 0.4, j + 0.4, k),
                      (i - 0.4, j + 0.4, k)])
            for i, j, k in np.argwhere(layer)
        ]
        for number, layer in enumerate(drawing.layers, start=1)
    }  # fmt: skip
    return write_contours(drawing, loops, folder / "rtss.dcm")


def write_contours(drawing: Drawing, loops: dict[int, list[np.ndarray]], path: Path) -> Path:
    """A structure set of closed contours given in voxel indices."""
    ds = _object("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT", drawing)
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = drawing.series_uid
    study.RTReferencedSeriesSequence = [series]
    frame.RTReferencedStudySequence = [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    lps = RAS @ drawing.affine
    for number, found in loops.items():
        if str(number) in drawing.table:
            roi = Dataset()
            roi.ROINumber, roi.ROIName = number, drawing.table[str(number)]
            ds.StructureSetROISequence.append(roi)
        contours = Dataset()
        contours.ReferencedROINumber = number
        contours.ContourSequence = []
        for loop in found:
            contour = Dataset()
            points = loop @ lps[:3, :3].T + lps[:3, 3]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{one:.6f}"[:16] for one in points.ravel()]
            contours.ContourSequence.append(contour)
        ds.ROIContourSequence.append(contours)
    return _save(ds, path)


def _object(sop_class: str, modality: str, drawing: Drawing) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.Modality = modality
    return ds


def _save(ds: Dataset, path: Path) -> Path:
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


WRITERS: dict[str, Callable[[Drawing, Path], Path]] = {
    "nifti": write_nifti,
    "seg.nrrd": write_seg_nrrd,
    "mha": write_mha,
    "seg": write_seg,
    "rtstruct": write_rtstruct,
}


def _moved(drawing: Drawing, *, by: tuple[float, float, float]) -> Drawing:
    affine = drawing.affine.copy()
    affine[:3, 3] += drawing.affine[:3, :3] @ by
    return replace(drawing, affine=affine)


def _rotated(drawing: Drawing) -> Drawing:
    angle = np.radians(7.0)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return replace(drawing, affine=turn @ drawing.affine)


def _overlapping(drawing: Drawing) -> Drawing:
    layers = drawing.layers.copy()
    layers[1] |= layers[0]
    return replace(drawing, layers=layers)


def _half_slice(drawing: Drawing) -> Drawing:
    return _moved(drawing, by=(0, 0, 0.5))


FAULTS: dict[str, tuple[str, Callable[[Drawing], Drawing]]] = {
    "slice distance 10 % off": (
        "LABEL_GRID_MISMATCH",
        lambda d: replace(d, affine=d.affine @ np.diag([1, 1, 1.1, 1])),
    ),
    "half a slice off": ("LABEL_GRID_MISMATCH", _half_slice),
    "rotated by 7 degrees": ("LABEL_GRID_MISMATCH", _rotated),
    "some slices outside": ("LABEL_OUTSIDE", lambda d: _moved(d, by=(0, 0, 3))),
    "some columns outside": ("LABEL_OUTSIDE", lambda d: _moved(d, by=(4, 0, 0))),
    "LPS taken for RAS": ("LABEL_FLIPPED", lambda d: replace(d, affine=RAS @ d.affine)),
    "sign of z wrong": (
        "LABEL_FLIPPED",
        lambda d: replace(d, affine=np.diag([1.0, 1, -1, 1]) @ d.affine),
    ),
    "a value without a name": (
        "LABEL_UNKNOWN_VALUE",
        lambda d: replace(d, named=(True, False)),
    ),
    "nothing drawn": ("LABEL_EMPTY", lambda d: replace(d, layers=np.zeros_like(d.layers))),
    "two structures overlap": ("LABEL_OVERLAP", _overlapping),
    "another series": (
        "LABEL_WRONG_SERIES",
        lambda d: replace(d, series_uid=d.series_uid + ".77"),
    ),
}
