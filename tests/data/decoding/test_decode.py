import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cxrjax.data.decoding import decode, windowing


@pytest.fixture
def gray(texture):
  return texture(40, 56)


def test_gray_png_is_exact(encode, gray):
  np.testing.assert_array_equal(decode.decode(encode(gray))[..., 0], gray)


def test_sixteen_bit_png_stays_sixteen_bit(encode, gray):
  deep = gray.astype(np.uint16) * 257 + 3
  found = decode.decode(encode(deep))
  assert found.dtype == np.uint16
  np.testing.assert_array_equal(found[..., 0], deep)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_formats(form, encode, gray):
  found = decode.decode(encode(gray, form))[..., 0]
  assert np.abs(found.astype(int) - gray).mean() < (10 if form == "JPEG" else 1e-9)


def test_tiff_of_sixteen_bits(encode, gray):
  deep = gray.astype(np.uint16) * 200
  np.testing.assert_array_equal(decode.decode(encode(deep, "TIFF"))[..., 0], deep)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
def test_colour_types_become_gray(mode, encode, gray):
  image = Image.fromarray(gray).convert(mode)
  found = decode.decode(encode(image))
  assert found.shape == (40, 56, 1) and found.dtype == np.uint8
  if mode == "1":
    assert set(np.unique(found)) == {0, 255}
  elif mode == "P":
    assert np.abs(found[..., 0].astype(int) - gray).max() <= 40  # the palette's own loss
  else:
    np.testing.assert_array_equal(found[..., 0], gray)


def test_alpha_does_not_darken(encode, gray):
  rgba = np.dstack([gray, gray, gray, np.zeros_like(gray)])
  np.testing.assert_array_equal(decode.decode(encode(rgba))[..., 0], gray)


def test_rgb_weights_are_luma(encode):
  rgb = np.zeros((20, 20, 3), np.uint8)
  rgb[..., 1] = 200
  assert abs(int(decode.decode(encode(rgb))[0, 0, 0]) - round(0.587 * 200)) <= 1


@pytest.mark.parametrize(
  "make, reason",
  [
    (lambda encode, texture: b"", "0 bytes"),
    (lambda encode, texture: b"this is not an image at all", "not a PNG, JPEG, TIFF, DICOM"),
    (lambda encode, texture: encode(texture(300, 300), "JPEG")[:-3000], "damaged or cut short"),
    (lambda encode, texture: encode(texture(300, 300))[:-3000], "damaged or cut short"),
    (lambda encode, texture: encode(np.full((1, 1), 7, np.uint8)), "1 x 1 pixels"),
    (lambda encode, texture: encode(texture(8, 400)), "400 x 8 pixels"),
    (lambda encode, texture: b"<!DOCTYPE html><html>Log in</html>", "a web page"),
    (lambda encode, texture: b"%PDF-1.7", "a PDF"),
  ],
)
def test_bad_images_say_why(make, reason, encode, texture):
  with pytest.raises(decode.BadImage, match=reason) as error:
    decode.decode(make(encode, texture), "some/file.png")
  assert str(error.value).startswith("some/file.png: ") and "\n" not in str(error.value)


def test_a_bomb_is_refused_by_its_header():
  def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

  header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
  rest = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
  with pytest.raises(decode.BadImage, match=r"too many pixels|60000"):
    decode.decode(b"\x89PNG\r\n\x1a\n" + header + rest)


def test_jpeg_decoded_smaller_is_large_enough_and_close(encode, texture):
  # What a radiograph of 1600 pixels becomes at 100: by the short way and by the long one.
  small = Image.fromarray(texture(160, 200))
  large = np.asarray(small.resize((2000, 1600), Image.Resampling.BICUBIC))
  data = encode(large, "JPEG", quality=95)
  short = decode.decode(data, at_least=100)
  assert min(short.shape[:2]) >= 200 and short.shape[0] < 1600
  assert decode.decode(data, at_least=900).shape == (1600, 2000, 1)
  a, b = (windowing.resize(im, 100).astype(float) for im in (short, decode.decode(data)))
  assert np.abs(a - b).mean() < 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "I", "I;16", "F"])
def test_bits_are_those_of_the_decoded_image(mode, encode, gray):
  image = Image.fromarray(gray).convert("I" if mode == "I;16" else mode)
  data = encode(image.convert(mode), "TIFF" if mode in ("F", "I", "LA", "P") else "PNG")
  assert decode.bit_depth(data) == 8 * decode.decode(data).itemsize
  with pytest.raises(decode.BadImage, match="0 bytes"):
    decode.bit_depth(b"")
  with pytest.raises(decode.BadImage, match="not a PNG"):
    decode.bit_depth(b"no image")
