"""What a step of each method costs: images/s, FLOPs, share of peak, beside the encoder alone.

    python benchmarks/bench_methods.py
    python benchmarks/bench_methods.py --methods=full,mae --variant=S --batch=64

Forward and backward pass on ready-made views, no data and no optimiser. The methods take turns in
one process, and medians over the turns are compared; seconds are of the CPU's time too, which other
work on the machine disturbs less than the clock's. `full` is the encoder on whole images with
nothing on top: what a masked method's saving is measured against.

FLOPs are those of matrix products, 2 per multiply-add, backward twice forward. The share of peak
is against a large square product timed in the same process.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from sides import machine

from cxrjax.core.clock import Clock
from cxrjax.methods import mae, rgmim
from cxrjax.models.vit import Model


class Full:
  """The encoder on whole images, all of whose tokens are used."""

  def __init__(self, encoder, clock):
    self.encoder, self.clock = encoder, clock

  def init(self, key, spec):
    return {"encoder": self.encoder.init(key)}, {}

  def loss(self, params, extra, batch, key, step):
    found = self.encoder.encode(params["encoder"], batch["global"][0], train=True)
    return jnp.square(found.patches).mean() + jnp.square(found.cls).mean(), (extra, {})

  def flops(self, spec):
    return 3.0 * self.encoder.flops(spec["global"].shape[2:])


# Name: (method, its options, large views). The decoder is in proportion to a small encoder.
DECODER = {"decoder_width": 128, "decoder_depth": 2, "decoder_heads": 4}
METHODS = {
  "full": (Full, {}, 1),
  "mae": (mae.Method, {"mask_ratio": 0.75, **DECODER}, 1),
  "rgmim": (rgmim.Method, {"mask_ratio": 0.75, **DECODER}, 1),
}


class Side:
  """One method's forward and backward pass, compiled."""

  def __init__(self, name, options):
    make, own, views = METHODS[name]
    encoder = Model(variant=options.variant, patch_size=options.patch_size,
                    image_size=options.size, drop_path=0.0)
    batch = options.batch
    method = make(encoder=encoder, clock=Clock(1000, 10.0, batch), **own)
    shape = views, batch, options.size, options.size, 1
    self.batch = {
      "global": jax.random.normal(jax.random.key(0), shape),
      "global_mask": jnp.broadcast_to(jnp.arange(options.size)[:, None] < options.size // 3, shape),
      "labels": jnp.zeros((batch, 0)), "position": jnp.arange(batch), "index": jnp.arange(batch)}
    spec = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in self.batch.items()}
    self.params, self.extra = jax.jit(lambda key: method.init(key, spec))(jax.random.key(1))
    self.flops = method.flops(spec)
    gradient = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    args = self.params, self.extra, self.batch, jax.random.key(2), jnp.int32(0)
    start = time.perf_counter()
    self.run = gradient.lower(*args).compile()
    self.compile_s = time.perf_counter() - start
    self.memory = self.run.memory_analysis().temp_size_in_bytes

  def __call__(self, steps):
    """Seconds a step: by the clock, of the CPU."""
    start, cpu = time.perf_counter(), time.process_time()
    for step in range(steps):
      found = self.run(
        self.params, self.extra, self.batch, jax.random.key(2), jnp.int32(step))
    jax.block_until_ready(found)
    return (time.perf_counter() - start) / steps, (time.process_time() - cpu) / steps


def peak():
  """GFLOP/s of a large square product: f32 on CPU, bf16 elsewhere."""
  on_cpu = jax.default_backend() == "cpu"
  size, dtype = (2048, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
  a = jnp.ones((size, size), dtype)
  product = jax.jit(lambda a: a @ a)
  product(a).block_until_ready()
  best = float("inf")
  for _ in range(6):
    start = time.perf_counter()
    for _ in range(4):
      b = product(a)
    b.block_until_ready()
    best = min(best, (time.perf_counter() - start) / 4)
  return 2 * size**3 / best / 1e9


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--methods", default=",".join(METHODS))
  parser.add_argument("--variant", default="Ti")
  parser.add_argument("--patch-size", type=int, default=16)
  parser.add_argument("--size", type=int, default=224)
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--steps", type=int, default=2, help="of one turn")
  parser.add_argument("--turns", type=int, default=7)
  parser.add_argument("--out", type=pathlib.Path, help="write the numbers here as JSON")
  options = parser.parse_args()
  names = options.methods.split(",")
  sides = {name: Side(name, options) for name in names}
  for side in sides.values():
    side(1)
  turns = {name: [] for name in names}
  for _ in range(options.turns):
    for name, side in sides.items():
      turns[name].append(side(options.steps))
  limit = peak()
  result = {"machine": machine(), "device": jax.devices()[0].device_kind, "peak_gflops": limit,
            "options": {k: v for k, v in vars(options).items() if k != "out"}, "methods": {}}
  base = None
  print(f"ViT-{options.variant}/{options.patch_size}, {options.size} px, batch {options.batch}, "
        f"{result['device']}, peak {limit:.0f} GFLOP/s")
  print(f"{'':10}{'images/s':>10}{'x full':>8}{'(CPU)':>8}{'GFLOP':>8}{'of peak':>9}{'MiB':>7}")
  for name, side in sides.items():
    clock, cpu = (statistics.median(column) for column in zip(*turns[name], strict=True))
    base = base or (clock, cpu)
    row = {"images_per_s": options.batch / clock, "speedup": base[0] / clock,
           "speedup_cpu": base[1] / cpu, "gflop": side.flops / 1e9,
           "share_of_peak": side.flops * options.batch / clock / 1e9 / limit,
           "mib": side.memory / 2**20, "compile_s": side.compile_s}
    result["methods"][name] = row
    print(f"{name:10}{row['images_per_s']:10.1f}{row['speedup']:8.2f}{row['speedup_cpu']:8.2f}"
          f"{row['gflop']:8.2f}{row['share_of_peak']:9.0%}{row['mib']:7.0f}")
  if options.out:
    options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
  main()
