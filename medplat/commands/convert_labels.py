"""Labels of an export, as label maps beside the series that they were drawn on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medplat.commands import label_pairs
from medplat.dicom import labels, rtstruct, seg, source
from medplat.dicom.scan import RTSTRUCT, identity
from medplat.dicom.sidecar import scrub
from medplat.errors import Refused
from medplat.types import Array, Geometry, Series

if TYPE_CHECKING:
    from medplat.commands.label_pairs import Drawing
    from medplat.dicom.read import SeriesPlan

_OVERLAP = "LABEL_OVERLAP"
_FORMATS = {".nii.gz": "NIfTI", ".nii": "NIfTI", ".nrrd": "NRRD", ".mha": "MetaImage"}


@dataclass
class Label:
    """One label that waits for its place.

    Attributes:
        index: Its place among the labels of its series.
        sop_uid: SOPInstanceUID of a DICOM object, "" of an image.
        format: What it was.
        texts: Of its own header: what no name may hold.
        drawn: As read: volumes (one each where the values are fractions) or contours.
        split: Structures that overlap become labels of their own: a person decided so.
        apart: That was done.
        placed: True once it lies on the grid of a stack.
        notes: Codes and sentences of a label that was placed.
        refused: Code and sentence, where it fits no stack so far.
    """

    index: int
    sop_uid: str
    format: str
    texts: tuple[str, ...] = ()
    drawn: tuple[labels.LabelVolume | rtstruct.Contours, ...] = ()
    split: bool = False
    apart: bool = False
    placed: bool = False
    notes: list[tuple[str, str]] = field(default_factory=list)
    refused: tuple[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Placed:
    """A label on the grid of a stack.

    Attributes:
        label: Where it comes from.
        array: (x, y, z) on the grid of the series.
        geometry: That grid.
        segments: What the values mean.
        fraction: See `LabelVolume`.
    """

    label: Label
    array: Array
    geometry: Geometry
    segments: tuple[labels.Segment, ...]
    fraction: str = ""

    def described(self, series: Series, texts: Sequence[str]) -> dict[str, Any]:
        """The label's sidecar; `texts` of the series are what no name may hold."""
        names = (*texts, *self.label.texts)
        found: dict[str, Any] = {
            "kind": "fraction" if self.fraction else "label",
            "series_uid": series.series_uid,
            "study_uid": series.study_uid,
            "case": series.case,
            "patient": series.patient,
            "sop_uid": self.label.sop_uid,
            "format": self.label.format,
            "values": [_value(one, names) for one in self.segments],
        }
        return found | ({"fraction": self.fraction} if self.fraction else {})


def load(drawings: Sequence[Drawing], *, split: bool = False) -> list[Label]:
    """Read labels; one that cannot be read says why.

    Args:
        drawings: Of one series.
        split: Structures that overlap become labels of their own.
    """
    found = []
    for index, drawing in enumerate(drawings):
        header = drawing.header
        label = Label(index, header.sop_instance_uid if header else "", _format(drawing))
        label.split = split
        found.append(label)
        try:
            label.texts = identity(header).texts if header else ()
            _load(label, drawing)
        except Refused as error:
            label.refused = error.code, error.message
        except Exception as error:  # A damaged label must not stop the series it belongs to.
            kind = type(error).__name__
            label.refused = "TRUNCATED", f"the label cannot be read ({kind})"
    return found


def _load(label: Label, drawing: Drawing) -> None:
    try:
        label.drawn = _read(drawing)
    except Refused as error:
        if error.code != _OVERLAP or not label.split:
            raise
        label.drawn, label.apart = _read(drawing, apart=True), True


def _format(drawing: Drawing) -> str:
    if drawing.header is None:
        return next(name for end, name in _FORMATS.items() if drawing.path.lower().endswith(end))
    return "RTSTRUCT" if drawing.header.sop_class_uid == RTSTRUCT else "DICOM SEG"


def _read(
    drawing: Drawing, *, apart: bool = False
) -> tuple[labels.LabelVolume | rtstruct.Contours, ...]:
    """A label as it was drawn; `apart`: each layer of an image, each segment of a DICOM SEG."""
    if drawing.header is None:
        return tuple(label_pairs.read_image(drawing, apart=apart))
    with source.open_entry(drawing.header.entry) as opened:
        if drawing.header.sop_class_uid == RTSTRUCT:
            return (rtstruct.read(opened),)
        if apart:
            return tuple(seg.read_apart(opened))
        return tuple(labels.fractions(seg.read(opened)))


def _value(segment: labels.Segment, texts: Sequence[str]) -> dict[str, Any]:
    code = segment.code
    return {
        "value": segment.value,
        "name": scrub(segment.name, texts),
        "code": None
        if code is None
        else {
            "value": code.value,
            "scheme": code.scheme,
            "meaning": scrub(code.meaning, texts),
        },
    }


def place(waiting: Sequence[Label], plan: SeriesPlan) -> list[Placed]:
    """Put those labels that have no place yet on the grid of a stack; returns those that fit."""
    placed = []
    for label in waiting:
        if label.placed or not label.drawn or plan.geometry is None:
            continue
        try:
            if plan.regrid is not None:
                text = "the series was resampled: its label lies on the slices as they were"
                raise Refused("LABEL_GRID_MISMATCH", text)
            found = _on_grid(label, plan.geometry)
            if not any(one.array.any() for one in found):
                raise Refused("LABEL_EMPTY", "no voxel of the label is set")
        except Refused as error:
            label.notes.clear()
            label.refused = label.refused or (error.code, error.message)
            continue
        label.placed, label.refused = True, None
        placed += found
    return placed


def _on_grid(label: Label, geometry: Geometry) -> list[Placed]:
    try:
        found = [_placed(label, one, geometry) for one in label.drawn]
    except Refused as error:
        contours = [one for one in label.drawn if isinstance(one, rtstruct.Contours)]
        if error.code != _OVERLAP or label.apart or not label.split or not contours:
            raise
        label.drawn, label.apart = tuple(rtstruct.apart(contours[0])), True
        found = [_placed(label, one, geometry) for one in label.drawn]
    if label.apart:
        found = [one for one in found if one.array.any()]
        text = f"structures overlap: they are split into {len(found)} label files"
        label.notes.append((_OVERLAP, text))
    return found


def _placed(
    label: Label, drawn: labels.LabelVolume | rtstruct.Contours, geometry: Geometry
) -> Placed:
    if isinstance(drawn, rtstruct.Contours):
        return Placed(label, rtstruct.onto(drawn, geometry), geometry, drawn.segments)
    array, flipped = labels.onto(drawn, geometry)
    if flipped:
        text = "an axis of the label runs against its series; it was put right by its affine"
        label.notes.append(("LABEL_FLIPPED", text))
    return Placed(label, array, geometry, drawn.segments, drawn.fraction)
