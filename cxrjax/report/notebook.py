"""Shows pictures and pages in a notebook; needs nothing but Pillow."""

from __future__ import annotations

import dataclasses
import html
import importlib.resources
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cxrjax.report.html.element import Html
from cxrjax.report.html.pictures import gray

GAP = 6


def sheet(
  pictures: Sequence[np.ndarray], captions: Sequence[str] = (), *, columns: int = 6, side: int = 128
) -> Image.Image:
  """Tiles pictures into one image, which a notebook shows at the end of a cell.

  Args:
    pictures: gray, [h w] or [h w 1], stretched where not uint8 (`pictures.gray`); or colour,
      uint8 [h w 3].
    captions: below the pictures, one each; may be empty.
    columns: most pictures in a row.
    side: longest side of a picture in pixels.

  Raises:
    ValueError: no pictures, or not one caption for each.
  """
  if not len(pictures) or (len(captions) and len(captions) != len(pictures)):
    raise ValueError(f"{len(pictures)} pictures and {len(captions)} captions")
  columns = min(columns, len(pictures))
  rows = -(-len(pictures) // columns)
  caption_height = 18 if len(captions) else 0
  font = ImageFont.load_default(12)
  canvas = Image.new(
    "RGB",
    (columns * (side + GAP) + GAP, rows * (side + caption_height + GAP) + GAP),
    (255, 255, 255),
  )
  draw = ImageDraw.Draw(canvas)
  for i, array in enumerate(pictures):
    array = np.asarray(array)
    image = Image.fromarray(array if array.ndim == 3 and array.shape[-1] == 3 else gray(array))
    scale = side / max(image.size)
    # Small pictures are enlarged without smoothing, to show the pixels that the network sees.
    resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    image = image.resize([max(1, round(scale * s)) for s in image.size], resampling)
    x, y = GAP + i % columns * (side + GAP), GAP + i // columns * (side + caption_height + GAP)
    canvas.paste(image, (x, y))
    if len(captions):
      text = captions[i]
      while text and draw.textlength(text, font) > side:
        text = text[:-1]
      draw.text((x, y + side + 3), text, (40, 40, 40), font)
  return canvas


@dataclasses.dataclass(frozen=True)
class Framed:
  """A page in an iframe, which keeps its style apart from the notebook's.

  Attributes:
    page: a whole HTML page.
    height: of the frame in pixels.
  """

  page: str
  height: int

  def _repr_html_(self) -> str:
    return (
      f'<iframe srcdoc="{html.escape(self.page, quote=True)}" width="100%" '
      f'height="{self.height}" style="border:0"></iframe>'
    )


def framed(what: Html | str | os.PathLike[str], height: int = 360) -> Framed:
  """Frames a chart of `cxrjax.report.html.line_chart`, or the page at a path, for a notebook."""
  if isinstance(what, Html):
    style = importlib.resources.files("cxrjax.report.html").joinpath("style.css").read_text()
    return Framed(f"<!doctype html><style>{style}</style><main>{what}</main>", height)
  return Framed(pathlib.Path(what).read_text(), height)
