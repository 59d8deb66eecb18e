"""DICOM files for tests: what hospitals write, small."""

import io

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

SECRETS = {
  "PatientID": "4711-SECRET",
  "PatientName": "Doe^Jane",
  "PatientBirthDate": "19510203",
  "AccessionNumber": "ACC-99",
  "InstitutionName": "Hidden Hospital",
}


def dicom(pixels, syntax=ExplicitVRLittleEndian, bits=None, **fields):
  """Bytes of a DICOM file.

  Args:
    pixels: [h w] of uint8, int8, uint16 or int16, or [h w 3], as stored.
    syntax: transfer syntax; pydicom encodes for RLE, JPEG-LS and JPEG 2000.
    bits: BitsStored; all there are by default.
    **fields: tags by keyword; None takes one out.
  """
  pixels = np.asarray(pixels)
  data = Dataset()
  data.file_meta = FileMetaDataset()
  data.file_meta.TransferSyntaxUID = syntax
  data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
  data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
  data.Modality, data.PatientSex, data.PatientAge, data.ViewPosition = "DX", "F", "045Y", "PA"
  for name, value in SECRETS.items():
    setattr(data, name, value)
  data.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
  data.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
  if pixels.ndim == 3:
    data.PlanarConfiguration = 0
  data.Rows, data.Columns = pixels.shape[:2]
  data.BitsAllocated = 8 * pixels.itemsize
  data.BitsStored = bits or data.BitsAllocated
  data.HighBit = data.BitsStored - 1
  data.PixelRepresentation = int(pixels.dtype.kind == "i")
  data.PixelData = pixels.tobytes()
  data["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
  for name, value in fields.items():
    if value is None:
      del data[name]
    else:
      setattr(data, name, value)
  if syntax.is_encapsulated:
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.compress(syntax, generate_instance_uid=False)
  return saved(data)


def saved(data):
  """Bytes of a pydicom data set."""
  buffer = io.BytesIO()
  data.save_as(buffer, enforce_file_format=True)
  return buffer.getvalue()


def opened(data):
  """The pydicom data set in some bytes."""
  return pydicom.dcmread(io.BytesIO(data))
