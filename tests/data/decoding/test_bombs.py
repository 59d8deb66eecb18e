"""Files of at most a megabyte that ask for as many pixels as are read: what they cost at most."""

import gzip
import io
import subprocess
import sys
import zlib

import dicoms
import numpy as np
import pytest
import tifffile
from pydicom import uid
from small import REPOSITORY

SIDE = 8_000
MEMORY = 1e9  # bytes of the program and its decoder together, of which the program has 0.25
PROGRAM = """
import resource, sys
from cxrjax.data.decoding import decode
data = open(sys.argv[1], "rb").read()
try:
  said = str(decode.decode_with_window(data).pixels.shape)
except decode.BadImage as error:
  said = str(error)
decode._pool.close()
own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
# Not of getrusage, which counts what the process that started this one had.
peaks = int(own.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(1024 * sum(peaks), said)
"""


def chunk(kind, data):
  return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def deflated(size, head=b""):
  """Zeros behind a head, without their being in memory at once."""
  packed = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
  found = [packed.compress(head)]
  found += [packed.compress(bytes(min(1 << 24, size - at))) for at in range(0, size, 1 << 24)]
  return b"".join(found) + packed.flush()


def png():
  rows = SIDE * (1 + 6 * SIDE)
  head = np.array([SIDE, SIDE], ">u4").tobytes() + bytes([16, 2, 0, 0, 0])
  adler = (1 + (rows % 65521 << 16)).to_bytes(4, "big")
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", head)
    + chunk(b"IDAT", b"\x78\x9c" + deflated(rows) + adler)
    + chunk(b"IEND", b"")
  )


def tiff():
  opened = io.BytesIO()
  tifffile.imwrite(
    opened,
    np.zeros((SIDE, SIDE, 3), np.uint16),
    photometric="rgb",
    rowsperstrip=100,
    compression="zlib",
    metadata=None,
  )
  return opened.getvalue()


def dicom(kind):
  small = dicoms.opened(dicoms.dicom(np.zeros((20, 20), np.uint16)))
  small.Rows = small.Columns = SIDE
  small.PixelData = b""
  small.file_meta.TransferSyntaxUID = kind
  data = dicoms.saved(small)
  at = data.rindex(b"\xe0\x7f\x10\x00") if kind != uid.DeflatedExplicitVRLittleEndian else None
  if at is not None:
    return gzip.compress(data[: at + 8] + (2 * SIDE**2).to_bytes(4, "little") + bytes(2 * SIDE**2))
  start = data.index(b"DICM")
  meta = start + 16 + int.from_bytes(data[start + 12 : start + 16], "little")
  inside = zlib.decompress(data[meta:], -zlib.MAX_WBITS)
  at = inside.rindex(b"\xe0\x7f\x10\x00")
  return data[:meta] + deflated(2 * SIDE**2, inside[: at + 8] + (2 * SIDE**2).to_bytes(4, "little"))


BOMBS = {
  "PNG": png,
  "TIFF": tiff,
  "deflated DICOM": lambda: dicom(uid.DeflatedExplicitVRLittleEndian),
  "DICOM in gzip": lambda: dicom(uid.ExplicitVRLittleEndian),
}


@pytest.mark.full
@pytest.mark.parametrize("kind", BOMBS)
def test_a_megabyte_costs_a_gigabyte_at_most(kind, tmp_path):
  data = BOMBS[kind]()
  assert len(data) < 1.1e6
  (tmp_path / "bomb").write_bytes(data)
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, str(tmp_path / "bomb")],
    cwd=REPOSITORY,
    text=True,
    capture_output=True,
    check=True,
  )
  memory, _, said = done.stdout.partition(" ")
  assert int(memory) < MEMORY, said
