"""Artifacts for a run's page: training views, explanation maps and their overlap with lungs."""

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
from cxrjax.data.images import Images, evenly_spaced
from cxrjax.evals import embedding, eval_splits, features, linear
from cxrjax.explain import attention, lung_overlap, maps
from cxrjax.explain.maps import Head
from cxrjax.models.build import forward_flops
from cxrjax.models.module import Params
from cxrjax.report.run_writer import Writer
from cxrjax.training import sharding

DEFAULT: dict[str, Any] = {"images": 6, "methods": "auto", "lungs": 256}  # `config.explain`
PROBED = 1000  # maximum number of training images for fitting a probe
FORWARDS = 10  # approximate cost of all maps of an image but occlusion, in forward passes
WINDOWS = 225  # the same for occlusion
# Budgets in FLOPs without an accelerator, a few seconds each: for maps that are scored, and for
# occlusion.
SCORED, OCCLUSION_BUDGET = 2e11, 5e10
MIN_SCORED = 24  # minimum number of scored images, where there are as many


def views(run: Any) -> dict[str, np.ndarray]:
  """Views of the first training batch as 8-bit gray levels, for the report."""

  def first_views(data: Any, batch: Any) -> Any:
    batch = run.train_step.fetch(data, batch)
    return batch["image"], run.train_step.views(batch, run.train_step.step_key(jnp.int32(0), 0))

  compiled = jax.jit(first_views, compiler_options=compile_effort.options(once=True))
  source, views = compiled(run.loader.data, run.loader[0])
  source, views = sharding.to_host((source, dict(views)))
  count = min(4, source.shape[0])

  def gray(x: np.ndarray) -> np.ndarray:
    x = x[:, :count, ..., 0]
    if x.dtype == np.bool_:  # a mask
      return np.where(x, np.uint8(255), np.uint8(0))
    x = x * run.recipe.std + run.recipe.mean
    return np.clip(x * 255 + 0.5, 0, 255).astype(np.uint8)

  if source.dtype != np.uint8:  # windowed 16-bit images, 0..1
    source = np.clip(source * 255 + 0.5, 0, 255).astype(np.uint8)
  return {
    "source": source[:count, ..., 0],
    **{name: gray(view) for name, view in views.items() if view.ndim == 5},
  }


def write(run: Any, state: Any, writer: Writer) -> list[str]:
  """Writes maps of a few test images, and lung scores of more where there are masks.

  Attention (per head in the last two blocks, and rolled out) where the network has it; per class,
  Grad-CAM, Grad-CAM++ and, where it is cheap, occlusion. Class scores come from the classifier, or
  from a linear probe on training images, as the facts state. The probe is for explanation only and
  is not evaluated.

  Args:
    run: a `tasks.training_run.Run`. Every process must call this.
    state: training state with the network.
    writer: of the run; gets arrays `attention` and facts `look`.

  Returns:
    Log lines on the overlap with lungs, one per method.

  Raises:
    UserError: `config.explain.methods` has an unknown method.
  """
  options = DEFAULT | dict(run.config.get("explain") or {})
  requested = _parse_methods(options["methods"])
  name = _choose_evaluator(run)
  if name is None or options["images"] < 1:
    return []
  began = time.perf_counter()
  evaluator, data = run.evaluators[name], run.eval_data[name]
  of_classes = requested is None or set(requested) & set(maps.OF_CLASSES)
  params, head, head_facts = _network_and_head(run, state, evaluator, data if of_classes else None)
  images = data.select("test")
  cost = forward_flops(run.encoder, images.pixels.shape[1:])
  methods = _choose_methods(run, head, requested, cost * options["images"])
  if not methods:
    return []
  shown = example_rows(images, options["images"])
  masked = lung_overlap.with_masks(images, _max_scored(run, options["lungs"], cost))
  # The same batch size for images shown and images scored, so that every method compiles once.
  map_options = {"head": head, "mean": evaluator.mean, "std": evaluator.std, "batch": len(shown)}
  arrays, scores = _maps_and_scores(
    run.encoder, params, images.take(shown), images.take(masked), methods, map_options
  )
  labels = embedding.findings(np.asarray(images.labels)[shown], images.info.classes)
  arrays["label"] = np.asarray(labels)
  if "target" in arrays:
    arrays["target"] = np.asarray(head_facts["classes"])[arrays["target"]]
  writer.arrays("attention", **arrays)
  writer.facts(
    look={
      "evaluator": name,
      "methods": methods,
      "head": head_facts.get("description", ""),
      "reads": "patches" if run.encoder.pool == "mean" else "class token",
      "blocks": run.encoder.blocks,
      "lungs": scores,
      "masked": len(masked),
      "of_masked": len(lung_overlap.with_masks(images)),
      "seconds": time.perf_counter() - began,
    }
  )
  return _lung_lines(scores, len(masked))


def _choose_methods(
  run: Any, head: Head | None, requested: list[str] | None, flops: float
) -> list[str]:
  """The methods requested, or all but occlusion where that is dear; `flops` of a forward pass."""
  available = maps.methods_for(run.encoder, head is not None)
  if requested is not None:
    return [m for m in available if m in requested]
  is_occlusion_cheap = flops * WINDOWS < OCCLUSION_BUDGET
  return [m for m in available if m != "occlusion" or is_occlusion_cheap]


def _max_scored(run: Any, most: int, flops: float) -> int:
  """Number of images whose maps are scored: fewer without an accelerator."""
  if run.mesh.devices.flat[0].platform != "cpu":
    return most
  return min(most, max(MIN_SCORED, int(SCORED / (FORWARDS * flops))))


def _parse_methods(text: str) -> list[str] | None:
  """Parses `config.explain.methods`; None for all methods."""
  if text == "auto":
    return None
  methods = list(maps.parse_methods(text))
  for m in methods:
    if m not in maps.METHODS:
      raise UserError(
        f"config.explain.methods={text!r}: {m!r} is not known{suggest(m, maps.METHODS)}"
      )
  return methods


def _choose_evaluator(run: Any) -> str | None:
  """The first evaluator with images to show, preferably one with labelled training images."""
  with_images = [
    n
    for n, d in run.eval_data.items()
    if isinstance(d, eval_splits.Data) and len(run.evaluators[n].examples(d, 1)[0])
  ]
  with_train = [n for n in with_images if "train" in run.eval_data[n].rows]
  return next(iter([*with_train, *with_images]), None)


def _network_and_head(
  run: Any, state: Any, evaluator: Any, data: eval_splits.Data | None
) -> tuple[Params, Head | None, dict[str, Any]]:
  """Encoder parameters, on the host; a head, where `data` is given; and facts about the head."""
  method = run.method
  if evaluator.judges == "predictions":
    params = sharding.to_host(method.network_params(state["params"], state["method_state"]))
    classifier_head = Head(params["head"]["kernel"], params["head"]["bias"])
    facts = {"description": "", "classes": list(method.labels.classes)}
    return params["encoder"], classifier_head, facts
  params = sharding.to_host(method.encoder_params(state["params"], state["method_state"]))
  if data is None or "train" not in data.rows:
    return params, None, {}
  key, rows = data.rows["train"]
  rows = rows[evenly_spaced(len(rows), PROBED)]
  # Placed and batched as in the evaluator, so that its compiled program is reused.
  head = probe(
    run.encode,
    method.encoder_params(state["params"], state["method_state"]),
    data.images[key].take(rows),
    evaluator.mean,
    evaluator.std,
    min(evaluator.batch, max(len(images) for images in data.images.values())),
    run.mesh,
  )
  description = f"a linear probe on the frozen features of {len(rows):,} training images"
  return params, head, {"description": description, "classes": list(data.classes)}


def probe(
  encode: features.Encode,
  params: Params,
  images: Images,
  mean: float,
  std: float,
  batch: int = 64,
  mesh: Mesh | None = None,
) -> Head | None:
  """Fits a linear probe as a head on the features; None where no class has both values."""
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
  # A class that could not be fitted never has the largest logit.
  bias = np.where(fitted.fitted, fitted.bias - fitted.centre @ kernel, -np.inf)
  return Head(kernel.astype(np.float32), bias.astype(np.float32))


def example_rows(images: Images, count: int) -> Int64[np.ndarray, "m"]:
  """Rows of images to show: each class in turn; without labels, at even steps."""
  rows = embedding.rows_of_each_class(np.asarray(images.labels), count)
  return rows if len(rows) else evenly_spaced(len(images), count)


def _maps_and_scores(
  network: Any,
  params: Params,
  shown: Images,
  masked: Images,
  methods: list[str],
  options: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Maps of the images shown, and lung scores by method of the images with masks."""
  arrays: dict[str, np.ndarray] = {"image": shown.gray(slice(None))[..., 0]}
  if shown.masks is not None:
    arrays["mask"] = np.asarray(shown.masks)[..., 0] > 0
  targets: list[Any] = [None, None]
  if options["head"] is not None and set(methods) & set(maps.OF_CLASSES):
    targets = [
      maps.predicted(
        network,
        params,
        lung_overlap.normalize(part, options["mean"], options["std"]),
        options["head"],
        options["batch"],
      )
      if len(part)
      else None
      for part in (shown, masked)
    ]
    arrays["target"] = targets[0]

  def map_and_score(method: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if method == "attention":
      maps_of_method = _attention_heads(network, params, shown, options)
    else:
      maps_of_method = {
        method: lung_overlap.explain_and_score(
          method, network, params, shown, target=targets[0], **options
        ).maps
      }
    if method == "occlusion" or not len(masked):
      return maps_of_method, {}
    lung_maps = lung_overlap.explain_and_score(
      method, network, params, masked, target=targets[1], **options
    )
    return maps_of_method, {
      method: lung_overlap.summary(
        lung_maps.scores, masked.patients, np.asarray(masked.labels), masked.info.classes
      )
    }

  scores: dict[str, Any] = {}
  # In parallel, because most of the time goes into compilation, which uses one core per program.
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for maps_of_method, scores_of_method in pool.map(map_and_score, methods):
      arrays |= maps_of_method
      scores |= scores_of_method
  return arrays, scores


def _attention_heads(
  network: Any, params: Params, images: Images, options: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Attention of the last two blocks, per head."""
  blocks = {"attn": -1} | ({"attn_before": -2} if network.blocks > 1 else {})
  heads = jax.jit(
    lambda p, x: {name: attention.heads(network, p, x, block) for name, block in blocks.items()},
    compiler_options=compile_effort.options(once=True),
  )
  x = lung_overlap.normalize(images, options["mean"], options["std"])
  return {name: np.asarray(weights) for name, weights in heads(params, x).items()}


def _lung_lines(scores: Mapping[str, Any], n: int) -> list[str]:
  """Log lines with the energy ratio of each method, 1 by chance."""
  if not scores:
    return []
  lines = [f"lungs     energy on the lungs relative to chance, {n} test images"]
  for method, summary in scores.items():
    ratio = summary["all"]["energy_ratio"]
    if ratio["value"] is not None:
      bounds = "" if ratio["low"] is None else f" ({ratio['low']:.2f}-{ratio['high']:.2f})"
      lines.append(f"          {method} {ratio['value']:.2f}{bounds}")
  return lines
