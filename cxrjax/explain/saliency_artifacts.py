"""What a run's network sees and looks at, for its page: views, maps, lung scores."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int64

from cxrjax.core import compile_effort
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.images import Images, even
from cxrjax.evals import eval_splits, features, linear
from cxrjax.evals.embedding import findings
from cxrjax.explain import attention, lung_overlap, maps
from cxrjax.explain.maps import Head
from cxrjax.models.module import Params
from cxrjax.report.run_writer import Writer
from cxrjax.training import sharding

DEFAULT: dict[str, Any] = {"images": 6, "methods": "auto", "lungs": 256}  # `config.explain`
PROBED = 1000  # training images that a probe is fitted to, at most
FORWARDS = 10  # passes of the network that all maps of an image cost, about, but for occlusion
WINDOWS = 225  # and those of occlusion
# Operations that maps may cost where there is no accelerator, a few seconds each: of those that are
# scored, and of occlusion.
SCORED, HIDDEN = 2e11, 5e10
LEAST = 24  # images that are scored, where there are so many


def views(run: Any) -> dict[str, np.ndarray]:
  """The first batch's views, for the report, as gray levels."""

  def first(data: Any, batch: Any) -> Any:
    batch = run.trainer.fetch(data, batch)
    return batch["image"], run.trainer.views(batch, run.trainer.step_key(jnp.int32(0), 0))

  once = jax.jit(first, compiler_options=compile_effort.options(once=True))
  source, views = once(run.loader.data, run.loader[0])
  source, views = sharding.to_host((source, dict(views)))
  count = min(4, source.shape[0])

  def gray(x: np.ndarray) -> np.ndarray:
    x = x[:, :count, ..., 0]
    if x.dtype == np.bool_:  # a mask
      return np.where(x, np.uint8(255), np.uint8(0))
    x = x * run.recipe.std + run.recipe.mean
    return np.clip(x * 255 + 0.5, 0, 255).astype(np.uint8)

  if source.dtype != np.uint8:  # windowed from 16 bits: 0..1
    source = np.clip(source * 255 + 0.5, 0, 255).astype(np.uint8)
  return {
    "source": source[:count, ..., 0],
    **{name: gray(v) for name, v in views.items() if v.ndim == 5},
  }


def write(run: Any, state: Any, writer: Writer) -> list[str]:
  """Writes maps over some test images, and lung scores of more where there are masks.

  Attention (of the last two blocks, head by head, and rolled out) where the network has it; of
  classes Grad-CAM, Grad-CAM++ and, where it is cheap, occlusion. Classes are a classifier's own, or
  those of a linear probe on training images, which is said. They are not judged: nothing here
  decides anything.

  Args:
    run: of `tasks.train`. Every process must call.
    state: whose network it is.
    writer: of the run; arrays `attention` and facts `look`.

  Returns:
    What to tell of lungs, a line for each method.

  Raises:
    UserError: `config.explain.methods` names none.
  """
  wanted = DEFAULT | dict(run.config.get("explain") or {})
  asked = _asked(wanted["methods"])
  name = _evaluator(run)
  if name is None or wanted["images"] < 1:
    return []
  began = time.perf_counter()
  evaluator, data = run.evaluators[name], run.eval_data[name]
  classes = asked is None or bool(set(asked) & set(maps.OF_CLASSES))
  params, head, about = _network(run, state, evaluator, data if classes else None)
  methods = [
    m for m in maps.methods_for(run.encoder, head is not None) if asked is None or m in asked
  ]
  key, rows = data.rows["test"]
  images = data.images[key].take(rows)
  cost = _cost(run.encoder, images)
  if asked is None and not cost * wanted["images"] * WINDOWS < HIDDEN and "occlusion" in methods:
    methods.remove("occlusion")
  if not methods:
    return []
  shown = chosen(images, wanted["images"])
  most = (
    wanted["lungs"]
    if run.mesh.devices.flat[0].platform != "cpu"
    else min(wanted["lungs"], max(LEAST, int(SCORED / (FORWARDS * cost))))
  )
  masked = lung_overlap.with_masks(images, most) if wanted["lungs"] else np.zeros(0, np.int64)
  # One batch size for the images shown and for those scored: every method compiles once.
  options = {"head": head, "mean": evaluator.mean, "std": evaluator.std, "batch": len(shown)}
  arrays, scores = _drawn_and_scored(
    run.encoder, params, images.take(shown), images.take(masked), methods, options
  )
  arrays |= {"label": np.asarray(findings(np.asarray(images.labels)[shown], images.info.classes))}
  if "target" in arrays:
    arrays["target"] = np.asarray(about["classes"])[arrays["target"]]
  writer.arrays("attention", **arrays)
  writer.facts(
    look={
      "evaluator": name,
      "methods": methods,
      "head": about.get("said", ""),
      "reads": "patches" if getattr(run.encoder, "pool", "") == "mean" else "class token",
      "blocks": getattr(run.encoder, "blocks", 0),
      "lungs": scores,
      "masked": len(masked),
      "of_masked": len(lung_overlap.with_masks(images)),
      "seconds": time.perf_counter() - began,
    }
  )
  return _told(scores, len(masked))


def _asked(text: str) -> list[str] | None:
  """Names of methods; None for all."""
  if text == "auto":
    return None
  asked = list(maps.named(text))
  for m in asked:
    if m not in maps.METHODS:
      raise UserError(
        f"config.explain.methods={text!r}: {m!r} is not known{suggest(m, maps.METHODS)}"
      )
  return asked


def _evaluator(run: Any) -> str | None:
  """That of labelled test images, or the first that has images to show."""
  named = [
    n
    for n, d in run.eval_data.items()
    if isinstance(d, eval_splits.Data) and len(run.evaluators[n].examples(d, 1)[0])
  ]
  return next((n for n in named if "train" in run.eval_data[n].rows), next(iter(named), None))


def _network(
  run: Any, state: Any, evaluator: Any, data: eval_splits.Data | None
) -> tuple[Params, Head | None, dict[str, Any]]:
  """The encoder's parameters, on the host; a head, where `data` asks for one; and what it is."""
  method = run.method
  if getattr(evaluator, "judges", "features") == "predictions":
    params = sharding.to_host(method.network_params(state["params"], state["extra"]))
    own = Head(params["head"]["kernel"], params["head"]["bias"])
    return params["encoder"], own, {"said": "", "classes": list(method.labels.classes)}
  params = sharding.to_host(method.encoder_params(state["params"], state["extra"]))
  if data is None or "train" not in data.rows:
    return params, None, {}
  key, rows = data.rows["train"]
  rows = rows[even(len(rows), PROBED)]
  # Placed and batched as its evaluator has it, whose program then serves here as well.
  head = probe(
    run.encode,
    method.encoder_params(state["params"], state["extra"]),
    data.images[key].take(rows),
    evaluator.mean,
    evaluator.std,
    min(evaluator.batch, max(len(images) for images in data.images.values())),
    run.mesh,
  )
  said = f"a linear probe on the frozen features of {len(rows):,} training images"
  return params, head, {"said": said, "classes": list(data.classes)}


def probe(
  encode: features.Encode,
  params: Params,
  images: Images,
  mean: float,
  std: float,
  batch: int = 64,
  mesh: Mesh | None = None,
) -> Head | None:
  """A linear probe's logits as a head on the features; None without labels of two kinds."""
  if not len(images.info.classes):
    return None
  x = features.extract(encode, params, images, mean=mean, std=std, batch=batch, mesh=mesh)
  labels = np.asarray(images.labels)
  if not np.isfinite(x).all() or not np.isfinite(labels).any():
    return None
  (fitted,) = linear.fit(x, labels, images.info.exclusive, (1e-2,))
  if not fitted.fitted.any():
    return None
  kernel = fitted.weight / fitted.scale[:, None]
  # A class that no training image teaches is never the largest.
  bias = np.where(fitted.fitted, fitted.bias - fitted.centre @ kernel, -np.inf)
  return Head(kernel.astype(np.float32), bias.astype(np.float32))


def chosen(images: Images, count: int) -> Int64[np.ndarray, "m"]:
  """Images to show: of every class in turn; without labels at even steps."""
  labels = np.asarray(images.labels)
  of_class = [np.flatnonzero(labels[:, c] == 1) for c in range(labels.shape[1])]
  order = [of[i] for i in range(count) for of in of_class if i < len(of)]
  if not order:
    return even(len(images), count)
  return np.array(list(dict.fromkeys(order))[:count], np.int64)


def _drawn_and_scored(
  network: Any,
  params: Params,
  shown: Images,
  masked: Images,
  methods: list[str],
  options: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The maps of the images shown, and by method how those of the images with masks lie on lungs."""
  arrays: dict[str, np.ndarray] = {"image": shown.gray(slice(None))[..., 0]}
  if shown.masks is not None:
    arrays["mask"] = np.asarray(shown.masks)[..., 0] > 0
  targets: list[Any] = [None, None]
  if options["head"] is not None and set(methods) & set(maps.OF_CLASSES):
    targets = [
      maps.predicted(
        network,
        params,
        lung_overlap.normalised(part, options["mean"], options["std"]),
        options["head"],
        options["batch"],
      )
      if len(part)
      else None
      for part in (shown, masked)
    ]
    arrays["target"] = targets[0]

  def one(method: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if method == "attention":
      found = _heads(network, params, shown, options)
    else:
      found = {
        method: lung_overlap.look(method, network, params, shown, target=targets[0], **options).maps
      }
    if method == "occlusion" or not len(masked):
      return found, {}
    seen = lung_overlap.look(method, network, params, masked, target=targets[1], **options)
    return found, {
      method: lung_overlap.summary(
        seen.scores, masked.patients, np.asarray(masked.labels), masked.info.classes
      )
    }

  scores: dict[str, Any] = {}
  # Side by side, because most of the time goes into compiling, a program of which keeps one core.
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for found, scored in pool.map(one, methods):
      arrays |= found
      scores |= scored
  return arrays, scores


def _heads(
  network: Any, params: Params, images: Images, options: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Attention of the last two blocks, head by head."""
  blocks = {"attn": -1} | ({"attn_before": -2} if network.blocks > 1 else {})
  heads = jax.jit(
    lambda p, x: {name: attention.heads(network, p, x, at) for name, at in blocks.items()},
    compiler_options=compile_effort.options(once=True),
  )
  x = lung_overlap.normalised(images, options["mean"], options["std"])
  return {name: np.asarray(of) for name, of in heads(params, x).items()}


def _cost(network: Any, images: Images) -> float:
  """Operations of one image's forward pass."""
  return float(network.flops((*images.pixels.shape[1:3], 1)))


def _told(scores: Mapping[str, Any], n: int) -> list[str]:
  """Energy on the lungs over their share of the image."""
  if not scores:
    return []
  said = [f"lungs     where the maps of {n} test images lie; 1 by chance"]
  for method, of in scores.items():
    e = of["all"]["energy_ratio"]
    if e["value"] is not None:
      bounds = "" if e["low"] is None else f" ({e['low']:.2f}-{e['high']:.2f})"
      said.append(f"          {method} {e['value']:.2f}{bounds}")
  return said
