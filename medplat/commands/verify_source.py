"""What NIfTI files are compared with: the volumes of a SOURCE, as the scanner stored them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from medplat.dicom import multiframe, pixels
from medplat.dicom import read as dicom_read
from medplat.dicom.header import Header
from medplat.dicom.read import SeriesPlan
from medplat.dicom.series import SeriesFiles
from medplat.errors import Refused
from medplat.types import Affine, Array

_CLOSE_MM = 1e-3
_COUNTED = 1 << 16


class Slices(Protocol):
    """What a file's slices can be looked for in: a `Unit`, or a series that is refused."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        ...

    @property
    def scales(self) -> list[list[tuple[float, float]]]:
        """Slope and intercept by phase and slice."""
        ...

    @property
    def contents(self) -> Contents:
        """Hashes and range of the stored values."""
        ...


@dataclass(frozen=True, eq=False)
class Unit:
    """Stacks of one series on one grid: what a NIfTI file may hold, a phase each.

    Tools differ in whether echoes or b-values share a file; order and completeness are asked for
    within a stack only.
    """

    plans: tuple[SeriesPlan, ...]

    @property
    def series_uid(self) -> str:
        """Of the series."""
        return self.plans[0].series.series_uid

    def name(self, phases: Sequence[int] = ()) -> str:
        """Case and stacks, as `medplat convert` calls them; of all phases or some."""
        stacks = sorted({self.phases[phase][0] for phase in phases}) or range(len(self.plans))
        keys = " + ".join(self.plans[stack].key for stack in stacks)
        return f"{self.plans[0].series.case}/{keys}"

    @property
    def affine(self) -> Affine:
        """Voxel index to RAS+ mm."""
        assert self.plans[0].geometry is not None
        return self.plans[0].geometry.affine

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        assert self.plans[0].geometry is not None
        return self.plans[0].geometry.shape

    @property
    def flat(self) -> bool:
        """Whether only lengths are known of it (CR, DX, MG)."""
        geometry = self.plans[0].geometry
        return geometry is None or geometry.orientation == "unknown"

    @property
    def phases(self) -> list[tuple[int, int]]:
        """(index of the stack, phase in it), in the order of `stored`."""
        return [(at, t) for at, plan in enumerate(self.plans) for t in range(len(plan.frames))]

    @property
    def scales(self) -> list[list[tuple[float, float]]]:
        """Slope and intercept by phase and slice."""
        return [
            [(header.slope, header.intercept) for header in frames]
            for plan in self.plans
            for frames in plan.frames
        ]

    def precise(self, phase: int) -> tuple[float, float] | None:
        """Slope and intercept of Philips' precise values, which dcm2niix writes instead."""
        stack, _ = self.phases[phase]
        slope = self.plans[stack].metadata.get("philips_precise_slope")
        scales = set(self.scales[phase])
        if not isinstance(slope, float) or not slope or len(scales) != 1:
            return None
        ((shown, intercept),) = scales
        return (1 / slope, intercept / (shown * slope)) if shown else None

    def stored(self) -> Array:
        """The values as stored, before slope and intercept: (x, y, z, phase)."""
        found = []
        for plan in self.plans:
            frames = tuple(
                tuple(replace(header, slope=1.0, intercept=0.0) for header in phase)
                for phase in plan.frames
            )
            array = dicom_read.read_volume(replace(plan, frames=frames)).array
            found.append(array[..., np.newaxis] if array.ndim == 3 else array)
        return found[0] if len(found) == 1 else np.concatenate(found, axis=3)

    @cached_property
    def contents(self) -> Contents:
        """Hashes and range of the stored values; the values themselves are not kept."""
        array = self.stored()
        hashes = frozenset(slice_hashes(array, 2).values())
        return Contents(hashes, float(array.min()), float(array.max()))


@dataclass(frozen=True)
class Contents:
    """Of a volume: hashes of its slices that are not of one value, and its range."""

    hashes: frozenset[bytes]
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class RefusedSeries:
    """Images that no volume is made of: a file that holds them cannot be trusted either."""

    plan: SeriesPlan
    images: tuple[Header, ...]

    @property
    def series_uid(self) -> str:
        """Of the series."""
        return self.plan.series.series_uid

    @property
    def name(self) -> str:
        """Case and series, as `medplat convert` calls them."""
        return f"{self.plan.series.case}/{self.plan.key}"

    @property
    def why(self) -> str:
        """Code and sentence of the refusal."""
        return f"{self.plan.series.codes[0]}: {self.plan.series.messages[0]}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns and rows that most images have, and how many images there are."""
        sizes = Counter((one.columns, one.rows) for one in self.images)
        columns, rows = max(sizes, key=sizes.__getitem__, default=(0, 0))
        return columns, rows, len(self.images)

    @property
    def scales(self) -> list[list[tuple[float, float]]]:
        """Slope and intercept of each image."""
        return [[(one.slope, one.intercept) for one in self.images]]

    @cached_property
    def contents(self) -> Contents:
        """Of the images that can be read."""
        hashes: set[bytes] = set()
        ends: list[float] = []
        for one in self.images:
            try:
                pixels.check_size(one)
                plane = np.empty(pixels.sheet_shape(one), pixels.dtype(one))
                pixels.read_into(one, plane)
            except Refused:
                continue
            hashes |= {values_hash(plane) or b""}
            ends += [float(plane.min()), float(plane.max())]
        return Contents(frozenset(hashes - {b""}), min(ends, default=0.0), max(ends, default=0.0))


def refused(files: SeriesFiles, plans: Sequence[SeriesPlan]) -> list[RefusedSeries]:
    """The stacks of a series that are refused, with their images."""
    found = []
    for plan in plans:
        paths = {fate.path for fate in plan.fates}
        if plan.series.status == "rejected":
            images = [
                frame
                for header in files.headers
                if header.path in paths and header.damage is None and header.samples == 1
                for frame in multiframe.frames(header)
            ]
            found.append(RefusedSeries(plan, tuple(images)))
    return found


def units(plans: Sequence[SeriesPlan]) -> list[Unit]:
    """The stacks of one series that lie on one grid, together."""
    found: list[list[SeriesPlan]] = []
    for plan in plans:
        if not plan.convertible or plan.geometry is None:
            continue
        for together in found:
            other = together[0].geometry
            assert other is not None
            same = other.shape == plan.geometry.shape
            if same and np.abs(other.affine - plan.geometry.affine).max() < _CLOSE_MM:
                together.append(plan)
                break
        else:
            found.append([plan])
    return [Unit(tuple(together)) for together in found]


def slice_hashes(array: Array, axis: int) -> dict[tuple[int, int], bytes]:
    """A hash of the values of each slice, whatever their order in it.

    Args:
        array: (x, y, z, t) of whole numbers.
        axis: Slices lie across this axis.

    Returns:
        By slice and phase; slices of one value are left out.
    """
    found = {}
    moved = np.moveaxis(array, axis, 2)
    for j, t in np.ndindex(moved.shape[2:]):
        one = values_hash(moved[:, :, j, t])
        if one is not None:
            found[j, t] = one
    return found


def values_hash(plane: Array) -> bytes | None:
    """Hash of the values of a slice and how often each occurs; None where all are one."""
    low, high = plane.min(), plane.max()
    if low == high:
        return None
    if plane.dtype.kind == "f" or int(high) - int(low) >= _COUNTED:
        return digest(np.sort(plane, axis=None))
    counts = np.bincount((plane.astype(np.int64) - int(low)).ravel())
    return int(low).to_bytes(8, "little", signed=True) + digest(counts)


def digest(plane: Array) -> bytes:
    """Hash of values as they lie, whatever type holds them."""
    kind = "<f8"
    if plane.dtype.kind != "f":
        limits = np.iinfo(np.int32)
        narrow = plane.dtype.itemsize < 4 or (
            limits.min <= int(plane.min()) and int(plane.max()) <= limits.max
        )
        kind = "<i4" if narrow else "<i8"
    data = np.ascontiguousarray(plane, dtype=kind)
    return hashlib.blake2b(data.tobytes(), digest_size=16).digest()
