"""What the parts of medplat hand to one another: frozen dataclasses, no behaviour.

Arrays are (x, y, z[, t]); the world is RAS+ millimetres; voxel axes stay DICOM's (column, row,
slice).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Affine = npt.NDArray[np.float64]
SeriesStatus = Literal["converted", "warned", "skipped", "rejected", "failed"]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxels of a volume lie.

    Attributes:
        affine: (4, 4) float64, voxel index (i, j, k) to RAS+ mm.
        shape: Voxels along x, y, z.
        orientation: "unknown" when directions and origin are not those of the patient (CR, DX, MG,
            pictures, files whose spacing came from a table); lengths in mm still hold.
        frame_of_reference_uid: DICOM (0020,0052), where known.
    """

    affine: Affine
    shape: tuple[int, int, int]
    orientation: Literal["known", "unknown"] = "known"
    frame_of_reference_uid: str | None = None


@dataclass(frozen=True, eq=False)
class Volume:
    """Stored values and their geometry; the real value is stored * slope + intercept.

    Attributes:
        array: (x, y, z) or (x, y, z, t), in the type the scanner stored.
        geometry: Where the voxels lie.
        slope: Rescale slope, one for the whole array.
        intercept: Rescale intercept, one for the whole array.
        phase_times_s: Seconds from the first phase, one for each t; None where no time is known.
        metadata: What goes into the sidecar beside geometry: an allow-list, no identifiers.
    """

    array: Array
    geometry: Geometry
    slope: float = 1.0
    intercept: float = 0.0
    phase_times_s: tuple[float, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """What is known of one series without its pixels: enough to choose it for an input.

    Attributes:
        series_uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        case: Pseudonym of the study, or the dataset plugin's id.
        patient: Pseudonym of PatientID and its issuer.
        modality: DICOM modality ("CT", "MR" ...).
        number: SeriesNumber.
        description: SeriesDescription with identifying tokens taken out.
        image_type: ImageType values.
        orientation: The plane of the slices: "axial", "coronal", "sagittal" or "oblique".
        shape: Voxels (x, y, z[, t]).
        spacing_mm: Distances of voxel centres along x, y, z.
        slice_thickness_mm: SliceThickness.
        contrast: True when a contrast agent is named in the header; None where not stated.
        phase_times_s: Seconds from the first phase.
        study_time_s: Seconds from the first acquisition of the study.
        frame_of_reference_uid: DICOM (0020,0052).
        status: Verdict.
        codes: Verdict codes, see `medplat show codes`.
        messages: One sentence a code, in the same order; then remarks.
        path: The NIfTI file, once written.
    """

    series_uid: str
    study_uid: str
    case: str
    patient: str
    modality: str
    number: int | None = None
    description: str = ""
    image_type: tuple[str, ...] = ()
    orientation: str | None = None
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    slice_thickness_mm: float | None = None
    contrast: bool | None = None
    phase_times_s: tuple[float, ...] | None = None
    study_time_s: float | None = None
    frame_of_reference_uid: str | None = None
    status: SeriesStatus = "converted"
    codes: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    path: Path | None = None


@dataclass(frozen=True)
class Image:
    """One image of a case: a NIfTI file or a picture, and which phase (None: the file is 3-D)."""

    path: Path
    phase: int | None = None


@dataclass(frozen=True)
class Case:
    """One study of one patient, as a dataset plugin gives it.

    Attributes:
        case: Unique in the data set, fit for a file name.
        patient: Every split groups by it.
        images: Input name to image. Empty while `series` still has to be chosen from.
        series: Converted series of the study, from which the workflow's `inputs` choose.
        label: Label map file, for segment; the reference image, for restore.
        target: Class name, for classify.
        split: "train", "validation" or "test" where the data set fixes it.
        codes: Warnings that the case carries ("GEOMETRY_FROM_TABLE" ...).
        columns: Further columns of the table, for subgroups.
    """

    case: str
    patient: str
    images: Mapping[str, Image] = field(default_factory=dict)
    series: tuple[Series, ...] = ()
    label: Path | None = None
    target: str | None = None
    split: str | None = None
    codes: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)


class Task(NamedTuple):
    """What a network must fit: the second argument of a model plugin's `build`.

    `kind` is "segment", "classify" or "restore"; `out_channels` counts the background for segment.
    `spatial_dims` 1 is a bag: (B, features, vectors). `upscale` is the factor of restore.
    """

    kind: str
    spatial_dims: int
    in_channels: int
    out_channels: int
    upscale: int = 1


@dataclass(frozen=True)
class Count:
    """A parameter integer that is under test: this configuration on this task has this many."""

    label: str
    task: Task
    options: Mapping[str, Any]
    parameters: int


@dataclass(frozen=True)
class Card:
    """What a model plugin says of itself.

    Attributes:
        title: One line.
        paper: Authors, title, year, DOI or arXiv number.
        fidelity: "verified", "reconstruction" or "inspired" (DESIGN section 5).
        why: Why this class; for a reconstruction, the open choices by name.
        upstream_licence: Licence of the authors' code and weights.
        counts: Parameter integers under test.
        deviations: Known differences from the original.
        kinds: Task kinds that the plugin serves.
        spatial_dims: Dimensions that the plugin serves.
        multiple: Input sizes must be multiples of this; 1 where any size works.
        fixed_size: True when the weights depend on the input size; the network's `input_size` is
            the one it takes.
        unused: Patterns of parameters that the original has and never uses, kept for their names.
        codes: Label name to SNOMED CT code, where the plugin itself knows its labels.
    """

    title: str
    paper: str
    fidelity: Literal["verified", "reconstruction", "inspired"]
    why: str
    upstream_licence: str
    counts: tuple[Count, ...]
    deviations: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("segment",)
    spatial_dims: tuple[int, ...] = (2, 3)
    multiple: int = 1
    fixed_size: bool = False
    unused: tuple[str, ...] = ()
    codes: Mapping[str, str] = field(default_factory=dict)
