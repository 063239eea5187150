"""Encapsulated pixel data: the walk over its items, and the capped inflation of deflated files.

Both are done here because pydicom returns a data set without pixels, and says nothing, for a file
that was cut inside its encapsulated pixel data (specs section 6).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import BinaryIO

_ITEM = 0xFFFEE000
_DELIMITER = 0xFFFEE0DD
_CODESTREAMS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")
_INFLATED_FREE = 64 << 20
_INFLATED_RATIO = 200
_INFLATED_MAX = 4 << 30


class TooLargeError(Exception):
    """A deflated data set inflates beyond the limits."""


def fragments(file: BinaryIO, offset: int, size: int) -> tuple[tuple[int, int], ...] | None:
    """Offsets and lengths of the fragments, the basic offset table left out.

    Args:
        file: The file.
        offset: Where the value of the pixel element starts.
        size: Bytes of the file.

    Returns:
        None where an item runs past the end or the sequence delimiter is absent: TRUNCATED.
    """
    found: list[tuple[int, int]] = []
    first = True
    while offset + 8 <= size:
        file.seek(offset)
        group, element, length = struct.unpack("<HHL", file.read(8))
        tag = group << 16 | element
        offset += 8
        if tag == _DELIMITER:
            return tuple(found) if found else None
        if tag != _ITEM or offset + length > size:
            return None
        if not first:
            found.append((offset, length))
        first = False
        offset += length
    return None


def first_fragments(
    file: BinaryIO, offset: int, parts: Sequence[tuple[int, int]], frames: int, extended: bytes
) -> tuple[int, ...] | None:
    """Which fragment each frame starts with, where frames may have several.

    Args:
        file: The file.
        offset: Where the value of the pixel element starts.
        parts: From `fragments`.
        frames: How many there must be.
        extended: The extended offset table, b"" where there is none.

    Returns:
        () where each frame has one fragment, or the only frame has all; None where neither a table
        nor the starts of the codestreams tell.
    """
    if frames in (1, len(parts)):
        return ()
    file.seek(offset + 4)
    (length,) = struct.unpack("<L", file.read(4))
    basic = file.read(length)
    places = {place - 8 - (parts[0][0] - 8): index for index, (place, _) in enumerate(parts)}
    for table, width in ((extended, 8), (basic, 4)):
        count = len(table) // width
        starts = struct.unpack(f"<{count}{'Q' if width == 8 else 'L'}", table[: count * width])
        found = [places.get(start, -1) for start in starts]
        if len(found) == frames and found[0] == 0 and all(a < b for a, b in pairwise(found)):
            return tuple(found)
    found = []
    for index, (place, _) in enumerate(parts):
        file.seek(place)
        if file.read(4).startswith(_CODESTREAMS):
            found.append(index)
    return tuple(found) if len(found) == frames and found[0] == 0 else None


def inflate(deflated: bytes) -> bytes:
    """Inflate a deflated data set.

    Raises:
        TooLargeError: More than 64 MiB come out and they are more than 200 times the input, or more
            than 4 GiB.
        zlib.error: The stream is damaged.
    """
    limit = min(max(_INFLATED_FREE, _INFLATED_RATIO * len(deflated)), _INFLATED_MAX)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    data = stream.decompress(deflated, limit + 1)
    if len(data) > limit:
        raise TooLargeError(f"the deflated data set inflates to more than {limit >> 20} MiB")
    return data
