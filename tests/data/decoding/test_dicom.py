import contextlib
import gzip
import io
import logging
import resource
import struct
import zlib

import dicoms
import imagecodecs
import numpy as np
import pydicom
import pytest
from dicoms import dicom as encode_dicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from cxrjax.data.decoding import decode, dicom, formats

LOSSLESS = [
  uid.ExplicitVRLittleEndian,
  uid.ImplicitVRLittleEndian,
  uid.RLELossless,
  uid.DeflatedExplicitVRLittleEndian,
  uid.JPEGLSLossless,
  uid.JPEG2000Lossless,
]


@pytest.fixture
def deep(texture):
  """12 bits in 16."""
  return texture(40, 56).astype(np.uint16) * 16 + 5


def jpeg(pixels, syntax, encoded):
  """A DICOM file around an encoded frame."""
  data = dicoms.opened(encode_dicom(pixels))
  data.PixelData = encapsulate([encoded])
  data["PixelData"].is_undefined_length = True
  data.file_meta.TransferSyntaxUID = syntax
  return dicoms.saved(data)


def lossless_jpeg(pixels):
  """JPEG Lossless, process 14, selection value 1 (ITU-T T.81 annex H) of a gray image.

  Written here because nothing that pydicom brings encodes it. Differences are coded as their
  number of bits, all numbers as codes of 5 bits, and then the bits.
  """
  values = pixels.astype(np.int64)
  h, w = values.shape
  precision = 8 * pixels.itemsize
  predicted = np.zeros_like(values)
  predicted[:, 1:] = values[:, :-1]
  predicted[1:, 0] = values[:-1, 0]
  predicted[0, 0] = 1 << (precision - 1)
  bits = []
  for difference in ((values - predicted).ravel() + 32768) % 65536 - 32768:
    size = int(abs(difference)).bit_length()
    bits.append(f"{size:05b}")
    if size and size < 16:
      bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
  text = "".join(bits)
  text += "1" * (-len(text) % 8)
  packed = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")

  def segment(marker, body):
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body

  sizes = bytes(range(17))
  return (
    b"\xff\xd8"
    + segment(
      0xC3, bytes([precision]) + h.to_bytes(2, "big") + w.to_bytes(2, "big") + b"\x01\x01\x11\x00"
    )
    + segment(0xC4, b"\x00" + bytes([0, 0, 0, 0, 17] + [0] * 11) + sizes)
    + segment(0xDA, b"\x01\x01\x00\x01\x00\x00")
    + packed
    + b"\xff\xd9"
  )


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda s: s.name)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_lossless_syntaxes_of_all_depths_are_exact(syntax, bits, texture):
  pixels = texture(40, 56).astype(np.uint16)
  pixels = pixels.astype(np.uint8) if bits == 8 else (pixels << (bits - 8)) + 3
  found = dicom.read(encode_dicom(pixels, syntax, bits))
  assert found.pixels.dtype == (np.uint8 if bits == 8 else np.uint16) and found.bits == bits
  np.testing.assert_array_equal(found.pixels[..., 0], pixels)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda s: s.name)
def test_signed_pixels_begin_at_zero(syntax, deep):
  signed = deep.astype(np.int16) - 2048
  found = dicom.read(encode_dicom(signed, syntax, 12, WindowCenter=0.5, WindowWidth=101))
  np.testing.assert_array_equal(found.pixels[..., 0], deep)
  assert found.window == (1998, 2098)


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEGLossless], ids=lambda s: s.name)
def test_lossless_jpeg_is_exact(syntax, texture):
  deep = texture(40, 56).astype(np.uint16) * 200
  for pixels in (deep, texture(40, 56)):
    data = jpeg(pixels, syntax, lossless_jpeg(pixels))
    np.testing.assert_array_equal(dicom.read(data).pixels[..., 0], pixels)


def test_lossy_jpeg_is_what_pil_makes_of_it(encode, texture):
  pixels = texture(64, 80)
  frame = encode(pixels, "JPEG", quality=90)
  found = dicom.read(jpeg(pixels, uid.JPEGBaseline8Bit, frame)).pixels[..., 0]
  expected = np.asarray(Image.open(io.BytesIO(frame)))
  assert np.abs(found.astype(int) - expected).max() <= 1  # decoders may round differently


def test_what_is_known_of_the_patient(deep):
  found = dicom.read(encode_dicom(deep, bits=12, PatientAge="010M", ViewPosition="AP"))
  assert (found.age, found.sex, found.view, found.modality) == (10 / 12, "F", "AP", "DX")
  assert found.patient == "" and found.window is None
  header = dicom.read(encode_dicom(deep), pixels=False, key=b"k")
  assert header.pixels is None and header.age == 45 and len(header.patient) == 32


@pytest.mark.parametrize(
  "fields, age",
  [
    ({"PatientAge": "003Y"}, 3),
    ({"PatientAge": "026W"}, 26 * 7 / 365.25),
    ({"PatientAge": "051"}, 51),
    ({"PatientAge": "155Y"}, None),
    ({"PatientAge": "old"}, None),
    ({"PatientAge": None, "StudyDate": "20010203"}, 50),
    ({"PatientAge": None}, None),
    ({"PatientAge": "", "StudyDate": "20010203", "PatientBirthDate": "x"}, None),
  ],
)
def test_ages(fields, age, deep):
  found = dicom.read(encode_dicom(deep, **fields), pixels=False).age
  assert found == (None if age is None else pytest.approx(age, abs=0.01))


def meaning(text):
  code = Dataset()
  code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "SRT", text
  return [code]


@pytest.mark.parametrize(
  "fields, view",
  [
    ({"ViewPosition": "PA"}, "PA"),
    ({"ViewPosition": "AP SUPINE"}, "AP"),
    ({"ViewPosition": "LL"}, "L"),
    ({"ViewPosition": "Lateral"}, "L"),
    ({"ViewPosition": "LLO"}, ""),
    ({"ViewPosition": "LATERAL DECUBITUS"}, ""),
    ({"ViewPosition": "", "ViewCodeSequence": meaning("postero-anterior")}, "PA"),
    ({"ViewPosition": None, "ViewCodeSequence": meaning("left lateral")}, "L"),
    ({"ViewPosition": None, "PatientOrientation": ["A", "F"]}, "L"),
    ({"ViewPosition": None, "PatientOrientation": ["L", "F"]}, ""),
    ({"ViewPosition": None}, ""),
  ],
)
def test_views(fields, view, deep):
  assert dicom.read(encode_dicom(deep, **fields), pixels=False).view == view


def test_patients_are_a_keyed_hash(deep):
  def patient(key=b"key", **fields):
    return dicom.read(encode_dicom(deep, **fields), pixels=False, key=key).patient

  assert patient() == patient(PatientName="Another^Spelling")
  others = {
    patient(),
    patient(PatientID="4712"),
    patient(key=b"other"),
    patient(IssuerOfPatientID="elsewhere"),
  }
  assert len(others) == 4
  assert patient(PatientID="") == "" and patient(PatientID=None) == ""


# Gray levels.


def shown(found):
  """What one sees, 0 to 1."""
  low, high = found.window or (0, 2**found.bits - 1)
  return np.clip((found.pixels[..., 0] - low) / (high - low), 0, 1)


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"WindowCenter": 2000, "WindowWidth": 1000},
    {"WindowCenter": [1500, 9], "WindowWidth": [800, 1]},
    {"WindowCenter": 900, "WindowWidth": 1000, "RescaleSlope": 0.5, "RescaleIntercept": -100},
    {"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"},
  ],
)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
def test_windows_show_what_pydicom_shows(fields, kind, signed, deep):
  stored = (deep.astype(np.int16) - 2048) if signed else deep
  if signed and "WindowCenter" in fields:
    center = np.array(fields["WindowCenter"]) - 2048 * fields.get("RescaleSlope", 1)
    fields = {**fields, "WindowCenter": center.tolist()}
  data = encode_dicom(stored, bits=12, PhotometricInterpretation=kind, **fields)
  found = dicom.read(data)
  reference = dicoms.opened(data)
  values = apply_voi_lut(apply_modality_lut(reference.pixel_array, reference), reference)
  if "WindowCenter" in fields:
    slope, intercept = fields.get("RescaleSlope", 1), fields.get("RescaleIntercept", 0)
    ends = np.array([-2048, 2047] if signed else [0, 4095]) * slope + intercept
    expected = (values - ends[0]) / (ends[1] - ends[0])
  else:
    expected = (values + 2048 * signed) / 4095
  expected = 1 - expected if kind == "MONOCHROME1" else expected
  np.testing.assert_allclose(shown(found), expected, atol=1e-6)


def test_monochrome1_is_inverted_within_its_bits(deep):
  found = dicom.read(encode_dicom(deep, bits=12, PhotometricInterpretation="MONOCHROME1"))
  np.testing.assert_array_equal(found.pixels[..., 0], 4095 - deep)


def test_a_falling_rescale_inverts(deep):
  found = dicom.read(
    encode_dicom(
      deep, bits=12, RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2000.5, WindowWidth=1001
    )
  )
  np.testing.assert_array_equal(found.pixels[..., 0], 4095 - deep)
  assert found.window == (1500, 2500)


def test_bits_that_belong_to_no_pixel_are_cleared(deep):
  overlaid = deep | np.uint16(0x8000)
  overlaid[0, 0] |= 0x4000
  np.testing.assert_array_equal(dicom.read(encode_dicom(overlaid, bits=12)).pixels[..., 0], deep)
  high = dicom.read(encode_dicom(deep << 4, bits=12, HighBit=15))
  np.testing.assert_array_equal(high.pixels[..., 0], deep)


@pytest.mark.parametrize(
  "fields",
  [
    {"WindowCenter": 60000, "WindowWidth": 100},
    {"WindowCenter": 2000, "WindowWidth": 0},
    {"WindowCenter": 2000, "WindowWidth": -5},
    {"WindowCenter": 2000},
    {"WindowCenter": 2000, "WindowWidth": 1},
  ],
)
def test_a_window_that_shows_nothing_is_none(fields, deep):
  assert dicom.read(encode_dicom(deep, bits=12, **fields)).window is None


def table(kind, first, values, bits, packed=False):
  item = Dataset()
  item.LUTDescriptor = [len(values), first, bits]
  item["LUTDescriptor"].VR = "US"
  if packed:
    item.add_new("LUTData", "OW", np.asarray(values, "<u2").tobytes())
  else:
    item.add_new("LUTData", "US", [int(v) for v in values])
  if kind == "ModalityLUTSequence":
    item.ModalityLUTType = "US"
  return {kind: [item]}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
def test_tables_are_applied(kind, packed, deep):
  values = np.round(1023 * np.linspace(0, 1, 3000) ** 2).astype(int)
  data = encode_dicom(deep, bits=12, **table(kind, 500, values, 10, packed))
  found = dicom.read(data)
  expected = values[np.clip(deep.astype(int) - 500, 0, 2999)]
  np.testing.assert_array_equal(found.pixels[..., 0], expected)
  assert found.bits == 10
  assert found.window == ((0, 1023) if kind == "VOILUTSequence" else None)
  both = encode_dicom(
    deep,
    bits=12,
    WindowCenter=2000,
    WindowWidth=100,
    **table("VOILUTSequence", 500, values, 10, packed),
  )
  assert dicom.read(both).bits == 10  # the table counts


def test_a_window_that_shows_next_to_nothing_is_told(deep):
  found = dicom.read(encode_dicom(deep, bits=12, WindowCenter=2000, WindowWidth=1e9))
  assert found.window is None
  assert found.notes == ("its window shows fewer than 32 of 256 gray levels of it and is not used",)
  assert not dicom.read(encode_dicom(deep, bits=12, WindowCenter=2000, WindowWidth=4096)).notes


@pytest.mark.parametrize("vr", ["US", "SS"])
def test_a_voi_table_of_rescaled_values_may_begin_below_zero(vr, deep):
  values = np.round(4095 * np.linspace(0, 1, 4096) ** 2).astype(int)
  fields = table("VOILUTSequence", 64512 if vr == "US" else -1024, values, 12)
  item = fields["VOILUTSequence"][0]
  item["LUTDescriptor"].VR = vr
  if vr == "SS":
    item.LUTDescriptor = [4096, -1024, 12]
    item["LUTDescriptor"].VR = "SS"
  data = dicoms.opened(encode_dicom(deep, bits=12, RescaleIntercept=-1024, RescaleSlope=1))
  data.VOILUTSequence = fields["VOILUTSequence"]
  data.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
  found = dicom.read(dicoms.saved(data))
  np.testing.assert_array_equal(found.pixels[..., 0], values[deep])


def padded(deep):
  """Where a border of padding lies."""
  inside = np.zeros(deep.shape, bool)
  inside[8:-8, 8:-8] = True
  return ~inside


@pytest.mark.parametrize(
  "kind, slope", [("MONOCHROME1", 1), ("MONOCHROME2", 1), ("MONOCHROME2", -1), ("MONOCHROME1", -1)]
)
@pytest.mark.parametrize("value", [0, 4095])
@pytest.mark.parametrize("window", [True, False])
def test_padding_is_background_and_takes_no_part(kind, slope, value, window, deep):
  border, stored = padded(deep), np.clip(deep, 500, 3500)
  fields = {"RescaleSlope": slope, "RescaleIntercept": 0, "PhotometricInterpretation": kind}
  if window:
    fields |= {"WindowCenter": slope * 2000, "WindowWidth": 3000}
  filled = np.where(border, value, stored).astype(np.uint16)
  found = dicom.read(encode_dicom(filled, bits=12, PixelPaddingValue=value, **fields))
  bare = dicom.read(encode_dicom(stored, bits=12, **fields))
  assert (found.pixels[..., 0][border] == 0).all()
  np.testing.assert_array_equal(found.pixels[..., 0][~border], bare.pixels[..., 0][~border])
  if window:
    assert found.window == bare.window
  else:  # that of the picture alone
    assert found.window == tuple(np.percentile(bare.pixels[..., 0][~border], (0.5, 99.5)))


def test_a_range_of_signed_padding(deep):
  border, signed = padded(deep), deep.astype(np.int16) - 2048
  filled = np.where(border, np.random.default_rng(0).integers(-32768, -32000, deep.shape), signed)
  data = encode_dicom(
    filled.astype(np.int16), bits=16, PixelPaddingValue=-32768, PixelPaddingRangeLimit=-32000
  )
  found = dicom.read(data)
  low, high = np.percentile(signed[~border].astype(int) + 32768, (0.5, 99.5))
  assert found.window == (low, high) and (found.pixels[..., 0][border] == 0).all()


def test_raw_detector_values_are_told(deep):
  told = ("it is FOR PROCESSING: raw detector values, not the image shown to readers",)
  assert dicom.read(encode_dicom(deep, PresentationIntentType="FOR PROCESSING")).notes == told
  storage = uid.DigitalXRayImageStorageForProcessing
  assert dicom.read(encode_dicom(deep, SOPClassUID=storage)).notes == told
  assert not dicom.read(encode_dicom(deep, PresentationIntentType="FOR PRESENTATION")).notes


@pytest.mark.parametrize(
  "kind, shape, inverted, told",
  [
    ("MONOCHROME1", "INVERSE", True, False),
    ("MONOCHROME2", "IDENTITY", False, False),
    ("MONOCHROME2", "INVERSE", True, True),
    ("MONOCHROME1", "IDENTITY", False, True),
  ],
)
def test_the_presentation_lut_shape_counts(kind, shape, inverted, told, deep):
  found = dicom.read(
    encode_dicom(deep, bits=12, PhotometricInterpretation=kind, PresentationLUTShape=shape)
  )
  np.testing.assert_array_equal(found.pixels[..., 0], 4095 - deep if inverted else deep)
  assert bool(found.notes) == told and (not told or "contradict each other" in found.notes[0])


@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless], ids=lambda s: s.name)
@pytest.mark.parametrize("signed", [False, True])
def test_streams_deeper_than_their_header_says_are_read_whole(syntax, signed, deep):
  deeper = (deep << 2).astype(np.uint16)
  if signed:
    deeper = deeper.astype(np.int16) - 8192
  data = dicoms.opened(encode_dicom(deeper, syntax, 14))
  data.BitsStored, data.HighBit = 12, 11
  found = dicom.read(dicoms.saved(data))
  np.testing.assert_array_equal(found.pixels[..., 0], deep << 2)
  assert found.bits == 14
  assert found.notes == ("its pixel data use 14 bits where its header says 12; all are read",)


def test_signed_values_in_a_wider_stream_keep_their_sign(deep):
  signed = (deep.astype(np.int16) - 2048) & 0x0FFF  # twelve bits of two's complement in sixteen
  data = jpeg(
    deep,
    uid.JPEGLSLossless,
    imagecodecs.jpegls_encode(
      np.where(np.arange(56) == 0, signed | 0x0FFF, signed).astype(np.uint16)
    ),
  )
  data = dicoms.opened(data)
  data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, 1
  found = dicom.read(dicoms.saved(data)).pixels[..., 0]
  np.testing.assert_array_equal(found[:, 1:], deep[:, 1:])


def unmarked(data):
  """The data set alone, as old workstations write it."""
  data = dicoms.opened(data)
  del data.file_meta
  buffer = io.BytesIO()
  pydicom.dcmwrite(buffer, data, implicit_vr=True, little_endian=True, enforce_file_format=False)
  return buffer.getvalue()


def test_files_are_known_by_their_content(deep):
  data = encode_dicom(deep, bits=12)
  for form in (data[132:], data[128:], unmarked(data), gzip.compress(data)):
    assert dicom.is_dicom(form[:400])
    np.testing.assert_array_equal(decode.decode(form)[..., 0], deep)
    assert dicom.read(form, pixels=False).age == 45
  for other in (
    b"",
    b"DICM",
    b"\x08\0\x05\0",
    b"\x08\0 text of some kind",
    b"\x1f\x8bnot gzip",
    gzip.compress(b"a table"),
  ):
    assert not dicom.is_dicom(other)


def test_packed_files_are_bounded(deep, monkeypatch):
  packed = gzip.compress(encode_dicom(deep, bits=12) + bytes(1_000_000))
  monkeypatch.setattr(dicom, "_MOST", 500_000)
  with pytest.raises(decode.BadImage, match="unpacks to more"):
    dicom.read(packed)
  with pytest.raises(decode.BadImage, match="packed with gzip, and damaged"):
    dicom.read(gzip.compress(encode_dicom(deep))[:-2000])


def test_a_run_length_bomb_stops_at_the_pixels_there_are(deep):
  bomb = bytes([129, 0]) * 4_000_000  # would unpack to half a gigabyte
  header = struct.pack("<16I", 2, 64, 64 + len(bomb) // 2, *[0] * 13)
  data = jpeg(deep, uid.RLELossless, header + bomb)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with contextlib.suppress(decode.BadImage):
    assert dicom.read(data).pixels.shape == (*deep.shape, 1)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


def test_a_frame_of_another_size_is_refused_before_it_is_decoded(deep, monkeypatch):
  monkeypatch.setattr(formats, "jpeg_ls", lambda *_: pytest.fail("decoded"))
  large = imagecodecs.jpegls_encode(np.tile(deep, (8, 8)))
  with pytest.raises(decode.BadImage, match=r"\(320, 448\), its header says \(40, 56\)"):
    dicom.read(jpeg(deep, uid.JPEGLSLossless, large))


# What is no radiograph, and what is broken.


def without(data, *names):
  data = dicoms.opened(data)
  for name in names:
    del data[name]
  return dicoms.saved(data)


@pytest.mark.parametrize(
  "fields, reason",
  [
    ({"Modality": "CT"}, "modality CT, not a radiograph"),
    ({"Modality": "MG"}, "modality MG"),
    ({"Modality": "RTDOSE"}, "modality RTDOSE"),
    ({"Modality": "DOE JANE"}, r"modality \(unreadable\)"),
    ({"NumberOfFrames": 12}, "it has 12 frames"),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, "not MONOCHROME1 or MONOCHROME2"),
    ({"BitsStored": 7}, "stores 7 of 16 bits"),
    ({"RescaleSlope": 0}, "rescale slope is 0"),
    ({"Rows": None}, "lacks Rows"),
    ({"BitsStored": None}, "lacks BitsStored"),
    ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels"),
    ({"Rows": 400}, "damaged or cut short"),
    ({"Rows": 4}, "56 x 4 pixels"),
  ],
)
def test_files_that_are_refused_say_why(fields, reason, deep):
  with pytest.raises(decode.BadImage, match=reason) as error:
    decode.decode(encode_dicom(deep, **fields), "x.dcm")
  assert str(error.value).startswith("x.dcm: ") and "\n" not in str(error.value)


def test_colour_and_no_pixels_are_refused(texture):
  with pytest.raises(decode.BadImage, match="its pixels are RGB"):
    dicom.read(encode_dicom(np.stack([texture(40, 56)] * 3, axis=2)))
  with pytest.raises(decode.BadImage, match="has no pixels"):
    dicom.read(without(encode_dicom(texture(40, 56)), "PixelData"))
  with pytest.raises(decode.BadImage, match="DICM are missing"):
    dicom.read(b"\x89PNG" + bytes(400))


def test_dicom_of_other_kinds_is_named(texture):
  plain = dicoms.opened(encode_dicom(texture(40, 56)))
  for kind, reason in (
    (uid.MediaStorageDirectoryStorage, "a DICOMDIR, an index of DICOM files"),
    (
      uid.GrayscaleSoftcopyPresentationStateStorage,
      "DICOM of the kind Grayscale Softcopy Presentation State Storage",
    ),
  ):
    plain.SOPClassUID = plain.file_meta.MediaStorageSOPClassUID = kind
    plain.pop("PixelData", None)
    with pytest.raises(decode.BadImage, match=reason):
      dicom.read(dicoms.saved(plain))


def test_another_modality_is_refused_by_its_header_alone(deep):
  with pytest.raises(decode.BadImage, match="modality CT"):
    dicom.read(encode_dicom(deep, Modality="CT"), pixels=False)
  for modality in ("CR", "DX", "RG", "OT", ""):
    assert dicom.read(encode_dicom(deep, Modality=modality)).modality == modality


def test_twelve_bit_jpeg_is_read(deep):
  smooth = np.sort(deep, axis=1)
  frame = imagecodecs.jpeg_encode(smooth, level=98, bitspersample=12)
  found = dicom.read(jpeg(smooth, uid.JPEGExtended12Bit, frame))
  assert np.abs(found.pixels[..., 0].astype(int) - smooth).max() < 64


def test_another_syntax_is_refused_by_name(deep):
  with pytest.raises(decode.BadImage, match="MPEG2 Main Profile / Main Level, which is not read"):
    dicom.read(jpeg(deep, uid.MPEG2MPML, b"\0\0\1\xb3"))


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda s: s.name)
def test_files_cut_short_are_bad(syntax, deep):
  data = encode_dicom(deep, syntax, 12)
  for part in (0.5, 0.9, 0.98):
    with pytest.raises(decode.BadImage, match="cut short"):
      dicom.read(data[: int(part * len(data))])
  if syntax.is_encapsulated:
    whole = dicoms.opened(data)
    frame = next(generate_frames(whole.PixelData, number_of_frames=1))
    for part in (0.3, 0.8):
      whole.PixelData = encapsulate([frame[: int(part * len(frame)) // 2 * 2]])
      with pytest.raises(decode.BadImage, match="damaged or cut short"):
        dicom.read(dicoms.saved(whole))


def test_damage_anywhere_in_a_header_is_a_bad_image_or_no_harm(deep, caplog, capfd):
  data = encode_dicom(deep, bits=12)
  header = len(data) - deep.nbytes
  rng = np.random.default_rng(0)
  messages = []
  with caplog.at_level(logging.DEBUG):
    for _ in range(300):
      broken = bytearray(data)
      at = int(rng.integers(132, header))
      broken[at : at + 4] = rng.bytes(4)
      for pixels in (True, False):
        try:
          dicom.read(bytes(broken), pixels=pixels, key=b"k")
        except decode.BadImage as error:
          messages.append(str(error))
  assert len(messages) > 50
  said = " ".join(messages) + caplog.text + "".join(capfd.readouterr())
  assert not [secret for secret in dicoms.SECRETS.values() if secret in said]


def test_errors_carry_no_cause_that_quotes_the_header(deep):
  data = dicoms.opened(encode_dicom(deep))
  data["PatientAge"].value = "Doe^Jane"
  data.WindowCenter = None
  assert dicom.read(dicoms.saved(data)).age is None
  with pytest.raises(decode.BadImage) as error:
    dicom.read(encode_dicom(deep)[:400])
  assert error.value.__cause__ is None
  assert error.value.__suppress_context__ or error.value.__context__ is None


def test_a_deflated_bomb_is_refused(deep, monkeypatch):
  data = encode_dicom(np.zeros((400, 400), np.uint16), uid.DeflatedExplicitVRLittleEndian)
  assert len(data) < 2000
  monkeypatch.setattr(dicom, "_MOST", 50_000)
  monkeypatch.setattr(zlib, "decompress", lambda *_: pytest.fail("unpacked without a limit"))
  for given, pixels in ((data, True), (io.BytesIO(data), False)):
    with pytest.raises(decode.BadImage, match="unpacks to more"):
      dicom.read(given, pixels=pixels)


def test_the_header_of_an_open_file_is_read_without_its_pixels(deep, tmp_path):
  file = tmp_path / "1"
  file.write_bytes(encode_dicom(np.tile(deep, (20, 20))))
  with open(file, "rb") as opened, contextlib.closing(io.BufferedReader(opened, 512)) as counted:
    assert dicom.read(counted, pixels=False).age == 45
    assert counted.tell() < 4000
