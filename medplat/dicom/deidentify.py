"""De-identified copies of the images of a converted series, by the PS3.15 basic profile.

What happens to each attribute comes from the table of `dicom-anonymizer` (PS3.15 table E.1-1).
Two of the profile's options are used, since the basic profile alone would take the phase times:

- Retain Longitudinal Temporal Information with Modified Dates: dates move by whole days, all of a
  patient by the same number, so that times of day and intervals stay;
- Retain Safe Private: the numbers that geometry, phases and scaling are read from stay.

UIDs become others, equal ones in every study and run of a project. Beyond the profile, free texts
that no reader of images needs are removed, and what is kept loses every word that identifies.
Pixels are not touched: burned-in annotation and faces are not removed.
"""

from __future__ import annotations

import datetime
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import PersonName

from medplat.dicom import source, tags
from medplat.dicom.sidecar import scrub

if TYPE_CHECKING:
    from medplat.dicom.header import Entry
    from medplat.dicom.read import SeriesPlan
    from medplat.pseudonym import Pseudonyms

EDITION = "2026c"
# PS3.16 CID 7050.
OPTIONS = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ("113111", "Retain Safe Private Option"),
)
_TIMES = ("DA", "DT", "TM")
_FREE = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_KEPT = frozenset({  # Technical texts, and codes; they lose the words that identify.
    0x00080070, 0x00081090, 0x00080100, 0x00080102, 0x00080103, 0x00080104, 0x00080119, 0x00080120,
    0x00181020, 0x00181210, 0x00189005, 0x00180024, 0x00209056, 0x00409210,
})  # fmt: skip
_BIRTH = frozenset({0x00100030, 0x00100032})
_AGENT = 0x00180010
_PHASE_TIME = (0x0117, 0x34)
_NEUTRAL = "MEDPLAT RETAINED"
_NUMBERS = re.compile(rb"[\d.+\-eE\\ ]+\0?")
_NUMERIC = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "UL", "US"})
_DATE = re.compile(r"\d{8}")
_DAYS = 3650
# What pydicom raises on values that are none of their type, when it reads and when it writes them.
_NOT_DICOM = (
    ValueError, TypeError, AttributeError, ArithmeticError, LookupError, NotImplementedError
)  # fmt: skip


class Deidentifier:
    """Writes copies below a folder; one for each run.

    Args:
        folder: Where they go: patient, case and series by their pseudonyms.
        pseudonyms: Salts the UIDs and the patients' shifts.
    """

    def __init__(self, folder: Path, pseudonyms: Pseudonyms) -> None:
        self.folder = folder
        self._pseudonyms = pseudonyms

    def write(self, plan: SeriesPlan) -> dict[str, Any]:
        """Write the images that a stack was made of.

        Args:
            plan: A stack that was converted.

        Returns:
            What the manifest says of it: folder, number of files, profile and options, or `refused`
            with the reason where nothing was written.
        """
        place = Path(plan.series.patient) / plan.series.case / plan.key
        record: dict[str, Any] = {
            "profile": f"PS3.15 {EDITION} basic profile",
            "options": [f"{code} {meaning}" for code, meaning in OPTIONS],
        }
        flat = [header for phase in plan.frames for header in phase]
        refused = ""
        if any(header.burned_in for header in flat):
            refused = "the images say that annotation is burned into their pixels"
        if any(header.mosaic for header in flat):
            refused = "a mosaic cannot be read without its private header, which holds free text"
        target = self.folder / place
        shutil.rmtree(target, ignore_errors=True)
        if refused:
            return record | {"refused": refused}
        # A multi-frame file may fill several stacks: it is copied with the first.
        own = {fate.path for fate in plan.fates}
        entries = {header.path: header.entry for header in flat if header.path in own}
        try:
            self._copy(list(entries.values()), target, plan.series.patient)
        except _NOT_DICOM as error:
            shutil.rmtree(target, ignore_errors=True)
            text = f"an image is too damaged to be written again ({type(error).__name__})"
            return record | {"refused": text}
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        return record | {"folder": place.as_posix(), "files": len(entries)}

    def _copy(self, entries: list[Entry], target: Path, patient: str) -> None:
        target.mkdir(parents=True)
        for number, entry in enumerate(entries):
            with source.open_entry(entry) as file:
                image = dcmread(file, force=True)
                self.clean(image, patient)
                image.save_as(target / f"{number:06d}.dcm", enforce_file_format=True)

    def holds(self, record: Mapping[str, Any] | None) -> bool:
        """Whether the copies that a manifest line names are all there."""
        if record is None or "folder" not in record:
            return record is not None
        found = (self.folder / record["folder"]).glob("*.dcm")
        return sum(1 for _ in found) == int(record["files"])

    def clean(self, image: Dataset, patient: str) -> None:
        """De-identify one data set in place.

        Args:
            image: With its file meta information, where there is one.
            patient: Pseudonym, which takes the place of name and id and fixes the shift.
        """
        _mend(image)
        words = _identifying(image)
        days = int(self._pseudonyms.digest(f"days {patient}")[:8], 16) % _DAYS + 1
        self._clean(image, -days, words)
        image.PatientID = image.PatientName = patient
        image.PatientIdentityRemoved = "YES"
        image.LongitudinalTemporalInformationModified = "MODIFIED"
        image.DeidentificationMethodCodeSequence = Sequence(_code(*one) for one in OPTIONS)
        image.file_meta = self._meta(image)
        image.preamble = b"\0" * 128

    def _meta(self, image: Dataset) -> FileMetaDataset:
        """New file meta information, which holds nothing but what has to be there."""
        old, new = getattr(image, "file_meta", Dataset()), FileMetaDataset()
        # Some writers leave these two to the file meta information alone.
        if not image.get("SOPClassUID"):
            image.SOPClassUID = old.get("MediaStorageSOPClassUID", "")
        if not image.get("SOPInstanceUID"):
            image.SOPInstanceUID = self.uid(old.get("MediaStorageSOPInstanceUID", ""))
        implicit, little = image.original_encoding
        plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        new.TransferSyntaxUID = old.get(
            "TransferSyntaxUID", ExplicitVRBigEndian if little is False else plain
        )
        new.MediaStorageSOPClassUID = image.SOPClassUID
        new.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        return new

    def _clean(self, data: Dataset, days: int, words: tuple[str, ...]) -> None:
        private = _safe_private(data)
        data.remove_private_tags()
        for tag in list(data.keys()):
            element = data[tag]
            action = _action(tag.group, tag.element)
            if element.VR in _TIMES:
                element.value = "" if int(tag) in _BIRTH else _shifted(element, days)
            elif element.VR == "UI":
                if action is not None:
                    element.value = self._uids(element.value)
            elif action is not None and not (element.VR == "SQ" and _refers(action)):
                _apply(action, data, tag)
            elif element.VR == "SQ":
                for item in element.value:
                    self._clean(item, days, words)
            elif element.VR == "UN" or (element.VR in _FREE and int(tag) not in _KEPT):
                del data[tag]
            elif element.VR in _FREE or element.VR == "CS":
                element.value = _without(element.value, words)
        for creator, group, number, vr, value in private:
            data.private_block(group, creator, create=True).add_new(number, vr, value)

    def _uids(self, value: Any) -> Any:
        if not value:
            return value
        if isinstance(value, str):
            return self.uid(value)
        return [self.uid(one) for one in value]

    def uid(self, uid: str) -> UID:
        """The UID that stands for another one in this project (PS3.5 section B.2)."""
        number = int(self._pseudonyms.digest(f"uid {uid.strip()}")[:32], 16)
        return UID(f"2.25.{number}")


def _identifying(image: Dataset) -> tuple[str, ...]:
    """Texts of a data set that say whose it is and where it was made."""
    found: list[str] = []
    for element in image.iterall():
        if element.VR == "PN" or int(element.tag) in tags.IDENTITY:
            found += [str(one) for one in _several(element.value)]
    return tuple(text.replace("^", " ") for text in found if text)


def _several(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) or hasattr(value, "append") else [value]


def _mend(data: Dataset) -> None:
    """Take out what a damaged length brought in: other elements, which could hold anything.

    A text ends at its first zero; a value that is none of its type goes.
    """
    for tag in list(data.keys()):
        try:
            element = data[tag]
            values = _several(element.value)
            texts = [str(one) for one in values if isinstance(one, str | PersonName)]
            if any("\0" in one for one in texts):
                element.value = "\\".join(texts).partition("\0")[0]
        except _NOT_DICOM:
            del data[tag]
            continue
        for item in element.value if element.VR == "SQ" else ():
            _mend(item)


def _without(value: Any, words: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return scrub(value, words) if value else value
    return [scrub(str(one), words) for one in value] if value else value


@cache
def _table() -> tuple[dict[tuple[int, int], Any], list[tuple[tuple[int, ...], Any]]]:
    """Actions by group and element, and those of repeating groups."""
    from dicomanonymizer.simpledicomanonymizer import initialize_actions

    actions = initialize_actions(f"dicomfields_{EDITION}")
    single = {tag: action for tag, action in actions.items() if len(tag) == 2}
    return single, [(tag, action) for tag, action in actions.items() if len(tag) > 2]


@cache
def _action(group: int, element: int) -> Callable[[Dataset, Any], None] | None:
    single, ranges = _table()
    found: Callable[[Dataset, Any], None] | None = single.get((group, element))
    for tag, action in ranges if found is None else ():
        if group & tag[2] == tag[0] & tag[2] and element & tag[3] == tag[1] & tag[3]:
            found = action
    return found


def _refers(action: Callable[[Dataset, Any], None]) -> bool:
    """Whether a sequence only refers to other objects: it stays, with their new UIDs."""
    from dicomanonymizer.simpledicomanonymizer import delete_or_empty_or_replace_UID

    return action is delete_or_empty_or_replace_UID


def _apply(action: Callable[[Dataset, Any], None], data: Dataset, tag: Any) -> None:
    """Do what the table says; what the library has no dummy for is removed."""
    if int(tag) == _AGENT:
        # A dummy text would claim that a contrast agent was given.
        data[tag].value = ""
        return
    try:
        action(data, tag)
    except NotImplementedError:
        del data[tag]


def _shifted(element: Any, days: int) -> Any:
    """Dates and date-times moved by whole days; times of day as they are."""
    if element.VR == "TM" or not element.value:
        return element.value
    moved = [_shift(str(one), days) for one in _several(element.value)]
    return moved if len(moved) > 1 else moved[0]


def _shift(text: str, days: int) -> str:
    """A DA or DT text on another day; "" where it is none."""
    text = text.strip()
    if not _DATE.match(text):
        return ""
    try:
        day = datetime.date(int(text[:4]), int(text[4:6]), int(text[6:8]))
        moved = day + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return moved.strftime("%Y%m%d").rjust(8, "0") + text[8:]


def _safe_private(data: Dataset) -> list[tuple[str, int, int, str, Any]]:
    """Private numbers that stay: creator, group, last byte of the element, VR and value."""
    found = []
    for element in data:
        if not element.tag.is_private or element.tag.element < 0x1000 or not _is_number(element):
            continue
        group, number = element.tag.group, element.tag.element & 0xFF
        stated = data.get((group, element.tag.element >> 8))
        creator = str(stated.value).strip() if stated is not None else ""
        if (group, number) == _PHASE_TIME:
            found.append((_NEUTRAL, group, number, element.VR, element.value))
        elif (creator, group, number) in tags.SAFE_PRIVATE:
            found.append((creator, group, number, element.VR, element.value))
    return found


def _is_number(element: Any) -> bool:
    if element.VR in _NUMERIC:
        return True
    value = element.value
    raw = value.encode("ascii", "replace") if isinstance(value, str) else value
    return isinstance(raw, bytes) and bool(_NUMBERS.fullmatch(raw) or len(raw) in (2, 4, 8))


def _code(value: str, meaning: str) -> Dataset:
    found = Dataset()
    found.CodeValue, found.CodingSchemeDesignator, found.CodeMeaning = value, "DCM", meaning
    return found
