"""Volume <-> `.nii.gz` and its JSON sidecar.

Integers stay integers: slope and intercept stand in the header, and in full precision in the
sidecar. Equal volumes give equal bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from medplat import paths
from medplat.errors import DataError
from medplat.types import Affine, Array, Geometry, Series, Volume

_STORED = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_CHUNK = 1 << 22
_WORST_RATIO = 1040  # deflate cannot pack tighter than 1032 : 1


def compressor(gzip_level: int, path: Path) -> str:
    """What packs `path`: the bytes of a file are equal only under the same one."""
    if path.suffix != ".gz":
        return "none"
    return f"zlib {zlib.ZLIB_RUNTIME_VERSION} level {gzip_level}"


def write(volume: Volume, path: Path, *, gzip_level: int = 1) -> str:
    """Write a volume: all of it or nothing.

    Args:
        volume: (x, y, z) or (x, y, z, t).
        path: `.nii.gz` or `.nii`; its folder is made if absent.
        gzip_level: 0 to 9.

    Returns:
        sha256 of the file.

    Raises:
        DataError: The array's type, shape or a value of the affine cannot stand in a NIfTI file.
    """
    array = _storable(volume.array, path)
    header = _header(volume, array, path)
    with paths.whole(path) as part, part.open("wb") as raw:
        sink = _Hashing(raw)
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", gzip_level, cast(BinaryIO, sink), mtime=0) as packed:
                _write_to(cast(BinaryIO, packed), header, array)
        else:
            _write_to(cast(BinaryIO, sink), header, array)
    return sink.digest.hexdigest()


class _Hashing:
    """A file that also hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _storable(array: Array, path: Path) -> Array:
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    if array.dtype.name not in _STORED:
        raise DataError(f"{path.name}: values of type {array.dtype} cannot be written as NIfTI")
    if array.ndim not in (3, 4) or array.size == 0 or max(array.shape) > 32767:
        raise DataError(f"{path.name}: a volume of shape {array.shape} cannot be written as NIfTI")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _write_to(file: BinaryIO, header: bytes, array: Array) -> None:
    file.write(header)
    for k in range(math.prod(array.shape[2:])):
        z, t = k % array.shape[2], k // array.shape[2]
        plane = array[:, :, z] if array.ndim == 3 else array[:, :, z, t]
        file.write(plane.tobytes(order="F"))


def _header(volume: Volume, array: Array, path: Path) -> bytes:
    geometry = volume.geometry
    affine = np.asarray(geometry.affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise DataError(f"{path.name}: the affine is not (4, 4) and finite")
    if tuple(array.shape[:3]) != tuple(geometry.shape):
        raise DataError(
            f"{path.name}: the array is {array.shape[:3]}, its geometry says {geometry.shape}"
        )
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_sform(affine, code=1 if geometry.orientation == "known" else 2)
    _set_qform(header, affine)
    if array.ndim == 4:
        header["pixdim"][4] = _even_step(volume.phase_times_s)
    header.set_xyzt_units("mm", "sec")
    header["scl_slope"], header["scl_inter"] = volume.slope, volume.intercept
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    return cast(bytes, header.binaryblock) + b"\0\0\0\0"


def _set_qform(header: Any, affine: Affine) -> None:
    """The quaternion form where it can say the same as the affine (1e-4), else code 0."""
    code = int(header["sform_code"])
    header.set_qform(affine, code=code, strip_shears=True)
    if not np.allclose(header.get_qform(), affine, rtol=0, atol=1e-4):
        header["qform_code"] = 0


def _even_step(times: tuple[float, ...] | None) -> float:
    """Seconds between phases if all intervals agree within 1 %, else 0."""
    if times is None or len(times) < 2:
        return 0.0
    steps = np.diff(np.asarray(times, dtype=np.float64))
    middle = float(np.median(steps))
    return middle if bool((np.abs(steps - middle) <= 0.01 * abs(middle)).all()) else 0.0


def sidecar_path(path: Path) -> Path:
    """The sidecar's path: `.json` in place of `.nii.gz` or `.nii`."""
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    return path.with_name(name + ".json")


def write_json(path: Path, content: Mapping[str, Any]) -> str:
    """Write a JSON file: all of it or nothing.

    Returns:
        sha256 of the file.

    Raises:
        ValueError: A number is not finite.
    """
    data = (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with paths.whole(path) as part:
        part.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read(path: Path, phase: int | None = None) -> Volume:
    """Read a NIfTI-1 or NIfTI-2 file and, where there is one, its sidecar.

    Args:
        path: `.nii.gz` or `.nii`.
        phase: Read this phase of a 4-D file only; None reads all.

    Returns:
        The stored values with slope and intercept beside them; (x, y, z) or (x, y, z, t).

    Raises:
        DataError: Not a NIfTI file, shorter than its header says, colour, or of more dimensions;
            or the phase does not exist.
    """
    sidecar = read_sidecar(path)
    try:
        with _open(path) as file:
            header = _read_header(file, path)
            shape = _shape(header, path)
            if phase is not None and not 0 <= phase < (shape[3] if len(shape) == 4 else 1):
                raise DataError(f"{path}: phase {phase} does not exist, the shape is {shape}")
            array = _read_array(file, header, shape, phase, path)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as NIfTI: {error}") from error
    try:
        slope, intercept = _rescale(header, sidecar)
        return Volume(
            array=array,
            geometry=_geometry(header, shape, sidecar, path),
            slope=slope,
            intercept=intercept,
            phase_times_s=_times(sidecar, array),
            metadata=sidecar,
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{sidecar_path(path)}: a value is not a number: {error}") from error


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))


def _read_header(file: BinaryIO, path: Path) -> Any:
    start = file.read(540)
    try:
        for kind, size in ((nib.Nifti1Header, 348), (nib.Nifti2Header, 540)):
            if len(start) >= size and kind.may_contain_header(start):
                header = kind(start[:size], check=True)
                if bytes(header["magic"]).startswith((b"n+1", b"n+2")):
                    return header
    except HeaderDataError as error:
        raise DataError(f"{path}: the NIfTI header is damaged: {error}") from error
    raise DataError(f"{path}: not a NIfTI file")


def _shape(header: Any, path: Path) -> tuple[int, ...]:
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shape += (1,) * (3 - len(shape))
    if len(shape) > 4 or min(shape) < 1:
        raise DataError(f"{path}: a NIfTI file of shape {shape} is not a volume")
    return shape


def _read_array(
    file: BinaryIO, header: Any, shape: tuple[int, ...], phase: int | None, path: Path
) -> Array:
    dtype = header.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "uif":
        raise DataError(f"{path}: values of type {dtype} (colour or complex) are not read")
    offset = int(header.get_data_offset())
    size = path.stat().st_size
    needed = offset + math.prod(shape) * dtype.itemsize
    if needed > (size * _WORST_RATIO if path.suffix == ".gz" else size):
        raise DataError(f"{path}: the header promises {needed} bytes, the file cannot hold them")
    wanted = shape
    if phase is not None and len(shape) == 4:
        wanted = shape[:3]
        offset += phase * math.prod(wanted) * dtype.itemsize
    file.seek(offset)
    array = np.empty(math.prod(wanted), dtype=dtype)
    _fill(file, memoryview(cast(Any, array)).cast("B"), path)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return array.reshape(wanted, order="F")


def _fill(file: BinaryIO, buffer: memoryview, path: Path) -> None:
    done = 0
    while done < len(buffer):
        count = cast(Any, file).readinto(buffer[done : done + _CHUNK])
        if not count:
            raise DataError(f"{path}: {len(buffer) - done} bytes of voxels are missing at the end")
        done += count


def _rescale(header: Any, sidecar: Mapping[str, Any]) -> tuple[float, float]:
    """Slope and intercept; the sidecar's doubles where the header holds the same as floats."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        return 1.0, 0.0
    exact = sidecar.get("rescale")
    if isinstance(exact, dict):
        pair = float(exact.get("slope", slope)), float(exact.get("intercept", intercept))
        if np.allclose(pair, (slope, intercept), rtol=1e-6, atol=0):
            return pair
    return slope, intercept


def _geometry(
    header: Any, shape: tuple[int, ...], sidecar: Mapping[str, Any], path: Path
) -> Geometry:
    known = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    if known:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    else:
        affine = np.diag([*(float(step) for step in header["pixdim"][1:4]), 1.0])
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise DataError(f"{path}: the affine of the header is not finite or has no volume")
    stated = sidecar.get("geometry")
    if isinstance(stated, dict):
        known = known and stated.get("orientation", "known") == "known"
        exact = np.asarray(stated.get("affine", affine), dtype=np.float64)
        if exact.shape == (4, 4) and np.allclose(exact, affine, rtol=1e-6, atol=1e-5):
            affine = exact
    return Geometry(
        affine=affine,
        shape=cast(tuple[int, int, int], shape[:3]),
        orientation="known" if known else "unknown",
        frame_of_reference_uid=sidecar.get("frame_of_reference_uid"),
    )


def _times(sidecar: Mapping[str, Any], array: Array) -> tuple[float, ...] | None:
    times = sidecar.get("phase_times_s")
    if not isinstance(times, list) or array.ndim != 4 or len(times) != array.shape[3]:
        return None
    return tuple(float(one) for one in times)


def read_sidecar(path: Path) -> dict[str, Any]:
    """The sidecar of a NIfTI file as a dictionary; empty where there is none.

    Raises:
        DataError: The sidecar is not a JSON object.
    """
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        return {}
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{sidecar}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{sidecar}: not a JSON object")
    return content


def series_from_sidecar(path: Path) -> Series:
    """What the sidecar of a converted NIfTI file says of its series; `path` is that file.

    Raises:
        DataError: The sidecar is absent or was not written by medplat convert.
    """
    content = read_sidecar(path)
    known = {field.name for field in fields(Series)} - {"path"}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in content.items()
        if name in known
    }
    try:
        return Series(**values, path=path)
    except TypeError as error:
        raise DataError(
            f"{sidecar_path(path)}: not a sidecar that medplat convert wrote: convert the series"
        ) from error
