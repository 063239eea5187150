"""Encapsulated pixel data: the walk over its items, and the capped inflation of deflated files.

Both are done here because pydicom returns a data set without pixels, and says nothing, for a file
that was cut inside its encapsulated pixel data (specs section 6).
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

_ITEM = 0xFFFEE000
_DELIMITER = 0xFFFEE0DD
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
            return tuple(found)
        if tag != _ITEM or offset + length > size:
            return None
        if not first:
            found.append((offset, length))
        first = False
        offset += length
    return None


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
