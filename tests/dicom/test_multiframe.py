"""Multi-frame objects beyond the layouts: fragments, stacks inside one file, accounts, parts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import JPEGLSLossless, generate_uid

sys.path.insert(0, str(Path(__file__).parent))
from enhanced_layouts import date_time, every, group, pack
from layouts import bare

from medplat.dicom.nested import DamagedError, items
from medplat.dicom.read import SeriesPlan, plan, read_volume
from medplat.dicom.scan import scan
from medplat.dicom.series import group as by_series


def plans_of(folder: Path) -> list[SeriesPlan]:
    return [one for series in by_series(scan(folder)) for one in plan(series)]


def dynamic(seed: int) -> tuple[Any, Any, tuple[float, ...]]:
    """An object of several phases in native little endian, its classic images, its times."""
    export, times = bare(np.random.default_rng(seed), phases=3)

    def say(item: Any, frame: Any) -> None:
        item.FrameContentSequence[0].FrameAcquisitionDateTime = date_time(frame.seconds)

    class Plain(np.random.Generator):
        def integers(self, *args: Any, **options: Any) -> Any:
            return 0  # The coding that changes nothing.

    rng = Plain(np.random.PCG64(seed))
    return pack(rng, export, times, every(export), say), export, times


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_frames_of_several_fragments(tmp_path: Path, table: str) -> None:
    image, export, times = dynamic(5)
    image["PixelData"].VR = "OW"
    image.compress(JPEGLSLossless, generate_instance_uid=False)
    frames = list(generate_frames(image.PixelData, number_of_frames=image.NumberOfFrames))
    if table == "extended":
        cut = [half for frame in frames for half in (frame[:64], frame[64:])]
        data, _, _ = encapsulate_extended(cut)
        sizes = [16 + len(half) + len(half) % 2 for half in cut]
        starts = np.cumsum([0, *(a + b - 16 for a, b in zip(sizes[::2], sizes[1::2], strict=True))])
        image.ExtendedOffsetTable = starts[:-1].astype("<u8").tobytes()
        image.PixelData = data
    else:
        image.PixelData = encapsulate(frames, fragments_per_frame=2, has_bot=table == "basic")
    image["PixelData"].is_undefined_length = True
    image.save_as(tmp_path / "one", enforce_file_format=True)
    (one,) = plans_of(tmp_path)
    assert one.series.status == "converted", one.series.messages
    volume = read_volume(one)
    real = volume.array * np.float64(volume.slope) + volume.intercept
    np.testing.assert_array_equal(real, export.truth)
    assert volume.phase_times_s == pytest.approx(times, abs=1e-3)


def test_several_workers_read_the_same(tmp_path: Path) -> None:
    image, _, _ = dynamic(6)
    image.save_as(tmp_path / "one", enforce_file_format=True)
    (one,) = plans_of(tmp_path)
    np.testing.assert_array_equal(read_volume(one).array, read_volume(one, workers=3).array)


def test_stacks_of_one_file_count_it_once(tmp_path: Path) -> None:
    """Magnitude and phase of one object: two outputs, one row."""
    export, times = bare(np.random.default_rng(8), phases=2)

    def say(item: Any, frame: Any) -> None:
        kind = ("MAGNITUDE", "PHASE")[frame.t]
        item.MRImageFrameTypeSequence = group(
            FrameType=["ORIGINAL", "PRIMARY", "T1", "NONE"], ComplexImageComponent=kind
        )

    image = pack(np.random.default_rng(1), export, times, every(export), say)
    image.save_as(tmp_path / "one", enforce_file_format=True)
    magnitude, phase = plans_of(tmp_path)
    assert [one.key.partition("_")[2] for one in (magnitude, phase)] == ["", "phase"]
    assert [len(one.fates) for one in (magnitude, phase)] == [1, 0]
    for t, one in enumerate((magnitude, phase)):
        volume = read_volume(one)
        real = volume.array * np.float64(volume.slope) + volume.intercept
        np.testing.assert_array_equal(real, export.truth[..., t])


def test_the_same_object_twice_is_used_once(tmp_path: Path) -> None:
    image, _, _ = dynamic(9)
    for name in ("a", "b"):
        image.save_as(tmp_path / name, enforce_file_format=True)
    (one,) = plans_of(tmp_path)
    assert (one.series.status, one.series.codes) == ("warned", ("DUPLICATE_FILE",))
    assert [fate.status for fate in one.fates] == ["used", "rejected"]


def test_two_objects_of_one_uid_that_differ_are_refused(tmp_path: Path) -> None:
    image, _, _ = dynamic(9)
    image.save_as(tmp_path / "a", enforce_file_format=True)
    image.PixelData = image.PixelData[:-2] + b"\x01\x02"  # In the last frame.
    image.save_as(tmp_path / "b", enforce_file_format=True)
    (one,) = plans_of(tmp_path)
    assert (one.series.status, one.series.codes) == ("rejected", ("DUPLICATE_SLICE",))


def test_frames_without_geometry_in_an_ordinary_object_are_no_volume(tmp_path: Path) -> None:
    image, _, _ = dynamic(10)
    del image.PerFrameFunctionalGroupsSequence, image.SharedFunctionalGroupsSequence
    image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.20"
    image.Modality, image.SOPInstanceUID = "NM", generate_uid()
    image.save_as(tmp_path / "one", enforce_file_format=True)
    (one,) = plans_of(tmp_path)
    assert (one.series.status, one.series.codes) == ("skipped", ("NOT_IMAGE",))


@pytest.mark.parametrize("keep", [6, 20, 47, 70])
def test_a_cut_sequence_is_damage(keep: int) -> None:
    image, _, _ = dynamic(11)
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_sequence

    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_sequence(buffer, image["PerFrameFunctionalGroupsSequence"], ["iso8859"])
    data = buffer.getvalue()
    tree = {0x00209113: {0x00200032: None}}
    assert len(items(data, tree, "<")) == image.NumberOfFrames
    with pytest.raises(DamagedError):
        items(data[:keep], tree, "<")


@pytest.mark.parametrize("other", ["acquisition", "dimension"])
def test_dimensions_that_another_tag_contradicts_are_refused_without_a_time(
    tmp_path: Path, other: str
) -> None:
    """Nothing tells which of the two orders is that of time."""
    export, times = bare(np.random.default_rng(8), phases=3)

    def say(item: Any, frame: Any) -> None:
        content = item.FrameContentSequence[0]
        content.DimensionIndexValues = [frame.t + 1, frame.z + 1]
        if other == "acquisition":
            content.FrameAcquisitionNumber = 3 - frame.t
        else:
            content.DimensionIndexValues = [frame.t + 1, 3 - frame.t, frame.z + 1]

    image = pack(np.random.default_rng(1), export, times, every(export), say)
    image.save_as(tmp_path / "one", enforce_file_format=True)
    (one,) = plans_of(tmp_path)
    assert (one.series.status, one.series.codes) == ("rejected", ("PHASE_CONFLICT",))
    assert "DimensionIndexValues 1" in one.series.messages[0]
