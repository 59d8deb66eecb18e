"""Damaged images of every format that is read, and what becomes of them.

python tests/hostile_images.py 10000 [SEED]   # that many files, in two threads
"""

from __future__ import annotations

import collections
import concurrent.futures
import io
import random
import sys
import time

import dicoms
import imagecodecs
import numpy as np
import tifffile
from PIL import Image
from pydicom import uid

from cxrjax.data.decoding import decode

LOST = ("crashed the decoder", "processor time", "more memory")  # reasons that cost a process


def healthy() -> dict[str, bytes]:
  """A small picture in every format."""
  y, x = np.mgrid[:120, :160]
  deep = ((np.sin(x / 9) + np.cos(y / 7) + 2) * 1000).astype(np.uint16)
  gray = (deep >> 4).astype(np.uint8)

  def pillow(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, kind, **options)
    return buffer.getvalue()

  def tiff(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, metadata=None, **options)
    return buffer.getvalue()

  return {
    "PNG": pillow("PNG"),
    "PNG of 16 bits": imagecodecs.png_encode(deep),
    "GIF": pillow("GIF"),
    "WebP": pillow("WEBP"),
    "BMP": pillow("BMP"),
    "JPEG": pillow("JPEG"),
    "progressive JPEG": pillow("JPEG", progressive=True),
    "12-bit JPEG": imagecodecs.jpeg_encode(deep, bitspersample=12),
    "JPEG-LS": imagecodecs.jpegls_encode(deep),
    "JPEG 2000": imagecodecs.jpeg2k_encode(deep, reversible=True, level=0),
    "PGM": b"P5 160 120 65535\n" + deep.astype(">u2").tobytes(),
    "TIFF": tiff(deep),
    "LZW": tiff(deep, compression="lzw"),
    "tiles": tiff(deep, tile=(32, 32), compression="zlib"),
    "JPEG in TIFF": tiff(gray, compression="jpeg"),
    "pages": tiff(np.stack([deep] * 3), photometric="minisblack"),
    "RGB": tiff(np.stack([deep] * 3, -1), photometric="rgb"),
    **{
      syntax.name: dicoms.dicom(deep, syntax, 12)
      for syntax in (
        uid.ExplicitVRLittleEndian,
        uid.ImplicitVRLittleEndian,
        uid.JPEG2000Lossless,
        uid.JPEGLSLossless,
        uid.RLELossless,
        uid.DeflatedExplicitVRLittleEndian,
      )
    },
  }


def damaged(data: bytes, rng: random.Random) -> bytes:
  """A file with some of its bytes changed, most of them near its beginning, or cut short."""
  broken = bytearray(data)
  if rng.random() < 0.2:
    del broken[rng.randrange(1, len(broken)) :]
  for _ in range(rng.choice((1, 1, 2, 4, 16))):
    at = rng.randrange(min(len(broken), rng.choice((200, 2000, len(data)))))
    kind = rng.random()
    if kind < 0.6:
      broken[at] = rng.randrange(256)
    elif kind < 0.85:
      number = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80"))
      broken[at : at + 4] = number[: len(broken) - at]
    else:
      del broken[at : at + 2]
    broken = broken or bytearray(b"\0")
  return bytes(broken)


def try_all(count: int, seed: int) -> tuple[collections.Counter, list[str]]:
  """Decodes damaged files: how many were read or refused, and what went wrong otherwise.

  Files that cost a decoder its process are named.
  """
  whole = list(healthy().items())

  def one(i: int) -> tuple[str, str]:
    rng = random.Random(seed * 1_000_003 + i)
    kind, data = whole[i % len(whole)]
    try:
      found = decode.decode_with_window(damaged(data, rng), rng.choice((None, 64)))
      assert found.pixels.dtype in (np.uint8, np.uint16) and found.pixels.ndim == 3
      said = "read"
    except decode.BadImage as error:
      said = str(error) if any(reason in str(error) for reason in LOST) else "refused"
      said = said if "\n" not in str(error) else f"two lines: {error!r}"
    return said, f"file {i} ({kind}): {said}"

  outcomes: collections.Counter = collections.Counter()
  remarks = []
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for said, text in pool.map(one, range(count)):
      outcomes[said if said in ("read", "refused") else "lost"] += 1
      if said not in ("read", "refused"):
        remarks.append(text)
  return outcomes, remarks


if __name__ == "__main__":
  number, start = int(sys.argv[1]), time.perf_counter()
  counts, said = try_all(number, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
  print(*said, dict(counts), f"{time.perf_counter() - start:.0f} s", sep="\n")
