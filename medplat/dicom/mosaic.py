"""Siemens mosaics: one sheet of tiles, each of which is a slice.

The tiles' number and direction stand only in Siemens' private CSA header, which nibabel reads.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np

from medplat.dicom.header import Header, Mosaic, Vector
from medplat.types import Array


def read(csa: bytes, tiles: tuple[float, ...], header: Header) -> Mosaic | None:
    """Read how the tiles of a mosaic lie.

    Args:
        csa: (0029,1010), the CSA image header.
        tiles: (0019,100A), the number of slices, where present.
        header: The sheet.

    Returns:
        None where the private header is gone or makes no sense: the code is then MOSAIC.
    """
    if not csa or header.orientation is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from nibabel.nicom import csareader

            values = csareader.read(csa)
            count = csareader.get_n_mosaic(values) or (int(tiles[0]) if tiles else 0)
            normal = csareader.get_slice_normal(values)
    except Exception:
        # A private header that cannot be read is as good as absent.
        return None
    spacing = header.spacing_between_slices or header.slice_thickness
    if count < 1 or normal is None or not spacing or spacing <= 0:
        return None
    grid = math.ceil(math.sqrt(count))
    if header.rows % grid or header.columns % grid or np.linalg.norm(normal) < 0.5:
        return None
    unit = np.asarray(normal, dtype=np.float64) / np.linalg.norm(normal)
    return Mosaic(count, grid, (float(unit[0]), float(unit[1]), float(unit[2])), float(spacing))


def tiles(sheet: Header) -> list[Header]:
    """One header for each slice of a mosaic sheet, with the tile's own matrix and position.

    The sheet's ImagePositionPatient is the corner that the whole sheet would have, were it one
    image about the slice's centre; the tile's corner lies half the difference further in.
    """
    mosaic, spacing = sheet.mosaic, sheet.pixel_spacing
    if mosaic is None or spacing is None or sheet.orientation is None or sheet.position is None:
        return [sheet]
    rows, columns = sheet.rows // mosaic.grid, sheet.columns // mosaic.grid
    along_row = np.array(sheet.orientation[:3]) * spacing[1]
    along_column = np.array(sheet.orientation[3:]) * spacing[0]
    corner = (
        np.array(sheet.position)
        + along_row * (sheet.columns - columns) / 2
        + along_column * (sheet.rows - rows) / 2
    )
    # The exact normal of the plane; the CSA header's only tells its sense.
    normal = np.cross(sheet.orientation[:3], sheet.orientation[3:])
    normal *= math.copysign(1.0, float(normal @ np.array(mosaic.normal)))
    step = normal / np.linalg.norm(normal) * mosaic.spacing_mm
    return [
        replace(sheet, rows=rows, columns=columns, position=_vector(corner + k * step), frame=k)
        for k in range(mosaic.tiles)
    ]


def _vector(values: Array) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])


def tile(sheet: Array, header: Header) -> Array:
    """The part of a sheet that belongs to one tile; the whole image where it is no mosaic."""
    if header.mosaic is None:
        return sheet
    down, across = divmod(header.frame, header.mosaic.grid)
    top, left = down * header.rows, across * header.columns
    return sheet[top : top + header.rows, left : left + header.columns]
