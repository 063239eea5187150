"""One file's bytes to a `Header`: parsed once, up to the pixel element."""

from __future__ import annotations

import math
import struct
import zlib
from io import BytesIO
from typing import BinaryIO, NamedTuple

from medplat.dicom import encapsulated, mosaic, multiframe, tags
from medplat.dicom.header import Entry, Header, Pixels
from medplat.dicom.raw import LONG_VRS, SHORT_VRS, PixelElement, walk
from medplat.dicom.syntax import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, NATIVE, syntax

_VRS = frozenset(vr.encode() for vr in LONG_VRS | SHORT_VRS)
_LONG = frozenset(vr.encode() for vr in LONG_VRS)
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
_SCALES = ("slope", "intercept")
_SERIES_UID = 0x0020000E
_META = 1 << 10  # Bytes that hold most file meta groups.
_FLOAT_BITS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}


class NotDicomError(Exception):
    """The bytes are not a DICOM data set; the text is the reason."""


class Meta(NamedTuple):
    """The file meta group: where the data set starts, and how it is encoded."""

    start: int
    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str


def read_header(file: BinaryIO, entry: Entry) -> Header:
    """Parse one file.

    Args:
        file: Open at its start, seekable.
        entry: Where it lies; `size` is its number of bytes.

    Raises:
        NotDicomError: The bytes are no DICOM data set, or hold no SOP class.
        encapsulated.TooLargeError: A deflated data set passes the limits.
    """
    meta = read_meta(file, entry.size)
    size = entry.size
    if meta.transfer_syntax == DEFLATED:
        file.seek(meta.start)
        try:
            inflated = encapsulated.inflate(file.read())
        except zlib.error as error:
            raise NotDicomError("the deflated data set is damaged") from error
        file, size, meta = BytesIO(inflated), len(inflated), meta._replace(start=0)
    implicit, little = _encoding(file, meta)
    stated = meta.transfer_syntax or _default_syntax(implicit, little)
    file.seek(meta.start)
    raw, pixel, whole = walk(file, size, implicit, little, tags.WANTED)
    header = tags.header(raw, entry, stated, meta.sop_class_uid, meta.sop_instance_uid)
    if not header.sop_class_uid and (pixel is None or not header.series_uid):
        raise NotDicomError("it holds no SOP class")
    if "MOSAIC" in header.image_type:
        csa = raw.bytes(tags.private(raw, "csa"))
        tiles = raw.doubles(tags.private(raw, "mosaic_tiles"))
        header = header.changed(mosaic=mosaic.read(csa, tiles, header))
    if header.frames > 1 or tags.FRAME_GROUPS in raw.sequences:
        header = multiframe.describe(header, raw)
    if pixel is None:
        # What ends before the place of SeriesInstanceUID was cut, if only between two elements.
        whole = whole and raw.last >= _SERIES_UID
        return header.changed(damage="NO_PIXELS" if whole else "TRUNCATED")
    pixels, damage = _locate(file, pixel, size, header, raw.bytes(tags.EXTENDED_OFFSETS))
    scales = [v for name, column in header.per_frame if name in _SCALES for v in column]
    if any(map(math.isnan, (header.slope, header.intercept, *scales))):
        damage = "TRUNCATED"
    return header.changed(pixels=pixels, damage=damage)


def read_meta(file: BinaryIO, size: int) -> Meta:
    """Read the preamble and the file meta group, or find a data set without them.

    Raises:
        NotDicomError: Neither is there.
    """
    head = file.read(_META)

    def at(start: int, count: int) -> bytes:
        if start + count <= len(head):
            return head[start : start + count]
        file.seek(start)
        return file.read(count)

    start = 132 if head[128:132] == b"DICM" else 0
    if start == 0 and not _plausible(head, size):
        raise NotDicomError("it is not DICOM" if head else "it is empty")
    values: dict[int, str] = {}
    while True:
        lead = at(start, 12)
        if len(lead) < 8 or lead[:2] != b"\x02\x00":
            break
        element, vr = struct.unpack("<H", lead[2:4])[0], lead[4:6]
        long = vr in _LONG
        if long and len(lead) < 12:
            break
        length = struct.unpack("<L", lead[8:12])[0] if long else struct.unpack("<H", lead[6:8])[0]
        start += 12 if long else 8
        if element in (0x02, 0x03, 0x10):
            values[element] = at(start, min(length, 128)).decode("latin-1").strip(" \0")
        start += length
    return Meta(start, values.get(0x10, ""), values.get(0x02, ""), values.get(0x03, ""))


def _plausible(head: bytes, size: int) -> bool:
    """Whether a file without preamble may start with a DICOM element of group 0002 or 0008."""
    if len(head) < 8 or head[:2] not in _FIRST_GROUPS:
        return False
    if head[4:6] in _VRS:
        return True
    return head[:2] == b"\x08\x00" and int(struct.unpack("<L", head[4:8])[0]) < min(size, 1 << 16)


def _encoding(file: BinaryIO, meta: Meta) -> tuple[bool, bool]:
    """Whether the data set is implicit VR and little endian, by its first element."""
    file.seek(meta.start)
    lead = file.read(6)
    implicit = lead[4:6] not in _VRS
    if meta.transfer_syntax:
        return implicit, meta.transfer_syntax != BIG_ENDIAN
    return implicit, lead[:2] != b"\x00\x08"


def _locate(
    file: BinaryIO, pixel: PixelElement, size: int, header: Header, offsets: bytes
) -> tuple[Pixels, str | None]:
    """Check that the pixel element is whole; TRUNCATED where it is not."""
    bits = _FLOAT_BITS.get(pixel.keyword, header.bits_allocated)
    expected = (header.rows * header.columns * header.samples * header.frames * bits + 7) // 8
    offset = pixel.offset
    if pixel.length is None:
        if header.transfer_syntax in NATIVE:
            return Pixels(pixel.keyword, offset), "TRUNCATED"
        parts = encapsulated.fragments(file, offset, size)
        if parts is None or len(parts) < header.frames:
            return Pixels(pixel.keyword, offset), "TRUNCATED"
        firsts = encapsulated.first_fragments(file, offset, parts, header.frames, offsets)
        if firsts is None:
            return Pixels(pixel.keyword, offset), "TRUNCATED"
        return Pixels(pixel.keyword, offset, None, parts, firsts), None
    short = min(pixel.length, size - offset) < expected
    if header.transfer_syntax not in NATIVE:
        short = bool(syntax(header.transfer_syntax).decoder)
    return Pixels(pixel.keyword, offset, pixel.length), "TRUNCATED" if short else None


def _default_syntax(implicit: bool, little: bool) -> str:
    """The transfer syntax of a data set that states none."""
    if not little:
        return BIG_ENDIAN
    return IMPLICIT if implicit else EXPLICIT
