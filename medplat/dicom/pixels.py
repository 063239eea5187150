"""The stored values of one image: native data by one seek and one read, the rest by one decoder.

Nothing is rounded or rescaled here. Two-dimensional arrays are (row, column).
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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


def open_file(header: Header) -> BinaryIO:
    """Open the file of an image, inflated where it is deflated: `read_into` may use it often.

    Raises:
        Refused: TRUNCATED.
    """
    with _reading(header):
        return _open(header)


def read_into(header: Header, out: Array, file: BinaryIO | None = None) -> None:
    """Read the stored values of an image into `out`.

    Args:
        header: An image or a frame (a mosaic's tile stands for its whole sheet here).
        out: C-contiguous (rows, columns) of `dtype(header)`: the sheet's size for a mosaic.
        file: From `open_file`; None opens and closes it.

    Raises:
        Refused: TRUNCATED or UNSUPPORTED_SYNTAX.
    """
    if file is None:
        with open_file(header) as file:
            read_into(header, out, file)
        return
    with _reading(header):
        if header.pixels.length is None:
            out[...] = _decode(header, out.shape, file)
            bits = (header.bits_allocated - header.bits_stored,) * 2
        else:
            _read_native(header, out, file)
            above = header.bits_allocated - 1 - header.high_bit
            bits = (above, header.bits_allocated - header.bits_stored)
    if out.dtype.kind in "iu" and bits[1] > 0 and bits[0] >= 0:
        # Drops bits outside the stored ones, and extends the sign where there is one.
        np.left_shift(out, bits[0], out=out)
        np.right_shift(out, bits[1], out=out)


@contextmanager
def _reading(header: Header) -> Iterator[None]:
    """What goes wrong in the file becomes the verdict on its series."""
    try:
        yield
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno is not None:
            text = f"image {header.instance_number} cannot be read ({error.strerror})"
            raise Refused("UNREADABLE", text) from error
        text = f"{_which(header)} cannot be read ({type(error).__name__})"
        raise Refused("TRUNCATED", text) from error


def _which(header: Header) -> str:
    frame = f", frame {header.frame + 1}" if header.frames > 1 else ""
    return f"image {header.instance_number}{frame}"


def check_size(header: Header) -> None:
    """Make sure, before memory is taken, that an encapsulated image is as large as its header says.

    Raises:
        Refused: TRUNCATED.
    """
    if header.pixels.length is not None:
        return
    shape = sheet_shape(header)
    with open_file(header) as file, _reading(header):
        stream = _stream(header, file)
    stated = codestream_shape(stream)
    if stated is None and syntax(header.transfer_syntax).decoder == "rle":
        bytes_needed = shape[0] * shape[1] * header.bits_allocated // 8
        stated = shape if bytes_needed <= _RLE_RATIO * len(stream) else (0, 0)
    if stated is not None and stated != shape:
        text = f"{_which(header)}: the codestream is not the {shape} of the header"
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


def _read_native(header: Header, out: Array, file: BinaryIO) -> None:
    assert header.pixels.offset is not None
    inside = header.frame * out.nbytes if header.frames > 1 else 0
    file.seek(header.pixels.offset + inside)
    read = file.readinto(out.data.cast("B"))  # type: ignore[attr-defined]
    if read != out.nbytes:
        text = f"{_which(header)} holds {read} of {out.nbytes} bytes of pixels"
        raise Refused("TRUNCATED", text)
    if header.transfer_syntax == BIG_ENDIAN and out.itemsize > 1:
        out.byteswap(inplace=True)


def _stream(header: Header, file: BinaryIO) -> bytes:
    """The codestream of an encapsulated image or frame."""
    parts = []
    for offset, length in _fragments(header):
        file.seek(offset)
        parts.append(file.read(length))
    return b"".join(parts)


def _fragments(header: Header) -> tuple[tuple[int, int], ...]:
    every, firsts = header.pixels.fragments, header.pixels.firsts
    if header.frames == 1:
        return every
    if not firsts:
        return every[header.frame : header.frame + 1]
    end = firsts[header.frame + 1] if header.frame + 1 < len(firsts) else len(every)
    return every[firsts[header.frame] : end]


def _decode(header: Header, shape: tuple[int, ...], file: BinaryIO) -> Array:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    check_decoder(header)
    stream = _stream(header, file)
    stated = codestream_shape(stream)
    if stated is not None and stated != shape:
        text = f"{_which(header)}: the codestream is {stated}, the header {shape}"
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
        text = f"{_which(header)} does not decode as {name} ({type(error).__name__})"
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
