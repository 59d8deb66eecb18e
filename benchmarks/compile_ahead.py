"""Compiles a config's training step for devices that are not here, and says what it costs.

    python benchmarks/compile_ahead.py --config=configs/dino.py:paper --target=cuda --lower_only
    python benchmarks/compile_ahead.py --config=configs/dino.py:paper --target=cuda:1x1x8
    python benchmarks/compile_ahead.py --config=configs/mae.py:paper --target=tpu:v5e:2x2
    python benchmarks/compile_ahead.py --table

`--lower_only` needs no plugin: it traces and lowers the step and the evaluation for `cuda` or `tpu`
and exits with 0, or says in one line what is wrong and exits with 1. Without it the plugins do the
compiling; neither needs a device. They are large (5 GB), so best in an environment of their own:

    python -m venv ahead && ahead/bin/pip install -e . "jax[cuda12]==0.10.2"   # cuda:...
    ahead/bin/pip install "libtpu==0.0.42.*"                                   # tpu:...

Targets are `cuda:SLICESxHOSTSxDEVICES` of H200s, `tpu:v5e:2x2`, `tpu:v4:2x2x1`, `tpu:v5p:2x2x1`,
`tpu:v6e:2x2`; `tpu:v5e:4x4` is four hosts. Nothing runs: memory, bytes, products and collectives
are those of the compiled program, one device's share of one step. They stand beside the figures of
the last time, which are kept in `benchmarks/results/compile_ahead.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "compile_ahead.json"


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", help="configs/X.py[:arg] of a training run")
  parser.add_argument("--target", help="cuda, tpu (with --lower_only); cuda:1x1x8, tpu:v5e:2x2")
  parser.add_argument("--lower_only", action="store_true", help="no plugin, nothing is compiled")
  parser.add_argument("--fsdp", type=int, default=0, help="instead of the config's mesh.fsdp")
  parser.add_argument("--batch_size", type=int, default=0, help="instead of the config's")
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="another key of the config, model.remat=True; may be given repeatedly",
  )
  parser.add_argument("--keep", action="store_true", help="keep the figures")
  parser.add_argument("--hlo", help="a file to write the compiled program's text to")
  parser.add_argument("--table", action="store_true", help="print the kept figures in Markdown")
  args = parser.parse_args(argv)
  if args.table:
    print(table(json.loads(RESULTS.read_text())))
    return 0
  if not args.config or not args.target:
    parser.error(
      "--config and --target are needed; try --config=configs/dino.py:paper "
      "--target=cuda --lower_only"
    )
  os.environ["JAX_PLATFORMS"] = "cpu"  # no accelerator is touched, should there be one
  from cxrjax.core.errors import UserError

  try:
    config = get_config(args)
    if args.lower_only:
      print(lower(config, args.target))
    else:
      print(compile_for(config, args))
  except (UserError, OSError, ImportError) as error:
    return _fail(args, error)
  except Exception as error:  # whatever JAX and XLA have against a program
    if os.environ.get("JAX_TRACEBACK_FILTERING") == "off":
      raise
    return _fail(args, error)
  return 0


def _fail(args: argparse.Namespace, error: Exception) -> int:
  said = " ".join(str(error).split())[:400] or repr(error)
  print(f"error: {args.config} for {args.target}: {type(error).__name__}: {said}", file=sys.stderr)
  return 1


def get_config(args: argparse.Namespace) -> dict[str, Any]:
  """The config with what the flags change."""
  from cxrjax.config.args import literal
  from cxrjax.core.errors import UserError

  path, _, argument = args.config.partition(":")
  spec = importlib.util.spec_from_file_location("config", path)
  if spec is None or not pathlib.Path(path).is_file():
    raise UserError(f"--config={args.config!r}: {path} is no file; try configs/dino.py:paper")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(argument).to_dict()
  if config["task"] != "cxrjax.tasks.train":
    raise UserError(f"--config={args.config!r} trains no method by itself; give one that does")
  config["block"] = 1  # one step
  changes = [item.partition("=")[::2] for item in args.set]
  changes += [("mesh.fsdp", str(args.fsdp))] if args.fsdp else []
  changes += [("batch_size", str(args.batch_size))] if args.batch_size else []
  for key, value in changes:
    *parents, last = key.split(".")
    node = config
    for name in parents:
      if not isinstance(node.get(name), dict):
        raise UserError(f"--set={key}={value}: the config has no {key!r}")
      node = node[name]
    if last not in node and parents != ["model"]:  # networks have options that no config shows
      raise UserError(f"--set={key}={value}: the config has no {key!r}")
    node[last] = literal(value)
  return config


def lower(config: dict[str, Any], platform: str) -> str:
  """Lowers the step and the evaluation for a platform; a line of what it took."""
  from cxrjax.core.errors import UserError
  from cxrjax.core.target import Target
  from cxrjax.training import compile_ahead
  from cxrjax.training.sharding import make_mesh

  if platform not in ("cuda", "tpu"):
    raise UserError(f"--target={platform!r} with --lower_only; valid: cuda, tpu")
  began = time.perf_counter()
  mesh = make_mesh(config["mesh"]["fsdp"])
  target = Target(platform, mesh=mesh)
  with without_cudnn():
    sizes = [
      len(program(config, mesh, target=target).lower(lowering_platforms=(platform,)).as_text())
      for program in (compile_ahead.train_step, compile_ahead.eval_step)
    ]
  return (
    f"lowered for {platform} in {time.perf_counter() - began:.1f} s: step "
    f"{sizes[0] / 1e6:.1f} MB, evaluation {sizes[1] / 1e6:.1f} MB of StableHLO"
  )


@contextlib.contextmanager
def without_cudnn() -> Iterator[None]:
  """JAX asks for cuDNN's version and the GPU when it traces attention; an H200's are given."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  with (
    mock.patch.object(cudnn, "check_cudnn_version", return_value=91000),
    mock.patch.object(cudnn, "check_compute_capability", return_value=True),
  ):
    yield


def topology(target: str) -> Any:
  """The devices of `cuda:1x1x8` or `tpu:v5e:2x2`, as their plugin describes them."""
  from jax.experimental import topologies

  from cxrjax.core.errors import UserError

  platform, _, name = target.partition(":")
  if platform not in ("cuda", "tpu") or not name:
    raise UserError(
      f"--target={target!r} is not known; try cuda:1x1x8 or tpu:v5e:2x2, or "
      "--lower_only with cuda or tpu"
    )
  if platform == "cuda":
    description = (HERE / "targets" / "h200.txtpb").read_text()
    return topologies.get_topology_desc(
      platform="cuda", topology_name="h200", topology=name, target_config=description
    )
  # libtpu looks for a machine unless it is told of one.
  chips = {"v5e": "v5litepod-4", "v4": "v4-8", "v5p": "v5p-8", "v6e": "v6e-4"}
  version = name.partition(":")[0]
  for key, value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": chips.get(version, ""),
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  }.items():
    os.environ.setdefault(key, value)
  return topologies.get_topology_desc(platform="tpu", topology_name=name)


def compile_for(config: dict[str, Any], args: argparse.Namespace) -> str:
  """Compiles the step for the target's devices; the figures beside those of the last time."""
  import hlo
  import jax

  from cxrjax.training import compile_ahead, step_flops
  from cxrjax.training.sharding import make_mesh

  mesh = make_mesh(config["mesh"]["fsdp"], topology(args.target).devices)
  began = time.perf_counter()
  lowered = compile_ahead.train_step(config, mesh).lower()
  middle = time.perf_counter()
  compiled = lowered.compile()
  ended = time.perf_counter()
  text = compiled.as_text()
  if args.hlo:
    pathlib.Path(args.hlo).write_text(text)
  traced = step_flops.training(config, compile_ahead.EXAMPLES) * config["batch_size"]
  facts = {
    **hlo.summarise(text),
    "traced_flops": traced / mesh.size,
    "peak_bytes": float(compiled.memory_analysis().peak_memory_in_bytes),
    "devices": mesh.size,
    "images": config["batch_size"] // mesh.size,
    "kind": mesh.devices.flat[0].device_kind,
    "lower_s": middle - began,
    "compile_s": ended - middle,
    "jax": jax.__version__,
    "jaxlib": importlib.metadata.version("jaxlib"),
    "date": time.strftime("%Y-%m-%d"),
  }
  name = f"{args.config.removeprefix('configs/')}" + "".join(
    f" {change}"
    for change in [
      *args.set,
      *[f"fsdp={args.fsdp}"] * bool(args.fsdp),
      *[f"batch_size={args.batch_size}"] * bool(args.batch_size),
    ]
  )
  kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  lines = report(f"{name} for {args.target}", facts, kept.get(f"{name} @ {args.target}"))
  if args.keep:
    kept[f"{name} @ {args.target}"] = facts
    RESULTS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
  return lines


def figures(facts: dict[str, Any]) -> dict[str, str]:
  """What is shown of a program, by what it is called."""
  moved = facts["collectives"]
  f32 = facts["flops_f32"] / 1e9
  return {
    "devices": f"{facts['devices']} x {facts['kind']}, {facts['images']} images each",
    "peak memory": f"{facts['peak_bytes'] / 1e9:.1f} GB",
    "products": f"{facts['flops_total'] / 1e12:.2f} TFLOP ({facts['traced_flops'] / 1e12:.2f} "
    "traced)",
    "memory traffic": f"{facts['bytes'] / 1e9:.1f} GB",
    "of it attention": f"{facts['attention_bytes'] / max(facts['bytes'], 1):.0%}",
    "largest f32 product": f"{f32:.2f} GFLOP",
    "collectives": "; ".join(
      f"{of['count']} {kind} {of['bytes'] / 1e9:.2f} GB" for kind, of in moved.items()
    )
    or "none",
    "compile time": f"{facts['lower_s']:.0f} s to lower, {facts['compile_s']:.0f} s to compile",
    "JAX": facts["jax"],
  }


def report(title: str, facts: dict[str, Any], last: dict[str, Any] | None) -> str:
  """The figures, beside those of the last time."""
  now, before = figures(facts), figures(last) if last else {}
  lines = [title]
  for name, value in now.items():
    was = before.get(name)
    lines.append(f"  {name:<20} {value}" + ("" if was in (None, value) else f"   (last: {was})"))
  return "\n".join(lines)


def table(kept: dict[str, dict[str, Any]]) -> str:
  """The kept figures as Markdown."""
  rows = [
    "| step | devices, images each | peak memory | products, TFLOP (traced) | memory traffic | "
    "attention's share | collectives | JAX |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for key, facts in kept.items():
    name, _, target = key.partition(" @ ")
    of = figures(facts)
    products = f"{facts['flops_total'] / 1e12:.1f} ({facts['traced_flops'] / 1e12:.1f})"
    rows.append(
      f"| `{name}` | {target}: {facts['devices']} x {facts['images']} | {of['peak memory']} | "
      f"{products} | {of['memory traffic']} | {of['of it attention']} | {of['collectives']} | "
      f"{facts['jax']} |"
    )
  return "\n".join(rows)


if __name__ == "__main__":
  sys.exit(main())
