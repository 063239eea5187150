"""Multi-frame objects: the functional groups of each frame, laid under the tags of a classic image.

Once that is done, frames are grouped, ordered and checked like single images; the order in which
they stand in the file, which differs from vendor to vendor, counts for nothing (specs section 5.4;
PS3.3 section C.7.6.16).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medplat.dicom import nested, tags
from medplat.dicom.header import Header
from medplat.dicom.raw import Raw
from medplat.errors import Refused

_CLASSIC = (
    0x00080008, 0x00080022, 0x00080023, 0x0008002A, 0x00080032, 0x00080033, 0x00080096, 0x00089208,
    0x00180050, 0x00180060, 0x00180080, 0x00180081, 0x00180082, 0x00180086, 0x00180088, 0x00180095,
    0x00181060, 0x00181151, 0x00181210, 0x00181314, 0x00189087, 0x00189089, 0x00200012, 0x00200013,
    0x00200100, 0x0020930D, 0x00281052, 0x00281053,
)  # fmt: skip
_CONVERTED = dict.fromkeys(_CLASSIC)
_PHILIPS = dict.fromkeys((
    0x00180086, 0x00200100, 0x20010010, 0x20011003, 0x20050010, 0x200510A0, 0x2005100D, 0x2005100E,
))  # fmt: skip
_FRAME_TYPE = {0x00089007: None, 0x00089208: None}
_TREE: nested.Tree = {
    0x00209113: {0x00200032: None},  # PlanePositionSequence
    0x00209116: {0x00200037: None},  # PlaneOrientationSequence
    0x00289110: {0x00180050: None, 0x00180088: None, 0x00280030: None},  # PixelMeasuresSequence
    0x00209111: dict.fromkeys(  # FrameContentSequence
        (0x00189074, 0x00189151, 0x00209128, 0x00209156, 0x00209157)
    ),
    0x00289145: {0x00281052: None, 0x00281053: None},  # PixelValueTransformationSequence
    0x00409096: {0x00409224: None, 0x00409225: None, 0x004008EA: {0x00080100: None}},
    0x00189226: _FRAME_TYPE,  # MRImageFrameTypeSequence
    0x00189329: _FRAME_TYPE,  # CTImageFrameTypeSequence
    0x00189751: _FRAME_TYPE,  # PETFrameTypeSequence
    0x00189114: {0x00189082: None},  # MREchoSequence
    0x00189112: {0x00180080: None, 0x00181314: None},  # MRTimingAndRelatedParametersSequence
    0x00189006: {0x00180095: None},  # MRImagingModifierSequence
    0x00189117: {0x00189087: None, 0x00189076: {0x00189089: None}},  # MRDiffusionSequence
    0x00189118: {0x00209153: None},  # CardiacSynchronizationSequence
    0x00209310: {0x0020930D: None},  # TemporalPositionSequence
    0x00189325: {0x00180060: None},  # CTXRayDetailsSequence
    0x00189314: {0x00181210: None},  # CTReconstructionSequence
    0x00209170: _CONVERTED,  # UnassignedSharedConvertedAttributesSequence
    0x00209171: _CONVERTED,  # UnassignedPerFrameConvertedAttributesSequence
    0x2005140F: _PHILIPS,
}
# What the groups state under tags or types of their own: tag to the classic one.
_SAME = {0x00089007: 0x00080008, 0x00189151: 0x0008002A, 0x00189074: 0x0008002A}
_NUMBERS = {
    0x00189082: (0x00180081, "doubles"),  # EffectiveEchoTime
    0x00209153: (0x00181060, "doubles"),  # NominalCardiacTriggerDelayTime
    0x00209128: (0x00200100, "longs"),  # TemporalPositionIndex
    0x00209156: (0x00200012, "short"),  # FrameAcquisitionNumber
}
_MAPPING = 0x00409096
# Of the data set around: true of the object at most, never of a frame.
_NOT_INHERITED = frozenset({
    0x00200032, 0x00200037, 0x00280030, 0x00281052, 0x00281053, 0x00200100, 0x00200013,
})  # fmt: skip


def describe(header: Header, raw: Raw) -> Header:
    """Add to the header of a file what its functional groups say of the frames.

    Args:
        header: Of the file.
        raw: Its elements.

    Returns:
        The same header where there are no functional groups or they do not fit the frames: it then
        has no position, so that no volume can be made of it.
    """
    found = _groups(raw)
    if len(found) != header.frames:
        return header if header.frames == 1 and not found else _without_place(header)
    known: dict[tuple[Any, ...], tuple[tuple[str, Any], ...]] = {}
    rows = [_fields(raw, groups, known) for groups in found]
    constant: dict[str, Any] = {}
    varying: list[tuple[str, tuple[Any, ...]]] = []
    for name in rows[0]:
        values = tuple(row[name] for row in rows)
        if all(value == values[0] for value in values):
            constant[name] = values[0]
        else:
            varying.append((name, values))
    if constant.get("instance_number", 0) is None:
        del constant["instance_number"]
    return header.changed(**constant, per_frame=tuple(varying))


def _groups(raw: Raw) -> list[dict[int, bytes]]:
    """The functional groups of each frame, the shared ones among them."""
    try:
        shared = nested.items(raw.sequences.get(tags.SHARED_GROUPS, b""), _TREE, raw.order)
        frames = nested.items(raw.sequences.get(tags.FRAME_GROUPS, b""), _TREE, raw.order)
    except nested.DamagedError:
        return []
    return [{**(shared[0] if shared else {}), **frame} for frame in frames]


def _without_place(header: Header) -> Header:
    return header.changed(position=None, orientation=None)


def _fields(
    raw: Raw, groups: dict[int, bytes], known: dict[tuple[Any, ...], tuple[tuple[str, Any], ...]]
) -> dict[str, Any]:
    """The fields of one frame; `known` holds technical values found before."""
    stated = Raw(raw.order == "<")
    stated.elements = groups
    laid = {new: groups[old] for old, new in _SAME.items() if groups.get(old)}
    for tag, (classic, kind) in _NUMBERS.items():
        value: Any = getattr(stated, kind)(tag) if groups.get(tag) else ()
        first = value[0] if isinstance(value, tuple) and value else value
        if first != ():
            laid[classic] = repr(first).encode()
    if groups.get(_MAPPING, b"1") != b"1":
        groups = {tag: value for tag, value in groups.items() if tag not in _TREE[_MAPPING]}
    frame = Raw(raw.order == "<")
    frame.sequences = raw.sequences
    frame.elements = {
        **{tag: value for tag, value in raw.elements.items() if tag not in _NOT_INHERITED},
        **groups,
        **laid,
    }
    key = tuple(frame.elements.get(tag) for tag in (*_CLASSIC, *_PHILIPS, 0x00409225, 0x00409224))
    if key not in known:
        known[key] = tags.technical(frame)
    return tags.image_fields(frame, known[key])


def frames(header: Header) -> list[Header]:
    """One header for each frame of a file; the header itself where it holds a single one."""
    if header.frames == 1:
        return [header]
    names = [name for name, _ in header.per_frame]
    columns = [values for _, values in header.per_frame]
    whole = header.changed(per_frame=())
    if not names:
        return [whole.changed(frame=index) for index in range(header.frames)]
    return [
        whole.changed(frame=index, **dict(zip(names, row, strict=True)))
        for index, row in enumerate(zip(*columns, strict=True))
    ]


def placed(header: Header) -> bool:
    """Whether the frames of a file state where they lie."""
    return header.position is not None or any(name == "position" for name, _ in header.per_frame)


def check_parts(headers: Sequence[Header]) -> None:
    """Refuse a series in which a part of a concatenation is absent.

    Raises:
        Refused: MISSING_SLICE.
    """
    wholes: dict[str, set[int]] = {}
    totals: dict[str, int] = {}
    for header in headers:
        if header.part is not None:
            uid, number, total = header.part
            wholes.setdefault(uid, set()).add(number)
            totals[uid] = max(totals.get(uid, 0), total, number)
    for uid, numbers in wholes.items():
        absent = sorted(set(range(1, totals[uid] + 1)) - numbers)
        if absent:
            shown = ", ".join(map(str, absent[:10]))
            text = f"part {shown} of {totals[uid]} of a concatenated multi-frame object is absent"
            raise Refused("MISSING_SLICE", text)
