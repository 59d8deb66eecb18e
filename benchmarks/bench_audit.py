"""How fast an audit compares images, as a function of how many there are, on any device.

    python benchmarks/bench_audit.py                              # a minute on two CPU cores
    python benchmarks/bench_audit.py --images 25000 50000 100000  # on a GPU

First look: every signature of a synthetic set with every other, blocked matrix products of
n (n - 1) / 2 x 4096 multiply-adds; one image in a hundred is a copy of another, so that pairs come
back to the host. Second look: drawn radiographs laid over one another. Then signatures and the
search for inverted images, from decoded pixels in memory. Decoding is measured in `bench_data.py`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import jax
import numpy as np

from cxrjax.audit import duplicates, polarity
from cxrjax.core.memory import keep_freed_memory
from cxrjax.data import open_source

DIMENSIONS = duplicates.SIDE**2


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--images", type=int, nargs="+", default=[2000, 4000, 8000, 16000])
  parser.add_argument("--decoded", type=int, default=2048, help="drawn images for the other rates")
  parser.add_argument("--looks", type=int, default=2048, help="second looks")
  parser.add_argument("--block", type=int, default=4096, help="signatures of a block")
  parser.add_argument("--json", default="", help="file for the numbers")
  args = parser.parse_args()
  keep_freed_memory()
  device = jax.devices()[0]
  result = {"device": device.device_kind, "first": []}
  print(f"device    {device.device_kind} ({device.platform})")

  duplicates.pairs(signatures(2 * args.block), None, block=args.block)  # compiles
  for n in args.images:
    x = signatures(n)
    began = time.perf_counter()
    i, _, _ = duplicates.pairs(x, None, block=args.block)
    seconds = time.perf_counter() - began
    compared = n * (n - 1) / 2
    row = {
      "images": n,
      "seconds": seconds,
      "pairs_per_s": compared / seconds,
      "gflops": 2 * DIMENSIONS * compared / seconds / 1e9,
      "found": len(i),
    }
    result["first"].append(row)
    print(
      f"first     {n:7d} images {seconds:8.2f} s  {row['pairs_per_s'] / 1e6:8.1f} M pairs/s  "
      f"{row['gflops']:8.0f} GFLOP/s  {len(i)} found"
    )
    assert len(i) >= n // 100, "copies were lost"
  last = result["first"][-1]
  for n in (100_000, 1_000_000):
    seconds = n * (n - 1) / 2 / last["pairs_per_s"]
    print(
      f"          {n:,} images at this rate: {seconds / 60:.1f} minutes; signatures "
      f"{n * DIMENSIONS * 2 / 1e9:.1f} GB on the host"
    )

  source = open_source("phantom", n=args.decoded, size=128)
  drawn = np.stack([source[k].image for k in range(min(256, args.decoded))])
  pixels = np.concatenate([drawn] * -(-args.decoded // len(drawn)))[: args.decoded]
  for name, work in (
    ("signatures", lambda: duplicates.prepare(pixels)),
    ("polarity", lambda: polarity.agreement(polarity.describe(pixels)[0])),
  ):
    work()
    began = time.perf_counter()
    work()
    result[name] = len(pixels) / (time.perf_counter() - began)
    print(f"{name:9s} {result[name]:.0f} images/s")

  looks = duplicates.prepare(drawn)
  few = duplicates.within(looks, first=0.01, limit=64)
  assert few.looked == 64
  began = time.perf_counter()
  looked = duplicates.within(looks, first=0.01, limit=args.looks).looked
  result["second"] = looked / (time.perf_counter() - began)
  print(f"second    {result['second']:.0f} pairs/s; 50,000 in {50_000 / result['second']:.0f} s")
  result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(f"memory    {result['peak_mb']:.0f} MB at most, on the host")
  if args.json:
    with open(args.json, "w", encoding="utf-8") as file:
      json.dump(result, file, indent=2)


def signatures(n):
  """Random unit vectors in half precision; every hundredth again, hardly changed."""
  rng = np.random.default_rng(0)
  x = np.empty((n, DIMENSIONS), np.float16)
  for start in range(0, n, 4096):
    part = rng.standard_normal((min(4096, n - start), DIMENSIONS), np.float32)
    x[start : start + 4096] = part / np.linalg.norm(part, axis=1, keepdims=True)
  copies = np.arange(0, n - 1, 100)
  x[copies + 1] = x[copies]
  return x


if __name__ == "__main__":
  sys.exit(main())
