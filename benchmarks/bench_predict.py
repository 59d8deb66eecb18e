"""How many radiographs a second `python -m cxrjax.predict` gets through, and what bounds it.

    python benchmarks/bench_predict.py --workdir=RUN                                # cxrjax alone
    python benchmarks/bench_predict.py --workdir=RUN --peer-python=VENV/bin/python  # beside timm

RUN is a finished classifier without `standardize`. Files of three kinds are made up: JPEG of
224 px, JPEG of 2048 px, and 16-bit PNG of 2048 px. The peer is what one writes by hand: PIL and a
DataLoader with a worker a core, and the same weights, exported, in a timm network
(`peer_predict.py`). Both read files, predict and write a CSV; they run in processes that take
turns. Compilation and start-up are not in the turns; `start-up` is what a whole command takes with
one image.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import sides
from PIL import Image

HERE = pathlib.Path(__file__).parent
KINDS = {"jpeg224": (224, "jpg", 256), "jpeg2048": (2048, "jpg", 64), "png2048": (2048, "png", 32)}


def make(folder):
  """Files of all kinds, of phantoms with a film's grain."""
  from cxrjax.data.sources.phantom import Source

  rng = np.random.default_rng(0)
  for name, (size, ending, count) in KINDS.items():
    (folder / name).mkdir()
    source = Source(split="test", n=8, size=size)
    for i in range(8):
      image = source[i].image[..., 0] + rng.normal(0, 3, (size, size))
      if ending == "jpg":
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        picture.save(folder / name / f"{i}.jpg", quality=90)
      else:
        Image.fromarray((np.clip(image, 0, 255) * 16).astype(np.uint16)).save(
          folder / name / f"{i}.png"
        )
    for i in range(8, count):
      os.link(folder / name / f"{i % 8}.{ending}", folder / name / f"{i}.{ending}")


def worker(workdir):
  """Our side, in a process of its own."""
  from cxrjax.core.memory import keep_freed_memory

  keep_freed_memory()
  import cxrjax
  from cxrjax.inference import decode_ahead
  from cxrjax.inference.inputs import Files
  from cxrjax.inference.pipeline import PredictionTask
  from cxrjax.inference.prediction_log import TABLE, Journal

  network = cxrjax.load(workdir)

  def answer(kind, folder):
    images = Files([folder])
    rows = range(len(images.ids))
    begun, used = time.perf_counter(), cpu()
    with tempfile.TemporaryDirectory() as out:
      if kind == "decode":
        for _ in decode_ahead.batches(images, rows, [network.look()], 64):
          pass
        found = {}
      else:
        with contextlib.closing(Journal(pathlib.Path(out), {})) as journal:
          for part in PredictionTask(network).run(images, rows):
            journal.add(part)
        table = np.genfromtxt(pathlib.Path(out) / TABLE, delimiter=",", skip_header=1, dtype=str)
        found = {row[0]: float(row[len(network.classes)]) for row in table}
    return {
      "seconds": time.perf_counter() - begun,
      "cpu": cpu() - used,
      "n": len(rows),
      "found": found,
    }

  about = network.describe()
  sides.serve({name: about[name] for name in ("family", "model", "image_size")}, answer)


def cpu():
  """Seconds of all threads."""
  used = resource.getrusage(resource.RUSAGE_SELF)
  return used.ru_utime + used.ru_stime


def start_up(workdir, file):
  """Seconds of a whole command with one image."""
  with tempfile.TemporaryDirectory() as out:
    begun = time.perf_counter()
    subprocess.run(
      [sys.executable, "-m", "cxrjax.predict", f"--workdir={workdir}", str(file), f"--out={out}"],
      check=True,
      capture_output=True,
    )
    return time.perf_counter() - begun


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--peer-python", help="of an environment with torch, timm and safetensors")
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--json", help="file for all turns")
  parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    worker(args.workdir)
    return
  with tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    make(folder)
    workers = [
      sides.Worker("cxrjax", [sys.executable, __file__, "--worker", f"--workdir={args.workdir}"])
    ]
    if args.peer_python:
      from cxrjax import export

      export.write(args.workdir, str(folder / "net.safetensors"))
      workers.append(
        sides.Worker(
          "timm", [args.peer_python, str(HERE / "peer_predict.py"), str(folder / "net.safetensors")]
        )
      )
    results = {
      "machine": sides.machine(),
      "kinds": {},
      "sides": {side.name: side.info for side in workers},
    }
    for kind in KINDS:
      turns = {side.name: [] for side in workers} | {"decode": []}
      for turn in range(args.turns + 1):
        for side in workers:
          found = side("predict", folder=str(folder / kind))
          if turn:  # the first warms up
            turns[side.name].append(found)
        if turn:
          turns["decode"].append(workers[0]("decode", folder=str(folder / kind)))
      apart = 0.0
      if args.peer_python:
        ours, theirs = (turns[side.name][0]["found"] for side in workers)
        apart = max(abs(ours[name] - theirs[name]) for name in ours)
      report(kind, turns, apart)
      results["kinds"][kind] = {
        name: [{k: v for k, v in turn.items() if k != "found"} for turn in found]
        for name, found in turns.items()
      } | {"largest_difference": apart}
    for side in workers:
      side.close()
    results["start_up_seconds"] = start_up(args.workdir, folder / "jpeg224" / "0.jpg")
    print(f"start-up {results['start_up_seconds']:.1f} s")
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


def report(kind, turns, apart):
  """A line for each side: medians of images a second, and CPU time an image."""
  for name, found in turns.items():
    rate = statistics.median(t["n"] / t["seconds"] for t in found)
    used = statistics.median(1e3 * t["cpu"] / t["n"] for t in found)
    print(f"{kind:9s} {name:7s} {rate:7.1f} images/s  {used:6.2f} ms CPU an image", flush=True)
  if "timm" in turns:
    pairs = zip(turns["cxrjax"], turns["timm"], strict=True)
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in pairs]
    print(
      f"{kind:9s} ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}), "
      f"probabilities apart by {apart:.1e} at most",
      flush=True,
    )


if __name__ == "__main__":
  main()
