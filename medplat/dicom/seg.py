"""Label maps out to and in from DICOM SEG.

Written over the frames of the source, in its own grid, with the source's own positions, so that
nothing is ever flipped by the name of a plane. The same mask, source and model give the same bytes:
UIDs are hashes of these, and the content date is the source's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medplat import __version__, paths
from medplat.dicom.labels import LabelVolume, Segment
from medplat.dicom.segread import from_dataset, onto, read, read_apart, referenced
from medplat.errors import Refused
from medplat.types import Array
from medplat.workflow.schema import Code, Label

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medplat.dicom.header import Header
    from medplat.dicom.read import SeriesPlan

__all__ = [
    "Kind",
    "LabelVolume",
    "Segment",
    "build",
    "code_of",
    "from_dataset",
    "onto",
    "read",
    "read_apart",
    "referenced",
    "save",
    "warm_up",
    "write",
]

Kind = Literal["labelmap", "binary"]
PRIVATE_SCHEME = "99MEDPLAT"
_NEEDED = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
# SNOMED CT: neoplasm, lesion, mass, morphologically abnormal structure, malignant neoplasm (two),
# carcinoma: Morphologically Abnormal Structure is their category, Anatomical Structure all others'.
_ABNORMAL = frozenset(
    {"108369006", "52988006", "4147007", "49755003", "363346000", "367651003", "68453008"}
)


def code_of(label: Label) -> Code:
    """The label's own code, else one of the private scheme 99MEDPLAT with the label's name."""
    return label.code or Code(
        value=label.name.upper()[:16], scheme=PRIVATE_SCHEME, meaning=label.name[:64]
    )


def write(
    mask: Array,
    plan: SeriesPlan,
    labels: Sequence[Label],
    path: Path,
    *,
    kind: Kind = "labelmap",
    model: str = "medplat",
    version: str = "",
    weights_sha256: str = "",
    phase: int = 0,
) -> str:
    """Write a mask as DICOM SEG over the series it was made from.

    Args:
        mask: (x, y, z) of the plan's grid, holding the labels' values; 0 is background.
        plan: The source series.
        labels: What the values mean.
        path: The file to write; it appears whole or not at all.
        kind: "labelmap" (RLE), or "binary" for archives and viewers that do not know LABELMAP.
        model: Name of the model, for the algorithm identification and SeriesDescription.
        version: Its version.
        weights_sha256: Digest of its weights.
        phase: The phase of a dynamic series whose frames are referenced.

    Returns:
        sha256 of the file.

    Raises:
        Refused: NO_UID where the study, series or frame of reference UID of the source is empty;
            MULTIFRAME where the source is no series of single-frame images.
    """
    frames = plan.frames[phase]
    if "NO_UID" in plan.series.codes:
        raise Refused(
            "NO_UID", "seg.dcm is not written: study or series UID of the source is empty"
        )
    if any(frame.frames > 1 or frame.mosaic is not None for frame in frames):
        raise Refused("MULTIFRAME", "seg.dcm is not written: the source is a multi-frame object")
    built = build(
        mask,
        [_dataset(frame) for frame in frames],
        labels,
        kind=kind,
        model=model,
        version=version,
        weights_sha256=weights_sha256,
    )
    return save(built, path)


def build(
    mask: Array,
    sources: Sequence[Dataset],
    labels: Sequence[Label],
    *,
    kind: Kind = "labelmap",
    model: str = "medplat",
    version: str = "",
    weights_sha256: str = "",
    omit_empty: bool = True,
) -> Dataset:
    """The DICOM SEG of `write` as a pydicom data set.

    Args:
        mask: (x, y, z): `mask[:, :, k].T` is the mask of `sources[k]`.
        sources: Single-frame images in the order of the mask's slices; pixels are not needed.
        labels: What the values mean.
        kind: As in `write`.
        model: As in `write`.
        version: As in `write`.
        weights_sha256: As in `write`.
        omit_empty: Leave out frames without any label (an all-empty mask keeps all).

    Raises:
        Refused: NO_UID, as in `write`.
        ValueError: Shapes differ, or the mask holds a value without a label.
    """
    import highdicom
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    ordered = sorted(labels, key=lambda label: label.value)
    _check(mask, sources, ordered)
    filled = [_filled(source) for source in sources]
    first = filled[0]
    numbers = [one.value if kind == "labelmap" else at + 1 for at, one in enumerate(ordered)]
    pixels = np.zeros(mask.shape, np.uint8 if max(numbers) < 256 else np.uint16)
    for number, label in zip(numbers, ordered, strict=True):
        pixels[mask == label.value] = number
    words = (str(first.SeriesInstanceUID), model, version, weights_sha256, kind, __version__)
    series_uid = uid_from("seg series", *words)
    meaning = repr([(one.value, one.name, code_of(one)) for one in ordered])
    digest = hashlib.sha256(pixels.tobytes() + meaning.encode()).hexdigest()
    date, time = _content_time(first)
    built: Dataset = highdicom.seg.Segmentation(
        source_images=filled,
        pixel_array=np.ascontiguousarray(pixels.transpose(2, 1, 0)),
        segmentation_type=kind.upper(),
        segment_descriptions=_descriptions(ordered, numbers, model, version, weights_sha256),
        series_instance_uid=series_uid,
        series_number=1000 + int(first.get("SeriesNumber") or 0) % 9000,
        sop_instance_uid=uid_from(series_uid, digest),
        instance_number=1,
        manufacturer="medplat",
        manufacturer_model_name="medplat",
        software_versions=__version__,
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description=f"Segmentation by {model}"[:64],
        series_description=f"{model} {version}".strip()[:64],
        transfer_syntax_uid=RLELossless if kind == "labelmap" else ExplicitVRLittleEndian,
        pixel_measures=_measures(filled),
        omit_empty_frames=omit_empty,
        content_date=date,
        content_time=time,
    )
    _settle(built, series_uid)
    return built


def warm_up() -> None:
    """Import highdicom now (seconds), so that the first `write` need not."""
    import highdicom  # noqa: F401


def save(built: Dataset, path: Path) -> str:
    """Write a data set, whole or not at all; returns the sha256 of the file."""
    with paths.whole(path) as part:
        built.save_as(part, enforce_file_format=True)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def uid_from(*words: str) -> str:
    """A UID that is a hash of `words`."""
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=["\0".join(("medplat", *words))]))


def _check(mask: Array, sources: Sequence[Dataset], labels: Sequence[Label]) -> None:
    grid = (int(sources[0].Columns), int(sources[0].Rows), len(sources))
    if mask.shape != grid:
        raise ValueError(f"the mask has shape {mask.shape}, the source {grid}")
    unknown = set(np.unique(mask).tolist()) - {0, *(label.value for label in labels)}
    if unknown:
        raise ValueError(f"the mask holds values without a label: {sorted(unknown)}")
    for source in sources:
        if not (source.get("StudyInstanceUID") and source.get("SeriesInstanceUID")):
            raise Refused(
                "NO_UID", "seg.dcm is not written: study or series UID of the source is empty"
            )
        if "ImagePositionPatient" in source and not source.get("FrameOfReferenceUID"):
            raise Refused(
                "NO_UID", "seg.dcm is not written: the source has no frame of reference UID"
            )


def _valid(keyword: str, value: str) -> bool:
    """Whether a date, time or sex is one: anonymisers leave words in their place."""
    from pydicom.valuerep import DA, TM

    try:
        if keyword.endswith("Date"):
            DA(value)
        elif keyword.endswith("Time"):
            TM(value)
    except ValueError:
        return False
    return keyword != "PatientSex" or value in ("", "F", "M", "O")


def _filled(source: Dataset) -> Dataset:
    """A copy with what highdicom asks for and a de-identified export may lack."""
    copy = deepcopy(source)
    for keyword in _NEEDED:
        if keyword not in copy or not _valid(keyword, str(copy.get(keyword) or "")):
            setattr(copy, keyword, "")
    meta = getattr(source, "file_meta", None)
    for keyword, other in (
        ("SOPClassUID", "MediaStorageSOPClassUID"),
        ("SOPInstanceUID", "MediaStorageSOPInstanceUID"),
    ):
        if not copy.get(keyword) and meta is not None:
            setattr(copy, keyword, meta.get(other, ""))
    return copy


def _descriptions(
    labels: Sequence[Label], numbers: Sequence[int], model: str, version: str, weights_sha256: str
) -> list[Any]:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model[:64],
        family=codes.cid7162.ArtificialIntelligence,
        version=(version or "0")[:64],
        parameters={"weights_sha256": weights_sha256} if weights_sha256 else None,
    )
    found = []
    for number, label in zip(numbers, labels, strict=True):
        code = code_of(label)
        abnormal = code.scheme == "SCT" and code.value in _ABNORMAL
        category = codes.SCT.MorphologicallyAbnormalStructure if abnormal else None
        found.append(
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=label.name[:64],
                segmented_property_category=category or codes.SCT.AnatomicalStructure,
                segmented_property_type=highdicom.sr.CodedConcept(
                    code.value, code.scheme, code.meaning
                ),
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
            )
        )
    return found


def _measures(sources: Sequence[Dataset]) -> Any:
    """Pixel spacing of the source, and the distance of its slices as their positions give it."""
    import highdicom

    first, last = sources[0], sources[-1]
    if "ImagePositionPatient" not in first or "PixelSpacing" not in first:
        return None
    step = None
    if len(sources) > 1:
        way = np.subtract(last.ImagePositionPatient, first.ImagePositionPatient, dtype=np.float64)
        step = float(np.linalg.norm(way)) / (len(sources) - 1)
    thickness = first.get("SliceThickness") or step
    return highdicom.PixelMeasuresSequence(
        pixel_spacing=[float(one) for one in first.PixelSpacing],
        slice_thickness=None if thickness is None else float(thickness),
        spacing_between_slices=None if step is None else round(step, 6),
    )


def _content_time(source: Dataset) -> tuple[Any, Any]:
    """Date and time of the source: the same input gives the same file."""
    from pydicom.valuerep import DA, TM

    for what in ("Content", "Acquisition", "Series", "Study"):
        date, time = (str(source.get(f"{what}{kind}") or "") for kind in ("Date", "Time"))
        if date and _valid("Date", date):
            return DA(date), TM(time if time and _valid("Time", time) else "000000")
    return DA("19000101"), TM("000000")


def _settle(built: Dataset, series_uid: str) -> None:
    """Replace what would differ from run to run."""
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in built:
            delattr(built, keyword)
    for equipment in built.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in equipment:
            del equipment.ContributionDateTime
    organization = uid_from(series_uid, "dimensions")
    for one in (*built.DimensionOrganizationSequence, *built.DimensionIndexSequence):
        one.DimensionOrganizationUID = organization


def _dataset(header: Header) -> Dataset:
    import pydicom

    from medplat.dicom.source import open_entry

    with open_entry(header.entry) as file:
        found = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    found.buffer = None  # of an archive's member: closed by now, and copying it would warn
    return found
