"""Which elements are read, and how their values become a `Header`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from medplat.dicom import nested
from medplat.dicom.header import Entry, Header, Identity, Vector
from medplat.dicom.raw import Raw, moment

SHARED_GROUPS, FRAME_GROUPS = 0x52009229, 0x52009230
EXTENDED_OFFSETS = 0x7FE00001
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
    ("DecayCorrection", 0x00541102, "word"),
)
# Private elements by name: creator, group, element. A PACS may move them to another block.
_PRIVATE: dict[str, tuple[str, int, int]] = {
    "csa": ("SIEMENS CSA HEADER", 0x0029, 0x10),
    "mosaic_tiles": ("SIEMENS MR HEADER", 0x0019, 0x0A),
    "siemens_b": ("SIEMENS MR HEADER", 0x0019, 0x0C),
    "siemens_gradient": ("SIEMENS MR HEADER", 0x0019, 0x0E),
    "ge_b": ("GEMS_PARM_01", 0x0043, 0x39),
    "ge_timer": ("GEMS_RELA_01", 0x0021, 0x5E),
    "philips_b": ("Philips Imaging DD 001", 0x2001, 0x03),
    "philips_begin": ("Philips MR Imaging DD 001", 0x2005, 0xA0),
    "philips_precise_slope": ("Philips MR Imaging DD 001", 0x2005, 0x0E),
    "philips_precise_intercept": ("Philips MR Imaging DD 001", 0x2005, 0x0D),
    "uih_b": ("Image Private Header", 0x0065, 0x09),
}
# What `deidentify` keeps of them: numbers, no header that also holds texts.
SAFE_PRIVATE = frozenset(place for name, place in _PRIVATE.items() if name != "csa")
# The elements whose words identify, for `deidentify`.
IDENTITY = frozenset({*_IDENTIFYING, 0x00100020, 0x00100010, 0x00080050})
_NOWHERE = Entry("", Path())
_MAPPING = 0x00409096
_MAPPING_TREE = {
    0x00409224: None, 0x00409225: None, 0x004008EA: {0x00080100: None},
}  # fmt: skip
_TRACER = 0x00540016
_TRACER_TREE = {0x00181072: None, 0x00181074: None, 0x00181075: None, 0x00181078: None}
_DIFFUSION = 0x00189076
# The visit of a trial, T0, T1 ...: no other text of these passes.
_VISIT = re.compile(r"(?:^|[^A-Za-z0-9])(T\d)\s*$", re.IGNORECASE)
_VISITS = (("ClinicalTrialTimePointID", 0x00120050), ("StudyDescriptionEnds", 0x00081030))
_DIMENSIONS = 0x00209157
_OTHER = (
    0x00080005, 0x00080016, 0x00080018, 0x00080022, 0x00080023, 0x0008002A, 0x00080032, 0x00080033,
    0x00080050, 0x0008103E, 0x00089208, 0x00100010, 0x00100020, 0x00100021, 0x00100030, 0x00100040,
    0x00101010, 0x00180010, _CONTRAST_SEQUENCE, 0x00180086, 0x00181030, 0x00181060, 0x00181164,
    0x00189087, 0x00189089, _DIFFUSION, 0x0020000D, 0x0020000E, 0x00200011, 0x00200012,
    0x00200013, 0x00200032, 0x00200037, 0x00200052, 0x00200100, 0x00280002, 0x00280006, 0x00280008,
    0x00280010, 0x00280011, 0x00280030, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280301,
    0x00281052, 0x00281053, _LUT_SEQUENCE, 0x01171034, 0x00209161, 0x00209162, 0x00209163,
    _MAPPING, _TRACER, 0x00101030, 0x00080031, 0x00080021, 0x00120050, 0x00081030,
    SHARED_GROUPS, FRAME_GROUPS, EXTENDED_OFFSETS,
)  # fmt: skip
_BLOCKS = range(0x10, 0x20)


def _placed(names: Iterable[str]) -> frozenset[int]:
    """The tags that private elements have in any block."""
    return frozenset(
        group << 16 | block << 8 | element
        for _, group, element in map(_PRIVATE.__getitem__, names)
        for block in _BLOCKS
    )


WANTED = (
    frozenset({*_IDENTIFYING, *_OTHER, *(tag for _, tag, _ in _TECHNICAL)})
    | frozenset(group << 16 | block for _, group, _ in _PRIVATE.values() for block in _BLOCKS)
    | _placed(_PRIVATE)
)
_CURRENT = 0x00181151
# What mostly differs from image to image: `_own_fields` reads these, and of the CSA header only
# mosaics use anything. All other elements are parsed once for the images that share them.
_OWN = _placed(("csa", "ge_timer", "philips_begin")) | {
    0x00080018, 0x00080022, 0x00080023, 0x0008002A, 0x00080032, 0x00080033, 0x00181060, _CURRENT,
    0x00200012, 0x00200013, 0x00200032, 0x00200100, 0x0020930D, 0x01171034, EXTENDED_OFFSETS,
}  # fmt: skip


def private(raw: Raw, name: str) -> int:
    """The tag that a private element has in this data set, wherever its block was moved to.

    Where no creator of the group is stated, the block that scanners use (10) is taken.
    """
    creator, group, element = _PRIVATE[name]
    if raw.groups is not None and group not in raw.groups:
        return 0
    named = False
    for block in _BLOCKS:
        stated = raw.elements.get(group << 16 | block)
        if stated is None:
            continue
        named = True
        if stated.strip(b" \0") == creator.encode():
            return group << 16 | block << 8 | element
    return 0 if named else group << 16 | 0x1000 | element


def header(raw: Raw, entry: Entry, transfer_syntax: str, meta_class: str, meta_uid: str) -> Header:
    """Build the header of a classic image (or of the file as a whole, for the others).

    Args:
        raw: The elements.
        entry: The file.
        transfer_syntax: Of the file meta group.
        meta_class: MediaStorageSOPClassUID, which stands in for an absent SOPClassUID.
        meta_uid: MediaStorageSOPInstanceUID, likewise.
    """
    # The functional groups of multi-frame images are large, and no two files share them.
    read = _parsed if FRAME_GROUPS in raw.sequences else _shared
    whole = read(_Stable(raw, transfer_syntax, meta_class))
    return whole.changed(
        entry=entry,
        sop_instance_uid=raw.word(0x00080018) or meta_uid,
        technical=_with_current(whole.technical, raw),
        **_own_fields(raw),
    )


class _Stable:
    """The elements that images of a series share, as a key."""

    def __init__(self, raw: Raw, transfer_syntax: str, meta_class: str) -> None:
        self.raw, self.transfer_syntax, self.meta_class = raw, transfer_syntax, meta_class
        elements = [one for one in raw.elements.items() if one[0] not in _OWN]
        lacks_current = raw.number(_CURRENT) is None
        encoding = raw.order, transfer_syntax, meta_class
        self._key = (encoding, lacks_current, *elements, *raw.sequences.items())
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stable) and self._key == other._key


def forget() -> None:
    """Let go of what was kept of the headers that were read: it holds names."""
    _shared.cache_clear()


def _parsed(stable: _Stable) -> Header:
    """A header without what only the one image has."""
    raw = stable.raw
    bits = raw.short(0x00280100, 16)
    return Header(
        entry=_NOWHERE,
        transfer_syntax=stable.transfer_syntax,
        sop_class_uid=raw.word(0x00080016) or stable.meta_class,
        study_uid=raw.word(0x0020000D),
        series_uid=raw.word(0x0020000E),
        frame_of_reference_uid=raw.word(0x00200052),
        modality=raw.word(0x00080060),
        series_number=raw.integer(0x00200011),
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
        has_modality_lut=_LUT_SEQUENCE in raw.elements,
        imager_pixel_spacing=_pair(raw.floats(0x00181164)),
        temporal_positions=raw.integer(0x00200105),
        contrast=_contrast(raw),
        part=_part(raw),
        identity=_identity(raw),
        **_stack_fields(raw, technical(raw)),
    )


_shared = lru_cache(maxsize=64)(_parsed)


def _with_current(shared: tuple[tuple[str, Any], ...], raw: Raw) -> tuple[tuple[str, Any], ...]:
    """The technical values with the tube current of this image, which modern scanners modulate."""
    own = "XRayTubeCurrent", raw.number(_CURRENT)
    if own[1] is None or own in shared:
        return shared
    return tuple(own if one[0] == own[0] else one for one in shared)


def image_fields(raw: Raw, technical: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """The fields of a header that may differ between the frames of one file.

    Args:
        raw: The elements of a classic image; of a frame, laid under the same tags.
        technical: From `technical`.
    """
    return {**_stack_fields(raw, technical), **_own_fields(raw)}


def _stack_fields(raw: Raw, technical: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Those of them that images of a stack mostly share."""
    mapping = dict(technical)
    return {
        "image_type": raw.words(0x00080008),
        "slope": _scale(raw, 0x00281053, mapping.get("real_world_value_slope", 1.0)),
        "intercept": _scale(raw, 0x00281052, mapping.get("real_world_value_intercept", 0.0)),
        "orientation": _exactly(raw.floats(0x00200037), 6),
        "pixel_spacing": _pair(raw.floats(0x00280030)),
        "slice_thickness": raw.number(0x00180050),
        "spacing_between_slices": raw.number(0x00180088),
        "echo_time": raw.number(0x00180081),
        "echo_number": raw.integer(0x00180086),
        "b_value": _b_value(raw),
        "gradient": _gradient(raw),
        "complex_component": raw.word(0x00089208),
        "dimensions": raw.longs(_DIMENSIONS),
        "technical": technical,
    }


def _own_fields(raw: Raw) -> dict[str, Any]:
    """The fields that come from the elements in `_OWN`."""
    acquired, dated = _acquired(raw)
    return {
        "instance_number": raw.integer(0x00200013),
        "acquisition_number": raw.integer(0x00200012),
        "position": _three(raw.floats(0x00200032)),
        "temporal_position": raw.integer(0x00200100),
        "trigger_time_ms": raw.number(0x00181060),
        "acquired_us": acquired,
        "acquired_dated": dated,
        "content_us": raw.moment(0x00080023, 0x00080033)[0],
        "begin_s": _begin(raw),
    }


def _acquired(raw: Raw) -> tuple[int | None, bool]:
    both = raw.word(0x0008002A)
    if len(both) >= 10:
        return moment(both[:8], both[8:])
    return raw.moment(0x00080022, 0x00080032)


def _part(raw: Raw) -> tuple[str, int, int] | None:
    """Which part of a concatenation the file is (PS3.3 section C.7.6.16.1)."""
    uid = raw.word(0x00209161)
    return (uid, raw.short(0x00209162), raw.short(0x00209163)) if uid else None


def _contrast(raw: Raw) -> bool | None:
    if raw.sequences.get(_CONTRAST_SEQUENCE) is not None:
        return True
    agent = raw.text(0x00180010).upper()
    return agent not in _NO_CONTRAST if agent else None


def _b_value(raw: Raw) -> float | None:
    values = raw.doubles(0x00189087)
    for name in ("siemens_b", "philips_b", "uih_b", "ge_b"):
        values = values or raw.doubles(private(raw, name))
    if not values or values[0] < 0:
        return None
    # GE adds a thousand million to the value of some sequences.
    return values[0] % 1e9 if values[0] % 1e9 < 1e6 else None


def _gradient(raw: Raw) -> Vector | None:
    values = raw.doubles(0x00189089) or _inside(raw, _DIFFUSION, {0x00189089: None}).doubles(
        0x00189089
    )
    return _three(values or raw.doubles(private(raw, "siemens_gradient")))


def _begin(raw: Raw) -> tuple[float, ...]:
    """Begin of the dynamic in seconds, from whichever element states it."""
    timer = tuple(value / 1e4 for value in raw.doubles(private(raw, "ge_timer")))
    return (
        raw.doubles(0x01171034)
        or raw.doubles(private(raw, "philips_begin"))
        or raw.doubles(0x0020930D)
        or timer
    )


def _inside(raw: Raw, tag: int, tree: nested.Tree) -> Raw:
    """What is wanted of a sequence that has a single item; nothing where it has several."""
    found = Raw(raw.order == "<")
    try:
        items = nested.items(raw.sequences.get(tag, b""), tree, raw.order)
    except nested.DamagedError:
        return found
    found.elements = items[0] if len(items) == 1 else {}
    return found


def technical(raw: Raw) -> tuple[tuple[str, Any], ...]:
    """The values of the sidecar's allow-list."""
    found: list[tuple[str, Any]] = []
    for keyword, tag, kind in _TECHNICAL:
        if raw.bytes(tag):
            found.append((keyword, getattr(raw, kind)(tag)))
    for name in ("philips_precise_slope", "philips_precise_intercept"):
        numbers = raw.doubles(private(raw, name))
        found += [(name, numbers[0])] if len(numbers) == 1 else []
    found += _mapped(raw)
    found += _suv(raw)
    for keyword, tag in _VISITS:
        found += [(keyword, ended[1].upper())] if (ended := _VISIT.search(raw.text(tag))) else []
    return tuple((keyword, value) for keyword, value in found if value not in (None, "", ()))


def _mapped(raw: Raw) -> list[tuple[str, Any]]:
    """The real world value mapping (PS3.3 section C.7.6.16.2.11), where there is a single one."""
    mapping = raw if 0x00409225 in raw.elements else _inside(raw, _MAPPING, _MAPPING_TREE)
    slope, intercept = mapping.doubles(0x00409225), mapping.doubles(0x00409224)
    if len(slope) != 1 or len(intercept) != 1:
        return []
    return [
        ("real_world_value_slope", slope[0]),
        ("real_world_value_intercept", intercept[0]),
        ("real_world_value_units", mapping.word(0x00080100)),
    ]


def _suv(raw: Raw) -> list[tuple[str, Any]]:
    """What Bq/ml times gives the standardised uptake value by body weight, in g/ml.

    Only where the images are corrected for decay to their start and all of it is stated.
    """
    if raw.word(0x00541001) != "BQML" or raw.word(0x00541102) != "START":
        return []
    tracer = _inside(raw, _TRACER, _TRACER_TREE)
    dose, half_life = tracer.number(0x00181074), tracer.number(0x00181075)
    weight = raw.number(0x00101030)
    begun = raw.moment(0, 0x00080031)[0]
    given = tracer.word(0x00181078)[8:] or tracer.word(0x00181072)
    injected = moment("", given)[0]
    if not dose or not half_life or not weight or begun is None or injected is None:
        return []
    elapsed = (begun - injected) % 86_400_000_000 / 1e6
    return [("suv_body_weight_factor", weight * 1000 / (dose * 2 ** (-elapsed / half_life)))]


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
