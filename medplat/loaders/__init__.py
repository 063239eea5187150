"""From cases to tensors: series chosen, splits by patient, channels on one grid, batches.

`medplat.loaders.batches` holds what needs torch and MONAI; this face does not.
"""

from __future__ import annotations

from medplat.loaders.cases import contents, resolve, split
from medplat.loaders.images import (
    check_directions,
    is_picture,
    read_image,
    real_values,
    same_grid,
    stack,
)

__all__ = [
    "check_directions",
    "contents",
    "is_picture",
    "read_image",
    "real_values",
    "resolve",
    "same_grid",
    "split",
    "stack",
]
