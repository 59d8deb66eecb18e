"""How fast DINO trains here, alone or side by side with lightly's DINO in PyTorch.

    python benchmarks/bench_dino.py
    python benchmarks/bench_dino.py --peer                           # torch in this environment
    python benchmarks/bench_dino.py --peer --peer-python=/path/to/other/venv/bin/python

Both sides train the same ViT with the same head on the same images and crops, in the same
precision (f32 on CPU; on a GPU bf16, the peer compiled). Each lives in a process of its own and
idles while the other is measured; they take turns, and medians over the turns are compared.

  bare    the step on ready-made crops: forward, loss, backward, clip, AdamW, teacher
  whole   the training process with its data: our loader and crops inside the step; lightly's
          transform in a DataLoader

FLOPs are those of matrix products, 2 per multiply-add, backward twice forward. The share of peak
is against a large square product timed in the same process.
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

from sides import Worker, machine, peak, serve

HERE = pathlib.Path(__file__).resolve().parent


class Ours:
  """The project's own loader, views, method and step."""

  def __init__(self, spec):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cxrjax.core import flops
    from cxrjax.core.durations import Clock
    from cxrjax.data.base import SourceInfo, Table
    from cxrjax.data.loading.decoded_cache import Images
    from cxrjax.data.loading.loader import Loader
    from cxrjax.methods.dino import Method
    from cxrjax.models.vit import Model
    from cxrjax.training import sharding
    from cxrjax.training.optimizer import Optimizer
    from cxrjax.training.train_step import TrainStep
    from cxrjax.views.multicrop import Recipe

    self.jax, batch = jax, spec["batch"]
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    pixels = np.load(spec["images"], mmap_mode="r")
    n = len(pixels)
    names = tuple(map(str, range(n)))
    info = SourceInfo("benchmark", "train", (), False, {"train": n}, "")
    table = Table(ids=names, patients=names, sites=("",) * n, labels=np.zeros((n, 0), np.float32))
    images = Images(pixels=pixels, table=table, info=info)
    self.loader = Loader(images, batch_size=batch, seed=0, mesh=mesh, storage="resident")
    clock = Clock(100_000, n / batch, batch)
    encoder = Model(variant=spec["variant"], patch_size=spec["patch_size"])
    method = Method(encoder=encoder, clock=clock, prototypes=spec["prototypes"])
    optimizer = Optimizer(clock=clock, freeze=(("prototypes", "1 epochs"),))
    recipe = Recipe(local_crops=spec["local_crops"])

    def ready_made(key, packed, index):
      """Crops that were packed into one array, so that the step's own code runs unchanged."""
      del key, index
      views, at = {}, 0
      for name, count, size in (("global", 2, 224), ("local", spec["local_crops"], 96)):
        if count:
          length = count * size * size
          crops = packed[:, at : at + length].reshape(batch, count, size, size, 1)
          views[name], at = crops.swapaxes(0, 1), at + length
      return views

    def train_step(recipe, fetch, block):
      return TrainStep(
        method=method,
        recipe=recipe,
        optimizer=optimizer,
        fetch=fetch,
        mesh=mesh,
        seed=0,
        block=block,
      )

    self.block = spec["block"]
    whole = train_step(recipe, self.loader.fetch, self.block)
    bare = train_step(ready_made, lambda data, batch: data, 1)
    length = 2 * 224 * 224 + spec["local_crops"] * 96 * 96
    crops = {
      "image": jax.random.normal(jax.random.key(0), (batch, length)),
      "labels": jnp.zeros((batch, 0)),
    }
    self.batch = batch
    self.parts = {
      "whole": (whole, self.loader.data, lambda t, k: self.loader.block(t, k)),
      "bare": (bare, crops, lambda t, k: {"index": jnp.zeros((k, batch), jnp.int32)}),
    }
    shapes = whole.batch_spec(self.loader.data, self.loader[0])
    params, state = jax.eval_shape(lambda: method.init(jax.random.key(0), shapes))
    self.flops = (
      flops.count(
        jax.value_and_grad(method.loss, has_aux=True),
        *(params, state, shapes, jax.random.key(0), jnp.int32(0)),
      )
      / batch
    )
    self.states, self.t, self.compile_s = {}, 0, {}
    for kind, (trainer_, data, blocks) in self.parts.items():
      start = time.perf_counter()
      self.states[kind] = trainer_.init(shapes)
      self.states[kind], metrics = trainer_.run(
        self.states[kind], data, blocks(0, trainer_.block), jnp.int32(trainer_.block)
      )
      jax.block_until_ready(metrics)
      self.compile_s[kind] = time.perf_counter() - start

  def measure(self, kind, steps):
    train_step, data, blocks = self.parts[kind]
    size = min(train_step.block, steps)
    state = self.states[kind]
    start, cpu = time.perf_counter(), time.process_time()
    for t in range(0, steps, size):
      count = self.jax.numpy.int32(min(size, steps - t))
      state, metrics = train_step.run(state, data, blocks(self.t + t, train_step.block), count)
    self.jax.block_until_ready(metrics)
    self.states[kind], self.t = state, self.t + steps
    return {
      "seconds": (time.perf_counter() - start) / steps,
      "cpu_seconds": (time.process_time() - cpu) / steps,
    }

  def peak(self):
    return peak(self.jax)

  def host(self):
    """Milliseconds of host work an image in resident mode: indices, ready on the device."""
    steps = 64
    start = time.perf_counter()
    for t in range(0, steps, self.block):
      self.jax.block_until_ready(self.loader.block(t, self.block))
    return {"ms_per_image": 1e3 * (time.perf_counter() - start) / (steps * self.batch)}

  def ready(self):
    import flax
    import jaxlib

    device = self.jax.devices()[0]
    return {
      "versions": {
        "jax": self.jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
      },
      "device": f"{device.platform} {device.device_kind}",
      "flops_per_image": self.flops,
      "first_call_s": self.compile_s,
    }


def serve_ours(spec):
  from cxrjax.core.memory import keep_freed_memory

  keep_freed_memory()  # as cxrjax.main does
  ours = Ours(spec)

  def answer(kind, **options):
    return getattr(ours, kind)() if kind in ("peak", "host") else ours.measure(kind, **options)

  serve(ours.ready(), answer)


def make_images(path, count, size):
  """The built-in phantom radiographs, the same for both sides."""
  import numpy as np

  from cxrjax.data import open_source

  source = open_source("phantom", n=count, size=size)
  np.save(path, np.stack([source[i].image for i in range(count)]))


def parse():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--variant", default="Ti", choices=["Ti", "S", "B", "L"])
  add("--patch-size", type=int, default=16)
  add("--batch", type=int, default=16)
  add("--prototypes", type=int, default=4096)
  add("--local-crops", type=int, default=6)
  add("--images", type=int, default=256, help="phantom images of 256 px")
  add("--rounds", type=int, default=5, help="turns of each side")
  add("--steps", type=int, default=2, help="training steps a turn")
  add("--block", type=int, default=1, help="our steps of one dispatch, whole process")
  add("--workers", type=int, default=os.cpu_count(), help="the peer's DataLoader workers")
  add("--threads", type=int, default=0, help="the peer's compute threads; 0: torch decides")
  add("--peer", action="store_true", help="measure lightly's DINO as well")
  add("--peer-python", default=sys.executable, help="an interpreter that has torch and lightly")
  add("--peer-compile", action="store_true", help="torch.compile on CPU too")
  add("--json", default="", help="write the results to this file")
  add("--worker", default="", help=argparse.SUPPRESS)
  return parser.parse_args()


def main():
  args = parse()
  sys.path.insert(0, str(HERE.parent))
  if args.worker:
    serve_ours(json.loads(args.worker))
    return
  with tempfile.TemporaryDirectory() as folder:
    images = pathlib.Path(folder) / "images.npy"
    make_images(images, args.images, 256)
    spec = {k: v for k, v in vars(args).items() if k not in ("json", "worker", "images")}
    spec = json.dumps({**spec, "images": str(images)})
    sides = {"cxrjax": Worker("cxrjax", [sys.executable, __file__, "--worker", spec])}
    if args.peer:
      sides["lightly"] = Worker("lightly", [args.peer_python, str(HERE / "peer_dino.py"), spec])
    result = measure(sides, args)
    for side in sides.values():
      side.close()
  print(table(result))
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(result, indent=1), encoding="utf-8")


def measure(sides, args):
  """Both sides in turn; images/s of every turn, medians, ratios."""
  kinds, names = ("bare", "whole"), list(sides)
  turns = {name: {kind: [] for kind in kinds} for name in names}
  cpu = {name: {kind: [] for kind in kinds} for name in names}
  peaks = {name: [] for name in names}
  for name in names:
    for kind in kinds:
      sides[name](kind, steps=2)  # compile, warm caches, start workers
  for turn in range(args.rounds):
    order = names if turn % 2 == 0 else names[::-1]
    for kind in kinds:
      for name in order:
        answer = sides[name](kind, steps=args.steps)
        turns[name][kind].append(args.batch / answer["seconds"])
        cpu[name][kind].append(answer["cpu_seconds"] / args.batch)
    if turn in (0, args.rounds - 1):
      for name in order:
        peaks[name].append(sides[name]("peak")["gflops"])
  flops = sides["cxrjax"].info["flops_per_image"]
  result = {
    "spec": {k: v for k, v in vars(args).items() if k not in ("worker", "json", "peer_python")},
    "machine": machine(),
    "gflops_per_image": flops / 1e9,
    "host_ms_per_image": sides["cxrjax"]("host")["ms_per_image"],
    "sides": {},
  }
  for name in names:
    median = {kind: statistics.median(turns[name][kind]) for kind in kinds}
    result["sides"][name] = {
      **sides[name].info,
      "images_per_s": median,
      "turns": turns[name],
      "cpu_ms_per_image": {k: 1e3 * statistics.median(cpu[name][k]) for k in kinds},
      "peak_gflops": max(peaks[name]),
    }
  ours = result["sides"]["cxrjax"]
  ours["share_of_peak"] = {
    kind: rate * flops / 1e9 / ours["peak_gflops"] for kind, rate in ours["images_per_s"].items()
  }
  if "lightly" in result["sides"]:
    peer = result["sides"]["lightly"]["images_per_s"]
    # turns are paired, so that a change of the machine's load falls on both
    result["ratio"] = {
      kind: statistics.median(
        a / b for a, b in zip(turns["cxrjax"][kind], turns["lightly"][kind], strict=True)
      )
      for kind in kinds
    }
    result["ratio_of_medians"] = {k: ours["images_per_s"][k] / peer[k] for k in kinds}
  return result


def table(result):
  spec = result["spec"]
  lines = [
    f"DINO ViT-{spec['variant']}/{spec['patch_size']}, 2x224 + {spec['local_crops']}x96, "
    f"{spec['prototypes']} prototypes, batch {spec['batch']}; "
    f"{result['gflops_per_image']:.1f} GFLOPs an image",
    f"{result['machine']['cores']} x {result['machine']['cpu']}, {result['machine']['isa']}; "
    f"median of {spec['rounds']} turns of {spec['steps']} steps",
    "",
    f"{'':10}{'bare img/s':>12}{'whole img/s':>13}{'peak GFLOP/s':>14}{'share, bare':>13}",
  ]
  for name, side in result["sides"].items():
    share = side.get("share_of_peak", {}).get("bare")
    rates = side["images_per_s"]
    lines.append(
      f"{name:10}{rates['bare']:12.2f}{rates['whole']:13.2f}{side['peak_gflops']:14.0f}"
      + (f"{share:13.0%}" if share else "")
    )
  if "ratio" in result:
    ratio = result["ratio"]
    lines.append(f"{'ratio':10}{ratio['bare']:12.2f}{ratio['whole']:13.2f}")
  lines += ["", f"host work {result['host_ms_per_image']:.4f} ms an image (resident)"]
  return "\n".join(lines)


if __name__ == "__main__":
  main()
