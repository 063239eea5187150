"""Small pictures of volumes for reports: three middle slices, a strip of phases.

Slices are shown as radiologists look at them (the patient's right on the left of the picture, the
front up or left), with their true proportions in mm, by the body axes nearest to the voxel axes.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, features

from medplat.types import Affine, Array, Volume

LIMIT = 60_000
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
_GAP = 4
_THIN = 64  # Narrower slices get a margin, so that the marks do not cover them.
_MARGIN = 32
_Bool = npt.NDArray[np.bool_]
_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pane:
    """One slice as it is shown.

    Attributes:
        name: "axial", "coronal", "sagittal" or "image".
        pixels: (rows, columns), top row first.
        step_mm: Height and width of a pixel.
        marks: What lies left, right, above and below ("R", "L", "A", "P"); empty where unknown.
        mask: Label values on the same pixels, or None.
    """

    name: str
    pixels: Array
    step_mm: tuple[float, float]
    marks: tuple[str, str, str, str] = ("", "", "", "")
    mask: Array | None = None


def window(array: Array, low: float = 1.0, high: float = 99.0) -> tuple[float, float]:
    """Grey window of a volume in stored values: percentiles over all of it, all phases together.

    Args:
        array: Any shape; thinned out to some 60,000 values.
        low: Percentile shown black.
        high: Percentile shown white.
    """
    values = _thinned(array)
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    bottom, top = (float(one) for one in np.percentile(values, (low, high)))
    if top <= bottom:
        bottom, top = float(values.min()), float(values.max())
    return bottom, top if top > bottom else bottom + 1.0


def _thinned(array: Array) -> Array:
    step = max(1, round((array.size / 60_000) ** (1 / max(array.ndim, 1))))
    spatial = (slice(None, None, step),) * min(array.ndim, 3)
    return np.asarray(array[spatial]).ravel()


def panes(
    array: Array, affine: Affine, *, mask: Array | None = None, oriented: bool = True
) -> list[Pane]:
    """The middle slices of a volume, or those in which a mask is largest.

    Args:
        array: (x, y, z).
        affine: (4, 4), voxel to RAS+ mm.
        mask: (x, y, z) label values, 0 is background.
        oriented: False for pictures without a place in the patient: the first plane, no marks.

    Returns:
        Axial, coronal, sagittal; or one "image".
    """
    steps = np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(axis=0))
    if not oriented or array.shape[2] == 1 or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        plane = np.asarray(array[:, :, array.shape[2] // 2]).T
        marked = None if mask is None else np.asarray(mask[:, :, mask.shape[2] // 2]).T
        return [Pane("image", plane, (float(steps[1]), float(steps[0])), mask=marked)]
    turn = _body_axes(affine)
    body = _turned(array, turn)
    marked = None if mask is None else _turned(mask, turn)
    x, y, z = (float(steps[axis]) for axis, _ in turn)
    i, j, k = _centre(body.shape, marked)

    def shown(volume: Array | None, index: tuple[Any, ...]) -> Array | None:
        return None if volume is None else np.asarray(volume[index]).T

    back = slice(None, None, -1)
    wanted = (
        ("axial", (back, back, k), (y, x), ("R", "L", "A", "P")),
        ("coronal", (back, j, back), (z, x), ("R", "L", "S", "I")),
        ("sagittal", (i, back, back), (z, y), ("A", "P", "S", "I")),
    )
    return [
        Pane(name, cast(Array, shown(body, index)), step, marks, shown(marked, index))
        for name, index, step, marks in wanted
    ]


def _body_axes(affine: Affine) -> list[tuple[int, bool]]:
    """For left-right, back-front and feet-head: the nearest voxel axis, and whether it runs back.

    The three are the assignment with the largest sum of cosines.
    """
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    cosines = matrix / np.sqrt((matrix**2).sum(axis=0))
    best = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(cosines[body, axis]) for body, axis in enumerate(axes)),
    )
    return [(axis, bool(cosines[body, axis] < 0)) for body, axis in enumerate(best)]


def _turned(array: Array, turn: list[tuple[int, bool]]) -> Array:
    """The same voxels with the axes left to right, back to front, feet to head (a view)."""
    body = array.transpose([axis for axis, _ in turn])
    return body[tuple(slice(None, None, -1 if back else 1) for _, back in turn)]


def _centre(shape: tuple[int, ...], mask: Array | None) -> tuple[int, ...]:
    if mask is None or not mask.any():
        return tuple(size // 2 for size in shape)
    found = mask != 0
    return tuple(
        int(found.sum(axis=tuple(other for other in range(3) if other != axis)).argmax())
        for axis in range(3)
    )


def triptych(
    volume: Volume,
    *,
    phase: int = 0,
    mask: Array | None = None,
    limits: tuple[float, float] | None = None,
    size: int = 180,
    invert: bool = False,
) -> Image.Image:
    """Axial, coronal and sagittal slice side by side, one scale in mm, with orientation marks.

    Args:
        volume: (x, y, z) or (x, y, z, t).
        phase: Which phase of a 4-D volume.
        mask: (x, y, z) label values to be outlined; the slices are those where it is largest.
        limits: Grey window in stored values; None: that of the whole volume.
        size: Pixels of the longest side of a slice.
        invert: True for MONOCHROME1.

    Returns:
        "L" picture, "RGB" with a mask.
    """
    array = volume.array if volume.array.ndim == 3 else volume.array[..., phase]
    oriented = volume.geometry.orientation == "known"
    shown = panes(array, volume.geometry.affine, mask=mask, oriented=oriented)
    low, high = limits or window(volume.array)
    if invert != (volume.slope < 0):
        low, high = high, low
    longest = max(max(pane.pixels.shape * np.asarray(pane.step_mm)) for pane in shown)
    scale = (size if len(shown) > 1 else round(1.4 * size)) / float(longest)
    pictures = [draw(pane, (low, high), scale) for pane in shown]
    return _side_by_side(pictures)


def draw(pane: Pane, limits: tuple[float, float], pixels_per_mm: float) -> Image.Image:
    """One pane in grey, with contours and a light fill where it has a mask, and with its marks.

    Args:
        pane: From `panes`.
        limits: Values shown black and white.
        pixels_per_mm: Scale of the picture.
    """
    height, width = (
        max(1, round(count * step * pixels_per_mm))
        for count, step in zip(pane.pixels.shape, pane.step_mm, strict=True)
    )
    grey = Image.fromarray(_grey(pane.pixels, limits)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    if pane.mask is not None:
        grey = _outlined(grey, pane.mask)
    thin = _MARGIN if any(pane.marks) else 0
    room = [size + thin if size < _THIN else size for size in (width, height)]
    picture = Image.new(grey.mode, (room[0], room[1]))
    picture.paste(grey, ((picture.width - width) // 2, (picture.height - height) // 2))
    _mark(picture, pane.marks)
    return picture


def _grey(pixels: Array, limits: tuple[float, float]) -> _Bytes:
    low, high = limits
    with np.errstate(over="ignore"):
        values = np.subtract(pixels, low, dtype=np.float32)
        values *= 255 / ((high - low) or 1.0)
    return np.nan_to_num(values, copy=False).clip(0, 255).astype(np.uint8)


def _outlined(grey: Image.Image, mask: Array) -> Image.Image:
    """Each label's border in its colour, its inside tinted by a quarter."""
    values = sorted(int(one) for one in np.unique(mask) if one != 0)
    numbers = np.searchsorted(values, mask) + 1 if values else np.zeros(mask.shape, int)
    index = np.where(mask != 0, 1 + (numbers - 1) % 254, 0).astype(np.uint8)
    big = np.asarray(Image.fromarray(index).resize(grey.size, Image.Resampling.NEAREST))
    edge = np.zeros(big.shape, dtype=np.bool_)
    padded = np.pad(big, 1)
    for rows, columns in ((0, 1), (2, 1), (1, 0), (1, 2)):
        edge |= padded[rows : rows + big.shape[0], columns : columns + big.shape[1]] != big
    edge &= big != 0
    picture = np.repeat(np.asarray(grey)[..., None], 3, axis=2).astype(np.float64)
    tints = np.asarray([COLOURS[n % len(COLOURS)] for n in range(255)], dtype=np.float64)
    colours = tints[np.maximum(big, 1) - 1]
    picture = np.where((big != 0)[..., None], 0.75 * picture + 0.25 * colours, picture)
    return Image.fromarray(np.where(edge[..., None], colours, picture).astype(np.uint8))


@lru_cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size) if features.check("freetype2") else ImageFont.load_default()


def _mark(picture: Image.Image, marks: tuple[str, str, str, str]) -> None:
    pen = ImageDraw.Draw(picture)
    middle = picture.width / 2, picture.height / 2
    places = (
        (3, middle[1], "lm"),
        (picture.width - 3, middle[1], "rm"),
        (middle[0], 2, "mt"),
        (middle[0], picture.height - 2, "mb"),
    )
    for text, (x, y, anchor) in zip(marks, places, strict=True):
        _write(pen, (x, y), text, anchor)


def _write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str) -> None:
    white, black = (255, 0) if pen.mode == "L" else ((255, 255, 255), (0, 0, 0))
    if features.check("freetype2"):
        style = {"anchor": anchor, "stroke_width": 1, "stroke_fill": black}
        pen.text(place, text, fill=white, font=_font(11), **cast(Any, style))
    else:
        pen.text(place, text, fill=white)


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    width = sum(one.width for one in pictures) + _GAP * (len(pictures) - 1)
    height = max(one.height for one in pictures)
    whole = Image.new(pictures[0].mode, (width, height))
    x = 0
    for one in pictures:
        whole.paste(one, (x, (height - one.height) // 2))
        x += one.width + _GAP
    return whole


def phase_strip(
    volume: Volume, *, limits: tuple[float, float] | None = None, most: int = 6, size: int = 88
) -> Image.Image:
    """The middle slice (of the plane that was acquired) over the phases, one grey window for all.

    Args:
        volume: (x, y, z, t).
        limits: Grey window; None: that of all phases together.
        most: So many phases are shown, first and last among them.
        size: Pixels of the longer side of each.
    """
    limits = limits or window(volume.array)
    if volume.slope < 0:
        limits = limits[1], limits[0]
    phases = volume.array.shape[3]
    chosen = np.unique(np.linspace(0, phases - 1, min(most, phases)).round().astype(int))
    matrix = volume.geometry.affine[:3, :3]
    plane = ("sagittal", "coronal", "axial")[int(np.abs(matrix).argmax(axis=0)[2])]
    pictures = []
    for phase in chosen:
        shown = panes(
            volume.array[..., phase],
            volume.geometry.affine,
            oriented=volume.geometry.orientation == "known",
        )
        pane = next((one for one in shown if one.name == plane), shown[0])
        longest = max(pane.pixels.shape * np.asarray(pane.step_mm))
        bare = Pane(pane.name, pane.pixels, pane.step_mm)
        picture = draw(bare, limits, size / float(longest))
        times = volume.phase_times_s
        text = f"{times[phase]:.0f} s" if times is not None else f"{phase}"
        _write(ImageDraw.Draw(picture), (3, 2), text, "lt")
        pictures.append(picture)
    return _side_by_side(pictures)


def phase_means(volume: Volume) -> list[float]:
    """Mean real value of each phase of an (x, y, z, t) volume, from voxels thinned out alike."""
    step = max(1, round((volume.array.size / 2_000_000) ** (1 / 3)))
    thin = volume.array[::step, ::step, ::step]
    means = [float(np.mean(thin[..., t], dtype=np.float64)) for t in range(thin.shape[3])]
    return [mean * volume.slope + volume.intercept for mean in means]


def data_uri(image: Image.Image, limit: int = LIMIT) -> str:
    """A picture as a `data:` URI of at most `limit` characters: WebP, PNG where that is missing."""
    while True:
        for kind, options in _encodings():
            data = io.BytesIO()
            image.save(data, kind, **options)
            text = base64.b64encode(data.getvalue()).decode("ascii")
            uri = f"data:image/{kind};base64,{text}"
            if len(uri) <= limit:
                return uri
        smaller = (max(1, image.width * 3 // 4), max(1, image.height * 3 // 4))
        image = image.resize(smaller, Image.Resampling.BILINEAR)


def _encodings() -> list[tuple[str, Mapping[str, Any]]]:
    if features.check("webp"):
        from PIL import WebPImagePlugin  # noqa: F401  Else Pillow imports all its formats for it.

        return [("webp", {"quality": quality, "method": 1}) for quality in (88, 70, 50)]
    return [("png", {"optimize": True})]
