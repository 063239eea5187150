"""What the headers of an export said, in `OUT/.index.sqlite`: a resumed run parses new files only.

A row holds nothing that a sidecar may not hold, but UIDs and offsets (specs section 9): the path is
a salted hash, the person a pseudonym, free texts are scrubbed, and moments are moved by an amount
that only the holder of the salt can undo.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import Field, fields, is_dataclass, replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import medplat
from medplat.dicom import header as records
from medplat.dicom import tags
from medplat.dicom.header import Entry, Header, Identity
from medplat.dicom.sidecar import scrub_value

if TYPE_CHECKING:
    from medplat.dicom.scan import FileStatus, SourceFile
    from medplat.pseudonym import Pseudonyms

NAME = ".index.sqlite"
_FORMAT = 1
_COMMIT_EVERY = 2000
# What differs from image to image; the rest is kept once for all images that share it.
_OWN = frozenset({
    "sop_instance_uid", "pixels", "instance_number", "position", "acquired_us", "content_us",
})  # fmt: skip
_SCRUBBED = ("series_description", "protocol_name", "image_type", "technical")
_MOMENTS = frozenset({"acquired_us", "content_us"})
_CENTURY_US = 100 * 365 * 86_400_000_000
_FIELDS = tuple(one for one in fields(Header) if one.name not in ("entry", "identity"))
_OWN_FIELDS = tuple(one for one in _FIELDS if one.name in _OWN)
_SHARED_FIELDS = tuple(one for one in _FIELDS if one.name not in _OWN)
_scrubbed_values = attrgetter(*_SCRUBBED)
_shared_values = attrgetter(*(one.name for one in _SHARED_FIELDS))
_TABLES = """
CREATE TABLE IF NOT EXISTS stamp (value TEXT);
CREATE TABLE IF NOT EXISTS common (digest TEXT PRIMARY KEY, header TEXT);
CREATE TABLE IF NOT EXISTS file (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER,
    status TEXT, code TEXT, reason TEXT, common TEXT, header TEXT
);
"""


class Index:
    """The index of one output folder; threads may share it, and so may the shards of a run.

    A file that cannot be used as an index is begun anew; one that cannot be written (a full disk, a
    lock that is never given up) is left alone: it only saves time.

    Args:
        out: Output folder.
        pseudonyms: The project's; they salt the rows.
    """

    def __init__(self, out: Path, pseudonyms: Pseudonyms) -> None:
        self._pseudonyms = pseudonyms
        self._lock = Lock()
        self._waiting: list[tuple[SourceFile, Entry]] = []
        self._common: dict[str, str] = {}
        self._shifts: dict[str, int] = {}
        self._digests: dict[tuple[Any, ...], str] = {}
        self._read: dict[str, tuple[Identity, dict[str, Any]]] = {}
        self._store: sqlite3.Connection | None = None
        self._empty = True  # When it was opened: rows of this run are not asked for.
        path = out / NAME
        for _ in range(2):
            try:
                self._store = _open(path, _stamp(pseudonyms))
                self._empty = not self._store.execute("SELECT 1 FROM file LIMIT 1").fetchall()
                return
            except sqlite3.OperationalError:
                return
            except sqlite3.DatabaseError:
                path.unlink(missing_ok=True)

    def known(self, entry: Entry) -> tuple[FileStatus, str | None, str, Header | None] | None:
        """Status, code, reason and header of a file that is as it was; None for any other."""
        with self._lock:
            if self._store is None or self._empty:
                return None
            try:
                row = self._store.execute(
                    "SELECT status, code, reason, common, header FROM file "
                    "WHERE path = ? AND size = ? AND mtime_ns = ?",
                    (self._key(entry), entry.size, entry.mtime_ns),
                ).fetchone()
                if row is None:
                    return None
                status, code, reason, digest, own = row
                header = self._header(entry, self._shared(digest), own) if own else None
            except (sqlite3.Error, ValueError, TypeError):
                return None  # Not to be read, or not what this release would have written.
        return status, code, reason, header

    def keep(self, file: SourceFile, entry: Entry) -> SourceFile:
        """Note what a file is; the same file, its header made `pseudonymous`."""
        if file.header is not None:
            file = replace(file, header=pseudonymous(file.header, self._pseudonyms))
        with self._lock:
            self._waiting.append((file, entry))
            if len(self._waiting) >= _COMMIT_EVERY:
                self._write()
        return file

    def close(self) -> None:
        """Write what is waiting and let the file go; once is enough."""
        with self._lock:
            self._write()
            if self._store is not None:
                self._store.close()
                self._store = None

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self._store is None or not waiting:
            return
        rows = [self._row(file, entry) for file, entry in waiting]
        common, self._common = list(self._common.items()), {}
        # What cannot be kept is read again next time.
        with suppress(sqlite3.Error), self._store:
            self._store.executemany("INSERT OR IGNORE INTO common VALUES (?, ?)", common)
            self._store.executemany("REPLACE INTO file VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _row(self, file: SourceFile, entry: Entry) -> tuple[Any, ...]:
        digest, own = self._texts(file.header) if file.header else (None, None)
        stamp = self._key(entry), entry.size, entry.mtime_ns
        return *stamp, file.status, file.code, file.reason, digest, own

    def _key(self, entry: Entry) -> str:
        return self._pseudonyms.digest(f"{entry.path}|{entry.member}")[:32]

    def _texts(self, header: Header) -> tuple[str, str]:
        """The digest of what the header shares with others, and what is its own; no defaults."""
        shift = self._shift(header.study_uid)
        own = {one.name: getattr(header, one.name) for one in _OWN_FIELDS}
        shared = (header.identity, *_shared_values(header))
        if shared not in self._digests:
            values = {one.name: getattr(header, one.name) for one in _SHARED_FIELDS}
            who = [header.identity.patient_id, header.identity.pseudonym]
            text = _dump([who, _stated(_SHARED_FIELDS, values, shift)])
            digest = hashlib.sha256(text.encode()).hexdigest()[:32]
            self._digests[shared], self._common[digest] = digest, text
        return self._digests[shared], _dump(_stated(_OWN_FIELDS, own, shift))

    def _shared(self, digest: str) -> tuple[Identity, dict[str, Any]]:
        if digest not in self._read and self._store is not None:
            found = self._store.execute("SELECT header FROM common WHERE digest = ?", (digest,))
            (text,) = found.fetchone()
            (patient_id, pseudonym), stored = json.loads(text)
            values = {name: _restored(value) for name, value in stored.items()}
            shift = -self._shift(values.get("study_uid", ""))
            values = {name: _moved(name, value, shift) for name, value in values.items()}
            self._read[digest] = Identity(patient_id=patient_id, pseudonym=pseudonym), values
        return self._read[digest]

    def _header(self, entry: Entry, shared: tuple[Identity, dict[str, Any]], text: str) -> Header:
        who, common = shared
        shift = -self._shift(common.get("study_uid", ""))
        own = {k: _moved(k, _restored(value), shift) for k, value in json.loads(text).items()}
        return Header(entry=entry, identity=who, **common, **own)

    def _shift(self, study_uid: str) -> int:
        """Microseconds that moments of a study are moved by: only the salt gives them."""
        if study_uid not in self._shifts:
            text = self._pseudonyms.digest(f"moments of {study_uid}")
            self._shifts[study_uid] = int(text[:16], 16) % _CENTURY_US
        return self._shifts[study_uid]


def _open(path: Path, stamp: str) -> sqlite3.Connection:
    store = sqlite3.connect(path, timeout=60, check_same_thread=False)
    try:
        with store:
            store.executescript(_TABLES)
            if store.execute("SELECT value FROM stamp").fetchall() != [(stamp,)]:
                store.execute("DELETE FROM file")
                store.execute("DELETE FROM common")
                store.execute("DELETE FROM stamp")
                store.execute("INSERT INTO stamp VALUES (?)", (stamp,))
    except sqlite3.Error:
        store.close()
        raise
    return store


def _stamp(pseudonyms: Pseudonyms) -> str:
    """Changes with whatever makes old rows wrong: the release, the record, the tags, the salt."""
    record = [one.name for one in fields(Header)]
    parts = [_FORMAT, medplat.__version__, record, sorted(tags.WANTED), pseudonyms.fingerprint]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def pseudonymous(header: Header, pseudonyms: Pseudonyms) -> Header:
    """The same header without anything that identifies: what the index keeps and convert works on.

    Person: `pseudonym`, and the same in `patient_id` where one was stated, so that two patients of
    one series still differ. Descriptions, ImageType and technical texts are scrubbed by the
    header's own identifying texts.
    """
    known, clean = _clean(header.identity, _scrubbed_values(header), pseudonyms)
    values = dict(zip(_SCRUBBED, clean, strict=True))
    if header.per_frame:
        texts = header.identity.texts
        values["per_frame"] = tuple(
            (name, scrub_value(column, texts) if name in _SCRUBBED else column)
            for name, column in header.per_frame
        )
    return header.changed(identity=known, **values)


@lru_cache(maxsize=256)
def _clean(
    who: Identity, values: tuple[Any, ...], pseudonyms: Pseudonyms
) -> tuple[Identity, tuple[Any, ...]]:
    """The pseudonym of a person, and values without the words that identify."""
    patient = pseudonyms.patient(who.patient_id, who.issuer)
    known = Identity(patient_id=patient if who.patient_id else "", pseudonym=patient)
    return known, tuple(scrub_value(value, who.texts) for value in values)


def _moved(name: str, value: Any, shift: int) -> Any:
    """A moment, or the moments of a column of frames, moved by `shift` microseconds."""
    if name in _MOMENTS:
        return value if value is None else value + shift
    if name == "per_frame":
        return tuple(
            (column, tuple(_moved(column, one, shift) for one in values))
            if column in _MOMENTS
            else (column, values)
            for column, values in value
        )
    return value


def _stated(which: Iterable[Field[Any]], values: dict[str, Any], shift: int) -> dict[str, Any]:
    """Values other than the defaults, moments moved."""
    return {
        one.name: _moved(one.name, values[one.name], shift)
        for one in which
        if values[one.name] != one.default
    }


def _dump(value: Any) -> str:
    return json.dumps(value, default=_plain, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """Records inside a header, for JSON: under their class's name."""
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: [getattr(value, one.name) for one in fields(value)]}
    raise TypeError(f"a header holds a {type(value).__name__}")


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_restored(one) for one in value)
    if isinstance(value, dict):
        ((name, values),) = value.items()
        return getattr(records, name)(*(_restored(one) for one in values))
    return value
