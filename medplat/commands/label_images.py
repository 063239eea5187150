"""Label images of the tools that people draw with: NIfTI, NRRD (3D Slicer's `.seg.nrrd`), MHA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medplat import nifti
from medplat.dicom.geometry import LPS_TO_RAS
from medplat.dicom.labels import LabelVolume, Segment, merged
from medplat.errors import DataError, Refused
from medplat.types import Affine, Array
from medplat.workflow.schema import Code

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
_HEADER_BYTES = 1 << 16
_DETACHED = re.compile(rb"(?im)^(data\s?file\s*:|ElementDataFile\s*=\s*+(?!LOCAL))")
_SEGMENT_KEY = re.compile(r"Segment(\d+)_(\w+)")


def stem(name: str) -> str:
    """File name without the ending of its format."""
    lowered = name.lower()
    ending = next((one for one in SUFFIXES if lowered.endswith(one)), "")
    return name[: len(name) - len(ending)]


def read(
    path: Path, names: Mapping[int, Segment] | None, *, apart: bool = False
) -> list[LabelVolume]:
    """Read a label image.

    Args:
        path: NIfTI, NRRD or MHA. A fourth axis is one layer of structures each.
        names: What the values mean, where the file itself does not say; None: unknown.
        apart: Layers overlap: each is a label of its own.

    Returns:
        One label, or one for each layer that has structures.

    Raises:
        Refused: LABEL_UNKNOWN_VALUE, LABEL_OVERLAP, NO_GEOMETRY, OUTSIDE_ROOT (the voxels lie in
            another file), TRUNCATED.
    """
    if path.name.lower().endswith((".nii", ".nii.gz")):
        layers, affine = _read_nifti(path)
        tags: dict[str, str] = {}
    else:
        layers, affine, tags = _read_itk(path)
    own = _slicer_segments(tags)
    known = own or _by_layer([names] * len(layers), layers)
    pairs = list(zip(layers, known, strict=True))
    drawn = path.name.lower().endswith(".seg.nrrd") or bool(own)
    return [
        LabelVolume(
            array=array,
            affine=affine,
            segments=segments,
            cropped=(drawn, drawn, drawn),
            offset=_offset(tags),
            turned=True,
        )
        for array, segments in map(merged, [[pair] for pair in pairs] if apart else [pairs])
    ]


def _read_nifti(path: Path) -> tuple[list[Array], Affine]:
    try:
        volume = nifti.read(path)
    except DataError as error:
        raise Refused("TRUNCATED", "the label cannot be read as NIfTI") from error
    if volume.geometry.orientation != "known":
        raise Refused("NO_GEOMETRY", "the label states no orientation (sform and qform code 0)")
    array = volume.array
    if (volume.slope, volume.intercept) != (1.0, 0.0):
        array = array * volume.slope + volume.intercept
    layers = [array] if array.ndim == 3 else list(np.moveaxis(array, 3, 0))
    return [_whole_numbers(one) for one in layers], volume.geometry.affine


def _read_itk(path: Path) -> tuple[list[Array], Affine, dict[str, str]]:
    import SimpleITK as sitk  # noqa: N813

    with path.open("rb") as file:
        if _DETACHED.search(file.read(_HEADER_BYTES).partition(b"\n\n")[0]):
            raise Refused("OUTSIDE_ROOT", "the label's voxels lie in another file: save it as one")
    try:
        image = sitk.ReadImage(str(path))
        stored = sitk.GetArrayFromImage(image)
    except RuntimeError as error:
        raise Refused("TRUNCATED", f"the label cannot be read as {path.suffix[1:]}") from error
    parts = image.GetNumberOfComponentsPerPixel()
    if image.GetDimension() == 4 and parts == 1:
        layers = list(stored.transpose(0, 3, 2, 1))
    elif image.GetDimension() == 3:
        layers = [stored.T] if parts == 1 else list(stored.transpose(3, 2, 1, 0))
    else:
        raise Refused("NO_GEOMETRY", f"the label has {image.GetDimension()} axes")
    tags = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    return [_whole_numbers(one) for one in layers], _affine(image), tags


def _affine(image: Any) -> Affine:
    axes = image.GetDimension()
    lps = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(axes, axes)[:3, :3]
    lps[:3, :3] = directions * np.array(image.GetSpacing())[:3]
    lps[:3, 3] = image.GetOrigin()[:3]
    return np.asarray(LPS_TO_RAS @ lps, dtype=np.float64)


def _whole_numbers(array: Array) -> Array:
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and (array == np.rint(array)).all()):
            raise Refused("LABEL_UNKNOWN_VALUE", "the label holds values that are no whole numbers")
        array = array.astype(np.int64)
    if array.size and (array.min() < 0 or array.max() > 65535):
        text = f"the label holds values from {array.min()} to {array.max()}, beyond 0 to 65535"
        raise Refused("LABEL_UNKNOWN_VALUE", text)
    return array


def _by_layer(
    names: list[Mapping[int, Segment] | None], layers: list[Array]
) -> list[dict[int, Segment]]:
    """The segments of each layer by stored value; layer n of several that hold 0 and 1 is value n.

    Where no names are known, values are named by their number.
    """
    if len(layers) > 1 and all(one.max(initial=0) <= 1 for one in layers):
        found = []
        for value, table in enumerate(names, start=1):
            given = Segment(value, f"label {value}", None) if table is None else table.get(value)
            found.append({} if given is None else {1: given})
        return found
    return [
        {v: Segment(v, f"label {v}", None) for v in np.unique(one).tolist() if v}
        if table is None
        else dict(table)
        for one, table in zip(layers, names, strict=True)
    ]


def _slicer_segments(tags: Mapping[str, str]) -> list[dict[int, Segment]]:
    """The segments of each layer by stored value, as 3D Slicer writes them; [] where it did not.

    Values that two layers share are numbered anew, in the order of the file.
    """
    found: dict[int, dict[str, str]] = {}
    for key, value in tags.items():
        match = _SEGMENT_KEY.fullmatch(key)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = value
    rows = [found[number] for number in sorted(found)]
    if not rows:
        return []
    places = [(int(row.get("Layer", 0)), int(row.get("LabelValue", 1))) for row in rows]
    values = [value for _, value in places]
    if len(set(values)) < len(values):
        values = list(range(1, len(rows) + 1))
    layers: list[dict[int, Segment]] = [{} for _ in range(1 + max(layer for layer, _ in places))]
    for (layer, stored), number, row in zip(places, values, rows, strict=True):
        name = row.get("Name", "").strip()
        if name:
            layers[layer][stored] = Segment(number, name, _terminology(row.get("Tags", "")))
    return layers


def _terminology(tags: str) -> Code | None:
    """The type of a structure in 3D Slicer's tags: context~category~type~..., scheme apart by ^."""
    for tag in tags.split("|"):
        key, _, entry = tag.partition(":")
        parts = entry.split("~")
        if key.endswith("TerminologyEntry") and len(parts) > 2:
            value = parts[2].split("^")
            if len(value) == 3 and all(value):
                return Code(scheme=value[0], value=value[1], meaning=value[2])
    return None


def _offset(tags: Mapping[str, str]) -> tuple[int, int, int] | None:
    parts = tags.get("Segmentation_ReferenceImageExtentOffset", "").split()
    if len(parts) != 3 or not all(part.lstrip("-").isdecimal() for part in parts):
        return None
    return int(parts[0]), int(parts[1]), int(parts[2])
