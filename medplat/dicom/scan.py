"""One pass over SOURCE: headers only, each file opened once."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medplat.dicom import source as sources
from medplat.dicom.dicomdir import MEDIA_STORAGE_DIRECTORY
from medplat.dicom.encapsulated import TooLargeError
from medplat.dicom.header import Entry, Header
from medplat.dicom.parse import NotDicomError, read_header

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
        header: Of images and labels.
        counted: False for DICOMDIR entries without a file: they are outside the sum of files found.
    """

    path: str
    status: FileStatus
    code: str | None = None
    reason: str = ""
    header: Header | None = None
    counted: bool = True


def scan(source: Path, workers: int = 1) -> list[SourceFile]:
    """List every file of SOURCE once, sorted by path.

    Args:
        source: A folder, a .zip, or a DICOMDIR file.
        workers: Threads that read headers.

    Raises:
        UsageError: SOURCE does not exist or is none of these.
    """
    return scan_entries(sources.walk(source), workers)


def scan_entries(entries: Iterable[Entry | sources.Litter], workers: int = 1) -> list[SourceFile]:
    """The same for files that were listed before."""
    seen: dict[Any, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's about odd headers: the verdicts say more.
            if workers > 1:
                with ThreadPoolExecutor(workers) as pool:
                    files = list(pool.map(_look, entries))
            else:
                files = [_look(entry) for entry in entries]
    finally:
        sources.open_archive.cache_clear()
    return sorted((_share(file, seen) for file in files), key=lambda file: file.path)


def _look(entry: Entry | sources.Litter) -> SourceFile:
    if isinstance(entry, sources.Litter):
        status: FileStatus = "rejected" if entry.status == "rejected" else "skipped"
        return SourceFile(entry.path, status, entry.code, entry.reason, counted=entry.counted)
    path = entry.path
    try:
        with sources.open_entry(entry) as file:
            if entry.member and file.read(4) in (b"PK\x03\x04", b"PK\x05\x06"):
                reason = "an archive inside an archive is not opened"
                return SourceFile(path, "rejected", "OUTSIDE_ROOT", reason)
            file.seek(0)
            header = read_header(file, entry)
    except NotDicomError as error:
        return SourceFile(path, "skipped", "NOT_DICOM", str(error))
    except TooLargeError as error:
        return SourceFile(path, "rejected", "UNSUPPORTED_SYNTAX", str(error))
    except (zipfile.BadZipFile, EOFError) as error:
        reason = f"the archive's member is damaged ({type(error).__name__})"
        return SourceFile(path, "rejected", "TRUNCATED", reason)
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
        return SourceFile(path, "rejected", "MISSING_FILE", reason)
    return classify(header)


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
        return SourceFile(path, "rejected", "TRUNCATED", "its header ends too early")
    if what is None and not (header.rows and header.columns):
        what = "an object without a pixel matrix"
    if what:
        return SourceFile(path, "skipped", "NOT_IMAGE", f"it is {what}")
    return SourceFile(path, "image", header=header)


def _share(file: SourceFile, seen: dict[Any, Any]) -> SourceFile:
    """Let equal technical values and identities be one object: memory of large exports."""
    if file.header is None:
        return file
    technical, identity = file.header.technical, file.header.identity
    shared = replace(
        file.header,
        technical=seen.setdefault(technical, technical),
        identity=seen.setdefault(identity, identity),
    )
    return replace(file, header=shared)
