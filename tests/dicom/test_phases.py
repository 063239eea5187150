"""Several phases in one series: every layout that is known to mislead readers."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medplat.dicom.read import SeriesPlan, plan, read_volume
from medplat.dicom.scan import scan
from medplat.dicom.series import group

K, Z = 4, 7
TIMES = (0.0, 44.25, 132.0, 220.5)


def plans_of(folder: Path) -> list[SeriesPlan]:
    return [one for series in group(scan(folder)) for one in plan(series)]


def check(folder: Path, made: Any, codes: tuple[str, ...], times: tuple[float, ...] | None) -> None:
    (one,) = plans_of(folder)
    assert one.series.codes == codes, one.series.messages
    assert one.series.status == ("warned" if codes else "converted")
    volume = read_volume(one)
    np.testing.assert_array_equal(volume.array, made.array)
    assert volume.array.dtype == made.array.dtype
    np.testing.assert_allclose(volume.geometry.affine, made.affine, atol=1e-5)
    if times is None:
        assert volume.phase_times_s is None
    else:
        assert volume.phase_times_s == pytest.approx(times, abs=1e-6)
    places = {(fate.phase, fate.slice) for fate in one.fates if fate.status == "used"}
    assert places == {(str(t), str(z)) for t in range(K) for z in range(Z)}


def refused(folder: Path, code: str) -> str:
    (one,) = plans_of(folder)
    assert one.series.status == "rejected"
    assert one.series.codes[0] == code, one.series.messages
    assert {fate.status for fate in one.fates} == {"rejected"}
    return one.series.messages[0]


@pytest.mark.parametrize("seed", [1, 2])
def test_temporal_position_from_zero_and_count_one_short(
    dicom: Any, tmp_path: Path, seed: int
) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.TemporalPositionIdentifier = t
        image.NumberOfTemporalPositions = K - 1
        image.ContentTime = "120000"
        image.AcquisitionTime = dicom.clock(TIMES[t])
        image.SliceLocation = 219 - z

    made = dicom.make(phases=K, slices=Z, orientation="oblique", seed=seed).each(change)
    check(dicom.write(tmp_path, made.flat, seed), made, (), TIMES)


def test_trigger_time_in_milliseconds(dicom: Any, tmp_path: Path) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.TriggerTime = str(1000 * TIMES[t])
        image.SliceLocation = z

    made = dicom.make(phases=K, slices=Z, orientation="sagittal").each(change)
    check(dicom.write(tmp_path, made.flat), made, (), TIMES)


def test_trigger_time_zero_everywhere_is_no_time(dicom: Any, tmp_path: Path) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.TriggerTime, image.TemporalPositionIdentifier = "0", t

    made = dicom.make(phases=K, slices=Z).each(change)
    check(dicom.write(tmp_path, made.flat), made, (), None)


@pytest.mark.parametrize("each_holds_all", [False, True])
def test_private_begin_times(dicom: Any, tmp_path: Path, each_holds_all: bool) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.TemporalPositionIdentifier, image.TriggerTime = t, "0"
        image.add_new(0x01170010, "LO", "PRIVATE")
        image.add_new(0x01171034, "FD", list(TIMES) if each_holds_all else TIMES[t])

    made = dicom.make(phases=K, slices=Z).each(change)
    check(dicom.write(tmp_path, made.flat), made, (), TIMES)


@pytest.mark.parametrize("major", ["phase", "slice"])
def test_instance_number_alone_is_a_guess(dicom: Any, tmp_path: Path, major: str) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.InstanceNumber = 1 + (t * Z + z if major == "phase" else z * K + t)

    made = dicom.make(phases=K, slices=Z).each(change)
    check(dicom.write(tmp_path, made.flat), made, ("PHASE_ORDER_GUESSED",), None)
    (one,) = plans_of(tmp_path)
    assert f"{major}-major" in one.series.messages[0]


def test_instance_numbers_restart_and_only_acquisition_time_differs(
    dicom: Any, tmp_path: Path
) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.InstanceNumber, image.AcquisitionTime = z + 1, dicom.clock(TIMES[t])

    made = dicom.make(phases=K, slices=Z).each(change)
    check(dicom.write(tmp_path, made.flat), made, (), TIMES)


def test_interleaved_slices_have_times_of_their_own(dicom: Any, tmp_path: Path) -> None:
    order = [z // 2 if z % 2 == 0 else (Z + z) // 2 for z in range(Z)]

    def change(image: Any, t: int, z: int) -> None:
        image.InstanceNumber = z + 1
        image.AcquisitionTime = dicom.clock(TIMES[t] + 0.5 * order[z])

    made = dicom.make(phases=K, slices=Z).each(change)
    check(dicom.write(tmp_path, made.flat), made, (), TIMES)


@pytest.mark.parametrize("dated", [False, True])
def test_midnight_is_crossed(dicom: Any, tmp_path: Path, dated: bool) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.InstanceNumber = z + 1
        image.AcquisitionTime = dicom.clock(TIMES[t], "23:59:00")
        if dated:
            image.AcquisitionDate = "20000101" if TIMES[t] < 60 else "20000102"

    made = dicom.make(phases=K, slices=Z).each(change)
    check(dicom.write(tmp_path, made.flat), made, (), TIMES)


def test_tags_that_contradict_each_other(dicom: Any, tmp_path: Path) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.TemporalPositionIdentifier = K - t
        image.AcquisitionTime = dicom.clock(TIMES[t])

    made = dicom.make(phases=K, slices=Z).each(change)
    message = refused(dicom.write(tmp_path, made.flat), "PHASE_CONFLICT")
    assert "TemporalPositionIdentifier" in message
    assert "AcquisitionTime" in message


def test_nothing_tells_the_phases_apart(dicom: Any, tmp_path: Path) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.InstanceNumber = z + 1

    made = dicom.make(phases=K, slices=Z).each(change)
    refused(dicom.write(tmp_path, made.flat), "PHASE_CONFLICT")


def test_one_slice_of_one_phase_is_missing(dicom: Any, tmp_path: Path) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.TemporalPositionIdentifier = t + 1

    made = dicom.make(phases=K, slices=Z).each(change)
    images = [image for image in made.flat if image is not made.images[2][3]]
    message = refused(dicom.write(tmp_path, images), "MISSING_SLICE")
    assert "phase 2" in message


def test_one_slice_of_every_phase_is_missing(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(phases=K, slices=Z)
    images = [image for phase in made.images for z, image in enumerate(phase) if z != 3]
    refused(dicom.write(tmp_path, images), "MISSING_SLICE")


def test_one_slice_of_one_phase_is_there_twice(dicom: Any, tmp_path: Path) -> None:
    def change(image: Any, t: int, z: int) -> None:
        image.TemporalPositionIdentifier = t

    made = dicom.make(phases=K, slices=Z).each(change)
    other = dicom.make(seed=9).images[0][0]
    twin = deepcopy(made.images[1][2])
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = other.SOPInstanceUID
    twin.PixelData = made.images[1][3].PixelData
    refused(dicom.write(tmp_path, [*made.flat, twin]), "DUPLICATE_SLICE")


def test_a_series_a_phase_stays_a_series_a_phase(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(phases=K, slices=Z)

    def change(image: Any, t: int, z: int) -> None:
        image.SeriesInstanceUID = f"1.2.3.{(7 * t) % 5}"
        image.SeriesNumber, image.InstanceNumber = 600 + t, Z - z
        image.AcquisitionTime = dicom.clock(TIMES[t] + 30)

    from medplat.dicom.read import study_times

    plans = study_times(plans_of(dicom.write(tmp_path, made.each(change).flat)))
    plans.sort(key=lambda one: one.series.number or 0)
    assert [one.series.study_time_s for one in plans] == pytest.approx(TIMES)
    for t, one in enumerate(plans):
        np.testing.assert_array_equal(read_volume(one).array, made.array[..., t])


def test_echoes_give_an_output_each(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(phases=2, slices=Z)

    def change(image: Any, t: int, z: int) -> None:
        image.EchoTime, image.EchoNumbers = str(2.3 + 2.3 * t), t + 1

    plans = plans_of(dicom.write(tmp_path, made.each(change).flat))
    assert [one.key[-3:] for one in plans] == ["_e1", "_e2"]
    for t, one in enumerate(plans):
        np.testing.assert_array_equal(read_volume(one).array, made.array[..., t])
