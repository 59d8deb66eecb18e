"""DICOM radiographs: age and sex of the patient, view, and gray pixels (by `dicom_pixels`).

Only age, sex and view leave a file, and, where a key is given, a keyed hash of the patient's ID.
Names, dates and identifiers do not, not even in errors, which never quote a header's content or
pydicom's messages about it.
"""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import hashlib
import io
import logging
import re
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16

from cxrjax.data.decoding import dicom_pixels
from cxrjax.data.decoding.dicom_pixels import DAMAGED, NeedsNativeDecoder, integer, string
from cxrjax.data.decoding.samples import MAX_PIXELS, BadImage

# Radiography by any device, scanned films and screen captures; nothing else is a chest radiograph.
MODALITIES = ("CR", "DX", "DR", "RG", "SC", "OT", "")
# The standard's other modality codes (PS3.3 C.7.3.1.1.1), to be named in errors.
_OTHERS = """
AR AS AU BDUS BI BMD CFM CT CTPROTOCOL DG DMS DOC ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT
IVUS KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS PA PLAN PR PT PX REG RESP
RF RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN
TEXTUREMAP TG US VA XA XAPROTOCOL XC
""".split()  # noqa: SIM905
START = 1024  # leading bytes of a file that suffice to recognize DICOM, also gzipped
_MARK = b"DICM"
_MARK_AT = 128
_GZIP = b"\x1f\x8b"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MOST = 2 * MAX_PIXELS + (1 << 24)  # bytes of an unpacked file
_VRS = frozenset(
  b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US"
  b" UT UV".split()
)
# Elements of group 8 that a data set may begin with.
_FIRST = (0x0000, 0x0001, 0x0005, 0x0006, 0x0008, 0x0012, 0x0014, 0x0016, 0x0018)
_HEADER = (
  "Modality",
  "PatientID",
  "IssuerOfPatientID",
  "PatientAge",
  "PatientBirthDate",
  "StudyDate",
  "PatientSex",
  "ViewPosition",
  "ViewCodeSequence",
  "PatientOrientation",
  "BitsStored",
  "SOPClassUID",
)
_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_OLDEST = 120  # years; higher values are typing errors


@dataclasses.dataclass(frozen=True)
class Radiograph:
  """One DICOM radiograph, white where few X-rays came through.

  Attributes:
    pixels: stored gray levels from 0; MONOCHROME1 inverted, signed ones shifted to start at 0,
      padding 0. uint8 for up to 8 bits. None where only the header was read.
    window: gray levels of `pixels` shown black and white, from the file's window with its rescale
      undone; None where the file has none, or one that shows almost nothing of the image.
    bits: bits in use: levels are below `2**bits`; bits of the stored values where only the header
      was read.
    age: in years, None where unknown.
    sex: `F`, `M`, or empty.
    view: `PA`, `AP`, `L` (lateral), or empty.
    modality: DICOM's code, such as `DX`; may be empty.
    patient: 32 hex digits, the keyed hash of the patient's ID; empty without a key or an ID.
    notes: remarks for users on how the pixels were read.
  """

  pixels: UInt8[np.ndarray, "h w 1"] | UInt16[np.ndarray, "h w 1"] | None
  window: tuple[float, float] | None
  bits: int
  age: float | None
  sex: str
  view: str
  modality: str
  patient: str = ""
  notes: tuple[str, ...] = ()


def is_dicom(start: bytes) -> bool:
  """Whether a file that starts with these bytes (`START` of them suffice) is DICOM.

  The letters DICM may be at byte 128, as they should, or at 0; or the file begins with its meta
  header or, as old workstations write it, its data set. It may be gzipped.
  """
  if start.startswith(_GZIP):
    try:
      start = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(start, 256)
    except zlib.error:
      return False
  if start[_MARK_AT : _MARK_AT + 4] == _MARK:
    return True
  start = start.removeprefix(_MARK)
  group, element = (int.from_bytes(start[i : i + 2], "little") for i in (0, 2))
  length = int.from_bytes(start[4:8], "little")
  if group == 2:  # the meta header, always with explicit VRs
    return element <= 0x0010 and start[4:6] in _VRS
  return (
    group == 8
    and element in _FIRST
    and len(start) >= 16
    and (start[4:6] in _VRS or (length % 2 == 0 and length <= 64))
  )


def read(
  data: bytes | io.BufferedIOBase,
  *,
  pixels: bool = True,
  key: bytes | None = None,
  encoded: bool = True,
) -> Radiograph:
  """Reads a radiograph from a DICOM file.

  Reads uncompressed, RLE, JPEG (baseline, extended, lossless), JPEG-LS and JPEG 2000 pixels of 8 to
  16 bits. Padding is excluded from inversion and windows. Of several windows the first is used, a
  sigmoid one as the straight line through its middle; a VOI LUT takes precedence over a window.

  Args:
    data: the file's bytes, or an open file if only the header is read.
    pixels: whether to decode the pixels; else only the beginning of the file is read.
    key: for `patient`; a secret, since short IDs can be guessed from unkeyed hashes.
    encoded: whether compressed pixels may be decoded here, by native code.

  Raises:
    BadImage: not DICOM, damaged, of another modality, in colour, or of several frames.
    dicom_pixels.NeedsNativeDecoder: the file or its pixels are compressed, and `encoded` is False.
  """
  opened = _unpack(io.BytesIO(data) if isinstance(data, bytes) else data, encoded)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydicom quotes invalid values in them
    try:
      return _radiograph(opened, pixels, key, encoded)
    except (BadImage, NeedsNativeDecoder):
      raise
    except MemoryError:
      raise BadImage("its header asks for too many pixels") from None
    except Exception:  # on damaged files pydicom raises anything, quoting the header
      raise BadImage(DAMAGED) from None


def header_values(opened: io.BufferedIOBase, keywords: Sequence[str]) -> list[str]:
  """Header values by keyword, empty where missing; they must never be shown.

  Raises:
    BadImage: not DICOM, or damaged.
  """
  opened = _unpack(opened, True)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydicom quotes invalid values in them
    try:
      header = _pydicom().dcmread(
        opened, stop_before_pixels=True, force=True, specific_tags=[*keywords]
      )
      return [string(header, keyword) for keyword in keywords]
    except Exception:  # on damaged files pydicom raises anything, quoting the header
      raise BadImage(DAMAGED) from None


def _unpack(opened: io.BufferedIOBase, encoded: bool) -> io.BufferedIOBase:
  """Unpacks a DICOM file, and adds the preamble where it is missing."""
  start = opened.read(2048)
  if not is_dicom(start):
    raise BadImage("it is not a DICOM file: the letters DICM are missing at byte 128")
  if start.startswith(_GZIP):
    if not encoded:
      raise NeedsNativeDecoder
    opened.seek(0)
    opened = io.BytesIO(_gunzip(opened))
    start = opened.read(2048)
  if _DEFLATED.encode() in start:
    if not encoded:
      raise NeedsNativeDecoder
    _check_deflated(start + opened.read(_MOST))
  opened.seek(0)
  if start.startswith(_MARK):  # the preamble is missing
    opened = io.BytesIO(bytes(_MARK_AT) + opened.read(_MOST))
  return opened


def _radiograph(
  opened: io.BufferedIOBase, pixels: bool, key: bytes | None, encoded: bool
) -> Radiograph:
  pydicom = _pydicom()
  header = pydicom.dcmread(
    opened,
    stop_before_pixels=not pixels,
    force=True,
    specific_tags=None if pixels else list(_HEADER),
  )
  if pixels:
    opened.close()  # everything is read, and an unpacked file is as large as its pixels
  kind = string(header, "SOPClassUID") or string(
    getattr(header, "file_meta", {}), "MediaStorageSOPClassUID"
  )
  if kind == pydicom.uid.MediaStorageDirectoryStorage:
    raise BadImage("it is a DICOMDIR, an index of DICOM files, not an image")
  modality = string(header, "Modality").upper()
  if modality not in MODALITIES:
    # In a damaged header it may be a person's name.
    code = modality if modality in _OTHERS else "(unreadable)"
    raise BadImage(
      f"it is DICOM of modality {code}, not a radiograph ({', '.join(m for m in MODALITIES if m)})"
    )
  kind_name = pydicom.uid.UID_dictionary.get(kind, ("Image Storage",))[0]
  if pixels and "PixelData" not in header and "Image Storage" not in kind_name:
    raise BadImage(f"it has no pixels: it is DICOM of the kind {kind_name}")
  if not getattr(header, "file_meta", None):
    # Without a meta header the transfer syntax is inferred from the encoding.
    implicit, little = header.original_encoding
    header.file_meta = pydicom.dataset.FileMetaDataset()
    explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
    header.file_meta.TransferSyntaxUID = (
      pydicom.uid.ImplicitVRLittleEndian if implicit else explicit
    )
  decoded = dicom_pixels.gray(header, encoded) if pixels else None
  return Radiograph(
    decoded and decoded.pixels,
    decoded and decoded.window,
    decoded.bits if decoded else integer(header, "BitsStored", 0),
    age=_age(header),
    sex=sex_of(string(header, "PatientSex")),
    view=_view(header),
    modality=modality,
    patient="" if key is None else _patient_hash(header, key),
    notes=decoded.notes if decoded else (),
  )


def _pydicom() -> Any:
  """pydicom, imported late (it takes a third of a second) and kept from logging what it reads."""
  import pydicom

  pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
  logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
  return pydicom


def _gunzip(opened: io.BufferedIOBase) -> bytes:
  """Content of a gzipped file; raises BadImage above the size that a radiograph can have."""
  try:
    with gzip.open(opened) as packed:
      data = packed.read(_MOST + 1)
  except (OSError, EOFError, zlib.error):
    raise BadImage("it is DICOM packed with gzip, and damaged or cut short") from None
  if len(data) > _MOST:
    raise BadImage("it unpacks to more than a radiograph can hold")
  return data


def _check_deflated(data: bytes) -> None:
  """Raises BadImage for a deflated file that is damaged or unpacks to too much."""
  if data[132:140] != b"\x02\0\0\0UL\x04\0":
    raise BadImage(DAMAGED)
  remaining = data[144 + int.from_bytes(data[140:144], "little") :]
  inflater, count = zlib.decompressobj(-zlib.MAX_WBITS), 0
  try:
    while remaining and not inflater.eof:  # the output is counted and discarded
      count += len(inflater.decompress(remaining, 1 << 20))
      remaining = inflater.unconsumed_tail
      if count > _MOST:
        raise BadImage("it unpacks to more than a radiograph can hold")
  except zlib.error:
    raise BadImage(DAMAGED) from None


# Patient and view.


def age_of(text: str) -> float | None:
  """Parses an age to years: DICOM's `045Y`, `010M`, `003W` or `020D`, or a number of years."""
  match = re.fullmatch(r"(\d{1,3}(?:\.\d*)?)\s*([DWMY]?)", text.strip().upper())
  if not match:
    return None
  age = float(match[1]) * _DAYS[match[2] or "Y"] / _DAYS["Y"]
  return age if age <= _OLDEST else None


def sex_of(text: str) -> str:
  """Normalizes a sex to `F`, `M`, or empty."""
  sex = text.strip().upper()
  return sex[:1] if sex in ("F", "M", "FEMALE", "MALE") else ""


def view_of(text: str) -> str:
  """Normalizes a view, as headers and tables name it, to `PA`, `AP`, `L` (lateral) or empty."""
  word = re.sub(r"[^A-Z]", "", text.upper())
  if word.startswith(("PA", "POSTEROANT")):
    return "PA"
  if word.startswith(("AP", "ANTEROPOST")):
    return "AP"
  lateral = word in ("LL", "RL", "L", "LAT", "LLAT", "RLAT") or "LATERAL" in word
  return "L" if lateral and "DECUB" not in word else ""


def _age(header: Any) -> float | None:
  text = string(header, "PatientAge")
  if text:
    return age_of(text)
  try:
    birth, study = (
      datetime.datetime.strptime(string(header, name)[:8], "%Y%m%d")
      for name in ("PatientBirthDate", "StudyDate")
    )
  except ValueError:
    return None
  age = (study - birth).days / _DAYS["Y"]
  return age if 0 <= age <= _OLDEST else None


def _view(header: Any) -> str:
  """View by its tags, else by patient orientation (rows that run front to back: a lateral)."""
  codes = header.get("ViewCodeSequence") or ()
  for text in (string(header, "ViewPosition"), *(string(code, "CodeMeaning") for code in codes)):
    view = view_of(text)
    if view:
      return view
  orientation: Any = header.get("PatientOrientation") or ()
  return "L" if len(orientation) == 2 and str(orientation[0])[:1].upper() in ("A", "P") else ""


def _patient_hash(header: Any, key: bytes) -> str:
  patient_id = string(header, "PatientID")
  if not patient_id:
    return ""
  qualified_id = f"{string(header, 'IssuerOfPatientID')}\0{patient_id}".encode()
  return hashlib.blake2b(qualified_id, key=key[:64], digest_size=16).hexdigest()
