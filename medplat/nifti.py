"""Volume <-> `.nii.gz` and its JSON sidecar.

Integers stay integers: slope and intercept stand in the header, and in full precision in the
sidecar. Equal volumes give equal bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from medplat import nifti_header, paths
from medplat.errors import DataError
from medplat.types import Array, Geometry, Image, Series, Volume

try:
    from isal import ISAL_VERSION, isal_zlib
except ImportError:  # No wheel for this machine.
    ISAL_VERSION = ""

_PHASE_FILE = re.compile(r"(.+_p)\d{2,}(\.nii(?:\.gz)?)")  # As --split-phases names them.
_CHUNK = 1 << 22
_WORST_RATIO = 1040  # deflate cannot pack tighter than 1032 : 1


def compressor(gzip_level: int, path: Path) -> str:
    """What packs `path`: the bytes of a file are equal only under the same one."""
    if path.suffix != ".gz":
        return "none"
    if _fast(gzip_level):
        return f"isal {ISAL_VERSION} level {gzip_level}"
    return f"zlib {zlib.ZLIB_RUNTIME_VERSION} level {gzip_level}"


def _fast(gzip_level: int) -> bool:
    """Whether ISA-L packs this level: as small as zlib's level 1 in a quarter of its time."""
    return bool(ISAL_VERSION) and 1 <= gzip_level <= 3


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
        pack = _packer(gzip_level) if path.suffix == ".gz" else None
        for data in itertools.chain([header], _slabs(array)):
            sink.write(pack.compress(data) if pack else data)
        if pack:
            sink.write(pack.flush())
    return sink.digest.hexdigest()


def _packer(gzip_level: int) -> Any:
    """A compressor whose gzip header holds neither a time nor a name."""
    module: Any = isal_zlib if _fast(gzip_level) else zlib
    return module.compressobj(gzip_level, zlib.DEFLATED, 16 + zlib.MAX_WBITS)


class _Hashing:
    """A file that also hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> None:
        self.digest.update(data)
        self._file.write(data)


def _storable(array: Array, path: Path) -> Array:
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    if array.dtype.name not in nifti_header.DTYPES:
        raise DataError(f"{path.name}: values of type {array.dtype} cannot be written as NIfTI")
    if array.ndim not in (3, 4) or array.size == 0 or max(array.shape) > 32767:
        raise DataError(f"{path.name}: a volume of shape {array.shape} cannot be written as NIfTI")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _slabs(array: Array) -> Iterator[Any]:
    """The bytes of a few slices at a time; nothing is copied where they lie that way.

    The pieces depend on the shape alone, since what a compressor makes depends on them.
    """
    phases = [array] if array.ndim == 3 else [array[..., t] for t in range(array.shape[3])]
    step = max(1, _CHUNK // (array.itemsize * array.shape[0] * array.shape[1]))
    for phase in phases:
        for z in range(0, array.shape[2], step):
            yield np.ascontiguousarray(phase[:, :, z : z + step].T).data.cast("B")


def _header(volume: Volume, array: Array, path: Path) -> bytes:
    geometry = volume.geometry
    affine = np.asarray(geometry.affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise DataError(f"{path.name}: the affine is not (4, 4) and finite")
    if tuple(array.shape[:3]) != tuple(geometry.shape):
        raise DataError(
            f"{path.name}: the array is {array.shape[:3]}, its geometry says {geometry.shape}"
        )
    return nifti_header.pack(
        array.dtype.name,
        array.shape,
        affine,
        code=1 if geometry.orientation == "known" else 2,
        slope=volume.slope,
        intercept=volume.intercept,
        step_s=_even_step(volume.phase_times_s),
    )


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


def read(path: Path, phase: int | None = None, *, alone: bool = False) -> Volume:
    """Read a NIfTI-1 or NIfTI-2 file and, where there is one, its sidecar.

    Args:
        path: `.nii.gz` or `.nii`.
        phase: Read this phase of a 4-D file only; None reads all.
        alone: Do not look at the sidecar, which another tool may have written.

    Returns:
        The stored values with slope and intercept beside them; (x, y, z) or (x, y, z, t).

    Raises:
        DataError: Not a NIfTI file, shorter than its header says, colour, or of more dimensions;
            or the phase does not exist.
    """
    sidecar = {} if alone else read_sidecar(path)
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
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    start = file.read(540)
    try:
        for kind, size in ((Nifti1Header, 348), (Nifti2Header, 540)):
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


def series_of(paths: Sequence[Path]) -> list[Series]:
    """The series of the volumes of one manifest line; phases in files of their own are one series.

    Args:
        paths: In the order of the manifest.

    Raises:
        DataError: A sidecar is absent or was not written by medplat convert.
    """
    found = [series_from_sidecar(path) for path in paths]
    if len(found) < 2 or not all(_PHASE_FILE.fullmatch(path.name) for path in paths):
        return found
    times = [one.phase_times_s for one in found]
    known = tuple(time[0] for time in times if time)
    return [
        replace(
            found[0],
            shape=(*found[0].shape[:3], len(found)),
            phase_times_s=known if len(known) == len(found) else None,
        )
    ]


def image_of(path: Path, phase: int | None) -> Image:
    """Where a phase of a converted series lies: inside its file, or in a file of its own."""
    name = _PHASE_FILE.fullmatch(path.name)
    if name is None or phase is None:
        return Image(path, phase)
    return Image(path.with_name(f"{name[1]}{phase:02d}{name[2]}"))


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
