"""The elements of one data set, up to the pixel element, as raw bytes (DICOM PS3.5 section 7).

Only the few values that are needed are read, and everything else is stepped over: this is several
times faster than pydicom's value objects, cannot fail on a malformed neighbour, and a conversion of
uncompressed images starts without importing pydicom at all.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import warnings
from datetime import date
from typing import BinaryIO, NamedTuple

# pydicom quotes values in its log lines, and a value may be a name.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")

PIXEL_ELEMENTS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_LONG = "OBODOFOLOVOWSQSVUCUNURUTUV"
_SHORT = "AEASATCSDADSDTFLFDISLOLTPNSHSLSSSTTMUIULUS"
LONG_VRS = frozenset(_LONG[i : i + 2] for i in range(0, len(_LONG), 2))
SHORT_VRS = frozenset(_SHORT[i : i + 2] for i in range(0, len(_SHORT), 2))
_VRS = frozenset(vr.encode() for vr in LONG_VRS | SHORT_VRS)
_LONG_BYTES = frozenset(vr.encode() for vr in LONG_VRS)
_SHORT_BYTES = _VRS - _LONG_BYTES
UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_DEEPEST = 60
_WINDOW = 1 << 14
_DAY_US = 86_400_000_000
_TIME = re.compile(r"(\d\d):?(\d\d)?:?(\d\d)?(?:\.(\d{1,6}))?")


class PixelElement(NamedTuple):
    """Where the value of the pixel element starts, and its stated length (None: undefined)."""

    keyword: str
    offset: int
    length: int | None


class Raw:
    """Raw values by tag, read as the type that the caller knows them to have."""

    def __init__(self, little_endian: bool = True) -> None:
        self.elements: dict[int, bytes] = {}
        self.sequences: dict[int, bytes] = {}
        self.groups: set[int] | None = None  # Of the wanted elements, where `walk` read them.
        self.last = 0  # Tag of the last element before the pixel element.
        self.order = "<" if little_endian else ">"

    def bytes(self, tag: int) -> bytes:
        """The value as it stands; b"" where absent or a sequence (see `sequences`)."""
        return self.elements.get(tag, b"")

    def word(self, tag: int) -> str:
        """A value in the default character set (UI, CS, DA ...).

        A text ends at its first zero: what follows are other elements, names perhaps, which a
        damaged length took in.
        """
        return self.bytes(tag).partition(b"\0")[0].decode("latin-1").strip(" ")

    def words(self, tag: int) -> tuple[str, ...]:
        """The same, multi-valued."""
        value = self.word(tag)
        if "\\" not in value:
            return (value,) if value else ()
        return tuple([part.strip(" ") for part in value.split("\\")])

    def text(self, tag: int) -> str:
        """A value in the data set's character set (LO, PN, SH)."""
        value = self.bytes(tag).partition(b"\0")[0]
        if not value:
            return ""
        if value.isascii() and b"\x1b" not in value:
            return value.decode("ascii").strip(" ")
        from pydicom.charset import convert_encodings, decode_bytes

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                encodings = convert_encodings(list(self.words(0x00080005)) or [""])
                return str(decode_bytes(value, encodings, {0x5C, 0x5E, 0x3D})).strip(" ")
        except (LookupError, UnicodeError, ValueError):
            return value.decode("latin-1").strip(" ")

    def floats(self, tag: int) -> tuple[float, ...]:
        """Decimal strings; () if one of them is not a finite number."""
        if not self.elements.get(tag):
            return ()
        try:
            values = tuple(map(float, self.words(tag)))
        except ValueError:
            return ()
        return values if all(map(math.isfinite, values)) else ()

    def number(self, tag: int) -> float | None:
        """The first decimal string."""
        values = self.floats(tag)
        return values[0] if values else None

    def integer(self, tag: int) -> int | None:
        """The first integer string."""
        value = self.number(tag)
        return int(value) if value is not None and abs(value) < 2**53 else None

    def short(self, tag: int, default: int = 0) -> int:
        """The first unsigned short."""
        value = self.bytes(tag)
        return int(struct.unpack(self.order + "H", value[:2])[0]) if len(value) > 1 else default

    def longs(self, tag: int) -> tuple[int, ...]:
        """Unsigned longs."""
        value = self.bytes(tag)
        count = len(value) // 4
        return tuple(struct.unpack(f"{self.order}{count}L", value[: 4 * count]))

    def doubles(self, tag: int) -> tuple[float, ...]:
        """Numbers of unknown type (private tags): decimal strings, doubles or one single."""
        value = self.bytes(tag)
        if not value:
            return ()
        if re.fullmatch(rb"[-+0-9.eE\\ \0]+", value) and value.strip(b" \0"):
            return self.floats(tag)
        if len(value) % 8 == 0:
            return tuple(struct.unpack(f"{self.order}{len(value) // 8}d", value))
        return tuple(struct.unpack(self.order + "f", value)) if len(value) == 4 else ()

    def moment(self, date_tag: int, time_tag: int) -> tuple[int | None, bool]:
        """Microseconds on an absolute clock from a DA and a TM element, and whether it is dated."""
        return moment(self.word(date_tag), self.word(time_tag))


def moment(day: str, clock: str) -> tuple[int | None, bool]:
    """Microseconds since the year 1 (with a day) or since midnight (without one).

    Args:
        day: DICOM DA, or "".
        clock: DICOM TM; without one there is no moment.
    """
    match = _TIME.match(clock)
    if not match:
        return None, False
    hours, minutes, seconds, fraction = match.groups(default="0")
    us = ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1_000_000
    us += int(fraction.ljust(6, "0"))
    day = day.replace(".", "").replace("-", "")
    try:
        ordinal = date(int(day[:4]), int(day[4:6]), int(day[6:8])).toordinal()
    except ValueError:
        return us, False
    return ordinal * _DAY_US + us, True


def walk(
    file: BinaryIO, size: int, implicit: bool, little_endian: bool, wanted: frozenset[int]
) -> tuple[Raw, PixelElement | None, bool]:
    """Read the elements from the current position up to the pixel element.

    Returns:
        The wanted values, the pixel element if there is one, and whether the data set was whole up
        to there (no element runs past `size`, nothing is left over).
    """
    walker = _Walker(file, size, implicit, little_endian)
    raw = Raw(little_endian)
    try:
        pixel = walker.read(raw, wanted)
    except _DamagedError:
        return raw, None, False
    return raw, pixel, pixel is not None or walker.at == size


class _DamagedError(Exception):
    """An element runs past the end, or what follows is no element."""


class _Element(NamedTuple):
    tag: int
    vr: bytes
    length: int


class _Walker:
    """Steps over the elements of a file, which is read in windows.

    Attributes:
        at: Position in the file.
    """

    def __init__(self, file: BinaryIO, size: int, implicit: bool, little_endian: bool) -> None:
        order = "<" if little_endian else ">"
        self.at = file.tell()
        self._file, self._size, self._implicit = file, size, implicit
        self._tag_long = struct.Struct(order + "HHL").unpack_from
        self._tag_short = struct.Struct(order + "HH2sH").unpack_from
        self._long = struct.Struct(order + "L").unpack_from
        self._item = struct.pack(order + "HH", 0xFFFE, 0xE000)
        self._window, self._start = b"", self.at

    def read(self, raw: Raw, wanted: frozenset[int]) -> PixelElement | None:
        """Go through the top level; None where it ends without a pixel element."""
        groups: set[int] = set()
        raw.groups = groups
        while self.at + 8 <= self._size:
            if not self._implicit:
                self._run(raw, wanted, groups)
                if self.at + 8 > self._size:
                    break
            tag, vr, length = self._element(self._implicit)
            if tag in PIXEL_ELEMENTS:
                return PixelElement(PIXEL_ELEMENTS[tag], self.at, _defined(length))
            if tag >> 16 == _ITEM >> 16:
                raise _DamagedError
            start = self.at
            self._step_over(vr, length, self._implicit, 0)
            raw.last = tag
            if tag in wanted:
                groups.add(tag >> 16)
                value = self._bytes(start, self.at - start)
                sequence = vr == b"SQ" or length == UNDEFINED or value.startswith(self._item)
                raw.elements[tag] = b"" if sequence else value
                if sequence:
                    raw.sequences[tag] = value
        return None

    def _run(self, raw: Raw, wanted: frozenset[int], groups: set[int]) -> None:
        """Go through elements of a known VR with a short length, as most are.

        Ends before any other one, and before one that does not lie in the window.
        """
        short, item, elements, tag = self._tag_short, self._item, raw.elements, raw.last
        offset = self._reach(12)
        window, begin = self._window, self._start
        last = len(window) - 12
        while offset <= last:
            group, number, vr, length = short(window, offset)
            start = offset + 8
            end = start + length
            if vr not in _SHORT_BYTES or end > len(window):
                break
            tag, offset = group << 16 | number, end
            if tag in wanted:
                value = window[start:end]
                if value.startswith(item):
                    raw.sequences[tag], value = value, b""
                elements[tag] = value
                groups.add(group)
        raw.last, self.at = tag, begin + offset

    def _element(self, implicit: bool) -> _Element:
        """Read the tag, VR and length at the current position, and go to the value."""
        offset = self._reach(12)
        if not implicit:
            group, number, vr, length = self._tag_short(self._window, offset)
            if vr in _VRS:
                self.at += 8
                if vr in _LONG_BYTES:
                    if len(self._window) < offset + 12:
                        raise _DamagedError
                    length = self._long(self._window, offset + 8)[0]
                    self.at += 4
                return _Element(group << 16 | number, vr, length)
            if vr.isalpha() and vr.isupper():  # A VR that is not known: its length is short.
                self.at += 8
                return _Element(group << 16 | number, vr, length)
        # Some writers switch to implicit VR inside explicit data sets; items have no VR either.
        group, number, length = self._tag_long(self._window, offset)
        self.at += 8
        return _Element(group << 16 | number, b"", length)

    def _step_over(self, vr: bytes, length: int, implicit: bool, depth: int) -> None:
        if length != UNDEFINED:
            self.at += length
            if self.at > self._size:
                raise _DamagedError
            return
        if depth > _DEEPEST:
            raise _DamagedError
        while True:
            item = self._element(implicit=True)
            if item.tag == _SEQUENCE_END:
                return
            if item.tag != _ITEM:
                raise _DamagedError
            if item.length != UNDEFINED:
                self._step_over(b"", item.length, implicit, depth)
                continue
            # The content of UN with undefined length is implicit VR (PS3.5 section 6.2.2).
            inner = implicit or vr == b"UN"
            while (found := self._element(inner)).tag != _ITEM_END:
                self._step_over(found.vr, found.length, inner, depth + 1)

    def _reach(self, count: int) -> int:
        """Offset of the current position in the window, which is moved there if need be."""
        offset = self.at - self._start
        if not 0 <= offset <= len(self._window) - count:
            if self.at + 8 > self._size:
                raise _DamagedError
            self._file.seek(self.at)
            self._window, self._start, offset = self._file.read(_WINDOW), self.at, 0
            if len(self._window) < 8:
                raise _DamagedError
        return offset

    def _bytes(self, start: int, count: int) -> bytes:
        offset = start - self._start
        if 0 <= offset <= len(self._window) - count:
            return self._window[offset : offset + count]
        self._file.seek(start)
        return self._file.read(count)


def _defined(length: int) -> int | None:
    return None if length == UNDEFINED else length
