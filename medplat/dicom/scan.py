"""One pass over SOURCE: headers only, each file opened once."""

from __future__ import annotations

import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medplat.dicom import source as sources
from medplat.dicom import tags
from medplat.dicom.dicomdir import MEDIA_STORAGE_DIRECTORY
from medplat.dicom.encapsulated import TooLargeError
from medplat.dicom.header import Entry, Header, Identity
from medplat.dicom.parse import NotDicomError, read_header

if TYPE_CHECKING:
    from medplat.dicom.index import Index

_AT_ONCE = 256
FileStatus = Literal["image", "label", "skipped", "rejected"]
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_LABELS = frozenset({SEGMENTATION, LABELMAP, RTSTRUCT})
_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Objects with or without a matrix that are not images to convert (DICOM PS3.4 annex B).
_NOT_IMAGES = {
    MEDIA_STORAGE_DIRECTORY: "a DICOMDIR",
    _STORAGE + "4.2": "MR spectroscopy",
    _STORAGE + "66": "raw data",
    _STORAGE + "66.5": "a surface segmentation",
    _STORAGE + "481.2": "a radiotherapy dose",
    _STORAGE + "481.4": "a radiotherapy treatment record",
    _STORAGE + "481.5": "a radiotherapy plan",
    _STORAGE + "481.6": "a radiotherapy treatment record",
    _STORAGE + "481.7": "a radiotherapy treatment record",
    _STORAGE + "481.8": "a radiotherapy plan",
    _STORAGE + "481.9": "a radiotherapy treatment record",
    _STORAGE + "77.1.1.1": "a video",
    _STORAGE + "77.1.2.1": "a video",
    _STORAGE + "77.1.4.1": "a video",
    _STORAGE + "77.1.6": "whole slide microscopy",
}
_NOT_IMAGE_FAMILIES = {
    _STORAGE + "9.": "a waveform",
    _STORAGE + "11.": "a presentation state",
    _STORAGE + "88.": "a structured report",
    _STORAGE + "104.": "an encapsulated document",
}


@dataclass(frozen=True)
class SourceFile:
    """One input file and what it is.

    Attributes:
        path: Relative to SOURCE, as in files.csv.
        status: "image" (its final fate comes from `read.plan`, also where the file is damaged),
            "label" (DICOM SEG or RTSTRUCT), "skipped" or "rejected" (final).
        code: Verdict code of a skipped or rejected file.
        reason: One sentence.
        header: Of images and labels; what there is of it, of a file that is damaged in the header.
        counted: False for DICOMDIR entries without a file: they are outside the sum of files found.
        entry: Of a file that is not DICOM: it may be a label image.
        series_uid: Of a file that is not there: the series that the DICOMDIR names it in.
    """

    path: str
    status: FileStatus
    code: str | None = None
    reason: str = ""
    header: Header | None = None
    counted: bool = True
    entry: Entry | None = None
    series_uid: str = ""


_Found = tuple[str, SourceFile]
"""The archive that holds a file ("" for none), and the file."""


def scan(source: Path, workers: int = 1, index: Index | None = None) -> list[SourceFile]:
    """List every file of SOURCE once, sorted by path.

    Args:
        source: A folder, a .zip, or a DICOMDIR file.
        workers: Threads that read headers, where the disk is slow.
        index: What is known from an earlier run; the headers are then pseudonymous, those of new
            files too.

    Raises:
        UsageError: SOURCE does not exist or is none of these.
    """
    return scan_entries(sources.walk(source), workers, index)


def scan_entries(
    entries: Iterable[Entry | sources.Litter], workers: int = 1, index: Index | None = None
) -> list[SourceFile]:
    """The same for files that were listed before."""
    seen: dict[Any, Any] = {}
    found: list[_Found] = []
    try:
        with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
            warnings.simplefilter("ignore")  # pydicom's about odd headers: the verdicts say more.
            look = partial(_look_at, index=index)
            parts = _batches(entries)
            first, waits = _watched(look, parts)
            rest = pool.map(look, parts) if workers > 1 and waits else map(look, parts)
            for some in chain(first, rest):
                found += [(archive, _share(file, seen)) for archive, file in some]
    finally:
        sources.open_archive.cache_clear()
        tags.forget()
    return _told_apart(found)


def _watched(
    look: Callable[[list[Entry | sources.Litter]], list[_Found]],
    parts: Iterator[list[Entry | sources.Litter]],
) -> tuple[list[list[_Found]], bool]:
    """What is in the first batch, and whether the disk had to be waited for.

    Threads pay only where it had: parsing holds the interpreter, and they get in each other's way.
    """
    started, used = time.perf_counter(), time.thread_time()
    found = [look(part) for part in islice(parts, 1)]
    used = time.thread_time() - used
    return found, time.perf_counter() - started > 2 * used


def _batches(entries: Iterable[Entry | sources.Litter]) -> Iterator[list[Entry | sources.Litter]]:
    listed = iter(entries)
    while some := list(islice(listed, _AT_ONCE)):
        yield some


def _look_at(entries: Iterable[Entry | sources.Litter], index: Index | None) -> list[_Found]:
    found: list[_Found] = []
    for entry in entries:
        file = _look(entry, index)
        if file is not None:
            found.append(("", file))
        elif isinstance(entry, Entry):  # A zip inside the folder.
            inside = (_look(member, index) for member in sources.members(entry))
            found += [(entry.path, member) for member in inside if member is not None]
    return found


def _look(entry: Entry | sources.Litter, index: Index | None) -> SourceFile | None:
    """What a file is; None for a zip that is to be opened."""
    if isinstance(entry, sources.Litter):
        status: FileStatus = "rejected" if entry.status == "rejected" else "skipped"
        return SourceFile(
            entry.path,
            status,
            entry.code,
            entry.reason,
            counted=entry.counted,
            series_uid=entry.series_uid,
        )
    known = index.known(entry) if index else None
    if known is not None:
        status, code, reason, header = known
        other = None if header else entry
        return SourceFile(entry.path, status, code, reason, header=header, entry=other)
    try:
        file = _read(entry)
    except (zipfile.BadZipFile, EOFError) as error:
        reason = f"the archive's member is damaged ({type(error).__name__})"
        return SourceFile(entry.path, "rejected", "TRUNCATED", reason)
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
        return SourceFile(entry.path, "rejected", "UNREADABLE", reason)
    if file is not None and index is not None:
        return index.keep(file, entry)
    return file


def _read(entry: Entry) -> SourceFile | None:
    path = entry.path
    try:
        with sources.open_entry(entry) as file:
            if file.read(4) in sources.ZIP:
                if not entry.member:
                    return None
                reason = "an archive inside an archive is not opened"
                return SourceFile(path, "rejected", "OUTSIDE_ROOT", reason)
            file.seek(0)
            return classify(read_header(file, entry))
    except NotDicomError as error:
        return SourceFile(path, "skipped", "NOT_DICOM", str(error), entry=entry)
    except TooLargeError as error:
        return SourceFile(path, "rejected", "UNSUPPORTED_SYNTAX", str(error))


def classify(header: Header) -> SourceFile:
    """Say what a DICOM object is: an image, a label, or neither."""
    path, sop_class = header.path, header.sop_class_uid
    if sop_class in _LABELS:
        return SourceFile(path, "label", header=header)
    what = _NOT_IMAGES.get(sop_class)
    for family, name in _NOT_IMAGE_FAMILIES.items():
        if sop_class.startswith(family):
            what = name
    if what is None and header.damage == "TRUNCATED":
        if header.series_uid:
            return SourceFile(path, "image", header=header)
        reason = "its header ends too early"
        return SourceFile(path, "rejected", "TRUNCATED", reason, header=header)
    if what is None and not (header.rows and header.columns):
        what = "an object without a pixel matrix"
    if what:
        return SourceFile(path, "skipped", "NOT_IMAGE", f"it is {what}")
    return SourceFile(path, "image", header=header)


_SHARED = (
    "technical", "identity", "study_uid", "series_uid", "frame_of_reference_uid", "sop_class_uid",
    "transfer_syntax", "modality", "image_type", "series_description", "protocol_name",
    "photometric", "orientation", "pixel_spacing",
)  # fmt: skip


def _share(file: SourceFile, seen: dict[Any, Any]) -> SourceFile:
    """Let equal values of different headers be one object: memory of large exports."""
    header = file.header
    if header is None:
        return file
    own = {name: value for name in _SHARED if (value := getattr(header, name))}
    same = {name: seen.setdefault(value, value) for name, value in own.items()}
    if all(same[name] is value for name, value in own.items()):
        return file
    return replace(file, header=header.changed(**same))


def _told_apart(found: list[_Found]) -> list[SourceFile]:
    """Sorted by path; the member of an archive that is called like another file gets a number."""
    files: list[SourceFile] = []
    taken: dict[str, int] = {}
    for _, file in sorted(found, key=lambda one: (one[1].path, one[0])):
        taken[file.path] = number = taken.get(file.path, 0) + 1
        files.append(file if number == 1 else _renamed(file, f"{file.path}#{number}"))
    return sorted(files, key=lambda file: file.path) if len(taken) < len(files) else files


def _renamed(file: SourceFile, path: str) -> SourceFile:
    header = file.header and file.header.changed(entry=replace(file.header.entry, path=path))
    entry = file.entry and replace(file.entry, path=path)
    return replace(file, path=path, header=header, entry=entry)


def identity(header: Header) -> Identity:
    """Who the image is of, as the file itself states it; read again where only an index is known.

    Raises:
        OSError: The file cannot be read any more.
    """
    if not header.identity.pseudonym:
        return header.identity
    with sources.open_entry(header.entry) as file:
        return read_header(file, header.entry).identity
