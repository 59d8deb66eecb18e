"""What grows with the number of images, from a thousand to a million: time, disk, memory.

    python benchmarks/bench_growth.py
    python benchmarks/bench_growth.py --counts 1000 10000 --json=growth.json

A tree of small JPEGs (hard links to 64 phantom radiographs, a thousand to a folder) is indexed,
indexed again from its cache, decoded into the cache and streamed to the device. Every count runs in
a process of its own, so that its peak memory is its own; `after opening` is what the process needs
once the source and its table of ids and patients are there, `streaming adds` what serving batches
adds to that.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from sides import machine

HERE = pathlib.Path(__file__).resolve().parent
BASES = 64


def make_tree(root, count, side):
  """Hard links, a thousand to a folder; a filesystem allows 65,000 to one file."""
  from PIL import Image

  from cxrjax.data import open_source

  source, bases = open_source("phantom", n=BASES, size=side), root / "bases"
  bases.mkdir(parents=True)
  for i in range(BASES):
    Image.fromarray(source[i].image[..., 0]).save(bases / f"{i}.jpg", quality=85)
  tree = root / "tree"
  for start in range(0, count, 1000):
    folder = tree / f"{start // 1000:04d}"
    folder.mkdir(parents=True)
    for i in range(start, min(start + 1000, count)):
      os.link(bases / f"{i % BASES}.jpg", folder / f"{i:07d}.jpg")
  return tree


def resident():
  """This process's memory in MB: now, and at its peak."""
  found = {}
  for line in pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines():
    name, _, rest = line.partition(":")
    if name in ("VmRSS", "VmHWM", "RssAnon"):
      found[name] = int(rest.split()[0]) / 1024
  return found


def measure(tree, cache, size, steps, batch):
  """One count; prints one JSON line."""
  import jax

  from cxrjax.data import open_source
  from cxrjax.data.loading import decoded_cache
  from cxrjax.data.loading.loader import Loader

  jax.devices()
  began, before = {}, resident()

  def timed(name, work):
    start = time.perf_counter()
    result = work()
    began[name] = time.perf_counter() - start
    return result

  options = {"split": "all", "cache_dir": str(cache)}
  timed("first index", lambda: open_source(f"folder:{tree}", **options))
  source = timed("index again", lambda: open_source(f"folder:{tree}", **options))
  opened = resident()
  images = timed(
    "decode", lambda: decoded_cache.load_images(source, size, cache_dir=str(cache), progress=False)
  )
  disk = sum(f.stat().st_size for f in pathlib.Path(cache).rglob("*") if f.is_file())
  decoded = resident()
  loader = Loader(
    images,
    batch_size=batch,
    seed=0,
    storage="streamed",
    size=size,
    cache_dir=str(cache),
    progress=False,
  )

  def serve():
    for _, _, block in loader.iterate(0, steps):
      jax.block_until_ready(block)

  timed("streaming", serve)
  print(
    json.dumps(
      {
        "n": len(source),
        "seconds": began,
        "disk_mb": disk / 1e6,
        "start_mb": before["RssAnon"],
        "opened_mb": opened["RssAnon"],
        "decoded_mb": decoded["RssAnon"],
        "streamed_mb": resident()["RssAnon"],
        "images_per_s": steps * batch / began["streaming"],
      }
    )
  )


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
  add("--side", type=int, default=48, help="pixels a side of the files")
  add("--size", type=int, default=32, help="pixels a side of the decoded images")
  add("--batch", type=int, default=256)
  add("--steps", type=int, default=100, help="batches to stream")
  add("--folder", default="", help="where to make the files; the system's temporary folder")
  add("--json", default="", help="write the results to this file")
  add("--worker", nargs=2, default=None, help=argparse.SUPPRESS)
  args = parser.parse_args()
  sys.path.insert(0, str(HERE.parent))
  if args.worker:
    measure(*args.worker, args.size, args.steps, args.batch)
    return
  rows = []
  print(
    f"{'images':>9}{'first index':>13}{'index again':>13}{'decode':>10}{'disk':>10}"
    f"{'after opening':>15}{'streaming adds':>16}{'images/s':>10}"
  )
  for count in args.counts:
    root = pathlib.Path(tempfile.mkdtemp(dir=args.folder or None))
    try:
      tree = make_tree(root, count, args.side)
      command = [
        sys.executable,
        __file__,
        "--worker",
        str(tree),
        str(root / "cache"),
        f"--size={args.size}",
        f"--batch={args.batch}",
        f"--steps={args.steps}",
      ]
      done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
      row = json.loads(done.stdout.splitlines()[-1])
    finally:
      shutil.rmtree(root, ignore_errors=True)
    rows.append(row)
    seconds = row["seconds"]
    print(
      f"{row['n']:9}{seconds['first index']:11.2f} s{seconds['index again']:11.2f} s"
      f"{seconds['decode']:8.1f} s{row['disk_mb']:7.0f} MB"
      f"{row['opened_mb'] - row['start_mb']:12.0f} MB"
      f"{row['streamed_mb'] - row['decoded_mb']:13.0f} MB{row['images_per_s']:10.0f}",
      flush=True,
    )
  if args.json:
    pathlib.Path(args.json).write_text(
      json.dumps({"machine": machine(), "rows": rows}, indent=1), encoding="utf-8"
    )


if __name__ == "__main__":
  main()
