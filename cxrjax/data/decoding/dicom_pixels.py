"""Gray pixels of a DICOM radiograph, and the window to show them with.

The rules are those of DICOM PS3.3: C.7.6.3 (pixels), C.7.5.1.1.2 (padding), C.11.1 (rescale,
modality LUT), C.11.2 (window, VOI LUT) and C.11.6 (presentation LUT shape). Where they leave a
choice, it is made as in pydicom and DCMTK: a VOI LUT takes precedence over a window, and the
presentation LUT shape over the photometric interpretation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8, UInt16

from cxrjax.data.decoding import formats, percentiles
from cxrjax.data.decoding.samples import BadImage, check_packed, check_shape

DAMAGED = "it is DICOM with a damaged header, or cut short"
_CORRUPT = "its pixel data are damaged or cut short"
_RLE = "1.2.840.10008.1.2.5"
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_2000 = (
  "1.2.840.10008.1.2.4.90",
  "1.2.840.10008.1.2.4.91",
  "1.2.840.10008.1.2.4.201",
  "1.2.840.10008.1.2.4.202",
  "1.2.840.10008.1.2.4.203",
)
_JPEG = (
  "1.2.840.10008.1.2.4.50",
  "1.2.840.10008.1.2.4.51",
  "1.2.840.10008.1.2.4.57",
  "1.2.840.10008.1.2.4.70",
)
_RAW = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.1\.[123]\.1")  # DX, MG, IO for processing
_ROWS = 64  # processed at a time
_MIN_SHOWN = 32  # of 256 gray levels; a window that shows fewer belongs to another image


class NeedsNativeDecoder(Exception):
  """Raised for pixels that only native code decodes, where the caller excluded it."""


class GrayImage(NamedTuple):
  """Pixels of a radiograph; see `dicom.Radiograph`."""

  pixels: UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"]
  window: tuple[float, float] | None
  bits: int
  notes: tuple[str, ...]


class _Stored(NamedTuple):
  """Stored values, signed or unsigned as in the file, and how many bits they use."""

  values: Integer[np.ndarray, "h w"]
  bits: int
  notes: list[str]


def gray(header: Any, encoded: bool = True) -> GrayImage:
  """Gray pixels of a data set with one monochrome image, white where few X-rays came through.

  Raises:
    BadImage: several frames, colour, damaged or implausible pixel data.
    Encoded: the pixels are compressed, and `encoded` is False.
  """
  kind = _monochrome_kind(header)
  check_shape(integer(header, "Columns"), integer(header, "Rows"))
  values, bits, notes = _stored(header, encoded)
  del header["PixelData"]  # as large as the decoded values
  signed = bool(integer(header, "PixelRepresentation", 0))
  padding = _padding(header, values, signed)
  inverted = _inverted(header, kind, notes)
  intent = string(header, "PresentationIntentType").upper()
  if intent == "FOR PROCESSING" or _RAW.fullmatch(string(header, "SOPClassUID")):
    notes.append("it is FOR PROCESSING: raw detector values, not the image shown to readers")

  slope, intercept = number(header, "RescaleSlope", 1), number(header, "RescaleIntercept", 0)
  lowest = -(1 << (bits - 1)) if signed else 0
  modality_lut = _lut(header, "ModalityLUTSequence", lowest < 0)
  if modality_lut is not None:
    values, bits = _apply_lut(values, modality_lut)
    slope, intercept, lowest = 1.0, 0.0, 0
  if slope == 0 or not np.isfinite((slope, intercept)).all():
    raise BadImage(f"its rescale slope is {slope:g}: nothing would be left of it")
  ends = sorted(end * slope + intercept for end in (lowest, lowest + (1 << bits) - 1))
  voi_lut = _lut(header, "VOILUTSequence", ends[0] < 0)
  window = None if voi_lut is not None else _window(header)
  if voi_lut is not None:
    values, bits = _apply_lut(values, voi_lut, slope, intercept)
    lowest = 0
  elif slope < 0:
    inverted = not inverted
  top = (1 << bits) - 1
  levels = _by_rows(values, top, lambda rows: np.clip(rows.astype(np.int32) - lowest, 0, top))
  low, high = _range(levels, padding)
  if voi_lut is not None:
    window = 0.0, float(top)
  elif window is not None:
    black, white = sorted((level - intercept) / slope - lowest for level in window)
    window = black, white
    if not _shows(window, low, high):
      window = None
      notes.append(
        f"its window shows fewer than {_MIN_SHOWN} of 256 gray levels of it and is not used"
      )
  if inverted:
    levels = levels.dtype.type(top) - levels
    window = window and (top - window[1], top - window[0])
  if padding is not None:
    if window is None and bits > 8 and not padding.all():  # padding would shift the percentiles
      window = percentiles.percentiles(levels[~padding], percentiles.TAILS)
    levels[padding] = 0  # background
  return GrayImage(levels[..., None], window, bits, tuple(notes))


def _monochrome_kind(header: Any) -> str:
  """`MONOCHROME1` or `MONOCHROME2`, of a single frame; raises BadImage for all others."""
  frames = integer(header, "NumberOfFrames", 1)
  if frames != 1:
    raise BadImage(f"it has {frames} frames; a radiograph has one")
  kind = string(header, "PhotometricInterpretation").upper()
  if not kind:  # as in a truncated compressed file
    raise BadImage(DAMAGED)
  if kind not in ("MONOCHROME1", "MONOCHROME2") or integer(header, "SamplesPerPixel", 1) != 1:
    known = re.fullmatch(r"RGB|PALETTE COLOR|YBR_[A-Z0-9_]{3,12}|MONOCHROME[12]", kind)
    raise BadImage(
      f"its pixels are {known[0] if known else '(unreadable)'}, not MONOCHROME1 or MONOCHROME2"
    )
  return kind


def _inverted(header: Any, kind: str, notes: list[str]) -> bool:
  """Whether low values are white; notes a header that contradicts itself."""
  inverted = kind == "MONOCHROME1"
  shape = string(header, "PresentationLUTShape").upper()
  if shape in ("IDENTITY", "INVERSE") and (shape == "INVERSE") != inverted:
    notes.append(
      f"its PhotometricInterpretation ({kind}) and PresentationLUTShape ({shape}) "
      "contradict each other; the latter is followed"
    )
    return not inverted
  return inverted


def _range(levels: np.ndarray, padding: np.ndarray | None) -> tuple[int, int]:
  """The lowest and the highest level outside the padding."""
  if padding is None or padding.all():
    return int(levels.min()), int(levels.max())
  inside = levels[~padding]
  return int(inside.min()), int(inside.max())


def _shows(window: tuple[float, float], low: int, high: int) -> bool:
  """Whether a window shows at least `_MIN_SHOWN` gray levels of levels from `low` to `high`."""
  width = window[1] - window[0]
  overlap = min(high, window[1]) - max(low, window[0])
  return width > 0 and overlap * 255 >= (_MIN_SHOWN - 1) * width


# Stored values.


def _stored(header: Any, encoded: bool) -> _Stored:
  if "PixelData" not in header:
    raise BadImage("it has no pixels")
  bits, allocated = integer(header, "BitsStored"), integer(header, "BitsAllocated")
  if allocated not in (8, 16) or not 8 <= bits <= allocated:
    raise BadImage(f"it stores {bits} of {allocated} bits per pixel; 8 to 16 can be read")
  signed = bool(integer(header, "PixelRepresentation", 0))
  syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
  if syntax is None:
    raise BadImage("its transfer syntax is missing; rewrite it with a meta header")
  shape = integer(header, "Rows"), integer(header, "Columns")
  if not syntax.is_encapsulated:
    return _Stored(_native(header, syntax, shape, bits, signed), bits, [])
  if not encoded:
    raise NeedsNativeDecoder
  values, stream_bits = _decode(_frame(header), syntax, shape, allocated)
  if values.shape != shape:
    raise BadImage(f"its pixel data are {values.shape}, its header says {shape}")
  return _signed(values, stream_bits, bits, signed)


def _native(
  header: Any, syntax: Any, shape: tuple[int, int], bits: int, signed: bool
) -> np.ndarray:
  """Uncompressed values, with unused bits cleared."""
  from pydicom.pixels import get_decoder

  try:
    options: Any = {"correct_unused_bits": False}  # pydicom declares their type wrongly
    values, _ = get_decoder(syntax).as_array(header, raw=True, index=0, **options)
  except NotImplementedError:
    name = _syntax_name(syntax)
    raise BadImage(f"its transfer syntax is {name}, which is for video, not images") from None
  except MemoryError:
    raise BadImage("its header asks for too many pixels") from None
  except Exception:  # on damaged files pydicom raises anything, quoting the header
    raise BadImage(_CORRUPT) from None
  if values.shape != shape:
    raise BadImage(f"its pixel data are {values.shape}, its header says {shape}")
  width = 8 * values.dtype.itemsize
  high = integer(header, "HighBit", bits - 1)
  unused = width - 1 - high if bits - 1 <= high < width else width - bits  # above the high bit
  shifted = np.left_shift(values, unused).view(f"i{width // 8}" if signed else f"u{width // 8}")
  return np.right_shift(shifted, width - bits, out=shifted)


def _frame(header: Any) -> bytes:
  """The encoded frame, joined from its fragments."""
  from pydicom.encaps import generate_frames

  try:
    return next(generate_frames(header.PixelData, number_of_frames=1))
  except Exception:
    raise BadImage(_CORRUPT) from None


def _decode(
  frame: bytes, syntax: str, shape: tuple[int, int], allocated: int
) -> tuple[Shaped[np.ndarray, "rows columns *c"], int]:
  """Decodes a frame; returns its values and the bit depth that the frame's own header states."""
  try:
    if syntax == _RLE:
      dtype = np.dtype(f"<u{allocated // 8}")
      buffer = np.empty(shape[0] * shape[1] * dtype.itemsize, np.uint8)
      if len(imagecodecs.dicomrle_decode(frame, dtype, out=buffer.data)) != len(buffer):
        raise BadImage(_CORRUPT)
      return buffer.view(dtype).reshape(shape), allocated
    if syntax in _JPEG_2000:
      stream = formats.codestream(frame)
      size, stream_bits = (stream.height, stream.width), stream.bits
    elif syntax in _JPEG + _JPEG_LS:
      jpeg = formats.jpeg_frame(frame)
      size, stream_bits = (jpeg.height, jpeg.width), jpeg.bits
    else:
      name = _syntax_name(syntax)
      raise BadImage(f"its transfer syntax is {name}, which is not read; convert it to another one")
    if size != shape:  # before anything is decoded
      raise BadImage(f"its pixel data are {size}, its header says {shape}")
    if syntax not in _JPEG:
      check_packed(*size, len(frame))
    if syntax in _JPEG_2000:
      return imagecodecs.jpeg2k_decode(frame), stream_bits
    if syntax in _JPEG_LS:
      return formats.jpeg_ls(frame), stream_bits
    return imagecodecs.jpeg_decode(frame), stream_bits
  except BadImage as error:
    if str(error).startswith("it is damaged"):
      raise BadImage(_CORRUPT) from None
    raise
  except Exception:  # codecs raise anything on damaged data
    raise BadImage(_CORRUPT) from None


def _syntax_name(syntax: str) -> str:
  """Standard name of a transfer syntax; never the UID itself, which may be anything if damaged."""
  from pydicom.uid import UID_dictionary

  return UID_dictionary[syntax][0] if syntax in UID_dictionary else "(unknown)"


def _signed(decoded: np.ndarray, stream_bits: int, bits: int, signed: bool) -> _Stored:
  """Values of a decoded frame of `stream_bits` bits, where the header says `bits`.

  Writers put signed values into unsigned streams, with the sign in the top bit of either depth; a
  stream that uses more bits than the header says is read in full.
  """
  if stream_bits > 16:
    raise BadImage(f"its pixel data have {stream_bits} bits; 8 to 16 can be read")
  raw: np.ndarray = decoded.astype(np.uint16) & np.uint16((1 << stream_bits) - 1)
  notes = []
  if signed:
    shift = 16 - (bits if int(raw.max()) < 1 << bits else stream_bits)
    raw = (raw << np.uint16(shift)).view(np.int16) >> np.int16(shift)  # extends the sign
    fits = int(raw.min()) >= -(1 << (bits - 1)) and int(raw.max()) < 1 << (bits - 1)
  else:
    fits = int(raw.max()) < 1 << bits
  if not fits:
    notes.append(
      f"its pixel data use {stream_bits} bits where its header says {bits}; all are read"
    )
    bits = stream_bits
  return _Stored(raw, bits, notes)


def _padding(
  header: Any, values: Integer[np.ndarray, "h w"], signed: bool
) -> Bool[np.ndarray, "h w"] | None:
  """Mask of padding: the value or the range that the header names; None where there is none."""
  names = [name for name in ("PixelPaddingValue", "PixelPaddingRangeLimit") if string(header, name)]
  if "PixelPaddingValue" not in names:
    return None
  ends = [integer(header, name) for name in names]
  # Their 16-bit type may differ in sign from that of the pixels.
  ends = [(end + 0x8000) % 0x10000 - 0x8000 if signed else end % 0x10000 for end in ends]
  is_padding = (values >= min(ends)) & (values <= max(ends))
  return is_padding if is_padding.any() else None


# Header values.


def string(header: Any, name: str) -> str:
  """A header value as text; empty where it is missing."""
  value = header.get(name)
  return "" if value is None else str(value).strip()


def integer(header: Any, name: str, default: int | None = None) -> int:
  """An integer from the header; raises BadImage where it is missing without a default."""
  value = header.get(name)
  try:
    if value is None or value == "":
      if default is None:
        raise BadImage(f"its DICOM header lacks {name}")
      return default
    return int(value)
  except (TypeError, ValueError):
    raise BadImage(f"its DICOM header has an unreadable {name}") from None


def number(header: Any, name: str, default: float) -> float:
  """A number from the header; raises BadImage where it is unreadable."""
  value = header.get(name)
  try:
    return float(default if value is None or value == "" else value)
  except (TypeError, ValueError):
    raise BadImage(f"its DICOM header has an unreadable {name}") from None


def _window(header: Any) -> tuple[float, float] | None:
  """The first window: levels shown black and white, in rescaled units (C.11.2.1.2)."""
  pair = []
  for name in ("WindowCenter", "WindowWidth"):
    value = header.get(name)
    try:
      pair.append(float(value if isinstance(value, str | int | float) else value[0]))
    except (TypeError, ValueError, IndexError):
      return None
  center, width = pair
  if not np.isfinite(pair).all() or width <= 0:
    return None
  if string(header, "VOILUTFunction").upper() in ("", "LINEAR"):
    center, width = center - 0.5, width - 1
  return (center - width / 2, center + width / 2) if width > 0 else None


# Look-up tables.


def _lut(header: Any, name: str, signed: bool) -> tuple[int, np.ndarray, int] | None:
  """The first look-up table of a sequence: first input, outputs, bits of an output.

  Args:
    header: of the file.
    name: of the sequence.
    signed: whether inputs may be negative; this follows from the previous stage, whatever integer
      type the file gives the first input.
  """
  sequence = header.get(name)
  if not sequence:
    return None
  try:
    count, first, bits = (int(v) for v in sequence[0].LUTDescriptor)
    first = (first + 0x8000) % 0x10000 - 0x8000 if signed else first % 0x10000
    data = sequence[0].LUTData
    count = count or 65536
    if isinstance(data, bytes):
      data = np.frombuffer(data, "<u2" if len(data) >= 2 * count else "u1")
    values = np.asarray(data).astype(np.int64)[:count] & 0xFFFF
  except Exception:
    raise BadImage(f"its {name} is damaged") from None
  if len(values) != count or not 8 <= bits <= 16:
    raise BadImage(f"its {name} is damaged")
  return first, values, bits


def _apply_lut(
  values: np.ndarray, lut: tuple[int, np.ndarray, int], slope: float = 1.0, intercept: float = 0.0
) -> tuple[np.ndarray, int]:
  """Looks up rescaled values; returns the outputs and their bit depth."""
  first, outputs, bits = lut

  def look_up(rows: np.ndarray) -> np.ndarray:
    rescaled = np.round(rows * slope + intercept)
    return outputs[np.clip(rescaled - first, 0, len(outputs) - 1).astype(np.int64)]

  return _by_rows(values, (1 << 16) - 1, look_up), bits


def _by_rows(
  values: np.ndarray, top: int, function: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  """Applies a function with results up to `top`, a few rows at a time: its arithmetic is wide."""
  output = np.empty(values.shape, np.uint8 if top < 256 else np.uint16)
  for start in range(0, len(values), _ROWS):
    output[start : start + _ROWS] = function(values[start : start + _ROWS])
  return output
