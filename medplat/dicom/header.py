"""The header of one image plane: everything the later steps need, so that no file is parsed twice.

A classic file gives one `Header`; a mosaic or multi-frame file is turned into one for each tile or
frame (same `path`, other `frame`, own geometry), so that grouping, phases and geometry know only
this record.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the bytes of one file lie; `source.open_entry` opens it.

    Attributes:
        path: As shown in files.csv: relative to SOURCE, "/" between parts, `x.zip!inner` for the
            member of an archive inside a folder, the member's own path where SOURCE is the archive.
        file: The file on disk, or the archive.
        member: Name inside the archive; None for a plain file.
        size: Bytes (of a member: as declared).
        mtime_ns: Modification time of `file`.
    """

    path: str
    file: Path
    member: str | None = None
    size: int = 0
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the image is of. Never logged, never written but through `pseudonym` or on request."""

    patient_id: str = ""
    issuer: str = ""
    patient_name: str = ""
    birth_date: str = ""
    accession_number: str = ""
    sex: str = ""
    age: str = ""
    texts: tuple[str, ...] = ()
    """Every identifying text of the header, for `sidecar.scrub`: names, ids, physicians, operators,
    institution."""
    pseudonym: str = ""
    """Stands for all of these where they are not known: see `index.pseudonymous`."""

    def __repr__(self) -> str:
        return "Identity(...)"


@dataclass(frozen=True, slots=True)
class Pixels:
    """How the pixel element is stored.

    Attributes:
        keyword: "PixelData", "FloatPixelData" or "DoubleFloatPixelData".
        offset: Byte offset of the value in the (inflated) file; None where there is no element.
        length: Bytes of the value; None for encapsulated data.
        fragments: (offset, length) of the encapsulated fragments, offset table left out.
        firsts: Index of each frame's first fragment; () where every frame has exactly one, or one
            frame has them all.
    """

    keyword: str = "PixelData"
    offset: int | None = None
    length: int | None = None
    fragments: tuple[tuple[int, int], ...] = ()
    firsts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Mosaic:
    """A Siemens mosaic: how many tiles of the sheet are slices, and how they lie (CSA header).

    Attributes:
        tiles: Slices; further tiles of the sheet are padding.
        grid: Tiles along each side of the sheet.
        normal: Direction from one tile's slice to the next, LPS, unit length.
        spacing_mm: Distance of neighbouring slices.
    """

    tiles: int
    grid: int
    normal: Vector
    spacing_mm: float


@dataclass(frozen=True, slots=True)
class Header:
    """One image plane. Absent values are None (numbers), "" (text) or () (multi-valued).

    Attributes:
        entry: The file; `path` is short for `entry.path`.
        damage: "TRUNCATED" or "NO_PIXELS" where the file cannot be used; the series is told so.
        image_type: ImageType values.
        position: ImagePositionPatient, LPS mm.
        orientation: ImageOrientationPatient, row then column cosines, as stated.
        pixel_spacing: (between rows, between columns) in mm, as stated in PixelSpacing.
        signed: PixelRepresentation = 1.
        acquired_us: AcquisitionDateTime, else AcquisitionDate + AcquisitionTime, in microseconds on
            an absolute clock (internal only: it is a calendar date); see `acquired_dated`.
        acquired_dated: False where only a time of day is known (counted from midnight).
        content_us: The same of ContentDate + ContentTime.
        begin_s: Begin of the dynamic from private tags: one value, or one for each phase.
        technical: Technical tags of the sidecar's allow-list, as (keyword, value).
        identity: Kept apart: never logged.
        frame: Index of the frame or tile inside the file.
        per_frame: Of a multi-frame file as a whole: each field that differs between its frames,
            with one value a frame; `multiframe.frames` makes the frames' own headers of it.
            Values are numbers, texts, None and tuples of these.
        dimensions: DimensionIndexValues of a frame.
        part: Of a concatenation: (ConcatenationUID, number of this part, number of parts or 0).
        gradient: Direction of the diffusion gradient, LPS.
    """

    entry: Entry
    transfer_syntax: str = ""
    pixels: Pixels = Pixels()
    damage: str | None = None
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_uid: str = ""
    series_uid: str = ""
    frame_of_reference_uid: str = ""
    modality: str = ""
    image_type: tuple[str, ...] = ()
    series_number: int | None = None
    instance_number: int | None = None
    acquisition_number: int | None = None
    series_description: str = ""
    protocol_name: str = ""
    burned_in: bool = False
    # Grid
    rows: int = 0
    columns: int = 0
    frames: int = 1
    samples: int = 1
    photometric: str = ""
    planar: int = 0
    bits_allocated: int = 16
    bits_stored: int = 16
    high_bit: int = 15
    signed: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    has_modality_lut: bool = False
    # Geometry
    position: Vector | None = None
    orientation: tuple[float, ...] | None = None
    pixel_spacing: tuple[float, float] | None = None
    imager_pixel_spacing: tuple[float, float] | None = None
    slice_thickness: float | None = None
    spacing_between_slices: float | None = None
    mosaic: Mosaic | None = None
    # What tells stacks and phases apart
    echo_time: float | None = None
    echo_number: int | None = None
    b_value: float | None = None
    complex_component: str = ""
    temporal_position: int | None = None
    temporal_positions: int | None = None
    trigger_time_ms: float | None = None
    acquired_us: int | None = None
    acquired_dated: bool = False
    content_us: int | None = None
    begin_s: tuple[float, ...] = ()
    contrast: bool | None = None
    technical: tuple[tuple[str, Any], ...] = ()
    identity: Identity = field(default=Identity(), repr=False)
    frame: int = 0
    # Multi-frame objects
    per_frame: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    dimensions: tuple[int, ...] = ()
    part: tuple[str, int, int] | None = None
    gradient: Vector | None = None

    @property
    def path(self) -> str:
        """Path relative to SOURCE, as files.csv shows it."""
        return self.entry.path

    def changed(self, **values: Any) -> Header:
        """The same header with other values: `dataclasses.replace`, in a third of its time."""
        return Header(**(dict(zip(_NAMES, _values(self), strict=True)) | values))


_NAMES = tuple(one.name for one in fields(Header))
_values = attrgetter(*_NAMES)
