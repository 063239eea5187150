"""DICOM SEG objects of an export, as label maps beside the series that they were drawn on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medplat.dicom import seg, source
from medplat.dicom.sidecar import scrub
from medplat.errors import Refused
from medplat.types import Array, Geometry, Series

if TYPE_CHECKING:
    from medplat.dicom.read import SeriesPlan
    from medplat.dicom.scan import SourceFile

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")


@dataclass
class Label:
    """One segmentation that waits for its place.

    Attributes:
        index: Its place among the labels of its series.
        sop_uid: SOPInstanceUID of the object.
        volume: As read; None where it cannot be.
        values: What the values mean, for the sidecar.
        placed: True once it lies on the grid of a stack.
        refused: Code and sentence, where it fits no stack so far.
    """

    index: int
    sop_uid: str
    volume: seg.SegVolume | None = None
    values: tuple[dict[str, Any], ...] = ()
    placed: bool = False
    refused: tuple[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Placed:
    """A segmentation on the grid of a stack.

    Attributes:
        label: Where it comes from.
        array: (x, y, z) on the grid of the series.
        geometry: That grid.
    """

    label: Label
    array: Array
    geometry: Geometry

    def described(self, series: Series) -> dict[str, Any]:
        """The label's sidecar."""
        return {
            "kind": "label",
            "series_uid": series.series_uid,
            "study_uid": series.study_uid,
            "case": series.case,
            "patient": series.patient,
            "sop_uid": self.label.sop_uid,
            "values": list(self.label.values),
        }


def referenced(file: SourceFile) -> str | None:
    """The series that a label object was drawn on; None where it does not say."""
    if file.header is None or file.header.sop_class_uid not in SEG_CLASSES:
        return None
    try:
        with source.open_entry(file.header.entry) as opened:
            return seg.referenced(opened)
    except Exception:  # Whatever a damaged object makes the parser raise: it names no series.
        return None


def load(files: Sequence[SourceFile]) -> list[Label]:
    """Read segmentations; one that cannot be read says why."""
    found = []
    for index, file in enumerate(files):
        if file.header is None:
            continue
        label = Label(index, file.header.sop_instance_uid)
        try:
            with source.open_entry(file.header.entry) as opened:
                label.volume = seg.read(opened)
        except Refused as error:
            label.refused = error.code, error.message
        except Exception as error:  # A damaged object must not stop the series it belongs to.
            kind = type(error).__name__
            label.refused = "TRUNCATED", f"the segmentation cannot be read ({kind})"
        else:
            names = file.header.identity.texts
            label.values = tuple(_value(one, names) for one in label.volume.segments)
        found.append(label)
    return found


def _value(segment: seg.Segment, names: Sequence[str]) -> dict[str, Any]:
    code = segment.code
    return {
        "value": segment.value,
        "name": scrub(segment.name, names),
        "code": None
        if code is None
        else {"value": code.value, "scheme": code.scheme, "meaning": code.meaning},
    }


def place(waiting: Sequence[Label], plan: SeriesPlan) -> list[Placed]:
    """Put those labels that have no place yet on the grid of a stack; returns those that fit."""
    placed = []
    for label in waiting:
        if label.placed or label.volume is None or plan.geometry is None:
            continue
        try:
            array = seg.onto(label.volume, plan.geometry)
            if not array.any():
                raise Refused("LABEL_EMPTY", "no voxel of the label is set")
        except Refused as error:
            label.refused = label.refused or (error.code, error.message)
            continue
        label.placed, label.refused = True, None
        placed.append(Placed(label, array, plan.geometry))
    return placed
