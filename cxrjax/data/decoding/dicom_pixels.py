"""Gray pixels of a DICOM radiograph, and the window to show them with.

The rules are those of DICOM PS3.3: C.7.6.3 (pixels), C.7.5.1.1.2 (padding), C.11.1 (rescale,
modality LUT), C.11.2 (window, VOI LUT) and C.11.6 (presentation LUT shape). Where they leave a
choice it is the one of pydicom and DCMTK: a VOI table counts before a window, and the presentation
LUT shape before the photometric interpretation.
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
_CUT = "its pixel data are damaged or cut short"
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
_ROWS = 64  # looked at together
_SHOWN = 32  # of 256 gray levels; a window that shows fewer of an image is of another one


class Encoded(Exception):
  """Pixels that only native code decodes, where that is not wanted."""


class Found(NamedTuple):
  """Pixels of a radiograph; see `dicom.Radiograph`."""

  pixels: UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"]
  window: tuple[float, float] | None
  bits: int
  notes: tuple[str, ...]


class _Stored(NamedTuple):
  """Values as the pixel data hold them, signed if they are, of so many bits."""

  values: Integer[np.ndarray, "h w"]
  bits: int
  notes: list[str]


def gray(header: Any, encoded: bool = True) -> Found:
  """Gray pixels of a data set that holds one monochrome image, white where few X-rays came through.

  Raises:
    BadImage: several frames, colour, damaged or absurd pixel data.
    Encoded: the pixels are compressed, and `encoded` is False.
  """
  frames = integer(header, "NumberOfFrames", 1)
  if frames != 1:
    raise BadImage(f"it has {frames} frames; a radiograph has one")
  kind = string(header, "PhotometricInterpretation").upper()
  if not kind:  # what is left of a compressed file cut short
    raise BadImage(DAMAGED)
  if kind not in ("MONOCHROME1", "MONOCHROME2") or integer(header, "SamplesPerPixel", 1) != 1:
    known = re.fullmatch(r"RGB|PALETTE COLOR|YBR_[A-Z0-9_]{3,12}|MONOCHROME[12]", kind)
    raise BadImage(
      f"its pixels are {known[0] if known else '(unreadable)'}, not MONOCHROME1 or MONOCHROME2"
    )
  check_shape(integer(header, "Columns"), integer(header, "Rows"))
  values, bits, notes = _stored(header, encoded)
  del header["PixelData"]  # as large as what was made of it
  signed = bool(integer(header, "PixelRepresentation", 0))
  padding = _padding(header, values, signed)
  inverted = _inverted(header, kind, notes)
  if string(header, "PresentationIntentType").upper() == "FOR PROCESSING" or _RAW.fullmatch(
    string(header, "SOPClassUID")
  ):
    notes.append(
      "it is FOR PROCESSING: raw detector values, not the image that is shown to a reader"
    )

  slope, intercept = number(header, "RescaleSlope", 1), number(header, "RescaleIntercept", 0)
  lowest = -(1 << (bits - 1)) if signed else 0
  table = _table(header, "ModalityLUTSequence", lowest < 0)
  if table is not None:
    values, bits = _through(values, table)
    slope, intercept, lowest = 1.0, 0.0, 0
  if slope == 0 or not np.isfinite((slope, intercept)).all():
    raise BadImage(f"its rescale slope is {slope:g}: nothing would be left of it")
  ends = sorted(end * slope + intercept for end in (lowest, lowest + (1 << bits) - 1))
  table = _table(header, "VOILUTSequence", ends[0] < 0)
  window = None if table is not None else _window(header)
  if table is not None:
    values, bits = _through(values, table, slope, intercept)
    lowest = 0
  elif slope < 0:
    inverted = not inverted
  top = (1 << bits) - 1
  found = _by_rows(values, top, lambda some: np.clip(some.astype(np.int32) - lowest, 0, top))
  low, high = _range(found, padding)
  if table is not None:
    window = 0.0, float(top)
  elif window is not None:
    black, white = sorted((level - intercept) / slope - lowest for level in window)
    window = black, white
    if not _shows(window, low, high):
      window = None
      notes.append(f"its window shows fewer than {_SHOWN} of 256 gray levels of it and is not used")
  if inverted:
    found = found.dtype.type(top) - found
    window = window and (top - window[1], top - window[0])
  if padding is not None:
    if window is None and bits > 8 and not padding.all():  # of the image alone
      window = percentiles.percentiles(found[~padding], percentiles.TAILS)
    found[padding] = 0  # background
  return Found(found[..., None], window, bits, tuple(notes))


def _inverted(header: Any, kind: str, notes: list[str]) -> bool:
  """Whether low values are white, and a remark where the header says both."""
  inverted = kind == "MONOCHROME1"
  shape = string(header, "PresentationLUTShape").upper()
  if shape in ("IDENTITY", "INVERSE") and (shape == "INVERSE") != inverted:
    notes.append(
      f"its PhotometricInterpretation ({kind}) and PresentationLUTShape ({shape}) "
      "contradict each other; the latter is followed"
    )
    return not inverted
  return inverted


def _range(found: np.ndarray, padding: np.ndarray | None) -> tuple[int, int]:
  """The lowest and the highest level beside the padding."""
  if padding is None or padding.all():
    return int(found.min()), int(found.max())
  inside = found[~padding]
  return int(inside.min()), int(inside.max())


def _shows(window: tuple[float, float], low: int, high: int) -> bool:
  """Whether a window shows more than next to nothing of levels from `low` to `high`."""
  width = window[1] - window[0]
  seen = min(high, window[1]) - max(low, window[0])
  return width > 0 and seen * 255 >= (_SHOWN - 1) * width


# Stored values.


def _stored(header: Any, encoded: bool) -> _Stored:
  if "PixelData" not in header:
    raise BadImage("it has no pixels")
  bits, room = integer(header, "BitsStored"), integer(header, "BitsAllocated")
  if room not in (8, 16) or not 8 <= bits <= room:
    raise BadImage(f"it stores {bits} of {room} bits a pixel; 8 to 16 can be read")
  signed = bool(integer(header, "PixelRepresentation", 0))
  syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
  if syntax is None:
    raise BadImage("its transfer syntax is missing; write it again with a meta header")
  shape = integer(header, "Rows"), integer(header, "Columns")
  if not syntax.is_encapsulated:
    return _Stored(_native(header, syntax, shape, bits, room, signed), bits, [])
  if not encoded:
    raise Encoded
  found, deep = _decoded(_frame(header), syntax, shape, room)
  if found.shape != shape:
    raise BadImage(f"its pixel data are {found.shape}, its header says {shape}")
  return _signed(found, deep, bits, signed)


def _native(
  header: Any, syntax: Any, shape: tuple[int, int], bits: int, room: int, signed: bool
) -> np.ndarray:
  """Uncompressed values; bits that belong to no pixel are cleared."""
  from pydicom.pixels import get_decoder

  try:
    options: Any = {"correct_unused_bits": False}  # whose type pydicom has wrong
    values, _ = get_decoder(syntax).as_array(header, raw=True, index=0, **options)
  except NotImplementedError:
    raise BadImage(f"its transfer syntax is {_syntax(syntax)}, which holds no stills") from None
  except MemoryError:
    raise BadImage("its header asks for too many pixels") from None
  except Exception:  # whatever the damage makes it raise, quoting the header
    raise BadImage(_CUT) from None
  if values.shape != shape:
    raise BadImage(f"its pixel data are {values.shape}, its header says {shape}")
  room = 8 * values.dtype.itemsize
  high = integer(header, "HighBit", bits - 1)
  left = room - 1 - high if bits - 1 <= high < room else room - bits
  found = np.left_shift(values, left).view(f"i{room // 8}" if signed else f"u{room // 8}")
  return np.right_shift(found, room - bits, out=found)


def _frame(header: Any) -> bytes:
  """The encoded frame, whose fragments may be many."""
  from pydicom.encaps import generate_frames

  try:
    return next(generate_frames(header.PixelData, number_of_frames=1))
  except Exception:
    raise BadImage(_CUT) from None


def _decoded(
  frame: bytes, syntax: str, shape: tuple[int, int], room: int
) -> tuple[Shaped[np.ndarray, "rows columns *c"], int]:
  """What an encoded frame holds, by its own header, and of how many bits that says it is."""
  try:
    if syntax == _RLE:
      wide = np.dtype(f"<u{room // 8}")
      space = np.empty(shape[0] * shape[1] * wide.itemsize, np.uint8)
      if len(imagecodecs.dicomrle_decode(frame, wide, out=space.data)) != len(space):
        raise BadImage(_CUT)
      return space.view(wide).reshape(shape), room
    if syntax in _JPEG_2000:
      stream = formats.codestream(frame)
      size, deep = (stream.height, stream.width), stream.bits
    elif syntax in _JPEG + _JPEG_LS:
      found = formats.jpeg_frame(frame)
      size, deep = (found.height, found.width), found.bits
    else:
      raise BadImage(
        f"its transfer syntax is {_syntax(syntax)}, which is not read; convert it to another one"
      )
    if size != shape:  # before anything is decoded
      raise BadImage(f"its pixel data are {size}, its header says {shape}")
    if syntax not in _JPEG:
      check_packed(*size, len(frame))
    decode = (
      imagecodecs.jpeg2k_decode
      if syntax in _JPEG_2000
      else formats.jpeg_ls
      if syntax in _JPEG_LS
      else imagecodecs.jpeg_decode
    )
    return decode(frame), deep
  except BadImage as error:
    if str(error).startswith("it is damaged"):
      raise BadImage(_CUT) from None
    raise
  except Exception:  # codecs raise whatever the damage makes them raise
    raise BadImage(_CUT) from None


def _syntax(syntax: str) -> str:
  """A transfer syntax by its name in the standard; a damaged header's may be anything."""
  from pydicom.uid import UID_dictionary

  return UID_dictionary[syntax][0] if syntax in UID_dictionary else "(unknown)"


def _signed(found: np.ndarray, deep: int, bits: int, signed: bool) -> _Stored:
  """Values of a decoded frame of `deep` bits, where the header says `bits`.

  Writers put signed values into unsigned streams, with their sign in the upper bit of either; a
  stream that uses more bits than the header says is read whole.
  """
  if deep > 16:
    raise BadImage(f"its pixel data have {deep} bits; 8 to 16 can be read")
  raw: np.ndarray = found.astype(np.uint16) & np.uint16((1 << deep) - 1)
  notes = []
  if signed:
    room = 16 - (bits if int(raw.max()) < 1 << bits else deep)
    raw = (raw << np.uint16(room)).view(np.int16) >> np.int16(room)
    fits = int(raw.min()) >= -(1 << (bits - 1)) and int(raw.max()) < 1 << (bits - 1)
  else:
    fits = int(raw.max()) < 1 << bits
  if not fits:
    notes.append(f"its pixel data use {deep} bits where its header says {bits}; all are read")
    bits = deep
  return _Stored(raw, bits, notes)


def _padding(
  header: Any, values: Integer[np.ndarray, "h w"], signed: bool
) -> Bool[np.ndarray, "h w"] | None:
  """Which values are padding: the one that the header names, or the range; None for none."""
  names = [name for name in ("PixelPaddingValue", "PixelPaddingRangeLimit") if string(header, name)]
  if "PixelPaddingValue" not in names:
    return None
  ends = [integer(header, name) for name in names]
  # They may come as the other kind of 16-bit integer than the pixels are.
  ends = [(end + 0x8000) % 0x10000 - 0x8000 if signed else end % 0x10000 for end in ends]
  found = (values >= min(ends)) & (values <= max(ends))
  return found if found.any() else None


# Header values.


def string(header: Any, name: str) -> str:
  """A header's value as text; empty where there is none."""
  value = header.get(name)
  return "" if value is None else str(value).strip()


def integer(header: Any, name: str, default: int | None = None) -> int:
  """An integer of the header; raises BadImage where it lacks one and there is no default."""
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
  """A number of the header."""
  value = header.get(name)
  try:
    return float(default if value is None or value == "" else value)
  except (TypeError, ValueError):
    raise BadImage(f"its DICOM header has an unreadable {name}") from None


def _window(header: Any) -> tuple[float, float] | None:
  """The first window, in rescaled values: levels shown black and white (C.11.2.1.2)."""
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


def _table(header: Any, name: str, signed: bool) -> tuple[int, np.ndarray, int] | None:
  """The first look-up table of a sequence: first input, outputs, bits of an output.

  Args:
    header: of the file.
    name: of the sequence.
    signed: whether its inputs may be negative: the stage before decides, whatever type of integer
      the file says the first one is.
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


def _through(
  values: np.ndarray, table: tuple[int, np.ndarray, int], slope: float = 1.0, intercept: float = 0.0
) -> tuple[np.ndarray, int]:
  """What a table makes of rescaled values, and of how many bits that is."""
  first, outputs, bits = table

  def looked_up(some: np.ndarray) -> np.ndarray:
    rescaled = np.round(some * slope + intercept)
    return outputs[np.clip(rescaled - first, 0, len(outputs) - 1).astype(np.int64)]

  return _by_rows(values, (1 << 16) - 1, looked_up), bits


def _by_rows(
  values: np.ndarray, top: int, function: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  """A function of values up to `top`, some rows at a time: its arithmetic is wide."""
  found = np.empty(values.shape, np.uint8 if top < 256 else np.uint16)
  for start in range(0, len(values), _ROWS):
    found[start : start + _ROWS] = function(values[start : start + _ROWS])
  return found
