"""The elements of one data set, up to the pixel element, as raw bytes.

pydicom walks the elements; the few values that are needed are read from their bytes here, which is
several times faster than its value objects and cannot fail on a malformed neighbour.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import warnings
from collections.abc import Iterable
from datetime import date
from typing import BinaryIO, NamedTuple

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.filereader import data_element_generator

# pydicom quotes values in its log lines, and a value may be a name.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

PIXEL_ELEMENTS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_LONG = "OBODOFOLOVOWSQSVUCUNURUTUV"
_SHORT = "AEASATCSDADSDTFLFDISLOLTPNSHSLSSSTTMUIULUS"
LONG_VRS = frozenset(_LONG[i : i + 2] for i in range(0, len(_LONG), 2))
SHORT_VRS = frozenset(_SHORT[i : i + 2] for i in range(0, len(_SHORT), 2))
UNDEFINED = 0xFFFFFFFF
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
        self.sequences: dict[int, object] = {}
        self.order = "<" if little_endian else ">"

    def bytes(self, tag: int) -> bytes:
        """The value as it stands; b"" where absent or a sequence."""
        return self.elements.get(tag, b"")

    def word(self, tag: int) -> str:
        """A value in the default character set (UI, CS, DA ...)."""
        return self.bytes(tag).decode("latin-1").strip(" \0")

    def words(self, tag: int) -> tuple[str, ...]:
        """The same, multi-valued."""
        value = self.word(tag)
        return tuple(part.strip(" \0") for part in value.split("\\")) if value else ()

    def text(self, tag: int) -> str:
        """A value in the data set's character set (LO, PN, SH)."""
        value = self.bytes(tag)
        if value.isascii() and b"\x1b" not in value:
            return value.decode("ascii").strip(" \0")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                encodings = convert_encodings(list(self.words(0x00080005)) or [""])
                return str(decode_bytes(value, encodings, {0x5C, 0x5E, 0x3D})).strip(" \0")
        except (LookupError, UnicodeError, ValueError):
            return value.decode("latin-1").strip(" \0")

    def floats(self, tag: int) -> tuple[float, ...]:
        """Decimal strings; () if one of them is not a finite number."""
        try:
            values = tuple(float(part) for part in self.words(tag))
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

    def doubles(self, tag: int) -> tuple[float, ...]:
        """Numbers of unknown type (private tags): decimal strings, doubles or one single."""
        value = self.bytes(tag)
        if re.fullmatch(rb"[-+0-9.eE\\ \0]+", value) and value.strip(b" \0"):
            return self.floats(tag)
        if value and len(value) % 8 == 0:
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
    file: BinaryIO, size: int, implicit: bool, little_endian: bool, wanted: Iterable[int]
) -> tuple[Raw, PixelElement | None, bool]:
    """Read the elements from the current position up to the pixel element.

    Returns:
        The wanted values, the pixel element if there is one, and whether the data set was whole up
        to there (no element runs past `size`, nothing is left over).
    """
    raw = Raw(little_endian)
    last = [0, UNDEFINED, 0]
    last_vr: list[str | None] = [None]

    def stop(tag: int, vr: str | None, length: int) -> bool:
        last[:] = tag, length, file.tell()
        last_vr[0] = vr
        return tag in PIXEL_ELEMENTS

    whole = True
    try:
        for element in data_element_generator(
            file,
            implicit,
            little_endian,
            stop,
            specific_tags=list(wanted),
        ):
            if isinstance(element.value, bytes) and element.VR != "SQ":
                raw.elements[int(element.tag)] = element.value
            else:
                raw.sequences[int(element.tag)] = element
                raw.elements[int(element.tag)] = b""
    except Exception:
        # Whatever the bytes hold, a damaged header is an outcome, not an error.
        whole = False
    tag, length, start = last
    if whole and tag in PIXEL_ELEMENTS:
        return raw, PixelElement(PIXEL_ELEMENTS[tag], start, _defined(length)), True
    return raw, None, whole and (length == UNDEFINED or start + length == size)


def _defined(length: int) -> int | None:
    return None if length == UNDEFINED else length
