"""The picture of one case, drawn in the worker process: contours over the middle slices."""

from __future__ import annotations

from pathlib import Path

from medplat import paths
from medplat.report import pictures
from medplat.types import Array, Volume

SIZE = 320


def draw(volume: Volume, mask: Array, path: Path) -> None:
    """Write overlay.png: the slices in which the mask is largest, its border and a light fill.

    Args:
        volume: The first input of the model, (x, y, z).
        mask: (x, y, z) label values.
        path: The file; it appears whole or not at all.
    """
    picture = pictures.triptych(volume, mask=mask, size=SIZE)
    with paths.whole(path) as part:
        picture.save(part, "PNG")
