"""The wanted values inside sequences, out of their bytes (DICOM PS3.5 section 7.5).

The functional groups of a thousand frames hold some hundred thousand elements, of which a few
thousand matter; the others are stepped over.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from struct import error as StructError
from typing import Any

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_VRS = _LONG | _SHORT
_BYTES = frozenset({b"OB", b"OW"})

Tree = Mapping[int, Any]
"""Wanted tags: to None for a value, to another tree for a sequence whose first item is wanted."""


class DamagedError(Exception):
    """A sequence runs past its end, or holds something that is no item."""


def items(data: bytes, tree: Tree, order: str) -> list[dict[int, bytes]]:
    """Read the items of a sequence.

    Args:
        data: The sequence's value, with or without the delimiter at its end.
        tree: What is wanted of each item.
        order: Byte order, "<" or ">".

    Returns:
        Values by tag, one dictionary an item. What a nested sequence holds is laid into the
        dictionary of the item around it; under the sequence's own tag stands the number of its
        items, as text.

    Raises:
        DamagedError: The items do not fit together.
    """
    try:
        return _Reader(data, order).sequence(len(data), tree, _implicit(data, order))
    except (StructError, RecursionError) as error:
        raise DamagedError("the sequence ends too early") from error


def _implicit(data: bytes, order: str) -> bool:
    """Whether the first element of the first item that has one states no VR.

    The data set around tells it not: the content of UN elements is implicit always, and some
    writers switch (PS3.5 section 6.2.2).
    """
    at, plain = 0, Struct(order + "HHL").unpack_from
    while at + 14 <= len(data):
        group = plain(data, at)[0]
        if group != _ITEM >> 16:
            return data[at + 4 : at + 6] not in _VRS
        at += 8
    return False


class _Reader:
    def __init__(self, data: bytes, order: str) -> None:
        self._data, self._at = data, 0
        self._plain = Struct(order + "HHL").unpack_from
        self._short = Struct(order + "HH2sH").unpack_from
        self._wide = Struct(order + "L").unpack_from

    def sequence(
        self, length: int, tree: Tree, implicit: bool, elements: bool = True
    ) -> list[dict[int, bytes]]:
        """The items from here on; without `elements` they hold fragments and are stepped over."""
        found: list[dict[int, bytes]] = []
        end = len(self._data) if length == _UNDEFINED else self._at + length
        while self._at < end:
            group, element, size = self._plain(self._data, self._at)
            tag = group << 16 | element
            self._at += 8
            if tag == _SEQUENCE_END:
                return found
            if tag != _ITEM:
                raise DamagedError(f"({group:04X},{element:04X}) stands in the place of an item")
            if elements:
                found.append(self._item(size, tree, implicit))
            else:
                self._skip(size)
        return found

    def _item(self, length: int, tree: Tree, implicit: bool) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        end = len(self._data) if length == _UNDEFINED else self._at + length
        while self._at < end:
            tag, size, vr = self._element(implicit)
            if tag == _ITEM_END:
                return found
            branch = tree.get(tag)
            if branch is not None or size == _UNDEFINED:
                inside = self.sequence(
                    size, branch or {}, implicit or vr == b"UN", vr not in _BYTES
                )
                if branch is not None:
                    found[tag] = str(len(inside)).encode()
                    found.update(inside[0] if inside else {})
                continue
            start = self._at
            self._skip(size)
            if tag in tree:
                found[tag] = self._data[start : self._at]
        return found

    def _element(self, implicit: bool) -> tuple[int, int, bytes]:
        """Tag, length and VR (b"" where implicit) of the element here; goes to its value."""
        group, element, length = self._plain(self._data, self._at)
        if implicit or group == _ITEM >> 16:
            self._at += 8
            return group << 16 | element, length, b""
        group, element, vr, length = self._short(self._data, self._at)
        self._at += 8
        if vr in _LONG:
            (length,) = self._wide(self._data, self._at)
            self._at += 4
        return group << 16 | element, length, vr

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise DamagedError("an element runs past the end of its sequence")
