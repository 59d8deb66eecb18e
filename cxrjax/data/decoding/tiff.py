"""TIFF: gray, palette and RGB of 1 to 32 bits, unsigned, signed or float; one picture a file."""

from __future__ import annotations

import io
import itertools
import logging

import numpy as np
import tifffile

from cxrjax.data.decoding.samples import BadImage, Samples

MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Compressions whose output is bounded by their input times a thousand or so.
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
_PAGES = 100  # looked at; each costs time, however small
_KINDS = {"UINT": "u", "INT": "i", "IEEEFP": "f"}
_CHANNELS = {"MINISBLACK": 1, "MINISWHITE": 1, "RGB": 3, "PALETTE": 1, "YCBCR": 3}

# It reports damage that is refused here, and tags that do not matter.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)


def open_tiff(data: bytes) -> Samples:
  """The picture of a TIFF, by its header.

  Of several pages the one of full resolution is read, where the others say, or show by half its
  size or less, that they are thumbnails of it.

  Raises:
    BadImage: it has several pictures, or one of a kind that is not read.
  """
  with tifffile.TiffFile(io.BytesIO(data)) as opened:
    index, skipped = _choose(opened)
    page = _whole(opened.pages[index])
    photometric, compression = _name(page.photometric), _name(page.compression)
    if compression not in _COMPRESSIONS:
      raise BadImage(f"it is TIFF packed with {compression}; save it with LZW or Deflate")
    channels = _CHANNELS.get(photometric)
    jpeg = "JP" in compression
    if channels is None or (photometric == "YCBCR" and not jpeg):
      raise BadImage(f"it is TIFF of the kind {photometric}; convert it to gray or RGB")
    kind, bits = _KINDS.get(_name(_format(page)), ""), page.bitspersample
    if not isinstance(bits, int) or not kind or bits > 32:
      raise BadImage(f"TIFF of {bits}-bit {_words(page)} is not read; convert it to 16-bit gray")
    more = page.samplesperpixel - channels
    if more not in (0, 1) or page.imagedepth > 1:  # one more is alpha
      raise BadImage(f"it is TIFF of {page.samplesperpixel} channels; convert it to gray or RGB")
    shape, turn = (page.imagelength, page.imagewidth), page.tags.valueof(274, 1)
  separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1

  def load(at_least: int | None) -> np.ndarray:
    from cxrjax.data.decoding.formats import damaged

    with damaged(), tifffile.TiffFile(io.BytesIO(data)) as again:
      page = _whole(again.pages[index])
      values = page.asarray(maxworkers=1)
      if photometric == "PALETTE":
        if page.colormap is None:
          raise BadImage("it is damaged or cut short (a palette TIFF without a palette)")
        colours = (page.colormap >> 8).astype(np.uint8)  # 16 bits, of which writers fill 8
        return np.moveaxis(colours[:, values], 0, -1)
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
  """Which page is the picture, and how many thumbnails there are that do not say so."""
  found = list(itertools.islice(opened.pages, _PAGES + 1))
  if len(found) > _PAGES:
    raise BadImage(
      f"it has more than {_PAGES} pages; save the one that counts as a file of its own"
    )
  pages = [
    (i, page)
    for i, page in enumerate(map(_whole, found))
    if not page.tags.valueof(254, 0) & (_REDUCED | _MASK)
  ]
  if not pages:
    raise BadImage("it is TIFF of thumbnails and masks alone")
  index, picture = max(pages, key=lambda item: item[1].imagelength * item[1].imagewidth)
  others = [page for i, page in pages if i != index]
  if any(
    2 * page.imagelength > picture.imagelength or 2 * page.imagewidth > picture.imagewidth
    for page in others
  ):
    raise BadImage(f"it has {len(pages)} pages; save the one that counts as a file of its own")
  return index, len(others)


def _whole(page: tifffile.TiffPage | tifffile.TiffFrame) -> tifffile.TiffPage:
  """A page; what has no tags of its own is one of a microscope's many frames."""
  if not isinstance(page, tifffile.TiffPage):
    raise BadImage("it is TIFF of a microscope; save the picture as a file of its own")
  return page


def _format(page: tifffile.TiffPage) -> object:
  found = page.sampleformat
  return tifffile.SAMPLEFORMAT(found) if found in tuple(tifffile.SAMPLEFORMAT) else found


def _name(value: object) -> str:
  return str(getattr(value, "name", value))


def _words(page: tifffile.TiffPage) -> str:
  return {"UINT": "integers", "INT": "signed integers", "IEEEFP": "floats"}.get(
    _name(_format(page)), "values of another kind"
  )
