"""Enhanced multi-frame objects as vendors and archives write them; with pydicom alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from layouts import Case, Rng, bare
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)
from regular_exports import Export, clock_text

ENHANCED_MR, CONVERTED_MR = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4"
ENHANCED: dict[str, Callable[[Rng], Case]] = {}
_COMMON = (
    "Modality", "PatientName", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "SeriesNumber", "StudyDate", "StudyTime", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
)  # fmt: skip
Places = Sequence[tuple[int, int]]


class Frame(NamedTuple):
    """Where a frame belongs, its classic image, and when its phase began."""

    t: int
    z: int
    image: Dataset
    seconds: float


Say = Callable[[Dataset, Frame], None]


def layout(name: str) -> Any:
    def add(build: Callable[[Rng], Case]) -> Callable[[Rng], Case]:
        ENHANCED[f"multi-frame: {name}"] = build
        return build

    return add


def group(**values: Any) -> Items:
    """A sequence of one item."""
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return Items([item])


def pack(
    rng: Rng,
    export: Export,
    times: Sequence[float],
    places: Places,
    say: Say,
    *,
    shared_rescale: bool = True,
) -> Dataset:
    """Classic images as one object, its frames in the order of `places`, written in some coding."""
    found = Dataset()
    first = export.flat[0]
    for keyword in _COMMON:
        setattr(found, keyword, getattr(first, keyword))
    found.file_meta = type(first.file_meta)()
    found.SOPClassUID, found.SOPInstanceUID = ENHANCED_MR, generate_uid()
    found.ImageType, found.InstanceNumber = ["ORIGINAL", "PRIMARY", "M", "NONE"], 1
    # What some writers leave at the top level says nothing of the frames.
    found.ImagePositionPatient, found.ImageOrientationPatient = [1, 2, 3], [0, 1, 0, 0, 0, 1]
    found.NumberOfFrames = len(places)
    shared = Dataset()
    shared.PixelMeasuresSequence = group(
        PixelSpacing=first.PixelSpacing, SliceThickness="2", SpacingBetweenSlices="99"
    )
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=first.ImageOrientationPatient)
    shared.MREchoSequence = group(EffectiveEchoTime=2.5)
    found.SharedFunctionalGroupsSequence = Items([shared])
    groups = []
    for t, z in places:
        item, image = Dataset(), export.images[t][z]
        item.FrameContentSequence = group(StackID="1")
        item.PlanePositionSequence = group(ImagePositionPatient=image.ImagePositionPatient)
        if not shared_rescale or (t, z) == places[0]:
            target = shared if shared_rescale else item
            target.PixelValueTransformationSequence = group(
                RescaleSlope=image.RescaleSlope, RescaleIntercept=image.RescaleIntercept
            )
        say(item, Frame(t, z, image, times[t]))
        groups.append(item)
    found.PerFrameFunctionalGroupsSequence = Items(groups)
    found.PixelData = b"".join(export.images[t][z].PixelData for t, z in places)
    _encode(rng, found)
    return found


def _encode(rng: Rng, found: Dataset) -> None:
    """One of the codings that occur: VRs implicit or not, lengths stated or not, RLE."""
    kind = int(rng.integers(4))
    found.file_meta.TransferSyntaxUID = (
        ImplicitVRLittleEndian if kind == 1 else ExplicitVRLittleEndian
    )
    if kind == 2:
        found["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
        for item in found.PerFrameFunctionalGroupsSequence:
            item.is_undefined_length_sequence_item = True
            for element in item:
                element.is_undefined_length = element.VR == "SQ"
    if kind == 3:
        found["PixelData"].VR = "OW"
        found.compress(RLELossless, generate_instance_uid=False)


def every(export: Export) -> list[tuple[int, int]]:
    """(phase, slice) in the order of time."""
    return [(t, z) for t in range(len(export.images)) for z in range(len(export.images[0]))]


def done(export: Export, images: list[Dataset], **expected: Any) -> Case:
    return Case(images, export.truth, export.affine, **expected)


def date_time(seconds: float) -> str:
    return "20010203" + clock_text(36_000 + seconds)


@layout("Siemens XA, an object a volume, slices with times of their own")
def _siemens(rng: Rng) -> Case:
    export, times = bare(rng)

    def say(item: Dataset, frame: Frame) -> None:
        content = item.FrameContentSequence[0]
        content.FrameAcquisitionDateTime = date_time(frame.seconds + 0.01 * (frame.z % 3))
        content.TemporalPositionIndex = frame.t + 1
        content.DimensionIndexValues = [1, frame.z + 1, frame.t + 1]

    images = []
    for t in range(len(times)):
        places = [(t, z) for z in range(len(export.images[0]))]
        one = pack(rng, export, times, places, say)
        one.InstanceNumber = t + 1
        images.append(one)
    return done(export, images, times=times)


@layout("Philips, one object, slice after slice, misleading private positions")
def _philips(rng: Rng) -> Case:
    export, times = bare(rng)

    def say(item: Dataset, frame: Frame) -> None:
        item.FrameContentSequence[0].TemporalPositionIndex = frame.t + 1
        private = Dataset()
        private.ImagePositionPatient = [0, 0, 0]
        private.add_new(0x20050010, "LO", "Philips MR Imaging DD 001")
        private.add_new(0x200510A0, "FL", frame.seconds)
        item.add_new(0x20050014, "LO", "Philips MR Imaging DD 005")
        item.add_new(0x2005140F, "SQ", Items([private]))

    places = sorted(every(export), key=lambda place: place[::-1])
    return done(export, [pack(rng, export, times, places, say)], times=times)


@layout("Canon, temporal position index always 1, only frame times differ")
def _canon(rng: Rng) -> Case:
    export, times = bare(rng)

    def say(item: Dataset, frame: Frame) -> None:
        content = item.FrameContentSequence[0]
        content.TemporalPositionIndex = 1
        content.DimensionIndexValues = [frame.z + 1]
        content.FrameAcquisitionDateTime = date_time(frame.seconds)

    places = every(export)
    rng.shuffle(places)
    return done(export, [pack(rng, export, times, places, say)], times=times)


@layout("dimension indices alone")
def _dimensions(rng: Rng) -> Case:
    export, times = bare(rng)

    def say(item: Dataset, frame: Frame) -> None:
        item.FrameContentSequence[0].DimensionIndexValues = [1, frame.t + 1, frame.z + 1]

    places = every(export)
    rng.shuffle(places)
    return done(export, [pack(rng, export, times, places, say)])


@layout("temporal position offsets")
def _offsets(rng: Rng) -> Case:
    export, times = bare(rng)

    def say(item: Dataset, frame: Frame) -> None:
        item.TemporalPositionSequence = group(TemporalPositionTimeOffset=frame.seconds)

    return done(export, [pack(rng, export, times, every(export), say)], times=times)


@layout("legacy converted, classic attributes unassigned")
def _converted(rng: Rng) -> Case:
    export, times = bare(rng)

    def say(item: Dataset, frame: Frame) -> None:
        item.UnassignedPerFrameConvertedAttributesSequence = group(
            AcquisitionDate="20010203",
            AcquisitionTime=clock_text(36_000 + frame.seconds),
            InstanceNumber=frame.t * 100 + frame.z,
        )

    image = pack(rng, export, times, every(export), say)
    image.SOPClassUID = CONVERTED_MR
    return done(export, [image], times=times)


@layout("rescale by frame")
def _rescale(rng: Rng) -> Case:
    export, times = bare(rng)
    before = float(export.flat[0].RescaleSlope)
    for t, z in every(export):
        slope = 1 + z / 4 + t / 8
        export.images[t][z].RescaleSlope = str(slope)
        export.truth[:, :, z, t] *= slope / before

    def say(item: Dataset, frame: Frame) -> None:
        item.FrameContentSequence[0].TemporalPositionIndex = frame.t + 1

    image = pack(rng, export, times, every(export), say, shared_rescale=False)
    return done(export, [image], codes=("RESCALE_VARIES",), status="warned")


def _parts(rng: Rng) -> tuple[Export, list[Dataset], tuple[float, ...]]:
    export, times = bare(rng)

    def say(item: Dataset, frame: Frame) -> None:
        item.FrameContentSequence[0].FrameAcquisitionDateTime = date_time(frame.seconds)

    places, uid = every(export), generate_uid()
    cuts = np.array_split(np.arange(len(places)), 3)
    images = []
    for number, cut in enumerate(cuts, start=1):
        one = pack(rng, export, times, [places[i] for i in cut], say)
        one.ConcatenationUID, one.InConcatenationNumber = uid, number
        one.InConcatenationTotalNumber = len(cuts)
        images.append(one)
    return export, images, times


@layout("a concatenation of three parts")
def _concatenation(rng: Rng) -> Case:
    export, images, times = _parts(rng)
    return done(export, images, times=times)


@layout("a concatenation whose part is absent")
def _part_absent(rng: Rng) -> Case:
    export, images, _ = _parts(rng)
    del images[int(rng.integers(2))]
    return done(export, images, codes=("MISSING_SLICE",), status="rejected", names="part ")


@layout("no plane position in any frame")
def _no_position(rng: Rng) -> Case:
    export, times = bare(rng)

    def say(item: Dataset, frame: Frame) -> None:
        del item.PlanePositionSequence

    image = _plain(rng, export, times, say)
    return done(export, [image], codes=("NO_GEOMETRY",), status="rejected")


@layout("fewer functional groups than frames")
def _groups_short(rng: Rng) -> Case:
    export, times = bare(rng)
    image = _plain(rng, export, times, lambda item, frame: None)
    del image.PerFrameFunctionalGroupsSequence[-1]
    return done(export, [image], codes=("NO_GEOMETRY",), status="rejected")


@layout("fewer frames of pixels than stated")
def _pixels_short(rng: Rng) -> Case:
    export, times = bare(rng)
    image = _plain(rng, export, times, lambda item, frame: None)
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    frames = [export.images[t][z].PixelData for t, z in every(export)[:-1]]
    image.PixelData = b"".join(frames)
    return done(export, [image], codes=("TRUNCATED",), status="rejected")


@layout("a frame is absent")
def _frame_absent(rng: Rng) -> Case:
    export, times = bare(rng)

    def say(item: Dataset, frame: Frame) -> None:
        item.FrameContentSequence[0].TemporalPositionIndex = frame.t + 1

    places = every(export)
    del places[int(rng.integers(1, len(places) - 1))]
    image = pack(rng, export, times, places, say)
    return done(export, [image], codes=("MISSING_SLICE",), status="rejected", names="phase")


def _plain(rng: Rng, export: Export, times: Sequence[float], say: Say) -> Dataset:
    """An object without the coding that a change of its pixels would break."""
    image = pack(rng, export, times, every(export), say)
    while image.file_meta.TransferSyntaxUID == RLELossless:
        image = pack(rng, export, times, every(export), say)
    return image
