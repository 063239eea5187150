"""What went in, what came out, what failed: `manifest.jsonl` and `files.csv`.

A line is appended and synced to disk as each series or case ends, so that a killed run loses at
most the one in flight. The last line of a key is the one that holds.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from filelock import FileLock, Timeout

from medplat import paths
from medplat.errors import DataError, UsageError

Line = dict[str, Any]
SERIES_KEY = ("study_uid", "series_uid", "stack")
CASE_KEY = ("case",)
SERIES_STATUSES = ("converted", "warned", "skipped", "rejected", "failed")
CASE_STATUSES = ("done", "unchanged", "skipped", "rejected", "failed")
FILES_HEADER = ("path", "status", "series_uid", "output", "phase", "slice", "reason")
_GOOD = {"converted", "warned", "done", "unchanged"}
_BAD = {"rejected", "failed"}


class Manifest:
    """One manifest file; any number of threads of one process may append.

    Args:
        path: `manifest.jsonl`; it need not exist.
        key: Fields that name what a line is about: `SERIES_KEY` or `CASE_KEY`.
    """

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        self.path = path
        self.key = tuple(key)
        self._lock = Lock()
        self._checked = False

    def append(self, line: Mapping[str, Any]) -> None:
        """Append one line and wait until it is on the disk."""
        # ASCII: some readers take U+0085 or U+2028, which ill texts hold, for the end of a line.
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                if not self._checked:
                    file.truncate(_whole_lines(self.path))
                    self._checked = True
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    def lines(self) -> dict[tuple[str, ...], Line]:
        """The last line of each key, the latest at the end; a torn end is left out.

        Raises:
            DataError: A line before the end is not a JSON object with the key's fields.
        """
        found: dict[tuple[str, ...], Line] = {}
        if not self.path.is_file():
            return found
        whole = self.path.read_bytes()[: _whole_lines(self.path)]
        for number, text in enumerate(whole.splitlines(), start=1):
            try:
                line = json.loads(text)
                key = tuple(str(line.get(name, "")) for name in self.key)
                found.pop(key, None)
                found[key] = line
            except (ValueError, AttributeError) as error:
                raise DataError(
                    f"{self.path}:{number}: not a line of a manifest: mend it or delete it"
                ) from error
        return found


def _whole_lines(path: Path) -> int:
    """Bytes up to and including the last newline: what follows was torn by a kill."""
    if not path.is_file():
        return 0
    return path.read_bytes().rfind(b"\n") + 1


def name_of(shard: tuple[int, int] | None, stem: str = "manifest", suffix: str = ".jsonl") -> str:
    """File name of the manifest (or another table) of one shard (I, N); None: no sharding."""
    return f"{stem}{suffix}" if shard is None else f"{stem}.{shard[0]}-of-{shard[1]}{suffix}"


def read_all(out: Path, key: Sequence[str] = SERIES_KEY) -> list[Line]:
    """The lines that hold in OUT, those of all shards together.

    For series, lines of stacks that the series no longer has are left out. Where two manifests name
    a series (converted with and without shards), the one changed last holds.
    """
    merged: dict[tuple[str, ...], Line] = {}
    found = out.glob("manifest*.jsonl")
    for path in sorted(found, key=lambda one: (one.stat().st_mtime_ns, one.name)):
        merged.update(Manifest(path, key).lines())
    return current(merged.values())


def merge(out: Path, key: Sequence[str] = SERIES_KEY) -> None:
    """Write `manifest.jsonl` anew from the lines that hold in OUT, those of all shards together."""
    text = "".join(json.dumps(line) + "\n" for line in read_all(out, key))
    _write_whole(out / "manifest.jsonl", text.encode())


@contextmanager
def locked(out: Path, shard: tuple[int, int] | None) -> Iterator[None]:
    """Let one run at a time write the manifest of OUT, or of a shard of it.

    Raises:
        UsageError: Another run is writing it.
    """
    try:
        with FileLock(out / f".{name_of(shard)}.lock", timeout=0):
            yield
    except Timeout:
        raise UsageError(f"another run is writing to {out}: wait for it, or end it") from None


def _write_whole(path: Path, data: bytes) -> None:
    with paths.whole(path) as part:
        part.write_bytes(data)


def series_stem(stack: str) -> str:
    """What the names of all stacks of a series begin with: "0003-ab12cd" of "0003-ab12cd_e1"."""
    return stack.partition("_")[0]


def current(lines: Iterable[Line]) -> list[Line]:
    """Leave out lines of stacks that are not among the `stacks` of their series' last line."""

    def series(line: Line) -> tuple[str, str, str]:
        return line["study_uid"], line["series_uid"], series_stem(line["stack"])

    kept = list(lines)
    stacks = {series(line): line["stacks"] for line in kept if "stacks" in line}
    return [line for line in kept if "stacks" not in line or line["stack"] in stacks[series(line)]]


def counts(lines: Iterable[Line], statuses: Sequence[str] = ()) -> dict[str, int]:
    """How many lines have each status; those in `statuses` are named even at zero."""
    found = dict.fromkeys(statuses, 0)
    for line in lines:
        found[line["status"]] = found.get(line["status"], 0) + 1
    return found


def exit_code(lines: Iterable[Line]) -> int:
    """0 nothing rejected or failed, 3 some and some good, 4 some and none good."""
    found = {line["status"] for line in lines}
    if not found & _BAD:
        return 0
    return 3 if found & _GOOD else 4


def cell(value: object) -> str:
    """A cell that a spreadsheet takes for text: a leading =, +, -, @, tab or return is quoted."""
    if value is None:
        return ""
    text = str(value)
    if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + text
    return text


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table: all of it or nothing; text cells are quoted against formulas."""
    write_raw_csv(path, header, ([cell(value) for value in row] for row in rows))


def write_raw_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """As `write_csv`, of cells that are quoted already."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in (header, *rows):
        # Python before 3.13 leaves a lone return bare, which ends the row for every reader.
        (quoted if any("\r" in one for one in row) else plain).writerow(row)
    _write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))


def write_files_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write `files.csv`, sorted by path.

    Args:
        path: The file.
        rows: path, status, series_uid, output, phase, slice, reason.
    """
    write_csv(path, FILES_HEADER, sorted(rows, key=lambda row: str(row[0])))
