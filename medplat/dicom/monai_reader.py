"""`DicomSeriesReader`: the DICOM core as a MONAI `ImageReader`, for any MONAI pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils.enums import MetaKeys, SpaceKeys

from medplat.dicom.header import Entry
from medplat.dicom.read import SeriesPlan, plan, read_volume
from medplat.dicom.scan import scan, scan_entries
from medplat.dicom.series import group
from medplat.errors import DataError, Refused
from medplat.types import Array, Volume

Paths = Sequence[PathLike[str] | str] | PathLike[str] | str
_NO_CHANNEL: Final = "no_channel"


class DicomSeriesReader(ImageReader):  # type: ignore[misc]
    """Reads one DICOM series: what `medplat convert` would write, as an array and its affine.

    Args:
        allow_shear: Read sheared series; the affine then holds the shear.
        resample: Bring sheared and unevenly spaced series onto a regular grid.
        workers: Threads that read and decode.
    """

    def __init__(
        self, *, allow_shear: bool = False, resample: bool = False, workers: int = 1
    ) -> None:
        super().__init__()
        self.allow_shear = allow_shear
        self.resample = resample
        self.workers = workers

    def verify_suffix(self, filename: Paths) -> bool:
        """DICOM has no suffix: a folder, a zip or any existing file may hold it."""
        return all(path.exists() for path in _paths(filename))

    def read(self, data: Paths, **kwargs: Any) -> tuple[SeriesPlan, Volume]:
        """Read the one convertible series of a folder, a zip, a DICOMDIR or a list of files.

        Raises:
            Refused: The only series is not convertible; the code says why.
            DataError: No series, or several convertible ones, were found.
        """
        del kwargs
        paths = _paths(data)
        if len(paths) == 1 and (paths[0].is_dir() or _is_container(paths[0])):
            files = scan(paths[0], self.workers)
        else:
            files = scan_entries([_entry(path) for path in paths], self.workers)
        plans = [
            one
            for series in group(files)
            for one in plan(series, allow_shear=self.allow_shear, resample=self.resample)
        ]
        chosen = _only(plans)
        return chosen, read_volume(chosen, self.workers)

    def get_data(self, img: tuple[SeriesPlan, Volume]) -> tuple[Array, dict[str, Any]]:
        """Real values (x, y, z[, t]) and MONAI's metadata; the affine is RAS.

        Args:
            img: From `read`.
        """
        chosen, volume = img
        array = volume.array
        if (volume.slope, volume.intercept) != (1.0, 0.0):
            array = (array * np.float64(volume.slope) + volume.intercept).astype(np.float32)
        affine = volume.geometry.affine
        meta: dict[str, Any] = {
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(volume.geometry.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: _NO_CHANNEL if array.ndim == 3 else 3,
            "codes": list(chosen.series.codes),
        }
        if volume.phase_times_s is not None:
            meta["phase_times_s"] = list(volume.phase_times_s)
        return array, meta


def _paths(data: Paths) -> list[Path]:
    return [Path(data)] if isinstance(data, str | PathLike) else [Path(path) for path in data]


def _is_container(path: Path) -> bool:
    if path.name.upper() == "DICOMDIR":
        return True
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _entry(path: Path) -> Entry:
    status = path.stat()
    return Entry(path.as_posix(), path, None, status.st_size, status.st_mtime_ns)


def _only(plans: list[SeriesPlan]) -> SeriesPlan:
    fit = [one for one in plans if one.convertible]
    if len(fit) == 1:
        return fit[0]
    if len(plans) == 1:
        series = plans[0].series
        raise Refused(series.codes[0], series.messages[0])
    found = ", ".join(f"{one.key} {one.series.status} {one.series.shape}" for one in plans[:10])
    raise DataError(
        f"{len(fit)} convertible series were found, exactly one is needed: {found or 'no series'}"
    )
