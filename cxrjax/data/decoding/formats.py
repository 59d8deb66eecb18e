"""Readers of image files, selected by magic bytes: PNG, JPEG, JPEG 2000, WebP, GIF, PNM ...

Each takes the header literally and refuses by name what it cannot show faithfully. Nothing is
converted on the way: 16 bits stay 16 bits with colour and alpha. Alpha is dropped, as compositing
would darken what it marks. TIFF and DICOM have modules of their own.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import imagecodecs
import numpy as np
from PIL import Image

from cxrjax.data.decoding import tiff
from cxrjax.data.decoding.samples import BadImage, Samples, check_packed

_PNG = b"\x89PNG\r\n\x1a\n"
_JP2 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_BINARY_PNM = (b"P5", b"P6")
_KINDS = "PNG, JPEG, TIFF, DICOM, BMP, JPEG 2000, WebP, GIF or PNM"
_ORIENTATION = 0x112
# Other files that often carry an image's name, and what to do about them.
_OTHERS = (
  (b"<!doctype", "it is a web page, not an image: a download that needed a login?"),
  (b"<html", "it is a web page, not an image: a download that needed a login?"),
  (b"%pdf", "it is a PDF; save the picture in it as PNG"),
  (b"pk\x03\x04", "it is a zip (or an office document), not an image; give it as .zip"),
  (b"\x1f\x8b", "it is packed with gzip, and not DICOM; unpack it"),
  (b"\x93numpy", "it is a NumPy array; save it as 16-bit PNG"),
  (b"\x89hdf", "it is HDF5; save its images as PNG"),
  (b"8bps", "it is a Photoshop file; save it as PNG"),
  (b"version https://git-lfs", "it is a Git LFS pointer; fetch the file with git lfs pull"),
)


def open_image(data: bytes) -> Samples:
  """Describes an image file other than DICOM, from its header.

  Raises:
    BadImage: not an image, damaged, cut short, or of an unsupported kind.
  """
  reader = _reader(data)
  if reader is None:
    start = data[:64].lstrip().lower()
    reason = next((why for mark, why in _OTHERS if start.startswith(mark)), None)
    raise BadImage(reason or f"it is not a {_KINDS} image (it starts with {data[:8]!r})")
  with as_bad_image():
    return reader(data)


def is_image(start: bytes) -> bool:
  """Whether a file, whatever its name, starts like an image.

  BMP and PNM are excluded: their two-letter marks are too weak without the file name.
  """
  return _reader(start) is not None and not start.startswith((b"BM", b"P"))


def by_pillow(data: bytes) -> bool:
  """Whether a file's header is read by Pillow."""
  reader = _reader(data)
  return isinstance(reader, functools.partial) or (reader is _pnm and data[:2] not in _BINARY_PNM)


def _reader(start: bytes) -> Callable[[bytes], Samples] | None:
  if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
    return functools.partial(_by_pillow, kind="WEBP")
  if re.match(rb"P[1-6][\s#]", start[:3]):
    return _pnm
  return next((read for mark, read in _READERS if start.startswith(mark)), None)


@contextlib.contextmanager
def as_bad_image() -> Iterator[None]:
  """Converts any exception of a decoder into a BadImage."""
  try:
    with warnings.catch_warnings():
      # They concern what is checked here (size) or does not affect pixels (metadata).
      warnings.simplefilter("ignore")
      yield
  except BadImage:
    raise
  except (Image.DecompressionBombError, MemoryError) as error:
    raise BadImage("its header asks for too many pixels") from error
  except Exception as error:  # codecs raise anything on damaged data
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    raise BadImage(f"it is damaged or cut short ({reason})") from error


# PNG (ISO/IEC 15948).


def _png(data: bytes) -> Samples:
  header, frames, exif = None, 1, b""
  for kind, body in _chunks(data):
    if kind == b"IHDR":
      header = struct.unpack(">IIBBBBB", body)
    elif kind == b"acTL":
      frames = int.from_bytes(body[:4], "big")
    elif kind == b"eXIf":
      exif = body
  if header is None:
    raise BadImage("it is damaged or cut short (a PNG without a header)")
  if frames > 1:
    raise BadImage(_too_many(frames, "frames"))
  width, height, bits = header[:3]

  def load(at_least: int | None) -> np.ndarray:
    with as_bad_image():
      return without_alpha(imagecodecs.png_decode(data))

  # The decoder expands fewer bits and palettes to 8 bits.
  return Samples((height, width), max(bits, 8), load, orientation=_orientation(exif))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Type and content of each chunk, with its checksum verified (`IDAT` content is omitted)."""
  at = len(_PNG)
  while True:
    size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
    end = at + 12 + size
    if end > len(data):
      raise BadImage("it is damaged or cut short (the file ends within a PNG chunk)")
    content = memoryview(data)[at + 4 : end - 4]
    if zlib.crc32(content) != int.from_bytes(data[end - 4 : end], "big"):
      raise BadImage("it is damaged or cut short (a checksum of the PNG does not match)")
    yield kind, b"" if kind == b"IDAT" else bytes(content[4:])
    if kind == b"IEND":
      return
    at = end


# JPEG (ITU-T T.81).


# By frame marker; 0xF7 is that of JPEG-LS (ITU-T T.87).
_CODINGS = {0xC0: "dct", 0xC1: "dct", 0xC2: "dct", 0xC3: "lossless", 0xF7: "ls"}


class _Frame(NamedTuple):
  """Header of a JPEG."""

  coding: str  # "dct", "lossless", or "ls" for JPEG-LS
  bits: int
  height: int
  width: int
  components: int
  adobe: bool  # CMYK values are inverted
  exif: bytes
  pictures: bool  # the file holds more than one


def _jpeg(data: bytes) -> Samples:
  frame = jpeg_frame(data)
  if frame.coding == "ls":
    check_packed(frame.width, frame.height, len(data))

  def load(at_least: int | None) -> np.ndarray:
    with as_bad_image():
      if frame.coding == "ls":
        return without_alpha(jpeg_ls(data))
      if frame.coding == "lossless" or frame.bits > 8:
        return without_alpha(imagecodecs.jpeg_decode(data))
      with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        # Of a colour image only the luma is decoded, as stored.
        image.draft("L", None if at_least is None else (2 * at_least, 2 * at_least))
        image.load()
        if image.mode != "CMYK":
          return np.asarray(image if image.mode == "L" else image.convert("L"))
        ink = np.asarray(image)  # Pillow assumes Adobe's inversion
        return np.asarray(Image.fromarray(ink if frame.adobe else 255 - ink, "CMYK").convert("RGB"))

  return Samples(
    (frame.height, frame.width),
    frame.bits,
    load,
    orientation=_orientation(frame.exif),
    notes=("it holds several pictures; the first is read",) if frame.pictures else (),
  )


def jpeg_frame(data: bytes) -> _Frame:
  """Parses a JPEG's header, up to the frame header.

  Raises:
    BadImage: there is no frame header, or the file ends before it.
  """
  at, adobe, exif, pictures = 2, False, b"", False
  while at + 4 <= len(data):
    if data[at] != 0xFF:
      break
    marker = data[at + 1]
    if marker == 0xFF:  # fill
      at += 1
      continue
    body = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
    if marker in _CODINGS:
      if len(body) < 6:
        break
      bits, height, width, components = struct.unpack(">BHHB", body[:6])
      return _Frame(_CODINGS[marker], bits, height, width, components, adobe, exif, pictures)
    if 0xC3 < marker < 0xD0 and marker not in (0xC4, 0xC8, 0xCC):
      raise BadImage(
        "it is a JPEG of an unsupported kind (differential or arithmetic); save it as PNG"
      )
    if marker in (0xD9, 0xDA):
      break
    if marker == 0xEE and body.startswith(b"Adobe"):
      adobe = True
    elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
      exif = exif or body
    elif marker == 0xE2 and body.startswith(b"MPF\0"):
      pictures = True
    at += 4 + max(0, int.from_bytes(data[at + 2 : at + 4], "big") - 2)
  raise BadImage("it is damaged or cut short (a JPEG without a frame)")


def jpeg_ls(data: bytes) -> np.ndarray:
  """Decodes JPEG-LS (ITU-T T.87)."""
  # Without an end marker, CharLS searches a truncated stream for many seconds.
  return imagecodecs.jpegls_decode(data + b"\xff\xd9")


# JPEG 2000 (ITU-T T.800).


class Codestream(NamedTuple):
  """Header of a JPEG 2000 codestream."""

  height: int
  width: int
  bits: int
  signed: bool
  components: int


def codestream(data: bytes) -> Codestream:
  """Parses the header of the first codestream in a JPEG 2000 file or raw codestream.

  Raises:
    BadImage: there is none.
  """
  at = data.find(_JP2[1], 0, 1 << 16)
  if at < 0 or len(data) < at + 45:
    raise BadImage("it is damaged or cut short (JPEG 2000 without a codestream)")
  right, bottom, left, top = struct.unpack(">IIII", data[at + 8 : at + 24])
  components, depth = struct.unpack(">HB", data[at + 40 : at + 43])
  return Codestream(bottom - top, right - left, (depth & 0x7F) + 1, bool(depth & 0x80), components)


def _jpeg2000(data: bytes) -> Samples:
  header = codestream(data)
  check_packed(header.width, header.height, len(data))

  def load(at_least: int | None) -> np.ndarray:
    with as_bad_image():
      return without_alpha(imagecodecs.jpeg2k_decode(data))

  if header.bits > 16:
    raise BadImage(f"it is JPEG 2000 of {header.bits} bits; convert it to 16-bit PNG")
  shape = header.height, header.width
  return Samples(shape, header.bits, load, kind="i" if header.signed else "u")


# Other formats.


def _pnm(data: bytes) -> Samples:
  """Binary PGM and PPM of 8 or 16 bits; the rest of the family by Pillow."""
  if data[:2] not in _BINARY_PNM:
    return _by_pillow(data, "PPM")
  header = re.match(rb"P[56]" + 3 * rb"(?:\s|#[^\n]*\n)+(\d{1,9})" + rb"\s", data[:4096])
  if header is None:
    raise BadImage("it is damaged or cut short (a PNM without a header)")
  width, height, top = map(int, header.groups())
  channels = 3 if data[:2] == b"P6" else 1
  if not 0 < top < 65536:
    raise BadImage(f"it is a PNM whose white is {top}; save it as PNG")

  def load(at_least: int | None) -> np.ndarray:
    dtype, count = np.dtype(np.uint8 if top < 256 else ">u2"), width * height * channels
    if len(data) < header.end() + count * dtype.itemsize:
      raise BadImage("it is damaged or cut short (a PNM with too few pixels)")
    stored = np.frombuffer(data, dtype, count, header.end()).reshape(height, width, channels)
    values: np.ndarray = stored.astype(dtype.newbyteorder("="))
    if top < 256:
      values = np.round(values * np.float32(255 / top)).astype(np.uint8)
    return values if channels == 3 else values[..., 0]

  return Samples((height, width), 8 if top < 256 else 16, load)


def _by_pillow(data: bytes, kind: str) -> Samples:
  """Formats with 8 bits per channel."""
  with Image.open(io.BytesIO(data), formats=(kind,)) as image:
    frames = getattr(image, "n_frames", 1)
    shape, mode = (image.height, image.width), image.mode
    with contextlib.suppress(Exception):  # damaged metadata is ignored
      exif = image.getexif().tobytes()
  if frames > 1:
    raise BadImage(_too_many(frames, "frames"))
  if mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
    raise BadImage(f"it is {kind} of the type {mode}; save it as PNG")

  def load(at_least: int | None) -> np.ndarray:
    with as_bad_image(), Image.open(io.BytesIO(data), formats=(kind,)) as opened:
      opened.load()
      if opened.mode in ("1", "L", "LA"):
        return np.asarray(opened.convert("L") if opened.mode == "1" else opened.getchannel("L"))
      transparent = opened.mode == "PA" or "transparency" in opened.info
      return np.asarray(opened.convert("RGBA" if transparent else "RGB"))[..., :3]

  return Samples(shape, 8, load, orientation=_orientation(exif))


def without_alpha(values: np.ndarray) -> np.ndarray:
  """Drops alpha: gray [h w] or colour [h w 3]."""
  if values.ndim == 2:
    return values
  channels = values.shape[2]
  if channels > 4:
    raise BadImage(f"it has {channels} channels; give gray or RGB")
  return values[..., 0] if channels <= 2 else values[..., :3]


def _too_many(count: int, units: str) -> str:
  return f"it has {count} {units}; save the relevant one as a separate file"


def _orientation(exif: bytes) -> int:
  """The orientation in EXIF data, 1 to 8; 1 (upright) where it is missing or unreadable."""
  if not exif:
    return 1
  tags = Image.Exif()
  with contextlib.suppress(Exception):  # damaged metadata is ignored
    tags.load(exif)
  orientation = tags.get(_ORIENTATION, 1)
  return orientation if orientation in range(1, 9) else 1


_READERS: tuple[tuple[bytes, Callable[[bytes], Samples]], ...] = (
  (_PNG, _png),
  (b"\xff\xd8\xff", _jpeg),
  *((mark, tiff.open_tiff) for mark in tiff.MARKS),
  (b"BM", functools.partial(_by_pillow, kind="BMP")),
  (b"GIF8", functools.partial(_by_pillow, kind="GIF")),
  *((mark, _jpeg2000) for mark in _JP2),
)
