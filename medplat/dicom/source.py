"""The files of SOURCE: a folder, a zip, or a DICOMDIR; never anything outside it.

Archives inside a folder are opened one level deep. Nothing is ever unpacked to disk.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from medplat.dicom.header import Entry
from medplat.errors import UsageError

MAX_MEMBERS = 1_000_000
MAX_TOTAL = 64 << 30
MAX_MEMBER = 4 << 30
MAX_RATIO = 200
_RATIO_FREE = 64 << 20
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
# A zip with one of these is a program or an office document, not an export.
_NOT_EXPORT = frozenset({"META-INF/MANIFEST.MF", "[Content_Types].xml"})


class Litter(NamedTuple):
    """A file that is not handed on, and why."""

    path: str
    status: str
    code: str
    reason: str
    counted: bool = True
    series_uid: str = ""


def walk(source: Path) -> Iterator[Entry | Litter]:
    """Every file of SOURCE once, in no particular order; archives in a folder are not opened yet.

    Raises:
        UsageError: SOURCE does not exist, or is neither a folder, a zip nor a DICOMDIR.
    """
    if source.is_dir():
        yield from _folder(source)
    elif not source.is_file():
        raise UsageError(f"{source} does not exist: give a folder, a .zip or a DICOMDIR")
    elif is_zip(source):
        yield from _archive(source, "", inside=False)
    else:
        from medplat.dicom import dicomdir

        yield from dicomdir.files(source)


def open_entry(entry: Entry) -> BinaryIO:
    """Open a file or a member, seekable.

    Raises:
        OSError, zipfile.BadZipFile: It cannot be read, or a member is damaged.
    """
    if entry.member is None:
        return entry.file.open("rb", buffering=1 << 16)
    archive = open_archive(entry.file, entry.mtime_ns)
    try:
        with archive.open(entry.member) as member:
            data = member.read(MAX_MEMBER + 1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # Each way of packing has errors of its own; all mean that the member is damaged.
        raise zipfile.BadZipFile(f"{type(error).__name__} in a member") from error
    if len(data) > entry.size:
        raise zipfile.BadZipFile("a member inflates beyond its declared size")
    return BytesIO(data)


def is_zip(path: Path) -> bool:
    """Whether the file starts like a zip archive."""
    with path.open("rb") as file:
        return file.read(4) in ZIP


@lru_cache(maxsize=2)
def open_archive(path: Path, mtime_ns: int) -> zipfile.ZipFile:
    """The archive, kept open between members; call `open_archive.cache_clear()` when done."""
    del mtime_ns  # A changed archive is another one.
    return zipfile.ZipFile(path)


def _folder(root: Path) -> Iterator[Entry | Litter]:
    real_root = root.resolve()
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as found:
                items = list(found)
        except OSError as error:
            if folder == root:
                raise UsageError(f"{root} cannot be read ({error.strerror})") from error
            shown = folder.relative_to(root).as_posix()
            reason = f"the folder cannot be read ({error.strerror})"
            yield Litter(shown, "rejected", "UNREADABLE", reason)
            continue
        for item in items:
            path = Path(item.path)
            shown = path.relative_to(root).as_posix()
            if item.is_symlink():
                target = _target(path)
                if target is None:
                    yield Litter(shown, "rejected", "MISSING_FILE", "the link leads to itself")
                    continue
                if not target.is_relative_to(real_root):
                    yield Litter(shown, "rejected", "OUTSIDE_ROOT", "the link leaves SOURCE")
                    continue
                if target.is_dir():
                    continue  # Its files are found at their own place.
                if not target.exists():
                    yield Litter(shown, "rejected", "MISSING_FILE", "the link leads nowhere")
                    continue
            if item.is_dir(follow_symlinks=False):
                pending.append(path)
                continue
            yield _plain(path, shown)


def _target(link: Path) -> Path | None:
    """Where a link leads; None for a loop (Python raises RuntimeError up to 3.12)."""
    try:
        return link.resolve(strict=False)
    except (OSError, RuntimeError):
        return None


def _plain(path: Path, shown: str) -> Entry | Litter:
    try:
        status = path.stat()
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
        return Litter(shown, "rejected", "UNREADABLE", reason)
    if not stat.S_ISREG(status.st_mode):
        return Litter(shown, "skipped", "NOT_DICOM", "it is not a regular file")
    return Entry(shown, path, None, status.st_size, status.st_mtime_ns)


def members(archive: Entry) -> Iterator[Entry | Litter]:
    """The archive itself and its members, of a zip found inside a folder."""
    return _archive(archive.file, archive.path, inside=True)


def _archive(path: Path, shown: str, *, inside: bool) -> Iterator[Entry | Litter]:
    mtime = path.stat().st_mtime_ns
    try:
        members = [m for m in open_archive(path, mtime).infolist() if not m.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        if not inside:
            raise UsageError(f"{path} is a damaged zip archive: copy it again") from None
        yield Litter(shown, "rejected", "TRUNCATED", "the zip archive is damaged")
        return
    if any(m.filename in _NOT_EXPORT for m in members):
        yield Litter(shown, "skipped", "NOT_DICOM", "it is a program or a document")
        return
    problem = _limits(members)
    if problem:
        if not inside:
            raise UsageError(f"{path} is not opened: {problem}; unpack it yourself")
        yield Litter(shown, "rejected", "OUTSIDE_ROOT", problem)
        return
    if inside:
        yield Litter(shown, "skipped", "NOT_DICOM", "an archive, opened: see its members")
    seen: set[str] = set()
    for member in members:
        name = f"{shown}!{member.filename}" if inside else member.filename
        refused = _refuse(member)
        if member.filename in seen:
            refused = "a second member of the same name"
            name = f"{name}#{member.header_offset}"
        seen.add(member.filename)
        if refused:
            yield Litter(name, "rejected", "OUTSIDE_ROOT", refused)
        else:
            yield Entry(name, path, member.filename, member.file_size, mtime)


def _limits(members: list[zipfile.ZipInfo]) -> str:
    total = sum(m.file_size for m in members)
    packed = sum(m.compress_size for m in members)
    if len(members) > MAX_MEMBERS:
        return f"the archive has more than {MAX_MEMBERS} members"
    if total > MAX_TOTAL:
        return f"the archive inflates to more than {MAX_TOTAL >> 30} GiB"
    if total > _RATIO_FREE and total > MAX_RATIO * max(packed, 1):
        return f"the archive inflates to more than {MAX_RATIO} times its size"
    return ""


def _refuse(member: zipfile.ZipInfo) -> str:
    name = member.filename.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or (parts and ":" in parts[0]):
        return "the member's path leaves the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "the member is a link"
    if member.flag_bits & 1:
        return "the member is encrypted"
    if member.file_size > MAX_MEMBER:
        return f"the member is larger than {MAX_MEMBER >> 30} GiB"
    return ""
