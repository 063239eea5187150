"""The stored values of one image: native data by one seek and one read, the rest by one decoder.

Nothing is rounded or rescaled here. Two-dimensional arrays are (row, column).
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from io import BytesIO
from typing import Any, BinaryIO, cast

import numpy as np

from medplat.dicom import encapsulated, source
from medplat.dicom.header import Header
from medplat.dicom.syntax import BIG_ENDIAN, DEFLATED, PACKAGES, syntax
from medplat.errors import Refused
from medplat.types import Array

_PLUGINS = {"rle": "pydicom", "gdcm": "gdcm", "jpegls": "pyjpegls", "openjpeg": "pylibjpeg"}
_RLE_RATIO = 64
_FLOATS: dict[str, np.dtype[Any]] = {
    "FloatPixelData": np.dtype("f4"),
    "DoubleFloatPixelData": np.dtype("f8"),
}


def dtype(header: Header) -> np.dtype[Any]:
    """The type that the stored values keep, in the machine's byte order.

    Raises:
        Refused: NOT_IMAGE for bit depths that no volume has (1, 12 packed ...).
    """
    if header.pixels.keyword in _FLOATS:
        return _FLOATS[header.pixels.keyword]
    if header.bits_allocated not in (8, 16, 32):
        raise Refused("NOT_IMAGE", f"{header.bits_allocated} bits a pixel are not read")
    return np.dtype(f"{'i' if header.signed else 'u'}{header.bits_allocated // 8}")


def check_decoder(header: Header) -> None:
    """Make sure that the transfer syntax can be decoded.

    Raises:
        Refused: UNSUPPORTED_SYNTAX, with the packages that were looked at.
    """
    known = syntax(header.transfer_syntax)
    if not known.decoder:
        text = f"transfer syntax {known.name} cannot be read ({known.missing})"
        raise Refused("UNSUPPORTED_SYNTAX", text)
    package = PACKAGES.get(known.decoder)
    if package and not _decoder_ready(header.transfer_syntax, _PLUGINS[known.decoder]):
        text = f"transfer syntax {known.name} needs {package}: pip install {package}"
        raise Refused("UNSUPPORTED_SYNTAX", text)


def read_into(header: Header, out: Array) -> None:
    """Read the stored values of an image into `out`.

    Args:
        header: A single-frame image (a mosaic's tile stands for its whole sheet here).
        out: C-contiguous (rows, columns) of `dtype(header)`: the sheet's size for a mosaic.

    Raises:
        Refused: TRUNCATED or UNSUPPORTED_SYNTAX.
    """
    try:
        if header.pixels.length is None:
            out[...] = _decode(header, out.shape)
            bits = (header.bits_allocated - header.bits_stored,) * 2
        else:
            _read_native(header, out)
            above = header.bits_allocated - 1 - header.high_bit
            bits = (above, header.bits_allocated - header.bits_stored)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        text = f"image {header.instance_number} cannot be read ({type(error).__name__})"
        raise Refused("TRUNCATED", text) from error
    if out.dtype.kind in "iu" and bits[1] > 0 and bits[0] >= 0:
        # Drops bits outside the stored ones, and extends the sign where there is one.
        np.left_shift(out, bits[0], out=out)
        np.right_shift(out, bits[1], out=out)


def check_size(header: Header) -> None:
    """Make sure, before memory is taken, that an encapsulated image is as large as its header says.

    Raises:
        Refused: TRUNCATED.
    """
    if header.pixels.length is not None:
        return
    stream, shape = _stream(header), sheet_shape(header)
    stated = codestream_shape(stream)
    if stated is None and syntax(header.transfer_syntax).decoder == "rle":
        bytes_needed = shape[0] * shape[1] * header.bits_allocated // 8
        stated = shape if bytes_needed <= _RLE_RATIO * len(stream) else (0, 0)
    if stated is not None and stated != shape:
        text = f"image {header.instance_number}: the codestream is not the {shape} of the header"
        raise Refused("TRUNCATED", text)


def sheet_shape(header: Header) -> tuple[int, int]:
    """Rows and columns as stored in the file: those of the sheet for a mosaic's tile."""
    grid = header.mosaic.grid if header.mosaic else 1
    return header.rows * grid, header.columns * grid


def digest(header: Header) -> str:
    """Hash of the decoded stored values, to tell copies from different images."""
    out = np.empty(sheet_shape(header), dtype(header))
    read_into(header, out)
    return hashlib.sha256(out.tobytes()).hexdigest()


def file_digest(header: Header) -> str:
    """Hash of the file's bytes."""
    with source.open_entry(header.entry) as file:
        return hashlib.sha256(file.read()).hexdigest()


def _open(header: Header) -> BinaryIO:
    entry = header.entry
    if header.transfer_syntax == DEFLATED:
        from medplat.dicom.parse import read_meta

        with source.open_entry(entry) as file:
            file.seek(read_meta(file, entry.size).start)
            return BytesIO(encapsulated.inflate(file.read()))
    if entry.member is None:
        return cast(BinaryIO, entry.file.open("rb", buffering=0))
    return source.open_entry(entry)


def _read_native(header: Header, out: Array) -> None:
    assert header.pixels.offset is not None
    with _open(header) as file:
        file.seek(header.pixels.offset)
        read = file.readinto(out.data.cast("B"))  # type: ignore[attr-defined]
    if read != out.nbytes:
        text = f"image {header.instance_number} holds {read} of {out.nbytes} bytes of pixels"
        raise Refused("TRUNCATED", text)
    if header.transfer_syntax == BIG_ENDIAN and out.itemsize > 1:
        out.byteswap(inplace=True)


def _stream(header: Header) -> bytes:
    """The codestream of a single-frame encapsulated image."""
    with _open(header) as file:
        parts = []
        for offset, length in header.pixels.fragments:
            file.seek(offset)
            parts.append(file.read(length))
    return b"".join(parts)


def _decode(header: Header, shape: tuple[int, ...]) -> Array:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    check_decoder(header)
    stream = _stream(header)
    stated = codestream_shape(stream)
    if stated is not None and stated != shape:
        text = f"image {header.instance_number}: the codestream is {stated}, the header {shape}"
        raise Refused("TRUNCATED", text)
    options: dict[str, Any] = {
        "rows": shape[0],
        "columns": shape[1],
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": header.photometric,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "pixel_representation": int(header.signed),
        "pixel_keyword": header.pixels.keyword,
        "decoding_plugin": _PLUGINS[syntax(header.transfer_syntax).decoder],
    }
    try:
        decoder = get_decoder(header.transfer_syntax)
        array, _ = decoder.as_array(encapsulate([stream], has_bot=False), raw=True, **options)
    except Exception as error:
        # Every decoder has errors of its own; all mean that the stream does not decode.
        name = syntax(header.transfer_syntax).name
        text = f"image {header.instance_number} does not decode as {name} ({type(error).__name__})"
        raise Refused("TRUNCATED", text) from error
    return array.reshape(shape)


def _decoder_ready(uid: str, plugin: str) -> bool:
    from pydicom.pixels.decoders.base import get_decoder

    return plugin in get_decoder(uid).available_plugins


def codestream_shape(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 codestream states; None if it does not."""
    if stream[:4] == b"\xff\x4f\xff\x51" and len(stream) >= 24:
        right, bottom, left, top = struct.unpack(">4L", stream[8:24])
        return bottom - top, right - left
    if stream[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if frame or marker == 0xF7:
            rows, columns = struct.unpack(">HH", stream[at + 5 : at + 9])
            return rows, columns
        at += 2 + int(struct.unpack(">H", stream[at + 2 : at + 4])[0])
    return None
