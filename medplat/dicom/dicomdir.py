"""A DICOMDIR as SOURCE: the files that it names, and only those under its own folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from medplat.dicom.header import Entry
from medplat.dicom.source import Litter
from medplat.errors import UsageError

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
_AWAY = "the entry leaves the folder"


def files(path: Path) -> Iterator[Entry | Litter]:
    """The DICOMDIR itself and the file of each of its records.

    Raises:
        UsageError: The file is no DICOMDIR.
    """
    folder = path.resolve().parent
    yield Litter(path.name, "skipped", "NOT_IMAGE", "the DICOMDIR itself")
    seen: set[str] = set()
    for components, series_uid in _references(path):
        shown = "/".join(components)
        if shown in seen:
            continue
        seen.add(shown)
        if any(_leaves(component) for component in components):
            yield Litter(shown, "rejected", "OUTSIDE_ROOT", _AWAY, False, series_uid)
            continue
        target = folder.joinpath(*components)
        if not target.resolve().is_relative_to(folder):
            yield Litter(shown, "rejected", "OUTSIDE_ROOT", _AWAY, False, series_uid)
        elif not target.is_file():
            reason = "the file is not there"
            yield Litter(shown, "rejected", "MISSING_FILE", reason, False, series_uid)
        else:
            status = target.stat()
            yield Entry(shown, target, None, status.st_size, status.st_mtime_ns)


def _references(path: Path) -> list[tuple[list[str], str]]:
    """The file of each record, as its components, and the series record that it stands under."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            index = dcmread(path)
            records = list(index.get("DirectoryRecordSequence") or [])
            found = []
            series_uid = ""
            for record in records:
                series_uid = str(record.get("SeriesInstanceUID", series_uid))
                file = record.get("ReferencedFileID")
                if file:
                    parts = [file] if isinstance(file, str) else [str(part) for part in file]
                    found.append((parts, series_uid))
        except (InvalidDicomError, ValueError, AttributeError, OSError) as error:
            raise UsageError(
                f"{path} is neither a zip nor a DICOMDIR: give a folder, a .zip or a DICOMDIR"
            ) from error
    if getattr(index.file_meta, "MediaStorageSOPClassUID", "") != MEDIA_STORAGE_DIRECTORY:
        raise UsageError(f"{path} is a single file: give the folder that holds it")
    return found


def _leaves(component: str) -> bool:
    return component in ("", ".", "..") or any(sign in component for sign in "/\\:\0")
