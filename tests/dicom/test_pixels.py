"""Stored values out of every encoding, and damage in every place."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medplat.dicom.read import SeriesPlan, plan, read_volume
from medplat.dicom.scan import scan
from medplat.dicom.series import group
from medplat.errors import Refused


def only(folder: Path) -> SeriesPlan:
    (one,) = [one for series in group(scan(folder)) for one in plan(series)]
    return one


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32"])
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_native_syntaxes_keep_the_type(dicom: Any, tmp_path: Path, syntax: str, dtype: str) -> None:
    made = dicom.make(dtype=dtype, rows=5, columns=3)
    for image in made.flat:
        image.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian and image.BitsAllocated > 8:
            width = image.BitsAllocated // 8
            swapped = np.frombuffer(image.PixelData, f"<u{width}").astype(f">u{width}")
            image.PixelData = swapped.tobytes()
            image["PixelData"].VR = "OW"
    one = only(dicom.write(tmp_path, made.flat))
    volume = read_volume(one)
    assert volume.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.array, made.array)


@pytest.mark.parametrize(
    ("syntax", "dtype"),
    [
        (RLELossless, "uint16"), (RLELossless, "int16"), (JPEGLSLossless, "uint16"),
        (JPEG2000Lossless, "uint16"), (JPEG2000Lossless, "int16"),
    ],
)  # fmt: skip
def test_compressed_syntaxes(dicom: Any, tmp_path: Path, syntax: str, dtype: str) -> None:
    made = dicom.make(dtype=dtype, rows=65, columns=37, slices=3)
    if dtype == "int16":
        made.array = made.array - 900
        for z, image in enumerate(made.flat):
            image.PixelData = np.ascontiguousarray(made.array[..., z].T).tobytes()
    for image in made.flat:
        image.compress(syntax, generate_instance_uid=False)
    dicom.write(tmp_path, made.flat)
    for workers in (1, 3):
        np.testing.assert_array_equal(read_volume(only(tmp_path), workers).array, made.array)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high_bit", [11, 13])
def test_bits_outside_the_stored_ones_are_dropped(
    dicom: Any, tmp_path: Path, signed: bool, high_bit: int
) -> None:
    made = dicom.make(slices=3)
    rng = np.random.default_rng(5)
    for z, image in enumerate(made.flat):
        truth = made.array[..., z].T.astype(np.int64) * 5 % 4096
        raw = truth << (high_bit - 11) | rng.integers(0, 4, truth.shape) << (high_bit + 1)
        image.PixelData = (raw & 0xFFFF).astype("<u2").tobytes()
        image.BitsStored, image.HighBit, image.PixelRepresentation = 12, high_bit, int(signed)
        values = np.where((truth >= 2048) & signed, truth - 4096, truth)
        made.array[..., z] = values.T.astype(np.uint16)
    volume = read_volume(only(dicom.write(tmp_path, made.flat)))
    kind = np.int16 if signed else np.uint16
    assert volume.array.dtype == kind
    np.testing.assert_array_equal(volume.array, made.array.view(kind))


def test_float_pixels(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(slices=3)
    made.array = (made.array / 7).astype(np.float32)
    for z, image in enumerate(made.flat):
        image.FloatPixelData = np.ascontiguousarray(made.array[..., z].T).tobytes()
        image.BitsAllocated = 32
        del image.PixelData, image.BitsStored, image.HighBit, image.PixelRepresentation
    volume = read_volume(only(dicom.write(tmp_path, made.flat)))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, made.array)


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("share", [0.3, 0.75, 0.999])
def test_a_cut_file_is_never_read(
    dicom: Any, tmp_path: Path, syntax: str | None, share: float
) -> None:
    made = dicom.make(rows=64, columns=64)
    for image in made.flat:
        if syntax:
            image.compress(syntax, generate_instance_uid=False)
    victim = files(dicom.write(tmp_path, made.flat))[2]
    victim.write_bytes(victim.read_bytes()[: int(share * victim.stat().st_size)])
    one = only(tmp_path)
    assert (one.series.status, one.series.codes[0]) == ("rejected", "TRUNCATED")


@pytest.mark.parametrize("before_pixels", [1, 5, 61])
def test_a_header_cut_after_its_uids(dicom: Any, tmp_path: Path, before_pixels: int) -> None:
    made = dicom.make()
    victim = files(dicom.write(tmp_path, made.flat))[2]
    data = victim.read_bytes()
    victim.write_bytes(data[: data.index(b"\xe0\x7f\x10\x00") - before_pixels])
    one = only(tmp_path)
    assert (one.series.status, one.series.codes[0]) == ("rejected", "TRUNCATED")


def test_a_header_cut_before_its_uids_leaves_a_hole(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make()
    made.flat[3].save_as(tmp_path / "cut", enforce_file_format=True)
    dicom.write(tmp_path, made.flat[:3] + made.flat[4:])
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:420])
    (file,) = [file for file in scan(tmp_path) if file.path == "cut"]
    assert (file.status, file.code) == ("rejected", "TRUNCATED")
    assert only(tmp_path).series.codes == ("IMAGE_LOST",)


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_cut_codestream_in_a_good_frame(
    dicom: Any, tmp_path: Path, syntax: str, share: float
) -> None:
    from pydicom.encaps import encapsulate, generate_frames

    made = dicom.make(rows=64, columns=64, slices=3)
    for image in made.flat:
        image.compress(syntax, generate_instance_uid=False)
    (stream,) = generate_frames(made.flat[1].PixelData, number_of_frames=1)
    made.flat[1].PixelData = encapsulate([stream[: int(share * len(stream))]])
    one = only(dicom.write(tmp_path, made.flat))
    with pytest.raises(Refused, match="TRUNCATED"):
        read_volume(one)


def test_a_codestream_of_another_size(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make(rows=64, columns=64, slices=3)
    for image in made.flat:
        image.compress(JPEG2000Lossless, generate_instance_uid=False)
        image.Rows, image.Columns = 4000, 4000
    one = only(dicom.write(tmp_path, made.flat))
    with pytest.raises(Refused, match="TRUNCATED"):
        read_volume(one)


def test_no_pixels_and_no_decoder(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make()
    whole = deepcopy(made.flat[3])
    del made.flat[3].PixelData
    one = only(dicom.write(tmp_path / "a", made.flat))
    assert one.series.status == "rejected"
    assert one.series.codes == ("NO_PIXELS",)
    dicom.write(tmp_path / "a", [whole], seed=1)
    assert only(tmp_path / "a").series.codes == ("NO_PIXELS",)
    assert only(tmp_path / "a").series.status == "warned"
    other = dicom.make()
    for image in other.flat:
        image.compress(RLELossless, generate_instance_uid=False)
        image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.51"
    one = only(dicom.write(tmp_path / "b", other.flat))
    assert one.series.codes == ("UNSUPPORTED_SYNTAX",)
    assert "JPEG Extended" in one.series.messages[0]


def test_without_preamble_and_file_meta(dicom: Any, tmp_path: Path) -> None:
    made = dicom.make()
    dicom.write(tmp_path, made.flat)
    for path in files(tmp_path):
        data = path.read_bytes()
        length = int.from_bytes(data[140:144], "little")
        path.write_bytes(data[144 + length :])
    np.testing.assert_array_equal(read_volume(only(tmp_path)).array, made.array)
