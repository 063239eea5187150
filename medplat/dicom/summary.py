"""What is said of a stack: its `Series`, its name, and the technical values of the sidecar."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medplat.dicom.clock import past_midnight
from medplat.dicom.header import Header
from medplat.dicom.sidecar import scrub
from medplat.dicom.syntax import syntax
from medplat.types import Series

if TYPE_CHECKING:
    from medplat.dicom.series import SeriesFiles
    from medplat.pseudonym import Pseudonyms


def describe(
    headers: Sequence[Header], files: SeriesFiles, pseudonyms: Pseudonyms | None
) -> Series:
    """What the headers of a stack say of it; shape, verdict and times are filled in later.

    Args:
        headers: At least one.
        files: The series it belongs to.
        pseudonyms: None leaves `case` and `patient` empty.
    """
    first = headers[0]
    agents = {header.contrast for header in headers}
    return Series(
        series_uid=files.series_uid,
        study_uid=files.study_uid,
        case=pseudonyms.case(files.study_uid) if pseudonyms else "",
        patient=patient(first, pseudonyms),
        modality=first.modality,
        number=first.series_number,
        description=scrub(first.series_description, first.identity.texts),
        image_type=tuple(scrub(one, first.identity.texts) for one in first.image_type),
        slice_thickness_mm=first.slice_thickness,
        contrast=True if True in agents else False if agents == {False} else None,
        frame_of_reference_uid=first.frame_of_reference_uid or None,
    )


def patient(header: Header, pseudonyms: Pseudonyms | None) -> str:
    """Pseudonym of the person; "" without `pseudonyms`."""
    if pseudonyms is None:
        return ""
    who = header.identity
    return who.pseudonym or pseudonyms.patient(who.patient_id, who.issuer)


def stack_key(
    headers: Sequence[Header], files: SeriesFiles, suffix: str, pseudonyms: Pseudonyms | None
) -> str:
    """Stem of an output's name: zero-padded number, 6 characters of a hash, suffix of the stack."""
    digest = (
        pseudonyms.series_hash(files.series_uid)
        if pseudonyms
        else hashlib.sha256(files.series_uid.encode()).hexdigest()[:6]
    )
    number = max(0, headers[0].series_number or 0)
    return f"{number:04d}-{digest}{suffix}"


def stack_metadata(headers: Sequence[Header]) -> dict[str, Any]:
    """Technical values that all images of a stack share, and what is special about it."""
    shared = dict(headers[0].technical)
    for technical in {header.technical for header in headers[1:]}:
        values = dict(technical)
        shared = {k: v for k, v in shared.items() if k in values and values[k] == v}
    metadata: dict[str, Any] = {
        key: list(value) if isinstance(value, tuple) else value for key, value in shared.items()
    }
    first = headers[0]
    if first.protocol_name:
        metadata["ProtocolName"] = scrub(first.protocol_name, first.identity.texts)
    if first.b_value is not None and len({header.b_value for header in headers}) == 1:
        metadata["b_value"] = first.b_value
    syntaxes = sorted({header.transfer_syntax for header in headers})
    metadata["TransferSyntaxUID"] = syntaxes[0] if len(syntaxes) == 1 else syntaxes
    if lossy(headers):
        metadata["lossy"] = True
    return metadata


def fourth_axis(frames: Sequence[Sequence[Header]]) -> dict[str, Any]:
    """What the last axis of a stack of several phases is, and its values where they are no times.

    Args:
        frames: Headers phase by phase.
    """
    if len(frames) == 1:
        return {}
    first = [phase[0] for phase in frames]
    gradients = [header.gradient for header in first]
    inversions = [dict(header.technical).get("InversionTime") for header in first]
    if len(set(gradients)) > 1:
        return {"fourth_axis": "diffusion direction", "gradient_directions_lps": gradients}
    if len(set(inversions)) == len(frames):
        return {"fourth_axis": "inversion time", "inversion_times_ms": inversions}
    return {"fourth_axis": "time"}


def lossy(headers: Sequence[Header]) -> bool:
    """Whether any image went through lossy compression."""
    return any(
        syntax(header.transfer_syntax).lossy
        or dict(header.technical).get("LossyImageCompression") == "01"
        for header in headers
    )


def started(headers: Sequence[Header]) -> int | None:
    """First acquisition, in microseconds: on an absolute clock, or since midnight where undated."""
    dated = [h.acquired_us for h in headers if h.acquired_dated and h.acquired_us is not None]
    if dated:
        return min(dated)
    times = [header.acquired_us for header in headers if header.acquired_us is not None]
    return min(past_midnight(times)) if times else None
