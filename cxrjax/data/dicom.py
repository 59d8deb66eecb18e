"""DICOM radiographs: gray pixels, the window to show them with, and what may be known of a patient.

Only age, sex and view leave a file, and, where a key is given, a keyed hash of the patient's ID.
Names, dates and identifiers stay behind, also in errors: those never quote what a header holds,
nor what pydicom says of it.

The rules are those of DICOM PS3.3: C.7.6.3 (pixels), C.11.1 (rescale, modality LUT) and C.11.2
(window, VOI LUT).
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import io
import logging
import re
import warnings
import zlib
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16

from cxrjax.core.errors import UserError
from cxrjax.data import decode

# Radiography by any machine, films scanned and screens captured; nothing else is a chest film.
MODALITIES = ("CR", "DX", "DR", "RG", "SC", "OT", "")
_MARK = b"DICM"
_MARK_AT = 128
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_DAMAGED = "it is DICOM with a damaged header, or cut short"
_HEADER = (
  "Modality", "PatientID", "IssuerOfPatientID", "PatientAge", "PatientBirthDate", "StudyDate",
  "PatientSex", "ViewPosition", "ViewCodeSequence", "PatientOrientation", "BitsStored")
_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_OLDEST = 120  # years; what is above is a typing error


@dataclasses.dataclass(frozen=True)
class Radiograph:
  """One DICOM radiograph, white where little X-ray came through.

  Attributes:
    pixels: stored gray levels from 0; MONOCHROME1 inverted, signed ones shifted to start at 0.
      uint8 for up to 8 bits. None where only the header was read.
    window: gray levels of `pixels` shown black and white, by the file's own window with its
      rescale undone; None where the file has none, or one that shows nothing of the image.
    bits: bits in use, levels are below `2**bits`; those of the stored values where only the header
      was read.
    age: in years, None where unknown.
    sex: `F`, `M`, or empty.
    view: `PA`, `AP`, `L` (lateral), or empty.
    modality: DICOM's code, such as `DX`; may be empty.
    patient: 32 hex digits, the keyed hash of the patient's ID; empty without a key or an ID.
  """

  pixels: UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"] | None
  window: tuple[float, float] | None
  bits: int
  age: float | None
  sex: str
  view: str
  modality: str
  patient: str = ""


def is_dicom(start: bytes) -> bool:
  """Whether a file that begins so (132 bytes are enough) says it is DICOM."""
  return start[_MARK_AT:_MARK_AT + 4] == _MARK


def read(
    data: bytes | io.BufferedIOBase, *, pixels: bool = True, key: bytes | None = None,
    ) -> Radiograph:
  """A radiograph from a DICOM file.

  Uncompressed, RLE, JPEG (baseline, 8-bit extended, lossless), JPEG-LS and JPEG 2000 pixels
  of 8 to 16 bits. Of several windows the first counts, a sigmoid one as the straight line through
  its middle. A VOI table is applied to the pixels where there is no window.

  Args:
    data: the file's bytes, or an open file if only the header is wanted.
    pixels: whether to decode the pixels; without, only the beginning of the file is read.
    key: for `patient`; a secret, since short IDs can be guessed from hashes without one.

  Raises:
    BadImage: no DICOM, a damaged one, of another modality, in colour, of several frames.
    UserError: pydicom or one of its decoders is not installed.
  """
  opened = io.BytesIO(data) if isinstance(data, bytes) else data
  start = opened.read(2048)
  if not is_dicom(start):
    raise decode.BadImage("it is no DICOM file: the letters DICM are missing at byte 128")
  if _DEFLATED.encode() in start:
    _check_deflated(start + opened.read(4 * decode.MAX_PIXELS))
  opened.seek(0)
  _pydicom()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of values out of order, which it quotes
    try:
      return _radiograph(opened, pixels, key)
    except (decode.BadImage, UserError):
      raise
    except Exception:  # pydicom raises whatever the damage makes it raise, quoting the header
      raise decode.BadImage(_DAMAGED) from None


def _radiograph(opened: io.BufferedIOBase, pixels: bool, key: bytes | None) -> Radiograph:
  import pydicom

  header = pydicom.dcmread(opened, stop_before_pixels=not pixels,
                           specific_tags=None if pixels else list(_HEADER))
  modality = _text(header, "Modality").upper()
  if modality not in MODALITIES:
    raise decode.BadImage(f"it is DICOM of modality {_code(modality)}, not a radiograph "
                          f"({', '.join(m for m in MODALITIES if m)})")
  stored = _integer(header, "BitsStored", 0)
  image, window, bits = _image(header) if pixels else (None, None, stored)
  return Radiograph(
    image, window, bits, age=_age(header), sex=sex_of(_text(header, "PatientSex")),
    view=_view(header), modality=modality, patient="" if key is None else _patient(header, key))


def _pydicom() -> None:
  """Makes pydicom ready, which must not tell anybody what it reads."""
  try:
    import pydicom
  except ModuleNotFoundError as error:
    raise UserError('DICOM files need pydicom: pip install -e ".[dicom]"') from error
  pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
  logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


def _code(text: str) -> str:
  """A modality or kind of colour if it is one: in a damaged header it may be somebody's name."""
  known = re.fullmatch(r"[A-Z]{2}|RGB|PALETTE COLOR|YBR_[A-Z0-9_]{3,12}", text)
  return text if known else "(unreadable)"


def _check_deflated(data: bytes) -> None:
  """Refuses a deflated file that would not fit into memory."""
  if data[132:140] != b"\x02\0\0\0UL\x04\0":
    raise decode.BadImage(_DAMAGED)
  start = 144 + int.from_bytes(data[140:144], "little")
  limit = 4 * decode.MAX_PIXELS
  try:
    if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], limit)) >= limit:
      raise decode.BadImage("it unpacks to more than a radiograph can hold")
  except zlib.error:
    raise decode.BadImage(_DAMAGED) from None


# What is known of the patient.


def _text(header: Any, name: str) -> str:
  value = header.get(name)
  return "" if value is None else str(value).strip()


def age_of(text: str) -> float | None:
  """Years of an age: DICOM's `045Y`, `010M`, `003W` or `020D`, or a number of years."""
  match = re.fullmatch(r"(\d{1,3}(?:\.\d*)?)\s*([DWMY]?)", text.strip().upper())
  if not match:
    return None
  age = float(match[1]) * _DAYS[match[2] or "Y"] / _DAYS["Y"]
  return age if age <= _OLDEST else None


def sex_of(text: str) -> str:
  """`F`, `M`, or empty."""
  sex = text.strip().upper()
  return sex[:1] if sex in ("F", "M", "FEMALE", "MALE") else ""


def view_of(text: str) -> str:
  """`PA`, `AP`, `L` (lateral) or empty, of what headers and tables call them."""
  word = re.sub(r"[^A-Z]", "", text.upper())
  if word.startswith(("PA", "POSTEROANT")):
    return "PA"
  if word.startswith(("AP", "ANTEROPOST")):
    return "AP"
  lateral = word in ("LL", "RL", "L", "LAT", "LLAT", "RLAT") or "LATERAL" in word
  return "L" if lateral and "DECUB" not in word else ""


def _age(header: Any) -> float | None:
  text = _text(header, "PatientAge")
  if text:
    return age_of(text)
  try:
    born, seen = (datetime.datetime.strptime(_text(header, name)[:8], "%Y%m%d")
                  for name in ("PatientBirthDate", "StudyDate"))
  except ValueError:
    return None
  age = (seen - born).days / _DAYS["Y"]
  return age if 0 <= age <= _OLDEST else None


def _view(header: Any) -> str:
  """By the view's own tags, else by where the image's rows point (to the front: a lateral)."""
  codes = header.get("ViewCodeSequence") or ()
  for text in (_text(header, "ViewPosition"), *(_text(code, "CodeMeaning") for code in codes)):
    view = view_of(text)
    if view:
      return view
  orientation = header.get("PatientOrientation") or ()
  return "L" if len(orientation) == 2 and str(orientation[0])[:1].upper() in ("A", "P") else ""


def _patient(header: Any, key: bytes) -> str:
  name = _text(header, "PatientID")
  if not name:
    return ""
  whole = f"{_text(header, 'IssuerOfPatientID')}\0{name}".encode()
  return hashlib.blake2b(whole, key=key[:64], digest_size=16).hexdigest()


# Pixels.


def _image(header: Any) -> tuple[np.ndarray, tuple[float, float] | None, int]:
  """Pixels [h w 1], window and bits."""
  frames = _integer(header, "NumberOfFrames", 1)
  if frames != 1:
    raise decode.BadImage(f"it has {frames} frames; a radiograph has one")
  kind = _text(header, "PhotometricInterpretation").upper()
  if not kind:  # what is left of a compressed file cut short
    raise decode.BadImage(_DAMAGED)
  if kind not in ("MONOCHROME1", "MONOCHROME2") or _integer(header, "SamplesPerPixel", 1) != 1:
    raise decode.BadImage(f"its pixels are {_code(kind)}, not MONOCHROME1 or MONOCHROME2")
  bits, room = _integer(header, "BitsStored"), _integer(header, "BitsAllocated")
  if room not in (8, 16) or not 8 <= bits <= room:
    raise decode.BadImage(f"it stores {bits} of {room} bits a pixel; 8 to 16 can be read")
  decode.check_shape(_integer(header, "Columns"), _integer(header, "Rows"))
  values = _stored(header, bits)
  slope, intercept = _number(header, "RescaleSlope", 1), _number(header, "RescaleIntercept", 0)
  offset = 0
  inverted = kind == "MONOCHROME1"
  table = _table(header, "ModalityLUTSequence")
  if table is not None:
    values, bits = _through(values, table)
    slope, intercept = 1.0, 0.0
  elif _integer(header, "PixelRepresentation", 0):
    offset = 1 << (bits - 1)
  window = _window(header)
  table = None if window else _table(header, "VOILUTSequence")
  if table is not None:
    values, bits = _through(np.round(values * slope + intercept), table)
    offset = 0
  elif slope == 0 or not np.isfinite((slope, intercept)).all():
    raise decode.BadImage(f"its rescale slope is {slope:g}: nothing would be left of it")
  elif slope < 0:
    inverted = not inverted
  top = (1 << bits) - 1
  shifted = np.clip(values.astype(np.int32) + offset, 0, top)
  if window is not None:
    low, high = sorted((level - intercept) / slope + offset for level in window)
    if not low < high or low >= shifted.max() or high <= shifted.min():
      window = None  # of another image, or nonsense: all would be black, or all white
    else:
      window = (top - high, top - low) if inverted else (low, high)
  elif table is not None:
    window = (0.0, float(top))
  if inverted:
    shifted = top - shifted
  return shifted.astype(np.uint8 if bits <= 8 else np.uint16)[..., None], window, bits


def _stored(header: Any, bits: int) -> np.ndarray:
  """Stored values [h w], signed if they are; bits that belong to no pixel cleared."""
  from pydicom.pixels import get_decoder

  if "PixelData" not in header:
    raise decode.BadImage("it has no pixels")
  try:
    syntax = header.file_meta.TransferSyntaxUID
    decoder = get_decoder(syntax)
  except (AttributeError, NotImplementedError):
    raise decode.BadImage("its transfer syntax is missing or of a kind that holds no stills"
                          ) from None
  if not decoder.is_available:
    raise UserError(f'DICOM files in {syntax.name} need a decoder: pip install -e ".[dicom]"')
  if syntax == _JPEG_EXTENDED and bits > 8:
    raise decode.BadImage("its pixels are 12-bit JPEG Extended, which no decoder here reads; "
                          "convert it to another transfer syntax")
  signed = bool(_integer(header, "PixelRepresentation", 0))
  try:
    values, _ = decoder.as_array(
      header, raw=True, index=0, correct_unused_bits=syntax.is_encapsulated)
  except MemoryError:
    raise decode.BadImage("its header asks for too many pixels") from None
  except Exception:  # decoders raise whatever the damage makes them raise
    raise decode.BadImage("its pixel data are damaged or cut short") from None
  shape = _integer(header, "Rows"), _integer(header, "Columns")
  if values.shape != shape:
    raise decode.BadImage(f"its pixel data are {values.shape}, its header says {shape}")
  if syntax.is_encapsulated:
    return values
  room = 8 * values.dtype.itemsize
  high = _integer(header, "HighBit", bits - 1)
  left = room - 1 - high if bits - 1 <= high < room else room - bits
  return (values << left).astype(f"i{room // 8}" if signed else f"u{room // 8}") >> (room - bits)


def _integer(header: Any, name: str, default: int | None = None) -> int:
  value = header.get(name)
  try:
    if value is None or value == "":
      if default is None:
        raise decode.BadImage(f"its DICOM header lacks {name}")
      return default
    return int(value)
  except (TypeError, ValueError):
    raise decode.BadImage(f"its DICOM header has an unreadable {name}") from None


def _number(header: Any, name: str, default: float) -> float:
  value = header.get(name)
  try:
    return default if value is None or value == "" else float(value)
  except (TypeError, ValueError):
    raise decode.BadImage(f"its DICOM header has an unreadable {name}") from None


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
  if _text(header, "VOILUTFunction").upper() in ("", "LINEAR"):
    center, width = center - 0.5, width - 1
  return (center - width / 2, center + width / 2) if width > 0 else None


def _table(header: Any, name: str) -> tuple[int, np.ndarray, int] | None:
  """The first look-up table of a sequence: first input, outputs, bits of an output."""
  sequence = header.get(name)
  if not sequence:
    return None
  try:
    count, first, bits = (int(v) for v in sequence[0].LUTDescriptor)
    signed = bool(_integer(header, "PixelRepresentation", 0))
    first = first - 65536 if signed and first >= 32768 else first
    data = sequence[0].LUTData
    count = count or 65536
    if isinstance(data, bytes):
      data = np.frombuffer(data, "<u2" if len(data) >= 2 * count else "u1")
    values = np.asarray(data).astype(np.int64)[:count] & 0xFFFF
  except Exception:
    raise decode.BadImage(f"its {name} is damaged") from None
  if len(values) != count or not 8 <= bits <= 16:
    raise decode.BadImage(f"its {name} is damaged")
  return first, values, bits


def _through(values: np.ndarray, table: tuple[int, np.ndarray, int]) -> tuple[np.ndarray, int]:
  first, outputs, bits = table
  place = np.clip(values.astype(np.int64) - first, 0, len(outputs) - 1)
  return outputs[place], bits
