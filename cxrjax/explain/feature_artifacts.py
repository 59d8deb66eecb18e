"""Feature section of a run's page: nearest neighbours, a map of images, colours of patches."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.core import compile_effort
from cxrjax.data.images import Images, evenly_spaced
from cxrjax.data.splits.patient_splits import patient_keys
from cxrjax.evals import embedding, features, knn
from cxrjax.evals.eval_splits import Data
from cxrjax.evals.subgroups import ATTRIBUTES
from cxrjax.explain import lung_overlap
from cxrjax.report.run_writer import Writer
from cxrjax.training import sharding

TEST, TRAIN = 2000, 4000  # maximum numbers of images, at even steps through larger sets
QUERIES, NEAR = 6, 5  # test images shown, and neighbours of each
SIDE = 160  # maximum side of a picture, pixels


def write(run: Any, state: Any, writer: Writer) -> None:
  """Writes the arrays and facts `features` of a run's encoder, on the first labelled evaluator.

  Writes nothing where no evaluator has labelled training and test images, or where features are not
  finite. Pictures carry labels, but no ids or patients.

  Args:
    run: a `tasks.training_run.Run`. Every process must call this.
    state: training state with the encoder.
    writer: of the run.
  """
  labelled = [
    name
    for name, data in run.eval_data.items()
    if isinstance(data, Data) and {"train", "test"} <= set(data.rows)
  ]
  if not labelled:
    return
  name = labelled[0]
  began = time.perf_counter()
  evaluator, data = run.evaluators[name], run.eval_data[name]
  params = run.method.encoder_params(state["params"], state["method_state"])
  batch = min(evaluator.batch, max(len(images) for images in data.images.values()))
  queries = embedding.rows_of_each_class(data.labels("test"), QUERIES)
  chosen = {
    "train": evenly_spaced(len(data.rows["train"][1]), TRAIN),
    "test": np.union1d(evenly_spaced(len(data.rows["test"][1]), TEST), queries),
  }
  images = {split: data.select(split).take(rows) for split, rows in chosen.items()}
  x = {
    split: features.extract(
      run.encode,
      params,
      of_split,
      batch=batch,
      mean=evaluator.mean,
      std=evaluator.std,
      mesh=run.mesh,
    )
    for split, of_split in images.items()
  }
  if not all(np.isfinite(values).all() for values in x.values()):
    return
  queries = np.searchsorted(chosen["test"], queries)
  arrays, facts = _neighbors_and_map(
    images["train"], images["test"], x["train"], x["test"], queries
  )
  arrays |= _patch_colors(run, evaluator, params, images["test"].take(queries), facts)
  writer.arrays("features", **arrays)
  writer.facts(
    features={
      "evaluator": name,
      **facts,
      "train": len(x["train"]),
      "test": len(x["test"]),
      "of_train": len(data.rows["train"][1]),
      "of_test": len(data.rows["test"][1]),
      "seconds": time.perf_counter() - began,
    }
  )


def _neighbors_and_map(
  train: Images, test: Images, x_train: np.ndarray, x_test: np.ndarray, queries: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Arrays and facts of nearest neighbours, groups and the map of test images."""
  patients = patient_keys(test)
  similarity, rows = embedding.retrieve(x_train, x_test, NEAR, patient_keys(train), patients)
  xy, map_facts = embedding.plane(x_test)
  arrays: dict[str, np.ndarray] = {
    "embedding": knn.normalize(x_test).astype(np.float16),
    "xy": xy,
    "labels": test.labels,
    "classes": np.asarray(test.info.classes),
    "age": test.ages,
    "sex": np.asarray(test.sexes),
    "site": np.asarray(test.sites),
    "query": queries,
    "similarity": similarity[queries],
  }
  shared = []
  for by in ("label", *ATTRIBUTES):
    names, (of_train, of_test) = embedding.groups((train.table, test.table), test.info.classes, by)
    n_groups = len(set(of_test[of_test >= 0].tolist()))
    if not n_groups or (n_groups == 1 and by != "label"):
      continue  # unknown, or the same for all images; a label is shown beside each image anyway
    neighbor_groups = np.where(rows >= 0, of_train[rows], embedding.UNKNOWN)
    arrays |= {
      f"names_{by}": np.asarray(names),
      f"group_{by}": of_test,
      f"near_{by}": neighbor_groups[queries],
    }
    if n_groups == 1:
      continue  # a single group has no neighbourhood to measure
    share, chance = embedding.shared(of_test, of_train, rows, patients)
    shared.append({"by": by, "chance": chance, **dataclasses.asdict(share)})
  arrays["image"] = _small(test.gray(queries))
  neighbor_rows = rows[queries]
  pictures = _small(train.gray(np.maximum(neighbor_rows, 0).reshape(-1)))
  arrays["near_image"] = pictures.reshape(*neighbor_rows.shape, *pictures.shape[1:])
  return arrays, {"map": map_facts, "neighbours": neighbor_rows.shape[1], "shared": shared}


def _small(pixels: np.ndarray) -> np.ndarray:
  """Downsamples images to at most `SIDE` pixels by averaging whole blocks; u8[n s s]."""
  step = -(-pixels.shape[1] // SIDE)
  side = pixels.shape[1] // step
  blocks = pixels[:, : side * step, : side * step, 0].reshape(-1, side, step, side, step)
  return np.rint(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)


def _patch_colors(
  run: Any, evaluator: Any, params: Any, shown: Images, facts: dict[str, Any]
) -> dict[str, np.ndarray]:
  """Colours of the patches of the test images shown; adds `patch_explains` to the facts."""
  x = jnp.asarray(lung_overlap.normalize(shown, evaluator.mean, evaluator.std))
  encode_patches = jax.jit(
    lambda p, x: run.encoder.encode(p, x).patches,
    compiler_options=compile_effort.options(once=True),
  )
  patch_features = np.asarray(encode_patches(sharding.to_host(params), x))
  colors, facts["patch_explains"] = embedding.patch_colors(
    patch_features, run.encoder.grid(x.shape[1:3])
  )
  return {"patch_colours": colors}
