"""A DICOMDIR as SOURCE: the files that it names, and only those under its own folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from medplat.dicom.header import Entry
from medplat.dicom.source import Litter
from medplat.errors import UsageError

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"


def files(path: Path) -> Iterator[Entry | Litter]:
    """The DICOMDIR itself and the file of each of its records.

    Raises:
        UsageError: The file is no DICOMDIR.
    """
    folder = path.resolve().parent
    yield Litter(path.name, "skipped", "NOT_IMAGE", "the DICOMDIR itself")
    seen: set[str] = set()
    for components in _references(path):
        shown = "/".join(components)
        if shown in seen:
            continue
        seen.add(shown)
        if any(_leaves(component) for component in components):
            yield Litter(shown, "rejected", "OUTSIDE_ROOT", "the entry leaves the folder", False)
            continue
        target = folder.joinpath(*components)
        if not target.resolve().is_relative_to(folder):
            yield Litter(shown, "rejected", "OUTSIDE_ROOT", "the entry leaves the folder", False)
        elif not target.is_file():
            yield Litter(shown, "rejected", "MISSING_FILE", "the file is not there", False)
        else:
            status = target.stat()
            yield Entry(shown, target, None, status.st_size, status.st_mtime_ns)


def _references(path: Path) -> list[list[str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            index = dcmread(path)
            records = list(index.get("DirectoryRecordSequence") or [])
            found = [record.get("ReferencedFileID") for record in records]
        except (InvalidDicomError, ValueError, AttributeError, OSError) as error:
            raise UsageError(
                f"{path} is neither a zip nor a DICOMDIR: give a folder, a .zip or a DICOMDIR"
            ) from error
    if getattr(index.file_meta, "MediaStorageSOPClassUID", "") != MEDIA_STORAGE_DIRECTORY:
        raise UsageError(f"{path} is a single file: give the folder that holds it")
    return [[f] if isinstance(f, str) else [str(part) for part in f] for f in found if f]


def _leaves(component: str) -> bool:
    return component in ("", ".", "..") or any(sign in component for sign in "/\\:\0")
