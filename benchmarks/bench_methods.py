"""What a step of each method costs: images/s, FLOPs, share of peak, memory, beside two peers'.

    python benchmarks/bench_methods.py
    python benchmarks/bench_methods.py --peer-python=VENV/bin/python    # torch, timm and lightly
    python benchmarks/bench_methods.py --stable-python=VENV/bin/python  # jax and stable-pretraining
    python benchmarks/bench_methods.py --methods=full,mae --model=S --batch=64

Forward and backward pass on ready-made views, no data and no optimiser. Every method has its own
config's `:paper` recipe (views, heads, prototypes) on one encoder. `full` is the encoder on whole
images with nothing on top: what a masked method's saving is measured against. The methods, and the
peers' next to ours where they have the method, take turns, and medians over the turns are compared;
seconds are of the CPU's time too, which other work on the machine disturbs less than the clock's.

FLOPs are those of matrix products, 2 per multiply-add, backward twice forward. The share of peak
is against a large square product timed in the same process. Memory is the scratch memory that the
compiled step needs besides parameters and views.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import statistics
import sys
import time

from sides import Worker, machine, peak, serve

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))


def load_config(name):
  """A file of `configs/`, as a module."""
  spec = importlib.util.spec_from_file_location(
    f"bench_{name}", HERE.parent / "configs" / f"{name}.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


# Name: (config, options after the colon), as a comparison has them.
METHODS = {
  "full": ("mae", ""),
  # The paper's decoder is for a ViT-L; this one is in proportion to a ViT-Ti.
  "mae_light": ("mae", "method.decoder_width=128,method.decoder_depth=2,method.decoder_heads=4"),
  **load_config("compare").METHODS,
}
# Peer: (its script, the methods that it has).
PEERS = {
  "lightly": ("peer_methods.py", ("mae", "dino", "dinov2", "simclr", "moco2", "byol", "simsiam")),
  "stable-pretraining": ("peer_stable.py", ("simclr", "byol")),
}


def make_config(name, spec):
  """A method's own config at the paper's sizes, but for the encoder and the data."""
  file, options = METHODS[name]
  size = spec["size"]
  common = (
    f"paper,data=phantom,data.n={4 * spec['batch']},store={size},image_size={size},"
    f"model={spec['model']},model.patch_size={spec['patch_size']},batch_size={spec['batch']},"
    f"model.drop_path=0.0,eval_data=none"
  )
  config = load_config(file).get_config(",".join(filter(None, (common, options))))
  config.data.cache_dir = spec["cache"]
  return config.to_dict()


class Side:
  """One method's forward and backward pass, compiled."""

  def __init__(self, name, spec):
    import jax
    import jax.numpy as jnp

    from cxrjax.core import flops
    from cxrjax.tasks.training_run import Run

    run = Run(make_config(name, spec), progress=False)
    method = Full(run.method) if name == "full" else run.method
    self.jax, self.images, train_step = jax, spec["batch"], run.train_step
    views = jax.jit(
      lambda data, batch: train_step.views(
        train_step.fetch(data, batch), train_step.step_key(jnp.int32(0), 0)
      )
    )
    self.batch = views(run.loader.data, run.loader[0])
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in self.batch.items()}
    self.params, self.state = jax.jit(lambda key: method.init(key, shapes))(jax.random.key(1))
    args = self.params, self.state, self.batch, jax.random.key(2), jnp.int32(0)
    start = time.perf_counter()
    gradient = jax.value_and_grad(method.loss, has_aux=True)
    self.run = jax.jit(gradient).lower(*args).compile()
    self.info = {
      "views": {
        k: f"{v.shape[0]}x{v.shape[2]}"
        for k, v in self.batch.items()
        if v.ndim == 5 and v.dtype != bool
      },
      "gflop": flops.count(gradient, *args) / spec["batch"] / 1e9,
      "compile_s": time.perf_counter() - start,
      "mib": self.run.memory_analysis().temp_size_in_bytes / 2**20,
    }

  def __call__(self, steps):
    """Seconds a step: by the clock, of the CPU."""
    key = self.jax.random.key(2)
    start, cpu = time.perf_counter(), time.process_time()
    for step in range(steps):
      found = self.run(self.params, self.state, self.batch, key, self.jax.numpy.int32(step))
    self.jax.block_until_ready(found)
    return {
      "seconds": (time.perf_counter() - start) / steps,
      "cpu_seconds": (time.process_time() - cpu) / steps,
    }


class Full:
  """The encoder on whole images, all of whose tokens are used."""

  def __init__(self, method):
    self.encoder = method.encoder

  def init(self, key, spec):
    return {"encoder": self.encoder.init(key)}, {}

  def loss(self, params, state, batch, key, step):
    import jax.numpy as jnp

    found = self.encoder.encode(params["encoder"], batch["global"][0], train=True)
    return jnp.square(found.patches).mean() + jnp.square(found.cls).mean(), (state, {})


def serve_ours(spec):
  from cxrjax.core.memory import keep_freed_memory

  keep_freed_memory()  # as cxrjax.main does
  import jax

  sides = {}

  def answer(kind, name="", steps=1):
    if kind == "peak":
      return peak(jax)
    if kind == "make":
      sides[name] = Side(name, spec)
      sides[name](1)
      return sides[name].info
    return sides[name](steps)

  serve({"versions": {"jax": jax.__version__}, "device": jax.devices()[0].device_kind}, answer)


def parse():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--methods", default=",".join(METHODS))
  add("--model", default="Ti")
  add("--patch-size", type=int, default=16)
  add("--size", type=int, default=224)
  add("--batch", type=int, default=16)
  add("--steps", type=int, default=1, help="of one turn")
  add("--turns", type=int, default=5)
  add("--cache", default="", help="folder of the decoded phantoms")
  add("--peer-python", default="", help="an interpreter that has torch, timm and lightly")
  add("--stable-python", default="", help="an interpreter that has jax and stable-pretraining")
  add("--out", type=pathlib.Path, help="write the numbers here as JSON")
  add("--worker", default="", help=argparse.SUPPRESS)
  return parser.parse_args()


def main():
  options = parse()
  if options.worker:
    serve_ours(json.loads(options.worker))
    return
  names = options.methods.split(",")
  unknown = set(names) - set(METHODS)
  if unknown:
    raise SystemExit(f"--methods has {sorted(unknown)}; valid: {', '.join(METHODS)}")
  spec = {k: getattr(options, k) for k in ("model", "patch_size", "size", "batch", "cache")}
  ours = Worker("cxrjax", [sys.executable, __file__, "--worker", json.dumps(spec)])
  sides = {"cxrjax": ours}
  for name, python in (
    ("lightly", options.peer_python),
    ("stable-pretraining", options.stable_python),
  ):
    if python:
      sides[name] = Worker(name, [python, str(HERE / PEERS[name][0]), json.dumps(spec)])
  result = {
    "machine": machine(),
    "options": {**spec, "steps": options.steps, "turns": options.turns},
    "sides": {name: side.info for name, side in sides.items()},
    "methods": measure(sides, names, options),
  }
  result["peak_gflops"] = ours("peak")["gflops"]
  for side in sides.values():
    side.close()
  print(table(result))
  if options.out:
    options.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


def measure(sides, names, options):
  """Every method's medians; the sides in turn, so that a change of load falls on both."""
  has = {name: [s for s in sides if s == "cxrjax" or name in PEERS[s][1]] for name in names}
  rows = {name: {} for name in names}
  for name in names:
    for side in has[name]:
      rows[name][side] = sides[side]("make", name=name)
  turns = {name: {side: [] for side in has[name]} for name in names}
  for turn in range(options.turns):
    for name in names:
      for side in has[name] if turn % 2 == 0 else has[name][::-1]:
        turns[name][side].append(sides[side]("run", name=name, steps=options.steps))
  for name in names:
    for side, answers in turns[name].items():
      seconds = [a["seconds"] for a in answers]
      rows[name][side] |= {
        "seconds": seconds,
        "images_per_s": options.batch / statistics.median(seconds),
        "cpu_ms_per_image": 1e3
        * statistics.median(a["cpu_seconds"] for a in answers)
        / options.batch,
      }
    own = rows[name]["cxrjax"]["seconds"]
    rows[name]["ratio"] = {
      side: statistics.median(a / b for a, b in zip(row["seconds"], own, strict=True))
      for side, row in rows[name].items()
      if side != "cxrjax"
    }
  return rows


def table(result):
  options, base = result["options"], None
  peers = [side for side in result["sides"] if side != "cxrjax"]
  lines = [
    f"ViT-{options['model']}/{options['patch_size']}, {options['size']} px, batch "
    f"{options['batch']}, {result['sides']['cxrjax']['device']}, peak "
    f"{result['peak_gflops']:.0f} GFLOP/s",
    "",
    "| | views | images/s | x `full` | (CPU time) | GFLOPs an image | of peak | memory, MiB | "
    + "".join(f"{peer}, images/s | ratio |" for peer in peers),
    "|---|---|---|---|---|---|---|---|" + "---|---|" * len(peers),
  ]
  for name, row in result["methods"].items():
    own = row["cxrjax"]
    base = base or own
    views = " + ".join(own["views"].values())
    share = own["images_per_s"] * own["gflop"] / result["peak_gflops"]
    beside = "".join(
      f" {row[peer]['images_per_s']:.1f} | {row['ratio'][peer]:.2f} |" if peer in row else " | |"
      for peer in peers
    )
    lines.append(
      f"| `{name}` | {views} | {own['images_per_s']:.1f} | "
      f"{own['images_per_s'] / base['images_per_s']:.2f} | "
      f"{base['cpu_ms_per_image'] / own['cpu_ms_per_image']:.2f} | {own['gflop']:.2f} | "
      f"{share:.0%} | {own['mib']:.0f} |{beside}"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  main()
