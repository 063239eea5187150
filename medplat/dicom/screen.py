"""Which images of a series are meant for a volume at all (specs section 8): by header alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from medplat.dicom import multiframe, pixels
from medplat.dicom.header import Header
from medplat.dicom.plans import SkippedError
from medplat.errors import Refused

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_ENHANCED = frozenset(
    _STORAGE + end
    for end in (
        "2.1",
        "2.2",
        "4.1",
        "4.3",
        "4.4",
        "128.1",
        "130",
        "30",
    )
)
_VOLUMES = frozenset(_STORAGE + end for end in ("2", "4", "128")) | _ENHANCED
_SECONDARY = _STORAGE + "7"
_SCOUTS = frozenset({"LOCALIZER", "SCOUT"})
_PROJECTIONS = frozenset(
    {"MIP", "MINIP", "MAX_IP", "PROJECTION IMAGE", "SCREEN SAVE", "SCREENSAVE"}
)
_SCOUT_IMAGES = 3
FLAT_MODALITIES = frozenset({"CR", "DX", "MG"})


def sort_out(headers: Sequence[Header]) -> tuple[list[Header], list[tuple[Header, str]]]:
    """Images meant for a volume, and (header, code) of those that are not.

    Raises:
        Refused: NO_PIXELS, where images without pixels leave a hole.
        SkippedError: None is meant for a volume.
    """
    found = [(header, _unfit(header)) for header in headers]
    fit = [header for header, unfit in found if unfit is None]
    if fit:
        _check_holes(fit, [header for header, unfit in found if unfit and unfit[0] == "NO_PIXELS"])
        return fit, [(header, unfit[0]) for header, unfit in found if unfit is not None]
    (code, message), _ = Counter(unfit for _, unfit in found if unfit).most_common(1)[0]
    if code == "NO_PIXELS":
        raise Refused(code, message)
    raise SkippedError(code, message)


def _check_holes(fit: Sequence[Header], empty: Sequence[Header]) -> None:
    """Refuse a series in which an image without pixels is not there a second time, whole."""
    whole = {header.sop_instance_uid for header in fit}
    shapes = {(header.rows, header.columns) for header in fit}
    holes = [
        header
        for header in empty
        if header.sop_instance_uid not in whole and (header.rows, header.columns) in shapes
    ]
    if holes:
        numbers = ", ".join(str(header.instance_number) for header in holes[:10])
        text = f"{len(holes)} of {len(fit) + len(empty)} images have no pixels (image {numbers})"
        raise Refused("NO_PIXELS", text)


def _unfit(header: Header) -> tuple[str, str] | None:
    """Code and sentence of an image that is left out; None where it is meant for a volume."""
    tokens = {value.upper() for value in header.image_type}
    derived = "DERIVED" in header.image_type[:1]
    if tokens & _SCOUTS:
        return "LOCALIZER", "ImageType says localizer"
    if header.sop_class_uid == _SECONDARY or header.sop_class_uid.startswith(_SECONDARY + "."):
        if header.samples != 1:
            return "NOT_IMAGE", "colour secondary capture"
        return "DERIVED", "a secondary capture"
    if header.damage == "TRUNCATED" and header.samples == 1:
        return None  # `check` refuses the series for it.
    if derived and (tokens & _PROJECTIONS or header.burned_in):
        return "DERIVED", "a projection, or an image with burned-in annotation"
    if header.samples != 1 or not header.photometric.startswith("MONOCHROME"):
        return "NOT_IMAGE", f"{header.photometric or 'unknown'} pixels are not a volume's"
    if header.has_modality_lut:
        return "NOT_IMAGE", "values need a modality look-up table"
    if header.damage == "NO_PIXELS":
        return "NO_PIXELS", "there is no pixel data"
    known = header.sop_class_uid in _ENHANCED or multiframe.placed(header)
    if header.frames > 1 and not known:
        return "NOT_IMAGE", "several frames in an object without frame geometry"
    flat = header.modality in FLAT_MODALITIES
    if not (multiframe.placed(header) or flat or header.sop_class_uid in _VOLUMES):
        return "NOT_IMAGE", f"{header.modality or 'unknown'} images without a position"
    return None


def check_planes(images: Sequence[Header]) -> None:
    """Skip the few images that only show where the others lie.

    Raises:
        SkippedError: LOCALIZER, for three images or fewer in several orientations.
    """
    planes = {tuple(round(v, 3) for v in h.orientation) for h in images if h.orientation}
    if len(images) <= _SCOUT_IMAGES and len(planes) > 1:
        raise SkippedError("LOCALIZER", f"{len(images)} images in {len(planes)} orientations")


def check(headers: Sequence[Header]) -> None:
    """Refuse a series that cannot be read whole.

    Raises:
        Refused: TRUNCATED, MOSAIC, UNSUPPORTED_SYNTAX or NOT_IMAGE.
    """
    cut = [header for header in headers if header.damage == "TRUNCATED"]
    if cut:
        numbers = ", ".join(str(header.instance_number) for header in cut[:10])
        text = f"{len(cut)} of {len(headers)} images end too early (image {numbers})"
        raise Refused("TRUNCATED", text)
    for header in headers:
        if "MOSAIC" in header.image_type and header.mosaic is None:
            raise Refused("MOSAIC", "the private header that places the mosaic's tiles is gone")
    for syntax in {header.transfer_syntax: header for header in headers}.values():
        pixels.check_decoder(syntax)
    pixels.dtype(headers[0])
