"""TIFF reader: one gray, palette or RGB image of 1 to 32 bits, unsigned, signed or float."""

from __future__ import annotations

import io
import itertools
import logging

import numpy as np
import tifffile

from cxrjax.data.decoding.samples import BadImage, Samples

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Compressions that expand their input by a factor of about a thousand at most.
_COMPRESSIONS = (
  "NONE",
  "CCITTRLE",
  "CCITT_T4",
  "CCITT_T6",
  "LZW",
  "OJPEG",
  "JPEG",
  "ADOBE_DEFLATE",
  "DEFLATE",
  "PACKBITS",
  "APERIO_JP2000_RGB",
  "APERIO_JP2000_YCBC",
  "JPEG2000",
)
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_MAX_PAGES = 100  # each costs time, however small
_KINDS = {"UINT": "u", "INT": "i", "IEEEFP": "f"}
_CHANNELS = {"MINISBLACK": 1, "MINISWHITE": 1, "RGB": 3, "PALETTE": 1, "YCBCR": 3}

# It logs damage, which is refused here, and irrelevant tags.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)


def open_tiff(data: bytes) -> Samples:
  """Describes the image in a TIFF, from its header.

  Of several pages the one of full resolution is read, if the others are thumbnails of it, by their
  tags or by being half its size or less.

  Raises:
    BadImage: it holds several images, or one of an unsupported kind.
  """
  with tifffile.TiffFile(io.BytesIO(data)) as opened:
    index, skipped = _choose(opened)
    page = _full_page(opened.pages[index])
    photometric, compression = _name(page.photometric), _name(page.compression)
    if compression not in _COMPRESSIONS:
      raise BadImage(f"it is TIFF packed with {compression}; save it with LZW or Deflate")
    channels = _CHANNELS.get(photometric)
    jpeg = "JP" in compression
    if channels is None or (photometric == "YCBCR" and not jpeg):
      raise BadImage(f"it is TIFF of the kind {photometric}; convert it to gray or RGB")
    kind, bits = _KINDS.get(_name(_sample_format(page)), ""), page.bitspersample
    if not isinstance(bits, int) or not kind or bits > 32:
      described = f"{bits}-bit {_sample_type(page)}"
      raise BadImage(f"TIFF of {described} is not read; convert it to 16-bit gray")
    extra = page.samplesperpixel - channels
    if extra not in (0, 1) or page.imagedepth > 1:  # an extra channel is alpha
      raise BadImage(f"it is TIFF of {page.samplesperpixel} channels; convert it to gray or RGB")
    shape, turn = (page.imagelength, page.imagewidth), page.tags.valueof(274, 1)
  separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1

  def load(at_least: int | None) -> np.ndarray:
    from cxrjax.data.decoding.formats import as_bad_image

    with as_bad_image(), tifffile.TiffFile(io.BytesIO(data)) as reopened:
      page = _full_page(reopened.pages[index])
      values = page.asarray(maxworkers=1)
      if photometric == "PALETTE":
        if page.colormap is None:
          raise BadImage("it is damaged or cut short (a palette TIFF without a palette)")
        colors = (page.colormap >> 8).astype(np.uint8)  # 16 bits, of which writers fill 8
        return np.moveaxis(colors[:, values], 0, -1)
      values = values.reshape((-1, *shape) if separate else (*shape, -1))
      if separate:
        values = np.moveaxis(values, 0, -1)
      return values[..., :3] if channels == 3 else values[..., 0]

  note = f"it has {skipped} smaller pages beside the picture, which are not read"
  return Samples(
    shape,
    8 if photometric == "PALETTE" else bits,
    load,
    kind=kind,
    white_is_zero=photometric == "MINISWHITE",
    orientation=turn if turn in range(1, 9) else 1,
    notes=(note,) if skipped else (),
  )


def _choose(opened: tifffile.TiffFile) -> tuple[int, int]:
  """Index of the page to read, and the number of pages taken for thumbnails without such a tag."""
  first_pages = list(itertools.islice(opened.pages, _MAX_PAGES + 1))
  if len(first_pages) > _MAX_PAGES:
    raise BadImage(f"it has more than {_MAX_PAGES} pages; save the relevant one as a separate file")
  pages = [
    (i, page)
    for i, page in enumerate(map(_full_page, first_pages))
    if not page.tags.valueof(254, 0) & (_REDUCED | _MASK)
  ]
  if not pages:
    raise BadImage("it is TIFF with only thumbnails and masks")
  index, largest = max(pages, key=lambda item: item[1].imagelength * item[1].imagewidth)
  others = [page for i, page in pages if i != index]
  if any(
    2 * page.imagelength > largest.imagelength or 2 * page.imagewidth > largest.imagewidth
    for page in others
  ):
    raise BadImage(f"it has {len(pages)} pages; save the relevant one as a separate file")
  return index, len(others)


def _full_page(page: tifffile.TiffPage | tifffile.TiffFrame) -> tifffile.TiffPage:
  """The page with its tags; raises BadImage for one without, a frame of a microscope's stack."""
  if not isinstance(page, tifffile.TiffPage):
    raise BadImage("it is a microscope's TIFF; save the picture as a separate file")
  return page


def _sample_format(page: tifffile.TiffPage) -> object:
  code = page.sampleformat
  return tifffile.SAMPLEFORMAT(code) if code in tuple(tifffile.SAMPLEFORMAT) else code


def _name(value: object) -> str:
  return str(getattr(value, "name", value))


def _sample_type(page: tifffile.TiffPage) -> str:
  return {"UINT": "integers", "INT": "signed integers", "IEEEFP": "floats"}.get(
    _name(_sample_format(page)), "values of another type"
  )
