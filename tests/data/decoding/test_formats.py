"""What image files hold beside 8-bit gray, each against the picture it was made of."""

import io
import resource
import struct
import zlib

import hostile_images
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from cxrjax.data.decoding import decode, formats, samples
from cxrjax.data.decoding.decode import BadImage


def film(bits=16, h=40, w=56):
  y, x = np.mgrid[:h, :w]
  found = 0.15 + 0.5 * y / h + 0.3 * np.sin(x / 9) ** 2
  return np.round(found * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def chunk(kind, data):
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, colour, bits=16, more=b"", **header):
  """A PNG written by hand; values [h w n], `colour` as in the header."""
  h, w = values.shape[:2]
  rows = values.astype(">u2" if bits == 16 else np.uint8)
  raw = b"".join(b"\0" + row.tobytes() for row in rows)
  start = struct.pack(">IIBBBBB", header.get("width", w), h, bits, colour, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", start)
    + more
    + chunk(b"IDAT", zlib.compress(raw))
    + chunk(b"IEND", b"")
  )


def tiff(values, **options):
  buffer = io.BytesIO()
  tifffile.imwrite(buffer, values, metadata=None, **options)
  return buffer.getvalue()


def gray(data):
  """The decoded image, whose depth its header told."""
  found = decode.decode(data)
  assert decode.bit_depth(data) == 8 * found.itemsize
  return found[..., 0]


DEEP = film()
FULL = np.full(DEEP.shape, 65535, np.uint16)


@pytest.mark.parametrize(
  "colour, channels",
  [(0, [DEEP]), (2, [DEEP] * 3), (4, [DEEP, FULL // 3]), (6, [DEEP] * 3 + [FULL // 3])],
  ids=["gray", "RGB", "gray and alpha", "RGBA"],
)
def test_sixteen_bits_of_every_colour_type_stay_sixteen(colour, channels):
  np.testing.assert_array_equal(gray(png(np.stack(channels, -1), colour)), DEEP)


def test_sixteen_bit_luma_is_that_of_eight_bits():
  rgb = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
  eight = gray(png(rgb, 2, bits=8))
  np.testing.assert_array_equal(eight, np.asarray(Image.fromarray(rgb).convert("L")))
  deep = gray(png(rgb.astype(np.uint16) * 257, 2))
  assert np.abs(deep / 257 - eight).max() <= 0.51


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_reach_from_black_to_white(bits):
  values = (np.arange(40 * 56).reshape(40, 56) % 2**bits).astype(np.uint8)
  packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(40, -1), 1)
  data = png(packed[..., None], 0, bits, width=56)
  np.testing.assert_array_equal(gray(data), values * (255 // (2**bits - 1)))


def test_damage_to_any_chunk_of_a_png_is_found():
  data = bytearray(png(np.stack([DEEP, FULL], -1), 4, more=chunk(b"gAMA", b"\0\0\xb1\x8f")))
  rng = np.random.default_rng(0)
  for at in rng.integers(8, len(data), 200):
    broken = bytearray(data)
    broken[at] ^= 1 << int(rng.integers(8))
    with pytest.raises(BadImage, match=r"damaged|header asks|pixels|animated|frames"):
      decode.decode(bytes(broken))


def test_several_frames_are_refused():
  still = png(DEEP[..., None], 0, more=chunk(b"acTL", struct.pack(">II", 1, 0)))
  np.testing.assert_array_equal(gray(still), DEEP)
  with pytest.raises(BadImage, match="it has 3 frames; save the relevant one"):
    decode.decode(png(DEEP[..., None], 0, more=chunk(b"acTL", struct.pack(">II", 3, 0))))
  frames = [Image.fromarray(film(8)), Image.fromarray(film(8)[::-1])]
  for kind in ("GIF", "WEBP"):
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(BadImage, match="it has 2 frames"):
      decode.decode(buffer.getvalue())


# How each tag's picture is stored, by numpy.
STORED = {
  1: lambda a: a,
  2: np.fliplr,
  3: lambda a: np.rot90(a, 2),
  4: np.flipud,
  5: np.transpose,
  6: np.rot90,
  7: lambda a: np.rot90(a, 2).T,
  8: lambda a: np.rot90(a, 3),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("tag", STORED)
def test_orientation_is_obeyed(kind, tag):
  picture = film(8, 64, 96)
  picture[:16, -16:] = 255
  exif = Image.Exif()
  exif[0x112] = tag
  buffer = io.BytesIO()
  options = {"quality": 98} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
  stored = Image.fromarray(np.ascontiguousarray(STORED[tag](picture)))
  stored.save(buffer, kind, exif=exif, **options)
  found = decode.decode_with_window(buffer.getvalue())
  assert found.shape == picture.shape
  assert np.abs(found.pixels[..., 0].astype(int) - picture).max() <= (8 if kind == "JPEG" else 0)
  if kind == "JPEG":
    half = decode.decode_with_window(buffer.getvalue(), at_least=16)
    assert half.shape == picture.shape and half.pixels.shape == (32, 48, 1)


WHITE = {"photometric": "miniswhite"}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
  "packing",
  [{}, {"compression": "lzw", "predictor": True}, {"compression": "zlib"}, {"tile": (16, 16)}],
  ids=["plain", "LZW", "Deflate", "tiles"],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_whose_zero_is_white(bits, packing, order):
  values = film(bits)
  data = tiff((2**bits - 1) - values, byteorder=order, **packing, **WHITE)
  np.testing.assert_array_equal(gray(data), values)
  np.testing.assert_array_equal(gray(tiff(values, byteorder=order, **packing)), values)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("alpha", [False, True])
def test_tiff_in_colour(bits, planar, alpha):
  values = film(bits)
  stack = np.stack([values] * 3 + [values // 2] * alpha)
  if planar == "contig":
    stack = np.moveaxis(stack, 0, -1)
  more = {"extrasamples": ["unassalpha"]} if alpha else {}
  data = tiff(stack, photometric="rgb", planarconfig=planar, **more)
  np.testing.assert_array_equal(gray(data), values)


def test_tiff_of_other_integers():
  np.testing.assert_array_equal(
    gray(tiff(DEEP.astype(np.int32) - 32768)),
    np.round((DEEP - DEEP.min()) * (65535 / np.ptp(DEEP))),
  )
  np.testing.assert_array_equal(gray(tiff((DEEP.astype(int) - 32768).astype(np.int16))), DEEP)
  np.testing.assert_array_equal(gray(tiff((film(8).astype(int) - 128).astype(np.int8))), film(8))
  np.testing.assert_array_equal(gray(tiff(DEEP.astype(np.uint32))), DEEP)
  above = (DEEP.astype(np.uint64) * 65000).astype(np.uint32)  # 2**31 and more
  assert np.corrcoef(gray(tiff(above)).ravel(), DEEP.ravel())[0, 1] > 0.99999


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_tiff_of_floats_is_scaled_to_its_range(kind, white):
  unit = (DEEP / 65535).astype(kind)
  shown = 1 - unit.astype(float) if white else unit.astype(float)
  found = gray(tiff(unit, **(WHITE if white else {})))
  np.testing.assert_allclose(found, (shown - shown.min()) / np.ptp(shown) * 65535, atol=0.51)
  unit[3, 3] = np.nan
  with pytest.raises(BadImage, match="not finite"):
    decode.decode(tiff(unit))


@pytest.mark.parametrize(
  "values, options, reason",
  [
    (DEEP.astype(float), {}, "TIFF of 64-bit floats is not read; convert it to 16-bit gray"),
    (DEEP.astype(np.uint64), {}, "TIFF of 64-bit integers"),
    (DEEP.astype(np.complex64), {}, "TIFF of 64-bit values of another type"),
    (
      np.stack([DEEP] * 5, -1),
      {"photometric": "minisblack", "planarconfig": "contig"},
      "TIFF of 5 channels",
    ),
    (np.stack([film(8)] * 4, -1), {"photometric": "separated"}, "kind SEPARATED"),
    (np.stack([DEEP.astype(np.float32)] * 3, -1), {"photometric": "rgb"}, "float32 values"),
    (DEEP, {"compression": "zstd"}, "packed with ZSTD; save it with LZW"),
  ],
)
def test_tiff_that_is_not_read_is_refused_by_name(values, options, reason):
  with pytest.raises(BadImage, match=reason):
    decode.decode(tiff(values, **options))


def test_a_palette_tiff_is_eight_bits():
  buffer = io.BytesIO()
  Image.fromarray(film(8)).convert("P").save(buffer, "TIFF")
  expected = Image.fromarray(film(8)).convert("P").convert("RGB").convert("L")
  np.testing.assert_array_equal(gray(buffer.getvalue()), np.asarray(expected))


def test_of_several_pages_the_picture_is_read_or_none():
  def pages(*shown):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
      for values, subfile in shown:
        writer.write(values, subfiletype=subfile, metadata=None)
    return buffer.getvalue()

  small = np.ascontiguousarray(DEEP[::2, ::2])
  for data in (pages((small, 1), (DEEP, 0)), pages((DEEP, 0), (small, 1))):
    found = decode.decode_with_window(data)
    np.testing.assert_array_equal(found.pixels[..., 0], DEEP)
    assert not found.notes
  told = decode.decode_with_window(pages((small, 0), (DEEP, 0)))
  np.testing.assert_array_equal(told.pixels[..., 0], DEEP)
  assert told.notes == ("it has 1 smaller pages beside the picture, which are not read",)
  with pytest.raises(BadImage, match="it has 2 pages; save the relevant one"):
    decode.decode(pages((DEEP, 0), (DEEP[::-1], 0)))


def test_of_an_mpo_the_first_picture_is_read_and_this_is_told():
  buffer, picture = io.BytesIO(), Image.fromarray(film(8))
  picture.save(buffer, "MPO", save_all=True, append_images=[picture.rotate(180)], quality=95)
  found = decode.decode_with_window(buffer.getvalue())
  assert np.abs(found.pixels[..., 0].astype(int) - film(8)).max() < 12
  assert any("several pictures; the first is read" in note for note in found.notes)


@pytest.mark.parametrize(
  "kind, data",
  [
    (
      "gray and alpha",
      tiff(np.stack([DEEP, FULL // 3], -1), photometric="minisblack", extrasamples=["unassalpha"]),
    ),
    (
      "JPEG 2000",
      tiff(
        DEEP,
        compression="jpeg2000",
        photometric="minisblack",
        compressionargs={"level": 0, "reversible": True},
      ),
    ),
  ],
)
def test_deep_tiff_of_rarer_kinds(kind, data):
  np.testing.assert_array_equal(gray(data), DEEP)


def test_cmyk_jpeg_with_and_without_adobes_marker():
  ink = np.zeros((40, 56, 4), np.uint8)
  ink[..., 3] = 255 - film(8)

  def saved(values):
    buffer = io.BytesIO()
    Image.fromarray(values, "CMYK").save(buffer, "JPEG", quality=98)
    return buffer.getvalue()

  assert np.abs(gray(saved(ink)).astype(int) - film(8)).max() < 12
  turned = saved(255 - ink)  # which Pillow turns as Adobe does, and says so
  at = turned.index(b"\xff\xee\0\x0eAdobe")
  assert np.abs(gray(turned[:at] + turned[at + 16 :]).astype(int) - film(8)).max() < 12


@pytest.mark.parametrize(
  "kind, data",
  [
    ("12-bit JPEG", imagecodecs.jpeg_encode(film(12), level=99, bitspersample=12)),
    ("lossless JPEG", imagecodecs.ljpeg_encode(film(12), bitspersample=12)),
    ("JPEG-LS", imagecodecs.jpegls_encode(film(12))),
    ("JPEG 2000", imagecodecs.jpeg2k_encode(film(12), level=0, reversible=True)),
    ("JPEG 2000 codestream", imagecodecs.jpeg2k_encode(DEEP, level=0, codecformat="j2k")),
    ("PGM", b"P5\n# a comment\n56 40\n4095\n" + film(12).astype(">u2").tobytes()),
    ("PPM", b"P6 56 40 65535\n" + np.stack([DEEP] * 3, -1).astype(">u2").tobytes()),
  ],
)
def test_deep_pictures_of_other_formats(kind, data):
  expected = DEEP if kind in ("PPM", "JPEG 2000 codestream") else film(12)
  assert np.abs(gray(data).astype(int) - expected).max() <= (40 if kind == "12-bit JPEG" else 0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "PPM"])
def test_eight_bit_pictures_of_other_formats(kind):
  buffer = io.BytesIO()
  Image.fromarray(film(8)).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
  np.testing.assert_array_equal(gray(buffer.getvalue()), film(8))


@pytest.mark.parametrize(
  "start, reason",
  [
    (b"PK\x03\x04", "a zip"),
    (b"\x1f\x8b", "gzip"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    (b"\x89HDF\r\n", "HDF5"),
    (b"\x00\x01\x02", "not a PNG, JPEG"),
  ],
)
def test_what_is_no_image_is_named(start, reason):
  with pytest.raises(BadImage, match=reason):
    decode.decode(start + bytes(200))


def test_damaged_files_of_every_format_are_refused_or_another_picture():
  outcomes, lost = hostile_images.try_all(460, seed=1)
  assert outcomes["refused"] > 200 and outcomes["read"] > 50
  assert not lost


def test_jpeg_ls_cut_short_is_refused_at_once():
  data = imagecodecs.jpegls_encode(np.tile(DEEP, (4, 4)))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
  for part in range(20, len(data) - 4, len(data) // 60):
    with pytest.raises(Exception, match=r"invalid|Invalid|structural"):
      formats.jpeg_ls(data[:part])
  assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 5  # of many seconds each


def test_samples_of_a_header_are_not_decoded():
  with pytest.raises(BadImage, match="60000 x 60000"):
    samples.Samples((60000, 60000), 8, lambda at_least: pytest.fail("decoded"))
  found = formats.open_image(imagecodecs.jpeg_encode(film(8, 80, 120)))
  assert (found.shape, found.bits, found.depth) == ((80, 120), 8, 8)
