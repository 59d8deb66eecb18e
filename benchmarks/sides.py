"""What the benchmarks share: sides of a comparison in processes of their own, and the machine."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time


class Worker:
  """A side of a comparison in a process of its own; it idles while the other is measured.

  The process prints one JSON line when it is ready, reads one JSON command a line and answers each
  with one JSON line.
  """

  def __init__(self, name, command):
    self.name = name
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    self.info = self._answer()

  def _answer(self):
    for line in self.process.stdout:
      if line.startswith("{"):
        return json.loads(line)
    raise SystemExit(f"{self.name} ended with status {self.process.wait()}; see its message above")

  def __call__(self, kind, **options):
    self.process.stdin.write(json.dumps({"kind": kind, **options}) + "\n")
    self.process.stdin.flush()
    return self._answer()

  def close(self):
    self.process.stdin.close()
    self.process.wait()


def serve(info, answer):
  """The other end of a Worker: `answer(kind, **options)` gives a dictionary."""
  print(json.dumps(info), flush=True)
  for line in sys.stdin:
    command = json.loads(line)
    print(json.dumps(answer(command.pop("kind"), **command)), flush=True)


def peak(jax):
  """GFLOP/s of a large square product: f32 on CPU, bf16 elsewhere."""
  on_cpu = jax.default_backend() == "cpu"
  size, dtype = (2048, jax.numpy.float32) if on_cpu else (8192, jax.numpy.bfloat16)
  a = jax.numpy.ones((size, size), dtype)
  product = jax.jit(lambda a: a @ a)
  product(a).block_until_ready()
  best = float("inf")
  for _ in range(6):
    start = time.perf_counter()
    for _ in range(4):
      b = product(a)
    b.block_until_ready()
    best = min(best, (time.perf_counter() - start) / 4)
  return {"gflops": 2 * size**3 / best / 1e9}


def machine():
  """What a number was measured on."""
  return {
    "cpu": cpu_name(),
    "isa": isa(),
    "cores": os.cpu_count(),
    "python": platform.python_version(),
    "date": time.strftime("%Y-%m-%d"),
    "load": os.getloadavg()[0],
  }


def isa():
  """The widest vectors of the processor, or what XLA was held to."""
  held = re.search(r"--xla_cpu_max_isa=(\w+)", os.environ.get("XLA_FLAGS", ""))
  if held:
    return f"{held[1]} at most"
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
      flags = file.read()
  except OSError:
    return "unknown"
  return next(
    (name for name, flag in (("AVX-512", "avx512f"), ("AVX2", "avx2")) if flag in flags),
    "neither AVX2 nor AVX-512",
  )


def cpu_name():
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
      return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
  except (OSError, StopIteration):
    return platform.processor() or "unknown CPU"
