"""Which elements are read, and how their values become a `Header`."""

from __future__ import annotations

import math
from typing import Any

from medplat.dicom.header import Entry, Header, Identity
from medplat.dicom.raw import Raw, moment

CSA_IMAGE = 0x00291010
MOSAIC_TILES = 0x0019100A
_CONTRAST_SEQUENCE = 0x00180012
_LUT_SEQUENCE = 0x00283000
_NO_CONTRAST = frozenset({"NONE", "NO", "N", "0", "NO CONTRAST", "WITHOUT"})

# Elements whose texts identify somebody or some place, beside those with a field of their own.
_IDENTIFYING = (
    0x00080080,  # InstitutionName
    0x00080081,  # InstitutionAddress
    0x00080090,  # ReferringPhysicianName
    0x00081010,  # StationName
    0x00081040,  # InstitutionalDepartmentName
    0x00081048,  # PhysiciansOfRecord
    0x00081050,  # PerformingPhysicianName
    0x00081060,  # NameOfPhysiciansReadingStudy
    0x00081070,  # OperatorsName
    0x00101000,  # OtherPatientIDs
    0x00101001,  # OtherPatientNames
    0x00101005,  # PatientBirthName
    0x00101060,  # PatientMotherBirthName
    0x00321032,  # RequestingPhysician
)
# The technical allow-list of specs section 9: keyword, tag, kind.
_TECHNICAL: tuple[tuple[str, int, str], ...] = (
    ("Modality", 0x00080060, "word"),
    ("Manufacturer", 0x00080070, "text"),
    ("ManufacturerModelName", 0x00081090, "text"),
    ("MagneticFieldStrength", 0x00180087, "number"),
    ("SoftwareVersions", 0x00181020, "text"),
    ("BodyPartExamined", 0x00180015, "word"),
    ("PatientPosition", 0x00185100, "word"),
    ("ScanningSequence", 0x00180020, "words"),
    ("SequenceVariant", 0x00180021, "words"),
    ("MRAcquisitionType", 0x00180023, "word"),
    ("RepetitionTime", 0x00180080, "number"),
    ("EchoTime", 0x00180081, "number"),
    ("InversionTime", 0x00180082, "number"),
    ("FlipAngle", 0x00181314, "number"),
    ("PixelBandwidth", 0x00180095, "number"),
    ("SliceThickness", 0x00180050, "number"),
    ("SpacingBetweenSlices", 0x00180088, "number"),
    ("KVP", 0x00180060, "number"),
    ("XRayTubeCurrent", 0x00181151, "number"),
    ("ConvolutionKernel", 0x00181210, "words"),
    ("ImageType", 0x00080008, "words"),
    ("LossyImageCompression", 0x00282110, "word"),
    ("NumberOfTemporalPositions", 0x00200105, "number"),
    ("Units", 0x00541001, "word"),
    ("ViewPosition", 0x00185101, "word"),
    ("Laterality", 0x00200060, "word"),
    ("ImageLaterality", 0x00200062, "word"),
    ("PhotometricInterpretation", 0x00280004, "word"),
    ("PixelPaddingValue", 0x00280120, "short"),
    ("philips_precise_slope", 0x2005100E, "double"),
    ("philips_precise_intercept", 0x2005100D, "double"),
)
_OTHER = (
    0x00080005, 0x00080016, 0x00080018, 0x00080022, 0x00080023, 0x0008002A, 0x00080032, 0x00080033,
    0x00080050, 0x0008103E, 0x00089208, 0x00100010, 0x00100020, 0x00100021, 0x00100030, 0x00100040,
    0x00101010, 0x00180010, _CONTRAST_SEQUENCE, 0x00180086, 0x00181030, 0x00181060, 0x00181164,
    0x00189087, MOSAIC_TILES, 0x0019100C, 0x0020000D, 0x0020000E, 0x00200011, 0x00200012,
    0x00200013, 0x00200032, 0x00200037, 0x00200052, 0x00200100, 0x00280002, 0x00280006, 0x00280008,
    0x00280010, 0x00280011, 0x00280030, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280301,
    0x00281052, 0x00281053, _LUT_SEQUENCE, CSA_IMAGE, 0x01171034, 0x200510A0,
)  # fmt: skip
WANTED: tuple[int, ...] = tuple(
    sorted({*_IDENTIFYING, *_OTHER, *(tag for _, tag, _ in _TECHNICAL)})
)


def header(raw: Raw, entry: Entry, transfer_syntax: str, meta_class: str, meta_uid: str) -> Header:
    """Build the header of a classic image (or of the file as a whole, for the others).

    Args:
        raw: The elements.
        entry: The file.
        transfer_syntax: Of the file meta group.
        meta_class: MediaStorageSOPClassUID, which stands in for an absent SOPClassUID.
        meta_uid: MediaStorageSOPInstanceUID, likewise.
    """
    acquired, dated = _acquired(raw)
    bits = raw.short(0x00280100, 16)
    return Header(
        entry=entry,
        transfer_syntax=transfer_syntax,
        sop_class_uid=raw.word(0x00080016) or meta_class,
        sop_instance_uid=raw.word(0x00080018) or meta_uid,
        study_uid=raw.word(0x0020000D),
        series_uid=raw.word(0x0020000E),
        frame_of_reference_uid=raw.word(0x00200052),
        modality=raw.word(0x00080060),
        image_type=raw.words(0x00080008),
        series_number=raw.integer(0x00200011),
        instance_number=raw.integer(0x00200013),
        acquisition_number=raw.integer(0x00200012),
        series_description=raw.text(0x0008103E),
        protocol_name=raw.text(0x00181030),
        burned_in=raw.word(0x00280301) == "YES",
        rows=raw.short(0x00280010),
        columns=raw.short(0x00280011),
        frames=max(1, raw.integer(0x00280008) or 1),
        samples=raw.short(0x00280002, 1),
        photometric=raw.word(0x00280004),
        planar=raw.short(0x00280006),
        bits_allocated=bits,
        bits_stored=raw.short(0x00280101, bits),
        high_bit=raw.short(0x00280102, raw.short(0x00280101, bits) - 1),
        signed=raw.short(0x00280103) == 1,
        slope=_scale(raw, 0x00281053, 1.0),
        intercept=_scale(raw, 0x00281052, 0.0),
        has_modality_lut=_LUT_SEQUENCE in raw.elements,
        position=_three(raw.floats(0x00200032)),
        orientation=_exactly(raw.floats(0x00200037), 6),
        pixel_spacing=_pair(raw.floats(0x00280030)),
        imager_pixel_spacing=_pair(raw.floats(0x00181164)),
        slice_thickness=raw.number(0x00180050),
        spacing_between_slices=raw.number(0x00180088),
        echo_time=raw.number(0x00180081),
        echo_number=raw.integer(0x00180086),
        b_value=_b_value(raw),
        complex_component=raw.word(0x00089208),
        temporal_position=raw.integer(0x00200100),
        temporal_positions=raw.integer(0x00200105),
        trigger_time_ms=raw.number(0x00181060),
        acquired_us=acquired,
        acquired_dated=dated,
        content_us=raw.moment(0x00080023, 0x00080033)[0],
        begin_s=raw.doubles(0x01171034) or raw.doubles(0x200510A0),
        contrast=_contrast(raw),
        technical=_technical(raw),
        identity=_identity(raw),
    )


def _acquired(raw: Raw) -> tuple[int | None, bool]:
    both = raw.word(0x0008002A)
    if len(both) >= 10:
        return moment(both[:8], both[8:])
    return raw.moment(0x00080022, 0x00080032)


def _contrast(raw: Raw) -> bool | None:
    if raw.sequences.get(_CONTRAST_SEQUENCE) is not None:
        return True
    agent = raw.text(0x00180010).upper()
    return agent not in _NO_CONTRAST if agent else None


def _b_value(raw: Raw) -> float | None:
    for tag in (0x00189087, 0x0019100C):
        values = raw.doubles(tag)
        if values and 0 <= values[0] < 1e6:
            return values[0]
    return None


def _technical(raw: Raw) -> tuple[tuple[str, Any], ...]:
    found: list[tuple[str, Any]] = []
    for keyword, tag, kind in _TECHNICAL:
        if not raw.bytes(tag):
            continue
        value: Any
        if kind == "double":
            numbers = raw.doubles(tag)
            value = numbers[0] if len(numbers) == 1 else None
        else:
            value = getattr(raw, kind)(tag)
        if value not in (None, "", ()):
            found.append((keyword, value))
    return tuple(found)


def _identity(raw: Raw) -> Identity:
    patient_id, name = raw.text(0x00100020), raw.text(0x00100010)
    accession = raw.text(0x00080050)
    others = (raw.text(tag) for tag in _IDENTIFYING)
    return Identity(
        patient_id=patient_id,
        issuer=raw.text(0x00100021),
        patient_name=name,
        birth_date=raw.word(0x00100030),
        accession_number=accession,
        sex=raw.word(0x00100040),
        age=raw.word(0x00101010),
        texts=tuple(text for text in (patient_id, name, accession, *others) if text),
    )


def _scale(raw: Raw, tag: int, default: float) -> float:
    """A rescale value: the default where absent, not a number where it cannot be read."""
    value = raw.number(tag)
    if value is None:
        return math.nan if raw.word(tag) else default
    return value


def _exactly(values: tuple[float, ...], count: int) -> tuple[float, ...] | None:
    return values if len(values) == count else None


def _three(values: tuple[float, ...]) -> tuple[float, float, float] | None:
    return (values[0], values[1], values[2]) if len(values) == 3 else None


def _pair(values: tuple[float, ...]) -> tuple[float, float] | None:
    return (values[0], values[1]) if len(values) == 2 else None
