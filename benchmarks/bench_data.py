"""How fast radiographs are decoded, cached and served, beside torchvision and plain grain.

    python benchmarks/bench_data.py
    python benchmarks/bench_data.py --peer-python=/path/to/other/venv/bin/python --rounds=5

The same files, drawn once: phantom radiographs of `--side` pixels as 8-bit JPEG, 8-bit PNG, 16-bit
PNG and uncompressed 16-bit DICOM. All sides give square images of `--size` pixels and take turns in
processes of their own; medians over the turns are compared, as a ratio of paired turns.

  decode      files to pixels on one thread
  raw         batches straight from the files, on all cores, as a first epoch or a set too large to
              keep would have it
  cached      batches of the decoded cache, streamed to the device
  resident    batches gathered on the device from resident pixels

Plain grain is `MapDataset.source(files).shuffle().map(PIL decode, resize).batch()` with threads;
torchvision is a `DatasetFolder` whose loader is PIL (pydicom for DICOM) with `Resize` and
`PILToTensor` in a `DataLoader`. Both decode again every epoch, as their users do. cxrjax windows
16-bit images on the device; the others scale by 1/256, which keeps less.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

from sides import Worker, machine, serve

from cxrjax.data import inspection

HERE = pathlib.Path(__file__).resolve().parent
FORMATS = ("jpeg8", "png8", "png16", "dicom16")
SUFFIX = {"jpeg8": ".jpg", "png8": ".png", "png16": ".png", "dicom16": ".dcm"}


def make_files(folder, count, side):
  """Phantom radiographs with film grain, in every format; grain is what makes PNG slow."""
  import numpy as np
  from PIL import Image

  from cxrjax.data import open_source

  source = open_source("phantom", n=max(8, count), size=side)
  rng = np.random.default_rng(0)
  for form in FORMATS:
    (folder / form / "any").mkdir(parents=True)
  for i in range(count):
    fine = source[i].image[..., 0].astype(np.float32) * 16 + rng.normal(0, 24, (side, side))
    wide = np.clip(fine, 0, 4095).astype(np.uint16)
    narrow = (wide >> 4).astype(np.uint8)

    def path(form, i=i):
      return folder / form / "any" / f"{i:05d}{SUFFIX[form]}"

    Image.fromarray(narrow).save(path("jpeg8"), quality=90)
    Image.fromarray(narrow).save(path("png8"))
    Image.fromarray(wide).save(path("png16"))
    _dicom(path("dicom16"), wide)


def _dicom(path, pixels):
  import pydicom
  from pydicom.uid import ExplicitVRLittleEndian

  meta = pydicom.dataset.FileMetaDataset()
  meta.TransferSyntaxUID = ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
  meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
  data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
  data.SOPClassUID, data.SOPInstanceUID = (
    meta.MediaStorageSOPClassUID,
    (meta.MediaStorageSOPInstanceUID),
  )
  data.Modality, data.ViewPosition = "DX", "PA"
  data.Rows, data.Columns = pixels.shape
  data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
  data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
  data.WindowCenter, data.WindowWidth = 2048, 4096
  data.PixelData = pixels.tobytes()
  data.save_as(path, enforce_file_format=True)


class Ours:
  """cxrjax: the folder source, the decoded cache and the loader."""

  def __init__(self, spec):
    import jax

    from cxrjax.data import open_source

    self.jax, self.spec = jax, spec
    self.cache = pathlib.Path(spec["folder"]) / "cache"
    self.sources = {
      f: open_source(f"folder:{spec['folder']}/{f}", split="all", cache_dir=str(self.cache))
      for f in FORMATS
    }
    self.loaders = {}

  def decode(self, form):
    from cxrjax.data.loading import decoded_cache

    source, n, size = self.sources[form], self.spec["count"], self.spec["size"]
    bits = inspection.bits_of(source)
    start = time.perf_counter()
    for i in range(n):
      decoded_cache.to_square(source.read(i, size), size, "squash", bits)
    return n / (time.perf_counter() - start)

  def _serve(self, form, storage):
    """Images a second, pixels on the device and windowed where they need it."""
    from cxrjax.data.loading import decoded_cache
    from cxrjax.data.loading.loader import Loader

    key = form, storage
    if key not in self.loaders:
      source = self.sources[form]
      if storage != "raw":
        source = decoded_cache.load_images(
          source, self.spec["size"], cache_dir=self.cache, progress=False
        )
      loader = Loader(
        source,
        batch_size=self.spec["batch"],
        seed=0,
        storage=("resident" if storage == "resident" else "streamed"),
        size=self.spec["size"],
        cache_dir=self.cache,
        progress=False,
      )
      self.loaders[key] = (
        loader,
        self.jax.jit(
          lambda data, batch: loader.fetch(data, batch)["image"].sum(
            axis=(1, 2, 3), dtype="float32"
          )
        ),
        0,
      )
    loader, use, t = self.loaders[key]
    steps = self.spec["steps"] * (1 if storage == "raw" else 20)
    start, done = time.perf_counter(), 0
    for _, k, block in loader.iterate(t, t + steps, 1):
      for j in range(k):
        done = use(loader.data, self.jax.tree.map(lambda x, j=j: x[j], block))
    self.jax.block_until_ready(done)
    self.loaders[key] = loader, use, t + steps
    return steps * self.spec["batch"] / (time.perf_counter() - start)

  def run(self, kind, form):
    return {"rate": self.decode(form) if kind == "decode" else self._serve(form, kind)}

  def memory(self, form):
    """Bytes of one image resident on the device."""
    data = self.loaders[form, "resident"][0].data
    return {"bytes": sum(x.nbytes for x in self.jax.tree.leaves(data)) / self.spec["count"]}

  def answer(self, kind, form=""):
    return self.memory(form) if kind == "memory" else self.run(kind, form)


class Grain:
  """grain's own pipeline, as its documentation shows it."""

  def __init__(self, spec):
    self.spec = spec
    self.files = {
      f: sorted(map(str, (pathlib.Path(spec["folder"]) / f / "any").iterdir())) for f in FORMATS
    }

  def load(self, path):
    import numpy as np
    from PIL import Image

    if path.endswith(".dcm"):
      import pydicom

      image = Image.fromarray((pydicom.dcmread(path).pixel_array >> 4).astype(np.uint8))
    else:
      image = Image.open(path)
      if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 4).astype(np.uint8))
    return np.asarray(image.convert("L").resize((self.spec["size"],) * 2, Image.BICUBIC))[..., None]

  def answer(self, kind, form):
    import grain

    files, batch = self.files[form], self.spec["batch"]
    start = time.perf_counter()
    if kind == "decode":
      for path in files:
        self.load(path)
      return {"rate": len(files) / (time.perf_counter() - start)}
    images = self.spec["steps"] * batch
    data = grain.MapDataset.source(files).shuffle(seed=0).repeat().map(self.load).batch(batch)
    stream = iter(
      data[: self.spec["steps"]].to_iter_dataset(
        grain.ReadOptions(num_threads=os.cpu_count(), prefetch_buffer_size=4)
      )
    )
    for _ in range(self.spec["steps"]):
      next(stream)
    return {"rate": images / (time.perf_counter() - start)}


def parse():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--count", type=int, default=64, help="files of each format")
  add("--side", type=int, default=1024, help="pixels a side of the files")
  add("--size", type=int, default=256, help="pixels a side of the images served")
  add("--batch", type=int, default=32)
  add("--steps", type=int, default=4, help="batches a turn, of those that decode")
  add("--rounds", type=int, default=5, help="turns of each side")
  add("--peer-python", default="", help="an interpreter that has torch, torchvision and pydicom")
  add("--json", default="", help="write the results to this file")
  add("--worker", default="", help=argparse.SUPPRESS)
  add("--spec", default="", help=argparse.SUPPRESS)
  return parser.parse_args()


def main():
  args = parse()
  sys.path.insert(0, str(HERE.parent))
  if args.worker:
    side = {"cxrjax": Ours, "grain": Grain}[args.worker](json.loads(args.spec))
    serve({"ready": True}, side.answer)
    return
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    make_files(folder, args.count, args.side)
    kept = ("count", "size", "batch", "steps")
    spec = json.dumps({**{k: getattr(args, k) for k in kept}, "folder": temporary})
    me = [sys.executable, __file__, "--spec", spec, "--worker"]
    sides = {name: Worker(name, [*me, name]) for name in ("cxrjax", "grain")}
    if args.peer_python:
      sides["torchvision"] = Worker(
        "torchvision", [args.peer_python, str(HERE / "peer_data.py"), spec]
      )
    files = {
      f: statistics.mean(p.stat().st_size for p in (folder / f / "any").iterdir()) for f in FORMATS
    }
    result = measure(sides, args) | {"file_bytes": files}
    for side in sides.values():
      side.close()
  print(table(result))
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(result, indent=1), encoding="utf-8")


def measure(sides, args):
  """All sides in turn; images/s of every turn, medians, ratios of paired turns."""
  kinds = {"cxrjax": ("decode", "raw", "cached", "resident")}
  rates = {}
  for form in FORMATS:
    for name, side in sides.items():
      for kind in kinds.get(name, ("decode", "raw")):
        side(kind, form=form)  # caches, compilation, workers
    for turn in range(args.rounds):
      order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
      for kind in kinds["cxrjax"]:
        for name in order:
          if kind in kinds.get(name, ("decode", "raw")):
            rates.setdefault((form, kind, name), []).append(sides[name](kind, form=form)["rate"])
  rows = {}
  for (form, kind, name), turns in rates.items():
    ours = rates[form, kind, "cxrjax"]
    rows.setdefault(form, {}).setdefault(kind, {})[name] = {
      "images_per_s": statistics.median(turns),
      "turns": turns,
      "ratio": statistics.median(a / b for a, b in zip(ours, turns, strict=True)),
    }
  return {
    "spec": {
      k: v for k, v in vars(args).items() if k not in ("worker", "json", "peer_python", "spec")
    },
    "machine": machine(),
    "rows": rows,
    "resident_bytes": {f: sides["cxrjax"]("memory", form=f)["bytes"] for f in FORMATS},
  }


def table(result):
  spec, peers = (
    result["spec"],
    sorted({name for row in result["rows"].values() for cell in row.values() for name in cell}),
  )
  lines = [
    f"{spec['count']} files of {spec['side']} px a format, served at {spec['size']} px; "
    f"{result['machine']['cores']} x {result['machine']['cpu']}, "
    f"{result['machine']['date']}; images/s, median of {spec['rounds']} turns",
    "",
    f"{'':10}{'':10}" + "".join(f"{name:>14}" for name in peers) + "   cxrjax is",
  ]
  for form, row in result["rows"].items():
    for kind, cells in row.items():
      ratios = ", ".join(
        f"{cells[name]['ratio']:.2f}x {name}"
        for name in peers
        if name in cells and name != "cxrjax"
      )
      lines.append(
        f"{form:10}{kind:10}"
        + "".join(
          f"{cells[name]['images_per_s']:14.0f}" if name in cells else f"{'':14}" for name in peers
        )
        + f"   {ratios}"
      )
  lines += [
    "",
    "bytes an image: "
    + ", ".join(
      f"{f} {result['file_bytes'][f] / 1e3:.0f} kB file, {n / 1e3:.0f} kB resident"
      for f, n in result["resident_bytes"].items()
    ),
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  main()
