"""Transfer syntaxes: their names, their kinds, and the one decoder that each is read with.

One decoder a syntax, never a second try: a decoder that returns a wrong picture from a damaged
stream must not be reached because another one raised (specs section 6.1).
"""

from __future__ import annotations

from typing import NamedTuple

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
NATIVE = frozenset({IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN})
_JPEG = "1.2.840.10008.1.2.4."


class Syntax(NamedTuple):
    """A transfer syntax.

    `decoder` is "native", "rle", "gdcm", "jpegls" or "openjpeg"; "" where none is used, and then
    `missing` says which packages were looked at.
    """

    name: str
    decoder: str
    lossy: bool = False
    missing: str = ""


_PART_10 = "no decoder is used: ask for another transfer syntax"
SYNTAXES: dict[str, Syntax] = {
    IMPLICIT: Syntax("Implicit VR Little Endian", "native"),
    EXPLICIT: Syntax("Explicit VR Little Endian", "native"),
    DEFLATED: Syntax("Deflated Explicit VR Little Endian", "native"),
    BIG_ENDIAN: Syntax("Explicit VR Big Endian", "native"),
    RLE: Syntax("RLE Lossless", "rle"),
    _JPEG + "50": Syntax("JPEG Baseline", "gdcm", lossy=True),
    _JPEG + "51": Syntax(
        "JPEG Extended (12 bit)",
        "",
        lossy=True,
        missing="gdcm and pillow cannot decode 12 bit, pylibjpeg-libjpeg is GPL and not used",
    ),
    _JPEG + "57": Syntax("JPEG Lossless (process 14)", "gdcm"),
    _JPEG + "70": Syntax("JPEG Lossless (process 14, SV1)", "gdcm"),
    _JPEG + "80": Syntax("JPEG-LS Lossless", "jpegls"),
    _JPEG + "81": Syntax("JPEG-LS Near-lossless", "jpegls", lossy=True),
    _JPEG + "90": Syntax("JPEG 2000 Lossless", "openjpeg"),
    _JPEG + "91": Syntax("JPEG 2000", "openjpeg", lossy=True),
    _JPEG + "92": Syntax("JPEG 2000 part 2 Lossless", "", missing=_PART_10),
    _JPEG + "93": Syntax("JPEG 2000 part 2", "", lossy=True, missing=_PART_10),
    _JPEG + "201": Syntax("HTJ2K Lossless", "openjpeg"),
    _JPEG + "202": Syntax("HTJ2K Lossless RPCL", "openjpeg"),
    _JPEG + "203": Syntax("HTJ2K", "openjpeg", lossy=True),
}
PACKAGES = {
    "gdcm": "python-gdcm",
    "jpegls": "pyjpegls",
    "openjpeg": "pylibjpeg-openjpeg",
}


def syntax(uid: str) -> Syntax:
    """What is known of a transfer syntax; unknown ones have no decoder."""
    return SYNTAXES.get(uid) or Syntax(uid or "(none)", "", missing=_PART_10)
