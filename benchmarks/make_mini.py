"""Makes `cxrjax/data/mini/films.zip` from the published archive of Kermany et al.

    python benchmarks/make_mini.py --manual_dir=FOLDER_OF_THE_ARCHIVE

Whole patients, in the order of a hash of their names, until each part has as many films as it
should, normal ones and pneumonia in the proportion of the official parts. Train and val are of the
official training part, test of the official test part. Each film becomes 64 x 64 pixels.
"""

import hashlib
import io
import pathlib
import zipfile

from absl import app, flags
from PIL import Image

from cxrjax.core import tables
from cxrjax.data import open_source
from cxrjax.data.decoding import windowing

SIZE = 64
PARTS = {"train": ("train", 1000), "val": ("train", 200), "test": ("test", 400)}
OUT = pathlib.Path(__file__).parent.parent / "cxrjax" / "data" / "mini" / "films.zip"
MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "Where the archive lies.", required=True)


def place(patient: str) -> bytes:
  """Where a patient comes in the order."""
  return hashlib.sha256(f"mini {patient}".encode()).digest()


def chosen(table, count: int, label: int, taken: set[str]) -> list[int]:
  """Rows of about `count` films that show a class, of whole patients who are not taken yet."""
  of: dict[str, list[int]] = {}
  for row, patient in enumerate(table.patients):
    if table.labels[row, label] == 1 and patient not in taken:
      of.setdefault(patient, []).append(row)
  rows: list[int] = []
  for patient in sorted(of, key=place):
    if len(rows) + len(of[patient]) <= count:
      rows += of[patient]
      taken.add(patient)
  return rows


def main(argv: list[str]) -> None:
  del argv
  taken: set[str] = set()
  listed = [("path", "class", "patient", "split")]
  with zipfile.ZipFile(OUT, "w", zipfile.ZIP_STORED) as packed:

    def add(name: str, data: bytes) -> None:
      packed.writestr(zipfile.ZipInfo(name, (2018, 2, 22, 0, 0, 0)), data)

    for part, (official, count) in PARTS.items():
      source = open_source("tfds:chest_xray_pneumonia", split=official, manual_dir=MANUAL_DIR.value)
      share = source.table.labels.mean(0)
      for label, name in enumerate(source.info.classes):
        for row in sorted(chosen(source.table, round(count * share[label]), label, taken)):
          film = windowing.resize(windowing.to_uint8(source[row].image, (0, 255)), SIZE)
          path = f"{part}/{pathlib.PurePath(source.table.ids[row]).stem}.png"
          encoded = io.BytesIO()
          Image.fromarray(film[..., 0]).save(encoded, "PNG", optimize=True)
          add(path, encoded.getvalue())
          listed.append((path, name, source.table.patients[row], part))
    text = io.StringIO()
    tables.write(text, listed)
    add("films.csv", text.getvalue().encode())
  print(f"{OUT}: {len(listed) - 1} films, {OUT.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
  app.run(main)
