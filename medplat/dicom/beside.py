"""Files that were lost before they could be told to belong to a series, and may be of it.

Where the first or the last slice of a stack is damaged before its SeriesInstanceUID, nothing else
betrays that the stack has become shorter. The evidence is what the rest of its header says; where
the file lies and how it is called proves nothing, and an empty file is litter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medplat.dicom.header import Header
    from medplat.dicom.scan import SourceFile
    from medplat.dicom.series import SeriesFiles

_EQUAL = ("sop_class_uid", "study_uid", "modality", "series_description", "protocol_name")
_EQUAL_TAGS = (
    "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "MagneticFieldStrength",
    "BodyPartExamined",
)  # fmt: skip


def told(groups: Sequence[SeriesFiles], files: Sequence[SourceFile]) -> list[SeriesFiles]:
    """The same series, with the number of lost files that may be theirs.

    - A damaged file whose header ends before its series UID may be of every series that agrees with
      all that is left of the header.
    - A file that could not be read at all may be of every series with images in its folder.
    - A file that the DICOMDIR names and that is not there is of the series that it stands under.
    """
    lost = [one for one in files if one.status == "rejected"]
    claims = [claim for one in lost if (claim := _claim(one, groups))]
    counts = Counter(number for claim in claims for number in claim)
    shared = {number for claim in claims if len(claim) > 1 for number in claim}
    return [
        replace(group, lost=counts[number], alone=number not in shared)
        if number in counts
        else group
        for number, group in enumerate(groups)
    ]


def _claim(file: SourceFile, groups: Sequence[SeriesFiles]) -> list[int]:
    """Which series the file may be of."""
    if file.series_uid:
        return [k for k, group in enumerate(groups) if group.series_uid == file.series_uid]
    if file.code == "TRUNCATED" and file.header is not None:
        left = _said(file.header)
        return [k for k, group in enumerate(groups) if left <= _said(group.headers[0])]
    if file.code == "UNREADABLE":
        folder = _folder(file.path)
        return [
            k
            for k, group in enumerate(groups)
            if any(_folder(header.path) == folder for header in group.headers)
        ]
    return []


def _said(header: Header) -> set[tuple[str, Any]]:
    """What a header says that all images of a series say alike."""
    said = {(name, getattr(header, name)) for name in _EQUAL}
    said |= {(name, value) for name, value in header.technical if name in _EQUAL_TAGS}
    said.add(("patient", header.identity.patient_id))
    return {(name, value) for name, value in said if value not in ("", None)}


def _folder(path: str) -> str:
    return path[: max(path.rfind("/"), path.rfind("!")) + 1]
